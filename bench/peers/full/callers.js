// Authentication and authorization: cached token introspection (RFC 7662), scopes and brands.
import { hash } from "node:crypto";
import { LRUCache } from "lru-cache";
import { forbidden, insufficientScope, invalidToken, unauthenticated, unavailable } from "./refusals.js";

const CACHED_MS = 60_000;
const REJECTED_MS = 5_000;

export const SCOPES = {
  record: ["write:encounters"],
  read: ["read:encounters"],
  patients: ["read:patients", "read:encounters", "write:encounters"],
  metrics: ["read:metrics"],
};
const satisfies = (granted) => (scope) =>
  granted.has(scope) || granted.has(scope.replace(/^(read|write):/, "manage:"))
  || granted.has("admin:patient_graph") || granted.has("admin:*");

const callerOf = (claims) => {
  const granted = new Set(claims.scope?.split(" "));
  const userId = claims.sub === claims.client_id ? null : claims.sub;
  return {
    clientId: claims.client_id, userId, brandId: claims.brand ?? claims.brand_id ?? null,
    actorType: userId ? "user" : "service", actorId: userId ?? claims.client_id, expiresAt: claims.exp * 1000,
    allowed: new Set(Object.keys(SCOPES).filter((name) => SCOPES[name].some(satisfies(granted)))),
  };
};

const { INTROSPECTION_URL, INTROSPECTION_CLIENT_ID, INTROSPECTION_CLIENT_SECRET } = process.env;
const basic = Buffer.from(`${INTROSPECTION_CLIENT_ID}:${INTROSPECTION_CLIENT_SECRET}`).toString("base64");

const introspect = async (token) => {
  const response = await fetch(INTROSPECTION_URL, {
    method: "POST",
    headers: { authorization: `Basic ${basic}` },
    body: new URLSearchParams({ token, token_type_hint: "access_token" }),
    signal: AbortSignal.timeout(5_000),
  }).catch(() => null);
  if (!response?.ok) throw unavailable();
  const claims = await response.json();
  return claims.active && claims.client_id && claims.exp * 1000 > Date.now() ? callerOf(claims) : null;
};

// `fetchMethod` runs once for concurrent requests with the same token. The key is a hash: no token stays in memory.
const cache = new LRUCache({
  max: 10_000,
  fetchMethod: async (_, __, { options, context: token }) => {
    const caller = await introspect(token);
    options.ttl = caller ? Math.min(caller.expiresAt - Date.now(), CACHED_MS) : REJECTED_MS;
    return caller ?? "rejected";
  },
});

export const authenticate = async (authorization) => {
  const [, token] = /^bearer +(\S+) *$/i.exec(authorization ?? "") ?? [];
  if (!token) throw unauthenticated();
  const digest = hash("sha256", token, "base64");
  const caller = cache.get(digest) ?? (await cache.fetch(digest, { context: token }));
  if (caller === "rejected") throw invalidToken();
  return caller;
};

export const requireScope = (caller, operation) => {
  if (!caller.allowed.has(operation)) throw insufficientScope(SCOPES[operation]);
};

// The token's brand, else the header's, else the command's: they must not contradict each other.
export const requireOneBrand = ({ userId, brandId }, stated) => {
  if (userId && !brandId) throw forbidden("A person's token must name a brand.");
  if (brandId && stated !== undefined && stated !== brandId) throw forbidden();
};

export const actingBrand = (caller, stated, named) => {
  const brandId = caller.brandId ?? stated ?? (named || undefined);
  if (!brandId) throw forbidden("The token names no brand; send one in X-Brand-Id.");
  if (typeof named === "string" && named && named !== brandId) throw forbidden();
  return brandId;
};
