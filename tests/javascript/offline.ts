// The queue of docs/clients/offline-queue.ts, with connections that fail: node offline.js ORIGIN PATIENT
import { newKey, OfflineQueue, send } from "./offline-queue.js";
import type { Recording, Store } from "./offline-queue.js";

declare const process: { argv: string[] };

const [, , origin = "", patientId = ""] = process.argv;
const entries = new Map<number, Parameters<Store["add"]>[0]>();
let number = 0;
const store: Store = {
  add: async (sealed) => entries.set((number += 1), sealed),
  all: async () => [...entries].map(([id, sealed]) => ({ id, sealed })),
  delete: async (id) => void entries.delete(id),
};

let network: "down" | "loses the answer" | "up" = "down";
const call = async (body: string) => {
  if (network === "down") throw new TypeError("fetch failed");
  const headers = { authorization: "Bearer dev", "content-type": "application/json" };
  const response = await fetch(`${origin}/graphql`, { method: "POST", headers, body });
  if (network === "loses the answer") throw new TypeError("terminated");
  return response;
};

const secret = await newKey();
const queue = new OfflineQueue(store, secret);
await queue.add(patientId, { brandId: "loop", encounterType: "LAB", notes: "Slept badly." });
await queue.add(patientId, { brandId: "loop", encounterType: "HOUSE_CALL" });
await queue.add(patientId, { brandId: "loop", encounterType: "TELEHEALTH" });
const stored = [...entries.values()].map(({ data }) => new TextDecoder("latin1").decode(data)).join();

const refused: Recording[] = [];
const waiting: number[] = [];
for (network of ["down", "loses the answer", "up"] as const) {
  await queue.flush((each) => send(each, call), (each) => refused.push(each));
  waiting.push(entries.size);
}
await queue.add(patientId, { brandId: "loop", encounterType: "OTHER" });
const old: Recording[] = [];
await new OfflineQueue(store, secret, -1).flush((each) => send(each, call), (each) => old.push(each));

console.log(
  JSON.stringify({
    waiting,
    refused: refused.map((each) => each.input.encounterType),
    old: old.map((each) => each.input.encounterType),
    readable: stored.includes("Slept") || stored.includes(patientId),
    extractable: secret.extractable,
  }),
);
