// The tabs a new explorer opens with: examples/*.graphql in the order of their names, variables beside them as .json.

const documents = import.meta.glob("./examples/*.graphql", { query: "?raw", import: "default", eager: true });
const variables = import.meta.glob("./examples/*.json", { query: "?raw", import: "default", eager: true });

// A key stands for one request, so each page begins with a new one. Not randomUUID: a page read over plain HTTP from
// another machine has none.
const key = Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export const examples = Object.entries(documents).map(([path, query]) => ({
  query,
  variables: variables[path.replace(/graphql$/, "json")]?.replace("A_FRESH_KEY", key) ?? "",
}));
