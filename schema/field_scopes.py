"""Which right each field needs. The resolvers enforce it; here it is told, and nothing is served that is not listed."""

from collections.abc import Mapping

from graphql import GraphQLObjectType, GraphQLSchema

from resolvers.access import Permission, Scopes, told

FIELDS: Mapping[str, Permission] = {
    "Query.encounter": Permission.READ_ENCOUNTERS,
    "Query.patient": Permission.READ_PATIENTS,
    "Query.patients": Permission.READ_PATIENTS,
    "Query.submission": Permission.FIND_SUBMISSION,
    "Patient.encounters": Permission.READ_ENCOUNTERS,
    "Encounter.history": Permission.READ_ENCOUNTERS,
    "EncounterRecorded.possibleDuplicates": Permission.READ_ENCOUNTERS,
    "Mutation.recordEncounter": Permission.RECORD_ENCOUNTER,
    "Mutation.recordEncounters": Permission.RECORD_ENCOUNTER,
    "Mutation.registerPatient": Permission.REGISTER_PATIENT,
    "Mutation.startEncounter": Permission.CHANGE_ENCOUNTER,
    "Mutation.completeEncounter": Permission.CHANGE_ENCOUNTER,
    "Mutation.cancelEncounter": Permission.CHANGE_ENCOUNTER,
    "Mutation.markEncounterNoShow": Permission.CHANGE_ENCOUNTER,
    "Mutation.markEncounterEnteredInError": Permission.CHANGE_ENCOUNTER,
    "Mutation.rescheduleEncounter": Permission.CHANGE_ENCOUNTER,
    "Mutation.amendEncounter": Permission.CHANGE_ENCOUNTER,
    "Subscription.encounterEvents": Permission.READ_ENCOUNTERS,
}
"""Every root field, and every other field behind which there is more than its parent's right allows."""

ENTITIES: Mapping[str, Permission] = {
    "Encounter": Permission.READ_ENCOUNTERS,
    "Patient": Permission.READ_PATIENTS,
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
