// Apollo Server with DataLoader.
import { ApolloServer } from "@apollo/server";
import { startStandaloneServer } from "@apollo/server/standalone";
import DataLoader from "dataloader";
import { GRAPHQL, encounterById, latest, latestOfEach, patientById, patientsByIds, record } from "./database.js";
import { listening } from "./listening.js";
import { JSONScalar, typeDefs } from "./schema.js";

const loaders = () => {
  const ofSize = new Map();
  const load = (first) => async (ids) =>
    ids.length === 1 ? [await latest(GRAPHQL, ids[0], first)] : latestOfEach(ids, first);
  return (first) => {
    if (!ofSize.has(first)) ofSize.set(first, new DataLoader(load(first)));
    return ofSize.get(first);
  };
};

const server = new ApolloServer({
  typeDefs,
  resolvers: {
    JSON: JSONScalar,
    Query: {
      encounter: (_, { id }) => encounterById(id),
      patient: (_, { id }) => patientById(id),
      patients: (_, { ids }) => patientsByIds(ids),
    },
    Encounter: { patient: ({ patientId }) => patientById(patientId) },
    Mutation: { recordEncounter: (_, { patientId, input }) => record(GRAPHQL, patientId, input) },
    Patient: {
      encounters: async ({ id }, { first }, { latestOf }) => ({ nodes: await latestOf(first).load(id) }),
    },
  },
  introspection: false,
  csrfPrevention: true,
});
const { url } = await startStandaloneServer(server, {
  listen: { host: "127.0.0.1", port: 0 },
  context: async () => ({ latestOf: loaders() }),
});
listening(url);
