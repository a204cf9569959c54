// Queries that keep what they have read.

import { useCallback, useState } from "react";
import { type AnyVariables, type TypedDocumentNode, useQuery } from "urql";

/**
 * Read from the cache and then from the gateway. A failed read leaves the data of the same variables in place.
 *
 * @returns the data, the error of the last read, whether a read runs, and a function that reads again
 */
export function useRead<Data, Variables extends AnyVariables>(
  query: TypedDocumentNode<Data, Variables>,
  variables: Variables,
) {
  const [{ data, error, fetching }, execute] = useQuery({ query, variables, requestPolicy: "cache-and-network" });
  const [kept, setKept] = useState<{ data: Data; of: string }>();
  const of = JSON.stringify(variables);
  if (data && data !== kept?.data) setKept({ data, of });
  const again = useCallback(() => execute({ requestPolicy: "network-only" }), [execute]);
  return { data: data ?? (kept?.of === of ? kept.data : undefined), error, fetching, again };
}
