// Compose subgraphs to a supergraph: node compose.mjs NAME=FILE…
import { readFileSync } from 'node:fs';
import { composeServices } from '@apollo/composition';
import { parse } from 'graphql';

const services = process.argv.slice(2).map((argument) => {
  const [name, file] = argument.split('=');
  return { name, url: `http://${name}.test/graphql`, typeDefs: parse(readFileSync(file, 'utf8')) };
});

const { errors = [], hints = [], supergraphSdl, schema } = composeServices(services);
const api = schema?.toAPISchema().toGraphQLJSSchema();
const fields = (name) => Object.values(api.getType(name).getFields()).map((field) => `${field.name}: ${field.type}`);
console.log(
  JSON.stringify({
    errors: errors.map((error) => error.message),
    hints: hints.map((hint) => `${hint.definition.code}: ${hint.message}`),
    supergraph: supergraphSdl,
    types: api && Object.fromEntries(['Query', 'Encounter', 'Provider'].map((name) => [name, fields(name)])),
  }),
);
