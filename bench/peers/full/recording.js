// Recording an encounter, for both doors: `members` are REST's, and keep the contract's rules already.
import { hash } from "node:crypto";
import { v7 } from "uuid";
import { noteRead } from "./audit.js";
import { keyed, record } from "./database.js";
import { countRecording } from "./door.js";
import { canonical } from "./json.js";
import { keyReused, patientNotFound, unavailable } from "./refusals.js";
import { canBePatient, instant } from "./rules.js";

export const recordEncounter = async (request, brandId, patientId, members, key) => {
  if (!canBePatient(patientId)) throw patientNotFound();
  const { caller } = request;
  const id = v7();
  const { encounter_type, chief_complaint = null, notes = null } = members;
  const metadata = canonical(members.metadata ?? {});
  const provider_id = members.provider_id?.toLowerCase() ?? null;
  const scheduled_at = members.scheduled_at === undefined ? null : instant(members.scheduled_at);
  const sent = JSON.stringify({ provider_id, brand_id: brandId, encounter_type, scheduled_at, chief_complaint, notes });
  // The hash is of the meaning: instants in UTC, UUIDs in lower case, members sorted.
  const requestHash = key && hash("sha256", `${patientId}\n${sent}${metadata}`, "buffer");
  const given = JSON.stringify({ id, patient_id: patientId, status: "scheduled", started_at: null, ended_at: null });
  const answer = `${given.slice(0, -1)},${sent.slice(1, -1)},"metadata":${metadata}`;
  const found = await record(brandId, [
    id, patientId, brandId, encounter_type, provider_id, scheduled_at, chief_complaint, notes, metadata, answer,
    caller.clientId, key, requestHash, caller.actorType, caller.actorId, request.id, caller.brandId,
    v7(), v7(),
  ]);
  if (!found) throw patientNotFound();
  if (found.recorded) {
    countRecording(false);
    return { id, answer: found.answer, createdAt: found.at, isReplay: false };
  }
  const earlier = await keyed(brandId, caller.clientId, key);
  // The key existed a moment ago and has just expired.
  if (!earlier) throw unavailable();
  if (!earlier.request_hash.equals(requestHash)) throw keyReused();
  countRecording(true);
  noteRead(request, brandId, earlier.patient_id, 1);
  return { id: earlier.encounter_id, answer: earlier.answer, isReplay: true };
};
