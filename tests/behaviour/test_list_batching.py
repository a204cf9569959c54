"""Concurrent lists share statements but not results."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import pytest

from gateway.database.database import ROWS_TOGETHER, PoolConnection
from resolvers.sql import Statement
from tests.cast import Cast
from tests.doors import Service

PAGES = """
query ($id: ID!, $first: Int!, $after: String, $where: EncounterFilter) {
  patient(id: $id) {
    id
    encounters(first: $first, after: $after, where: $where) {
      totalCount nodes { id notes encounterType } pageInfo { endCursor hasNextPage }
    }
  }
}
"""
TYPES = ("lab", "telehealth", "other")


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """The patients whose lists each statement returned."""
    sent: list[Sequence[str]] = []
    original = PoolConnection.fetch

    async def recorded_fetch(self: PoolConnection, statement: Statement, **values: Any) -> Any:
        if "FROM patient_graph.patients p" in statement.text:
            sent.append(values.get("ids") or values["ids_0"])
        return await original(self, statement, **values)

    monkeypatch.setattr(PoolConnection, "fetch", recorded_fetch)
    return sent


async def over_rest(service: Service, patient_id: str, query: str, token: str = "dev") -> tuple[int, str]:
    response = await service.rest("GET", f"/v1/patients/{patient_id}/encounters{query}", token=token)
    refusal = response.json() if response.is_error else {}
    return response.status_code, refusal.get("error") or response.text


async def test_lists_that_share_a_statement_return_the_same_as_alone(
    service_in_either_form: Service, cast: Cast, statements: list[Sequence[str]]
) -> None:
    service = service_in_either_form
    ours, theirs = await cast.patients(6, visits=TYPES), await cast.patients(3, "loopbio", visits=TYPES)
    filters: Sequence[Any] = ({}, {"encounterType": ["LAB", "OTHER"]}, {"encounterType": []})
    slices = ("", "?limit=2", "?limit=1&offset=2")
    requests: list[Callable[[], Awaitable[Any]]] = []
    for whose, token in product([*ours, *theirs, "nobody"], ("dev", "dev-loopbio")):
        variables = [{"id": whose, "first": 2, "where": where} for where in filters]
        requests += [partial(service.graphql, PAGES, each, token=token) for each in variables]
        requests += [partial(over_rest, service, whose, each, token) for each in slices]
    for patient_id in ours:
        answer = await service.graphql(PAGES, {"id": patient_id, "first": 1})
        cursor = answer["data"]["patient"]["encounters"]["pageInfo"]["endCursor"]
        requests.append(partial(service.graphql, PAGES, {"id": patient_id, "first": 2, "after": cursor}))

    alone = [await request() for request in requests]
    statements.clear()
    together = await asyncio.gather(*(request() for request in requests))

    assert together == alone
    assert len(statements) < sum(len(ids) for ids in statements)


async def test_a_long_list_has_its_own_statement(
    service: Service, cast: Cast, statements: list[Sequence[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.database.database.ROWS_TOGETHER", 199)
    ids = await cast.patients(4)

    answers = await asyncio.gather(*(over_rest(service, each, "?limit=100") for each in ids))

    assert [status for status, _ in answers] == [200] * 4
    assert [len(ids) for ids in statements] == [1] * 4


async def test_the_rows_of_a_shared_statement_are_bounded(
    service: Service, cast: Cast, statements: list[Sequence[str]]
) -> None:
    ids = await cast.patients(12)

    answers = await asyncio.gather(*(over_rest(service, each, "?limit=100") for each in ids))

    assert [status for status, _ in answers] == [200] * 12
    assert max(len(ids) for ids in statements) == ROWS_TOGETHER // 100
