"""Graceful shutdown: readiness fails, requests are served, the port closes, accepted requests are completed."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.conftest import fresh_database
from tests.gateways import (
    DEV,
    DOORS,
    MUTATION,
    PATH,
    VISIT,
    WAITING,
    ClientAnswer,
    Gateway,
    Load,
    client,
    encounters_by_key,
    gateways,
    owner_connection,
    status_of,
    wrong_answers,
)
from tests.waiting import wait_until

LOCK = "LOCK TABLE patient_graph.encounters IN ACCESS EXCLUSIVE MODE"
LONG = "300"


@pytest.fixture
async def url(server_url: str) -> str:
    return await fresh_database(server_url)


@pytest.fixture(params=["1", "2"], ids=["one process", "two workers"])
def workers(request: pytest.FixtureRequest) -> dict[str, str]:
    return {"GATEWAY_WORKERS": request.param}


async def wait_for_exit(gateway: Gateway) -> int:
    """Wait for the end of the process; return the exit code."""
    return await asyncio.to_thread(gateway.process.wait, 60)


async def poll_readiness(origin: str) -> AsyncIterator[int | None]:
    """Yield the status of `/readyz`, each time on a new connection, until the port is closed."""
    status: int | None = 0
    while status is not None:
        yield (status := await status_of(origin, "/readyz"))


async def test_under_load_readiness_fails_first_and_all_answers_are_true(url: str, workers: dict[str, str]) -> None:
    async with (
        gateways(url, GATEWAY_DRAIN_PAUSE_SECONDS="1.5", **workers) as (gateway,),
        Load.on(gateway.origin, clients=16) as load,
    ):
        await wait_until(lambda: load.recorded() >= 50)
        gateway.process.send_signal(signal.SIGTERM)
        seen = [status async for status in poll_readiness(gateway.origin)]
        exit_code = await wait_for_exit(gateway)

    async with owner_connection(url) as connection:
        kept = await encounters_by_key(connection)
    assert exit_code == 0
    # Readiness failed while the port was still open.
    assert 503 in seen
    assert {answer.status for answer in load.answers} <= {200, 201, 503, None}
    assert {answer.recorded for answer in load.answers if answer.status == 503} <= {"no"}
    # The stored encounters are exactly the acknowledged ones.
    assert kept == {answer.key: answer.encounter_id for answer in load.answers if answer.encounter_id}


async def test_during_the_pause_requests_are_served_with_connection_close(url: str) -> None:
    async with gateways(url, GATEWAY_DRAIN_PAUSE_SECONDS=LONG) as (gateway,), client() as ours:
        before = await ours.post(gateway.origin + PATH, json=VISIT, headers=DEV)
        gateway.process.send_signal(signal.SIGTERM)
        await wait_until(lambda: not_ready(gateway.origin))

        health = await ours.get(gateway.origin + "/readyz")
        after = await ours.post(gateway.origin + PATH, json=VISIT, headers=DEV)
        gateway.process.kill()

    assert (before.status_code, before.headers.get("connection")) == (201, None)
    assert (health.json()["status"], health.json()["checks"]["db"]["ok"]) == ("not_ready", True)
    assert (after.status_code, after.headers["connection"]) == (201, "close")


async def not_ready(origin: str) -> bool:
    return await status_of(origin, "/readyz") == 503


async def test_a_running_write_is_completed_and_answered_after_the_port_closed(
    url: str, workers: dict[str, str]
) -> None:
    async with gateways(url, **workers) as (gateway,), owner_connection(url) as connection, client() as ours:
        async with connection.transaction():
            await connection.execute(LOCK)
            writes = await start_waiting_writes(ours, gateway, connection)
            gateway.process.send_signal(signal.SIGTERM)
            await wait_until(lambda: port_is_closed(gateway.origin))
        answers = await asyncio.gather(*writes)

        assert await wait_for_exit(gateway) == 0
        kept = await encounters_by_key(connection)
    assert all(each.encounter_id for each in answers), answers
    assert kept == {each.key: each.encounter_id for each in answers}


async def start_waiting_writes(ours, gateway: Gateway, connection) -> list[asyncio.Task[ClientAnswer]]:
    """Return two writes, one over each door, that wait for the locked table in separate statements."""
    writes = []
    for number, door in enumerate(DOORS, 1):
        writes.append(asyncio.create_task(door(ours, gateway.origin, door.__name__)))
        await wait_until(partial(are_waiting, connection, number))
    return writes


async def are_waiting(connection, number: int) -> bool:
    return await connection.fetchval(WAITING) >= number


async def port_is_closed(origin: str) -> bool:
    return await status_of(origin, "/healthz") is None


async def test_a_hanging_write_delays_shutdown_at_most_by_the_setting(url: str, workers: dict[str, str]) -> None:
    long_timeouts = {"GATEWAY_DATABASE_STATEMENT_SECONDS": LONG, "GATEWAY_DRAIN_SECONDS": "1"}
    async with (
        gateways(url, **workers, **long_timeouts) as (gateway,),
        owner_connection(url) as connection,
        client() as ours,
    ):
        async with connection.transaction():
            await connection.execute(LOCK)
            writes = await start_waiting_writes(ours, gateway, connection)
            gateway.process.send_signal(signal.SIGTERM)
            # The table stays locked, so only the setting can end the process.
            exit_code = await wait_for_exit(gateway)
        answers = await asyncio.gather(*writes)
        kept = await encounters_by_key(connection)

    assert exit_code == 0
    assert [(each.status, each.code, each.recorded) for each in answers] == [
        (503, "temporarily_unavailable", "unknown"),
        (503, "temporarily_unavailable", "unknown"),
    ]
    assert {each.retry_after for each in answers} == {"1"}
    assert wrong_answers(answers, kept) == []


@pytest.mark.parametrize("door", ["rest", "graphql"])
async def test_a_request_after_the_port_closed_is_503_with_retry_after(url: str, door: str) -> None:
    async with gateways(url) as (gateway,), owner_connection(url) as connection:
        address = urlsplit(gateway.origin)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        async with connection.transaction():
            await connection.execute(LOCK)
            writer.write(post(PATH, VISIT))
            await wait_until(lambda: are_waiting(connection, 1))
            # A second request on the connection of a running one: the only way in after the port was closed.
            variables = {"key": "late", "input": {"brandId": "loop", "encounterType": "LAB"}}
            late = (
                post(PATH, VISIT) if door == "rest" else post("/graphql", {"query": MUTATION, "variables": variables})
            )
            writer.write(late)
            await writer.drain()
            await wait_until(lambda: has_read_everything(gateway, address.port))
            gateway.process.send_signal(signal.SIGTERM)
            await wait_until(lambda: port_is_closed(gateway.origin))
        answers = (await asyncio.wait_for(reader.read(), 30)).decode()
        writer.close()
        assert await wait_for_exit(gateway) == 0
        assert await connection.fetchval("SELECT count(*) FROM patient_graph.encounters") == 1

    first, second = answers.split("HTTP/1.1 ")[1:]
    assert first.startswith("201 ")
    assert second.startswith("503 ")
    assert "retry-after: 1" in second.lower()
    body = json.loads(second.partition("\r\n\r\n")[2])
    if door == "rest":
        assert (body["error"], body["recorded"]) == ("temporarily_unavailable", "no")
    else:
        (error,) = body["errors"]
        assert (error["extensions"]["code"], error["extensions"]["recorded"]) == ("temporarily_unavailable", "no")


def post(path: str, body: object) -> bytes:
    written = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer dev\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(written)}\r\n\r\n".encode() + written


def has_read_everything(gateway: Gateway, port: int | None) -> bool:
    """Whether the gateway has read all bytes that were sent to it."""
    with Path(f"/proc/{gateway.process.pid}/net/tcp").open() as table:
        rows = [line.split() for line in table if f":{port:04X} " in line]
    established = [row for row in rows if row[3] == "01" and row[1].endswith(f":{port:04X}")]
    return bool(established) and all(row[4].endswith(":00000000") for row in established)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_second_signal_ends_the_process_at_once(
    url: str, workers: dict[str, str], number: signal.Signals
) -> None:
    slow = {"GATEWAY_DRAIN_PAUSE_SECONDS": LONG, "GATEWAY_DRAIN_SECONDS": LONG}
    async with gateways(url, **workers, **slow) as (gateway,):
        gateway.process.send_signal(number)
        await wait_until(lambda: not_ready(gateway.origin))
        gateway.process.send_signal(signal.SIGINT)

        started = time.monotonic()
        assert await wait_for_exit(gateway) == 0
        assert time.monotonic() - started < float(LONG)


async def test_a_killed_worker_is_replaced_and_no_record_is_lost(url: str) -> None:
    async with (
        gateways(url, GATEWAY_WORKERS="2") as (gateway,),
        Load.on(gateway.origin, clients=8) as load,
    ):
        await wait_until(lambda: load.recorded() >= 20)
        first = workers_of(gateway)
        first[0].kill()
        await wait_until(lambda: len(workers_of(gateway)) == 2 and first[0] not in workers_of(gateway))
        so_far = len(load.answers)
        await wait_until(lambda: load.recorded(so_far) >= 50)

    async with owner_connection(url) as connection:
        kept = await encounters_by_key(connection)
    assert wrong_answers(load.answers, kept) == []


def workers_of(gateway: Gateway):
    return [each for each in psutil.Process(gateway.process.pid).children() if serves(each)]


def serves(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and "spawn_main" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False  # the process ended between being listed and being inspected


async def test_an_open_stream_is_completed_and_does_not_delay_shutdown(url: str, workers: dict[str, str]) -> None:
    subscription = {"query": "subscription { encounterEvents { cursor } }"}
    async with gateways(url, GATEWAY_DRAIN_SECONDS=LONG, **workers) as (gateway,), client() as asking:
        headers = {**DEV, "accept": "text/event-stream"}
        async with asking.stream("POST", f"{gateway.origin}/graphql", json=subscription, headers=headers) as stream:
            texts = stream.aiter_text()
            gateway.process.send_signal(signal.SIGTERM)
            heard = "".join([text async for text in texts])
        assert await wait_for_exit(gateway) == 0

    assert stream.status_code == 200
    assert "temporarily_unavailable" in heard
    assert heard.rstrip().endswith(("event: complete\ndata:", "event: complete"))
