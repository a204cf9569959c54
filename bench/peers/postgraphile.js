// PostGraphile, whose schema is the tables' own; `bench.patients_by_ids` is how its users ask for several.
import { createServer } from "node:http";
import { grafserv } from "postgraphile/grafserv/node";
import { makePgService } from "postgraphile/adaptors/pg";
import { postgraphile } from "postgraphile";
import { PostGraphileAmberPreset } from "postgraphile/presets/amber";
import { listening } from "./listening.js";

const pgl = postgraphile({
  extends: [PostGraphileAmberPreset],
  // A list by patient is served by an index that PostGraphile does not know for one, so it would not offer it.
  disablePlugins: ["PgIndexBehaviorsPlugin"],
  pgServices: [
    makePgService({
      connectionString: process.env.DATABASE_URL,
      schemas: ["patient_graph", "bench"],
      poolConfig: { max: 10, idleTimeoutMillis: 0 },
    }),
  ],
  grafserv: { graphiql: false, watch: false },
  grafast: { explain: false },
});
const server = createServer();
const serv = pgl.createServ(grafserv);
await serv.addTo(server);
server.listen(0, "127.0.0.1", () => listening(`http://127.0.0.1:${server.address().port}`));
