// Subscribe to encounter events as in docs/live.md; print one line for each.
// node follow.mjs graphql-sse|graphql-ws ORIGIN PATIENT_ID CURSOR
import * as sse from "graphql-sse";
import * as ws from "graphql-ws";
import WebSocket from "ws";

const [library, origin, patientId, cursor] = process.argv.slice(2);
const token = async () => "dev";

const client =
  library === "graphql-sse"
    ? sse.createClient({
        url: `${origin}/graphql`,
        headers: async () => ({ Authorization: `Bearer ${await token()}` }),
        retryAttempts: 0,
      })
    : ws.createClient({
        url: `${origin.replace("http", "ws")}/graphql`,
        connectionParams: async () => ({ Authorization: `Bearer ${await token()}` }),
        retryAttempts: 0,
        webSocketImpl: WebSocket,
      });

const query = `subscription ($patientId: ID, $after: String) {
  encounterEvents(patientId: $patientId, after: $after) { cursor kind encounter { id status } }
}`;

async function follow(variables, handle) {
  for (;;) {
    try {
      for await (const { data, errors } of client.iterate({ query, variables })) {
        if (errors) throw errors;
        handle(data.encounterEvents);
        variables = { ...variables, after: data.encounterEvents.cursor };
      }
    } catch (problem) {
      const code = problem?.[0]?.extensions?.code;
      if (["validation_error", "not_found", "insufficient_scope", "forbidden"].includes(code)) throw problem;
    }
    await new Promise((resolve) => setTimeout(resolve, 200 + 800 * Math.random()));
  }
}

await follow({ patientId, after: cursor }, ({ kind, encounter }) => console.log(`${kind} ${encounter.id}`));
