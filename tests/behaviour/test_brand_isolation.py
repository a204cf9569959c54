"""Attacks across brands: every answer equals that for something that does not exist, in bytes and in work done."""

from contextvars import ContextVar
from typing import Any
from uuid import uuid4

import pytest
from graphql import GraphQLObjectType, get_named_type

from gateway.database.database import PoolConnection
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

# What the duties of the service do meanwhile, they do by the clock.
WATCHED = ContextVar("WATCHED", default=False)


@pytest.fixture
async def theirs(service: Service, cast: Cast) -> dict[str, Any]:
    """A patient of `loopbio` with an encounter, recorded under a key."""
    patient_id = await cast.patient("loopbio")
    response = await service.rest(
        "POST",
        f"/v1/patients/{patient_id}/encounters",
        token="dev-loopbio",
        json=VISIT | {"brand_id": "loopbio"},
        headers={"idempotency-key": f"key-{patient_id}"},
    )
    return response.json()


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements sent, in order: what a stopwatch would see is how many there are and which."""
    sent: list[str] = []
    for name in ("fetch", "fetch_one"):
        original = getattr(PoolConnection, name)

        async def counted(self, statement, original=original, **values):
            if WATCHED.get():
                sent.append(statement.text)
            return await original(self, statement, **values)

        monkeypatch.setattr(PoolConnection, name, counted)
    return sent


async def both(service: Service, statements: list[str], request) -> None:
    """Assert that a request answers the same, after the same work, for what is theirs and for what is nobody's."""
    WATCHED.set(True)
    answers, work = [], []
    for which in ("theirs", "nobody's"):
        statements.clear()
        response = await request(which)
        answers.append((response.status_code, response.content))
        work.append(list(statements))
    assert answers[0] == answers[1]
    assert work[0] == work[1]


@pytest.mark.parametrize(("method", "query"), [("GET", ""), ("POST", ""), ("POST", "?validate_only=true")])
async def test_a_patients_id_over_rest(service: Service, theirs, statements, method: str, query: str) -> None:
    async def request(which: str):
        # Of equal length, so that no header differs either.
        patient_id = theirs["patient_id"] if which == "theirs" else "patient-" + uuid4().hex[:12]
        body = VISIT if method == "POST" else None
        return await service.rest(method, f"/v1/patients/{patient_id}/encounters{query}", headers=SAME_ID, json=body)

    await both(service, statements, request)


async def test_an_encounters_id_over_rest(service: Service, theirs, statements) -> None:
    async def request(which: str):
        patient_id = theirs["patient_id"] if which == "theirs" else "patient-" + uuid4().hex[:12]
        encounter_id = theirs["id"] if which == "theirs" else str(uuid4())
        return await service.rest("GET", f"/v1/patients/{patient_id}/encounters/{encounter_id}", headers=SAME_ID)

    await both(service, statements, request)
    assert len(statements) == 1


@pytest.mark.parametrize(
    "selection",
    [
        "encounter(id: $id) { notes }",
        "encounter(id: $id) { history { changes { before after } } }",
        "patient(id: $patient) { encounters { totalCount nodes { notes } } }",
        "patients(ids: [$patient, $patient]) { id brandId }",
        "a: encounter(id: $id) { notes } b: encounter(id: $id) { patient { id } }",
    ],
)
async def test_ids_through_every_path_that_reads(service: Service, theirs, statements, selection: str) -> None:
    await both(service, statements, asking(service, theirs, "query", selection))


@pytest.mark.parametrize(
    "field",
    [
        'recordEncounter(patientId: $patient, input: {brandId: "loop", encounterType: LAB})',
        'recordEncounter(patientId: $patient, input: {brandId: "loop", encounterType: LAB}, validateOnly: true)',
        f"recordEncounters(input: [{ITEM}, {ITEM}])",
        f"recordEncounters(input: [{ITEM}, {ITEM}], allOrNothing: true)",
        "startEncounter(id: $id)",
        "startEncounter(id: $id, expectedVersion: 7)",
        "completeEncounter(id: $id)",
        'cancelEncounter(id: $id, reason: "x")',
        "markEncounterNoShow(id: $id)",
        'markEncounterEnteredInError(id: $id, reason: "x")',
        'rescheduleEncounter(id: $id, scheduledAt: "2026-12-01T09:00:00Z")',
        'amendEncounter(id: $id, input: {notes: "x"})',
    ],
)
async def test_ids_through_every_path_that_changes(service: Service, theirs, statements, field: str) -> None:
    shown = "{ __typename ... on Problem { code message } ... on EncounterChanged { encounter { notes } } }"
    shown = shown if "record" not in field else "{ __typename ... on Problem { code message } }"
    shown = shown if "Encounters" not in field else f"{{ results {shown} }}"
    await both(service, statements, asking(service, theirs, "mutation", f"{field} {shown}"))


def asking(service: Service, theirs, kind: str, selection: str):
    """Ask over GraphQL for an encounter `$id`, or a patient `$patient`, which are theirs or nobody's."""
    known = {
        "id": ("ID!", theirs["id"], lambda: str(uuid4())),
        "patient": ("ID!", theirs["patient_id"], lambda: "patient-" + uuid4().hex[:12]),
    }
    used = {name: of for name, of in known.items() if f"${name}" in selection}
    declared = ", ".join(f"${name}: {of[0]}" for name, of in used.items())

    async def request(which: str):
        variables = {name: their if which == "theirs" else nobodys() for name, (_, their, nobodys) in used.items()}
        query = {"query": f"{kind} ({declared}) {{ {selection} }}", "variables": variables}
        response = await service.rest("POST", "/graphql", json=query, headers=SAME_ID)
        # A document that is refused as such would be refused alike for everybody.
        assert "validation_error" not in response.text
        return response

    return request


async def test_a_patients_id_in_a_subscription(service: Service, theirs, statements) -> None:
    query = "subscription ($patient: ID!) { encounterEvents(patientId: $patient) { encounter { notes } } }"

    async def request(which: str):
        patient_id = theirs["patient_id"] if which == "theirs" else "patient-" + uuid4().hex[:12]
        body = {"query": query, "variables": {"patient": patient_id}}
        return await service.rest("POST", "/graphql", json=body, headers=EVENT_STREAM)

    await both(service, statements, request)


@pytest.mark.parametrize("named", ["after", "Last-Event-ID"])
async def test_a_place_in_their_feed_is_no_better_than_a_made_up_one(
    service: Service, theirs, statements, named: str
) -> None:
    query = "subscription ($after: String) { encounterEvents(after: $after) { encounter { notes } } }"
    # Read once in the life of a process, and by whichever request is the first.
    await service.services.feed.cursors()

    async def request(which: str):
        cursor = cursor_v1("loopbio") if which == "theirs" else "made-up"
        variables = {"after": cursor} if named == "after" else {}
        headers = {} if named == "after" else {named: cursor}
        body = {"query": query, "variables": variables}
        return await service.rest("POST", "/graphql", json=body, headers=EVENT_STREAM | headers)

    await both(service, statements, request)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Encounter", "notes patient { id } provider { id } history { version }"),
        ("Patient", "brandId encounters { totalCount nodes { notes } }"),
    ],
)
async def test_ids_in_what_a_router_asks_for(subgraph: Service, theirs, statements, name: str, shown: str) -> None:
    query = f"query ($asked: [_Any!]!) {{ _entities(representations: $asked) {{ ... on {name} {{ id {shown} }} }} }}"
    nobodys = {"Encounter": str(uuid4()), "Patient": "patient-" + uuid4().hex[:12]}
    others = {"Encounter": theirs["id"], "Patient": theirs["patient_id"]}

    async def request(which: str):
        asked = [{"__typename": name, "id": (others if which == "theirs" else nobodys)[name]}] * 2
        body = {"query": query, "variables": {"asked": asked}}
        response = await subgraph.rest("POST", "/graphql", json=body, headers=SAME_ID)
        assert response.json() == {"data": {"_entities": [None, None]}}
        return response

    await both(subgraph, statements, request)


async def test_a_cursor_of_theirs_is_no_better_than_a_made_up_one(service: Service, cast: Cast, theirs) -> None:
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


async def test_a_key_of_theirs_is_free_for_us(service: Service, cast: Cast, theirs) -> None:
    patient_id = await cast.patient("loop")

    response = await service.rest(
        "POST",
        f"/v1/patients/{patient_id}/encounters",
        json=VISIT,
        headers={"idempotency-key": f"key-{theirs['patient_id']}"},
    )

    assert response.status_code == 201
    assert "idempotent-replayed" not in response.headers


async def test_what_became_of_a_key_of_theirs_is_nothing_to_us(service: Service, theirs, statements) -> None:
    async def request(which: str):
        key = f"key-{theirs['patient_id']}" if which == "theirs" else "key-patient-" + uuid4().hex[:12]
        query = {"query": "query ($key: String!) { submission(key: $key) { state encounter { id notes } } }"}
        return await service.rest("POST", "/graphql", json=query | {"variables": {"key": key}}, headers=SAME_ID)

    await both(service, statements, request)


async def test_registering_an_id_of_theirs_says_nothing_of_them(service: Service, theirs, statements) -> None:
    async def request(which: str):
        patient_id = theirs["patient_id"] if which == "theirs" else "patient-" + uuid4().hex[:12]
        query = """mutation ($id: ID!) { registerPatient(input: {id: $id, brandId: "loop"}) {
          ... on PatientRegistered { alreadyKnown patient { brandId encounters { totalCount } } } } }"""
        return await service.rest(
            "POST", "/graphql", json={"query": query, "variables": {"id": patient_id}}, headers=SAME_ID
        )

    await both(service, statements, request)


async def test_what_they_recorded_of_a_patient_of_the_same_name_is_no_duplicate_of_ours(
    service: Service, cast: Cast, theirs
) -> None:
    patient_id = theirs["patient_id"]
    await cast.connection.execute("INSERT INTO patient_graph.patients (id, brand_id) VALUES ($1, 'loop')", patient_id)
    query = """mutation ($id: ID!) { recordEncounter(patientId: $id, input: {brandId: "loop", encounterType: LAB}) {
      ... on EncounterRecorded { possibleDuplicates { id brandId } } } }"""

    first, second = [(await service.graphql(query, {"id": patient_id}))["data"]["recordEncounter"] for _ in range(2)]

    assert first == {"possibleDuplicates": []}
    assert [each["brandId"] for each in second["possibleDuplicates"]] == ["loop"]


@pytest.mark.parametrize("path", ["/v1/patients/{}/encounters", "/graphql"])
async def test_stating_their_brand_is_forbidden_whether_the_patient_exists_or_not(
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


async def test_a_batch_is_refused_alike_whoever_it_asks_for(service: Service, theirs, statements) -> None:
    async def request(which: str):
        patient_id = theirs["patient_id"] if which == "theirs" else "patient-" + uuid4().hex[:12]
        query = {"query": "query ($id: ID!) { patient(id: $id) { id } }", "variables": {"id": patient_id}}
        return await service.rest("POST", "/graphql", json=[query, query], headers=SAME_ID)

    await both(service, statements, request)


async def test_the_feed_of_events_knows_neither_their_patients_nor_their_cursors(service: Service, theirs) -> None:
    """What subscriptions are made of."""
    context = await authenticate(service.services, Credentials("Bearer dev", stated_brand_id=None, request_id="a-test"))

    for patient_id in (theirs["patient_id"], "nobody"):
        with pytest.raises(PatientNotFound):
            await stream_events(context, patient_id)
    for cursor in (cursor_v1("loopbio"), "made-up"):
        with pytest.raises(InvalidInput, match="cursor"):
            await stream_events(context, None, cursor)


def test_every_path_of_the_graph_that_leads_to_a_record_is_attacked_above() -> None:
    """Whoever adds a path adds the attack on it here."""
    schema = build_schema(federated=True)._schema

    leading_to_records = {
        f"{name}.{field}"
        for name, kind in schema.type_map.items()
        if isinstance(kind, GraphQLObjectType) and not name.startswith("__")
        for field, of in kind.fields.items()
        if get_named_type(of.type).name
        in {"Encounter", "Patient", "EncounterConnection", "EncounterEdge", "EncounterEvent", "_Entity"}
    }

    assert leading_to_records == {
        "Query.encounter",
        "Query.patient",
        "Query.patients",
        "Query._entities",
        "Patient.encounters",
        "Encounter.patient",
        "EncounterConnection.edges",
        "EncounterConnection.nodes",
        "EncounterEdge.node",
        "EncounterRecorded.encounter",
        "EncounterRecorded.possibleDuplicates",
        "EncounterChanged.encounter",
        "PatientRegistered.patient",
        "Submission.encounter",
        "EncounterEvent.encounter",
        "Subscription.encounterEvents",
    }
