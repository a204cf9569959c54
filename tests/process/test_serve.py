"""The gateway as a process: how it starts, what it says, how it stops, and what is left when it is killed."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import httpx2
import psutil
import pytest

from tests.conftest import create_database
from tests.doors import RECORD
from tests.gateways import ROOT, VISIT, WAITING, Gateway
from tests.websocket_client import connect_to


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    running: list[Gateway] = []

    def start(**settings: str) -> Gateway:
        running.append(Gateway(tmp_path, **settings))
        return running[-1]

    yield start
    for each in running:
        each.end()


def test_the_first_lines_are_the_addresses_and_a_call_that_works_when_pasted(gateway) -> None:
    said = (one := gateway()).banner()

    pasted = subprocess.run(["sh", "-c", said[said.index("curl") :]], capture_output=True, text=True, check=True)

    assert said.splitlines()[0].startswith("REST     http://127.0.0.1:")
    assert said.splitlines()[1] == f"GraphQL  {one.origin}/graphql"
    assert '"status":"scheduled"' in pasted.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_with_exit_code_0_and_leaves_no_process(gateway, number, tmp_path: Path) -> None:
    one = gateway().started()
    family = psutil.Process(one.process.pid).children(recursive=True)

    assert one.record().status_code == 201
    assert one.stop(number) == 0

    assert family
    assert psutil.wait_procs(family, timeout=5)[1] == []


def test_what_was_acknowledged_is_there_after_a_kill_and_the_next_start_recovers_by_itself(gateway) -> None:
    one = gateway().started()
    acknowledged = sum(one.record().status_code == 201 for _ in range(20))

    one.stop(signal.SIGKILL)

    assert gateway().started().total() == acknowledged == 20


def test_the_second_start_finds_what_the_first_recorded(gateway) -> None:
    one = gateway().started()
    one.record()
    one.stop()

    again = gateway().started()

    assert httpx2.get(f"{again.origin}/readyz").json()["status"] == "ready"
    assert again.total() == 1


def test_a_second_gateway_on_the_same_folder_is_refused_with_a_clear_sentence(gateway) -> None:
    gateway().started()

    second = gateway()

    assert second.process.wait(20) != 0
    said = second.errors()
    assert "Another gateway is using the data folder" in said
    assert "Traceback" not in said


def test_a_port_that_is_taken_is_told_by_its_setting(gateway, tmp_path) -> None:
    first = gateway().started()
    port = first.origin.rpartition(":")[2]

    second = gateway(GATEWAY_PORT=port, GATEWAY_DATA_DIR=str(tmp_path / "another"))

    assert second.process.wait(60) == 1
    said = second.errors()
    listening = f"gateway: GATEWAY_PORT: cannot listen on 127.0.0.1:{port}"
    assert said.splitlines() == [f"{listening}; stop the program that listens there, or set another port"]
    assert not (tmp_path / "another").exists()


def test_workers_share_the_port_and_stop_together(gateway) -> None:
    one = gateway(GATEWAY_WORKERS="2").started()
    family = psutil.Process(one.process.pid).children(recursive=True)

    assert [one.record().status_code for _ in range(10)] == [201] * 10
    assert one.stop() == 0
    assert psutil.wait_procs(family, timeout=10)[1] == []


def test_a_mistake_in_the_settings_is_a_sentence_not_a_traceback(gateway) -> None:
    one = gateway(GATEWAY_PROT="80")

    assert one.process.wait(20) != 0
    assert one.errors() == "gateway: GATEWAY_PROT: no such setting; the nearest is GATEWAY_PORT\n"


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_proxy_that_cannot_be_used_is_one_sentence(tmp_path: Path, command: str) -> None:
    settings = {
        "GATEWAY_DATA_DIR": str(tmp_path),
        "GATEWAY_WEBHOOK_URL": "https://crm.test/",
        "GATEWAY_WEBHOOK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "ALL_PROXY": "socks5://me:hunter2@proxy.test",
    }
    command_line = [sys.executable, "-m", "gateway", command]

    ended = subprocess.run(
        command_line, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, timeout=60, check=False
    )

    assert ended.returncode == 1
    # `check` prints what it finds beside the settings, and goes on; `serve` ends with it.
    said = ended.stdout + ended.stderr
    (sentence,) = [line for line in said.splitlines() if "ALL_PROXY" in line]
    assert sentence.removeprefix("gateway: ").startswith("ALL_PROXY: a SOCKS proxy needs the package socksio")
    assert "hunter2" not in said


def test_another_database_is_refused_and_its_password_is_not_told(gateway) -> None:
    one = gateway(GATEWAY_DATABASE_URL="mysql://me:hunter2@db.test/clinic")

    assert one.process.wait(20) != 0
    said = one.errors()
    assert "GATEWAY_DATABASE_URL" in said
    assert "must begin with postgresql://" in said
    assert "hunter2" not in said


def test_development_mode_refuses_an_open_address(gateway) -> None:
    one = gateway(GATEWAY_HOST="0.0.0.0")

    assert one.process.wait(20) != 0
    assert "loopback only" in one.errors()


async def test_ten_processes_may_migrate_one_database_at_once(server_url: str) -> None:
    url = await create_database(server_url)
    environment = {**os.environ, "GATEWAY_DATABASE_URL": url}

    command = (sys.executable, "-m", "gateway", "migrate")
    processes = [await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment) for _ in range(10)]

    assert [await process.wait() for process in processes] == [0] * 10
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT count(*) FROM patient_graph.encounters") == 0
    await connection.close()


async def test_a_server_of_ones_own_is_used_when_it_is_named(gateway, server_url: str, monkeypatch) -> None:
    url = await create_database(server_url)

    one = gateway(GATEWAY_DATABASE_URL=url, GATEWAY_DATABASE_UNSAFE="true").started()

    assert one.record().status_code == 201
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT notes FROM patient_graph.encounters") == VISIT["notes"]
    await connection.close()


async def test_a_signal_lets_sockets_finish_what_is_being_recorded_and_says_that_it_restarts(
    gateway, server_url: str
) -> None:
    url = await create_database(server_url)
    one = await asyncio.to_thread(gateway(GATEWAY_DATABASE_URL=url, GATEWAY_DATABASE_UNSAFE="true").started)
    connection = await asyncpg.connect(url)
    async with connect_to(one.origin) as websocket, connect_to(one.origin) as idle:
        await websocket.authenticate()
        async with connection.transaction():
            await connection.execute("LOCK TABLE patient_graph.encounters")
            await websocket.start(
                "record", RECORD, patientId="demo-patient", input={"brandId": "loop", "encounterType": "LAB"}
            )
            while not await connection.fetchval(WAITING):  # noqa: ASYNC110 - the database tells nobody
                await asyncio.sleep(0.01)
            one.process.send_signal(signal.SIGTERM)
            assert (await idle.closed())[0] == 1012

        assert "encounter" in (await websocket.next("record"))["data"]["recordEncounter"]
        assert await websocket.receive() == {"type": "complete", "id": "record"}
        assert (await websocket.closed())[0] == 1012
    await connection.close()
    assert await asyncio.to_thread(one.process.wait, 20) == 0


def test_the_readmes_examples_work_when_pasted(gateway) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    one = gateway().started()

    answers = [
        subprocess.run(
            ["sh", "-ec", block.replace("http://127.0.0.1:8000", one.origin)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for block in blocks
    ]

    assert len(answers) == 3
    assert '"status":"scheduled"' in answers[0]
    assert '"__typename":"EncounterRecorded"' in answers[1]
    assert '"total":2' in answers[2]
