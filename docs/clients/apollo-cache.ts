// The cache of Apollo Client for the gateway's schema: new InMemoryCache(cacheOptions)
import type { InMemoryCacheConfig } from "@apollo/client";
import { relayStylePagination } from "@apollo/client/utilities";

export const cacheOptions: InMemoryCacheConfig = {
  // The types of the interface: without them, `... on Problem` matches nothing in the cache.
  possibleTypes: {
    Problem: [
      "EncounterHeldBack",
      "EncounterNotFound",
      "EncounterValid",
      "IdempotencyKeyReused",
      "IllegalTransition",
      "InvalidInput",
      "PatientNotFound",
      "StaleVersion",
    ],
  },
  typePolicies: {
    Query: { fields: { encounters: relayStylePagination(["where", "orderBy"]) } },
    // A patient's id is unique within its brand only.
    Patient: {
      keyFields: ["brandId", "id"],
      fields: { encounters: relayStylePagination(["where", "orderBy"]) },
    },
    Submission: { keyFields: ["key"] },
    // One for each client.
    Viewer: { keyFields: [] },
  },
};
