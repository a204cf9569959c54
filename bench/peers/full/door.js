// What both doors share: request ids, callers, rates, errors, headers, metrics and the log line of each request.
import { randomUUID } from "node:crypto";
import helmet from "@fastify/helmet";
import rateLimit from "@fastify/rate-limit";
import Fastify, { LogController } from "fastify";
import pino from "pino";
import { Counter, Histogram, register } from "prom-client";
import { noteRefusal } from "./audit.js";
import { authenticate, requireOneBrand, requireScope } from "./callers.js";
import { read } from "./json.js";
import { notFound, rateLimited, refusalOf } from "./refusals.js";

const { READS_PER_MINUTE, WRITES_PER_MINUTE } = process.env;
const REQUEST_ID = /^[A-Za-z0-9._~:-]{1,128}$/;

const requests = new Counter({
  name: "gateway_requests_total", help: "HTTP requests.", labelNames: ["door", "route", "method", "status"],
});
const seconds = new Histogram({
  name: "gateway_request_seconds", help: "Duration of HTTP requests in seconds.",
  labelNames: ["door", "route", "method"],
});
const refusals = new Counter({ name: "gateway_refusals_total", help: "Refusals, by code.", labelNames: ["code"] });
const recorded = new Counter({ name: "gateway_encounters_recorded_total", help: "Encounters recorded." });
const replayed = new Counter({ name: "gateway_encounters_replayed_total", help: "Encounters replayed." });
export const countRecording = (isReplay) => (isReplay ? replayed : recorded).inc();

// Counts a refusal. Audits it if the caller is authenticated and the server is not at fault.
export const noteRefused = (request, refusal) => {
  refusals.inc({ code: refusal.code });
  if (request.caller && refusal.status !== 401 && refusal.status < 500) noteRefusal(request, refusal);
};

const log = pino(
  {
    base: null, messageKey: "event", errorKey: "unexpected",
    timestamp: () => `,"timestamp":"${new Date().toISOString()}"`, formatters: { level: (level) => ({ level }) },
  },
  pino.destination({ dest: 2, sync: false, minLength: 4096, periodicFlush: 200 }),
);

// `phrase` writes the body of a refusal; `refusalFrom` returns the refusal of an error.
export const open = async (door, phrase, refusalFrom = refusalOf) => {
  const app = Fastify({
    loggerInstance: log, logController: new LogController({ disableRequestLogging: true }),
    childLoggerFactory: (logger) => logger, bodyLimit: 256 * 1024, exposeHeadRoutes: false,
    routerOptions: { maxParamLength: 2_000 },
    genReqId: ({ headers }) => {
      const sent = headers["x-request-id"];
      return sent && REQUEST_ID.test(sent) ? sent : randomUUID();
    },
  });
  app.decorateRequest("caller", null);
  app.decorateRequest("allowance", null);
  await app.register(rateLimit, { global: false });
  await app.register(helmet, {
    contentSecurityPolicy: {
      useDefaults: false, directives: { "default-src": ["'none'"], "frame-ancestors": ["'none'"] },
    },
    crossOriginResourcePolicy: { policy: "same-origin" },
    referrerPolicy: { policy: "no-referrer" },
    strictTransportSecurity: { maxAge: 31_536_000, includeSubDomains: false },
    xFrameOptions: { action: "deny" },
    crossOriginOpenerPolicy: false, originAgentCluster: false, xDnsPrefetchControl: false, xDownloadOptions: false,
    xPermittedCrossDomainPolicies: false, xPoweredBy: false, xXssProtection: false,
  });
  app.removeAllContentTypeParsers();
  app.addContentTypeParser("application/json", { parseAs: "string" }, async (_, body) => read(body));

  const limiter = (kind, limit) => {
    const max = Number(limit);
    return {
      kind,
      limit: app.createRateLimit({ max, timeWindow: "1 minute", keyGenerator: ({ caller }) => caller.clientId }),
    };
  };
  const limiters = { reads: limiter("reads", READS_PER_MINUTE), writes: limiter("writes", WRITES_PER_MINUTE) };
  app.decorate("count", async (request, kind) => {
    const found = await limiters[kind].limit(request);
    request.allowance = { kind, ...found };
    return found.isExceeded ? rateLimited(Math.max(found.ttl, 1)) : null;
  });

  app.addHook("onRequest", async (request, reply) => {
    reply.header("x-request-id", request.id);
    request.caller = await authenticate(request.headers.authorization);
  });
  app.addHook("onSend", async ({ allowance }, reply, payload) => {
    if (allowance) {
      const { kind, max, remaining, ttlInSeconds } = allowance;
      reply.headers({
        "x-ratelimit-remaining": remaining,
        "x-ratelimit-reset": Math.ceil(Date.now() / 1000) + ttlInSeconds,
        "ratelimit-policy": `"${kind}";q=${max};w=60`,
        ratelimit: `"${kind}";r=${remaining};t=${ttlInSeconds}`,
      });
    }
    reply.header("cache-control", "no-store");
    return payload;
  });
  app.addHook("onResponse", async ({ id, caller, method, routeOptions: { url } }, reply) => {
    const route = url ?? "unknown";
    requests.inc({ door, route, method, status: reply.statusCode });
    seconds.observe({ door, route, method }, reply.elapsedTime / 1000);
    log.info(
      {
        request_id: id, route: url, method, status: reply.statusCode,
        duration_ms: Math.round(reply.elapsedTime * 1000) / 1000, client_id: caller?.clientId ?? null,
        user_id: caller?.userId ?? null, brand_id: caller?.brandId ?? null,
      },
      "request",
    );
  });

  app.decorate("refuse", (request, reply, refusal) => {
    noteRefused(request, refusal);
    return reply.code(refusal.status).headers(refusal.headers).send(phrase(request, reply, refusal));
  });
  app.setErrorHandler(async (error, request, reply) =>
    app.refuse(request, reply, await refusalFrom(error, log, request)));
  app.setNotFoundHandler((request, reply) => app.refuse(request, reply, notFound()));

  app.get("/metrics", async (request, reply) => {
    requireScope(request.caller, "metrics");
    requireOneBrand(request.caller, request.headers["x-brand-id"]);
    return reply.type(register.contentType).send(await register.metrics());
  });
  return app;
};
