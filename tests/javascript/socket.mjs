// Queries and mutations on one WebSocket with graphql-ws: node socket.mjs URL PATIENT
import { createClient } from 'graphql-ws';
import WebSocket from 'ws';
import { PAGE, RECORD, VISIT, pages, printResults } from './documents.mjs';

const [url, patientId] = process.argv.slice(2);
const client = (connectionParams) =>
  createClient({ url: url.replace('http', 'ws'), webSocketImpl: WebSocket, connectionParams, retryAttempts: 0 });

// Return the result of a query or mutation, or its refusal.
function ask(by, query, variables) {
  return new Promise((resolve) => {
    let answer;
    by.subscribe(
      { query, variables },
      {
        next: (each) => (answer = each),
        error: (refused) => resolve({ refused: Array.isArray(refused) ? refused : { code: refused.code, reason: refused.reason } }),
        complete: () => resolve(answer),
      },
    );
  });
}

const dev = client({ authorization: 'Bearer dev' });
const record = (input, key) => ask(dev, RECORD, { patientId, input, key });
const first = await record(VISIT, patientId);
const again = await record(VISIT, patientId);
const reused = await record({ ...VISIT, notes: 'Slept badly.' }, patientId);
await Promise.all([1, 2].map((number) => record({ ...VISIT, notes: `Visit ${number}.` })));

printResults({
  first,
  again,
  reused,
  pages: await pages(async (after) => (await ask(dev, PAGE, { patientId, after })).data),
  problem: await record({ ...VISIT, notes: 'x'.repeat(50_001) }),
  badDocument: await ask(dev, '{ nope }'),
  otherBrand: await ask(client({ authorization: 'Bearer dev', 'x-brand-id': 'loopbio' }), '{ __typename }'),
  badToken: await ask(client({ authorization: 'Bearer nobody' }), '{ __typename }'),
});
await dev.dispose();
process.exit();
