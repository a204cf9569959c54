"""GraphQL over a WebSocket: who is let in and for how long, and what becomes of their operations."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from schema.transport import close_codes
from schema.transport.close_codes import GONE, Close
from tests.cast import Cast
from tests.doors import RECORD
from tests.logs import captured
from tests.sockets import SECONDS, Sockets
from tests.staged import MARKER, Stage, Tokens, staged, until

VISIT = {"brandId": "loop", "encounterType": "LAB", "notes": MARKER}


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
    sockets: Sockets, tokens: Tokens
) -> None:
    tokens.away = True
    async with sockets.talk() as talk:
        await talk.say(type="connection_init", payload={"Authorization": "Bearer dev"})

        assert await talk.closed() == (1013, "temporarily_unavailable")


async def test_a_token_that_has_expired_lets_nobody_in(sockets: Sockets, tokens: Tokens) -> None:
    tokens.give("late", seconds=-1)
    async with sockets.talk() as talk:
        await talk.say(type="connection_init", payload={"Authorization": "Bearer late"})

        assert (await talk.closed())[0] == 4403


async def test_whoever_asks_before_signing_in_is_sent_away(sockets: Sockets) -> None:
    async with sockets.talk() as talk:
        await talk.start("one", "{ __typename }")

        assert (await talk.closed())[0] == 4401


@pytest.mark.parametrize("kind", ["connection_init", "ping"])
async def test_before_sign_in_a_long_message_is_not_parsed(sockets: Sockets, kind: str) -> None:
    async with sockets.talk() as talk:
        await talk.say(type=kind, payload={"padding": "0." * 10_000})

        assert (await talk.closed())[0] == 4400


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


async def test_a_socket_is_closed_when_its_token_expires(sockets: Sockets, tokens: Tokens, stage: Stage) -> None:
    tokens.give("short", seconds=0.7)
    async with sockets.signed_in("short") as talk:
        await talk.start("one", "subscription { wait }")
        await talk.next("one")
        started = asyncio.get_running_loop().time()

        assert await talk.closed() == (4403, "invalid_token: it has expired.")
        assert 0 < asyncio.get_running_loop().time() - started < 1.5
    await until(lambda: stage.done == ["wait"])


async def test_a_revoked_token_closes_the_socket_at_the_next_look(sockets: Sockets, tokens: Tokens) -> None:
    async with sockets.signed_in() as talk:
        del tokens.callers["dev"]

        assert await talk.closed() == (4403, "invalid_token: it is not valid any more.")


async def test_a_token_that_comes_to_stand_for_less_closes_the_socket(sockets: Sockets, tokens: Tokens) -> None:
    async with sockets.signed_in() as talk:
        tokens.give("dev", "read:encounters")

        assert (await talk.closed())[0] == 4403


async def test_a_token_that_is_prolonged_keeps_the_socket(sockets: Sockets, tokens: Tokens) -> None:
    tokens.give("dev", seconds=0.6)
    async with sockets.signed_in() as talk:
        tokens.give("dev", seconds=60)
        asked = tokens.asked
        await until(lambda: tokens.asked >= asked + 5)

        await talk.ask("{ __typename }")


async def test_an_outage_of_the_provider_keeps_the_socket_until_the_token_expires(
    sockets: Sockets, tokens: Tokens
) -> None:
    tokens.give("short", seconds=1.2)
    async with sockets.signed_in("short") as talk:
        tokens.away = True
        asked = tokens.asked
        await until(lambda: tokens.asked >= asked + 3)
        await talk.ask("{ __typename }")

        assert await talk.closed() == (4403, "invalid_token: it has expired.")


async def test_a_mutation_under_way_is_answered_before_the_expired_socket_is_closed(
    sockets: Sockets, tokens: Tokens, stage: Stage
) -> None:
    tokens.give("short", seconds=0.6)
    async with sockets.signed_in("short") as talk:
        await talk.start("change", "mutation { hold }")
        await asyncio.sleep(0.8)
        stage.gate.set()

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


async def test_rights_are_those_of_the_token_as_over_http(sockets: Sockets, tokens: Tokens, cast: Cast) -> None:
    tokens.give("reader", "read:encounters")
    async with sockets.signed_in("reader") as talk:
        body = await talk.ask(RECORD, patientId=await cast.patient(), input=VISIT)

    assert body["errors"][0]["extensions"]["code"] == "insufficient_scope"


async def test_a_patient_of_another_brand_does_not_exist(sockets: Sockets, tokens: Tokens, cast: Cast) -> None:
    patient_id = await cast.patient("loopbio")
    tokens.give("bio", brand_id="loopbio")
    query = "query ($id: ID!) { patient(id: $id) { id } }"

    async with sockets.signed_in() as ours, sockets.signed_in("bio") as theirs:
        assert (await ours.ask(query, id=patient_id))["data"]["patient"] is None
        assert (await theirs.ask(query, id=patient_id))["data"]["patient"] == {"id": patient_id}


async def test_a_client_of_several_brands_states_one_in_the_first_message(
    sockets: Sockets, tokens: Tokens, cast: Cast
) -> None:
    patient_id = await cast.patient("loopbio")
    tokens.give("machine", brand_id=None)
    query = "query ($id: ID!) { patient(id: $id) { id } }"
    async with sockets.talk() as talk:
        await talk.authenticate("machine", **{"x-brand-id": "loopbio"})

        assert (await talk.ask(query, id=patient_id))["data"]["patient"] == {"id": patient_id}


async def test_a_stated_brand_that_contradicts_the_token_is_refused_as_over_http(sockets: Sockets) -> None:
    async with sockets.talk() as talk:
        await talk.authenticate("dev", **{"X-Brand-Id": "loopbio"})

        assert (await talk.refusal("{ __typename }"))["code"] == "forbidden"


async def test_operations_are_counted_as_over_http(database_url: str, stage: Stage, tokens: Tokens) -> None:
    async with (
        staged(database_url, rate_reads_per_minute=2) as sockets,
        sockets.signed_in() as talk,
    ):
        await talk.ask("{ __typename }")
        await talk.start("malformed", 5)  # type: ignore[arg-type]
        await talk.errors("malformed")

        assert (await talk.refusal("{ __typename }"))["code"] == "rate_limited"


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
async def test_an_operation_that_is_refused_harms_no_other(
    sockets: Sockets, payload: Any, code: str, stage: Stage
) -> None:
    async with sockets.signed_in() as talk:
        await talk.start("other", "subscription { wait }")
        await talk.next("other")

        await talk.say(type="subscribe", id="bad", payload=payload)
        errors = await talk.errors("bad")
        stage.gate.set()

        assert {error["extensions"]["code"] for error in errors} == {code}
        assert MARKER not in json.dumps(errors)
        assert await talk.next("other") == {"data": {"wait": "let go"}}


async def test_what_nobody_expected_is_told_by_its_id_alone(sockets: Sockets) -> None:
    async with sockets.signed_in(headers={"X-Request-Id": "c-socket"}) as talk:
        with captured() as lines:
            body = await talk.ask("query { broken }")

    (error,) = body["errors"]
    assert error["extensions"] == {"code": "server_error", "recorded": "unknown", "request_id": "c-socket.1"}
    assert MARKER not in json.dumps(body) + json.dumps(lines, default=str)
    (line,) = [line for line in lines if line["event"] == "unexpected"]
    assert (line["request_id"], line["error"]) == ("c-socket.1", "ValueError")


async def test_operations_run_side_by_side(sockets: Sockets, stage: Stage) -> None:
    async with sockets.signed_in() as talk:
        await talk.start("slow", "{ held }")

        assert await talk.ask("{ __typename }", operation_id="quick") == {"data": {"__typename": "Query"}}
        stage.gate.set()
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


async def test_a_client_that_has_heard_enough_ends_one_subscription_and_its_source(
    sockets: Sockets, stage: Stage
) -> None:
    async with sockets.signed_in() as talk:
        await talk.start("one", "subscription { wait }")
        await talk.next("one")
        await talk.say(type="complete", id="one")

        await until(lambda: stage.done == ["wait"])
        # Nothing more is heard of it, and its id is free.
        await talk.ask("{ __typename }", operation_id="one")


async def test_a_client_that_goes_ends_its_subscriptions_and_queries(sockets: Sockets, stage: Stage) -> None:
    async with sockets.signed_in() as talk:
        await talk.start("one", "subscription { wait }")
        await talk.next("one")
        await talk.start("two", "{ held }")
        await stage.entered.wait()

    await until(lambda: sorted(stage.done) == ["held", "wait"])


@pytest.mark.parametrize(("name", "code"), [("breaks", "server_error"), ("away", "temporarily_unavailable")])
async def test_a_source_that_breaks_ends_its_subscription_alone(sockets: Sockets, name: str, code: str) -> None:
    async with sockets.signed_in() as talk:
        await talk.start("one", f"subscription {{ {name} }}")
        await talk.next("one")
        (error,) = await talk.errors("one")

        assert error["extensions"]["code"] == code
        assert MARKER not in json.dumps(error)
        await talk.ask("{ __typename }")


async def test_loaders_live_as_long_as_one_event(sockets: Sockets, stage: Stage) -> None:
    async with sockets.signed_in() as talk:
        await talk.start("one", "subscription { loaders { loaders } }")
        await talk.next("one")
        await talk.next("one")

    first, second = stage.done
    assert first is not second


async def test_the_end_of_something_unknown_is_no_mistake(sockets: Sockets) -> None:
    async with sockets.signed_in() as talk:
        await talk.say(type="complete", id="nothing")
        await talk.say(type="pong")

        await talk.ask("{ __typename }")


# What is written down


async def test_a_socket_has_one_log_line_and_each_operation_one(sockets: Sockets, cast: Cast) -> None:
    patient_id = await cast.patient()
    with captured() as lines:
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


async def test_a_socket_that_is_refused_has_its_log_line_too(sockets: Sockets) -> None:
    with captured() as lines, pytest.raises(InvalidStatus):
        async with sockets.talk(headers={"Origin": "https://evil.example"}):
            pass

    assert [(line["event"], line["status"], line["client_id"]) for line in lines] == [("socket", 403, None)]


def test_every_reason_to_close_is_told_in_the_documentation_and_fits_into_a_frame() -> None:
    told = (Path(__file__).parents[2] / "docs" / "sockets.md").read_text()
    closes = [each for each in vars(close_codes).values() if isinstance(each, Close) and each is not GONE]
    closes += close_codes.TOKEN_ENDED.values()

    assert len(closes) > 10
    for close in closes:
        assert f"| {close.code} |" in told
        # RFC 6455, section 5.5: 125 bytes in all, two for the code.
        assert len(close.reason.encode()) <= 123
