"""Every path of the schema from a mutation or subscription to clinical text leaves an audit entry."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest
from graphql import GraphQLObjectType, GraphQLOutputType, GraphQLUnionType, get_named_type, is_required_argument

from models import MEMBERS
from schema import build_schema
from tests.cast import Cast
from tests.controlled_schema import TOKENS
from tests.event_helpers import cursor_v1
from tests.graphql.test_subscriptions import OverSocket, gateway_on
from tests.waiting import wait_until
from tests.websocket_client import GatewayServer

SCHEMA = build_schema()._schema

CLINICAL = {member.graphql_name for member in MEMBERS.values() if member.clinical} | {"reason", "before", "after"}

AUDITED_WITH_PARENT = {
    # The caller's own change returns the encounter; the entry of the change covers it.
    ("EncounterRecorded", "encounter"),
    ("EncounterChanged", "encounter"),
    # Read together with its parent.
    ("EncounterVersion", "changes"),
}

Path = tuple[str, ...]


def object_type(name: str) -> GraphQLObjectType:
    kind = SCHEMA.type_map[name]
    assert isinstance(kind, GraphQLObjectType)
    return kind


def clinical_fields(kind: GraphQLObjectType) -> list[str]:
    return sorted(CLINICAL & kind.fields.keys())


def walk(kind: GraphQLObjectType, path: Path = (), seen: Counter[str] | None = None) -> Iterator[tuple[Path, bool]]:
    """Yield the paths below a type that lead to clinical text, and whether each must leave its own entry."""
    seen = (seen or Counter()) + Counter([kind.name])
    for name, field in kind.fields.items():
        below = get_named_type(field.type)
        # Neither a list within a list nor the patient's list below a list's encounter adds a new path.
        if not isinstance(below, GraphQLObjectType) or seen[below.name] > (below.name == "Encounter" and len(path) < 5):
            continue
        assert not any(map(is_required_argument, field.args.values())), (
            f"add the required arguments of {name} to this test"
        )
        if clinical_fields(below):
            yield (*path, name), (kind.name, name) not in AUDITED_WITH_PARENT
        yield from walk(below, (*path, name), seen)


def selection(kind: GraphQLOutputType, path: Path) -> str:
    below = get_named_type(kind)
    assert isinstance(below, GraphQLObjectType)
    # The fields along the path too, so that its entries are those of the path above it and its own.
    shown = " ".join(clinical_fields(below))
    if not path:
        return shown
    field = below.fields[path[0]]
    # Small pages: a history below each item of a page is expensive.
    size = "(first: 2)" if "first" in field.args else ""
    return f"{shown} {path[0]}{size} {{ {selection(field.type, path[1:])} }}"


def members(kind: GraphQLOutputType) -> list[GraphQLObjectType]:
    below = get_named_type(kind)
    if isinstance(below, GraphQLUnionType):
        return [member for each in below.types for member in members(each)]
    if isinstance(below, GraphQLObjectType):
        inner = [get_named_type(field.type) for field in below.fields.values()]
        return [below, *(member for each in inner if isinstance(each, GraphQLUnionType) for member in members(each))]
    return []


def shows_clinical_text(kind: GraphQLObjectType) -> bool:
    return bool(clinical_fields(kind)) or any(True for _ in walk(kind))


VISIT = '{brandId: "loop", encounterType: LAB, notes: "Fasting."}'
ROOTS = {
    "EncounterRecorded": 'recordEncounter(patientId: "%(patient)s", input: ' + VISIT + ")",
    "EncounterChanged": 'amendEncounter(id: "%(encounter)s", input: {notes: "Not fasting."})',
    "StaleVersion": 'startEncounter(id: "%(encounter)s", expectedVersion: 7)',
    "PatientRegistered": 'registerPatient(input: {id: "%(patient)s", brandId: "loop"})',
    "PatientChanged": 'setPatientExternalIds(id: "%(patient)s", externalIds: {mrn: "12-34"})',
}


@pytest.fixture(scope="module")
async def sockets(database_url: str) -> AsyncIterator[GatewayServer]:
    TOKENS.give("dev")
    async with gateway_on(database_url) as serving:
        yield serving


def test_roots_lists_each_mutation_that_returns_clinical_text() -> None:
    mutation = SCHEMA.mutation_type
    assert mutation is not None
    showing = {
        kind.name for field in mutation.fields.values() for kind in members(field.type) if shows_clinical_text(kind)
    }

    assert showing == ROOTS.keys()


async def entries(sockets: GatewayServer, cast: Cast, patient_id: str) -> int:
    """Return the number of audit entries for reads of a patient's encounters or external ids."""
    sentinel = await cast.patient()
    count = """SELECT count(*) FROM patient_graph.audit_log
        WHERE patient_id = $1 AND event_type = 'patient_graph.encounters.read'
            OR event_type = 'patient_graph.patients.read' AND details->'patients' ? $1"""
    async with sockets.authenticated() as websocket:
        await websocket.ask("mutation { " + ROOTS["EncounterRecorded"] % {"patient": sentinel} + " { __typename } }")
        await websocket.ask(f'{{ patient(id: "{sentinel}") {{ encounters {{ nodes {{ id }} }} }} }}')
    # Audit records are inserted in order, so the sentinel's entry comes after those that are counted.
    await wait_until(lambda: cast.connection.fetchval(count, sentinel))
    number: int = await cast.connection.fetchval(count, patient_id)
    return number


async def entries_after_selecting(sockets: GatewayServer, cast: Cast, root: str, path: Path) -> int:
    """Select a path below a mutation or an event; return the number of read entries that this left."""
    patient_id = await cast.patient()
    record = "mutation { " + ROOTS["EncounterRecorded"] % {"patient": patient_id} + " { ...on EncounterRecorded %s } }"
    async with sockets.authenticated() as websocket:
        body = await websocket.ask(record % "{ encounter { id } }")
        encounter_id = body["data"]["recordEncounter"]["encounter"]["id"]
        below = selection(object_type(root), path)
        if root in ROOTS:
            field = ROOTS[root] % {"patient": patient_id, "encounter": encounter_id}
            body = await websocket.ask(f"mutation {{ {field} {{ ...on {root} {{ {below} }} }} }}")
            assert "errors" not in body, body
            assert all(body["data"].values()), body
    if root not in ROOTS:
        query = f'subscription {{ encounterEvents(patientId: "{patient_id}", after: "{cursor_v1()}") {{ {below} }} }}'
        async with OverSocket.follow(sockets, query=query) as listener:
            await listener.event()
    return await entries(sockets, cast, patient_id)


@pytest.mark.parametrize("root", [*ROOTS, "EncounterEvent"])
async def test_each_path_to_clinical_text_leaves_an_audit_entry(sockets: GatewayServer, cast: Cast, root: str) -> None:
    kind = object_type(root)
    left: dict[Path, int] = {}
    for path, must_leave_one in walk(kind):
        left[path] = await entries_after_selecting(sockets, cast, root, path)
        above = max((left[path[:length]] for length in range(len(path)) if path[:length] in left), default=0)
        assert left[path] == above + must_leave_one, (path, left)
    assert len(left) > 3


def test_walk_finds_the_known_paths_below_an_event() -> None:
    found = {path for path, _ in walk(object_type("EncounterEvent"))}

    assert found >= {
        ("encounter",),
        ("encounter", "history"),
        ("encounter", "history", "changes"),
        ("encounter", "patient", "encounters", "nodes"),
        ("encounter", "patient", "encounters", "edges", "node"),
    }
