"""GraphQL over a WebSocket, on a real port: nothing one client does ends more than its own socket."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import strawberry
import structlog
from strawberry.schema.config import StrawberryConfig
from websockets.exceptions import ConnectionClosed, InvalidStatus

import gateway.app
from gateway.settings import Settings
from resolvers.access import Caller
from resolvers.errors import InvalidToken, TemporarilyUnavailable
from schema.mutations import Mutation
from schema.queries import Query
from schema.scalars import SCALARS
from schema.types import Info
from tests.cast import Cast
from tests.doors import RECORD
from tests.sockets import SECONDS, Sockets

MARKER = "tuberculosis"
VISIT = {"brandId": "loop", "encounterType": "LAB", "notes": MARKER}


# What the tests need of a schema, and the real one does not have (yet)


class Stage:
    """Where the tests hold operations and see what became of them."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()
        self.done: list[str] = []


STAGE = Stage()


@pytest.fixture(autouse=True)
def stage() -> Iterator[Stage]:
    STAGE.__init__()  # type: ignore[misc]
    yield STAGE
    STAGE.gate.set()


@strawberry.type(name="Query")
class StagedQuery(Query):
    @strawberry.field
    async def held(self) -> str:
        STAGE.entered.set()
        try:
            await STAGE.gate.wait()
            return "let go"
        finally:
            STAGE.done.append("held")

    @strawberry.field
    async def broken(self) -> str:
        raise ValueError(MARKER)

    @strawberry.field
    async def long(self, characters: int) -> str:
        return "x" * characters


@strawberry.type(name="Mutation")
class StagedMutation(Mutation):
    @strawberry.mutation
    async def hold(self) -> str:
        STAGE.entered.set()
        await STAGE.gate.wait()
        STAGE.done.append("hold")
        return "done"


@strawberry.type
class Seen:
    @strawberry.field
    def loaders(self, info: Info) -> str:
        STAGE.done.append(info.context.loaders)  # type: ignore[arg-type]
        return "seen"


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def count(self, to: int, characters: int = 0) -> AsyncIterator[str]:
        try:
            for number in range(to):
                yield f"{number}{'x' * characters}"
                await asyncio.sleep(0)
        finally:
            STAGE.done.append("count")

    @strawberry.subscription
    async def wait(self) -> AsyncIterator[str]:
        try:
            yield "begun"
            await STAGE.gate.wait()
            yield "let go"
        finally:
            STAGE.done.append("wait")

    @strawberry.subscription
    async def breaks(self) -> AsyncIterator[str]:
        yield "begun"
        raise ValueError(MARKER)

    @strawberry.subscription
    async def away(self) -> AsyncIterator[str]:
        yield "begun"
        raise TemporarilyUnavailable

    @strawberry.subscription
    async def loaders(self, info: Info) -> AsyncIterator[Seen]:
        for _ in range(2):
            yield Seen()


def staged_schema(_scopes: object = None) -> strawberry.Schema:
    return strawberry.Schema(
        query=StagedQuery,
        mutation=StagedMutation,
        subscription=Subscription,
        config=StrawberryConfig(scalar_map=SCALARS),
    )


# Who calls, in these tests


@dataclass
class Provider:
    """Whom each token stands for; a test may take one back, or let nobody answer."""

    callers: dict[str, Caller] = field(default_factory=dict)
    away: bool = False
    asked: int = 0

    async def verify(self, token: str) -> Caller:
        self.asked += 1
        if self.away:
            raise TemporarilyUnavailable
        if token == "trouble":
            raise ValueError(MARKER)
        if token not in self.callers:
            raise InvalidToken
        return self.callers[token]

    def give(self, token: str, *scopes: str, brand_id: str | None = "loop", seconds: float | None = None) -> str:
        expires_at = None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
        granted = frozenset(scopes or {"admin:patient_graph"})
        self.callers[token] = Caller(client_id="app", brand_id=brand_id, scopes=granted, expires_at=expires_at)
        return token


PROVIDER = Provider()


@pytest.fixture(autouse=True)
def provider() -> Provider:
    """A provider at which the token `dev` may do everything."""
    PROVIDER.__init__()  # type: ignore[misc]
    PROVIDER.give("dev")
    return PROVIDER


def settings(database_url: str, **changed: Any) -> Settings:
    return Settings(
        database_url=database_url,
        rate_reads_per_minute=changed.pop("rate_reads_per_minute", 1_000_000),
        rate_writes_per_minute=1_000_000,
        origins={"app": ("https://app.example",), "other": ("https://other.example",)},
        **changed,
    )


@asynccontextmanager
async def staged(database_url: str, **changed: Any) -> AsyncIterator[Sockets]:
    """Serve the real schema and what is staged."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gateway.app, "build_schema", staged_schema)
        async with Sockets.serving(settings(database_url, **changed), PROVIDER.verify) as serving:
            yield serving


@pytest.fixture(scope="module")
async def sockets(database_url: str) -> AsyncIterator[Sockets]:
    """A gateway whose patience is short."""
    async with staged(
        database_url, socket_recheck_seconds=0.2, socket_init_seconds=0.5, socket_send_seconds=0.5
    ) as serving:
        yield serving


async def until(what: Any) -> None:
    """Wait for a condition, but not for ever."""
    async with asyncio.timeout(SECONDS):
        while not what():  # noqa: ASYNC110 - what is waited for may happen anywhere
            await asyncio.sleep(0.01)


# Signing in


@pytest.mark.parametrize("name", ["Authorization", "authorization", "AUTHORIZATION"])
async def test_the_first_message_says_who_calls_as_a_header_would(sockets: Sockets, name: str) -> None:
    async with sockets.talk() as talk:
        await talk.say(type="connection_init", payload={name: "bearer dev"})

        assert await talk.hear() == {"type": "connection_ack"}
        assert await talk.ask("{ __typename }") == {"data": {"__typename": "Query"}}


@pytest.mark.parametrize("payload", [{}, {"payload": None}, {"payload": {"Authorization": None, "else": [1]}}])
async def test_a_program_may_send_its_token_with_the_upgrade_instead(sockets: Sockets, payload: dict[str, Any]) -> None:
    async with sockets.talk(headers={"Authorization": "Bearer dev"}) as talk:
        await talk.say(type="connection_init", **payload)

        assert await talk.hear() == {"type": "connection_ack"}


async def test_the_first_message_counts_more_than_the_upgrade(sockets: Sockets) -> None:
    async with sockets.talk(headers={"Authorization": "Bearer dev"}) as talk:
        await talk.say(type="connection_init", payload={"authorization": "Bearer nonsense"})

        assert await talk.closed() == (4403, "invalid_token")


@pytest.mark.parametrize(
    ("payload", "close"),
    [
        ({}, (4401, "unauthenticated")),
        ({"Authorization": ""}, (4401, "unauthenticated")),
        ({"Authorization": "Basic dev"}, (4401, "unauthenticated")),
        ({"token": "dev"}, (4401, "unauthenticated")),
        ({"headers": {"Authorization": "Bearer dev"}}, (4401, "unauthenticated")),
        ({"Authorization": "Bearer nonsense"}, (4403, "invalid_token")),
        ({"Authorization": "Bearer trouble"}, (4500, "server_error")),
    ],
)
async def test_who_may_not_come_in_is_told_by_the_code(
    sockets: Sockets, payload: dict[str, Any], close: tuple[int, str]
) -> None:
    async with sockets.talk() as talk:
        await talk.say(type="connection_init", payload=payload)

        assert await talk.closed() == close


async def test_while_the_identity_provider_is_away_nobody_comes_in_and_everyone_may_try_again(
    sockets: Sockets, provider: Provider
) -> None:
    provider.away = True
    async with sockets.talk() as talk:
        await talk.say(type="connection_init", payload={"Authorization": "Bearer dev"})

        assert await talk.closed() == (1013, "temporarily_unavailable")


async def test_a_token_that_has_expired_lets_nobody_in(sockets: Sockets, provider: Provider) -> None:
    provider.give("late", seconds=-1)
    async with sockets.talk() as talk:
        await talk.say(type="connection_init", payload={"Authorization": "Bearer late"})

        assert (await talk.closed())[0] == 4403


async def test_whoever_asks_before_signing_in_is_sent_away(sockets: Sockets) -> None:
    async with sockets.talk() as talk:
        await talk.start("one", "{ __typename }")

        assert (await talk.closed())[0] == 4401


async def test_whoever_signs_in_twice_is_sent_away(sockets: Sockets) -> None:
    async with sockets.signed_in() as talk:
        await talk.say(type="connection_init", payload={"Authorization": "Bearer dev"})

        assert (await talk.closed())[0] == 4429


async def test_whoever_does_not_sign_in_is_sent_away(sockets: Sockets) -> None:
    async with sockets.talk() as talk:
        await talk.say(type="ping")
        assert await talk.hear() == {"type": "pong"}

        assert (await talk.closed())[0] == 4408


@pytest.mark.parametrize("subprotocols", [["graphql-ws"], ["mqtt", "graphql-ws"], []])
async def test_no_other_subprotocol_is_spoken(sockets: Sockets, subprotocols: list[str]) -> None:
    async with sockets.talk(subprotocols=subprotocols) as talk:
        assert await talk.closed() == (4406, "Only graphql-transport-ws is spoken here.")


async def test_among_several_subprotocols_ours_is_chosen(sockets: Sockets) -> None:
    async with sockets.signed_in(subprotocols=["graphql-ws", "graphql-transport-ws"]) as talk:
        assert talk.connection.subprotocol == "graphql-transport-ws"


# From which pages


@pytest.mark.parametrize("origin", ["https://evil.example", "http://app.example", "https://app.example:8443", "null"])
async def test_a_page_of_nobodys_is_refused_at_the_upgrade(sockets: Sockets, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with sockets.talk(headers={"Origin": origin}):
            pass

    assert refused.value.response.status_code == 403


async def test_a_page_of_another_client_is_refused_once_it_is_known_who_calls(sockets: Sockets) -> None:
    async with sockets.talk(headers={"Origin": "https://other.example"}) as talk:
        await talk.say(type="connection_init", payload={"Authorization": "Bearer dev"})

        assert await talk.closed() == (4403, "forbidden")


async def test_a_page_of_the_clients_own_is_let_in(sockets: Sockets) -> None:
    async with sockets.signed_in(headers={"Origin": "https://app.example"}):
        pass


async def test_a_page_of_ours_is_let_in(sockets: Sockets) -> None:
    async with sockets.signed_in(headers={"Origin": f"http://127.0.0.1:{sockets.port}"}):
        pass


# The end of a token


async def test_a_socket_is_closed_when_its_token_expires(sockets: Sockets, provider: Provider) -> None:
    provider.give("short", seconds=0.7)
    async with sockets.signed_in("short") as talk:
        await talk.start("one", "subscription { wait }")
        await talk.next("one")
        started = asyncio.get_running_loop().time()

        assert await talk.closed() == (4403, "invalid_token: it has expired.")
        assert 0 < asyncio.get_running_loop().time() - started < 1.5
    await until(lambda: STAGE.done == ["wait"])


async def test_a_revoked_token_closes_the_socket_at_the_next_look(sockets: Sockets, provider: Provider) -> None:
    async with sockets.signed_in() as talk:
        del provider.callers["dev"]

        assert await talk.closed() == (4403, "invalid_token: it is not valid any more.")


async def test_a_token_that_comes_to_stand_for_less_closes_the_socket(sockets: Sockets, provider: Provider) -> None:
    async with sockets.signed_in() as talk:
        provider.give("dev", "read:encounters")

        assert (await talk.closed())[0] == 4403


async def test_a_token_that_is_prolonged_keeps_the_socket(sockets: Sockets, provider: Provider) -> None:
    provider.give("dev", seconds=0.6)
    async with sockets.signed_in() as talk:
        provider.give("dev", seconds=60)
        asked = provider.asked
        await until(lambda: provider.asked >= asked + 5)

        await talk.ask("{ __typename }")


async def test_an_outage_of_the_provider_keeps_the_socket_until_the_token_expires(
    sockets: Sockets, provider: Provider
) -> None:
    provider.give("short", seconds=1.2)
    async with sockets.signed_in("short") as talk:
        provider.away = True
        asked = provider.asked
        await until(lambda: provider.asked >= asked + 3)
        await talk.ask("{ __typename }")

        assert await talk.closed() == (4403, "invalid_token: it has expired.")


async def test_a_mutation_under_way_is_answered_before_the_expired_socket_is_closed(
    sockets: Sockets, provider: Provider
) -> None:
    provider.give("short", seconds=0.6)
    async with sockets.signed_in("short") as talk:
        await talk.start("change", "mutation { hold }")
        await asyncio.sleep(0.8)
        STAGE.gate.set()

        assert await talk.next("change") == {"data": {"hold": "done"}}
        assert await talk.hear() == {"type": "complete", "id": "change"}
        assert (await talk.closed())[0] == 4403


# Operations


async def test_a_mutation_records_an_encounter(sockets: Sockets, cast: Cast) -> None:
    patient_id = await cast.patient()
    async with sockets.signed_in(headers={"X-Request-Id": "a-socket"}) as talk:
        await talk.ask("{ __typename }")
        body = await talk.ask(RECORD, patientId=patient_id, input=VISIT)

    (row,) = await cast.rows(patient_id)
    assert str(row["id"]) == body["data"]["recordEncounter"]["encounter"]["id"]
    entry = await cast.connection.fetchrow(
        "SELECT actor_id, request_id FROM patient_graph.audit_log WHERE patient_id = $1", patient_id
    )
    assert entry is not None
    assert tuple(entry) == ("app", "a-socket.2")


async def test_an_error_names_the_operation_by_the_id_that_log_and_audit_know(sockets: Sockets) -> None:
    async with sockets.signed_in(headers={"X-Request-Id": "b-socket"}) as talk:
        ids = [(await talk.refusal("{ nothing }"))["request_id"] for _ in range(2)]

    assert ids == ["b-socket.1", "b-socket.2"]


async def test_rights_are_those_of_the_token_as_over_http(sockets: Sockets, provider: Provider, cast: Cast) -> None:
    provider.give("reader", "read:encounters")
    async with sockets.signed_in("reader") as talk:
        body = await talk.ask(RECORD, patientId=await cast.patient(), input=VISIT)

    assert body["errors"][0]["extensions"]["code"] == "insufficient_scope"


async def test_a_patient_of_another_brand_does_not_exist(sockets: Sockets, provider: Provider, cast: Cast) -> None:
    patient_id = await cast.patient("loopbio")
    provider.give("bio", brand_id="loopbio")
    query = "query ($id: ID!) { patient(id: $id) { id } }"

    async with sockets.signed_in() as ours, sockets.signed_in("bio") as theirs:
        assert (await ours.ask(query, id=patient_id))["data"]["patient"] is None
        assert (await theirs.ask(query, id=patient_id))["data"]["patient"] == {"id": patient_id}


async def test_a_client_of_several_brands_states_one_in_the_first_message(
    sockets: Sockets, provider: Provider, cast: Cast
) -> None:
    patient_id = await cast.patient("loopbio")
    provider.give("machine", brand_id=None)
    query = "query ($id: ID!) { patient(id: $id) { id } }"
    async with sockets.talk() as talk:
        await talk.sign_in("machine", **{"x-brand-id": "loopbio"})

        assert (await talk.ask(query, id=patient_id))["data"]["patient"] == {"id": patient_id}


async def test_a_stated_brand_that_contradicts_the_token_is_refused_as_over_http(sockets: Sockets) -> None:
    async with sockets.talk() as talk:
        await talk.sign_in("dev", **{"X-Brand-Id": "loopbio"})

        assert (await talk.refusal("{ __typename }"))["code"] == "forbidden"


async def test_operations_are_counted_as_over_http(database_url: str) -> None:
    async with (
        staged(database_url, rate_reads_per_minute=2) as sockets,
        sockets.signed_in() as talk,
    ):
        await talk.ask("{ __typename }")
        await talk.start("malformed", 5)  # type: ignore[arg-type]
        await talk.errors("malformed")

        assert (await talk.refusal("{ __typename }"))["code"] == "rate_limited"


REFUSED: list[tuple[Any, str]] = [
    (None, "validation_error"),
    (5, "validation_error"),
    ([], "validation_error"),
    ({}, "validation_error"),
    ({"query": None}, "validation_error"),
    ({"query": ""}, "validation_error"),
    ({"query": "{"}, "validation_error"),
    ({"query": "{ nothing }"}, "validation_error"),
    ({"query": "{ " * 5_000}, "validation_error"),
    ({"query": "query ($n: Int!) { long(characters: $n) }"}, "validation_error"),
    ({"query": "query ($n: Int!) { long(characters: $n) }", "variables": {"n": MARKER}}, "validation_error"),
    ({"query": "{ __typename }", "variables": [MARKER]}, "validation_error"),
    ({"query": "{ __typename }", "variables": MARKER}, "validation_error"),
    ({"query": "{ __typename }", "operationName": 5}, "validation_error"),
    ({"query": "{ __typename }", "operationName": MARKER}, "validation_error"),
    ({"query": "{ __typename }", "extensions": []}, "validation_error"),
    ({"query": "subscription { nothing }"}, "validation_error"),
    ({"query": "subscription { wait count(to: 1) }"}, "validation_error"),
    ({"query": "subscription ($n: Int!) { count(to: $n) }"}, "validation_error"),
    ({"query": "{ __typename }", "variables": {"long": "x" * 300_000}}, "payload_too_large"),
]


@pytest.mark.parametrize(("payload", "code"), REFUSED)
async def test_an_operation_that_is_refused_harms_no_other(sockets: Sockets, payload: Any, code: str) -> None:
    async with sockets.signed_in() as talk:
        await talk.start("other", "subscription { wait }")
        await talk.next("other")

        await talk.say(type="subscribe", id="bad", payload=payload)
        errors = await talk.errors("bad")
        STAGE.gate.set()

        assert {error["extensions"]["code"] for error in errors} == {code}
        assert MARKER not in json.dumps(errors)
        assert await talk.next("other") == {"data": {"wait": "let go"}}


async def test_what_nobody_expected_is_told_by_its_id_alone(sockets: Sockets) -> None:
    async with sockets.signed_in(headers={"X-Request-Id": "c-socket"}) as talk:
        with structlog.testing.capture_logs() as lines:
            body = await talk.ask("query { broken }")

    (error,) = body["errors"]
    assert error["extensions"] == {"code": "server_error", "recorded": "unknown", "request_id": "c-socket.1"}
    assert MARKER not in json.dumps(body) + json.dumps(lines, default=str)
    (line,) = [line for line in lines if line["event"] == "unexpected"]
    assert (line["request_id"], line["error"]) == ("c-socket.1", "ValueError")


async def test_operations_run_side_by_side(sockets: Sockets) -> None:
    async with sockets.signed_in() as talk:
        await talk.start("slow", "{ held }")

        assert await talk.ask("{ __typename }", operation_id="quick") == {"data": {"__typename": "Query"}}
        STAGE.gate.set()
        assert await talk.next("slow") == {"data": {"held": "let go"}}


async def test_an_id_may_be_used_again_when_its_operation_is_over(sockets: Sockets) -> None:
    async with sockets.signed_in() as talk:
        for _ in range(3):
            await talk.ask("{ __typename }", operation_id="again")


async def test_an_id_that_is_in_use_ends_the_socket(sockets: Sockets) -> None:
    async with sockets.signed_in() as talk:
        await talk.start("same", "subscription { wait }")
        await talk.start("same", "{ __typename }")

        assert (await talk.closed())[0] == 4409


# Subscriptions


async def test_a_subscription_gives_each_event_and_then_says_that_it_is_over(sockets: Sockets) -> None:
    async with sockets.signed_in() as talk:
        await talk.start("one", "subscription ($to: Int!) { count(to: $to) }", to=3)

        assert [(await talk.next("one"))["data"]["count"] for _ in range(3)] == ["0", "1", "2"]
        assert await talk.hear() == {"type": "complete", "id": "one"}


async def test_a_client_that_has_heard_enough_ends_one_subscription_and_its_source(sockets: Sockets) -> None:
    async with sockets.signed_in() as talk:
        await talk.start("one", "subscription { wait }")
        await talk.next("one")
        await talk.say(type="complete", id="one")

        await until(lambda: STAGE.done == ["wait"])
        # Nothing more is heard of it, and its id is free.
        await talk.ask("{ __typename }", operation_id="one")


async def test_a_client_that_goes_ends_its_subscriptions_and_queries(sockets: Sockets) -> None:
    async with sockets.signed_in() as talk:
        await talk.start("one", "subscription { wait }")
        await talk.next("one")
        await talk.start("two", "{ held }")
        await STAGE.entered.wait()

    await until(lambda: sorted(STAGE.done) == ["held", "wait"])


@pytest.mark.parametrize(("name", "code"), [("breaks", "server_error"), ("away", "temporarily_unavailable")])
async def test_a_source_that_breaks_ends_its_subscription_alone(sockets: Sockets, name: str, code: str) -> None:
    async with sockets.signed_in() as talk:
        await talk.start("one", f"subscription {{ {name} }}")
        await talk.next("one")
        (error,) = await talk.errors("one")

        assert error["extensions"]["code"] == code
        assert MARKER not in json.dumps(error)
        await talk.ask("{ __typename }")


async def test_loaders_live_as_long_as_one_event(sockets: Sockets) -> None:
    async with sockets.signed_in() as talk:
        await talk.start("one", "subscription { loaders { loaders } }")
        await talk.next("one")
        await talk.next("one")

    first, second = STAGE.done
    assert first is not second


async def test_the_end_of_something_unknown_is_no_mistake(sockets: Sockets) -> None:
    async with sockets.signed_in() as talk:
        await talk.say(type="complete", id="nothing")
        await talk.say(type="pong")

        await talk.ask("{ __typename }")


# Frames that are no messages


@asynccontextmanager
async def by_hand(sockets: Sockets) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a socket on which a test writes the bytes itself."""
    reader, writer = await asyncio.open_connection("127.0.0.1", sockets.port)
    writer.write(
        b"GET /graphql HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        b"Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n"
    )
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    try:
        async with asyncio.timeout(2 * SECONDS):
            yield reader, writer
    finally:
        writer.transport.abort()


NO_MESSAGES: list[Any] = [
    "",
    "no json",
    "null",
    "5",
    '"text"',
    "true",
    "[]",
    "{}",
    "[" * 100_000,
    "NaN",
    '{"type": null}',
    '{"type": 5}',
    '{"type": ["ping"]}',
    '{"type": "start"}',
    '{"type": "PING"}',
    '{"type": "ping", "type": "ping"}',
    '{"type": "ping", "payload": 5}',
    '{"type": "pong", "payload": []}',
    '{"type": "next", "id": "1", "payload": {}}',
    '{"type": "connection_ack"}',
    '{"type": "subscribe"}',
    '{"type": "subscribe", "payload": {"query": "{ __typename }"}}',
    '{"type": "subscribe", "id": "", "payload": {"query": "{ __typename }"}}',
    '{"type": "subscribe", "id": 1, "payload": {"query": "{ __typename }"}}',
    '{"type": "subscribe", "id": null, "payload": {"query": "{ __typename }"}}',
    '{"type": "subscribe", "id": "\\ud800", "payload": {"query": "{ __typename }"}}',
    '{"type": "subscribe", "id": "%s", "payload": {"query": "{ __typename }"}}' % ("x" * 257),
    '{"type": "subscribe", "id": "1", "payload": {"query": "{ a }", "query": "{ b }"}}',
    '{"type": "complete"}',
    '{"type": "complete", "id": {}}',
    '{"type": "ping"} {"type": "ping"}',
    b"",
    b'{"type": "ping"}',
]


@pytest.mark.parametrize("frame", NO_MESSAGES, ids=lambda frame: repr(frame)[:40])
async def test_a_frame_that_is_no_message_ends_its_own_socket_alone(sockets: Sockets, frame: str | bytes) -> None:
    async with sockets.signed_in() as well_behaved, sockets.signed_in() as other:
        await well_behaved.start("one", "subscription { wait }")
        await well_behaved.next("one")
        with structlog.testing.capture_logs() as lines:
            await other.connection.send(frame)
            code, reason = await other.closed()
        STAGE.gate.set()

        assert code == 4400
        assert reason
        assert [line["event"] for line in lines if line["event"] != "socket"] == []
        assert await well_behaved.next("one") == {"data": {"wait": "let go"}}


@pytest.mark.parametrize(
    "payload",
    [
        "null-but-text",
        5,
        [],
        {"Authorization": 5},
        {"Authorization": ["Bearer dev"]},
        {"Authorization": "Bearer dev", "authorization": "Bearer dev"},
        {"Authorization": "Bearer dev", "X-Brand-Id": "a\x00b"},
        {"Authorization": "Bearer dev", "X-Brand-Id": {}},
        {"Authorization": "Bearer d\u00e9v"},
    ],
)
async def test_a_first_message_that_nobody_could_send_as_headers_is_no_message(sockets: Sockets, payload: Any) -> None:
    async with sockets.talk() as talk:
        await talk.say(type="connection_init", payload=payload)

        assert (await talk.closed())[0] == 4400


async def test_what_is_no_text_is_refused(sockets: Sockets) -> None:
    async with sockets.signed_in() as talk:
        await talk.connection.send(b"\xff\xfe", text=True)

        assert (await talk.closed())[0] == 1007


async def test_a_message_beyond_a_megabyte_is_refused(sockets: Sockets) -> None:
    async with sockets.signed_in() as talk:
        await talk.connection.send("x" * (2**20 + 1))

        assert (await talk.closed())[0] == 1009


async def test_whoever_is_still_sending_hears_the_refusal_all_the_same(sockets: Sockets) -> None:
    async with by_hand(sockets) as (reader, writer):
        size = 32 * 2**20
        writer.write(b"\x81\xff" + size.to_bytes(8, "big") + bytes(4 + size))

        assert (await reader.readexactly(4))[2:] == (1009).to_bytes(2, "big")


async def test_a_message_in_endlessly_many_empty_pieces_is_refused(sockets: Sockets) -> None:
    async with sockets.signed_in() as talk:
        with suppress(ConnectionClosed):
            await talk.connection.send("" for _ in range(100_000))

        assert (await talk.closed())[0] == 1009


async def test_a_message_in_pieces_is_put_together(sockets: Sockets) -> None:
    async with sockets.signed_in() as talk:
        await talk.connection.send(iter(['{"type"', ': "pi', 'ng"}']))

        assert await talk.hear() == {"type": "pong"}


# Too much, and too slow


async def test_an_operation_beyond_the_limit_is_refused_and_the_others_go_on(database_url: str) -> None:
    async with (
        staged(database_url, socket_operations=3) as sockets,
        sockets.signed_in() as talk,
    ):
        for number in range(3):
            await talk.start(f"{number}", "subscription { wait }")
            await talk.next(f"{number}")

        assert (await talk.refusal("{ __typename }"))["code"] == "rate_limited"
        await talk.say(type="complete", id="0")
        await until(lambda: STAGE.done == ["wait"])
        await talk.ask("{ __typename }")


async def test_ten_thousand_operations_at_once_are_each_answered_or_refused(sockets: Sockets) -> None:
    many = 10_000
    async with sockets.signed_in() as flooding, sockets.signed_in() as other:

        async def flood() -> None:
            for number in range(many):
                await flooding.start(f"{number}", "{ __typename }")

        flood_task = asyncio.create_task(flood())
        waited: list[float] = []
        ended: set[str] = set()
        while len(ended) < many:
            message = await flooding.hear()
            if message["type"] in {"complete", "error"}:
                ended.add(message["id"])
            if len(ended) % 1_000 == 500:
                started = asyncio.get_running_loop().time()
                await other.ask("{ __typename }")
                waited.append(asyncio.get_running_loop().time() - started)
        await flood_task

    assert max(waited) < 1


async def test_who_does_not_read_is_sent_away_and_what_was_sent_is_bounded(sockets: Sockets) -> None:
    async with sockets.signed_in(max_queue=1) as deaf, sockets.signed_in() as other:
        await deaf.start("flood", "subscription { count(to: 1000000, characters: 50000) }")
        await deaf.next("flood")
        # The source is let go of when its event has waited too long.
        await until(lambda: STAGE.done == ["count"])
        await other.ask("{ __typename }")

        assert await deaf.closed() == (1013, "What was sent to you was not read in time.")


async def test_who_sends_pings_and_does_not_read_is_not_listened_to(sockets: Sockets) -> None:
    pings = (b"\x89\xfd\x00\x00\x00\x00" + b"x" * 125) * 1_000
    sent = 0
    async with by_hand(sockets) as (reader, writer):
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        try:
            while sent < 60 * 2**20:
                writer.write(pings)
                sent += len(pings)
                async with asyncio.timeout(0.3):
                    await writer.drain()
        except (TimeoutError, ConnectionError):
            pass

    # What lies unread in the buffers of two kernels.
    assert sent < 30 * 2**20


async def test_a_socket_too_many_is_told_to_try_again_later(database_url: str) -> None:
    async with staged(database_url, sockets_max=2) as sockets:
        async with sockets.signed_in(), sockets.signed_in(), sockets.talk() as third:
            assert (await third.closed())[0] == 1013
        async with sockets.signed_in() as talk:
            await talk.ask("{ __typename }")


# What has begun to change the record is finished


@pytest.mark.parametrize("leaving", ["goes", "has heard enough", "breaks the protocol"])
async def test_a_mutation_is_finished_although_nobody_listens_any_more(sockets: Sockets, leaving: str) -> None:
    async with sockets.signed_in() as talk:
        await talk.start("change", "mutation { hold }")
        await STAGE.entered.wait()
        if leaving == "has heard enough":
            await talk.say(type="complete", id="change")
            await talk.ask("{ __typename }", operation_id="change")
        elif leaving == "breaks the protocol":
            await talk.say(type="nonsense")
            assert (await talk.closed())[0] == 4400

    STAGE.gate.set()
    await until(lambda: STAGE.done == ["hold"])


async def test_a_server_that_stops_answers_mutations_and_closes_every_socket(database_url: str) -> None:
    async with staged(database_url) as sockets:
        async with sockets.signed_in() as changing, sockets.signed_in() as listening, sockets.talk() as unknown:
            await listening.start("one", "subscription { wait }")
            await listening.next("one")
            await changing.start("change", "mutation { hold }")
            await STAGE.entered.wait()

            sockets.server.should_exit = True
            closes = [await listening.closed(), await unknown.closed()]
            STAGE.gate.set()
            answer = await changing.next("change")
            closes.append((await changing.hear())["type"])
            closes.append(await changing.closed())

    assert answer == {"data": {"hold": "done"}}
    assert [close[0] if isinstance(close, tuple) else close for close in closes] == [1012, 1012, "complete", 1012]


async def test_a_server_that_may_not_wait_longer_still_says_why_it_closes(database_url: str) -> None:
    async with staged(database_url, drain_seconds=1) as sockets, sockets.signed_in() as talk:
        await talk.start("change", "mutation { hold }")
        await STAGE.entered.wait()
        sockets.server.should_exit = True

        assert (await talk.closed())[0] == 1012


# What is written down


async def test_a_socket_has_one_log_line_and_each_operation_one(sockets: Sockets, cast: Cast) -> None:
    patient_id = await cast.patient()
    with structlog.testing.capture_logs() as lines:
        async with sockets.signed_in(headers={"X-Request-Id": "d-socket"}) as talk:
            await talk.ask(RECORD, operation_id=MARKER, patientId=patient_id, input=VISIT)
            await talk.refusal(f"{{ {MARKER} }}")
            await talk.start("three", "subscription { wait }")
            await talk.next("three")
            await talk.say(type=MARKER)
            await talk.closed()
        await until(lambda: any(line["event"] == "socket" for line in lines))

    assert MARKER not in json.dumps(lines, default=str)
    (socket,) = [line for line in lines if line["event"] == "socket"]
    duration_ms = socket.pop("duration_ms")
    assert 0 < duration_ms < 1000 * SECONDS
    assert socket == {
        "event": "socket",
        "log_level": "info",
        "request_id": "d-socket",
        "route": "/graphql",
        "status": 101,
        "code": 4400,
        "operations": 3,
        "client_id": "app",
        "user_id": None,
        "brand_id": "loop",
    }
    operations = {line["request_id"]: line["outcome"] for line in lines if line["event"] == "operation"}
    assert operations == {"d-socket.1": "complete", "d-socket.2": "validation_error", "d-socket.3": "stopped"}


async def test_a_socket_that_is_refused_has_its_log_line_too(sockets: Sockets) -> None:
    with structlog.testing.capture_logs() as lines, pytest.raises(InvalidStatus):
        async with sockets.talk(headers={"Origin": "https://evil.example"}):
            pass

    assert [(line["event"], line["status"], line["client_id"]) for line in lines] == [("socket", 403, None)]
