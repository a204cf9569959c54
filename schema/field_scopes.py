"""The permission that each field needs.

The resolvers enforce it; this module documents it in the schema. The schema is not built if a root field is not listed.
"""

from collections.abc import Mapping

from graphql import GraphQLObjectType, GraphQLSchema

from resolvers.access import Permission, Scopes, describe_scopes

FIELDS: Mapping[str, Permission | None] = {
    "Query.encounters": Permission.READ_ENCOUNTERS,
    "Query.encounter": Permission.READ_ENCOUNTERS,
    "Query.encounterCounts": Permission.READ_ENCOUNTERS,
    "Query.patient": Permission.READ_PATIENTS,
    "Query.patients": Permission.READ_PATIENTS,
    "Query.patientsByExternalId": Permission.READ_PATIENTS,
    "Query.patientList": Permission.LIST_PATIENTS,
    "Query.encountersByExternalId": Permission.READ_ENCOUNTERS,
    "Query.submission": Permission.FIND_SUBMISSION,
    "Query.viewer": None,
    "Patient.encounters": Permission.READ_ENCOUNTERS,
    "Encounter.history": Permission.READ_ENCOUNTERS,
    "EncounterRecorded.possibleDuplicates": Permission.READ_ENCOUNTERS,
    "StaleVersion.encounter": Permission.READ_ENCOUNTERS,
    "Mutation.recordEncounter": Permission.RECORD_ENCOUNTER,
    "Mutation.recordEncounters": Permission.RECORD_ENCOUNTER,
    "Mutation.registerPatient": Permission.REGISTER_PATIENT,
    "Mutation.setPatientExternalIds": Permission.REGISTER_PATIENT,
    "Mutation.startEncounter": Permission.CHANGE_ENCOUNTER,
    "Mutation.completeEncounter": Permission.CHANGE_ENCOUNTER,
    "Mutation.cancelEncounter": Permission.CHANGE_ENCOUNTER,
    "Mutation.markEncounterNoShow": Permission.CHANGE_ENCOUNTER,
    "Mutation.markEncounterEnteredInError": Permission.CHANGE_ENCOUNTER,
    "Mutation.rescheduleEncounter": Permission.CHANGE_ENCOUNTER,
    "Mutation.amendEncounter": Permission.CHANGE_ENCOUNTER,
    "Mutation.undoStartEncounter": Permission.CHANGE_ENCOUNTER,
    "Subscription.encounterEvents": Permission.READ_ENCOUNTERS,
}
"""Every root field, and every other field that needs a permission beyond that of its parent. None: any caller may."""

ENTITIES: Mapping[str, Permission] = {
    "Encounter": Permission.READ_ENCOUNTERS,
    "Patient": Permission.READ_PATIENTS,
}
"""The types that `Query._entities` returns if the schema is federated, with their permissions.

`Query._service` needs no permission.
"""


def add_scopes(schema: GraphQLSchema, scopes: Scopes) -> None:
    """Append to the description of each listed field the scopes that allow it.

    Raises `ValueError` for a root field that is not listed, or an entry that names no field.
    """
    roots = [root for root in (schema.query_type, schema.mutation_type, schema.subscription_type) if root]
    unlisted = {f"{root.name}.{name}" for root in roots for name in root.fields} - FIELDS.keys()
    if unlisted:
        raise ValueError(f"no permission is listed for {', '.join(sorted(unlisted))}")
    for path, operation in FIELDS.items():
        type_name, _, field_name = path.partition(".")
        parent = schema.type_map.get(type_name)
        if not isinstance(parent, GraphQLObjectType) or field_name not in parent.fields:
            raise ValueError(f"a permission is listed for {path}, which is not a field")
        field = parent.fields[field_name]
        needed = "Requires no scope." if operation is None else describe_scopes(scopes[operation])
        field.description = f"{field.description}\n\n{needed}"
