"""Webhooks: events are signed, delivered at least once, in order for each patient, and retried."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.responses import RedirectResponse, Response

from gateway import jobs
from gateway.erasing import erase
from gateway.events import delivery as sinks
from gateway.events import pipeline
from gateway.events.replay import NoReplay, replay
from gateway.events.status import event_numbers
from gateway.settings import Settings
from tests.conftest import fresh_database
from tests.doors import Service
from tests.event_helpers import Gateway, rows
from tests.forked_gateway import run_gateway
from tests.gateways import gateways
from tests.waiting import DEADLINE_SECONDS, wait_until
from tests.webhook_receiver import Delivery, ReceiverServer, accept

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
DEV = {"authorization": "Bearer dev"}
VISIT = {"brand_id": "loop", "encounter_type": "lab"}
DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(sinks, "LONGEST_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(pipeline, "LOOK_AGAIN_SECONDS", 0.02)


@pytest.fixture
async def url(server_url: str) -> str:
    return await fresh_database(server_url)


@pytest.fixture
async def receiver() -> AsyncIterator[ReceiverServer]:
    async with ReceiverServer.running() as running:
        yield running


@pytest.fixture
def webhook(receiver: ReceiverServer) -> dict[str, Any]:
    """The settings of a webhook to the receiver."""
    return {"webhook_url": receiver.url, "webhook_secret": SECRET, "webhook_seconds": 5}


@pytest.fixture
async def gateway(url: str, webhook: dict[str, Any]) -> AsyncIterator[Gateway]:
    async with Gateway.running(url, **webhook) as running:
        await wait_for_sinks(url)
        yield running


async def wait_for_sinks(url: str, count: int = 1) -> None:
    """Return once `count` sinks are registered: they receive all later events."""

    async def are_registered() -> bool:
        return len(await rows(url, "SELECT FROM gateway.sinks")) >= count

    await wait_until(are_registered)


async def record(gateway: Gateway, count: int, patient_id: str = "patient") -> list[str]:
    return [str(await gateway.record(patient_id)) for _ in range(count)]


def verifier() -> Callable[[str, Any, bytes], bool]:
    """Return the verification function of docs/events.md."""
    code = re.findall(r"```python\n(.*?)```", (DOCS / "events.md").read_text(), re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(code[0], namespace)
    verify: Callable[[str, Any, bytes], bool] = namespace["verify"]
    return verify


async def sink(url: str) -> Any:
    return (await rows(url, "SELECT * FROM gateway.sinks"))[0]


async def wait_for_renewed_lease(url: str) -> None:
    """Return once the lease of the sink was renewed, as in each run."""
    lease = "SELECT expires_at FROM gateway.leases WHERE name = 'sink webhook'"
    before = await rows(url, lease)

    async def renewed() -> bool:
        return await rows(url, lease) != before

    await wait_until(renewed)


async def wait_for_sink(url: str, condition: Callable[[Any], Any]) -> None:
    async def is_met() -> Any:
        return condition(await sink(url))

    await wait_until(is_met)


# Content and signatures


async def test_a_recording_is_delivered_signed_without_clinical_text(
    url: str, webhook: dict[str, Any], receiver: ReceiverServer
) -> None:
    await rows(url, "INSERT INTO patient_graph.patients (id, brand_id) VALUES ('somebody', 'loop')")
    visit = {"brand_id": "loop", "encounter_type": "lab", "notes": "slept badly", "chief_complaint": "a cough",
             "scheduled_at": "2031-02-03T04:05:06Z", "metadata": {"mood": "gloomy"}}  # fmt: skip
    async with Service.running(Settings(database_url=url, **webhook)) as service:
        await wait_for_sinks(url)
        for _ in range(2):
            response = await service.rest(
                "POST", "/v1/patients/somebody/encounters", json=visit, headers={"idempotency-key": "once"}
            )
        await wait_until(lambda: receiver.taken)
        encounter = response.json()

    (delivery,) = receiver.tried
    event = delivery.event
    assert verifier()(SECRET, delivery.headers, delivery.body)
    assert not verifier()(OLD_SECRET, delivery.headers, delivery.body)
    assert not verifier()(SECRET, delivery.headers, delivery.body + b" ")
    assert delivery.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    written_at = datetime.fromisoformat(event.pop("time"))
    assert timedelta(0) <= written_at - datetime.fromisoformat(encounter["created_at"]) < timedelta(seconds=10)
    assert event == {
        "specversion": "1.0",
        "id": delivery.id,
        "source": "/encounter-gateway",
        "type": "patient_graph.encounter.recorded.v1",
        "subject": encounter["id"],
        "datacontenttype": "application/json",
        "data": {
            "encounter_id": encounter["id"],
            "patient_id": "somebody",
            "brand_id": "loop",
            "encounter_type": "lab",
            "recorded_at": encounter["created_at"],
        },
    }
    sent = delivery.body.decode() + str(delivery.headers)
    for word in ("slept", "cough", "2031", "mood", "gloomy", "scheduled"):
        assert word not in sent


async def test_during_a_change_of_secret_both_signatures_verify(
    url: str, webhook: dict[str, Any], receiver: ReceiverServer
) -> None:
    async with Gateway.running(url, **webhook | {"webhook_secret": f"{SECRET} {OLD_SECRET}"}) as gateway:
        await wait_for_sinks(url)
        await record(gateway, 1)
        await wait_until(lambda: receiver.taken)

    (delivery,) = receiver.taken
    for secret in (SECRET, OLD_SECRET):
        assert verifier()(secret, delivery.headers, delivery.body)


async def test_a_webhook_of_one_brand_receives_no_other_brand(
    url: str, receiver: ReceiverServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "BATCH", 2)
    webhooks = [
        {"name": "loop", "url": f"{receiver.url}?who=loop", "secrets": [SECRET], "brand_id": "loop"},
        {"name": "all", "url": f"{receiver.url}?who=all", "secrets": [OLD_SECRET]},
    ]
    async with Gateway.running(url, webhooks=webhooks) as gateway:
        await wait_for_sinks(url, 2)
        for brand_id in ("loop", "loopbio", "loopbio", "loopbio", "loop", "loopbio"):
            await gateway.record("patient", brand_id)
        await wait_until(lambda: len(receiver.taken) == 8)
        numbers = await event_numbers(gateway.relay)
        while any(each.behind for each in numbers.sinks):
            numbers = await event_numbers(gateway.relay)

    mine = [delivery for delivery in receiver.taken if verifier()(SECRET, delivery.headers, delivery.body)]
    assert [delivery.event["data"]["brand_id"] for delivery in mine] == ["loop", "loop"]


# Failures


@pytest.mark.parametrize("failure", ["500", "400", "timeout", "redirect", "refused", "cut off"])
async def test_a_failed_delivery_is_retried_and_later_events_wait(
    url: str, webhook: dict[str, Any], receiver: ReceiverServer, failure: str
) -> None:
    async def failing(_delivery: Delivery) -> Response:
        match failure:
            case "timeout":
                await asyncio.sleep(DEADLINE_SECONDS)
            case "redirect":
                return RedirectResponse("/other", 307)
            case "cut off":
                raise RuntimeError
        return Response(status_code=int(failure))

    # On a busy machine, an accepted delivery may take longer than 0.2 s and is then repeated.
    seconds = 0.2 if failure == "timeout" else 5
    async with Gateway.running(url, **webhook | {"webhook_seconds": seconds}) as gateway:
        await wait_for_sinks(url)
        if failure == "refused":
            await receiver.stop()
        receiver.answer = failing
        recorded = await record(gateway, 3)
        await wait_for_sink(url, lambda sink: sink["failures"] >= 3)
        assert not receiver.taken
        if failure == "refused":
            await receiver.start()
        receiver.answer = accept
        await wait_until(lambda: len(receiver.taken) == 3)

    assert receiver.encounters == recorded
    assert len({(delivery.id, delivery.body) for delivery in receiver.tried}) == 3
    assert all(delivery.encounter_id == recorded[0] for delivery in receiver.tried[:-2])
    assert ((await sink(url))["failures"], (await sink(url))["last_error"]) == (0, None)
    assert not receiver.misdirected


async def test_answers_of_receivers_and_signatures_are_not_logged(
    gateway: Gateway, url: str, receiver: ReceiverServer, capfd: pytest.CaptureFixture[str]
) -> None:
    async def failing(_delivery: Delivery) -> Response:
        return Response(b"the patient sleeps badly", status_code=500)

    receiver.answer = failing
    await record(gateway, 1)
    await wait_until(lambda: len(receiver.tried) > 2)

    logged = capfd.readouterr().err + str([tuple(row) for row in await rows(url, "SELECT * FROM gateway.sinks")])
    assert "status 500" in logged
    assert "delivery failed" in logged
    for secret in ("sleeps", SECRET[6:], receiver.tried[0].headers["webhook-signature"]):
        assert secret not in logged


async def test_a_410_disables_the_sink_until_a_replay(gateway: Gateway, url: str, receiver: ReceiverServer) -> None:
    async def gone(_delivery: Delivery) -> Response:
        return Response(status_code=410)

    receiver.answer = gone
    recorded = await record(gateway, 2)
    await wait_for_sink(url, lambda sink: sink["disabled_at"])
    recorded += await record(gateway, 2)
    for _ in range(3):
        await wait_for_renewed_lease(url)
    assert len(receiver.tried) == 1

    receiver.answer = accept
    await replay(gateway.relay, "webhook", None)
    await wait_until(lambda: len(receiver.taken) == 4)
    assert receiver.encounters == recorded


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_retry_after_of_a_receiver_is_respected(
    gateway: Gateway, url: str, receiver: ReceiverServer, status: int, form: str
) -> None:
    retry_at = datetime.now(UTC) + timedelta(seconds=3000)
    asked = "3000" if form == "seconds" else format_datetime(retry_at, usegmt=True)

    async def busy(_delivery: Delivery) -> Response:
        return Response(status_code=status, headers={"retry-after": asked})

    receiver.answer = busy
    await record(gateway, 1)
    await wait_for_sink(url, lambda sink: sink["failures"])

    assert abs((await sink(url))["next_attempt_at"] - retry_at) < timedelta(seconds=DEADLINE_SECONDS)
    for _ in range(3):
        await wait_for_renewed_lease(url)
    assert len(receiver.tried) == 1
    receiver.answer = accept
    await replay(gateway.relay, "webhook", None)
    await wait_until(lambda: receiver.taken)


async def test_an_event_that_always_fails_becomes_a_dead_letter(
    gateway: Gateway, url: str, receiver: ReceiverServer
) -> None:
    async def fail_for_second(delivery: Delivery) -> Response:
        second = list(dict.fromkeys(each.id for each in receiver.tried))[1:2]
        return Response(status_code=500 if delivery.id in second else 200)

    receiver.answer = fail_for_second
    recorded = await record(gateway, 4)
    await wait_until(lambda: len(receiver.tried) > 5)
    assert receiver.encounters == recorded[:1]

    await rows(url, "UPDATE gateway.sinks SET since = now() - '73 hours'::interval")
    await rows(url, "UPDATE patient_graph.outbox SET published_at = now() - '73 hours'::interval WHERE position = 2")
    await wait_until(lambda: len(receiver.taken) == 3)

    assert receiver.encounters == [recorded[0], *recorded[2:]]
    (letter,) = await rows(url, "SELECT * FROM patient_graph.dead_letters")
    (event,) = await rows(url, "SELECT * FROM patient_graph.outbox WHERE position = 2")
    for name in ("patient_id", "id", "brand_id", "event_type", "payload", "created_at", "position"):
        assert letter[name] == event[name]
    assert (letter["sink"], letter["reason"]) == ("webhook", "status 500")
    assert [each.dead_letters for each in (await event_numbers(gateway.relay)).sinks] == [1]

    receiver.answer = accept
    await replay(gateway.relay, "webhook", 2)
    await wait_until(lambda: len(receiver.taken) == 6)
    assert receiver.encounters[3:] == recorded[1:]
    assert await rows(url, "SELECT FROM patient_graph.dead_letters") == []


async def test_after_a_long_outage_each_event_is_tried_before_it_is_given_up(
    gateway: Gateway, url: str, receiver: ReceiverServer
) -> None:
    await rows(
        url,
        "UPDATE gateway.sinks SET next_attempt_at = now() + '1 day'::interval, since = now() - '80 hours'::interval",
    )
    recorded = await record(gateway, 3)
    await gateway.relayed(3)
    await rows(url, "UPDATE patient_graph.outbox SET published_at = now() - '80 hours'::interval")

    await rows(url, "UPDATE gateway.sinks SET next_attempt_at = now()")
    await wait_until(lambda: len(receiver.taken) == 3)

    assert receiver.encounters == recorded
    assert await rows(url, "SELECT FROM patient_graph.dead_letters") == []


async def test_a_replayed_event_is_retried_as_long_as_a_new_one(
    gateway: Gateway, url: str, receiver: ReceiverServer
) -> None:
    async def failing(_delivery: Delivery) -> Response:
        return Response(status_code=500)

    await record(gateway, 1)
    await wait_until(lambda: receiver.taken)
    await rows(url, "UPDATE patient_graph.outbox SET published_at = now() - '80 hours'::interval")

    receiver.answer = failing
    await replay(gateway.relay, "webhook", 1)
    await wait_for_sink(url, lambda sink: sink["failures"] >= 3)

    assert await rows(url, "SELECT FROM patient_graph.dead_letters") == []


# Several gateways


async def test_several_gateways_deliver_each_event_once_while_one_stops(
    url: str, webhook: dict[str, Any], receiver: ReceiverServer
) -> None:
    async with Gateway.running(url, **webhook) as staying:
        async with Gateway.running(url, **webhook) as leaving:
            await wait_for_sinks(url)
            recorded = await record(leaving, 5, "one")
            await wait_until(lambda: len(receiver.taken) == 5)
            assert len(receiver.tried) == 5
            recorded += await record(leaving, 10, "two")
        recorded += await record(staying, 5, "three")
        await wait_until(lambda: len(set(receiver.encounters)) == 20)

    # A delivery in flight when its gateway stopped may be repeated, with the same event id.
    assert list(dict.fromkeys(receiver.encounters)) == recorded
    assert len({delivery.id for delivery in receiver.tried}) == 20


async def test_another_gateway_takes_over_within_seconds_after_a_kill(
    url: str, webhook: dict[str, Any], receiver: ReceiverServer
) -> None:
    settings = {f"GATEWAY_{name.upper()}": str(value) for name, value in webhook.items()}
    async with gateways(url, **settings) as (relaying,):
        await wait_for_sinks(url)
        async with (
            gateways(url, **settings) as (serving,),
            httpx2.AsyncClient(base_url=serving.origin, headers=DEV) as client,
        ):
            recorded = []
            for number in range(40):
                answer = await client.post("/v1/patients/demo-patient/encounters", json=VISIT)
                recorded.append(answer.json()["id"])
                if number == 20:
                    await wait_until(lambda: len(receiver.taken) > 10)
                    await asyncio.to_thread(relaying.stop, signal.SIGKILL)
            await wait_until(lambda: len(set(receiver.encounters)) == 40)

    assert list(dict.fromkeys(receiver.encounters)) == recorded
    assert len(receiver.taken) <= 41


async def test_a_delivery_longer_than_the_lease_is_not_repeated(
    url: str, webhook: dict[str, Any], receiver: ReceiverServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "LEASE_TIME", timedelta(seconds=0.9))

    async def slow(_delivery: Delivery) -> Response:
        await asyncio.sleep(2)
        return Response()

    async with Gateway.running(url, **webhook) as one, Gateway.running(url, **webhook):
        await wait_for_sinks(url)
        receiver.answer = slow
        await record(one, 2)
        await wait_until(lambda: len(receiver.taken) == 2)
        assert len(receiver.tried) == 2


async def test_a_process_without_the_lease_does_not_move_the_position_back(
    gateway: Gateway, url: str, receiver: ReceiverServer
) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def wait_and_accept(_delivery: Delivery) -> Response:
        entered.set()
        await go_on.wait()
        return Response()

    receiver.answer = wait_and_accept
    recorded = await record(gateway, 3)
    await entered.wait()
    # An operator, or a gateway that took over, moves the position of the sink.
    await gateway.relayed(3)
    await rows(url, "UPDATE gateway.sinks SET position = 2")
    go_on.set()

    await wait_until(lambda: len(receiver.taken) == 2)
    assert receiver.encounters == [recorded[0], recorded[2]]
    await wait_for_sink(url, lambda sink: sink["position"] == 3)


# New sinks, replays, no sinks


async def test_a_new_sink_receives_later_events_and_earlier_ones_by_replay(
    url: str, webhook: dict[str, Any], receiver: ReceiverServer
) -> None:
    async with Gateway.running(url) as before:
        recorded = await record(before, 3)
        await before.relayed(3)
    async with Gateway.running(url, **webhook) as gateway:
        await wait_for_sinks(url)
        recorded += await record(gateway, 1)
        await wait_until(lambda: receiver.taken)
        assert receiver.encounters == recorded[3:]

        assert await replay(gateway.relay, "webhook", 1) == 1
        await wait_until(lambda: len(receiver.taken) == 5)
        assert receiver.encounters[1:] == recorded
        for position in (0, 6):
            with pytest.raises(NoReplay, match="from 1 to 5"):
                await replay(gateway.relay, "webhook", position)
        with pytest.raises(NoReplay, match="the sinks are: webhook"):
            await replay(gateway.relay, "nobody", 1)


async def test_without_a_sink_no_work_is_done_for_sinks(url: str) -> None:
    async with Gateway.running(url) as gateway:
        await record(gateway, 1)
        await gateway.relayed(1)

    assert await rows(url, "SELECT FROM gateway.sinks") == []
    assert await rows(url, "SELECT FROM gateway.leases WHERE name LIKE 'sink%'") == []


async def test_the_commands_show_and_replay_events(gateway: Gateway, url: str, receiver: ReceiverServer) -> None:
    await record(gateway, 2)
    await wait_until(lambda: len(receiver.taken) == 2)

    replayed = await command(url, "events", "replay", "--sink", "webhook", "--from", "2")
    await wait_until(lambda: len(receiver.taken) == 3)
    status = await command(url, "events", "status")
    refused = await command(url, "events", "replay", "--sink", "webhook", "--from", "9")

    assert replayed == (0, "webhook gets the events from position 2\n", "")
    assert status[0] == 0
    assert status[1].startswith("events up to position 2, kept from 1\n0 waiting")
    assert "sink webhook: at 2, 0 behind" in status[1]
    assert refused == (1, "", "gateway: the first position must be from 1 to 3\n")


async def command(url: str, *words: str) -> tuple[int, str, str]:
    """Run a command of the gateway; return its exit code, standard output and standard error."""
    return await asyncio.to_thread(run_gateway, words, env={"GATEWAY_DATABASE_URL": url})


async def test_the_relay_continues_while_a_sink_fails(
    url: str, webhook: dict[str, Any], receiver: ReceiverServer
) -> None:
    await receiver.stop()
    async with Gateway.running(url, **webhook) as gateway:
        subscriber = gateway.subscribe()
        await wait_until(lambda: gateway.feed._followers)
        recorded = await record(gateway, 3)
        await wait_until(lambda: len(subscriber.events) == 3)
        assert [str(encounter) for encounter in subscriber.encounters] == recorded
        await subscriber.stop()
    await receiver.start()


async def test_an_erasure_is_one_event_and_replaces_the_patients_events(
    gateway: Gateway, url: str, receiver: ReceiverServer
) -> None:
    await rows(url, "INSERT INTO patient_graph.patients (id, brand_id) VALUES ('patient', 'loop')")
    receiver.answer = refuse
    await record(gateway, 2)
    await wait_until(lambda: receiver.tried)

    await erase(url, "patient", "loop", "privacy officer", lambda _: None)
    receiver.answer = accept
    others = await record(gateway, 1, "other")
    await wait_until(lambda: others == [each.event["subject"] for each in receiver.taken[-1:]])

    erasure, other = (each.event for each in receiver.taken)
    assert (erasure["type"], erasure["subject"]) == ("patient_graph.patient.erased.v1", "patient")
    assert erasure["data"].keys() == {"patient_id", "brand_id", "erased_at"}
    assert other["type"] == "patient_graph.encounter.recorded.v1"


async def refuse(_delivery: Delivery) -> Response:
    return Response(status_code=500)
