"""`patientList`: the patients of a brand in pages, newest first."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from gateway.database.database import PoolConnection
from gateway.settings import Settings
from resolvers.access import Caller
from resolvers.commands import PatientFilter
from resolvers.patient_list import PatientPosition, write_cursor
from tests.conftest import GENEROUS_LIMITS, fresh_database
from tests.doors import Service
from tests.waiting import wait_until

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)

PAGE = """query ($first: Int, $after: String, $where: PatientFilter) {
  patientList(first: $first, after: $after, where: $where) {
    edges { cursor node { id } }
    nodes { id brandId externalIds createdAt }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  }
}"""

Arguments = dict[str, Any]


class Clinic:
    """A service on a database of its own, so that its lists are known in full."""

    def __init__(self, service: Service, connection: asyncpg.Connection) -> None:
        self.service = service
        self.connection = connection

    async def patient(self, patient_id: str, at: datetime, brand_id: str = "loop") -> None:
        """Register a patient at a given time."""
        await self.connection.execute(
            "INSERT INTO patient_graph.patients (id, brand_id, created_at) VALUES ($1, $2, $3)",
            patient_id,
            brand_id,
            at,
        )

    async def page(self, token: str = "reader", **arguments: Any) -> dict[str, Any]:
        """Read one page."""
        body = await self.service.graphql(PAGE, arguments, token=token)
        assert "errors" not in body, body
        page: dict[str, Any] = body["data"]["patientList"]
        return page

    async def violation(self, **arguments: Any) -> dict[str, Any]:
        """Request a page that is refused; return the violation."""
        (error,) = (await self.service.graphql(PAGE, arguments, token="reader"))["errors"]
        assert (error["extensions"]["code"], error["extensions"]["recorded"]) == ("validation_error", "no")
        (broken,) = error["extensions"]["violations"]
        assert isinstance(broken, dict)
        return broken


@pytest.fixture(params=[False, True], ids=["one server", "cluster"])
async def clinic(request: pytest.FixtureRequest, server_url: str) -> AsyncIterator[Clinic]:
    async def verify(token: str) -> Caller:
        if token == "reader of loopbio":
            return Caller("reader", frozenset({"read:patients"}), brand_id="loopbio")
        if token == "without a brand":
            return Caller("machine", frozenset({"admin:*"}))
        scopes = "read:patients+read:encounters" if token == "reader" else token
        return Caller("reader", frozenset(scopes.split("+")), brand_id="loop")

    url = await fresh_database(server_url)
    connection = await asyncpg.connect(url)
    settings = Settings(database_url=url, database_cluster=request.param, **GENEROUS_LIMITS)
    async with Service.running(settings, verify=verify) as service:
        yield Clinic(service, connection)
    await connection.close()


def ids(page: dict[str, Any]) -> list[str]:
    return [node["id"] for node in page["nodes"]]


async def test_patients_are_listed_by_time_then_id_both_descending(clinic: Clinic) -> None:
    for patient_id, minute in (("b", 0), ("a", 0), ("c", 1), ("é 🩺", 1), ("d", 2)):
        await clinic.patient(patient_id, NOON + minute * MINUTE)

    page = await clinic.page()

    assert ids(page) == ["d", *sorted(["c", "é 🩺"], reverse=True), "b", "a"]
    assert page["nodes"][0] == {
        "id": "d", "brandId": "loop", "externalIds": {}, "createdAt": "2026-01-31T12:02:00Z",
    }  # fmt: skip
    assert [edge["node"]["id"] for edge in page["edges"]] == ids(page)


async def test_pages_show_each_patient_once_and_in_order(clinic: Clinic) -> None:
    for number in range(25):
        await clinic.patient(f"patient-{number:02}", NOON + number // 3 * timedelta(microseconds=1))
    everything = ids(await clinic.page(first=100))

    shown, after = [], None
    while True:
        page = await clinic.page(first=4, after=after)
        shown += ids(page)
        info = page["pageInfo"]
        assert (info["startCursor"], info["endCursor"]) == (page["edges"][0]["cursor"], page["edges"][-1]["cursor"])
        assert info["hasPreviousPage"] is (after is not None)
        after = info["endCursor"]
        if not info["hasNextPage"]:
            break

    assert shown == everything
    assert len(shown) == 25
    assert len(ids(await clinic.page())) == 20


async def test_patients_registered_while_paging_are_neither_skipped_nor_repeated(clinic: Clinic) -> None:
    for number in range(6):
        await clinic.patient(f"patient-{number}", NOON + number * MINUTE)
    first = await clinic.page(first=3)

    await clinic.patient("new", NOON + timedelta(hours=1))
    second = await clinic.page(first=3, after=first["pageInfo"]["endCursor"])

    assert ids(first) + ids(second) == [f"patient-{number}" for number in reversed(range(6))]


async def test_a_filter_includes_its_beginning_and_excludes_its_end(clinic: Clinic) -> None:
    for number in range(4):
        await clinic.patient(f"patient-{number}", NOON + number * MINUTE)
    one, three = "2026-01-31T13:01:00+01:00", "2026-01-31T12:03:00Z"

    assert ids(await clinic.page(where={"createdFrom": one})) == ["patient-3", "patient-2", "patient-1"]
    assert ids(await clinic.page(where={"createdUntil": three})) == ["patient-2", "patient-1", "patient-0"]
    assert ids(await clinic.page(where={"createdFrom": one, "createdUntil": three})) == ["patient-2", "patient-1"]
    assert ids(await clinic.page(where={"createdFrom": three, "createdUntil": one})) == []
    assert len(ids(await clinic.page(where={}))) == 4


async def test_an_empty_page_has_no_cursors(clinic: Clinic) -> None:
    await clinic.patient("patient", NOON)

    assert (await clinic.page(where={"createdFrom": "2030-01-01T00:00:00Z"}))["pageInfo"] == {
        "hasNextPage": False, "hasPreviousPage": False, "startCursor": None, "endCursor": None,
    }  # fmt: skip
    assert (await clinic.page(first=0))["pageInfo"]["hasNextPage"] is True


async def test_patients_of_another_brand_are_not_listed(clinic: Clinic) -> None:
    await clinic.patient("ours", NOON)
    await clinic.patient("theirs", NOON, "loopbio")

    assert ids(await clinic.page()) == ["ours"]
    assert ids(await clinic.page(token="reader of loopbio")) == ["theirs"]


async def test_a_cursor_is_valid_for_its_filter_and_brand_only(clinic: Clinic) -> None:
    for number in range(3):
        await clinic.patient(f"patient-{number}", NOON + number * MINUTE)
    cursor = (await clinic.page(first=1))["pageInfo"]["endCursor"]
    filtered = await clinic.violation(after=cursor, where={"createdFrom": "2026-01-01T00:00:00Z"})
    refused = await clinic.service.graphql(PAGE, {"after": cursor}, token="reader of loopbio")

    assert ids(await clinic.page(after=cursor)) == ["patient-1", "patient-0"]
    assert (filtered["pointer"], filtered["rule"]) == ("/after", "cursor")
    assert refused["errors"][0]["extensions"]["violations"][0]["rule"] == "cursor"


async def test_a_text_that_is_no_cursor_is_refused(clinic: Clinic) -> None:
    scope = f"loop\npatients\n{PatientFilter().model_dump_json()}"
    await clinic.patient("patient", NOON)

    forged = [write_cursor(PatientPosition(NOON, patient_id), scope) for patient_id in ("a\x00b", "", "x" * 201)]
    for cursor in ("", "x", "é", "A" * 44, "A" * 10_000, *forged):
        broken = await clinic.violation(after=cursor)
        assert (broken["pointer"], broken["rule"]) == ("/after", "cursor")
    # A cursor is opaque, but no secret: a made one is a position like any other.
    made = write_cursor(PatientPosition(datetime.max.replace(tzinfo=UTC), "patient"), scope)
    assert ids(await clinic.page(after=made)) == ["patient"]


@pytest.mark.parametrize(
    ("arguments", "pointer", "rule"),
    [
        ({"first": -1}, "/first", "page_size"),
        ({"first": 101}, "/first", "page_size"),
        ({"where": None}, "/where", "null"),
        ({"where": {"createdFrom": None}}, "/where/createdFrom", "null"),
        ({"where": {"createdFrom": "yesterday"}}, "/where/createdFrom", "date_time"),
        ({"where": {"createdUntil": "2026-01-31T12:00:00"}}, "/where/createdUntil", "offset"),
    ],
)
async def test_an_argument_that_breaks_a_rule_is_refused(
    clinic: Clinic, arguments: Arguments, pointer: str, rule: str
) -> None:
    broken = await clinic.violation(**arguments)

    assert (broken["pointer"], broken["rule"]) == (pointer, rule)


async def test_null_for_first_and_after_counts_as_left_out(clinic: Clinic) -> None:
    await clinic.patient("patient", NOON)

    assert ids(await clinic.page(first=None, after=None)) == ["patient"]


@pytest.mark.parametrize("scope", ["read:encounters", "write:encounters", "write:patients", "read:schema"])
async def test_the_list_needs_the_scope_to_read_patients(clinic: Clinic, scope: str) -> None:
    (error,) = (await clinic.service.graphql(PAGE, token=scope))["errors"]

    assert (error["extensions"]["code"], error["extensions"]["scopes"]) == ("insufficient_scope", ["read:patients"])


async def test_the_list_needs_a_brand(clinic: Clinic) -> None:
    (error,) = (await clinic.service.graphql(PAGE, token="without a brand"))["errors"]
    named = await clinic.service.graphql(PAGE, token="without a brand", headers={"x-brand-id": "loop"})

    assert error["extensions"]["code"] == "forbidden"
    assert named["data"]["patientList"]["nodes"] == []


async def test_the_encounters_of_a_page_are_read_by_one_statement(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        await clinic.patient(f"patient-{number}", NOON + number * MINUTE)
        await clinic.connection.execute(
            "INSERT INTO patient_graph.encounters (patient_id, id, brand_id, encounter_type)"
            " VALUES ($1, gen_random_uuid(), 'loop', 'lab')",
            f"patient-{number}",
        )
    sent: list[str] = []
    original = PoolConnection.fetch

    async def counted(self, statement, **values):
        if "patient_graph.patients" in statement.text:
            sent.append(statement.text)
        return await original(self, statement, **values)

    monkeypatch.setattr(PoolConnection, "fetch", counted)
    query = """{ patientList {
      nodes { externalIds createdAt encounters(first: 2) { nodes { patient { externalIds } } } } edges { node { id } }
    } }"""

    body = await clinic.service.graphql(query, token="reader")

    assert [len(node["encounters"]["nodes"]) for node in body["data"]["patientList"]["nodes"]] == [1] * 5
    # The page of patients, and their encounters.
    assert len(sent) == 2


async def test_a_page_has_one_audit_entry_that_names_its_patients(clinic: Clinic) -> None:
    for number in range(3):
        await clinic.patient(f"patient-{number}", NOON + number * MINUTE)

    await clinic.page(first=2)
    await clinic.page(where={"createdFrom": "2030-01-01T00:00:00Z"})
    await clinic.page(first=1)

    async def entries() -> list[Any]:
        rows = await clinic.connection.fetch(
            "SELECT patient_id, brand_id, actor_id, details::text FROM patient_graph.audit_log"
            " WHERE event_type = 'patient_graph.patients.read' ORDER BY occurred_at, id"
        )
        return [(row["patient_id"], row["brand_id"], row["actor_id"], json.loads(row["details"])) for row in rows]

    async def both_are_written() -> bool:
        return len(await entries()) >= 2

    await wait_until(both_are_written)
    # An empty page shows no patient, and has no entry.
    assert await entries() == [
        ("", "loop", "reader", {"patients": ["patient-2", "patient-1"]}),
        ("", "loop", "reader", {"patients": ["patient-2"]}),
    ]


async def test_the_cost_of_a_page_is_its_size_times_the_cost_of_a_patient(clinic: Clinic) -> None:
    async def cost(query: str) -> int:
        sent = {"query": query, "variables": {"n": 7}, "extensions": {"cost": True}}
        answer = await clinic.service.rest("POST", "/graphql", token="reader", json=sent)
        requested: int = answer.json()["extensions"]["cost"]["requested"]
        # Every shard of a cluster is asked.
        return requested - clinic.service.services.page_limits.shards

    assert await cost("{ patientList { nodes { id } } }") == 20 * (1 + 1)
    assert await cost("{ patientList(first: 100) { nodes { id } } }") == 100 * (1 + 1)
    assert await cost("query ($n: Int) { patientList(first: $n) { nodes { encounters { nodes { id } } } } }") == 7 * (
        1 + 1 + 20 * (1 + 1)
    )
    found = 'patientsByExternalId(system: "mrn", value: "7") { id }'
    assert await cost(f"{{ {found} }}") == 20
    assert await cost('{ encountersByExternalId(system: "mrn", value: "7") { patient { id } } }') == 20 * (1 + 1)


async def test_registrations_during_a_traversal_leave_each_patient_shown_once(clinic: Clinic) -> None:
    for number in range(30):
        await clinic.patient(f"old-{number:02}", NOON + number * MINUTE)
    register = """mutation ($input: RegisterPatientInput!) {
      registerPatient(input: $input) { ... on PatientRegistered { patient { id } } } }"""

    async def registrations() -> None:
        for _ in range(20):
            members = {"brandId": "loop", "id": f"new-{uuid4()}"}
            await clinic.service.graphql(register, {"input": members}, token="write:patients")

    async def traversal() -> list[str]:
        shown: list[str] = []
        after = None
        while True:
            page = await clinic.page(first=3, after=after)
            shown += ids(page)
            if not page["pageInfo"]["hasNextPage"]:
                return shown
            after = page["pageInfo"]["endCursor"]

    _, shown = await asyncio.gather(registrations(), traversal())

    assert [each for each in shown if each.startswith("old-")] == [f"old-{n:02}" for n in reversed(range(30))]
    assert len(set(shown)) == len(shown)
