"""Faults of a Citus cluster: a lost or hanging worker, half a commit, a rebalance and an added node.

For each fault: no answer contradicts the tables, none is a 500, other patients are served, and the gateway recovers
without a restart.
"""

import time
from collections.abc import AsyncIterator, Collection
from functools import partial
from typing import Any
from uuid import uuid4

import asyncpg
import httpx2
import pytest

from gateway.database import citus
from gateway.database.inspection import inspect_database
from tests.citus_servers import PROGRAMS, CitusNode, CitusServers
from tests.gateways import DEV, VISIT, ClientAnswer, Gateway, Load, client, gateways, record_over_rest, wrong_answers
from tests.waiting import wait_until as wait_until_deadline

pytestmark = pytest.mark.skipif(PROGRAMS is None, reason="needs TEST_CITUS_BIN")

# Three servers and a gateway on a busy machine.
wait_until = partial(wait_until_deadline, seconds=120)

CLUSTER = {"GATEWAY_DATABASE_CLUSTER": "true"}

STATEMENT_SECONDS = 4.0
"""Long enough for an undisturbed statement on a busy machine."""

FAN_OUTS = {
    "encounter by id": '{ encounter(id: "00000000-0000-7000-8000-000000000000") { id } }',
    "worklist": "{ encounters(first: 5) { edges { node { id } } } }",
    "counts": "{ encounterCounts(by: STATUS) { count } }",
}


@pytest.fixture(scope="module")
async def running_servers() -> AsyncIterator[CitusServers]:
    async with CitusServers.migrated() as servers:
        yield servers


@pytest.fixture
async def servers(running_servers: CitusServers) -> AsyncIterator[CitusServers]:
    """The cluster, with every node started again after a test that failed."""
    yield running_servers
    for node in running_servers.nodes:
        node.resume()
        if not node.processes():
            await node.start()


class Patients:
    """The patients of the first worker and of the second one."""

    def __init__(self, lost: list[str], others: list[str]) -> None:
        self.lost = lost
        self.others = others


@pytest.fixture
async def patients(servers: CitusServers) -> Patients:
    return Patients(await servers.patients_of(servers.workers[0]), await servers.patients_of(servers.workers[1]))


async def post(http: httpx2.AsyncClient, gateway: Gateway, patient: str) -> httpx2.Response:
    """Record an encounter without a key, which concerns one node."""
    return await http.post(f"{gateway.origin}/v1/patients/{patient}/encounters", json=VISIT, headers=DEV, timeout=60)


async def ask(http: httpx2.AsyncClient, gateway: Gateway, document: str) -> dict[str, Any]:
    answer = await http.post(f"{gateway.origin}/graphql", json={"query": document}, headers=DEV, timeout=60)
    body: dict[str, Any] = answer.json()
    return body


def codes(body: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each["extensions"]["code"], each["extensions"]["recorded"]) for each in body.get("errors", [])]


async def nodes_of(http: httpx2.AsyncClient, gateway: Gateway) -> dict[str, Any] | None:
    """Return `checks.nodes` of `/readyz`, which must be ready."""
    answer = await http.get(f"{gateway.origin}/readyz")
    assert answer.status_code == 200
    nodes: dict[str, Any] | None = answer.json()["checks"].get("nodes")
    return nodes


def unexpected(gateway: Gateway) -> list[str]:
    """Return the log lines of unexpected exceptions."""
    return [line for line in gateway.errors().splitlines() if '"event": "unexpected"' in line]


def served(load: Load, since: int, patients: Collection[str]) -> int:
    """Return the number of recordings of these patients, in the answers from index `since` on."""
    return sum(each.encounter_id is not None and each.patient in patients for each in load.answers[since:])


def refused(load: Load, since: int, patients: Collection[str]) -> int:
    return sum(each.code is not None and each.patient in patients for each in load.answers[since:])


async def assert_true(servers: CitusServers, answers: list[ClientAnswer]) -> None:
    """Assert that the answers agree with the tables, and that each encounter is complete."""
    await wait_until(lambda: none_is_prepared(servers))
    async with servers.connection() as connection:
        keys = await connection.fetch("SELECT key, encounter_id::text AS id FROM patient_graph.idempotency_keys")
        encounters = await connection.fetch(
            "SELECT e.id::text AS id,"
            " (SELECT count(*) FROM patient_graph.outbox o"
            " WHERE o.patient_id = e.patient_id AND o.payload ->> 'encounter_id' = e.id::text) AS events,"
            " (SELECT count(*) FROM patient_graph.audit_log a WHERE a.patient_id = e.patient_id"
            " AND a.entity_id = e.id::text AND a.event_type = 'patient_graph.encounter.recorded') AS entries"
            " FROM patient_graph.encounters e"
        )
    assert all((row["events"], row["entries"]) == (1, 1) for row in encounters)
    ids = [row["id"] for row in encounters]
    assert len(ids) == len(set(ids))
    stored = {row["key"]: row["id"] for row in keys}
    assert set(stored.values()) <= set(ids)
    assert wrong_answers(answers, stored) == []
    assert {answer.status for answer in answers} <= {200, 201, 503}
    assert {answer.code for answer in answers if not answer.encounter_id} <= {"temporarily_unavailable"}


async def none_is_prepared(servers: CitusServers) -> bool:
    return await servers.prepared() == 0


async def every_event_has_a_position(servers: CitusServers) -> bool:
    async with servers.connection() as connection:
        waiting = await connection.fetchval("SELECT count(*) FROM patient_graph.outbox WHERE position IS NULL")
    return bool(waiting == 0)


async def test_a_killed_worker_is_503_for_its_patients_alone(servers: CitusServers, patients: Patients) -> None:
    lost = servers.workers[0]
    async with gateways(servers.url, **CLUSTER) as (gateway,), client() as http:
        await wait_until(lambda: nodes_are(http, gateway, ok=True, answering=3, of=3))
        async with Load.on(gateway.origin, 6, patients=[*patients.lost, *patients.others]) as load:
            await wait_until(lambda: served(load, 0, patients.lost) >= 5)
            await lost.kill()
            # Answers that were sent before the loss arrive first.
            since = len(load.answers)
            await wait_until(lambda: refused(load, since, patients.lost) >= 5)
            since = len(load.answers)
            await wait_until(lambda: refused(load, since, patients.lost) >= 5)
            await wait_until(lambda: served(load, since, patients.others) >= 20)
            assert refused(load, since, patients.others) == 0
            assert served(load, since, patients.lost) == 0
            for patient in patients.others[:3]:
                assert (await post(http, gateway, patient)).status_code == 201
                listed = await http.get(f"{gateway.origin}/v1/patients/{patient}/encounters", headers=DEV)
                assert listed.status_code == 200
            for document in FAN_OUTS.values():
                assert codes(await ask(http, gateway, document)) == [("temporarily_unavailable", "no")]
            await wait_until(lambda: nodes_are(http, gateway, ok=False, answering=2, of=3))
            metrics = (await http.get(f"{gateway.origin}/metrics", headers=DEV, timeout=30)).text
            assert 'gateway_cluster_nodes{state="away"} 1.0' in metrics
            assert "gateway_database_up 1.0" in metrics
            await lost.start()
            since = len(load.answers)
            await wait_until(lambda: served(load, since, patients.lost) >= 5)
            for document in FAN_OUTS.values():
                assert codes(await ask(http, gateway, document)) == []
        await wait_until(lambda: nodes_are(http, gateway, ok=True, answering=3, of=3))
        # The jobs of the gateway, which query every node, recover as well.
        await wait_until(lambda: every_event_has_a_position(servers))
        assert unexpected(gateway) == []
    await assert_true(servers, load.answers)


async def nodes_are(http: httpx2.AsyncClient, gateway: Gateway, **expected: Any) -> bool:
    return await nodes_of(http, gateway) == expected


async def test_a_hanging_worker_delays_an_answer_by_the_statement_timeout(
    servers: CitusServers, patients: Patients
) -> None:
    """A node that accepts connections and does not answer: its patients get 503 within a bound."""
    hanging = servers.workers[0]
    settings = {"GATEWAY_DATABASE_STATEMENT_SECONDS": f"{STATEMENT_SECONDS:.0f}"}
    async with gateways(servers.url, **CLUSTER, **settings) as (gateway,), client() as http:
        for patient in (patients.lost[0], patients.others[0]):
            assert (await post(http, gateway, patient)).status_code == 201
        await wait_until(lambda: nodes_are(http, gateway, ok=True, answering=3, of=3))
        hanging.pause()
        try:
            for _ in range(3):
                started = time.monotonic()
                answer = await post(http, gateway, patients.lost[0])
                assert answer.status_code == 503
                assert answer.json()["recorded"] == "no"
                # Two seconds later the gateway drops the connection. The rest is for a busy machine.
                assert time.monotonic() - started < STATEMENT_SECONDS + 2 + 3
                assert (await post(http, gateway, patients.others[0])).status_code == 201
            for document in FAN_OUTS.values():
                assert codes(await ask(http, gateway, document)) == [("temporarily_unavailable", "no")]
            await wait_until(lambda: nodes_are(http, gateway, ok=False, answering=2, of=3))
            started = time.monotonic()
            await nodes_of(http, gateway)
            assert time.monotonic() - started < 1
        finally:
            hanging.resume()
        await wait_until(lambda: recorded(http, gateway, patients.lost[0]))
        await wait_until(lambda: every_event_has_a_position(servers))
        assert unexpected(gateway) == []


async def recorded(http: httpx2.AsyncClient, gateway: Gateway, patient: str) -> bool:
    return (await post(http, gateway, patient)).status_code == 201


# Half a commit


class Shard:
    """The shard of a table that has one value, on its node."""

    def __init__(self, name: str, node: CitusNode) -> None:
        self.name = name
        self.node = node

    @classmethod
    async def of(cls, servers: CitusServers, table: str, value: str) -> "Shard":
        async with servers.connection() as connection:
            row = await connection.fetchrow(
                "SELECT nodeport, shardid FROM pg_dist_placement JOIN pg_dist_node USING (groupid)"
                " WHERE shardid = get_shard_id_for_distribution_column($1, $2::text)",
                table,
                value,
            )
        assert row is not None
        return cls(f"{table}_{row['shardid']}", next(node for node in servers.nodes if node.port == row["nodeport"]))

    async def make_pending(self, condition: str) -> None:
        """Replace a committed row by one whose transaction is prepared, as between the phases of a commit."""
        connection = await asyncpg.connect(self.node.url)
        await connection.execute(
            f"CREATE TEMP TABLE kept AS SELECT * FROM {self.name} WHERE {condition};"
            "SET session_replication_role = replica;"
            "SET citus.enable_manual_changes_to_shards = on"
        )
        assert await connection.execute(f"DELETE FROM {self.name} WHERE {condition}") == "DELETE 1"
        row = await connection.fetchval("SELECT row_to_json(kept)::text FROM kept")
        await connection.execute("DROP TABLE kept")
        await connection.execute("BEGIN")
        await connection.execute(
            f"INSERT INTO {self.name} SELECT * FROM json_populate_record(NULL::{self.name}, $1)", row
        )
        await connection.execute("PREPARE TRANSACTION 'half'")
        await connection.close()

    async def finish(self) -> None:
        connection = await asyncpg.connect(self.node.url)
        await connection.execute("COMMIT PREPARED 'half'")
        await connection.close()


async def test_half_a_commit_is_never_shown_as_the_outcome_of_a_key(servers: CitusServers, patients: Patients) -> None:
    """The coordinator has committed the key, and the node of the patient has only prepared the encounter."""
    patient, key = patients.lost[0], str(uuid4())
    async with gateways(servers.url, **CLUSTER) as (gateway,), client() as http:
        first = await record_over_rest(http, gateway.origin, key, patient)
        assert first.encounter_id is not None
        shard = await Shard.of(servers, "patient_graph.encounters", patient)
        await shard.make_pending(f"id = '{first.encounter_id}'")
        try:
            again = await record_over_rest(http, gateway.origin, key, patient)
            outcome = await ask(http, gateway, f'{{ submission(key: "{key}") {{ state }} }}')
        finally:
            await shard.finish()
        assert (again.status, again.code, again.recorded) == (503, "temporarily_unavailable", "unknown")
        assert codes(outcome) == [("temporarily_unavailable", "unknown")]
        finished = await record_over_rest(http, gateway.origin, key, patient)
        assert (finished.status, finished.body) == (201, first.body)
        assert unexpected(gateway) == []
    await assert_true(servers, [finished])


async def test_the_check_tells_what_has_been_prepared_for_long(
    servers: CitusServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(citus, "PREPARED", citus.PREPARED.replace(citus.PENDING, "0 seconds"))
    url = f"{servers.url}?cluster=true"

    async def told() -> list[str]:
        return [each for each in (await inspect_database(url)).warnings if "prepared" in each]

    assert await told() == []
    node = await asyncpg.connect(servers.workers[0].url)
    # Not a name that Citus gives, so that its maintenance daemon does not end it.
    await node.execute("BEGIN; CREATE TABLE pending (); PREPARE TRANSACTION 'citus_of_a_test'")
    assert len(await told()) == 1
    await node.execute("ROLLBACK PREPARED 'citus_of_a_test'")
    await node.close()


# The last test: it adds nodes.
@pytest.mark.parametrize("mode", ["block_writes", "force_logical"])
async def test_a_node_is_added_and_shards_are_moved_under_load(servers: CitusServers, mode: str) -> None:
    before = {patient for node in servers.workers for patient in await servers.patients_of(node)}
    async with gateways(servers.url, **CLUSTER) as (gateway,), client() as http:
        async with Load.on(gateway.origin, 6, patients=sorted(before)) as load:
            await wait_until(lambda: load.recorded() >= 10)
            added = await servers.add_node()
            await servers.rebalance(mode)
            moved = await servers.patients_of(added)
            assert moved
            since = len(load.answers)
            await wait_until(lambda: served(load, since, moved) >= 3)
            await wait_until(lambda: served(load, since, before.difference(moved)) >= 3)
        nodes = len(servers.nodes)
        await wait_until(lambda: nodes_are(http, gateway, ok=True, answering=nodes, of=nodes))
        await wait_until(lambda: every_event_has_a_position(servers))
        assert unexpected(gateway) == []
    await assert_true(servers, load.answers)
