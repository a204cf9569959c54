// Concurrent operations of Apollo Client in one request: node batching.mjs URL PATIENT
import { ApolloClient, InMemoryCache, gql } from '@apollo/client/core';
import { BatchHttpLink } from '@apollo/client/link/batch-http';
import { RECORD, VISIT, printResults } from './documents.mjs';

const [url, patientId] = process.argv.slice(2);
let requests = 0;
const client = new ApolloClient({
  cache: new InMemoryCache(),
  link: new BatchHttpLink({
    uri: url,
    batchInterval: 20,
    headers: { authorization: 'Bearer dev' },
    fetch: (...request) => {
      requests += 1;
      return fetch(...request);
    },
  }),
});

const record = client.mutate({ mutation: gql(RECORD), variables: { patientId, input: VISIT, key: patientId } });
const patient = client.query({ query: gql('query ($id: ID!) { patient(id: $id) { id } }'), variables: { id: patientId } });
const nope = client.query({ query: gql('{ nope }') }).catch((error) => error.errors.map((each) => each.extensions.code));

const answers = await Promise.all([record, patient, nope]);
printResults({
  requests,
  recorded: answers[0].data.recordEncounter.__typename,
  patient: answers[1].data.patient.id,
  codes: answers[2],
});
client.stop();
