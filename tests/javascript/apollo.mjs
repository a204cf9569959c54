// The calls of a frontend with Apollo Client: node apollo.mjs URL PATIENT [MEDIA TYPE]
import { ApolloClient, HttpLink, InMemoryCache, gql } from '@apollo/client/core';
import { CombinedGraphQLErrors, ServerError } from '@apollo/client/errors';
import { PAGE, RECORD, VISIT, pages, printResults } from './documents.mjs';

const [url, patientId, accept] = process.argv.slice(2);
const mediaTypes = new Set();
const client = (headers) =>
  new ApolloClient({
    cache: new InMemoryCache({ possibleTypes: { Problem: ['PatientNotFound', 'InvalidInput', 'IdempotencyKeyReused'] } }),
    link: new HttpLink({
      uri: url,
      headers: { authorization: 'Bearer dev', ...(accept && { accept }), ...headers },
      fetch: async (...request) => {
        const response = await fetch(...request);
        mediaTypes.add(response.headers.get('content-type'));
        return response;
      },
    }),
  });
const dev = client();

// The result of a promise as its caller sees it.
async function seen(promise) {
  try {
    return { data: (await promise).data, failed: null };
  } catch (error) {
    if (CombinedGraphQLErrors.is(error)) return { failed: 'graphql', codes: error.errors.map((each) => each.extensions.code) };
    if (ServerError.is(error)) return { failed: 'server', status: error.statusCode, body: JSON.parse(error.bodyText) };
    throw error;
  }
}
const record = (input, key, by = dev) =>
  seen(by.mutate({ mutation: gql(RECORD), variables: { patientId, input, key } }));

const first = await record(VISIT, patientId);
const again = await record(VISIT, patientId);
const reused = await record({ ...VISIT, notes: 'Slept badly.' }, patientId);
for (const number of [1, 2]) await record({ ...VISIT, notes: `Visit ${number}.` });

printResults({
  first,
  again,
  reused,
  pages: await pages(async (after) => (await dev.query({ query: gql(PAGE), variables: { patientId, after } })).data),
  problem: await record({ ...VISIT, notes: 'x'.repeat(50_001) }),
  otherBrand: await record(VISIT, null, client({ 'x-brand-id': 'loopbio' })),
  badToken: await record(VISIT, null, client({ authorization: 'Bearer nobody' })),
  badDocument: await seen(dev.query({ query: gql('{ nope }') })),
  mediaTypes: [...mediaTypes],
});
dev.stop();
