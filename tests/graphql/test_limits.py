"""What one document may be: each limit refuses what passes it and lets through what does not, at no cost when kept."""

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

# What each of these has is 6, one more than the limit; `fits` has 5 of it.
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


PASSING = {
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
async def measuring(database_url: str) -> AsyncIterator[Service]:
    lenient = Settings(database_url=database_url, limits="measure", max_tokens=100, max_cost=100, **LOW)
    async with Service.running(lenient) as running:
        yield running


def violation(body: dict[str, Any]) -> dict[str, Any]:
    (error,) = body["errors"]
    (told,) = error["extensions"]["violations"]
    assert error["extensions"]["code"] == "validation_error"
    return told


# Each limit


@pytest.mark.parametrize(("written", "rule"), PASSING.values(), ids=PASSING)
async def test_a_limit_refuses_one_more_and_says_what_there_is(strict: Service, written: Any, rule: str) -> None:
    assert "errors" not in await strict.graphql(written(5))

    told = violation(await strict.graphql(written(6)))

    assert (told["pointer"], told["rule"]) == ("/query", rule)
    assert "6" in told["message"]
    assert "the limit is 5" in told["message"]


async def test_what_is_too_long_is_not_read_to_its_end(service: Service) -> None:
    assert violation(await service.graphql("{ __typename" + " #\n" * 2_100 + "}"))["rule"] == "tokens"
    assert violation(await service.graphql("{a" * 2_100))["rule"] == "depth"
    assert "errors" not in await service.graphql("{ __typename" + "," * 5_000 + "}")


async def test_a_place_has_few_directives_whatever_the_limit_is(service: Service) -> None:
    told = violation(await service.graphql("{ __typename @a @a @a @a @a }"))

    assert told["rule"] == "directives"


async def test_of_several_operations_the_largest_counts(strict: Service) -> None:
    two = " ".join(f"query {name} {root_fields(3)}" for name in "AB")

    assert violation(await strict.graphql(two))["rule"] == "operation"  # nothing is too large, but none is named


async def test_every_limit_that_is_passed_is_told(strict: Service) -> None:
    body = await strict.graphql("{ " + " ".join(f"a{number}: __typename" for number in range(6)) + " }")

    assert [error["extensions"]["violations"][0]["rule"] for error in body["errors"]] == ["aliases", "root_fields"]


@pytest.mark.parametrize("query", [deep(6), aliases(6), root_fields(6)], ids=["depth", "aliases", "root_fields"])
async def test_a_socket_has_the_same_limits(database_url: str, query: str) -> None:
    async with (
        GatewayServer.serving(Settings(database_url=database_url, **LOW)) as sockets,
        sockets.authenticated() as websocket,
    ):
        refusal = await websocket.refusal(query)

        assert refusal["violations"][0]["rule"] in {"depth", "aliases", "root_fields"}
        assert await websocket.ask("{ __typename }") == {"data": {"__typename": "Query"}}


# What must pass


async def test_the_usual_limits_let_clients_and_their_tools_through(service: Service, cast: Cast) -> None:
    options = {
        name: True
        for name, option in inspect.signature(get_introspection_query).parameters.items()
        if isinstance(option.default, bool) and name != "experimental_directive_deprecation"
    }

    told = await service.graphql(get_introspection_query(**options))
    listed = await service.graphql(LIST, {"id": await cast.patient()})

    assert "errors" not in told
    assert told["data"]["__schema"]["queryType"]
    assert "errors" not in listed
    for query in (LIST, RECORD):
        assert not DocumentLimits().exceeded(document_stats(parse(query)))


# Documents that grow


def doubling(count: int, last: str) -> str:
    """A document of a few lines that says something 2^count times."""
    chain = "".join(f" fragment F{n} on Query {{ ...F{n + 1} ...F{n + 1} }}" for n in range(count))
    return f"{{ ...F0 }}{chain} fragment F{count} on Query {{ {last} }}"


async def test_a_document_that_doubles_is_counted_in_full_without_being_written_out(service: Service) -> None:
    told = violation(await service.graphql(doubling(5, "__typename __typename")))
    assert told["message"] == "The document has 64 root fields; the limit is 50."

    told = violation(await service.graphql(doubling(150, "__typename")))
    assert told["message"] == "The document has at least 1,000,000,000 root fields; the limit is 50."


def test_counting_never_goes_beyond_a_number_that_can_be_written() -> None:
    extent = document_stats(parse(doubling(5_000, "a: __typename @skip(if: true)")))

    assert (extent.aliases, extent.directives, extent.root_fields) == (SATURATED,) * 3


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
def test_circles_and_gaps_are_counted_as_far_as_they_go(text: str) -> None:
    document_stats(parse(text))


# Nothing is counted twice


def test_a_document_that_is_kept_is_neither_parsed_nor_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = Documents(SCHEMA, DocumentRules())
    first = documents.read(LIST)
    monkeypatch.setattr("schema.documents.parse.parse", None)
    monkeypatch.setattr("schema.documents.parse.document_stats", None)

    assert documents.read(LIST) is first
    with pytest.raises(TypeError):
        documents.read(LIST + " ")


# Measuring


@pytest.mark.parametrize(("written", "rule"), PASSING.values(), ids=PASSING)
async def test_while_measuring_everything_runs_and_the_log_says_what_would_not(
    measuring: Service, written: Any, rule: str
) -> None:
    with captured_logs() as logs:
        first = await measuring.graphql(written(6))
        again = await measuring.graphql(written(6))

    assert "errors" not in first
    assert first == again
    lines = [line for line in logs if line["event"] == "limit" and line["rule"] not in {"tokens", "cost"}]
    assert [(line["rule"], line["limit"], line["found"], line["client_id"]) for line in lines] == [
        (rule, 5, 6, "dev")
    ] * 2
    assert "patient" not in str(lines)


async def test_while_measuring_long_and_dear_documents_run_too(measuring: Service) -> None:
    with captured_logs() as logs:
        body = await measuring.graphql(
            "{ __typename" + " #\n" * 120 + f" {patient('encounters(first: 100) { nodes { id } }')[1:]}"
        )

    assert body == {"data": {"__typename": "Query", "patient": None}}
    assert [line["rule"] for line in logs if line["event"] == "limit"] == ["tokens", "cost"]


@pytest.mark.parametrize("text", [deep(101), doubling(250, "__typename")], ids=["fields", "fragments"])
async def test_what_the_process_cannot_bear_is_refused_while_measuring_too(measuring: Service, text: str) -> None:
    assert violation(await measuring.graphql(text))["rule"] == "depth"


async def test_what_the_process_can_just_bear_is_answered(measuring: Service) -> None:
    body = await measuring.graphql(doubling(190, "__typename"))

    assert body == {"data": {"__typename": "Query"}}


# The cost, told


COSTLY = patient("encounters(first: 50) { nodes { id } }")


@pytest.mark.parametrize(("asked", "told"), [(True, True), (False, False), (None, False), ("yes", False)])
async def test_who_asks_what_it_costs_is_told(service: Service, asked: Any, told: bool) -> None:
    answer = await service.rest(
        "POST", "/graphql", json={"query": COSTLY, "extensions": None if asked is None else {"cost": asked}}
    )

    expected = {"cost": {"requested": 1 + 50 * 2, "limit": 25_000}} if told else None
    assert answer.json()["data"] == {"patient": None}
    assert answer.json().get("extensions") == expected


async def test_the_cost_is_told_by_get_and_of_what_is_refused_for_it(service: Service) -> None:
    extensions = '{"cost": true}'
    by_get = await service.rest("GET", "/graphql", params={"query": "{ __typename }", "extensions": extensions})
    dear = patient("encounters(first: 100) { nodes { patient { encounters(first: 100) { nodes { patient { id }}}}}}")
    too_dear = await service.rest("POST", "/graphql", json={"query": dear, "extensions": {"cost": True}})

    assert by_get.json()["extensions"] == {"cost": {"requested": 0, "limit": 25_000}}
    assert violation(too_dear.json())["rule"] == "cost"
    assert too_dear.json()["extensions"]["cost"]["requested"] > 25_000


async def test_the_cost_is_told_on_a_socket(sockets: GatewayServer) -> None:
    async with sockets.authenticated() as websocket:
        payload = {"query": "subscription { count(to: 1) }", "extensions": {"cost": True}}
        await websocket.send(type="subscribe", id="one", payload=payload)
        event = await websocket.next("one")
        assert await websocket.receive() == {"type": "complete", "id": "one"}

        await websocket.send(type="subscribe", id="two", payload=payload | {"query": COSTLY})
        answer = await websocket.next("two")

    assert event == {"data": {"count": "0"}, "extensions": {"cost": {"requested": 0, "limit": 25_000}}}
    assert answer["extensions"] == {"cost": {"requested": 101, "limit": 25_000}}


# Any text whatsoever

SEEDS = [LIST, RECORD, aliases(3), spread(3), doubling(4, "__typename"), get_introspection_query()]
WORDS = """{ } ( ) [ ] ... ...F @skip(if:true) : $id ! " \""" # query mutation subscription fragment __schema __typename
a: patient encounters null -1 1e999 \\u0000 \u0000 \ufeff é \U0001f600 extend type {__typename} true & |"""
PIECES = st.sampled_from(WORDS.split())


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A good document with pieces put in, taken out and repeated."""
    text = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(start + 40, len(text))))
        match draw(st.sampled_from(["put in", "take out", "repeat", "swap"])):
            case "put in":
                text = text[:start] + draw(PIECES) + text[start:]
            case "take out":
                text = text[:start] + text[end:]
            case "repeat":
                text = text[:start] + text[start:end] * draw(st.integers(2, 400)) + text[end:]
            case "swap":
                text = text[:start] + draw(PIECES) + text[end:]
    return text


TEXTS = st.one_of(st.text(max_size=300), mutated(), st.lists(PIECES, max_size=60).map(" ".join))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
async def test_no_text_whatsoever_is_a_fault_of_ours(service: Service, text: str) -> None:
    answer = await service.rest("POST", "/graphql", json={"query": text, "variables": {"id": "x"}})

    assert answer.status_code in {200, 400}
    codes = [error["extensions"]["code"] for error in answer.json().get("errors", ())]
    assert "server_error" not in codes


def work_of(text: str) -> int:
    """Count the calls it takes to read a text: unlike seconds, the same on every machine."""
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
def test_the_work_a_document_can_make_is_bounded(text: str) -> None:
    assert work_of(text) < MOST_CALLS


@settings(max_examples=100, deadline=None)
@given(text=mutated())
def test_the_work_that_any_document_can_make_is_bounded(text: str) -> None:
    assert work_of(text) < MOST_CALLS
