// The GraphQL client: a normalised cache in memory, retries of mutations, and persisted documents.

import { Client, type CombinedError, fetchExchange, type Operation } from "@urql/core";
import { type Cache, cacheExchange, type OptimisticMutationResolver } from "@urql/exchange-graphcache";
import { persistedExchange } from "@urql/exchange-persisted";
import { retryExchange } from "@urql/exchange-retry";
import { base } from "../base.js";
import hashes from "./hashes.json";
import type { EncounterStatus } from "./operations";

/** Error codes after which the same request may succeed. The idempotency key makes a repetition safe. */
const RETRIED = new Set(["temporarily_unavailable", "rate_limited", "request_timeout", "server_error"]);

export const codeOf = (error: CombinedError | undefined) => error?.graphQLErrors[0]?.extensions["code"];

/** Whether the request was not answered, or the answer asks to retry. */
export const isTemporary = (error: CombinedError) => Boolean(error.networkError) || RETRIED.has(String(codeOf(error)));

const readable = (error: CombinedError | undefined) => error?.graphQLErrors[0]?.message;

/** Return the reason of a failed read, for the person. */
export const reasonOf = (error: CombinedError) => readable(error) ?? "The gateway cannot be reached.";

const MEMBERS = ["version", "scheduledAt", "startedAt", "endedAt", "patientId", "providerId", "encounterType"] as const;
const MORE_MEMBERS = ["createdAt", "chiefComplaint", "status"] as const;

/** Return the encounter of the cache with some members replaced. No action is offered until the gateway answers. */
function expected(cache: Cache, id: string, replaced: object) {
  const entity = { __typename: "Encounter", id };
  const known = [...MEMBERS, ...MORE_MEMBERS].map((member) => [member, cache.resolve(entity, member) ?? null]);
  return {
    __typename: "EncounterChanged",
    replayed: false,
    encounter: { ...entity, ...Object.fromEntries(known), allowedActions: [], ...replaced },
  };
}

const toStatus =
  (status: EncounterStatus, replaced: () => object = () => ({})): OptimisticMutationResolver =>
  ({ id }, cache) =>
    expected(cache, String(id), { status, ...replaced() });

const now = () => new Date().toISOString();

/** Without a member `id`: parts of the object above them. */
const embedded = Object.fromEntries(
  [
    "EncounterChange", "EncounterChanged", "EncounterConnection", "EncounterCount", "EncounterEvent", "EncounterNotFound",
    "EncounterRecorded", "EncounterVersion", "IdempotencyKeyReused", "IllegalTransition", "InvalidInput", "PageInfo",
    "PatientNotFound", "StaleVersion", "Viewer", "Violation",
  ].map((name) => [name, () => null]),
);

const sendsHashes = document.querySelector<HTMLMetaElement>('meta[name="documents"]')?.content === "hash";

/** A client for one sign-in. After `end()` it retries no mutation. */
export function clientFor(token: string): { client: Client; end: () => void } {
  let ended = false;
  const client = new Client({
    url: `${base}/graphql`,
    preferGetMethod: false,
    fetchSubscriptions: true,
    fetchOptions: { headers: { Authorization: `Bearer ${token}` }, cache: "no-store" },
    exchanges: [
      cacheExchange({
        keys: { ...embedded, Patient: ({ brandId, id }) => JSON.stringify([brandId, id]) },
        possibleTypes: {
          ChangeEncounterResult: [
            "EncounterChanged", "EncounterNotFound", "IdempotencyKeyReused", "IllegalTransition", "InvalidInput", "StaleVersion",
          ],
          Problem: [
            "EncounterHeldBack", "EncounterNotFound", "EncounterValid", "IdempotencyKeyReused", "IllegalTransition",
            "InvalidInput", "PatientNotFound", "StaleVersion",
          ],
        },
        optimistic: {
          startEncounter: toStatus("IN_PROGRESS", () => ({ startedAt: now() })),
          undoStartEncounter: toStatus("SCHEDULED", () => ({ startedAt: null })),
          completeEncounter: toStatus("COMPLETED", () => ({ endedAt: now() })),
          cancelEncounter: toStatus("CANCELLED"),
          markEncounterNoShow: toStatus("NO_SHOW"),
          markEncounterEnteredInError: toStatus("ENTERED_IN_ERROR"),
          rescheduleEncounter: ({ id, scheduledAt }, cache) => expected(cache, String(id), { scheduledAt }),
        },
      }),
      // A mutation stays in flight, and its expected result in the cache, until the gateway answers.
      retryExchange({
        initialDelayMs: 1_000,
        maxDelayMs: 10_000,
        maxNumberAttempts: Number.POSITIVE_INFINITY,
        retryIf: (error: CombinedError, operation: Operation) =>
          !ended && operation.kind === "mutation" && isTemporary(error),
      }),
      persistedExchange({
        enableForMutation: true,
        enableForSubscriptions: true,
        // A URL would contain the variables.
        preferGetForPersistedQueries: false,
        generateHash: async (_text, query) => {
          if (!sendsHashes) return "";
          const [definition] = query.definitions;
          const name = definition && "name" in definition ? definition.name?.value : undefined;
          return hashes[name as keyof typeof hashes];
        },
      }),
      fetchExchange,
    ],
  });
  return { client, end: () => (ended = true) };
}
