// Write the generated files of the board: node board.mjs SCHEMA OPERATIONS FOLDER
//
// operations.ts: types and typed documents. documents.json: the manifest, from the SHA-256 of each text to the text that
// the board sends. hashes.json: the same hashes by the names of the operations.
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { codegen } from "@graphql-codegen/core";
import * as documentNodes from "@graphql-codegen/typed-document-node";
import * as operationTypes from "@graphql-codegen/typescript-operations";
import { formatDocument, stringifyDocument } from "@urql/core";
import { Kind, parse, visit } from "graphql";

const [schema, operations, folder] = process.argv.slice(2);
const read = (path) => parse(readFileSync(path, "utf8"));
const write = (name, text) => writeFileSync(join(folder, name), text);
const { definitions } = read(operations);

const made = await codegen({
  filename: "operations.ts",
  schema: read(schema),
  documents: [{ location: operations, document: { kind: Kind.DOCUMENT, definitions } }],
  config: {
    strictScalars: true,
    scalars: { ID: "string", UUID: "string", DateTime: "string", JSON: "unknown" },
    useTypeImports: true,
    documentNodeImport: "@urql/core#TypedDocumentNode",
  },
  plugins: [{ operationTypes: {} }, { documentNodes: {} }],
  pluginMap: { operationTypes, documentNodes },
});
write("operations.ts", `// Generated from operations.graphql: node tests/javascript/board.mjs (see CONTRIBUTING.md).\n${made}`);

/** The fragments that a definition uses, each before it is printed once, in the order in which they are met. */
function fragmentsOf(definition, found = []) {
  visit(definition, {
    FragmentSpread({ name }) {
      const fragment = definitions.find((each) => each.kind === Kind.FRAGMENT_DEFINITION && each.name.value === name.value);
      if (!found.includes(fragment)) fragmentsOf(fragment, found).push(fragment);
    },
  });
  return found;
}

const hashes = {};
const documents = {};
for (const operation of definitions.filter((each) => each.kind === Kind.OPERATION_DEFINITION)) {
  const document = { kind: Kind.DOCUMENT, definitions: [operation, ...fragmentsOf(operation)] };
  const text = stringifyDocument(formatDocument(document));
  const hash = createHash("sha256").update(text).digest("hex");
  hashes[operation.name.value] = hash;
  documents[hash] = text;
}
write("hashes.json", `${JSON.stringify(hashes, null, 2)}\n`);
write("documents.json", `${JSON.stringify(documents, null, 2)}\n`);
