"""Attacks across brands: each answer equals that for an unknown record, in bytes and in statements sent."""

from typing import Any
from uuid import uuid4

import pytest
from graphql import GraphQLObjectType, get_named_type

from resolvers.context import Credentials, authenticate
from resolvers.errors import InvalidInput, PatientNotFound
from resolvers.feed import stream_events
from schema import build_schema
from tests.cast import Cast
from tests.doors import Service
from tests.event_helpers import cursor_v1

VISIT = {"brand_id": "loop", "encounter_type": "lab", "notes": "Not for others."}
ITEM = '{patientId: $patient, input: {brandId: "loop", encounterType: LAB}}'
SAME_ID = {"x-request-id": "the-same"}
EVENT_STREAM = SAME_ID | {"accept": "text/event-stream"}


@pytest.fixture
async def theirs(service: Service, cast: Cast) -> dict[str, Any]:
    """A patient of `loopbio` with an encounter, recorded under a key. Both have an external id."""
    patient_id = await cast.patient("loopbio")
    response = await service.rest(
        "POST",
        f"/v1/patients/{patient_id}/encounters",
        token="dev-loopbio",
        json=VISIT | {"brand_id": "loopbio"},
        headers={"idempotency-key": f"key-{patient_id}"},
    )
    encounter = response.json()
    identify = """mutation ($id: ID!, $input: AmendEncounterInput!) {
      amendEncounter(id: $id, input: $input) { __typename ... on Problem { code } } }"""
    variables = {"id": encounter["id"], "input": {"externalIds": {"emr": f"number-{patient_id}"}}}
    await service.graphql(identify, variables, token="dev-loopbio")
    await cast.connection.execute(
        "INSERT INTO patient_graph.patient_external_ids (patient_id, brand_id, system, value)"
        " VALUES ($1, 'loopbio', 'emr', $2)",
        patient_id,
        f"number-{patient_id}",
    )
    return encounter


async def assert_indistinguishable(service: Service, statements: list[str], request) -> None:
    """Assert that a request has the same answer and sends the same statements for their record and an unknown one."""
    answers, work = [], []
    for which in ("theirs", "unknown"):
        statements.clear()
        response = await request(which)
        answers.append((response.status_code, response.content))
        work.append(list(statements))
    assert answers[0] == answers[1]
    assert work[0] == work[1]


@pytest.mark.parametrize(("method", "query"), [("GET", ""), ("POST", ""), ("POST", "?validate_only=true")])
async def test_their_patient_over_rest_is_like_an_unknown_one(
    service: Service, theirs, statements, method: str, query: str
) -> None:
    async def request(which: str):
        # Of equal length, so that the headers are equal too.
        patient_id = theirs["patient_id"] if which == "theirs" else "patient-" + uuid4().hex[:12]
        body = VISIT if method == "POST" else None
        return await service.rest(method, f"/v1/patients/{patient_id}/encounters{query}", headers=SAME_ID, json=body)

    await assert_indistinguishable(service, statements, request)


async def test_their_encounter_over_rest_is_like_an_unknown_one(service: Service, theirs, statements) -> None:
    async def request(which: str):
        patient_id = theirs["patient_id"] if which == "theirs" else "patient-" + uuid4().hex[:12]
        encounter_id = theirs["id"] if which == "theirs" else str(uuid4())
        return await service.rest("GET", f"/v1/patients/{patient_id}/encounters/{encounter_id}", headers=SAME_ID)

    await assert_indistinguishable(service, statements, request)
    assert len(statements) == 1


@pytest.mark.parametrize(
    "selection",
    [
        "encounter(id: $id) { notes }",
        "encounter(id: $id, patientId: $patient) { notes }",
        "encounter(id: $id, patientId: $patient) { history { version } }",
        "encounter(id: $id) { history { changes { before after } } }",
        "patient(id: $patient) { encounters { totalCount nodes { notes } } }",
        "patients(ids: [$patient, $patient]) { id brandId }",
        "a: encounter(id: $id) { notes } b: encounter(id: $id) { patient { id } }",
        'encountersByExternalId(system: "emr", value: $number) { notes externalIds patient { externalIds } }',
        'patientsByExternalId(system: "emr", value: $number) { id externalIds encounters { nodes { id } } }',
    ],
)
async def test_their_records_in_every_query_are_like_unknown_ones(
    service: Service, theirs, statements, selection: str
) -> None:
    await assert_indistinguishable(service, statements, graphql_request(service, theirs, "query", selection))


@pytest.mark.parametrize(
    "field",
    [
        'recordEncounter(patientId: $patient, input: {brandId: "loop", encounterType: LAB})',
        'recordEncounter(patientId: $patient, input: {brandId: "loop", encounterType: LAB}, validateOnly: true)',
        f"recordEncounters(input: [{ITEM}, {ITEM}])",
        f"recordEncounters(input: [{ITEM}, {ITEM}], allOrNothing: true)",
        "startEncounter(id: $id)",
        "startEncounter(id: $id, patientId: $patient)",
        "startEncounter(id: $id, expectedVersion: 7)",
        'startEncounter(id: $id, idempotencyKey: "never-used")',
        'undoStartEncounter(id: $id, reason: "x")',
        'setPatientExternalIds(id: $patient, externalIds: {mrn: "x"})',
        'setPatientExternalIds(id: $patient, externalIds: {mrn: "x"}, idempotencyKey: "never-used")',
        "completeEncounter(id: $id)",
        'cancelEncounter(id: $id, reason: "x")',
        "markEncounterNoShow(id: $id)",
        'markEncounterEnteredInError(id: $id, reason: "x")',
        'rescheduleEncounter(id: $id, scheduledAt: "2026-12-01T09:00:00Z")',
        'amendEncounter(id: $id, input: {notes: "x"})',
    ],
)
async def test_their_records_in_every_mutation_are_like_unknown_ones(
    service: Service, theirs, statements, field: str
) -> None:
    shown = "{ __typename ... on Problem { code message } ... on EncounterChanged { encounter { notes } } }"
    changes_encounter = "record" not in field and "Patient" not in field
    shown = shown if changes_encounter else "{ __typename ... on Problem { code message } }"
    shown = shown if "Encounters" not in field else f"{{ results {shown} }}"
    await assert_indistinguishable(
        service, statements, graphql_request(service, theirs, "mutation", f"{field} {shown}")
    )


def graphql_request(service: Service, theirs, kind: str, selection: str):
    """Return a GraphQL request for an encounter `$id`, a patient `$patient` or an external id `$number` of both.

    They are theirs or unknown.
    """
    known = {
        "id": ("ID!", theirs["id"], lambda: str(uuid4())),
        "patient": ("ID!", theirs["patient_id"], lambda: "patient-" + uuid4().hex[:12]),
        "number": ("String!", f"number-{theirs['patient_id']}", lambda: "number-patient-" + uuid4().hex[:12]),
    }
    used = {name: of for name, of in known.items() if f"${name}" in selection}
    declared = ", ".join(f"${name}: {of[0]}" for name, of in used.items())

    async def request(which: str):
        variables = {name: their if which == "theirs" else unknown() for name, (_, their, unknown) in used.items()}
        query = {"query": f"{kind} ({declared}) {{ {selection} }}", "variables": variables}
        response = await service.rest("POST", "/graphql", json=query, headers=SAME_ID)
        # An invalid document would be refused before either record is read.
        assert "validation_error" not in response.text
        return response

    return request


async def test_their_patient_in_a_subscription_is_like_an_unknown_one(service: Service, theirs, statements) -> None:
    query = "subscription ($patient: ID!) { encounterEvents(patientId: $patient) { encounter { notes } } }"

    async def request(which: str):
        patient_id = theirs["patient_id"] if which == "theirs" else "patient-" + uuid4().hex[:12]
        body = {"query": query, "variables": {"patient": patient_id}}
        return await service.rest("POST", "/graphql", json=body, headers=EVENT_STREAM)

    await assert_indistinguishable(service, statements, request)


@pytest.mark.parametrize("named", ["after", "Last-Event-ID"])
async def test_a_cursor_of_their_feed_is_like_an_invalid_one(service: Service, theirs, statements, named: str) -> None:
    query = "subscription ($after: String) { encounterEvents(after: $after) { encounter { notes } } }"
    # Read once per process, by the first request that needs it.
    await service.services.feed.cursors()

    async def request(which: str):
        cursor = cursor_v1("loopbio") if which == "theirs" else "made-up"
        variables = {"after": cursor} if named == "after" else {}
        headers = {} if named == "after" else {named: cursor}
        body = {"query": query, "variables": variables}
        return await service.rest("POST", "/graphql", json=body, headers=EVENT_STREAM | headers)

    await assert_indistinguishable(service, statements, request)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Encounter", "notes patient { id } provider { id } history { version }"),
        ("Patient", "brandId encounters { totalCount nodes { notes } }"),
    ],
)
async def test_their_records_as_federated_entities_are_like_unknown_ones(
    subgraph: Service, theirs, statements, name: str, shown: str
) -> None:
    query = f"query ($asked: [_Any!]!) {{ _entities(representations: $asked) {{ ... on {name} {{ id {shown} }} }} }}"
    unknown = {"Encounter": str(uuid4()), "Patient": "patient-" + uuid4().hex[:12]}
    others = {"Encounter": theirs["id"], "Patient": theirs["patient_id"]}

    async def request(which: str):
        asked = [{"__typename": name, "id": (others if which == "theirs" else unknown)[name]}] * 2
        body = {"query": query, "variables": {"asked": asked}}
        response = await subgraph.rest("POST", "/graphql", json=body, headers=SAME_ID)
        assert response.json() == {"data": {"_entities": [None, None]}}
        return response

    await assert_indistinguishable(subgraph, statements, request)


async def test_a_worklist_of_their_patient_is_like_that_of_an_unknown_one(service: Service, theirs, statements) -> None:
    async def request(which: str):
        patient_id = theirs["patient_id"] if which == "theirs" else "patient-" + uuid4().hex[:12]
        query = """query ($ids: [ID!]!) {
          encounters(where: {patientId: $ids}) { totalCount nodes { id notes } pageInfo { endCursor } }
          encounterCounts(by: STATUS, where: {patientId: $ids}) { key count } }"""
        body = {"query": query, "variables": {"ids": [patient_id]}}
        response = await service.rest("POST", "/graphql", json=body, headers=SAME_ID)
        assert response.json()["data"]["encounters"]["totalCount"] == 0
        return response

    await assert_indistinguishable(service, statements, request)


async def test_a_cursor_of_their_list_is_like_an_invalid_one(service: Service, cast: Cast, theirs) -> None:
    query = """query ($id: ID!, $after: String) {
      patient(id: $id) { encounters(after: $after) { pageInfo { endCursor } } } }"""
    shown = await service.graphql(query, {"id": theirs["patient_id"]}, token="dev-loopbio")
    cursor = shown["data"]["patient"]["encounters"]["pageInfo"]["endCursor"]
    ours = {"id": await cast.patient("loop")}

    swapped, made_up = [
        await service.graphql(query, ours | {"after": text}, headers=SAME_ID) for text in (cursor, "made-up")
    ]

    assert swapped == made_up
    assert swapped["errors"][0]["extensions"]["code"] == "validation_error"


async def test_their_idempotency_key_is_unused_in_another_brand(service: Service, cast: Cast, theirs) -> None:
    patient_id = await cast.patient("loop")

    response = await service.rest(
        "POST",
        f"/v1/patients/{patient_id}/encounters",
        json=VISIT,
        headers={"idempotency-key": f"key-{theirs['patient_id']}"},
    )

    assert response.status_code == 201
    assert "idempotent-replayed" not in response.headers


async def test_the_submission_of_their_key_is_like_that_of_an_unused_one(service: Service, theirs, statements) -> None:
    async def request(which: str):
        key = f"key-{theirs['patient_id']}" if which == "theirs" else "key-patient-" + uuid4().hex[:12]
        query = {"query": "query ($key: String!) { submission(key: $key) { state encounter { id notes } } }"}
        return await service.rest("POST", "/graphql", json=query | {"variables": {"key": key}}, headers=SAME_ID)

    await assert_indistinguishable(service, statements, request)


async def test_registering_the_id_of_their_patient_reveals_nothing(service: Service, theirs, statements) -> None:
    async def request(which: str):
        patient_id = theirs["patient_id"] if which == "theirs" else "patient-" + uuid4().hex[:12]
        query = """mutation ($id: ID!) { registerPatient(input: {id: $id, brandId: "loop"}) {
          ... on PatientRegistered { alreadyKnown patient { brandId encounters { totalCount } } } } }"""
        return await service.rest(
            "POST", "/graphql", json={"query": query, "variables": {"id": patient_id}}, headers=SAME_ID
        )

    await assert_indistinguishable(service, statements, request)


async def test_their_encounter_of_the_same_patient_id_is_no_duplicate(service: Service, cast: Cast, theirs) -> None:
    patient_id = theirs["patient_id"]
    await cast.connection.execute("INSERT INTO patient_graph.patients (id, brand_id) VALUES ($1, 'loop')", patient_id)
    query = """mutation ($id: ID!) { recordEncounter(patientId: $id, input: {brandId: "loop", encounterType: LAB}) {
      ... on EncounterRecorded { possibleDuplicates { id brandId } } } }"""

    first, second = [(await service.graphql(query, {"id": patient_id}))["data"]["recordEncounter"] for _ in range(2)]

    assert first == {"possibleDuplicates": []}
    assert [each["brandId"] for each in second["possibleDuplicates"]] == ["loop"]


@pytest.mark.parametrize("path", ["/v1/patients/{}/encounters", "/graphql"])
async def test_naming_their_brand_is_forbidden_for_known_and_unknown_patients(
    service: Service, theirs, path: str
) -> None:
    answers = []
    for patient_id in (theirs["patient_id"], "patient-" + uuid4().hex[:12]):
        query = {"query": "query ($id: ID!) { patient(id: $id) { id } }", "variables": {"id": patient_id}}
        response = await service.rest(
            "POST", path.format(patient_id), json=query | VISIT, headers=SAME_ID | {"x-brand-id": "loopbio"}
        )
        answers.append((response.status_code, response.content))

    assert answers[0] == answers[1]
    assert b"forbidden" in answers[0][1]


async def test_a_refused_batch_is_alike_for_their_and_unknown_patients(service: Service, theirs, statements) -> None:
    async def request(which: str):
        patient_id = theirs["patient_id"] if which == "theirs" else "patient-" + uuid4().hex[:12]
        query = {"query": "query ($id: ID!) { patient(id: $id) { id } }", "variables": {"id": patient_id}}
        return await service.rest("POST", "/graphql", json=[query, query], headers=SAME_ID)

    await assert_indistinguishable(service, statements, request)


async def test_their_patients_and_cursors_are_unknown_to_the_feed(service: Service, theirs) -> None:
    """Subscriptions at the level of the resolvers."""
    context = await authenticate(service.services, Credentials("Bearer dev", stated_brand_id=None, request_id="a-test"))

    for patient_id in (theirs["patient_id"], "nobody"):
        with pytest.raises(PatientNotFound):
            await stream_events(context, patient_id)
    for cursor in (cursor_v1("loopbio"), "made-up"):
        with pytest.raises(InvalidInput, match="cursor"):
            await stream_events(context, None, cursor)


async def test_their_patients_and_external_ids_are_seen_in_their_brand_only(
    service: Service, theirs, cast: Cast
) -> None:
    query = """query ($number: String!) {
      patientList(first: 100) { nodes { id } edges { node { id } } }
      patientsByExternalId(system: "emr", value: $number) { id }
      encountersByExternalId(system: "emr", value: $number) { id }
    }"""
    variables = {"number": f"number-{theirs['patient_id']}"}

    ours = await service.graphql(query, variables, token="dev")
    own = await service.graphql(query, variables, token="dev-loopbio")

    assert theirs["patient_id"] not in str(ours)
    assert ours["data"]["patientsByExternalId"] == ours["data"]["encountersByExternalId"] == []
    assert {"id": theirs["patient_id"]} in own["data"]["patientList"]["nodes"]
    assert own["data"]["patientsByExternalId"] == [{"id": theirs["patient_id"]}]
    assert own["data"]["encountersByExternalId"] == [{"id": theirs["id"]}]


def test_every_path_of_the_schema_to_a_record_is_attacked() -> None:
    """A new path needs an attack in this file."""
    schema = build_schema(federated=True)._schema

    leading_to_records = {
        f"{name}.{field}"
        for name, kind in schema.type_map.items()
        if isinstance(kind, GraphQLObjectType) and not name.startswith("__")
        for field, of in kind.fields.items()
        if get_named_type(of.type).name
        in {
            "Encounter", "EncounterConnection", "EncounterEdge", "EncounterEvent", "Patient", "PatientConnection",
            "PatientEdge", "_Entity",
        }
    }  # fmt: skip

    assert leading_to_records == {
        "Query.encounter",
        "Query.encounters",
        "Query.patient",
        "Query.patients",
        "Query.patientList",
        "Query.patientsByExternalId",
        "Query.encountersByExternalId",
        "Query._entities",
        "PatientConnection.edges",
        "PatientConnection.nodes",
        "PatientEdge.node",
        "Patient.encounters",
        "Encounter.patient",
        "EncounterConnection.edges",
        "EncounterConnection.nodes",
        "EncounterEdge.node",
        "EncounterRecorded.encounter",
        "EncounterRecorded.possibleDuplicates",
        "EncounterChanged.encounter",
        "StaleVersion.encounter",
        "PatientChanged.patient",
        "PatientRegistered.patient",
        "Submission.encounter",
        "EncounterEvent.encounter",
        "Subscription.encounterEvents",
    }
