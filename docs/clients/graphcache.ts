// The cache of urql for the gateway's schema: cacheExchange(cacheOptions)
import type { CacheExchangeOpts } from "@urql/exchange-graphcache";

// Types without an id: each object is part of the one above it.
const EMBEDDED = [
  "EncounterChange", "EncounterChanged", "EncounterConnection", "EncounterCount", "EncounterEdge", "EncounterEvent",
  "EncounterHeldBack", "EncounterNotFound", "EncounterRecorded", "EncounterValid", "EncounterVersion",
  "IdempotencyKeyReused", "IllegalTransition", "InvalidInput", "PageInfo", "PatientChanged", "PatientConnection",
  "PatientEdge", "PatientNotFound", "PatientRegistered", "RecordEncountersResult", "Shape", "StaleVersion", "Viewer",
  "Violation",
];

export const cacheOptions: Partial<CacheExchangeOpts> = {
  keys: {
    // A patient's id is unique within its brand only.
    Patient: (each) => JSON.stringify([each.brandId, each.id]),
    Submission: (each) => each.key as string,
    ...Object.fromEntries(EMBEDDED.map((type) => [type, () => null])),
  },
  updates: {
    Mutation: {
      // A new encounter is in no cached list: read these lists again.
      recordEncounter: (result, _variables, cache) => {
        if ((result.recordEncounter as { __typename: string }).__typename !== "EncounterRecorded") return;
        for (const { fieldName, fieldKey } of cache.inspectFields("Query"))
          if (["encounters", "encounterCounts"].includes(fieldName)) cache.invalidate("Query", fieldKey);
      },
    },
  },
};
