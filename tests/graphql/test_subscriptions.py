"""`encounterEvents`: content, authorization and resumption, over WebSocket and server-sent events alike."""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import pytest

from gateway.database.database import PoolConnection
from resolvers.access import Permission
from tests.cast import Cast
from tests.conftest import fresh_database
from tests.controlled_schema import TOKENS, Tokens, settings
from tests.event_helpers import cursor_v1, rows
from tests.sse_client import COMPLETE, Stream, open_stream
from tests.waiting import wait_until
from tests.websocket_client import GatewayServer, WebSocketClient

BEGINNING = cursor_v1()
EVENTS = """subscription ($patientId: ID, $after: String) {
  encounterEvents(patientId: $patientId, after: $after) {
    cursor kind encounter { id patientId brandId status notes patient { id } }
  }
}"""
RECORD = """mutation ($patientId: ID!, $input: RecordEncounterInput!) {
  recordEncounter(patientId: $patientId, input: $input) { ... on EncounterRecorded { encounter { id } } }
}"""


@pytest.fixture(scope="module")
async def serving(database_url: str) -> AsyncIterator[GatewayServer]:
    async with gateway_on(database_url) as serving:
        yield serving


def gateway_on(database_url: str, *, port: int = 0, **changed: Any) -> AbstractAsyncContextManager[GatewayServer]:
    """Start a gateway on a database; several may serve one database."""
    return GatewayServer.serving(settings(database_url, socket_recheck_seconds=0.2, **changed), TOKENS.verify, port)


@pytest.fixture
def sockets(serving: GatewayServer, tokens: Tokens) -> GatewayServer:
    tokens.give("dev-loopbio", brand_id="loopbio")
    return serving


class Listener(Protocol):
    """A subscriber over either transport."""

    async def event(self) -> dict[str, Any]:
        """Return the next event."""

    async def refusal(self) -> dict[str, Any]:
        """Return the extensions of the error that ends the subscription."""


class OverSocket:
    """A subscriber over WebSocket."""

    def __init__(self, websocket: WebSocketClient) -> None:
        self.connect = websocket

    @classmethod
    @asynccontextmanager
    async def follow(
        cls, sockets: GatewayServer, *, token: str = "dev", query: str = EVENTS, **variables: Any
    ) -> AsyncIterator["OverSocket"]:
        async with sockets.authenticated(token) as websocket:
            await websocket.start("events", query, **variables)
            yield cls(websocket)

    async def event(self) -> dict[str, Any]:
        event: dict[str, Any] = (await self.connect.next("events"))["data"]["encounterEvents"]
        return event

    async def refusal(self) -> dict[str, Any]:
        (error,) = await self.connect.errors("events")
        extensions: dict[str, Any] = error["extensions"]
        return extensions


class OverStream:
    """A subscriber to server-sent events that resumes by the header `Last-Event-ID`."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    @classmethod
    @asynccontextmanager
    async def follow(
        cls,
        sockets: GatewayServer,
        *,
        token: str = "dev",
        query: str = EVENTS,
        after: str | None = None,
        **variables: Any,
    ) -> AsyncIterator["OverStream"]:
        headers = {"last-event-id": after.encode()} if after else {}
        origin = f"http://127.0.0.1:{sockets.port}"
        async with open_stream(origin, query, token=token, headers=headers, **variables) as stream:
            yield cls(stream)

    async def event(self) -> dict[str, Any]:
        heard = await self.stream.receive()
        event: dict[str, Any] = heard.body["data"]["encounterEvents"]
        assert heard.id == event["cursor"]
        return event

    async def refusal(self) -> dict[str, Any]:
        (error,) = (await self.stream.receive()).body["errors"]
        assert await self.stream.receive() == COMPLETE
        extensions: dict[str, Any] = error["extensions"]
        return extensions


Follow = Callable[..., AbstractAsyncContextManager[Listener]]


@pytest.fixture(params=[OverSocket, OverStream], ids=["socket", "stream"])
def follow(request: pytest.FixtureRequest) -> Follow:
    """Subscribe over either transport."""
    transport: Follow = request.param.follow
    return transport


async def record(
    sockets: GatewayServer, patient_id: str, *, token: str = "dev", brand_id: str = "loop", **more: Any
) -> str:
    """Record an encounter; return its id."""
    async with sockets.authenticated(token) as websocket:
        visit = {"brandId": brand_id, "encounterType": "LAB"} | more
        body = await websocket.ask(RECORD, patientId=patient_id, input=visit)
        encounter_id: str = body["data"]["recordEncounter"]["encounter"]["id"]
        return encounter_id


async def change(sockets: GatewayServer, encounter_id: str, what: str) -> None:
    """Change an encounter by a mutation; `what` is the field, `ID` where the encounter's id goes."""
    field = what.replace("ID", f'id: "{encounter_id}"')
    async with sockets.authenticated() as websocket:
        body = await websocket.ask(f"mutation {{ {field} {{ __typename ... on Problem {{ message }} }} }}")
    assert [each["__typename"] for each in body["data"].values()] == ["EncounterChanged"], body


# Content


async def test_a_recording_sends_an_event_with_the_encounter(
    follow: Follow, sockets: GatewayServer, cast: Cast
) -> None:
    patient_id = await cast.patient()

    async with follow(sockets, patientId=patient_id, after=BEGINNING) as listener:
        encounter_id = await record(sockets, patient_id, notes="Slept well.")
        event = await listener.event()

    assert event["kind"] == "RECORDED"
    assert event["encounter"] == {
        "id": encounter_id,
        "patientId": patient_id,
        "brandId": "loop",
        "status": "SCHEDULED",
        "notes": "Slept well.",
        "patient": {"id": patient_id},
    }


async def test_each_event_shows_the_encounter_as_of_its_delivery(
    follow: Follow, sockets: GatewayServer, cast: Cast
) -> None:
    patient_id = await cast.patient()

    async with follow(sockets, patientId=patient_id, after=BEGINNING) as listener:
        encounter_id = await record(sockets, patient_id)
        events = [await listener.event()]
        for what in ("startEncounter(ID)", "completeEncounter(ID)"):
            await change(sockets, encounter_id, what)
            events.append(await listener.event())

    assert [(event["kind"], event["encounter"]["status"]) for event in events] == [
        ("RECORDED", "SCHEDULED"),
        ("STARTED", "IN_PROGRESS"),
        ("COMPLETED", "COMPLETED"),
    ]


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("startEncounter(ID)", "STARTED"),
        ("cancelEncounter(ID)", "CANCELLED"),
        ("markEncounterNoShow(ID)", "NO_SHOW"),
        ('markEncounterEnteredInError(ID, reason: "Another patient.")', "ENTERED_IN_ERROR"),
        ('rescheduleEncounter(ID, scheduledAt: "2031-07-13T11:42:07Z")', "RESCHEDULED"),
        ('amendEncounter(ID, input: {notes: "Slept well."})', "AMENDED"),
    ],
)
async def test_each_change_has_its_kind_of_event(sockets: GatewayServer, cast: Cast, what: str, kind: str) -> None:
    patient_id = await cast.patient()
    await change(sockets, await record(sockets, patient_id), what)

    async with OverStream.follow(sockets, patientId=patient_id, after=BEGINNING) as listener:
        assert [(await listener.event())["kind"] for _ in range(2)] == ["RECORDED", kind]


async def test_without_a_cursor_only_events_after_the_subscription_are_sent(sockets: GatewayServer, cast: Cast) -> None:
    patient_id = await cast.patient()
    await record(sockets, patient_id)
    async with OverStream.follow(sockets, patientId=patient_id, after=BEGINNING) as listener:
        await listener.event()

    async with OverStream.follow(sockets, patientId=patient_id) as listener:
        later = await record(sockets, patient_id)

        assert (await listener.event())["encounter"]["id"] == later


async def test_an_event_that_shows_an_encounter_is_audited_as_a_read(
    follow: Follow, sockets: GatewayServer, cast: Cast
) -> None:
    patient_id = await cast.patient()
    async with follow(sockets, patientId=patient_id, after=BEGINNING) as listener:
        await record(sockets, patient_id)
        await listener.event()

    count = """SELECT count(*) FROM patient_graph.audit_log
        WHERE patient_id = $1 AND event_type = 'patient_graph.encounters.read' AND actor_id = 'app'"""
    await wait_until(lambda: cast.connection.fetchval(count, patient_id))


async def test_the_encounter_of_an_event_is_read_by_one_statement(
    follow: Follow, sockets: GatewayServer, cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient_id = await cast.patient()
    for _ in range(5):
        await record(sockets, patient_id)
    fetch, sent = PoolConnection.fetch, Counter[str]()

    async def counted(self: PoolConnection, statement: Any, **values: Any) -> Any:
        sent[statement.text] += "FROM patient_graph.encounters" in statement.text
        return await fetch(self, statement, **values)

    monkeypatch.setattr(PoolConnection, "fetch", counted)
    query = EVENTS.replace("kind encounter", "kind a: encounter { id } b: encounter { notes } encounter")
    async with follow(sockets, query=query, patientId=patient_id, after=BEGINNING) as listener:
        for _ in range(5):
            assert (await listener.event())["a"]

    assert sent.total() == 5


# Authorization


@pytest.mark.parametrize(
    ("variables", "code"),
    [
        ({"patientId": "nobody"}, "not_found"),
        ({"patientId": ""}, "not_found"),
        ({"after": "made-up"}, "validation_error"),
        ({"after": cursor_v1("loopbio")}, "validation_error"),
        ({"after": cursor_v1("loop", 10**12)}, "validation_error"),
    ],
)
async def test_an_unknown_patient_or_cursor_is_refused_by_the_first_message(
    follow: Follow, sockets: GatewayServer, variables: dict[str, Any], code: str
) -> None:
    async with follow(sockets, **variables) as listener:
        extensions = await listener.refusal()

    assert (extensions["code"], extensions["recorded"]) == (code, "no")


async def test_a_missing_scope_is_refused_and_the_needed_scope_named(
    follow: Follow, sockets: GatewayServer, tokens: Tokens
) -> None:
    tokens.give("writer", "write:encounters")

    async with follow(sockets, token="writer") as listener:
        extensions = await listener.refusal()

    assert (extensions["code"], extensions["recorded"]) == ("insufficient_scope", "no")
    assert extensions["scopes"] == ["read:encounters"]


async def test_a_missing_scope_is_challenged_in_the_headers_of_a_stream(sockets: GatewayServer, tokens: Tokens) -> None:
    tokens.give("writer", "write:encounters")

    async with OverStream.follow(sockets, token="writer") as listener:
        challenge = listener.stream.response.headers["www-authenticate"]

    assert challenge == 'Bearer error="insufficient_scope", scope="read:encounters"'


async def test_a_patient_of_another_brand_is_refused_like_an_unknown_one(
    follow: Follow, sockets: GatewayServer, cast: Cast
) -> None:
    refusals = []
    for patient_id in (await cast.patient("loopbio"), "nobody"):
        async with follow(sockets, patientId=patient_id) as listener:
            refusals.append(await listener.refusal() | {"request_id": None})

    assert refusals[0] == refusals[1]
    assert refusals[0]["code"] == "not_found"


REGISTER = "INSERT INTO patient_graph.patients (id, brand_id) VALUES ('a', 'loop'), ('b', 'loop'), ('a', 'loopbio')"


async def test_events_of_other_brands_and_other_patients_are_not_sent(
    follow: Follow, sockets: GatewayServer, server_url: str
) -> None:
    url = await fresh_database(server_url)
    await rows(url, REGISTER)
    async with gateway_on(url) as alone:
        ours, of_a = [], []
        for _ in range(3):
            ours.append(await record(alone, "b"))
            await record(alone, "a", token="dev-loopbio", brand_id="loopbio")
            of_a.append(await record(alone, "a"))
            ours.append(of_a[-1])
        async with (
            follow(alone, after=BEGINNING) as brand,
            follow(alone, patientId="a", after=BEGINNING) as patient,
        ):
            assert [(await brand.event())["encounter"]["id"] for _ in ours] == ours
            assert [(await patient.event())["encounter"]["id"] for _ in of_a] == of_a


async def test_subscribers_share_rows_but_not_permissions_or_audit_entries(
    follow: Follow, database_url: str, tokens: Tokens, cast: Cast
) -> None:
    patient_id = await cast.patient()
    tokens.give("half", "read:encounters")
    own_right = {Permission.READ_PATIENTS: ("read:patients",)}

    async with (
        gateway_on(database_url, scopes=own_right) as sockets,
        follow(sockets, patientId=patient_id, after=BEGINNING) as may,
        follow(sockets, patientId=patient_id, after=BEGINNING, token="half") as may_not,
        follow(sockets, patientId=patient_id, after=BEGINNING) as may_too,
    ):
        encounter_id = await record(sockets, patient_id)
        received = [(await listener.event())["encounter"]["id"] for listener in (may, may_too)]
        refused = await may_not.refusal()

    assert received == [encounter_id] * 2
    assert (refused["code"], refused["scopes"]) == ("insufficient_scope", ["read:patients"])
    count = """SELECT count(DISTINCT request_id) FROM patient_graph.audit_log
        WHERE patient_id = $1 AND event_type = 'patient_graph.encounters.read'"""
    assert await cast.connection.fetchval(count, patient_id) == 3


async def test_an_unreadable_row_ends_only_the_subscriptions_that_show_it(
    follow: Follow, server_url: str, sockets: GatewayServer
) -> None:
    url = await fresh_database(server_url)
    await rows(url, REGISTER)
    async with gateway_on(url) as alone:
        broken = await record(alone, "a", token="dev-loopbio", brand_id="loopbio")
        # Python has no such time. Only SQL sent to the database directly can write it.
        await rows(url, "UPDATE patient_graph.encounters SET scheduled_at = 'infinity' WHERE id = $1", broken)
        async with (
            follow(alone, after=BEGINNING) as ours,
            follow(alone, after=cursor_v1("loopbio"), token="dev-loopbio") as theirs,
        ):
            assert (await theirs.refusal())["code"] == "server_error"
            async with follow(alone, token="dev-loopbio", query="subscription { encounterEvents { kind } }") as live:
                await rows(
                    url,
                    f"""INSERT INTO patient_graph.outbox (patient_id, id, brand_id, event_type, payload)
                    SELECT patient_id, gen_random_uuid(), brand_id, event_type, payload FROM patient_graph.outbox
                    WHERE payload ->> 'encounter_id' = '{broken}'""",
                )
                recorded = await record(alone, "a")

                assert (await ours.event())["encounter"]["id"] == recorded
                if isinstance(live, OverSocket):
                    assert await live.event() == {"kind": "RECORDED"}


# Resumption


async def test_resuming_after_a_restart_gets_each_event_exactly_once(
    follow: Follow, sockets: GatewayServer, server_url: str
) -> None:
    url = await fresh_database(server_url)
    await rows(url, REGISTER)
    recorded: list[str] = []
    heard: list[str] = []
    cursor = BEGINNING
    for _ in range(3):
        # Each round has a new gateway and records more after the subscriber has disconnected.
        async with gateway_on(url) as gateway:
            async with follow(gateway, after=cursor) as listener:
                recorded += [await record(gateway, "a") for _ in range(3)]
                while len(heard) < len(recorded) - 1:
                    event = await listener.event()
                    cursor = event["cursor"]
                    heard.append(event["encounter"]["id"])
            recorded += [await record(gateway, "b") for _ in range(3)]
    async with gateway_on(url) as gateway, follow(gateway, after=cursor) as listener:
        recorded.append(await record(gateway, "b"))
        heard += [(await listener.event())["encounter"]["id"] for _ in recorded[len(heard) :]]

    assert heard == recorded


async def test_a_recording_at_one_gateway_sends_its_event_at_another(
    follow: Follow, sockets: GatewayServer, cast: Cast, database_url: str
) -> None:
    patient_id = await cast.patient()

    async with gateway_on(database_url) as other, follow(other, patientId=patient_id, after=BEGINNING) as listener:
        recorded = [await record(gateway, patient_id) for gateway in (sockets, other, sockets)]

        assert [(await listener.event())["encounter"]["id"] for _ in recorded] == recorded


async def test_last_event_id_takes_precedence_over_the_cursor_in_the_url(sockets: GatewayServer, cast: Cast) -> None:
    patient_id = await cast.patient()
    recorded = [await record(sockets, patient_id) for _ in range(3)]
    origin = f"http://127.0.0.1:{sockets.port}"
    asked: dict[str, Any] = {"method": "GET", "patientId": patient_id, "after": BEGINNING}
    async with open_stream(origin, EVENTS, **asked) as stream:
        seen = [await stream.receive() for _ in range(2)]

    assert seen[-1].id
    async with open_stream(origin, EVENTS, headers={"last-event-id": seen[-1].id}, **asked) as stream:
        event = await stream.receive()

    assert event.body["data"]["encounterEvents"]["encounter"]["id"] == recorded[2]


@pytest.mark.parametrize("sent", ["made-up", "caf\u00e9", "0", "x" * 10_000])
async def test_an_invalid_last_event_id_is_refused_and_not_repeated(sockets: GatewayServer, sent: str) -> None:
    async with OverStream.follow(sockets, after=sent) as listener:
        event, last = await listener.stream.rest()

    assert (event.code, last) == ("validation_error", COMPLETE)
    assert sent not in event.data or sent == "0"


# Rate limits and expiry


async def test_a_subscription_counts_as_one_read_whatever_the_number_of_events(
    follow: Follow, sockets: GatewayServer, cast: Cast, database_url: str
) -> None:
    patient_id = await cast.patient()
    for _ in range(5):
        await record(sockets, patient_id)

    async with gateway_on(database_url, rate_reads_per_minute=2) as sparing:
        async with follow(sparing, patientId=patient_id, after=BEGINNING) as listener:
            for _ in range(5):
                await listener.event()
        async with sparing.authenticated() as websocket:
            assert await websocket.ask("{ __typename }")
            assert (await websocket.refusal("{ __typename }"))["code"] == "rate_limited"


async def test_an_expired_token_closes_the_websocket_of_a_subscription(
    sockets: GatewayServer, cast: Cast, tokens: Tokens
) -> None:
    patient_id = await cast.patient()
    tokens.give("short", seconds=2.0)

    async with OverSocket.follow(sockets, token="short", patientId=patient_id, after=BEGINNING) as listener:
        await record(sockets, patient_id)
        await listener.event()

        assert await listener.connect.closed() == (4403, "invalid_token: it has expired.")


async def test_an_expired_token_ends_the_stream_of_a_subscription(
    sockets: GatewayServer, cast: Cast, tokens: Tokens
) -> None:
    patient_id = await cast.patient()
    tokens.give("short", seconds=2.0)

    async with OverStream.follow(sockets, token="short", patientId=patient_id, after=BEGINNING) as listener:
        await record(sockets, patient_id)
        await listener.event()

        assert (await listener.refusal())["code"] == "invalid_token"


async def test_errors_of_other_operations_do_not_end_a_subscription(sockets: GatewayServer, cast: Cast) -> None:
    patient_id = await cast.patient()

    async with OverSocket.follow(sockets, patientId=patient_id, after=BEGINNING) as listener:
        for query in ("subscription {", "subscription { nothing }", EVENTS.replace("kind", "kind nothing")):
            assert (await listener.connect.refusal(query))["code"] == "validation_error"
        assert (await listener.connect.refusal(EVENTS, patientId="nobody"))["code"] == "not_found"
        for odd in (b'{"type": "ping"}', '{"type": "start"}'):
            async with OverSocket.follow(sockets, patientId=patient_id) as other:
                await other.connect.connection.send(odd)
                assert (await other.connect.closed())[0] == 4400
        encounter_id = await record(sockets, patient_id)

        assert (await listener.event())["encounter"]["id"] == encounter_id


async def test_an_event_of_an_erased_encounter_ends_the_stream(
    sockets: GatewayServer, follow: Follow, cast: Cast
) -> None:
    """The event was read before the erasure, and its encounter afterwards."""
    patient_id = await cast.patient()
    async with follow(sockets, patientId=patient_id, after=BEGINNING) as listener:
        first = await record(sockets, patient_id)
        shown = await listener.event()
        await cast.connection.execute(
            """INSERT INTO patient_graph.outbox (patient_id, id, brand_id, event_type, payload)
            SELECT patient_id, gen_random_uuid(), brand_id, event_type,
                payload || jsonb_build_object('encounter_id', gen_random_uuid())
            FROM patient_graph.outbox WHERE patient_id = $1""",
            patient_id,
        )
        refused = await listener.refusal()
    assert shown["encounter"]["id"] == first
    assert refused["code"] == "temporarily_unavailable"

    await cast.connection.execute(
        "DELETE FROM patient_graph.outbox WHERE patient_id = $1 AND payload ->> 'encounter_id' <> $2", patient_id, first
    )
    later = await record(sockets, patient_id)
    async with follow(sockets, patientId=patient_id, after=shown["cursor"]) as listener:
        assert (await listener.event())["encounter"]["id"] == later
