"""A gateway whose output is not read keeps serving, counts the dropped log lines, and stops in time."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import httpx2
import pytest

from tests import citus
from tests.forked_gateway import ForkedGateway
from tests.gateways import DEV, GENEROUS_LIMITS, PATH, ROOT, VISIT, free_port


@contextmanager
def gateway(database_url: str, **settings: str) -> Iterator[tuple[ForkedGateway, str, IO[bytes]]]:
    """Start a gateway; return the process, its origin, and the pipe with its log."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    named = {"GATEWAY_DATABASE_URL": database_url, "GATEWAY_DATABASE_UNSAFE": "true", "GATEWAY_PORT": "0"}
    reader, writer = os.pipe()
    environment |= {**GENEROUS_LIMITS, **citus.for_gateway(named), **settings}
    process = ForkedGateway(["serve"], env=environment, stderr=writer)
    os.close(writer)
    with process.stdout, os.fdopen(reader, "rb") as log:
        try:
            found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
            assert found
            yield process, found[0], log
        finally:
            # SIGTERM instead of SIGKILL, which would leave the workers running.
            process.send_signal(signal.SIGTERM)
            process.wait(20)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_requests_are_answered_while_the_log_is_not_read(database_url: str, workers: str) -> None:
    with gateway(database_url, GATEWAY_WORKERS=workers) as (process, origin, _):
        with httpx2.Client(timeout=10) as client:
            statuses = {client.get(f"{origin}/healthz").status_code for _ in range(2_000)}
            assert client.post(origin + PATH, json=VISIT, headers=DEV).status_code == 201

        assert statuses == {200}
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_buffered_log_lines_are_written_when_the_log_is_read_again(database_url: str) -> None:
    with gateway(database_url) as (process, origin, log):
        with httpx2.Client(timeout=10) as client:
            for _ in range(1_000):
                client.get(f"{origin}/healthz")
        process.send_signal(signal.SIGTERM)

        assert log.read().count(b'"route":"/healthz"') == 1_000
        assert process.wait(20) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_closed_log_stops_no_request(database_url: str, workers: str) -> None:
    with gateway(database_url, GATEWAY_WORKERS=workers) as (_, origin, log):
        log.close()

        with httpx2.Client(timeout=10) as client:
            assert {client.get(f"{origin}/healthz").status_code for _ in range(20)} == {200}
            metrics = client.get(f"{origin}/metrics", headers=DEV).text

        assert float(re.findall(r"^gateway_log_dropped_total (\S+)", metrics, re.MULTILINE)[0]) > 0


def test_requests_are_answered_without_a_standard_error(database_url: str) -> None:
    environment = os.environ | {
        "GATEWAY_DATABASE_URL": database_url,
        "GATEWAY_DATABASE_UNSAFE": "true",
        "GATEWAY_PORT": "0",
    }
    closed = f"exec {sys.executable} -m gateway serve 2>&-"
    with subprocess.Popen(["sh", "-c", closed], cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        found = re.search(rb"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert found
        assert httpx2.get(f"{found[0].decode()}/healthz").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_a_full_standard_output_does_not_block_the_gateway(database_url: str) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while os.write(writer, b"." * 4096):
            pass
    except BlockingIOError:
        os.set_blocking(writer, True)
    environment = os.environ | {
        "GATEWAY_DATABASE_URL": database_url,
        "GATEWAY_DATABASE_UNSAFE": "true",
        "GATEWAY_PORT": (port := str(free_port())),
    }
    command = [sys.executable, "-m", "gateway", "serve"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=writer, stderr=subprocess.DEVNULL) as process:
        os.close(writer)
        try:
            with httpx2.Client(transport=httpx2.HTTPTransport(retries=8)) as client:
                answered = client.get(f"http://127.0.0.1:{port}/healthz")
        finally:
            process.send_signal(signal.SIGTERM)
        assert answered.status_code == 200
        assert process.wait(20) == 0
    os.close(reader)
