"""The clients of docs/integrators.md record each encounter once, against a gateway with fault injection."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from tests import node
from tests.faulty_gateway import ROOT, FaultyGateway
from tests.waiting import wait_until

CLIENTS = ROOT / "docs/clients"
ENCOUNTERS = 30
# With this seed every kind of fault is among the first thirty.
SEED = 7


@dataclass
class Client:
    """A client with its own outbox."""

    command: Sequence[str]
    outbox: Path
    origin: str

    def start(self, *arguments: str, token: str = "dev", stdin: int | None = None) -> subprocess.Popen[bytes]:
        environment = {
            "ENCOUNTERS_URL": self.origin,
            "ENCOUNTERS_TOKEN": token,
            "ENCOUNTERS_OUTBOX": str(self.outbox),
        }
        command = [*self.command, *arguments]
        return subprocess.Popen(command, env=os.environ | environment, stdin=stdin, stderr=subprocess.PIPE)

    async def keep(self, patient_id: str, **members: str) -> None:
        encounter = {"brand_id": "loop", "encounter_type": "lab"} | members
        process = self.start("keep", patient_id, stdin=subprocess.PIPE)
        _, output = await asyncio.to_thread(process.communicate, json.dumps(encounter).encode(), 60)
        assert (process.returncode, output) == (0, b"")

    async def send(self, token: str = "dev") -> tuple[int, str]:
        """Send the waiting encounters; return the exit code and standard error."""
        process = self.start("send", token=token)
        _, output = await asyncio.to_thread(process.communicate, None, 300)
        return process.returncode, output.decode()

    def count(self, folder: str) -> int:
        return len(list((self.outbox / folder).iterdir()))


def python(_folder: Path) -> Sequence[str]:
    return [sys.executable, str(CLIENTS / "encounters.py")]


def typescript(folder: Path) -> Sequence[str]:
    """Compile the client with the strictest type checks; return its command."""
    strict = [
        "--strict",
        "--noUncheckedIndexedAccess",
        "--target",
        "es2022",
        "--module",
        "nodenext",
        "--types",
        "node",
    ]
    typed: list[str | Path] = ["--typeRoots", node.FOLDER / "node_modules/@types", "--outDir", folder]
    compiled = node.run("tsc", *strict, *typed, CLIENTS / "encounters.mts")
    assert compiled.returncode == 0, compiled.stdout
    return ["node", str(folder / "encounters.mjs")]


def shell(_folder: Path) -> Sequence[str]:
    return ["sh", str(CLIENTS / "encounters.sh")]


@pytest.fixture(
    scope="module",
    params=[python, pytest.param(typescript, marks=node.needs_node), shell],
    ids=lambda language: language.__name__,
)
def command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sequence[str]:
    """The command of the client in each language, compiled if need be."""
    built: Sequence[str] = request.param(tmp_path_factory.mktemp("built"))
    return built


async def test_each_encounter_is_recorded_once_despite_faults(
    command: Sequence[str], server_url: str, tmp_path: Path
) -> None:
    async with FaultyGateway.running(server_url, tmp_path, SEED) as faulty:
        client = Client(command, tmp_path / "outbox", faulty.origin)
        visits = [f"visit {number:02}" for number in range(ENCOUNTERS)]
        await client.keep("demo-patient", notes=visits[0])
        (kept,) = (client.outbox / "waiting").iterdir()
        for visit in visits[1:]:
            # Written as the client wrote the first one: starting a process for each would be slow.
            (client.outbox / "waiting" / str(uuid4())).write_text(kept.read_text().replace(visits[0], visit))

        # The client is also killed during a run; the next run continues.
        killed = client.start("send")

        async def a_third_is_recorded() -> bool:
            return len(await faulty.recorded()) >= ENCOUNTERS // 3

        await wait_until(a_third_is_recorded)
        killed.kill()
        await asyncio.to_thread(killed.communicate)
        exit_code, _ = await client.send()

        assert exit_code == 0
        assert await faulty.recorded() == visits
        assert (client.count("waiting"), client.count("recorded")) == (0, ENCOUNTERS)
        assert set(faulty.faults) == {"delay", "rate_limited", "unavailable", "lost_answer", "delivered_twice"}

        await assert_refused_encounters_are_moved(client, faulty)


async def assert_refused_encounters_are_moved(client: Client, faulty: FaultyGateway) -> None:
    unusual_id = "no/body ?#%41 ü"
    await client.keep(unusual_id)
    await client.keep("demo-patient", encounter_type="house_call")

    before = faulty.faults.total()
    exit_code, output = await client.send(token="no-token")
    assert (exit_code, client.count("waiting"), client.count("refused")) == (1, 2, 0)
    assert "401" in output

    exit_code, output = await client.send()
    assert (exit_code, client.count("waiting"), client.count("refused")) == (1, 0, 2)
    assert {"not_found", "validation_error"} == set(re.findall(r'"error":"(\w+)"', output))
    assert before <= faulty.faults.total()
    assert len(await faulty.recorded()) == ENCOUNTERS


def test_the_page_shows_the_clients_unchanged() -> None:
    page = (ROOT / "docs/integrators.md").read_text()

    shown = dict(re.findall(r"```(python|typescript|sh)\n(.*?)```", page, re.DOTALL))

    assert shown == {
        "python": (CLIENTS / "encounters.py").read_text(),
        "typescript": (CLIENTS / "encounters.mts").read_text(),
        "sh": (CLIENTS / "encounters.sh").read_text(),
    }


async def test_invalid_arguments_print_the_usage_and_send_nothing(command: Sequence[str], tmp_path: Path) -> None:
    client = Client(command, tmp_path / "outbox", "http://127.0.0.1:9")

    for arguments in ((), ("kepe", "p-1"), ("keep",), ("send", "p-1"), ("--help",)):
        process = client.start(*arguments, stdin=subprocess.DEVNULL)
        _, output = await asyncio.to_thread(process.communicate, None, 60)
        assert process.returncode == 2
        assert output.startswith(b"usage: ")

    assert not client.outbox.exists()
