// Subscribe to a patient's events with graphql-ws or graphql-sse: node events.mjs CLIENT URL PATIENT
import { createClient as createSseClient } from 'graphql-sse';
import { createClient as createSocketClient } from 'graphql-ws';
import WebSocket from 'ws';
import { RECORD, VISIT, printResults } from './documents.mjs';

const [kind, url, patientId] = process.argv.slice(2);
const headers = { authorization: 'Bearer dev' };
const socket = () =>
  createSocketClient({ url: url.replace('http', 'ws'), webSocketImpl: WebSocket, connectionParams: headers, retryAttempts: 0 });
const client = kind === 'graphql-ws' ? socket() : createSseClient({ url, headers, retryAttempts: 0 });
const EVENTS = `subscription ($patientId: ID!, $after: String) {
  encounterEvents(patientId: $patientId, after: $after) { cursor kind encounter { id notes } }
}`;

const once = async (query, variables) => (await client.iterate({ query, variables }).next()).value;
const recorded = [];
async function record() {
  const { data } = await once(RECORD, { patientId, input: VISIT });
  recorded.push(data.recordEncounter.encounter.id);
}

// Return `count` events, from now or from a cursor. The start of a subscription is not visible, so repeat `trigger`.
async function receive(count, after, trigger = () => {}) {
  const events = client.iterate({ query: EVENTS, variables: { patientId, after } });
  const received = [];
  const listening = (async () => {
    for await (const { data } of events) if (received.push(data.encounterEvents) === count) return;
  })();
  let over = false;
  listening.finally(() => (over = true));
  while (!over) {
    await trigger();
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  await listening;
  return received;
}

const live = await receive(3, null, record);
for (const _ of [1, 2]) await record();
const place = recorded.indexOf(live[0].encounter.id);
const missed = await receive(recorded.length - place - 1, live[0].cursor);

async function refusal(query, variables) {
  try {
    return await once(query, variables); // graphql-sse returns the errors
  } catch (errors) {
    return { errors }; // graphql-ws throws them
  }
}
printResults({
  recorded,
  live: live.map((each) => [each.kind, each.encounter.id, each.encounter.notes]),
  missed: missed.map((each) => each.encounter.id),
  unknown: await refusal(EVENTS, { patientId: 'nobody' }),
});
process.exit();
