"""`patient.encounters`: Relay pages and cursors, filters, and stable paging during concurrent recordings."""

import asyncio
import base64
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.cast import Cast
from tests.doors import Service
from tests.waiting import wait_until

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)

PAGE = """query ($id: ID!, $first: Int, $after: String, $last: Int, $before: String, $where: EncounterFilter) {
  patient(id: $id) {
    encounters(first: $first, after: $after, last: $last, before: $before, where: $where) {
      totalCount
      edges { cursor node { id } }
      nodes { id }
      pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
    }
  }
}"""


async def encounter(cast: Cast, patient_id: str, at: datetime = NOON, **columns: Any) -> str:
    """Insert an encounter directly into the table with the given time of recording; return its id."""
    row = {"patient_id": patient_id, "id": uuid4(), "brand_id": "loop", "encounter_type": "lab", "created_at": at}
    row |= {"updated_at": at} | columns
    names, places = ", ".join(row), ", ".join(f"${place}" for place in range(1, len(row) + 1))
    await cast.connection.execute(f"INSERT INTO patient_graph.encounters ({names}) VALUES ({places})", *row.values())
    return str(row["id"])


async def patient_with_25_encounters(cast: Cast) -> tuple[str, list[str]]:
    """Register a patient with 25 encounters, at most three at one instant; return the ids, newest first."""
    patient_id = await cast.patient()
    placed = []
    for number in range(25):
        at = NOON + timedelta(microseconds=number // 3)
        placed.append((at, UUID(await encounter(cast, patient_id, at))))
    return patient_id, [str(each) for _, each in sorted(placed, reverse=True)]


async def page(service: Service, patient_id: str, *, token: str = "dev", **arguments: Any) -> dict[str, Any]:
    """Read one page."""
    body = await service.graphql(PAGE, {"id": patient_id, **arguments}, token=token)
    assert "errors" not in body, body
    connection: dict[str, Any] = body["data"]["patient"]["encounters"]
    return connection


def ids(connection: Mapping[str, Any]) -> list[str]:
    return [node["id"] for node in connection["nodes"]]


async def violation(service: Service, patient_id: str, **arguments: Any) -> dict[str, Any]:
    """Request a page that is refused; return the violation."""
    body = await service.graphql(PAGE, {"id": patient_id, **arguments})
    (error,) = body["errors"]
    assert (error["extensions"]["code"], error["extensions"]["recorded"]) == ("validation_error", "no")
    (broken,) = error["extensions"]["violations"]
    assert isinstance(broken, dict)
    return broken


# Pages


async def test_encounters_are_listed_by_time_then_id_both_descending(service: Service, cast: Cast) -> None:
    patient_id, newest_first = await patient_with_25_encounters(cast)

    assert ids(await page(service, patient_id, first=100)) == newest_first


async def test_a_page_has_20_encounters_by_default(service: Service, cast: Cast) -> None:
    patient_id, newest_first = await patient_with_25_encounters(cast)

    assert ids(await page(service, patient_id)) == newest_first[:20]


async def test_edges_nodes_and_page_info_cursors_agree(service: Service, cast: Cast) -> None:
    patient_id, newest_first = await patient_with_25_encounters(cast)

    connection = await page(service, patient_id, first=4)

    assert [edge["node"]["id"] for edge in connection["edges"]] == ids(connection) == newest_first[:4]
    assert connection["pageInfo"]["startCursor"] == connection["edges"][0]["cursor"]
    assert connection["pageInfo"]["endCursor"] == connection["edges"][-1]["cursor"]
    assert len({edge["cursor"] for edge in connection["edges"]}) == 4


@pytest.mark.parametrize("size", [1, 2, 3, 5, 24, 25, 26])
async def test_forward_paging_returns_each_encounter_once_in_order(service: Service, cast: Cast, size: int) -> None:
    patient_id, newest_first = await patient_with_25_encounters(cast)
    met, after, more = [], None, True

    while more:
        connection = await page(service, patient_id, first=size, after=after)
        met += ids(connection)
        assert connection["pageInfo"]["hasPreviousPage"] is (after is not None)
        after, more = connection["pageInfo"]["endCursor"], connection["pageInfo"]["hasNextPage"]

    assert met == newest_first


@pytest.mark.parametrize("size", [1, 2, 3, 5, 24, 25, 26])
async def test_backward_paging_returns_each_encounter_once_in_order(service: Service, cast: Cast, size: int) -> None:
    patient_id, newest_first = await patient_with_25_encounters(cast)
    met: list[str] = []
    before, more = None, True

    while more:
        connection = await page(service, patient_id, last=size, before=before)
        met = ids(connection) + met
        assert connection["pageInfo"]["hasNextPage"] is (before is not None)
        before, more = connection["pageInfo"]["startCursor"], connection["pageInfo"]["hasPreviousPage"]

    assert met == newest_first


async def test_paging_forward_then_backward_returns_the_same_page(service: Service, cast: Cast) -> None:
    patient_id, newest_first = await patient_with_25_encounters(cast)
    first = await page(service, patient_id, first=7)
    second = await page(service, patient_id, first=7, after=first["pageInfo"]["endCursor"])

    back = await page(service, patient_id, last=7, before=second["pageInfo"]["startCursor"])

    assert ids(second) == newest_first[7:14]
    assert (ids(back), back["pageInfo"]["hasPreviousPage"]) == (ids(first), False)


async def test_after_and_before_together_select_the_encounters_between_them(service: Service, cast: Cast) -> None:
    patient_id, newest_first = await patient_with_25_encounters(cast)
    cursors = [edge["cursor"] for edge in (await page(service, patient_id, first=25))["edges"]]
    between = {"after": cursors[3], "before": cursors[9]}

    assert ids(await page(service, patient_id, **between)) == newest_first[4:9]
    assert ids(await page(service, patient_id, first=2, **between)) == newest_first[4:6]
    assert ids(await page(service, patient_id, last=2, **between)) == newest_first[7:9]
    assert ids(await page(service, patient_id, after=cursors[9], before=cursors[3])) == []


async def test_a_cursor_remains_valid_after_its_encounter_was_deleted(service: Service, cast: Cast) -> None:
    patient_id, newest_first = await patient_with_25_encounters(cast)
    end = (await page(service, patient_id, first=5))["pageInfo"]["endCursor"]
    await cast.connection.execute("DELETE FROM patient_graph.encounters WHERE id = $1", UUID(newest_first[4]))

    assert ids(await page(service, patient_id, first=3, after=end)) == newest_first[5:8]


async def test_a_patient_without_encounters_has_an_empty_page(service: Service, cast: Cast) -> None:
    connection = await page(service, await cast.patient())

    assert connection == {
        "totalCount": 0,
        "edges": [],
        "nodes": [],
        "pageInfo": {"hasNextPage": False, "hasPreviousPage": False, "startCursor": None, "endCursor": None},
    }


async def test_first_0_returns_no_nodes_but_the_count_and_has_next_page(service: Service, cast: Cast) -> None:
    patient_id, _ = await patient_with_25_encounters(cast)

    connection = await page(service, patient_id, first=0)

    assert (connection["nodes"], connection["totalCount"]) == ([], 25)
    assert connection["pageInfo"] == {
        "hasNextPage": True,
        "hasPreviousPage": False,
        "startCursor": None,
        "endCursor": None,
    }


@pytest.mark.parametrize("argument", ["first", "last"])
@pytest.mark.parametrize("size", [-1, 101, 2**31 - 1, -(2**31)])
async def test_a_page_size_outside_0_to_100_is_refused(service: Service, cast: Cast, argument: str, size: int) -> None:
    assert await violation(service, await cast.patient(), **{argument: size}) == {
        "pointer": f"/{argument}",
        "rule": "page_size",
        "message": "must be from 0 to 100",
        "minimum": 0,
        "maximum": 100,
        "received": {"type": "number"},
    }


async def test_first_and_last_together_are_refused(service: Service, cast: Cast) -> None:
    broken = await violation(service, await cast.patient(), first=1, last=1)

    assert (broken["pointer"], broken["rule"]) == ("/last", "first_and_last")


async def test_null_arguments_are_treated_as_omitted(service: Service, cast: Cast) -> None:
    patient_id, newest_first = await patient_with_25_encounters(cast)

    connection = await page(service, patient_id, first=None, last=None, after=None, before=None)

    assert ids(connection) == newest_first[:20]


# Concurrent recordings


async def record_until_cancelled(service: Service, patient_id: str, recorded: list[str]) -> None:
    """Record one encounter after another, until cancelled."""
    while True:
        body = {"brand_id": "loop", "encounter_type": "lab"}
        answer = await service.rest("POST", f"/v1/patients/{patient_id}/encounters", json=body)
        assert answer.status_code == 201
        recorded.append(answer.json()["id"])


FORWARDS = ("first", "after", "endCursor", "hasNextPage")
BACKWARDS = ("last", "before", "startCursor", "hasPreviousPage")


@pytest.mark.parametrize("argument_names", [FORWARDS, BACKWARDS], ids=["forwards", "backwards"])
async def test_concurrent_recordings_neither_skip_nor_repeat_an_encounter(
    service: Service, cast: Cast, argument_names: tuple[str, ...]
) -> None:
    size, cursor, of_page, more = argument_names
    patient_id, there_before = await patient_with_25_encounters(cast)
    recorded: list[str] = []
    met: list[str] = []
    recorder = asyncio.create_task(record_until_cancelled(service, patient_id, recorded))

    two: dict[str, Any] = {size: 2}
    connection = await page(service, patient_id, **two)
    # Without this wait, all pages could be read before the first recording.
    await wait_until(lambda: recorded)
    while len(met) < 50:
        met += ids(connection)
        if not connection["pageInfo"][more]:
            break
        connection = await page(service, patient_id, **two, **{cursor: connection["pageInfo"][of_page]})
    recorder.cancel()

    in_pages_from_the_oldest = [each for pair in pairs_from_the_end(there_before) for each in pair]
    assert recorded
    assert len(met) == len(set(met))
    assert [each for each in met if each in there_before] == (
        there_before if argument_names is FORWARDS else in_pages_from_the_oldest
    )


def pairs_from_the_end(newest_first: list[str]) -> list[list[str]]:
    return [newest_first[max(end - 2, 0) : end] for end in range(len(newest_first), 0, -2)]


# Filters

PROVIDER = UUID("3f2504e0-4f89-11d3-9a0c-0305e82c3301")
NOBODY = UUID(int=0)
TOMORROW = NOON + timedelta(days=1)
ROWS: dict[str, dict[str, Any]] = {
    "lab": {"encounter_type": "lab"},
    "visit": {"encounter_type": "office_visit", "provider_id": PROVIDER},
    "done": {"encounter_type": "telehealth", "status": "completed", "provider_id": PROVIDER},
    "due": {"encounter_type": "lab", "scheduled_at": NOON},
    "later": {"encounter_type": "other", "scheduled_at": TOMORROW, "status": "cancelled"},
}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, set(ROWS)),
        ({"encounterType": ["LAB"]}, {"lab", "due"}),
        ({"encounterType": "LAB"}, {"lab", "due"}),
        ({"encounterType": ["LAB", "OTHER", "LAB"]}, {"lab", "due", "later"}),
        ({"encounterType": []}, set()),
        ({"status": ["SCHEDULED"]}, {"lab", "visit", "due"}),
        ({"status": ["COMPLETED", "CANCELLED"]}, {"done", "later"}),
        ({"status": ["NO_SHOW"]}, set()),
        ({"providerId": str(PROVIDER)}, {"visit", "done"}),
        ({"providerId": str(PROVIDER).upper()}, {"visit", "done"}),
        ({"providerId": str(NOBODY)}, set()),
        ({"scheduledFrom": "2026-01-31T12:00:00Z"}, {"due", "later"}),
        ({"scheduledFrom": "2026-01-31T12:00:00.000001Z"}, {"later"}),
        ({"scheduledUntil": "2026-01-31T12:00:00Z"}, set()),
        ({"scheduledUntil": "2026-02-01T13:00:00.000001+01:00"}, {"due", "later"}),
        ({"scheduledFrom": "2026-01-31T12:00:00Z", "scheduledUntil": "2026-02-01T12:00:00Z"}, {"due"}),
        ({"providerId": str(PROVIDER), "status": ["COMPLETED"], "encounterType": ["TELEHEALTH"]}, {"done"}),
        ({"providerId": str(PROVIDER), "status": ["CANCELLED"]}, set()),
    ],
    ids=lambda value: "+".join(sorted(value)) if isinstance(value, set) else str(value),
)
async def test_a_filter_selects_what_matches_all_members_and_the_count_agrees(
    service: Service, cast: Cast, where: dict[str, Any], expected: set[str]
) -> None:
    patient_id = await cast.patient()
    names = {await encounter(cast, patient_id, **columns): name for name, columns in ROWS.items()}

    connection = await page(service, patient_id, where=where)

    assert {names[each] for each in ids(connection)} == expected
    assert connection["totalCount"] == len(expected)


async def test_total_count_covers_all_pages_of_the_filtered_list(service: Service, cast: Cast) -> None:
    patient_id, _ = await patient_with_25_encounters(cast)
    await encounter(cast, patient_id, encounter_type="other")

    connection = await page(service, patient_id, first=3, where={"encounterType": ["LAB"]})

    assert (len(ids(connection)), connection["totalCount"]) == (3, 25)


@pytest.mark.parametrize(
    ("where", "pointer", "rule"),
    [
        ({"providerId": "x"}, "/where/providerId", "uuid"),
        ({"providerId": ""}, "/where/providerId", "uuid"),
        ({"scheduledFrom": "2026-01-31"}, "/where/scheduledFrom", "date_time"),
        ({"scheduledUntil": "2026-01-31T00:00:00+01:60"}, "/where/scheduledUntil", "date_time"),
        ({"scheduledUntil": "2026-01-31T12:00:00"}, "/where/scheduledUntil", "offset"),
        ({"status": ["LATE"]}, "/variables/where/status/0", "enum"),
        ({"status": [None]}, "/variables/where/status/0", "null"),
        ({"encounterType": 5}, "/variables/where/encounterType", "type"),
        ({"colour": "blue"}, "/variables/where", "unknown_member"),
        ("LAB", "/variables/where", "type"),
    ],
    ids=str,
)
async def test_an_invalid_filter_is_refused_and_its_member_named(
    service: Service, cast: Cast, where: Any, pointer: str, rule: str
) -> None:
    broken = await violation(service, await cast.patient(), where=where)

    assert (broken["pointer"], broken["rule"]) == (pointer, rule)


# Cursors


async def test_a_cursor_of_another_list_is_refused_like_an_invalid_cursor(service: Service, cast: Cast) -> None:
    patient_id, _ = await patient_with_25_encounters(cast)
    other, _ = await patient_with_25_encounters(cast)
    await cast.connection.execute("INSERT INTO patient_graph.patients (id, brand_id) VALUES ($1, 'loopbio')", other)
    await encounter(cast, other, brand_id="loopbio")
    own = (await page(service, patient_id))["pageInfo"]["endCursor"]

    packed = base64.urlsafe_b64decode(own + "==")

    others = [
        await page(service, other),
        await page(service, patient_id, where={"encounterType": ["LAB"]}),
        await page(service, other, token="dev-loopbio"),
    ]
    no_cursors = [
        own[:-1],
        own + "A",
        base64.urlsafe_b64encode(b"\x02" + packed[1:]).decode(),
        base64.urlsafe_b64encode(b"\x01" + b"\x7f" + b"\xff" * 31).decode(),
        str(uuid4()),
        *("", "garbage", "\x00", "\ud800", "é" * 44, "A" * 44, "A" * 10_000),
    ]

    for cursor in [*(each["pageInfo"]["endCursor"] for each in others), *no_cursors]:
        for argument in ("after", "before"):
            assert await violation(service, patient_id, **{argument: cursor}) == {
                "pointer": f"/{argument}",
                "rule": "cursor",
                "message": "must be a cursor of this list",
            }


async def test_a_cursor_is_valid_for_another_spelling_of_the_same_filter(service: Service, cast: Cast) -> None:
    patient_id, newest_first = await patient_with_25_encounters(cast)
    spelt = [
        {"encounterType": ["LAB"]},
        {"encounterType": "LAB"},
    ]
    end = (await page(service, patient_id, first=5, where=spelt[0]))["pageInfo"]["endCursor"]

    assert ids(await page(service, patient_id, first=5, after=end, where=spelt[1])) == newest_first[5:10]
