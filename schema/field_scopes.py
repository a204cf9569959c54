"""Which right each field needs. The resolvers enforce it; here it is told, and nothing is served that is not listed."""

from collections.abc import Mapping

from graphql import GraphQLObjectType, GraphQLSchema

from resolvers.access import Operation, Scopes, told

FIELDS: Mapping[str, Operation] = {
    "Query.encounter": Operation.READ_ENCOUNTERS,
    "Query.patient": Operation.READ_PATIENTS,
    "Query.patients": Operation.READ_PATIENTS,
    "Query.submission": Operation.FIND_SUBMISSION,
    "Patient.encounters": Operation.READ_ENCOUNTERS,
    "Encounter.history": Operation.READ_ENCOUNTERS,
    "EncounterRecorded.possibleDuplicates": Operation.READ_ENCOUNTERS,
    "Mutation.recordEncounter": Operation.RECORD_ENCOUNTER,
    "Mutation.recordEncounters": Operation.RECORD_ENCOUNTER,
    "Mutation.registerPatient": Operation.REGISTER_PATIENT,
    "Mutation.startEncounter": Operation.CHANGE_ENCOUNTER,
    "Mutation.completeEncounter": Operation.CHANGE_ENCOUNTER,
    "Mutation.cancelEncounter": Operation.CHANGE_ENCOUNTER,
    "Mutation.markEncounterNoShow": Operation.CHANGE_ENCOUNTER,
    "Mutation.markEncounterEnteredInError": Operation.CHANGE_ENCOUNTER,
    "Mutation.rescheduleEncounter": Operation.CHANGE_ENCOUNTER,
    "Mutation.amendEncounter": Operation.CHANGE_ENCOUNTER,
    "Subscription.encounterEvents": Operation.READ_ENCOUNTERS,
}
"""Every root field, and every other field behind which there is more than its parent's right allows."""

ENTITIES: Mapping[str, Operation] = {
    "Encounter": Operation.READ_ENCOUNTERS,
    "Patient": Operation.READ_PATIENTS,
}
"""What `Query._entities` gives where the schema is federated, and the right each needs; `Query._service` needs none."""


def tell_scopes(schema: GraphQLSchema, scopes: Scopes) -> None:
    """Say in each field's description which scopes allow it.

    Raises `ValueError` for a root field that is not listed, or an entry that names no field.
    """
    roots = [root for root in (schema.query_type, schema.mutation_type, schema.subscription_type) if root]
    unlisted = {f"{root.name}.{name}" for root in roots for name in root.fields} - FIELDS.keys()
    if unlisted:
        raise ValueError(f"no right is named for {', '.join(sorted(unlisted))}")
    for path, operation in FIELDS.items():
        type_name, _, field_name = path.partition(".")
        parent = schema.type_map.get(type_name)
        if not isinstance(parent, GraphQLObjectType) or field_name not in parent.fields:
            raise ValueError(f"a right is named for {path}, which is no field")
        field = parent.fields[field_name]
        field.description = f"{field.description}\n\n{told(scopes[operation])}"
