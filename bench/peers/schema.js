// The schema of the two that are given one: the gateway's, without what only the gateway keeps.
import { GraphQLScalarType } from "graphql";

export const typeDefs = `
  scalar JSON
  enum EncounterType { office_visit telehealth lab pharmacy other }
  enum EncounterStatus { scheduled in_progress completed cancelled no_show entered_in_error }
  type Encounter {
    id: ID! patientId: ID! providerId: ID brandId: String! encounterType: EncounterType! status: EncounterStatus!
    scheduledAt: String startedAt: String endedAt: String chiefComplaint: String notes: String metadata: JSON!
    createdAt: String! updatedAt: String! patient: Patient!
  }
  type EncounterConnection { nodes: [Encounter!]! }
  type Patient { id: ID! brandId: String! encounters(first: Int!): EncounterConnection! }
  input RecordEncounterInput {
    brandId: String! encounterType: EncounterType! providerId: ID scheduledAt: String chiefComplaint: String
    notes: String metadata: JSON
  }
  type Query { encounter(id: ID!): Encounter patient(id: ID!): Patient patients(ids: [ID!]!): [Patient]! }
  type Mutation { recordEncounter(patientId: ID!, input: RecordEncounterInput!): Encounter! }
`;

const same = (value) => value;
export const JSONScalar = new GraphQLScalarType({ name: "JSON", serialize: same, parseValue: same });
