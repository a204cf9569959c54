// JSON bodies by the contract's rules: no member twice, and every digit of every number.
import { Refusal } from "./refusals.js";
import { broken } from "./rules.js";

// A number of 16 digits, with an exponent or with a last digit 0 changes when it becomes a double. A member's value
// follows `":`, an item `[` or `,`. A match inside a string only costs time.
const INEXACT = /(?:":|[,[])\s*-?(?:\d[\d.]{15}|\d*\.\d*0(?!\d)|[\d.]+[eE]|0(?=\s*[,}\]])(?<=-0))/;
const STRING_OR_NAME = /"[^"\\]*(?:\\.[^"\\]*)*"(\s*:)?/g;

// The range of `jsonb`: digits before and after the decimal point.
const isInRange = (source) => {
  const [, whole, fraction = "", exponent = "0"] = /^-?(\d+)(?:\.(\d+))?(?:[eE](.+))?$/.exec(source);
  return whole.length + Number(exponent) <= 131_072 && fraction.length - Number(exponent) <= 16_383;
};

const asSent = (_, value, { source }) => {
  if (typeof value !== "number" || String(value) === source) return value;
  if (isInRange(source)) return JSON.rawJSON(source);
  throw broken([{ pointer: "", rule: "number_range", message: "A number has too many digits to be stored." }]);
};

// An inexact number stays its text, which `JSON.stringify` repeats.
export const exactly = (text) => (INEXACT.test(text) ? JSON.parse(text, asSent) : JSON.parse(text));

const members = (value) => {
  if (typeof value !== "object" || value === null || JSON.isRawJSON(value)) return 0;
  let count = Array.isArray(value) ? 0 : Object.keys(value).length;
  for (const each of Object.values(value)) count += members(each);
  return count;
};

export const read = (text) => {
  let value;
  let distinct;
  try {
    value = exactly(text);
    distinct = members(value);
  } catch (error) {
    if (error instanceof Refusal) throw error;
    throw error instanceof RangeError
      ? broken([{ pointer: "", rule: "too_deep", message: "The body is nested too deeply." }])
      : broken([{ pointer: "", rule: "json", message: "The body must be one JSON value." }]);
  }
  let names = 0;
  for (const [, colon] of text.matchAll(STRING_OR_NAME)) if (colon) names++;
  if (names !== distinct) {
    const message = "An object must not have two members of the same name.";
    throw broken([{ pointer: "", rule: "duplicate_member", message }]);
  }
  return value;
};

// Equal values have equal text: members are sorted.
export const canonical = (value) => JSON.stringify(sorted(value));

const sorted = (value) => {
  if (typeof value !== "object" || value === null || JSON.isRawJSON(value)) return value;
  if (Array.isArray(value)) return value.map(sorted);
  return Object.fromEntries(Object.keys(value).sort().map((name) => [name, sorted(value[name])]));
};
