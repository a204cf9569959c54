// The encounters that were recorded on this page, the last one first: what can be started, completed, amended here.

export const recorded = [];

const listeners = new Set();

/** Note what an answer says was recorded, and give it back. */
export function noteRecorded(answer) {
  for (const outcome of Object.values(answer?.data ?? {})) {
    const id = outcome?.__typename === "EncounterRecorded" && outcome.encounter?.id;
    if (id && id !== recorded[0]) {
      recorded.unshift(id);
      listeners.forEach((listener) => listener(id));
    }
  }
  return answer;
}

/** Call the listener with each encounter that is recorded from now on. Gives what ends it. */
export function whenRecorded(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}
