// The ids of the encounters that were recorded on this page, the last one first.

export const recorded = [];

const listeners = new Set();

/** Add the encounters that an answer reports as recorded. Return the answer. */
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

/** Call the listener with the id of each encounter that is recorded from now on. Return the function that removes it. */
export function whenRecorded(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}
