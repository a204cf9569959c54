// The calls of a frontend with urql: node urql.mjs URL PATIENT
import { Client, cacheExchange, fetchExchange } from '@urql/core';
import { PAGE, RECORD, VISIT, pages, printResults } from './documents.mjs';

const [url, patientId] = process.argv.slice(2);
const client = (headers) =>
  new Client({
    url,
    exchanges: [cacheExchange, fetchExchange],
    preferGetMethod: false,
    fetchOptions: { headers: { authorization: 'Bearer dev', ...headers } },
  });
const dev = client();
const record = (input, key, by = dev) => by.mutation(RECORD, { patientId, input, key }).toPromise();
const seen = ({ data, error }) => ({
  data: data ?? null,
  codes: error?.graphQLErrors.map((each) => each.extensions.code) ?? [],
  network: error?.networkError?.message ?? null,
});

const first = await record(VISIT, patientId);
const again = await record(VISIT, patientId);
const reused = await record({ ...VISIT, notes: 'Slept badly.' }, patientId);
for (const number of [1, 2]) await record({ ...VISIT, notes: `Visit ${number}.` });

printResults({
  first: seen(first),
  again: seen(again),
  reused: seen(reused),
  pages: await pages(async (after) => (await dev.query(PAGE, { patientId, after }).toPromise()).data),
  byGet: seen(await dev.query(PAGE, { patientId, after: null }, { preferGetMethod: 'force' }).toPromise()),
  problem: seen(await record({ ...VISIT, notes: 'x'.repeat(50_001) })),
  otherBrand: seen(await record(VISIT, null, client({ 'x-brand-id': 'loopbio' }))),
  badToken: seen(await record(VISIT, null, client({ authorization: 'Bearer nobody' }))),
  badDocument: seen(await dev.query('{ nope }', {}).toPromise()),
});
