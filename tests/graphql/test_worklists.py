"""Worklists: pages, totals and counts of a brand's encounters."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import text

from gateway.settings import Settings
from models import EncounterOrder
from resolvers.access import Caller
from resolvers.encounters import worklists
from resolvers.sql import Statement
from schema.plans.query_plan import Plan
from schema.plans.selection import Unplannable
from tests.cast import Cast
from tests.conftest import GENEROUS_LIMITS
from tests.doors import Service
from tests.waiting import wait_until

START = datetime(2026, 11, 30, 8, tzinfo=UTC)
PROVIDERS = sorted(uuid4() for _ in range(3))
SCOPES = frozenset({"manage:encounters", "read:patients"})

PAGE = """query ($first: Int, $after: String, $last: Int, $before: String, $where: EncountersFilter,
  $orderBy: EncounterOrder! = CREATED_AT_DESC) {
  encounters(first: $first, after: $after, last: $last, before: $before, where: $where, orderBy: $orderBy) {
    totalCount totalCountIsExact edges { cursor node { id } }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  }
}"""


@pytest.fixture(scope="module")
async def clinic(database_url: str) -> AsyncIterator[Service]:
    """A service whose tokens are the names of brands."""

    async def verify(token: str) -> Caller:
        return Caller("board", SCOPES, "person", brand_id=token)

    async with Service.running(Settings(database_url=database_url, **GENEROUS_LIMITS), verify=verify) as running:
        yield running


@contextmanager
def executed() -> Iterator[None]:
    """Make the executor serve queries."""

    async def decline(*_: object) -> bytes:
        raise Unplannable

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "run", decline)
        yield


class Brand:
    """A brand of its own, whose encounters are inserted directly."""

    def __init__(self, service: Service, cast: Cast) -> None:
        self.id = f"brand-{uuid4().hex[:10]}"
        self.service = service
        self.cast = cast

    async def add(self, **members: Any) -> UUID:
        """Insert an encounter, of a patient of its own unless one is given, and return its id."""
        members.setdefault("patient_id", None)
        row = {"id": uuid4(), "brand_id": self.id, "encounter_type": "lab", **members}
        row["patient_id"] = row["patient_id"] or await self.cast.patient(self.id)
        names = ", ".join(row)
        places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
        await self.cast.connection.execute(
            f"INSERT INTO patient_graph.encounters ({names}) VALUES ({places})", *row.values()
        )
        return row["id"]

    async def ask(self, query: str = PAGE, **variables: Any) -> dict[str, Any]:
        """Return the body of the response to a query of a caller of the brand."""
        return await self.service.graphql(query, variables, token=self.id)

    async def page(self, **arguments: Any) -> dict[str, Any]:
        body = await self.ask(**arguments)
        assert "errors" not in body, body
        return body["data"]["encounters"]

    async def ids(self, **arguments: Any) -> list[UUID]:
        """Return the ids of a page."""
        return [UUID(edge["node"]["id"]) for edge in (await self.page(**arguments))["edges"]]

    async def rules(self, **arguments: Any) -> set[tuple[str, str]]:
        """Return the code and the rules of a refusal."""
        (error,) = (await self.ask(**arguments))["errors"]
        violations = error["extensions"].get("violations", [])
        return {(error["extensions"]["code"], violation["rule"]) for violation in violations}


@pytest.fixture
def brand(clinic: Service, cast: Cast) -> Brand:
    return Brand(clinic, cast)


@pytest.fixture
async def visits(brand: Brand) -> list[asyncpg.Record]:
    """Forty encounters with equal and missing values in each sort key."""
    for number in range(40):
        await brand.add(
            scheduled_at=None if number % 4 == 0 else START + timedelta(hours=number % 7),
            provider_id=None if number % 5 == 0 else PROVIDERS[number % 3],
            created_at=START + timedelta(minutes=number % 6),
            updated_at=START + timedelta(minutes=number % 9),
            status=("scheduled", "in_progress", "completed")[number % 3],
            encounter_type=("lab", "telehealth")[number % 2],
        )
    rows = await brand.cast.connection.fetch(
        "SELECT * FROM patient_graph.encounters WHERE brand_id = $1 ORDER BY id", brand.id
    )
    return list(rows)


def sorted_by(order: EncounterOrder, rows: list[Any]) -> list[UUID]:
    """Return the ids in an order: null last, ties by id in the same direction."""
    name = order.name
    columns = {
        "CREATED_AT": ["created_at"],
        "SCHEDULED_AT": ["scheduled_at"],
        "UPDATED_AT": ["updated_at"],
        "PROVIDER_THEN_SCHEDULED_AT": ["provider_id", "scheduled_at"],
    }[name.rpartition("_")[0]]
    found = sorted(rows, key=lambda row: row["id"].bytes, reverse=name.endswith("DESC"))
    for column in reversed(columns):
        has = [row for row in found if row[column] is not None]
        has.sort(key=lambda row: row[column], reverse=name.endswith("DESC"))
        found = has + [row for row in found if row[column] is None]
    return [row["id"] for row in found]


ORDERS = list(EncounterOrder)


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.name)
@pytest.mark.parametrize("by", ["plan", "executor"])
async def test_pages_in_both_directions_show_the_whole_list_in_its_order(
    brand: Brand, visits: list[asyncpg.Record], order: EncounterOrder, by: str
) -> None:
    expected = sorted_by(order, visits)
    forward: list[UUID] = []
    backward: list[UUID] = []
    with executed() if by == "executor" else nullcontext():
        after = before = None
        while True:
            page = await brand.page(first=7, after=after, orderBy=order.name)
            forward += [UUID(edge["node"]["id"]) for edge in page["edges"]]
            after = page["pageInfo"]["endCursor"]
            if not page["pageInfo"]["hasNextPage"]:
                break
        while True:
            page = await brand.page(last=7, before=before, orderBy=order.name)
            backward = [UUID(edge["node"]["id"]) for edge in page["edges"]] + backward
            before = page["pageInfo"]["startCursor"]
            if not page["pageInfo"]["hasPreviousPage"]:
                break

    assert forward == backward == expected
    assert (page["totalCount"], page["totalCountIsExact"]) == (40, True)


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.name)
async def test_a_patients_list_has_the_same_orders(brand: Brand, order: EncounterOrder) -> None:
    patient_id = await brand.cast.patient(brand.id)
    for number in range(6):
        scheduled = None if number == 2 else START + timedelta(hours=number % 3)
        await brand.add(patient_id=patient_id, scheduled_at=scheduled, created_at=START + timedelta(hours=-number))
    rows = await brand.cast.rows(patient_id)
    query = """query ($id: ID!, $after: String) { patient(id: $id) {
      encounters(first: 2, after: $after, orderBy: ORDER) { nodes { id } pageInfo { endCursor hasNextPage } }
    } }""".replace("ORDER", order.name)

    shown, after, more = [], None, True
    while more:
        body = await brand.ask(query, id=patient_id, after=after)
        page = body["data"]["patient"]["encounters"]
        shown += [UUID(node["id"]) for node in page["nodes"]]
        after, more = page["pageInfo"]["endCursor"], page["pageInfo"]["hasNextPage"]

    assert shown == sorted_by(order, rows)


FILTERS: dict[str, tuple[dict[str, Any], Callable[[Any], bool]]] = {
    "type": ({"encounterType": ["LAB"]}, lambda row: row["encounter_type"] == "lab"),
    "one status": ({"status": ["SCHEDULED"]}, lambda row: row["status"] == "scheduled"),
    "two statuses": ({"status": ["SCHEDULED", "COMPLETED"]}, lambda row: row["status"] != "in_progress"),
    "no status": ({"status": []}, lambda _: False),
    "one provider": ({"providerId": [str(PROVIDERS[0])]}, lambda row: row["provider_id"] == PROVIDERS[0]),
    "two providers": (
        {"providerId": [str(each).upper() for each in PROVIDERS[:2]]},
        lambda row: row["provider_id"] in PROVIDERS[:2],
    ),
    "a day": (
        {"scheduledFrom": "2026-11-30T09:00:00Z", "scheduledUntil": "2026-11-30T11:00:00Z"},
        lambda row: row["scheduled_at"] and 9 <= row["scheduled_at"].hour < 11,
    ),
    "created": ({"createdFrom": "2026-11-30T08:03:00Z"}, lambda row: row["created_at"].minute >= 3),
    "updated": ({"updatedUntil": "2026-11-30T08:03:00Z"}, lambda row: row["updated_at"].minute < 3),
    "started": ({"startedFrom": "2026-11-30T08:03:00Z"}, lambda _: False),
    "a provider's day": (
        {"providerId": [str(PROVIDERS[1])], "scheduledFrom": "2026-11-30T10:00:00Z", "status": ["SCHEDULED"]},
        lambda row: (
            row["provider_id"] == PROVIDERS[1]
            and row["scheduled_at"]
            and row["scheduled_at"].hour >= 10
            and row["status"] == "scheduled"
        ),
    ),
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("order", ["CREATED_AT_DESC", "SCHEDULED_AT_DESC", "PROVIDER_THEN_SCHEDULED_AT_ASC"])
async def test_every_criterion_narrows_the_list(
    brand: Brand, visits: list[asyncpg.Record], name: str, order: str
) -> None:
    where, matches = FILTERS[name]
    expected = sorted_by(EncounterOrder[order], [row for row in visits if matches(row)])

    page = await brand.page(first=100, where=where, orderBy=order)
    with executed():
        shown = await brand.ids(first=100, where=where, orderBy=order)

    assert [UUID(edge["node"]["id"]) for edge in page["edges"]] == shown == expected
    assert page["totalCount"] == len(expected)


async def test_a_filter_by_patient_shows_their_encounters_only(brand: Brand, visits: list[asyncpg.Record]) -> None:
    chosen = [visits[3], visits[8]]

    shown = await brand.ids(where={"patientId": [row["patient_id"] for row in chosen]}, orderBy="CREATED_AT_ASC")

    assert shown == sorted_by(EncounterOrder.CREATED_AT_ASC, chosen)


@pytest.mark.parametrize("order", ["CREATED_AT_DESC", "SCHEDULED_AT_ASC", "PROVIDER_THEN_SCHEDULED_AT_ASC"])
async def test_concurrent_writes_skip_and_repeat_no_row_that_stands_still(
    database_url: str, brand: Brand, visits: list[asyncpg.Record], order: str
) -> None:
    stop = asyncio.Event()
    writer = await asyncpg.connect(database_url)

    async def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            patient_id = f"moving-{uuid4().hex}"
            await writer.execute("INSERT INTO patient_graph.patients VALUES ($1, $2)", patient_id, brand.id)
            await writer.execute(
                "INSERT INTO patient_graph.encounters (patient_id, id, brand_id, encounter_type, scheduled_at,"
                " created_at, provider_id) VALUES ($1, $2, $3, 'other', $4, $5, $6)",
                *(patient_id, uuid4(), brand.id, START + timedelta(hours=number % 9, seconds=number)),
                *(START + timedelta(minutes=number % 7, seconds=number % 60), PROVIDERS[number % 3]),
            )
            await writer.execute(
                "UPDATE patient_graph.encounters SET status = 'cancelled', scheduled_at = $2, updated_at = now()"
                " WHERE brand_id = $1 AND encounter_type = 'other'",
                brand.id,
                START + timedelta(hours=(number + 3) % 9),
            )

    task = asyncio.create_task(write())
    still = sorted_by(EncounterOrder[order], visits)
    try:
        for _ in range(5):
            seen, after, more = [], None, True
            while more:
                page = await brand.page(first=6, after=after, orderBy=order)
                seen += [UUID(edge["node"]["id"]) for edge in page["edges"]]
                after, more = page["pageInfo"]["endCursor"], page["pageInfo"]["hasNextPage"]
            assert [each for each in seen if each in set(still)] == still
    finally:
        stop.set()
        await task
        await writer.close()


# Refusals


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"where": {"status": None}}, "null"),
        ({"where": None}, "null"),
        ({"where": {"providerId": ["nobody"]}}, "uuid"),
        ({"where": {"patientId": [f"p{number}" for number in range(101)]}}, "too_many"),
        ({"where": {"scheduledFrom": "2026-11-30"}}, "date_time"),
        ({"orderBy": "BY_NAME"}, "enum"),
        ({"first": 101}, "page_size"),
    ],
)
async def test_an_invalid_argument_is_refused_with_its_rule(brand: Brand, arguments: dict[str, Any], rule: str) -> None:
    assert await brand.rules(**arguments) == {("validation_error", rule)}
    with executed():
        assert await brand.rules(**arguments) == {("validation_error", rule)}


async def test_a_cursor_is_valid_for_its_order_filter_and_brand_only(
    brand: Brand, visits: list[asyncpg.Record], cast: Cast
) -> None:
    cursor = (await brand.page(first=2, orderBy="SCHEDULED_AT_ASC"))["pageInfo"]["endCursor"]
    other = Brand(brand.service, cast)

    assert len(await brand.ids(after=cursor, orderBy="SCHEDULED_AT_ASC", first=100)) == len(visits) - 2
    for refused in (
        brand.rules(after=cursor),
        brand.rules(after=cursor, orderBy="SCHEDULED_AT_DESC"),
        brand.rules(after=cursor, orderBy="SCHEDULED_AT_ASC", where={"status": ["SCHEDULED"]}),
        other.rules(after=cursor, orderBy="SCHEDULED_AT_ASC"),
    ):
        assert await refused == {("validation_error", "cursor")}


async def test_a_list_shows_the_callers_brand_only(brand: Brand, visits: list[asyncpg.Record], cast: Cast) -> None:
    other = Brand(brand.service, cast)
    own = await other.add()

    assert await other.ids(first=100) == [own]
    assert await other.ids(first=100, where={"patientId": [visits[0]["patient_id"]]}) == []


# The audit log


@pytest.mark.parametrize("by", ["plan", "executor"])
async def test_several_lists_of_a_request_are_audited_by_one_entry(brand: Brand, by: str) -> None:
    first, second = [await brand.cast.patient(brand.id) for _ in range(2)]
    for patient_id in (first, second):
        await brand.add(patient_id=patient_id)

    with executed() if by == "executor" else nullcontext():
        await brand.ask("{ a: encounters(first: 1) { nodes { id } } b: encounters(last: 1) { nodes { id } } }")
        await brand.ask("{ encounters { totalCount } viewer { brandId } }")

    (entry,) = await read_entries(brand)
    details = json.loads(entry["details"])
    assert (details["encounters"], sorted(details["patients"])) == (2, sorted([first, second]))


async def read_entries(brand: Brand) -> list[asyncpg.Record]:
    """Return the audit entries of reads in a brand, when there are any."""

    async def entries() -> list[asyncpg.Record]:
        return await brand.cast.connection.fetch(
            "SELECT * FROM patient_graph.audit_log WHERE brand_id = $1 AND event_type LIKE '%read'", brand.id
        )

    await wait_until(entries)
    return await entries()


@pytest.mark.parametrize("by", ["plan", "executor"])
async def test_a_page_is_audited_by_one_entry_that_names_its_patients(brand: Brand, by: str) -> None:
    first, second = [await brand.cast.patient(brand.id) for _ in range(2)]
    for patient_id in (first, second, first):
        await brand.add(patient_id=patient_id)
    await brand.add()  # on the next page

    with executed() if by == "executor" else nullcontext():
        await brand.page(first=3, orderBy="CREATED_AT_ASC")

    (entry,) = await read_entries(brand)
    assert (entry["patient_id"], entry["entity_type"], entry["actor_id"]) == ("", "worklist", "person")
    details = json.loads(entry["details"])
    assert details["encounters"] == 3
    assert sorted(details["patients"]) == sorted({first, second})


# Totals and counts


@pytest.fixture(scope="module")
async def large(clinic: Service, database_url: str) -> AsyncIterator[Brand]:
    """A brand with 10,001 encounters."""
    connection = await asyncpg.connect(database_url)
    brand = Brand(clinic, Cast(connection))
    patient_id = await brand.cast.patient(brand.id)
    await connection.execute(
        "INSERT INTO patient_graph.encounters (patient_id, id, brand_id, encounter_type, scheduled_at, provider_id)"
        " SELECT $1, gen_random_uuid(), $2, 'lab', now() + number * interval '1 minute',"
        " ('00000000-0000-0000-0000-' || lpad((number % 501)::text, 12, '0'))::uuid"
        " FROM generate_series(1, 10001) number",
        *(patient_id, brand.id),
    )
    yield brand
    await connection.close()


@pytest.mark.parametrize("by", ["plan", "executor"])
async def test_a_total_is_exact_up_to_ten_thousand(large: Brand, by: str) -> None:
    query = """{ encounters(first: 1) { totalCount totalCountIsExact }
      exact: encounters(first: 1, where: {providerId: ["00000000-0000-0000-0000-000000000001"]}) {
        totalCount totalCountIsExact } }"""

    with executed() if by == "executor" else nullcontext():
        body = await large.ask(query)

    assert body["data"]["encounters"] == {"totalCount": 10_000, "totalCountIsExact": False}
    assert body["data"]["exact"] == {"totalCount": 20, "totalCountIsExact": True}


async def test_more_than_500_groups_are_cut_and_the_response_says_so(large: Brand) -> None:
    body = await large.ask(
        "{ all: encounterCounts(by: PROVIDER_ID) { key count } encounterCounts(by: STATUS) { key } }"
    )

    assert len(body["data"]["all"]) == 500
    assert [group["count"] for group in body["data"]["all"][:481]] == [20] * 481
    assert body["extensions"] == {"cut": ["all"]}


async def test_a_list_that_takes_too_long_is_refused_with_the_remedy(
    database_url: str, brand: Brand, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def verify(token: str) -> Caller:
        return Caller("board", SCOPES, "person", brand_id=token)

    slow = Statement(text("SELECT pg_sleep(20)::text AS key, 1 AS count WHERE CAST(:brand_id AS text) IS NOT NULL"))
    monkeypatch.setattr(worklists, "_groups", lambda *_: slow)
    settings = Settings(database_url=database_url, worklist_seconds=0.5, **GENEROUS_LIMITS)
    async with Service.running(settings, verify=verify) as hurried:
        body = await hurried.graphql("{ encounterCounts(by: STATUS) { key } }", token=brand.id)

    (error,) = body["errors"]
    assert error["extensions"]["code"] == "too_broad"
    assert error["extensions"]["recorded"] == "no"
    assert "scheduledFrom" in error["message"]


COUNTS = """query ($by: EncounterDimension!, $zone: String! = "UTC", $where: EncountersFilter) {
  encounterCounts(by: $by, timeZone: $zone, where: $where) { key count } }"""


async def counts(brand: Brand, by: str, **variables: Any) -> dict[str | None, int]:
    body = await brand.ask(COUNTS, by=by, **variables)
    assert "errors" not in body, body
    return {group["key"]: group["count"] for group in body["data"]["encounterCounts"]}


async def test_counts_by_each_dimension(brand: Brand, visits: list[asyncpg.Record]) -> None:
    assert await counts(brand, "STATUS") == {"SCHEDULED": 14, "IN_PROGRESS": 13, "COMPLETED": 13}
    assert await counts(brand, "ENCOUNTER_TYPE", where={"status": ["SCHEDULED"]}) == {"LAB": 7, "TELEHEALTH": 7}
    assert sum((await counts(brand, "PROVIDER_ID")).values()) == len(visits)
    assert (await counts(brand, "PROVIDER_ID"))[None] == 8
    assert await counts(brand, "SCHEDULED_DAY") == {"2026-11-30": 30, None: 10}
    assert await counts(brand, "CREATED_DAY", zone="Pacific/Kiritimati") == {"2026-11-30": 40}


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-11-30", 24)])
async def test_a_day_of_23_or_25_hours_is_one_day(brand: Brand, day: str, hours: int) -> None:
    # Midnight in Berlin, by its offset before the change of the clocks.
    midnight = datetime.fromisoformat(f"{day}T00:00:00+0{2 if day == '2026-10-25' else 1}:00")
    for hour in range(-1, hours + 1):
        await brand.add(scheduled_at=midnight + timedelta(hours=hour))

    assert (await counts(brand, "SCHEDULED_DAY", zone="Europe/Berlin"))[day] == hours


async def test_an_unknown_time_zone_is_refused(brand: Brand) -> None:
    for zone in ("CEST", "Mars/Olympus", "Foo/Bar+3", ""):
        for by in ("CREATED_DAY", "STATUS"):
            assert await brand.rules(query=COUNTS, by=by, zone=zone) == {("validation_error", "time_zone")}


async def test_a_time_zone_of_null_is_refused_with_its_rule(brand: Brand) -> None:
    query = "query ($zone: String) { encounterCounts(by: CREATED_DAY, timeZone: $zone) { key } }"

    assert await brand.rules(query=query, zone=None) == {("validation_error", "null")}
    assert (await brand.ask(query))["data"] == {"encounterCounts": []}


# Turns


async def test_a_caller_waits_for_its_own_worklists_and_others_do_not(
    database_url: str, brand: Brand, cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def verify(token: str) -> Caller:
        brand_id, user = token.split("/")
        return Caller(f"board of {brand_id}", SCOPES, user, brand_id=brand_id)

    groups = worklists._groups
    slow = Statement(text("SELECT pg_sleep(0.8)::text AS key, 1 AS count FROM (SELECT CAST(:brand_id AS text)) brand"))
    monkeypatch.setattr(worklists, "_groups", lambda by, parts: slow if by == "created_day" else groups(by, parts))
    monkeypatch.setattr(worklists, "_DAYS", {worklists.EncounterDimension.SCHEDULED_DAY: "scheduled_at"})
    other = Brand(brand.service, cast)
    settings = Settings(database_url=database_url, worklist_seconds=1.0, **GENEROUS_LIMITS)
    async with Service.running(settings, verify=verify) as turns:

        async def ask(token: str, by: str) -> tuple[str | None, float]:
            started = time.perf_counter()
            body = await turns.graphql(f"{{ encounterCounts(by: {by}) {{ key }} }}", token=token)
            code = body["errors"][0]["extensions"]["code"] if "errors" in body else None
            return code, time.perf_counter() - started

        await ask(f"{brand.id}/one", "STATUS")  # opens a connection
        own = asyncio.gather(*(ask(f"{brand.id}/one", "CREATED_DAY") for _ in range(3)))
        await asyncio.sleep(0.1)
        colleague, stranger = await asyncio.gather(ask(f"{brand.id}/two", "STATUS"), ask(f"{other.id}/one", "STATUS"))
        ended = sorted(await own, key=lambda each: each[1])

    assert (colleague[0], stranger[0]) == (None, None)
    assert max(colleague[1], stranger[1]) < 0.6
    # The second waits for the first; the third would wait longer than a worklist may take.
    assert [code for code, _ in ended] == [None, "temporarily_unavailable", None]
