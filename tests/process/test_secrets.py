"""Secrets from files reach the workers and appear in no environment."""

import asyncio
import sys
from pathlib import Path

import psutil
import pytest

from tests.gateways import ExecutedGateway

SECRET = "hunter2-of-the-database"


def proc_file(process: psutil.Process, name: str) -> bytes:
    """Return a file of /proc about a process."""
    return Path(f"/proc/{process.pid}/{name}").read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows a process's environment as a file")
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_secret_from_a_file_is_in_no_environment(database_url: str, tmp_path: Path, workers: str) -> None:
    base, _, rest = database_url.partition("@")
    (tmp_path / "url").write_text(f"{base}:{SECRET}@{rest}\n")
    settings = {"GATEWAY_DATABASE_URL": "", "GATEWAY_DATABASE_URL_FILE": str(tmp_path / "url")}
    gateway = ExecutedGateway.on(database_url, GATEWAY_WORKERS=workers, **settings)
    try:
        await asyncio.to_thread(gateway.started)
        # The file is deleted, so the workers have the secret from the parent.
        (tmp_path / "url").unlink()
        assert (await asyncio.to_thread(gateway.record)).status_code == 201

        processes = [psutil.Process(gateway.process.pid), *psutil.Process(gateway.process.pid).children(recursive=True)]
        assert len(processes) >= int(workers)
        for process in processes:
            for name in ("environ", "cmdline"):
                assert SECRET.encode() not in proc_file(process, name)
    finally:
        await asyncio.to_thread(gateway.end)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows a process's environment as a file")
async def test_the_url_of_an_embedded_postgresql_is_in_no_environment(tmp_path: Path) -> None:
    gateway = ExecutedGateway(tmp_path, GATEWAY_WORKERS="2")
    try:
        await asyncio.to_thread(gateway.started)
        assert (await asyncio.to_thread(gateway.record)).status_code == 201

        for process in psutil.Process(gateway.process.pid).children(recursive=True):
            assert b"GATEWAY_DATABASE_URL" not in proc_file(process, "environ")
    finally:
        await asyncio.to_thread(gateway.end)
