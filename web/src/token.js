// The bearer token of this page. Only this variable has it, so it is lost when the page is closed or reloaded.

import { base } from "./base.js";

let token = "";
const listeners = new Set();

export const currentToken = () => token;

export const bearer = (value) => ({ Authorization: `Bearer ${value}` });

/** Call the listener with the token now, and whenever it changes; "" is none. Return the function that removes it. */
export function whenTokenChanges(listener) {
  listeners.add(listener);
  listener(token);
  return () => listeners.delete(listener);
}

export function keepToken(value) {
  token = value;
  listeners.forEach((listener) => listener(token));
}

/** Keep a token if the gateway accepts it. Return null, or the reason of the refusal as text for the user. */
export async function tryToken(value) {
  if (!/^[\x21-\x7e]+$/.test(value)) return "A token is one word of letters, digits and signs.";
  let answer;
  try {
    answer = await fetch(`${base}/graphql`, {
      method: "POST",
      headers: { "Content-Type": "application/json", ...bearer(value) },
      body: JSON.stringify({ query: "{ __typename }" }),
      cache: "no-store",
    });
  } catch {
    return "The gateway cannot be reached.";
  }
  if (!answer.ok) {
    const body = await answer.json().catch(() => undefined);
    return body?.errors?.[0]?.message ?? `The gateway answered ${answer.status}.`;
  }
  keepToken(value);
  return null;
}
