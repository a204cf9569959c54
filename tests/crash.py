"""`make crash`: kill a gateway and its PostgreSQL under load, repeatedly; acknowledged encounters must survive.

Each round starts a gateway on the same data folder. Clients record through both doors, each encounter under its own
key. At a random moment the gateway, PostgreSQL or both are killed with SIGKILL. Requests without an answer are sent
again in the next round. At the end, every acknowledged encounter exists exactly once, with its event and audit entry.
The seed is printed: the same seed kills the same processes.
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
from pathlib import Path
from uuid import uuid4

import asyncpg
import httpx2
import psutil

from gateway.database.roles import DATABASE, OWNER

ROOT = Path(__file__).parent.parent
CLIENTS = 8
DEV = {"Authorization": "Bearer dev"}
PATIENT = "demo-patient"
MUTATION = """mutation ($key: String!, $notes: String!) {
  recordEncounter(patientId: "demo-patient", idempotencyKey: $key,
    input: {brandId: "loop", encounterType: LAB, notes: $notes}) {
    ... on EncounterRecorded { encounter { id } } ... on Problem { code recorded } } }"""


class Ledger:
    """The state of the clients: the acknowledged encounter of each key, and the keys without an answer."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, str] = {}
        self.unanswered: set[str] = set()
        self.contradictions: list[str] = []

    def acknowledge(self, key: str, encounter_id: str) -> None:
        """Store an acknowledgement; repeated acknowledgements of a key must name the same encounter."""
        self.unanswered.discard(key)
        if self.acknowledged.setdefault(key, encounter_id) != encounter_id:
            self.contradictions.append(f"{key} was two encounters")


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
    process, origin = await _start(folder)
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
    process, origin = await _start(folder)
    async with httpx2.AsyncClient(base_url=origin, headers=DEV, timeout=30) as client:
        for key in sorted(ledger.unanswered):
            await _record(client, ledger, key, over_rest=True)
    socket_folder = next((folder / "data").rglob("socket"))
    owner = await asyncpg.connect(f"postgresql://{OWNER}@/{DATABASE}?host={socket_folder}&port=5432")
    stored = Counter(str(row["id"]) for row in await owner.fetch("SELECT id FROM patient_graph.encounters"))
    claimed = await owner.fetch("SELECT key, encounter_id FROM patient_graph.idempotency_keys")
    keys = {row["key"]: str(row["encounter_id"]) for row in claimed}
    whole = {
        str(row["id"])
        for row in await owner.fetch(
            "SELECT e.id FROM patient_graph.encounters e"
            " JOIN patient_graph.audit_log a ON a.entity_id = e.id::text"
            " AND a.event_type = 'patient_graph.encounter.recorded'"
            " JOIN patient_graph.outbox o ON o.payload ->> 'encounter_id' = e.id::text"
            " JOIN patient_graph.encounter_versions v ON v.encounter_id = e.id AND v.version = 1"
            " GROUP BY e.id HAVING count(*) = 1"
        )
    }
    await owner.close()
    process.terminate()
    await process.wait()
    acknowledged = set(ledger.acknowledged.values())
    wrong = [f"{key} was never answered" for key in ledger.unanswered]
    wrong += [f"{each} was acknowledged and is not there" for each in acknowledged - stored.keys()]
    wrong += [f"{each} is there {times} times" for each, times in stored.items() if times > 1]
    wrong += [
        f"{each} is there without its event, entry or first version, or with two" for each in stored.keys() - whole
    ]
    wrong += [f"{each} is there and no key stands for it" for each in stored.keys() - set(keys.values())]
    wrong += [f"{key} stands for another" for key, each in ledger.acknowledged.items() if keys.get(key) != each]
    print(f"{len(acknowledged)} acknowledged, {sum(stored.values())} kept, {len(wrong)} wrong")
    return wrong


async def _start(folder: Path) -> tuple[asyncio.subprocess.Process, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    environment |= {
        "GATEWAY_DATA_DIR": str(folder / "data"),
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
            f"/v1/patients/{PATIENT}/encounters", json=members, headers={"Idempotency-Key": key}
        )
        if response.status_code == 201:
            ledger.acknowledge(key, response.json()["id"])
    else:
        variables = {"key": key, "notes": f"Notes of {key}"}
        response = await client.post("/graphql", json={"query": MUTATION, "variables": variables})
        recorded = (response.json().get("data") or {}).get("recordEncounter") or {}
        if "encounter" in recorded:
            ledger.acknowledge(key, recorded["encounter"]["id"])


def main() -> None:
    """Run from the command line; exit with 1 after an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    wrong = asyncio.run(crash(arguments.rounds, arguments.seed))
    print("\n".join(wrong))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    main()
