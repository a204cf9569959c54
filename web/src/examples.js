// The tabs a new explorer opens with: examples/*.graphql in the order of their names, variables beside them as .json.

import { development } from "./development.js";
import { recorded } from "./recorded.js";

const documents = import.meta.glob("./examples/*.graphql", { query: "?raw", import: "default", eager: true });
const variables = import.meta.glob("./examples/*.json", { query: "?raw", import: "default", eager: true });

// A key stands for one request, so each page begins with a new one. Not randomUUID: a page read over plain HTTP from
// another machine has none.
const key = Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export const anybody = development[0] ?? { brand: "loop", patient: "demo-patient" };

const NO_ENCOUNTER = "RECORD ONE FIRST, OR PUT AN ID HERE";

const filledIn = (template, { brand, patient }, encounter = NO_ENCOUNTER) =>
  template
    .replace("A_FRESH_KEY", key)
    .replace("A_BRAND", brand)
    .replace("A_PATIENT", patient)
    .replace("AN_ENCOUNTER", encounter);

export const examples = Object.entries(documents).map(([path, query]) => ({
  query,
  variables: filledIn(variables[path.replace(/graphql$/, "json")] ?? "", anybody),
}));

/**
 * Give a tab's variables as they are for this one, with the encounter recorded last; what a person has written is given
 * back as it is.
 */
export function variablesFor(who, text) {
  const untouched = Object.values(variables).find((template) =>
    [who, anybody, ...development].some((each) =>
      [undefined, ...recorded].some((encounter) => filledIn(template, each, encounter) === text),
    ),
  );
  return untouched ? filledIn(untouched, who, recorded[0]) : text;
}
