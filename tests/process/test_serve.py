"""`gateway serve` as a process: start, output, signals, kills and refused settings."""

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import httpx2
import psutil
import pytest

from tests.conftest import create_database
from tests.doors import RECORD
from tests.forked_gateway import ForkedGateway, run_gateway
from tests.gateways import ROOT, VISIT, WAITING, ExecutedGateway, Gateway
from tests.websocket_client import connect_to


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Return a function that starts gateways with these settings; `executed` as a user does, else forked."""
    running: list[Gateway] = []

    def start(*, executed: bool = False, **settings: str) -> Gateway:
        running.append((ExecutedGateway if executed else Gateway)(tmp_path, **settings))
        return running[-1]

    yield start
    for each in running:
        each.end()


def test_the_first_lines_show_the_urls_and_a_working_curl_call(gateway) -> None:
    output = (first_gateway := gateway(executed=True)).banner()

    pasted = subprocess.run(["sh", "-c", output[output.index("curl") :]], capture_output=True, text=True, check=True)

    assert output.splitlines()[0].startswith("REST     http://127.0.0.1:")
    assert output.splitlines()[1] == f"GraphQL  {first_gateway.origin}/graphql"
    assert '"status":"scheduled"' in pasted.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_gateway_with_exit_code_0_and_no_process_left(gateway, number, tmp_path: Path) -> None:
    first_gateway = gateway(executed=True).started()
    children = psutil.Process(first_gateway.process.pid).children(recursive=True)

    assert first_gateway.record().status_code == 201
    assert first_gateway.stop(number) == 0

    assert children
    assert psutil.wait_procs(children, timeout=5)[1] == []


def test_acknowledged_encounters_survive_a_kill(gateway) -> None:
    first_gateway = gateway().started()
    acknowledged = sum(first_gateway.record().status_code == 201 for _ in range(20))

    first_gateway.stop(signal.SIGKILL)

    assert gateway().started().total() == acknowledged == 20


def test_a_restart_keeps_the_recorded_encounters(gateway) -> None:
    first_gateway = gateway().started()
    first_gateway.record()
    first_gateway.stop()

    again = gateway().started()

    assert httpx2.get(f"{again.origin}/readyz").json()["status"] == "ready"
    assert again.total() == 1


def test_a_second_gateway_on_the_same_folder_is_refused(gateway) -> None:
    gateway().started()

    second = gateway()

    assert second.process.wait(20) != 0
    output = second.errors()
    assert "Another gateway is using the data folder" in output
    assert "Traceback" not in output


def test_a_port_in_use_is_reported_with_its_setting(gateway, tmp_path) -> None:
    first = gateway().started()
    port = first.origin.rpartition(":")[2]

    second = gateway(GATEWAY_PORT=port, GATEWAY_DATA_DIR=str(tmp_path / "another"))

    assert second.process.wait(60) == 1
    output = second.errors()
    listening = f"gateway: GATEWAY_PORT: cannot listen on 127.0.0.1:{port}"
    assert output.splitlines() == [f"{listening}; stop the program that listens there, or set another port"]
    assert not (tmp_path / "another").exists()


def test_workers_share_the_port_and_stop_together(gateway) -> None:
    first_gateway = gateway(executed=True, GATEWAY_WORKERS="2").started()
    children = psutil.Process(first_gateway.process.pid).children(recursive=True)

    assert [first_gateway.record().status_code for _ in range(10)] == [201] * 10
    assert first_gateway.stop() == 0
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_an_unknown_setting_is_reported_in_one_sentence(gateway) -> None:
    first_gateway = gateway(executed=True, GATEWAY_PROT="80")

    assert first_gateway.process.wait(20) != 0
    assert first_gateway.errors() == "gateway: GATEWAY_PROT: no such setting; the nearest is GATEWAY_PORT\n"


@pytest.mark.parametrize("command", ["serve", "check"])
def test_an_unusable_proxy_is_reported_in_one_sentence(tmp_path: Path, command: str) -> None:
    settings = {
        "GATEWAY_DATA_DIR": str(tmp_path),
        "GATEWAY_WEBHOOK_URL": "https://crm.test/",
        "GATEWAY_WEBHOOK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "ALL_PROXY": "socks5://me:hunter2@proxy.test",
    }

    code, out, err = run_gateway([command], env=os.environ | settings)

    assert code == 1
    # `check` prints the finding and continues; `serve` exits with it.
    output = out + err
    (sentence,) = [line for line in output.splitlines() if "ALL_PROXY" in line]
    assert sentence.removeprefix("gateway: ").startswith("ALL_PROXY: a SOCKS proxy needs the package socksio")
    assert "hunter2" not in output


def test_a_url_of_another_database_is_refused_without_its_password(gateway) -> None:
    first_gateway = gateway(GATEWAY_DATABASE_URL="mysql://me:hunter2@db.test/clinic")

    assert first_gateway.process.wait(20) != 0
    output = first_gateway.errors()
    assert "GATEWAY_DATABASE_URL" in output
    assert "must begin with postgresql://" in output
    assert "hunter2" not in output


def test_development_mode_refuses_an_address_other_than_loopback(gateway) -> None:
    first_gateway = gateway(GATEWAY_HOST="0.0.0.0")

    assert first_gateway.process.wait(20) != 0
    assert "loopback only" in first_gateway.errors()


async def test_ten_concurrent_migrate_commands_succeed(server_url: str) -> None:
    url = await create_database(server_url)
    environment = {**os.environ, "GATEWAY_DATABASE_URL": url}

    processes = [ForkedGateway(["migrate"], env=environment) for _ in range(10)]

    assert [await asyncio.to_thread(process.output) for process in processes] == [""] * 10
    assert [process.wait() for process in processes] == [0] * 10
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT count(*) FROM patient_graph.encounters") == 0
    await connection.close()


async def test_the_database_of_the_url_is_used_instead_of_an_embedded_one(
    gateway, server_url: str, monkeypatch
) -> None:
    url = await create_database(server_url)

    first_gateway = gateway(GATEWAY_DATABASE_URL=url, GATEWAY_DATABASE_UNSAFE="true").started()

    assert first_gateway.record().status_code == 201
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT notes FROM patient_graph.encounters") == VISIT["notes"]
    await connection.close()


async def test_on_a_signal_websockets_finish_recordings_and_close_with_1012(gateway, server_url: str) -> None:
    url = await create_database(server_url)
    first_gateway = await asyncio.to_thread(gateway(GATEWAY_DATABASE_URL=url, GATEWAY_DATABASE_UNSAFE="true").started)
    connection = await asyncpg.connect(url)
    async with connect_to(first_gateway.origin) as websocket, connect_to(first_gateway.origin) as idle:
        await websocket.authenticate()
        async with connection.transaction():
            await connection.execute("LOCK TABLE patient_graph.encounters")
            await websocket.start(
                "record", RECORD, patientId="demo-patient", input={"brandId": "loop", "encounterType": "LAB"}
            )
            while not await connection.fetchval(WAITING):  # noqa: ASYNC110 - PostgreSQL sends no event for a waiting lock
                await asyncio.sleep(0.01)
            first_gateway.process.send_signal(signal.SIGTERM)
            assert (await idle.closed())[0] == 1012

        assert "encounter" in (await websocket.next("record"))["data"]["recordEncounter"]
        assert await websocket.receive() == {"type": "complete", "id": "record"}
        assert (await websocket.closed())[0] == 1012
    await connection.close()
    assert await asyncio.to_thread(first_gateway.process.wait, 20) == 0


def test_the_examples_of_the_readme_work(gateway) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    first_gateway = gateway().started()

    answers = [
        subprocess.run(
            ["sh", "-ec", block.replace("http://127.0.0.1:8000", first_gateway.origin)],
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
