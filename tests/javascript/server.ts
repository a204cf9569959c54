// The client of docs/clients/server-client.ts: node server.js ORIGIN
import { GatewayError, gatewayFor } from "./server-client.js";

declare const process: { argv: string[] };

const [, , origin = ""] = process.argv;
const brand = (token: string, timeoutMs?: number) =>
  gatewayFor(origin, token, timeoutMs)<{ viewer: { brandId: string } }>("{ viewer { brandId } }").then(
    ({ viewer }) => viewer.brandId,
    (error: Error) => (error instanceof GatewayError ? error.code : error.name),
  );
const unknown = gatewayFor(origin, "dev")("{ unknown }").catch((error: GatewayError) => error.code);

console.log(
  JSON.stringify([...(await Promise.all([brand("dev"), brand("dev-loopbio"), brand("no"), brand("dev", 0)])), await unknown]),
);
