// The configuration of GraphQL Code Generator: npx graphql-codegen --config codegen.mjs
// schema.graphql is that of the gateway: gateway export schema > schema.graphql

export default {
  schema: "schema.graphql",
  documents: "src/**/*.graphql",
  generates: {
    "src/gateway.ts": {
      plugins: ["typescript-operations", "typed-document-node"],
      config: {
        // A scalar that is missing here is an error, and not `any`.
        strictScalars: true,
        scalars: { ID: "string", UUID: "string", DateTime: "string", JSON: "unknown" },
        useTypeImports: true,
      },
    },
  },
};
