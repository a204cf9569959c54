import { base } from "./base.js";
import { bearer } from "./token.js";

/** Return the schema in GraphQL's schema definition language, by introspection. Throws Error with a message for the user. */
export async function loadSdl(token) {
  // Loaded when it is needed: the start page works without it.
  const { buildClientSchema, getIntrospectionQuery, printSchema } = await import("graphql");
  const query = getIntrospectionQuery({ specifiedByUrl: true, inputValueDeprecation: true });
  const answer = await fetch(`${base}/graphql`, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...bearer(token) },
    body: JSON.stringify({ query }),
    cache: "no-store",
  });
  const { data, errors } = await answer.json();
  if (!data) throw new Error(errors?.[0]?.message ?? `The gateway answered ${answer.status}.`);
  return printSchema(buildClientSchema(data));
}
