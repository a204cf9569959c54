// The first tabs of the explorer: examples/*.graphql in the order of their names, with their variables in *.json.

import { development } from "./development.js";
import { freshKey } from "./random.js";
import { recorded } from "./recorded.js";

const documents = import.meta.glob("./examples/*.graphql", { query: "?raw", import: "default", eager: true });
const variables = import.meta.glob("./examples/*.json", { query: "?raw", import: "default", eager: true });

// Each page has a key of its own, so that a reload records another encounter.
const key = freshKey();

/** The caller that examples are written for until a token is chosen. */
export const defaultCaller = development[0] ?? { brand: "loop", patient: "demo-patient" };

const NO_ENCOUNTER = "RECORD ONE FIRST, OR PUT AN ID HERE";

const filledIn = (template, { brand, patient }, encounter = NO_ENCOUNTER) =>
  template
    .replace("A_FRESH_KEY", key)
    .replace("A_BRAND", brand)
    .replace("A_PATIENT", patient)
    .replace("AN_ENCOUNTER", encounter);

export const examples = Object.entries(documents).map(([path, query]) => ({
  query,
  variables: filledIn(variables[path.replace(/graphql$/, "json")] ?? "", defaultCaller),
}));

/** Return the template of unedited variables, for any caller and recorded encounter; undefined if they were edited. */
const templateOf = (text) =>
  Object.values(variables).find((template) =>
    [defaultCaller, ...development].some((caller) =>
      [undefined, ...recorded].some((encounter) => filledIn(template, caller, encounter) === text),
    ),
  );

/** Return a tab's variables for this caller and the encounter recorded last, or `text` unchanged if it was edited. */
export function variablesFor(caller, text) {
  const template = templateOf(text);
  return template ? filledIn(template, caller, recorded[0]) : text;
}

/** Return whether a tab has only the text of an example, comments, or nothing. */
export function isExample({ query, variables: text, headers }) {
  const isBlank = (value) => !value?.replace(/^\s*#.*$/gm, "").trim();
  return (
    (isBlank(query) || examples.some((each) => each.query === query)) &&
    (isBlank(text) || templateOf(text) !== undefined) &&
    isBlank(headers)
  );
}
