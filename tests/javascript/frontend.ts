// A frontend with generated types and the documented cache: node frontend.js URL PATIENT
import { ApolloClient, HttpLink, InMemoryCache } from "@apollo/client";
import { cacheOptions } from "./apollo-cache.js";
import {
  PatientEncountersDocument, RecordEncounterDocument, StartEncounterDocument, ViewerDocument,
} from "./gateway.js";
import type { RecordEncounterInput, RecordEncounterMutation } from "./gateway.js";

declare const process: { argv: string[] };

const [, , uri = "", patientId = ""] = process.argv;
const cache = new InMemoryCache(cacheOptions);
const client = new ApolloClient({ cache, link: new HttpLink({ uri, headers: { authorization: "Bearer dev" } }) });

const visit: RecordEncounterInput = { brandId: "loop", encounterType: "LAB", metadata: { room: 7 } };
// The types must refuse invalid values.
// @ts-expect-error there is no such type of encounter
const misspelt: RecordEncounterInput = { ...visit, encounterType: "HOUSE_CALL" };
// @ts-expect-error a time is text with an offset, not a Date
const dated: RecordEncounterInput = { ...visit, scheduledAt: new Date() };

// Every member of the union is handled: the compiler would report another one.
function outcome({ recordEncounter: result }: RecordEncounterMutation): string {
  switch (result.__typename) {
    case "EncounterRecorded":
      return result.encounter.status;
    case "InvalidInput":
      return result.violations.map((each) => each.rule).join();
    case "PatientNotFound":
    case "IdempotencyKeyReused":
    case "EncounterHeldBack":
    case "EncounterValid":
      return result.code;
  }
}

const record = async (input: RecordEncounterInput, key: string) => {
  const { data } = await client.mutate({
    mutation: RecordEncounterDocument,
    variables: { patientId, input, key: `${patientId}-${key}` },
  });
  return data ? outcome(data) : "no data";
};
const recorded = [
  await record(visit, "1"),
  await record({ ...visit, notes: "Slept badly." }, "1"),
  await record(visit, "2"),
  await record({ ...visit, status: "COMPLETED" }, "3"),
];

const variables = { patientId, first: 1 };
const { data: page } = await client.query({ query: PatientEncountersDocument, variables });
const watched = client.watchQuery({ query: PatientEncountersDocument, variables });
watched.subscribe(() => {});
await watched.fetchMore({ variables: { after: page?.patient?.encounters.pageInfo.endCursor } });
const read = () => cache.readQuery({ query: PatientEncountersDocument, variables })?.patient?.encounters.edges ?? [];
const [edge] = read();
if (!edge) throw new Error("no encounter was read");
const { data } = await client.mutate({
  mutation: StartEncounterDocument,
  variables: { id: edge.node.id, version: edge.node.version, key: `${patientId}-start` },
});
const { data: who } = await client.query({ query: ViewerDocument });

console.log(
  JSON.stringify({
    recorded,
    started: data?.startEncounter.__typename,
    statuses: read().map((each) => each.node.status),
    can: who?.viewer.can,
    keys: Object.keys(cache.extract()).filter((key) => !key.startsWith("ROOT") && key !== "__META").sort(),
    possibleTypes: cacheOptions.possibleTypes,
  }),
);
client.stop();
