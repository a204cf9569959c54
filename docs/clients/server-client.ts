// A client for server rendering. Create one for each request: it has the token of its user, and no cache.

export class GatewayError extends Error {
  constructor(readonly code: string, message: string, readonly requestId?: string) {
    super(message);
  }
}

export function gatewayFor(url: string, token: string, timeoutMs = 5000) {
  return async function query<Data>(document: string, variables: Record<string, unknown> = {}): Promise<Data> {
    const response = await fetch(`${url}/graphql`, {
      method: "POST",
      // No header of the browser's request is forwarded.
      headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
      body: JSON.stringify({ query: document, variables }),
      cache: "no-store", // frameworks keep answers of `fetch`, for every user
      redirect: "error", // a redirect could send the token elsewhere
      signal: AbortSignal.timeout(timeoutMs),
    });
    const { data, errors, error, message } = await response.json();
    if (error) throw new GatewayError(error, message);
    if (errors) throw new GatewayError(errors[0].extensions.code, errors[0].message, errors[0].extensions.request_id);
    return data;
  };
}
