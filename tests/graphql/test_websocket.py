"""GraphQL over WebSocket: authentication, expiry of tokens, operations, subscriptions and logs."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

import schema.transport.websocket
from schema.transport import close_codes
from schema.transport.close_codes import GONE, Close
from schema.transport.long_lived import TokenEnd, watch_token
from tests.cast import Cast
from tests.controlled_schema import MARKER, Control, Tokens, controlled_gateway
from tests.doors import RECORD
from tests.logs import captured_logs
from tests.waiting import wait_until
from tests.websocket_client import TIMEOUT_SECONDS, GatewayServer

VISIT = {"brandId": "loop", "encounterType": "LAB", "notes": MARKER}


# Authentication


@pytest.mark.parametrize("name", ["Authorization", "authorization", "AUTHORIZATION"])
async def test_connection_init_authenticates_by_its_authorization(sockets: GatewayServer, name: str) -> None:
    async with sockets.connect() as websocket:
        await websocket.send(type="connection_init", payload={name: "bearer dev"})

        assert await websocket.receive() == {"type": "connection_ack"}
        assert await websocket.ask("{ __typename }") == {"data": {"__typename": "Query"}}


@pytest.mark.parametrize("payload", [{}, {"payload": None}, {"payload": {"Authorization": None, "else": [1]}}])
async def test_the_token_may_be_sent_with_the_upgrade_instead(sockets: GatewayServer, payload: dict[str, Any]) -> None:
    async with sockets.connect(headers={"Authorization": "Bearer dev"}) as websocket:
        await websocket.send(type="connection_init", **payload)

        assert await websocket.receive() == {"type": "connection_ack"}


async def test_the_token_of_connection_init_takes_precedence_over_the_upgrade(sockets: GatewayServer) -> None:
    async with sockets.connect(headers={"Authorization": "Bearer dev"}) as websocket:
        await websocket.send(type="connection_init", payload={"authorization": "Bearer nonsense"})

        assert await websocket.closed() == (4403, "invalid_token")


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
async def test_a_refused_connection_init_has_its_close_code(
    sockets: GatewayServer, payload: dict[str, Any], close: tuple[int, str]
) -> None:
    async with sockets.connect() as websocket:
        await websocket.send(type="connection_init", payload=payload)

        assert await websocket.closed() == close


async def test_an_outage_of_the_identity_provider_closes_with_try_again_later(
    sockets: GatewayServer, tokens: Tokens
) -> None:
    tokens.away = True
    async with sockets.connect() as websocket:
        await websocket.send(type="connection_init", payload={"Authorization": "Bearer dev"})

        assert await websocket.closed() == (1013, "temporarily_unavailable")


async def test_an_expired_token_is_refused(sockets: GatewayServer, tokens: Tokens) -> None:
    tokens.give("late", seconds=-1)
    async with sockets.connect() as websocket:
        await websocket.send(type="connection_init", payload={"Authorization": "Bearer late"})

        assert (await websocket.closed())[0] == 4403


async def test_an_operation_before_connection_init_closes_the_socket(sockets: GatewayServer) -> None:
    async with sockets.connect() as websocket:
        await websocket.start("one", "{ __typename }")

        assert (await websocket.closed())[0] == 4401


@pytest.mark.parametrize("kind", ["connection_init", "ping"])
async def test_a_long_message_before_authentication_is_not_parsed(sockets: GatewayServer, kind: str) -> None:
    async with sockets.connect() as websocket:
        await websocket.send(type=kind, payload={"padding": "0." * 10_000})

        assert (await websocket.closed())[0] == 4400


async def test_a_second_connection_init_closes_the_socket(sockets: GatewayServer) -> None:
    async with sockets.authenticated() as websocket:
        await websocket.send(type="connection_init", payload={"Authorization": "Bearer dev"})

        assert (await websocket.closed())[0] == 4429


async def test_a_missing_connection_init_closes_the_socket_after_a_timeout(
    database_url: str, control: Control, tokens: Tokens
) -> None:
    async with controlled_gateway(database_url, socket_init_seconds=2) as sockets, sockets.connect() as websocket:
        await websocket.send(type="ping")
        assert await websocket.receive() == {"type": "pong"}

        assert (await websocket.closed())[0] == 4408


@pytest.mark.parametrize("subprotocols", [["graphql-ws"], ["mqtt", "graphql-ws"], []])
async def test_another_subprotocol_is_refused(sockets: GatewayServer, subprotocols: list[str]) -> None:
    async with sockets.connect(subprotocols=subprotocols) as websocket:
        assert await websocket.closed() == (4406, "The only supported subprotocol is graphql-transport-ws.")


async def test_graphql_transport_ws_is_chosen_among_several_subprotocols(sockets: GatewayServer) -> None:
    async with sockets.authenticated(subprotocols=["graphql-ws", "graphql-transport-ws"]) as websocket:
        assert websocket.connection.subprotocol == "graphql-transport-ws"


# Origins


@pytest.mark.parametrize("origin", ["https://evil.example", "http://app.example", "https://app.example:8443", "null"])
async def test_an_origin_of_no_client_is_refused_at_the_upgrade(sockets: GatewayServer, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with sockets.connect(headers={"Origin": origin}):
            pass

    assert refused.value.response.status_code == 403


async def test_an_origin_of_another_client_is_refused_after_authentication(sockets: GatewayServer) -> None:
    async with sockets.connect(headers={"Origin": "https://other.example"}) as websocket:
        await websocket.send(type="connection_init", payload={"Authorization": "Bearer dev"})

        assert await websocket.closed() == (4403, "forbidden")


async def test_an_origin_of_the_client_is_accepted(sockets: GatewayServer) -> None:
    async with sockets.authenticated(headers={"Origin": "https://app.example"}):
        pass


async def test_the_gateways_own_origin_is_accepted(sockets: GatewayServer) -> None:
    async with sockets.authenticated(headers={"Origin": f"http://127.0.0.1:{sockets.port}"}):
        pass


# Expiry and revocation


async def test_a_socket_is_closed_when_its_token_expires(
    sockets: GatewayServer, tokens: Tokens, control: Control
) -> None:
    tokens.give("short", seconds=1.5)
    async with sockets.authenticated("short") as websocket:
        await websocket.start("one", "subscription { wait }")
        await websocket.next("one")
        started = asyncio.get_running_loop().time()

        assert await websocket.closed() == (4403, "invalid_token: it has expired.")
        assert 0 < asyncio.get_running_loop().time() - started < 2.3
    await wait_until(lambda: control.done == ["wait"], TIMEOUT_SECONDS)


async def test_a_revoked_token_closes_the_socket_at_the_next_recheck(sockets: GatewayServer, tokens: Tokens) -> None:
    async with sockets.authenticated() as websocket:
        del tokens.callers["dev"]

        assert await websocket.closed() == (4403, "invalid_token: it is no longer valid.")


async def test_a_token_with_reduced_rights_closes_the_socket(sockets: GatewayServer, tokens: Tokens) -> None:
    async with sockets.authenticated() as websocket:
        tokens.give("dev", "read:encounters")

        assert (await websocket.closed())[0] == 4403


async def test_a_prolonged_token_keeps_the_socket_open(sockets: GatewayServer, tokens: Tokens) -> None:
    tokens.give("dev", seconds=0.6)
    async with sockets.authenticated() as websocket:
        tokens.give("dev", seconds=60)
        asked = tokens.asked
        await wait_until(lambda: tokens.asked >= asked + 5, TIMEOUT_SECONDS)

        await websocket.ask("{ __typename }")


async def test_a_socket_survives_a_provider_outage_until_its_token_expires(
    sockets: GatewayServer, tokens: Tokens
) -> None:
    tokens.give("short", seconds=1.2)
    async with sockets.authenticated("short") as websocket:
        tokens.away = True
        asked = tokens.asked
        await wait_until(lambda: tokens.asked >= asked + 3, TIMEOUT_SECONDS)
        await websocket.ask("{ __typename }")

        assert await websocket.closed() == (4403, "invalid_token: it has expired.")


async def test_a_running_mutation_is_answered_before_an_expired_socket_closes(
    sockets: GatewayServer, tokens: Tokens, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[TokenEnd] = []

    async def watched(*arguments: Any) -> TokenEnd:
        ends.append(await watch_token(*arguments))
        return ends[0]

    monkeypatch.setattr(schema.transport.websocket, "watch_token", watched)
    tokens.give("short", seconds=1.5)
    async with sockets.authenticated("short") as websocket:
        await websocket.start("change", "mutation { hold }")
        await wait_until(lambda: ends == [TokenEnd.EXPIRED])
        control.gate.set()

        assert await websocket.next("change") == {"data": {"hold": "done"}}
        assert await websocket.receive() == {"type": "complete", "id": "change"}
        assert (await websocket.closed())[0] == 4403


# Operations


async def test_a_mutation_records_an_encounter(sockets: GatewayServer, cast: Cast) -> None:
    patient_id = await cast.patient()
    async with sockets.authenticated(headers={"X-Request-Id": "a-socket"}) as websocket:
        await websocket.ask("{ __typename }")
        body = await websocket.ask(RECORD, patientId=patient_id, input=VISIT)

    (row,) = await cast.rows(patient_id)
    assert str(row["id"]) == body["data"]["recordEncounter"]["encounter"]["id"]
    entry = await cast.connection.fetchrow(
        "SELECT actor_id, request_id FROM patient_graph.audit_log WHERE patient_id = $1", patient_id
    )
    assert entry is not None
    assert tuple(entry) == ("app", "a-socket.2")


async def test_an_error_has_the_request_id_of_its_operation(sockets: GatewayServer) -> None:
    async with sockets.authenticated(headers={"X-Request-Id": "b-socket"}) as websocket:
        ids = [(await websocket.refusal("{ nothing }"))["request_id"] for _ in range(2)]

    assert ids == ["b-socket.1", "b-socket.2"]


async def test_an_operation_without_its_scope_is_refused(sockets: GatewayServer, tokens: Tokens, cast: Cast) -> None:
    tokens.give("reader", "read:encounters")
    async with sockets.authenticated("reader") as websocket:
        body = await websocket.ask(RECORD, patientId=await cast.patient(), input=VISIT)

    assert body["errors"][0]["extensions"]["code"] == "insufficient_scope"


async def test_a_patient_of_another_brand_is_null(sockets: GatewayServer, tokens: Tokens, cast: Cast) -> None:
    patient_id = await cast.patient("loopbio")
    tokens.give("bio", brand_id="loopbio")
    query = "query ($id: ID!) { patient(id: $id) { id } }"

    async with sockets.authenticated() as ours, sockets.authenticated("bio") as theirs:
        assert (await ours.ask(query, id=patient_id))["data"]["patient"] is None
        assert (await theirs.ask(query, id=patient_id))["data"]["patient"] == {"id": patient_id}


async def test_a_client_of_all_brands_names_one_in_connection_init(
    sockets: GatewayServer, tokens: Tokens, cast: Cast
) -> None:
    patient_id = await cast.patient("loopbio")
    tokens.give("machine", brand_id=None)
    query = "query ($id: ID!) { patient(id: $id) { id } }"
    async with sockets.connect() as websocket:
        await websocket.authenticate("machine", **{"x-brand-id": "loopbio"})

        assert (await websocket.ask(query, id=patient_id))["data"]["patient"] == {"id": patient_id}


async def test_a_brand_that_contradicts_the_token_is_forbidden(sockets: GatewayServer) -> None:
    async with sockets.connect() as websocket:
        await websocket.authenticate("dev", **{"X-Brand-Id": "loopbio"})

        assert (await websocket.refusal("{ __typename }"))["code"] == "forbidden"


async def test_operations_on_a_socket_count_against_the_rate_limit(
    database_url: str, control: Control, tokens: Tokens
) -> None:
    async with (
        controlled_gateway(database_url, rate_reads_per_minute=2) as sockets,
        sockets.authenticated() as websocket,
    ):
        await websocket.ask("{ __typename }")
        await websocket.start("malformed", 5)  # type: ignore[arg-type]
        await websocket.errors("malformed")

        assert (await websocket.refusal("{ __typename }"))["code"] == "rate_limited"


MANY_PAGES = " ".join(f"page{n}: encounters(first: 100) {{ nodes {{ id }} }}" for n in range(1_000))
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
    ({"query": f"subscription {{ patients {{ {MANY_PAGES} }} }}"}, "validation_error"),
    ({"query": "{ __typename }", "variables": {"long": "x" * 300_000}}, "payload_too_large"),
]


@pytest.mark.parametrize(("payload", "code"), REFUSED)
async def test_a_refused_operation_does_not_affect_another(
    sockets: GatewayServer, payload: Any, code: str, control: Control
) -> None:
    async with sockets.authenticated() as websocket:
        await websocket.start("other", "subscription { wait }")
        await websocket.next("other")

        await websocket.send(type="subscribe", id="bad", payload=payload)
        errors = await websocket.errors("bad")
        control.gate.set()

        assert {error["extensions"]["code"] for error in errors} == {code}
        assert MARKER not in json.dumps(errors)
        assert await websocket.next("other") == {"data": {"wait": "let go"}}


async def test_an_unexpected_error_is_reported_by_its_request_id_only(sockets: GatewayServer) -> None:
    async with sockets.authenticated(headers={"X-Request-Id": "c-socket"}) as websocket:
        with captured_logs() as lines:
            body = await websocket.ask("query { broken }")

    (error,) = body["errors"]
    assert error["extensions"] == {"code": "server_error", "recorded": "unknown", "request_id": "c-socket.1"}
    assert MARKER not in json.dumps(body) + json.dumps(lines, default=str)
    (line,) = [line for line in lines if line["event"] == "unexpected"]
    assert (line["request_id"], line["error"]) == ("c-socket.1", "ValueError")


async def test_operations_run_concurrently(sockets: GatewayServer, control: Control) -> None:
    async with sockets.authenticated() as websocket:
        await websocket.start("slow", "{ held }")

        assert await websocket.ask("{ __typename }", operation_id="quick") == {"data": {"__typename": "Query"}}
        control.gate.set()
        assert await websocket.next("slow") == {"data": {"held": "let go"}}


async def test_an_operation_id_may_be_reused_after_its_operation(sockets: GatewayServer) -> None:
    async with sockets.authenticated() as websocket:
        for _ in range(3):
            await websocket.ask("{ __typename }", operation_id="again")


async def test_an_operation_id_in_use_closes_the_socket(sockets: GatewayServer) -> None:
    async with sockets.authenticated() as websocket:
        await websocket.start("same", "subscription { wait }")
        await websocket.start("same", "{ __typename }")

        assert (await websocket.closed())[0] == 4409


# Subscriptions


async def test_a_subscription_sends_each_event_and_then_complete(sockets: GatewayServer) -> None:
    async with sockets.authenticated() as websocket:
        await websocket.start("one", "subscription ($to: Int!) { count(to: $to) }", to=3)

        assert [(await websocket.next("one"))["data"]["count"] for _ in range(3)] == ["0", "1", "2"]
        assert await websocket.receive() == {"type": "complete", "id": "one"}


async def test_complete_from_the_client_ends_one_subscription_and_its_source(
    sockets: GatewayServer, control: Control
) -> None:
    async with sockets.authenticated() as websocket:
        await websocket.start("one", "subscription { wait }")
        await websocket.next("one")
        await websocket.send(type="complete", id="one")

        await wait_until(lambda: control.done == ["wait"], TIMEOUT_SECONDS)
        # No further message follows, and the id is free.
        await websocket.ask("{ __typename }", operation_id="one")


async def test_a_disconnect_ends_subscriptions_and_queries(sockets: GatewayServer, control: Control) -> None:
    async with sockets.authenticated() as websocket:
        await websocket.start("one", "subscription { wait }")
        await websocket.next("one")
        await websocket.start("two", "{ held }")
        await control.entered.wait()

    await wait_until(lambda: sorted(control.done) == ["held", "wait"], TIMEOUT_SECONDS)


@pytest.mark.parametrize(("name", "code"), [("breaks", "server_error"), ("away", "temporarily_unavailable")])
async def test_a_failing_source_ends_only_its_own_subscription(sockets: GatewayServer, name: str, code: str) -> None:
    async with sockets.authenticated() as websocket:
        await websocket.start("one", f"subscription {{ {name} }}")
        await websocket.next("one")
        (error,) = await websocket.errors("one")

        assert error["extensions"]["code"] == code
        assert MARKER not in json.dumps(error)
        await websocket.ask("{ __typename }")


async def test_each_event_has_its_own_loaders(sockets: GatewayServer, control: Control) -> None:
    async with sockets.authenticated() as websocket:
        await websocket.start("one", "subscription { loaders { loaders } }")
        await websocket.next("one")
        await websocket.next("one")

    first, second = control.done
    assert first is not second


async def test_complete_for_an_unknown_id_is_ignored(sockets: GatewayServer) -> None:
    async with sockets.authenticated() as websocket:
        await websocket.send(type="complete", id="nothing")
        await websocket.send(type="pong")

        await websocket.ask("{ __typename }")


# Logs and documentation


async def test_a_socket_and_each_of_its_operations_have_one_log_line(sockets: GatewayServer, cast: Cast) -> None:
    patient_id = await cast.patient()
    with captured_logs() as lines:
        async with sockets.authenticated(headers={"X-Request-Id": "d-socket"}) as websocket:
            await websocket.ask(RECORD, operation_id=MARKER, patientId=patient_id, input=VISIT)
            await websocket.refusal(f"{{ {MARKER} }}")
            await websocket.start("three", "subscription { wait }")
            await websocket.next("three")
            await websocket.send(type=MARKER)
            await websocket.closed()
        await wait_until(lambda: any(line["event"] == "socket" for line in lines), TIMEOUT_SECONDS)

    assert MARKER not in json.dumps(lines, default=str)
    (socket,) = [line for line in lines if line["event"] == "socket"]
    duration_ms = socket.pop("duration_ms")
    assert 0 < duration_ms < 1000 * TIMEOUT_SECONDS
    assert socket == {
        "event": "socket",
        "level": "info",
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


async def test_a_refused_upgrade_has_a_log_line(sockets: GatewayServer) -> None:
    with captured_logs() as lines, pytest.raises(InvalidStatus):
        async with sockets.connect(headers={"Origin": "https://evil.example"}):
            pass

    assert [(line["event"], line["status"], line["client_id"]) for line in lines] == [("socket", 403, None)]


def test_every_close_reason_is_documented_and_fits_into_a_frame() -> None:
    documented = (Path(__file__).parents[2] / "docs" / "sockets.md").read_text()
    closes = [each for each in vars(close_codes).values() if isinstance(each, Close) and each is not GONE]
    closes += close_codes.TOKEN_ENDED.values()

    assert len(closes) > 10
    for close in closes:
        assert f"| {close.code} |" in documented
        # RFC 6455, section 5.5: 125 bytes in all, two for the code.
        assert len(close.reason.encode()) <= 123
