"""Limits of a GraphQL document: each is exact, and a cached document is not measured again."""

import inspect
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from graphql import get_introspection_query, parse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.settings import Settings
from schema import build_schema
from schema.documents.limits import SATURATED, DocumentLimits, document_stats
from schema.documents.parse import DocumentRules, Documents
from tests.cast import Cast
from tests.doors import LIST, RECORD, Service
from tests.logs import captured_logs
from tests.websocket_client import GatewayServer

SCHEMA = build_schema()._schema
ID = '(id: "x")'

# Documents of 5 are accepted, documents of 6 refused.
LOW: dict[str, Any] = {"max_depth": 5, "max_aliases": 5, "max_directives": 5, "max_root_fields": 5}


def patient(selections: str) -> str:
    return f"{{ patient{ID} {{ {selections} }} }}"


def deep(levels: int) -> str:
    within = ("encounters { nodes { patient { " * levels).split("{ ")[: levels - 2]
    return patient("{ ".join(within) + " { __typename" + " }" * (levels - 2) if within else "id")


def aliases(count: int) -> str:
    return patient(" ".join(f"a{number}: id" for number in range(count)))


def directives(count: int) -> str:
    return patient(" ".join(f"a{number}: id @include(if: true)" for number in range(count))).replace("a0: id", "id", 1)


def root_fields(count: int) -> str:
    return "{ " + "__typename " * count + "}"


def spread(count: int, fields: str = "b: id") -> str:
    return patient("...F " * count) + f" fragment F on Patient {{ {fields} }}"


LIMITED = {
    "depth": (deep, "depth"),
    "aliases": (aliases, "aliases"),
    "aliases in a fragment": (spread, "aliases"),
    "directives": (lambda count: patient(" ".join(["id @skip(if: false)"] * count)), "directives"),
    "directives on spreads": (
        lambda count: patient("...F @skip(if: false) " * count) + " fragment F on Patient { id }",
        "directives",
    ),
    "root fields": (root_fields, "root_fields"),
    "root fields in fragments": (
        lambda count: "{ ...G }" + " fragment G on Query { " + "... { __typename } " * count + "}",
        "root_fields",
    ),
}


@pytest.fixture(scope="module")
async def strict(database_url: str) -> AsyncIterator[Service]:
    async with Service.running(Settings(database_url=database_url, **LOW)) as running:
        yield running


@pytest.fixture(scope="module")
async def with_mode_measure(database_url: str) -> AsyncIterator[Service]:
    lenient = Settings(database_url=database_url, limits="measure", max_tokens=100, max_cost=100, **LOW)
    async with Service.running(lenient) as running:
        yield running


def violation(body: dict[str, Any]) -> dict[str, Any]:
    (error,) = body["errors"]
    (only_violation,) = error["extensions"]["violations"]
    assert error["extensions"]["code"] == "validation_error"
    return only_violation


# Each limit


@pytest.mark.parametrize(("written", "rule"), LIMITED.values(), ids=LIMITED)
async def test_a_limit_refuses_one_more_and_reports_the_count_and_the_limit(
    strict: Service, written: Any, rule: str
) -> None:
    assert "errors" not in await strict.graphql(written(5))

    refusal = violation(await strict.graphql(written(6)))

    assert (refusal["pointer"], refusal["rule"]) == ("/query", rule)
    assert "6" in refusal["message"]
    assert "the limit is 5" in refusal["message"]


async def test_a_too_long_document_is_not_read_to_its_end(service: Service) -> None:
    assert violation(await service.graphql("{ __typename" + " #\n" * 2_100 + "}"))["rule"] == "tokens"
    assert violation(await service.graphql("{a" * 2_100))["rule"] == "depth"
    assert "errors" not in await service.graphql("{ __typename" + "," * 5_000 + "}")


async def test_the_directives_at_one_location_are_always_limited(service: Service) -> None:
    refusal = violation(await service.graphql("{ __typename @a @a @a @a @a }"))

    assert refusal["rule"] == "directives"


async def test_the_limits_apply_to_each_operation_separately(strict: Service) -> None:
    two = " ".join(f"query {name} {root_fields(3)}" for name in "AB")

    assert violation(await strict.graphql(two))["rule"] == "operation"  # within the limits, but no operation is named


async def test_every_exceeded_limit_is_reported(strict: Service) -> None:
    body = await strict.graphql("{ " + " ".join(f"a{number}: __typename" for number in range(6)) + " }")

    assert [error["extensions"]["violations"][0]["rule"] for error in body["errors"]] == ["aliases", "root_fields"]


@pytest.mark.parametrize("query", [deep(6), aliases(6), root_fields(6)], ids=["depth", "aliases", "root_fields"])
async def test_the_limits_hold_on_a_websocket(database_url: str, query: str) -> None:
    async with (
        GatewayServer.serving(Settings(database_url=database_url, **LOW)) as sockets,
        sockets.authenticated() as websocket,
    ):
        refusal = await websocket.refusal(query)

        assert refusal["violations"][0]["rule"] in {"depth", "aliases", "root_fields"}
        assert await websocket.ask("{ __typename }") == {"data": {"__typename": "Query"}}


# Common clients and tools


async def test_the_default_limits_accept_introspection_and_client_documents(service: Service, cast: Cast) -> None:
    options = {
        name: True
        for name, option in inspect.signature(get_introspection_query).parameters.items()
        if isinstance(option.default, bool) and name != "experimental_directive_deprecation"
    }

    introspected = await service.graphql(get_introspection_query(**options))
    listed = await service.graphql(LIST, {"id": await cast.patient()})

    assert "errors" not in introspected
    assert introspected["data"]["__schema"]["queryType"]
    assert "errors" not in listed
    for query in (LIST, RECORD):
        assert not DocumentLimits().exceeded(document_stats(parse(query)))


# Documents that grow exponentially


def doubling(count: int, last: str) -> str:
    """Return a short document that selects `last` 2^count times."""
    chain = "".join(f" fragment F{n} on Query {{ ...F{n + 1} ...F{n + 1} }}" for n in range(count))
    return f"{{ ...F0 }}{chain} fragment F{count} on Query {{ {last} }}"


async def test_nested_fragments_are_counted_in_full_without_expansion(service: Service) -> None:
    refusal = violation(await service.graphql(doubling(5, "__typename __typename")))
    assert refusal["message"] == "The document has 64 root fields; the limit is 50."

    refusal = violation(await service.graphql(doubling(150, "__typename")))
    assert refusal["message"] == "The document has at least 1,000,000,000 root fields; the limit is 50."


def test_the_counts_of_a_document_saturate() -> None:
    stats = document_stats(parse(doubling(5_000, "a: __typename @skip(if: true)")))

    assert (stats.aliases, stats.directives, stats.root_fields) == (SATURATED,) * 3


@pytest.mark.parametrize(
    "text",
    [
        "{ ...F } fragment F on Query { ...F }",
        "{ ...F } fragment F on Query { ...G } fragment G on Query { a: __typename ...F }",
        "{ ...Missing }",
        "fragment F on Query { ...F ...F }",
        "{ ...F } fragment F on Query { __typename } fragment F on Query { ...F }",
    ],
)
def test_cyclic_and_missing_fragments_can_be_counted(text: str) -> None:
    document_stats(parse(text))


# Cache


def test_a_cached_document_is_neither_parsed_nor_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = Documents(SCHEMA, DocumentRules())
    first = documents.read(LIST)
    monkeypatch.setattr("schema.documents.parse.parse", None)
    monkeypatch.setattr("schema.documents.parse.document_stats", None)

    assert documents.read(LIST) is first
    with pytest.raises(TypeError):
        documents.read(LIST + " ")


# The mode `measure`


@pytest.mark.parametrize(("written", "rule"), LIMITED.values(), ids=LIMITED)
async def test_mode_measure_runs_every_document_and_logs_exceeded_limits(
    with_mode_measure: Service, written: Any, rule: str
) -> None:
    with captured_logs() as logs:
        first = await with_mode_measure.graphql(written(6))
        again = await with_mode_measure.graphql(written(6))

    assert "errors" not in first
    assert first == again
    lines = [line for line in logs if line["event"] == "limit" and line["rule"] not in {"tokens", "cost"}]
    assert [(line["rule"], line["limit"], line["found"], line["client_id"]) for line in lines] == [
        (rule, 5, 6, "dev")
    ] * 2
    assert "patient" not in str(lines)


async def test_mode_measure_runs_long_and_expensive_documents(with_mode_measure: Service) -> None:
    with captured_logs() as logs:
        body = await with_mode_measure.graphql(
            "{ __typename" + " #\n" * 120 + f" {patient('encounters(first: 100) { nodes { id } }')[1:]}"
        )

    assert body == {"data": {"__typename": "Query", "patient": None}}
    assert [line["rule"] for line in logs if line["event"] == "limit"] == ["tokens", "cost"]


@pytest.mark.parametrize("text", [deep(101), doubling(250, "__typename")], ids=["fields", "fragments"])
async def test_mode_measure_refuses_documents_that_could_crash_the_process(
    with_mode_measure: Service, text: str
) -> None:
    assert violation(await with_mode_measure.graphql(text))["rule"] == "depth"


async def test_mode_measure_runs_the_deepest_allowed_fragments(with_mode_measure: Service) -> None:
    body = await with_mode_measure.graphql(doubling(190, "__typename"))

    assert body == {"data": {"__typename": "Query"}}


# The cost in `extensions`


COSTLY = patient("encounters(first: 50) { nodes { id } }")


@pytest.mark.parametrize(("extension", "reported"), [(True, True), (False, False), (None, False), ("yes", False)])
async def test_the_cost_is_reported_if_the_extension_requests_it(
    service: Service, extension: Any, reported: bool
) -> None:
    answer = await service.rest(
        "POST", "/graphql", json={"query": COSTLY, "extensions": None if extension is None else {"cost": extension}}
    )

    expected = {"cost": {"requested": 1 + 50 * 2, "limit": 25_000}} if reported else None
    assert answer.json()["data"] == {"patient": None}
    assert answer.json().get("extensions") == expected


async def test_the_cost_is_reported_over_get_and_in_refusals(service: Service) -> None:
    extensions = '{"cost": true}'
    by_get = await service.rest("GET", "/graphql", params={"query": "{ __typename }", "extensions": extensions})
    expensive = patient(
        "encounters(first: 100) { nodes { patient { encounters(first: 100) { nodes { patient { id }}}}}}"
    )
    over_limit = await service.rest("POST", "/graphql", json={"query": expensive, "extensions": {"cost": True}})

    assert by_get.json()["extensions"] == {"cost": {"requested": 0, "limit": 25_000}}
    assert violation(over_limit.json())["rule"] == "cost"
    assert over_limit.json()["extensions"]["cost"]["requested"] > 25_000


async def test_the_cost_is_reported_on_a_websocket(sockets: GatewayServer) -> None:
    async with sockets.authenticated() as websocket:
        payload = {"query": "subscription { count(to: 1) }", "extensions": {"cost": True}}
        await websocket.send(type="subscribe", id="one", payload=payload)
        event = await websocket.next("one")
        assert await websocket.receive() == {"type": "complete", "id": "one"}

        await websocket.send(type="subscribe", id="two", payload=payload | {"query": COSTLY})
        answer = await websocket.next("two")

    assert event == {"data": {"count": "0"}, "extensions": {"cost": {"requested": 0, "limit": 25_000}}}
    assert answer["extensions"] == {"cost": {"requested": 101, "limit": 25_000}}


# Arbitrary text

SEEDS = [LIST, RECORD, aliases(3), spread(3), doubling(4, "__typename"), get_introspection_query()]
WORDS = """{ } ( ) [ ] ... ...F @skip(if:true) : $id ! " \""" # query mutation subscription fragment __schema __typename
a: patient encounters null -1 1e999 \\u0000 \u0000 \ufeff é \U0001f600 extend type {__typename} true & |"""
PIECES = st.sampled_from(WORDS.split())


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A valid document with pieces inserted, deleted, repeated and replaced."""
    text = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(start + 40, len(text))))
        match draw(st.sampled_from(["insert", "delete", "repeat", "replace"])):
            case "insert":
                text = text[:start] + draw(PIECES) + text[start:]
            case "delete":
                text = text[:start] + text[end:]
            case "repeat":
                text = text[:start] + text[start:end] * draw(st.integers(2, 400)) + text[end:]
            case "replace":
                text = text[:start] + draw(PIECES) + text[end:]
    return text


TEXTS = st.one_of(st.text(max_size=300), mutated(), st.lists(PIECES, max_size=60).map(" ".join))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
async def test_no_text_causes_a_server_error(service: Service, text: str) -> None:
    answer = await service.rest("POST", "/graphql", json={"query": text, "variables": {"id": "x"}})

    assert answer.status_code in {200, 400}
    codes = [error["extensions"]["code"] for error in answer.json().get("errors", ())]
    assert "server_error" not in codes


def work_of(text: str) -> int:
    """Return the number of calls that reading a text takes: unlike seconds, the same on every machine."""
    documents = Documents(SCHEMA, DocumentRules(exploring="off"))
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        documents.read(text)
    finally:
        sys.setprofile(before)
    return calls


HEAVY = {
    "fields": patient("id " * 1_980),
    "root fields": "{ " + "__typename " * 1_980 + "}",
    "nested": "{ " + "patient(id: 1) { encounters { nodes { patient { id }}}} " * 45 + "}",
    "doubling": doubling(180, "__typename"),
    "fragments of one field": "{ " + " ".join(f"...F{n}" for n in range(110)) + " }"
    + "".join(f" fragment F{n} on Query {{ patient(id: 1) {{ id }} }}" for n in range(110)),
    "fragments in fragments": patient(" ".join(f"...F{n}" for n in range(100)))
    + "".join(f" fragment F{n} on Patient {{ a: id b: id ...F{(n + 1) % 100} }}" for n in range(100)),
    "unknown names": "{ " + " ".join(f"nope{n}" for n in range(1_980)) + " }",
    "variables": "query (" + " ".join(f"$v{n}: ID" for n in range(480)) + ") { __typename }",
    "a list": patient(f"encounters(first: [{'1 ' * 1_900}]) {{ nodes {{ id }} }}"),
    "a megabyte of words": "{ " + "word " * 200_000 + "}",
    "a megabyte of comments": "#\n" * 500_000,
    "a megabyte of brackets": "{" * 1_000_000,
}  # fmt: skip

MOST_CALLS = 2_000_000


@pytest.mark.parametrize("text", HEAVY.values(), ids=HEAVY)
def test_the_work_to_read_a_heavy_document_is_bounded(text: str) -> None:
    assert work_of(text) < MOST_CALLS


@settings(max_examples=100, deadline=None)
@given(text=mutated())
def test_the_work_to_read_any_document_is_bounded(text: str) -> None:
    assert work_of(text) < MOST_CALLS
