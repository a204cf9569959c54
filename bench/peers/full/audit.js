// The audit of reads and refusals: queued in memory, written in batches beside the requests.
import { setTimeout as sleep } from "node:timers/promises";
import { v7 } from "uuid";
import { insertAudit } from "./database.js";

const CAPACITY = 10_000;
const BATCH = 500;
const GATHER_MS = 200;
const RETRY_MS = 1_000;
const COUNT_MS = 60_000;

let queue = [];
let writing = false;
let dropped = 0;

const add = (brandId, entry) => {
  if (queue.length >= CAPACITY) dropped++;
  else queue.push({ brandId, entry });
  if (!writing) {
    writing = true;
    write();
  }
};

const write = async () => {
  while (queue.length) {
    if (queue.length < BATCH) await sleep(GATHER_MS);
    const batch = queue.slice(0, BATCH);
    try {
      for (const [brandId, ofBrand] of Map.groupBy(batch, (each) => each.brandId)) {
        const now = performance.now();
        for (const { entry } of ofBrand) entry.age_seconds = (now - entry.left_at) / 1000;
        await insertAudit(brandId, ofBrand.map(({ entry }) => entry));
      }
    } catch {
      // Stays queued. What a first brand wrote is not written twice: an entry has an id.
      await sleep(RETRY_MS);
      continue;
    }
    queue = queue.slice(batch.length);
    if (dropped) {
      console.error(JSON.stringify({ event: "trail", dropped }));
      dropped = 0;
    }
  }
  writing = false;
};

const entry = ({ caller, id: requestId }, members) => ({
  id: v7(), left_at: performance.now(), actor_type: caller.actorType, actor_id: caller.actorId,
  actor_brand_id: caller.brandId, request_id: requestId, entity_id: null, patient_id: "", ...members,
});

const READ = "patient_graph.encounters.read";

export const noteRead = (request, brandId, patientId, encounters) => {
  if (encounters) {
    const members = { event_type: READ, entity_type: "patient", entity_id: patientId, patient_id: patientId };
    add(brandId, entry(request, { ...members, details: { encounters } }));
  }
};

// One entry for several patients, which it names.
const noteSeveral = (request, brandId, patients, encounters) =>
  add(brandId, entry(request, { event_type: READ, entity_type: "worklist", details: { encounters, patients } }));

// `given` are pairs of a patient and its number of encounters.
export const noteReads = (request, brandId, given) => {
  const shown = given.filter(([, encounters]) => encounters);
  if (shown.length < 2) {
    for (const each of shown) noteRead(request, brandId, ...each);
    return;
  }
  const encounters = shown.reduce((sum, [, number]) => sum + number, 0);
  noteSeveral(request, brandId, shown.map(([patientId]) => patientId), encounters);
};

export const noteWorklist = (request, brandId, rows) => {
  if (rows.length) noteSeveral(request, brandId, [...new Set(rows.map((row) => row.patientId))], rows.length);
};

const counted = new Map();

export const noteRefusal = (request, { code, members }) => {
  const { caller } = request;
  const details = { code };
  if (members.violations) details.rules = [...new Set(members.violations.map(({ rule }) => rule))].sort();
  if (members.scopes) details.scopes = members.scopes;
  const refused = { event_type: "patient_graph.request.refused", entity_type: "request", details };
  if (code !== "rate_limited") {
    add(caller.brandId ?? "", entry(request, refused));
    return;
  }
  // The refusals of a client within a minute are one entry with their number.
  const first = counted.get(caller.clientId);
  if (first) {
    first.details.count++;
    return;
  }
  const of = { entity_type: "client", entity_id: caller.clientId, actor_type: "service", actor_id: caller.clientId };
  const begun = entry(request, { ...refused, ...of, details: { code, count: 1 } });
  counted.set(caller.clientId, begun);
  setTimeout(() => {
    counted.delete(caller.clientId);
    add(caller.brandId ?? "", begun);
  }, COUNT_MS).unref();
};
