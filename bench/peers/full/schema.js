// The part of the contract's schema that the benchmark asks for.
export const typeDefs = `
  scalar JSON
  scalar DateTime
  scalar UUID
  enum EncounterType { OFFICE_VISIT TELEHEALTH LAB PHARMACY OTHER }
  enum EncounterStatus { SCHEDULED IN_PROGRESS COMPLETED CANCELLED NO_SHOW ENTERED_IN_ERROR }
  enum EncounterAction { START COMPLETE CANCEL MARK_NO_SHOW MARK_ENTERED_IN_ERROR RESCHEDULE AMEND UNDO_START }
  enum EncounterOrder { CREATED_AT_DESC SCHEDULED_AT_ASC PROVIDER_THEN_SCHEDULED_AT_ASC }
  enum EncounterDimension { STATUS ENCOUNTER_TYPE PROVIDER_ID }
  enum Recorded { NO UNKNOWN }
  enum JsonType { STRING NUMBER BOOLEAN NULL ARRAY OBJECT }
  type Encounter {
    id: ID! patientId: ID! providerId: UUID brandId: String! encounterType: EncounterType! status: EncounterStatus!
    scheduledAt: DateTime startedAt: DateTime endedAt: DateTime chiefComplaint: String notes: String metadata: JSON!
    createdAt: DateTime! updatedAt: DateTime! version: Int! allowedActions: [EncounterAction!]! patient: Patient!
  }
  type PageInfo { hasNextPage: Boolean! endCursor: String }
  type EncounterConnection { nodes: [Encounter!]! }
  type Worklist {
    nodes: [Encounter!]! pageInfo: PageInfo! totalCount: Int! totalCountIsExact: Boolean! feedCursor: String!
  }
  type Patient { id: ID! brandId: String! encounters(first: Int): EncounterConnection! }
  type EncounterCount { key: String count: Int! }
  input EncountersFilter {
    encounterType: [EncounterType!] status: [EncounterStatus!] providerId: [UUID!]
    scheduledFrom: DateTime scheduledUntil: DateTime
  }
  input RecordEncounterInput {
    brandId: String! encounterType: EncounterType! providerId: UUID scheduledAt: DateTime chiefComplaint: String
    notes: String metadata: JSON
  }
  interface Problem { code: String! message: String! recorded: Recorded! }
  type PatientNotFound implements Problem { code: String! message: String! recorded: Recorded! }
  type IdempotencyKeyReused implements Problem { code: String! message: String! recorded: Recorded! }
  type Shape { type: JsonType! length: Int }
  type Violation {
    path: [String!]! rule: String! message: String! allowed: [String!] minimum: Int maximum: Int received: Shape
  }
  type InvalidInput implements Problem { code: String! message: String! recorded: Recorded! violations: [Violation!]! }
  type EncounterRecorded { encounter: Encounter! replayed: Boolean! }
  union RecordEncounterResult = EncounterRecorded | PatientNotFound | InvalidInput | IdempotencyKeyReused
  type Query {
    encounter(id: ID!): Encounter
    patient(id: ID!): Patient
    patients(ids: [ID!]!): [Patient]!
    encounters(
      first: Int, after: String, where: EncountersFilter, orderBy: EncounterOrder = CREATED_AT_DESC
    ): Worklist!
    encounterCounts(where: EncountersFilter, by: EncounterDimension!): [EncounterCount!]!
  }
  type Mutation {
    recordEncounter(patientId: ID!, input: RecordEncounterInput!, idempotencyKey: String): RecordEncounterResult!
  }
`;
