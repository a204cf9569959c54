// The refusals of the contract: code, status, and whether anything may have been recorded.
export class Refusal extends Error {
  constructor(status, code, message, members = {}, headers = {}) {
    super(message);
    Object.assign(this, { status, code, members, headers, recorded: "no" });
  }
}

export const unauthenticated = () =>
  new Refusal(401, "unauthenticated", "A bearer token is required.", {}, { "www-authenticate": "Bearer" });

export const invalidToken = () => {
  const message = "The bearer token is invalid, expired or revoked.";
  const challenge = `Bearer error="invalid_token", error_description="${message}"`;
  return new Refusal(401, "invalid_token", message, {}, { "www-authenticate": challenge });
};

export const insufficientScope = (scopes) =>
  new Refusal(
    403, "insufficient_scope", "The token has no scope that allows this operation.", { scopes },
    { "www-authenticate": `Bearer error="insufficient_scope", scope="${scopes.join(" ")}"` },
  );

export const forbidden = (message = "The caller may not act for this brand.") => new Refusal(403, "forbidden", message);

export const rateLimited = (milliseconds) =>
  new Refusal(
    429, "rate_limited", "Too many requests; try again later.", { retry_after_ms: milliseconds },
    { "retry-after": Math.ceil(milliseconds / 1000) },
  );

export const notFound = (message = "There is no resource at this path.") => new Refusal(404, "not_found", message);
export const patientNotFound = () => notFound("The patient was not found.");

export const keyReused = () =>
  new Refusal(
    409, "idempotency_key_payload_mismatch", "The idempotency key was used for another request; send a new key.",
  );

export const unavailable = (recorded = "no") => {
  const message = "The gateway is temporarily unavailable; retry shortly.";
  return Object.assign(new Refusal(503, "temporarily_unavailable", message, {}, { "retry-after": 1 }), { recorded });
};

const serverError = () => {
  const message = "Internal error; the request id identifies it in the gateway's log.";
  return Object.assign(new Refusal(500, "server_error", message), { recorded: "unknown" });
};

// Fastify's own errors.
const OF_FASTIFY = {
  FST_ERR_CTP_INVALID_MEDIA_TYPE: [
    415, "unsupported_media_type", "The body must be application/json in UTF-8, and not compressed.", {},
    { accept: "application/json", "accept-encoding": "identity" },
  ],
  FST_ERR_CTP_BODY_TOO_LARGE: [413, "payload_too_large", "The body exceeds the maximum size."],
};

export const refusalOf = (error, log) => {
  if (error instanceof Refusal) return error;
  if (error.originalError instanceof Refusal) return error.originalError;
  if (OF_FASTIFY[error.code]) return new Refusal(...OF_FASTIFY[error.code]);
  // The type only: a driver's message may repeat a value.
  log.error({ event: "unexpected", error: error.name, code: error.code });
  return serverError();
};
