"""Reads from streaming replicas: read-your-writes by marker or client; replicas that lag, stop or are promoted."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import asyncpg
import httpx2
import pytest

from gateway.database.replica_polls import Problem
from gateway.observability.metrics import READS, REPLICA_IN_USE, REPLICA_LAG_BYTES, REPLICA_LAG_SECONDS
from gateway.settings import Settings
from resolvers.context import consistency_of
from resolvers.errors import TemporarilyUnavailable
from resolvers.sql import Statement
from tests.conftest import GENEROUS_LIMITS
from tests.doors import Service
from tests.gateways import (
    DEV,
    PATH,
    VISIT,
    Gateway,
    Load,
    gateways,
    owner_connection,
    wrong_answers,
)
from tests.process.test_database_failures import IMPATIENT, unexpected
from tests.process.test_preflight import run
from tests.sse_client import open_stream
from tests.streaming_replicas import LOGIN, ReplicatedServers, StreamingServer, needs_postgresql
from tests.waiting import wait_until
from tests.websocket_client import GatewayServer

pytestmark = needs_postgresql

RECORD = """mutation { recordEncounter(patientId: "demo-patient", input: {brandId: "loop", encounterType: LAB}) {
  ... on EncounterRecorded { encounter { id } } } }"""
CHANGE_OF_NONE = "mutation ($id: ID!) { startEncounter(id: $id) { __typename } }"
FIND = "query ($id: ID!) { encounter(id: $id) { id } }"


@pytest.fixture(scope="module")
async def servers() -> AsyncIterator[ReplicatedServers]:
    async with ReplicatedServers.running(1) as servers:
        yield servers


@pytest.fixture
async def replica(servers: ReplicatedServers) -> AsyncIterator[StreamingServer]:
    """The replica of `servers`, which replays the log again after the test."""
    (replica,) = servers.replicas
    yield replica
    replica.resume()
    await replica.fetch("SELECT pg_wal_replay_resume()")


def settings_of(servers: ReplicatedServers, **changed: Any) -> Settings:
    return Settings(
        database_url=servers.primary.serving_url,
        database_read_urls=" ".join(each.serving_url for each in servers.replicas),
        batch_operations=10,
        **(GENEROUS_LIMITS | changed),
    )


@asynccontextmanager
async def service_on(servers: ReplicatedServers, **changed: Any) -> AsyncIterator[Service]:
    """Run a gateway whose replicas are in use."""
    async with Service.running(settings_of(servers, **changed)) as service:
        await wait_until(lambda: replicas_in_use(service) == len(servers.replicas))
        yield service


@pytest.fixture
async def writer(servers: ReplicatedServers) -> AsyncIterator[Service]:
    """A gateway that records."""
    async with service_on(servers) as service:
        yield service


@pytest.fixture
async def reader(servers: ReplicatedServers) -> AsyncIterator[Service]:
    """Another gateway, which knows nothing of the changes through the first."""
    async with service_on(servers) as service:
        yield service


def replicas_in_use(service: Service) -> int:
    return sum(each.problem is None for each in service.services.replicas.replicas)


def reads(target: str, reason: str) -> float:
    return READS.labels(target, reason)._value.get()


async def record(service: Service, **headers: str) -> httpx2.Response:
    answer = await service.rest("POST", PATH, json=VISIT, headers=headers)
    assert answer.status_code == 201, answer.text
    return answer


async def find(service: Service, recorded: httpx2.Response, **headers: str) -> int:
    """Return the status of a read of a recorded encounter."""
    return (await service.rest("GET", recorded.headers["location"], headers=headers)).status_code


async def replayed_all(servers: ReplicatedServers) -> None:
    position = await servers.primary.fetch("SELECT pg_current_wal_lsn()::text")
    for each in servers.replicas:
        await wait_until(partial(each.fetch, f"SELECT pg_last_wal_replay_lsn() >= '{position}'"))


# Where requests read


@pytest.mark.one_server
async def test_reads_go_to_the_replica_and_changes_to_the_primary(
    servers: ReplicatedServers, replica: StreamingServer, writer: Service, reader: Service
) -> None:
    recorded = await record(writer)
    await replayed_all(servers)
    before = reads("replica", "recent")

    assert await find(reader, recorded) == 200
    assert (await reader.rest("GET", PATH)).json()["total"] >= 1
    asked = """{ encounters(first: 1) { totalCount nodes { history { version } patient { id } } }
                 patient(id: "demo-patient") { encounters { totalCount } } }"""
    assert "errors" not in await reader.graphql(asked)

    assert reads("replica", "recent") == before + 3
    # The last statement of each session.
    reading = (
        "SELECT count(*) FROM pg_stat_activity WHERE query ILIKE '%FROM patient_graph.encounters%'"
        " AND query NOT ILIKE '%INSERT%' AND pid <> pg_backend_pid()"
    )
    assert await replica.fetch(reading) >= 1
    assert await servers.primary.fetch(reading) == 0


async def test_a_session_of_a_replica_has_the_role_the_brand_and_the_timeouts(
    replica: StreamingServer, reader: Service
) -> None:
    assert (await reader.rest("GET", PATH, token="dev-loopbio")).status_code == 404
    assert (await reader.rest("GET", PATH)).status_code == 200
    (pools,) = reader.services.replicas.replicas
    for pool in (pools.requests, pools.worklists):
        async with pool._acquired("loopbio") as session:
            assert await session.fetchval("SELECT current_user::text") == "gateway_app"
            assert await session.fetchval("SELECT count(*) FROM patient_graph.patients") == 0
            assert await session.fetchval("SELECT current_setting('statement_timeout')") in {"10s", "2s"}
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await session.execute("UPDATE patient_graph.patients SET id = 'x'")


# Read-your-writes


async def test_a_read_with_a_marker_sees_the_change_though_the_replica_lags(
    replica: StreamingServer, writer: Service, reader: Service
) -> None:
    await replica.fetch("SELECT pg_wal_replay_pause()")
    recorded = await record(writer)
    marker = recorded.headers["x-consistency"]
    before = reads("primary", "behind")

    # Without a marker, another process's read may be older.
    assert await find(reader, recorded) == 404
    assert reads("primary", "behind") == before

    began = time.monotonic()
    assert await find(reader, recorded, **{"x-consistency": marker}) == 200
    assert time.monotonic() - began >= 0.1
    assert reads("primary", "behind") == before + 1


async def test_a_read_with_a_marker_waits_for_the_replica_if_that_comes_in_time(
    servers: ReplicatedServers, replica: StreamingServer, writer: Service, reader: Service
) -> None:
    async def resume_soon(marker: str) -> None:
        choosing = reader.services.replicas
        await wait_until(lambda: choosing._waiting)
        await replica.fetch("SELECT pg_wal_replay_resume()")

    for _ in range(20):
        await replica.fetch("SELECT pg_wal_replay_pause()")
        recorded = await record(writer)
        marker, before = recorded.headers["x-consistency"], reads("replica", "waited")
        status, _ = await asyncio.gather(find(reader, recorded, **{"x-consistency": marker}), resume_soon(marker))
        assert status == 200
        if reads("replica", "waited") > before:
            return
    raise AssertionError("no read waited for the replica within 100 ms")


async def test_the_same_client_of_a_process_sees_its_changes_without_a_marker(
    replica: StreamingServer, writer: Service
) -> None:
    await replica.fetch("SELECT pg_wal_replay_pause()")
    recorded = await record(writer)

    assert await find(writer, recorded) == 200
    total = (await writer.graphql("{ encounters(first: 1) { nodes { id } } }"))["data"]["encounters"]
    assert total["nodes"][0]["id"] == recorded.json()["id"]


async def test_every_answer_to_a_change_has_a_marker_and_no_other(writer: Service) -> None:
    recorded = await record(writer, **{"idempotency-key": "marked"})
    replay = await record(writer, **{"idempotency-key": "marked"})
    refused = await writer.rest("POST", PATH, json={"brand_id": "loop"})
    missing = await writer.rest("POST", PATH.replace("demo-patient", "nobody"), json=VISIT)
    for answer in (recorded, replay, refused, missing):
        assert answer.headers["x-consistency"]
    for method, path in (("GET", PATH), ("GET", "/healthz")):
        assert "x-consistency" not in (await writer.rest(method, path)).headers

    for change in (
        RECORD,
        f'mutation {{ startEncounter(id: "{recorded.json()["id"]}") {{ __typename }} }}',
        'mutation { startEncounter(id: "none") { __typename } }',
        'mutation { registerPatient(input: {id: "p", brandId: "loop"}) { __typename } }',
        'mutation { setPatientExternalIds(id: "p", externalIds: {}) { __typename } }',
        "mutation { __typename }",
    ):
        answer = await writer.rest("POST", "/graphql", json={"query": change})
        assert answer.json()["extensions"]["consistency"] == answer.headers["x-consistency"], change
    refused = (await writer.rest("POST", "/graphql", json={"query": CHANGE_OF_NONE})).json()
    assert refused["errors"]
    assert refused["extensions"]["consistency"]
    asked = '{ submission(key: "marked") { state encounter { id history { version } } } }'
    submission = await writer.rest("POST", "/graphql", json={"query": asked})
    assert submission.json()["extensions"]["consistency"] == submission.headers["x-consistency"]
    query = await writer.rest("POST", "/graphql", json={"query": "{ viewer { clientId } }"})
    assert "extensions" not in query.json()
    assert "x-consistency" not in query.headers


async def test_the_outcome_of_a_key_and_what_it_shows_come_from_the_primary(
    replica: StreamingServer, writer: Service, reader: Service
) -> None:
    await replica.fetch("SELECT pg_wal_replay_pause()")
    recorded = await record(writer, **{"idempotency-key": "looked-up"})

    asked = '{ submission(key: "looked-up") { state encounter { id history { version } } } }'
    found = (await reader.graphql(asked))["data"]["submission"]
    assert found["encounter"] == {"id": recorded.json()["id"], "history": [{"version": 1}]}


async def test_a_change_through_another_process_meets_the_newest_state(
    replica: StreamingServer, writer: Service, reader: Service
) -> None:
    await replica.fetch("SELECT pg_wal_replay_pause()")
    recorded = await record(writer, **{"idempotency-key": "changed-elsewhere"})

    again = await record(reader, **{"idempotency-key": "changed-elsewhere"})
    assert again.headers["idempotent-replayed"] == "true"
    change = f'mutation {{ startEncounter(id: "{recorded.json()["id"]}") {{ ... on EncounterChanged {{ encounter {{'
    started = await reader.graphql(
        change + " status history { version } patient { id encounters { totalCount } } } } } }"
    )
    assert started["data"]["startEncounter"]["encounter"]["status"] == "IN_PROGRESS"
    assert len(started["data"]["startEncounter"]["encounter"]["history"]) == 2


async def test_a_batch_reads_what_its_mutations_changed(
    replica: StreamingServer, writer: Service, reader: Service
) -> None:
    await replica.fetch("SELECT pg_wal_replay_pause()")
    batch = [{"query": RECORD}, {"query": "{ encounters(first: 1) { nodes { id } } }"}]
    answer = await writer.rest("POST", "/graphql", json=batch)

    recording, listing = answer.json()
    (newest,) = listing["data"]["encounters"]["nodes"]
    assert newest == recording["data"]["recordEncounter"]["encounter"]
    assert recording["extensions"]["consistency"]

    asked = {"query": FIND, "variables": newest, "extensions": {"consistency": answer.headers["x-consistency"]}}
    ((found,),) = [(await reader.rest("POST", "/graphql", json=[asked])).json()]
    assert found["data"]["encounter"] == newest


async def test_markers_pass_through_websockets_and_event_streams(
    servers: ReplicatedServers, replica: StreamingServer
) -> None:
    async with GatewayServer.serving(settings_of(servers)) as one, GatewayServer.serving(settings_of(servers)) as other:
        await asyncio.sleep(0.5)
        await replica.fetch("SELECT pg_wal_replay_pause()")
        async with one.authenticated() as websocket:
            recorded = await websocket.ask(RECORD)
        marker = recorded["extensions"]["consistency"]
        id_ = recorded["data"]["recordEncounter"]["encounter"]["id"]

        async with one.authenticated() as websocket:
            await websocket.start("one", CHANGE_OF_NONE)
            (refusal,) = await websocket.errors("one")
            assert refusal["extensions"].keys() >= {"code", "recorded", "consistency"}

        async with other.connect() as websocket:
            await websocket.authenticate()
            assert (await websocket.ask(FIND, id=id_))["data"] == {"encounter": None}
            payload = {"query": FIND, "variables": {"id": id_}, "extensions": {"consistency": marker}}
            await websocket.send(type="subscribe", id="one", payload=payload)
            assert (await websocket.next("one"))["data"] == {"encounter": {"id": id_}}
        async with other.connect() as websocket:
            await websocket.authenticate(**{"X-Consistency": marker})
            for number in ("1", "2"):
                await websocket.start(number, FIND, id=id_)
                assert (await websocket.next(number))["data"] == {"encounter": {"id": id_}}
                assert (await websocket.receive())["type"] == "complete"

        origin = f"http://127.0.0.1:{other.port}"
        async with httpx2.AsyncClient() as http:
            asked = {"query": FIND, "variables": {"id": id_}}
            accept = DEV | {"accept": "text/event-stream", "x-consistency": marker}
            answer = await http.post(f"{origin}/graphql", json=asked, headers=accept)
            assert id_ in answer.text
            change = await http.post(f"{origin}/graphql", json={"query": RECORD}, headers=accept)
            assert change.headers["x-consistency"] in change.text


async def test_an_event_has_a_marker_for_the_reads_after_it(
    servers: ReplicatedServers, replica: StreamingServer, writer: Service, reader: Service
) -> None:
    async with GatewayServer.serving(settings_of(servers)) as server:
        origin = f"http://127.0.0.1:{server.port}"
        async with open_stream(origin, "subscription { encounterEvents { encounter { id } } }") as stream:
            await replica.fetch("SELECT pg_wal_replay_pause()")
            await asyncio.sleep(0.2)
            recorded = await record(writer)
            body = (await stream.receive()).body
    assert body["data"]["encounterEvents"]["encounter"]["id"] == recorded.json()["id"]

    assert await find(reader, recorded, **{"x-consistency": body["extensions"]["consistency"]}) == 200


@pytest.mark.parametrize("garbage", ["made-up", "é".encode(), "Av__________________8", "A" * 23])
async def test_a_text_that_is_no_marker_is_refused(reader: Service, garbage: Any) -> None:
    answer = await reader.rest("GET", PATH, headers={"x-consistency": garbage})

    assert answer.status_code == 400
    assert answer.json()["error"] == "validation_error"
    (violation,) = answer.json()["violations"]
    assert (violation["pointer"], violation["rule"]) == ("/x_consistency", "consistency")


# Replicas that lag, stop or fail


async def test_a_replica_that_lags_too_far_is_left_out_and_comes_back(
    servers: ReplicatedServers, replica: StreamingServer
) -> None:
    async with service_on(servers, database_read_lag_seconds=1) as service:
        name = service.services.replicas.replicas[0].name
        await replica.fetch("SELECT pg_wal_replay_pause()")
        await record(service)
        await wait_until(lambda: service.services.replicas.replicas[0].problem is Problem.BEHIND)
        assert REPLICA_LAG_SECONDS.labels(name)._value.get() >= 1
        assert REPLICA_LAG_BYTES.labels(name)._value.get() > 0
        assert REPLICA_IN_USE.labels(name)._value.get() == 0
        before = reads("primary", "left_out")
        assert (await service.rest("GET", PATH)).status_code == 200
        assert reads("primary", "left_out") == before + 1

        await replica.fetch("SELECT pg_wal_replay_resume()")
        await wait_until(lambda: replicas_in_use(service) == 1)
        assert REPLICA_IN_USE.labels(name)._value.get() == 1


# Sleeps on the replica only.
SLOW_THERE = Statement(
    "SELECT p.id AS key, CASE WHEN pg_is_in_recovery() THEN pg_sleep(60)::text END AS slept"
    " FROM patient_graph.patients p WHERE p.id = ANY($1::text[]) AND $2::text = 'loop' AND $3::bigint > 0",
    ("ids", "brand_id", "most_bytes"),
)


async def read_slowly(service: Service, *, batched: bool) -> Any:
    """Read the demo patient; the replica takes a minute."""
    on_replica = consistency_of(service.services, "dev", None).reads
    assert on_replica is not None
    if batched:
        return await on_replica.requests.fetch_one_batched("loop", SLOW_THERE, "ids", "demo-patient", most_bytes=1_000)
    async with on_replica.requests.connection("loop") as connection:
        return await connection.fetch_one(SLOW_THERE, ids=["demo-patient"], brand_id="loop", most_bytes=1_000)


@pytest.mark.parametrize("batched", [False, True])
async def test_a_statement_that_conflicts_with_replay_moves_to_the_primary(
    servers: ReplicatedServers, replica: StreamingServer, reader: Service, batched: bool
) -> None:
    """The replica cancels a statement (40001) because the primary has locked its table since."""
    before = reads("primary", "failed")
    reading = asyncio.create_task(read_slowly(reader, batched=batched))
    await wait_until(
        partial(
            replica.fetch, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND state = 'active'"
        )
    )
    async with owner_connection(servers.primary.url) as owner, owner.transaction():
        await owner.execute("LOCK TABLE patient_graph.patients IN ACCESS EXCLUSIVE MODE")
    row = await asyncio.wait_for(reading, 20)

    assert (row["key"], row["slept"]) == ("demo-patient", None)
    assert reads("primary", "failed") == before + 1
    assert replicas_in_use(reader) == 1


@pytest.mark.parametrize("batched", [False, True])
async def test_a_statement_that_takes_too_long_on_the_replica_is_not_repeated(
    servers: ReplicatedServers, replica: StreamingServer, batched: bool
) -> None:
    async with service_on(servers, database_statement_seconds=1) as service:

        async def fails() -> bool:
            """Read; False if the primary answered because a busy machine's polls of the replica came late."""
            before = reads("primary", "failed")
            try:
                await read_slowly(service, batched=batched)
            except TemporarilyUnavailable:
                assert reads("primary", "failed") == before
                return True
            return False

        await wait_until(fails)


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_a_replica_that_stops_is_left_out_within_a_second_and_reads_go_on(how: str) -> None:
    async with ReplicatedServers.running(1) as servers, service_on(servers) as service:
        (stopping,) = servers.replicas
        statuses: list[int] = []
        over = False

        async def read() -> None:
            while not over:
                statuses.append((await service.rest("GET", PATH)).status_code)

        reading = [asyncio.create_task(read()) for _ in range(4)]
        await wait_until(lambda: len(statuses) > 20)
        if how == "kill":
            await stopping.kill()
        else:
            stopping.pause()
        stopped = time.monotonic()
        (state,) = service.services.replicas.replicas
        await wait_until(lambda: not state.is_in_use(service.services.replicas._primary.timeline), 5)
        assert time.monotonic() - stopped <= 1.5  # a second, and the delays of a busy machine
        so_far = len(statuses)
        await wait_until(lambda: len(statuses) > so_far + 20)
        over = True
        await asyncio.gather(*reading)
        assert set(statuses) == {200}

        if how == "pause":
            stopping.resume()
        else:
            await stopping.start()
        await wait_until(lambda: replicas_in_use(service) == 1)


async def test_a_server_that_is_no_standby_of_the_primary_is_never_read(servers: ReplicatedServers) -> None:
    async with ReplicatedServers.running(0) as others:
        both = ReplicatedServers(servers.primary, [servers.primary, others.primary])
        async with Service.running(settings_of(both)) as service:
            assert (await service.rest("GET", PATH)).status_code == 200
            await asyncio.sleep(0.5)
            problems = {each.problem for each in service.services.replicas.replicas}
            assert problems == {Problem.NO_STANDBY}


async def test_the_gateway_serves_though_no_replica_can_be_reached(servers: ReplicatedServers) -> None:
    unreachable = ReplicatedServers(servers.primary, [StreamingServer(servers.primary.data)])
    async with Service.running(settings_of(unreachable)) as service:
        recorded = await record(service)
        assert await find(service, recorded) == 200
        assert [each.problem for each in service.services.replicas.replicas] == [Problem.SILENT]


async def test_the_check_says_which_replicas_are_read(servers: ReplicatedServers) -> None:
    (replica,) = servers.replicas
    named = {
        "GATEWAY_DATABASE_READ_URLS": f"{replica.serving_url} {servers.primary.serving_url}",
        "GATEWAY_DATABASE_OWNER_URL": servers.primary.url,
        "GATEWAY_DATABASE_UNSAFE": "true",
    }
    code, output = await run("check", servers.primary.serving_url, **named)

    assert code == 0, output
    assert f"The replica 127.0.0.1:{replica.port} is read from." in output
    assert f"The replica 127.0.0.1:{servers.primary.port} is left out: it is no standby." in output


# A failover


async def test_a_promoted_replica_takes_over_without_a_restart() -> None:
    """The primary is killed under load, and its replica promoted. Replication is synchronous, so nothing is lost."""
    async with ReplicatedServers.running(2) as servers:
        primary, (promoted, following) = servers.primary, servers.replicas
        async with owner_connection(primary.url) as owner:
            await owner.execute("ALTER SYSTEM SET synchronous_standby_names = 'FIRST 2 (replica)'")
            await owner.execute("SELECT pg_reload_conf()")
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{promoted.port}/postgres?target_session_attrs=primary"
        named = {
            "GATEWAY_DATABASE_OWNER_URL": f"postgresql://postgres@{hosts}",
            "GATEWAY_DATABASE_READ_URLS": f"{promoted.serving_url} {following.serving_url}",
            **IMPATIENT,
        }
        async with gateways(f"postgresql://{LOGIN}@{hosts}", **named) as (gateway,), httpx2.AsyncClient() as http:
            async with Load.on(gateway.origin) as load:
                await wait_until(lambda: load.recorded() >= 20)
                marker = (await http.post(gateway.origin + PATH, json=VISIT, headers=DEV)).headers["x-consistency"]
                await primary.kill()
                # A replica answers a client that has changed nothing; the patient is of another brand.
                other = {"authorization": "Bearer dev-loopbio"}
                assert (await http.get(gateway.origin + PATH, headers=other, timeout=30)).status_code == 404
                assert await promoted.fetch("SELECT pg_promote()")
                so_far = len(load.answers)
                await wait_until(lambda: load.recorded(so_far) >= 20)
                after = (await http.post(gateway.origin + PATH, json=VISIT, headers=DEV, timeout=30)).headers
                # A marker of the old timeline, and one of the new: both are answered, by the new primary.
                for each in (marker, after["x-consistency"]):

                    async def is_found(headers: dict[str, str]) -> bool:
                        found = await http.get(gateway.origin + after["location"], headers=headers)
                        # Under load, the pool may still open its connections to the new primary.
                        assert found.status_code in {200, 503}, found.text
                        return found.status_code == 200

                    await wait_until(partial(is_found, DEV | {"x-consistency": each}))
            # The other replica is read again once it follows the new primary.
            assert await in_use(http, gateway) == {promoted.port: 0, following.port: 0}
            conninfo = f"host=127.0.0.1 port={promoted.port} user=postgres"
            for statement in (f"ALTER SYSTEM SET primary_conninfo = '{conninfo}'", "SELECT pg_reload_conf()"):
                await following.fetch(statement)
            await wait_until(partial(is_followed, promoted))
            await promoted.fetch("CHECKPOINT")
            await wait_until(partial(follows, following))
            await wait_until(partial(is_read_again, http, gateway, following))
            assert gateway.process.poll() is None
            assert unexpected(gateway) == []
        async with owner_connection(promoted.url) as owner:
            rows = await owner.fetch("SELECT key, encounter_id::text AS id FROM patient_graph.idempotency_keys")
            stored: dict[str, str] = {row["key"]: row["id"] for row in rows}
        assert wrong_answers(load.answers, stored) == []
        assert {(each.code, each.recorded) for each in load.answers if not each.encounter_id} <= {
            ("temporarily_unavailable", "no"),
            ("temporarily_unavailable", "unknown"),
        }


async def is_followed(server: StreamingServer) -> Any:
    return await server.fetch("SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'")


async def follows(replica: StreamingServer) -> Any:
    """Make a restart point, and return whether the replica has replayed a checkpoint of the second timeline."""
    await replica.fetch("CHECKPOINT")
    return await replica.fetch("SELECT timeline_id = 2 FROM pg_control_checkpoint()")


async def in_use(http: httpx2.AsyncClient, gateway: Gateway) -> dict[int, float]:
    """Return the metric of each replica, by its port."""
    text = (await http.get(f"{gateway.origin}/metrics", headers=DEV, timeout=30)).text
    found = re.findall(r'^gateway_replica_in_use\{replica="127.0.0.1:(\d+)"\} (.*)$', text, re.MULTILINE)
    return {int(port): float(value) for port, value in found}


async def is_read_again(http: httpx2.AsyncClient, gateway: Gateway, replica: StreamingServer) -> bool:
    return (await in_use(http, gateway))[replica.port] == 1
