// The bearer token of this page. It lives in this variable and nowhere else: it is gone when the page is.

let token = "";
const listeners = new Set();

export const currentToken = () => token;

export const bearer = (value) => ({ Authorization: `Bearer ${value}` });

/** Call the listener with the token now, and whenever it changes; "" is none. Gives what ends it. */
export function whenTokenChanges(listener) {
  listeners.add(listener);
  listener(token);
  return () => listeners.delete(listener);
}

export function keepToken(value) {
  token = value;
  listeners.forEach((listener) => listener(token));
}

/** Keep a token if the gateway takes it. Gives null, or the reason why not, for a person. */
export async function tryToken(value) {
  if (!/^[\x21-\x7e]+$/.test(value)) return "A token is one word of letters, digits and signs.";
  let answer;
  try {
    answer = await fetch("/graphql", {
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
