// Mercurius with its just-in-time compiler and its own loaders.
import Fastify from "fastify";
import mercurius from "mercurius";
import { GRAPHQL, encounterById, latest, latestOfEach, patientById, patientsByIds, record } from "./database.js";
import { listening } from "./listening.js";
import { JSONScalar, typeDefs } from "./schema.js";

const app = Fastify();
app.register(mercurius, {
  schema: typeDefs,
  jit: 1,
  graphiql: false,
  resolvers: {
    JSON: JSONScalar,
    Query: {
      encounter: (_, { id }) => encounterById(id),
      patient: (_, { id }) => patientById(id),
      patients: (_, { ids }) => patientsByIds(ids),
    },
    Encounter: { patient: ({ patientId }) => patientById(patientId) },
    Mutation: { recordEncounter: (_, { patientId, input }) => record(GRAPHQL, patientId, input) },
  },
  loaders: {
    Patient: {
      // One patient's list needs no lateral join.
      encounters: {
        loader: async (queries) => {
          const { first } = queries[0].params;
          if (queries.length === 1) return [{ nodes: await latest(GRAPHQL, queries[0].obj.id, first) }];
          const lists = await latestOfEach(queries.map(({ obj }) => obj.id), first);
          return lists.map((nodes) => ({ nodes }));
        },
        opts: { cache: false },
      },
    },
  },
});
listening(await app.listen({ host: "127.0.0.1", port: 0 }));
