"""`make crash`: kill a gateway and its PostgreSQL under load, repeatedly; acknowledged encounters must survive.

Each round starts a gateway on the same data folder. Clients record through both doors, each encounter under its own
key. At a random moment the gateway, PostgreSQL or both are killed with SIGKILL. Requests without an answer are sent
again in the next round. At the end, every acknowledged encounter exists exactly once, with its event and audit entry.
The seed is printed: the same seed kills the same processes.

With `--cluster`, the database is a Citus cluster (`TEST_CITUS_BIN`), and a worker or the coordinator may be killed too.
A killed worker returns under load. The acknowledged encounters are compared after each round.
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import asyncpg
import httpx2
import psutil

from gateway.database.roles import DATABASE, OWNER
from tests.citus_servers import PATIENTS, CitusServers
from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent
CLIENTS = 8
DEV = {"Authorization": "Bearer dev"}
PATIENT = "demo-patient"
MUTATION = """mutation ($patient: ID!, $key: String!, $notes: String!) {
  recordEncounter(patientId: $patient, idempotencyKey: $key,
    input: {brandId: "loop", encounterType: LAB, notes: $notes}) {
    ... on EncounterRecorded { encounter { id } } ... on Problem { code recorded } } }"""


class Ledger:
    """The state of the clients: the acknowledged encounter of each key, and the keys without an answer."""

    def __init__(self, patients: Sequence[str] = (PATIENT,)) -> None:
        self.patients = patients
        self.acknowledged: dict[str, str] = {}
        self.unanswered: set[str] = set()
        self.contradictions: list[str] = []

    def acknowledge(self, key: str, encounter_id: str) -> None:
        """Store an acknowledgement; repeated acknowledgements of a key must name the same encounter."""
        self.unanswered.discard(key)
        if self.acknowledged.setdefault(key, encounter_id) != encounter_id:
            self.contradictions.append(f"{key} was two encounters")

    def patient_of(self, key: str) -> str:
        """Return the patient of a key, always the same."""
        return self.patients[int(key[:8], 16) % len(self.patients)]


async def crash(rounds: int, seed: int) -> list[str]:
    """Run the rounds and return the errors found."""
    print(f"seed {seed}, {rounds} rounds")
    chance = random.Random(seed)
    ledger = Ledger()
    with tempfile.TemporaryDirectory(prefix="gateway-crash-") as folder:
        for number in range(rounds):
            killed = await _round(Path(folder), ledger, chance)
            print(f"round {number + 1}: killed {killed}; {len(ledger.acknowledged)} acknowledged", flush=True)
        return ledger.contradictions + await _last_round(Path(folder), ledger)


async def _round(folder: Path, ledger: Ledger, chance: random.Random) -> str:
    process, origin = await _start({"GATEWAY_DATA_DIR": str(folder / "data")})
    clients = [asyncio.create_task(_client(origin, ledger, chance.random() < 0.5)) for _ in range(CLIENTS)]
    await asyncio.sleep(chance.uniform(0.05, 1.5))
    family = psutil.Process(process.pid).children(recursive=True)
    servers = [each for each in family if each.name() == "postgres"]
    targets = {
        "the gateway": [psutil.Process(process.pid)],
        "PostgreSQL": servers[:1],
        "a connection's process": chance.sample(servers, 1),
        "everything": [psutil.Process(process.pid), *servers],
    }
    killed = chance.choice(sorted(targets))
    for target in targets[killed]:
        with contextlib.suppress(psutil.NoSuchProcess):  # PostgreSQL's helper processes start and end at any time
            target.kill()
    await asyncio.sleep(chance.uniform(0, 0.3))
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    if process.returncode is None:
        process.kill()
    await process.wait()
    # Processes that still run are left to the next start, as after a real crash.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5):
            while any(_alive(each) for each in family):  # noqa: ASYNC110 - they are other processes
                await asyncio.sleep(0.02)
    return killed


def _alive(process: psutil.Process) -> bool:
    # Without a reaper, dead orphans remain in the process table.
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


async def _last_round(folder: Path, ledger: Ledger) -> list[str]:
    """Send the unanswered requests again, then compare the acknowledged encounters with the stored ones."""
    process, origin = await _start({"GATEWAY_DATA_DIR": str(folder / "data")})
    await _send_again(origin, ledger)
    socket_folder = next((folder / "data").rglob("socket"))
    wrong = await _compare(f"postgresql://{OWNER}@/{DATABASE}?host={socket_folder}&port=5432", ledger)
    process.terminate()
    await process.wait()
    return [f"{key} was never answered" for key in ledger.unanswered] + wrong


async def _send_again(origin: str, ledger: Ledger) -> None:
    """Send the unanswered requests until each is answered, for five minutes at most."""

    async def send() -> bool:
        for key in sorted(ledger.unanswered):
            await _record(client, ledger, key, over_rest=True)
        return not ledger.unanswered

    async with httpx2.AsyncClient(base_url=origin, headers=DEV, timeout=30) as client:
        with contextlib.suppress(TimeoutError):
            await wait_until(send, 300)


async def _compare(url: str, ledger: Ledger, *, complete: bool = True) -> list[str]:
    """Return the contradictions between the acknowledged and the stored encounters.

    `complete`: whether every stored encounter must have been acknowledged to some client.
    """
    owner = await asyncpg.connect(url)
    stored = Counter(str(row["id"]) for row in await owner.fetch("SELECT id FROM patient_graph.encounters"))
    claimed = await owner.fetch("SELECT key, encounter_id FROM patient_graph.idempotency_keys")
    keys = {row["key"]: str(row["encounter_id"]) for row in claimed}
    whole = {
        str(row["id"])
        for row in await owner.fetch(
            "SELECT e.id FROM patient_graph.encounters e"
            " JOIN patient_graph.audit_log a ON a.patient_id = e.patient_id AND a.entity_id = e.id::text"
            " AND a.event_type = 'patient_graph.encounter.recorded'"
            " JOIN patient_graph.outbox o ON o.patient_id = e.patient_id AND o.payload ->> 'encounter_id' = e.id::text"
            " JOIN patient_graph.encounter_versions v"
            " ON v.patient_id = e.patient_id AND v.encounter_id = e.id AND v.version = 1"
            " GROUP BY e.patient_id, e.id HAVING count(*) = 1"
        )
    }
    await owner.close()
    acknowledged = set(ledger.acknowledged.values())
    wrong = [f"{each} was acknowledged and is not there" for each in acknowledged - stored.keys()]
    wrong += [f"{each} is there {times} times" for each, times in stored.items() if times > 1]
    wrong += [
        f"{each} is there without its event, entry or first version, or with two" for each in stored.keys() - whole
    ]
    wrong += [f"{each} is there and no key stands for it" for each in stored.keys() - set(keys.values())]
    wrong += [f"{key} stands for no encounter" for key, each in keys.items() if each not in stored]
    wrong += [f"{key} stands for another" for key, each in ledger.acknowledged.items() if keys.get(key) != each]
    if complete:
        wrong += [f"{each} is there and was never acknowledged" for each in stored.keys() - acknowledged]
    print(f"{len(acknowledged)} acknowledged, {sum(stored.values())} kept, {len(wrong)} wrong", flush=True)
    return wrong


# A cluster


async def crash_cluster(rounds: int, seed: int) -> list[str]:
    """Run the rounds on a cluster of a coordinator and two workers, and return the errors found."""
    print(f"seed {seed}, {rounds} rounds on a cluster", flush=True)
    chance = random.Random(seed)
    ledger = Ledger(PATIENTS)
    wrong: list[str] = []
    async with CitusServers.migrated() as servers:
        # On a busy machine, a connection is opened in seconds.
        environment = {
            "GATEWAY_DATABASE_URL": servers.url,
            "GATEWAY_DATABASE_CLUSTER": "true",
            "GATEWAY_DATABASE_ACQUIRE_SECONDS": "10",
        }
        process, origin = await _start(environment)
        for number in range(rounds):
            if process.returncode is not None:
                process, origin = await _start(environment)
            killed, pending = await _round_on_cluster(servers, process, origin, ledger, chance)
            # Before the comparison, Citus finishes what was prepared.
            await wait_until(lambda: _none_is_prepared(servers), 120)
            print(
                f"round {number + 1}: killed {killed}; {pending} prepared transactions; "
                f"{len(ledger.unanswered)} unanswered; ",
                end="",
            )
            wrong += await _compare(servers.url, ledger, complete=False)
        if process.returncode is not None:
            process, origin = await _start(environment)
        await _send_again(origin, ledger)
        wrong += [f"{key} was never answered" for key in ledger.unanswered]
        await wait_until(lambda: _every_event_has_a_position(servers), 120)
        process.terminate()
        await process.wait()
        wrong += await _compare(servers.url, ledger)
    return ledger.contradictions + wrong


async def _round_on_cluster(
    servers: CitusServers, process: asyncio.subprocess.Process, origin: str, ledger: Ledger, chance: random.Random
) -> tuple[str, int]:
    """Return the processes that were killed, and the number of transactions that were prepared then."""
    clients = [asyncio.create_task(_client(origin, ledger, chance.random() < 0.5)) for _ in range(CLIENTS)]
    await _until_recorded(ledger)
    await asyncio.sleep(chance.uniform(0, 1))
    worker = chance.choice(servers.workers)
    killed = chance.choice(["a worker", "a worker", "the coordinator", "the coordinator", "the gateway", "everything"])
    if killed in {"the gateway", "everything"}:
        process.kill()
        await process.wait()
    nodes = {"a worker": [worker], "the coordinator": [servers.coordinator], "everything": servers.nodes}.get(
        killed, []
    )
    await asyncio.gather(*(node.kill() for node in nodes))
    pending = await servers.prepared()
    await asyncio.sleep(chance.uniform(0, 0.5))
    await asyncio.gather(*(node.start() for node in nodes))
    if process.returncode is None:
        await _until_recorded(ledger)
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    return killed, pending


async def _until_recorded(ledger: Ledger) -> None:
    """Wait until as many recordings as there are clients have been acknowledged."""
    enough = len(ledger.acknowledged) + CLIENTS
    await wait_until(lambda: len(ledger.acknowledged) >= enough, 180)


async def _none_is_prepared(servers: CitusServers) -> bool:
    return await servers.prepared() == 0


async def _every_event_has_a_position(servers: CitusServers) -> bool:
    async with servers.connection() as connection:
        row = await connection.fetchrow("SELECT count(*), count(DISTINCT position) FROM patient_graph.outbox")
    assert row is not None
    return bool(row[0] == row[1])


async def _start(settings: Mapping[str, str]) -> tuple[asyncio.subprocess.Process, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    environment |= {
        **settings,
        "GATEWAY_PORT": "0",
        "GATEWAY_RATE_WRITES_PER_MINUTE": "1000000",
        "GATEWAY_RATE_ADDRESS_PER_MINUTE": "1000000",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "serve", cwd=ROOT, env=environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    output = await asyncio.wait_for(process.stdout.readuntil(b"GraphQL"), 60)
    origin = output.split()[1].decode().partition("/v1")[0]
    async with httpx2.AsyncClient(base_url=origin, timeout=60) as client:
        await client.get("/readyz")
    return process, origin


async def _client(origin: str, ledger: Ledger, over_rest: bool) -> None:
    async with httpx2.AsyncClient(base_url=origin, headers=DEV, timeout=30) as client:
        while True:
            # Half of the time the unanswered key of another client: two clients may send one key concurrently.
            waiting = list(ledger.unanswered)
            key = random.choice(waiting) if waiting and random.random() < 0.5 else str(uuid4())
            ledger.unanswered.add(key)
            if key in ledger.acknowledged:
                ledger.unanswered.discard(key)
                continue
            try:
                await _record(client, ledger, key, over_rest)
            except httpx2.HTTPError:
                await asyncio.sleep(0.01)


async def _record(client: httpx2.AsyncClient, ledger: Ledger, key: str, over_rest: bool) -> None:
    if over_rest:
        members = {"brand_id": "loop", "encounter_type": "lab", "notes": f"Notes of {key}"}
        response = await client.post(
            f"/v1/patients/{ledger.patient_of(key)}/encounters", json=members, headers={"Idempotency-Key": key}
        )
        if response.status_code == 201:
            ledger.acknowledge(key, response.json()["id"])
        elif response.status_code != 503:
            ledger.contradictions.append(f"{key} got {response.status_code}")
    else:
        variables = {"patient": ledger.patient_of(key), "key": key, "notes": f"Notes of {key}"}
        response = await client.post("/graphql", json={"query": MUTATION, "variables": variables})
        body = response.json()
        recorded = (body.get("data") or {}).get("recordEncounter") or {}
        codes = {error["extensions"]["code"] for error in body.get("errors", [])}
        if codes - {"temporarily_unavailable"}:
            ledger.contradictions.append(f"{key} got {codes}")
        if "encounter" in recorded:
            ledger.acknowledge(key, recorded["encounter"]["id"])


def main() -> None:
    """Run from the command line; exit with 1 after an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--cluster", action="store_true", help="on a Citus cluster (TEST_CITUS_BIN)")
    arguments = parser.parse_args()
    run = crash_cluster if arguments.cluster else crash
    wrong = asyncio.run(run(arguments.rounds, arguments.seed))
    print("\n".join(wrong))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    main()
