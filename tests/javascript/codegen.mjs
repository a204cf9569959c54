// Generate what a configuration of GraphQL Code Generator names: node codegen.mjs CONFIG SCHEMA DOCUMENTS FOLDER
// The command-line program would do the same, with 140 more packages.
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { codegen } from '@graphql-codegen/core';
import { parse } from 'graphql';

const [config, schema, documents, folder] = process.argv.slice(2);
const read = (path) => parse(readFileSync(path, 'utf8'));

const { generates } = (await import(pathToFileURL(config))).default;
for (const [filename, output] of Object.entries(generates)) {
  const plugins = await Promise.all(output.plugins.map((name) => import(`@graphql-codegen/${name}`)));
  const made = await codegen({
    filename,
    schema: read(schema),
    documents: [{ location: documents, document: read(documents) }],
    config: output.config,
    plugins: output.plugins.map((name) => ({ [name]: {} })),
    pluginMap: Object.fromEntries(output.plugins.map((name, number) => [name, plugins[number]])),
  });
  writeFileSync(join(folder, filename), made);
}
