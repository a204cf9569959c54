"""Secrets that lie in files reach the workers, and stand in the environment of none."""

import asyncio
import sys
from pathlib import Path

import psutil
import pytest

from tests.gateways import Gateway

SECRET = "hunter2-of-the-database"


def shown(process: psutil.Process, place: str) -> bytes:
    """Read what the kernel shows of a process to its user's other programs."""
    return Path(f"/proc/{process.pid}/{place}").read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows a process's environment as a file")
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_secret_from_a_file_is_in_no_environment(database_url: str, tmp_path: Path, workers: str) -> None:
    base, _, rest = database_url.partition("@")
    (tmp_path / "url").write_text(f"{base}:{SECRET}@{rest}\n")
    settings = {"GATEWAY_DATABASE_URL": "", "GATEWAY_DATABASE_URL_FILE": str(tmp_path / "url")}
    gateway = Gateway.on(database_url, GATEWAY_WORKERS=workers, **settings)
    try:
        await asyncio.to_thread(gateway.started)
        # Gone now: what the workers know they were sent.
        (tmp_path / "url").unlink()
        assert (await asyncio.to_thread(gateway.record)).status_code == 201

        family = [psutil.Process(gateway.process.pid), *psutil.Process(gateway.process.pid).children(recursive=True)]
        assert len(family) >= int(workers)
        for process in family:
            for place in ("environ", "cmdline"):
                assert SECRET.encode() not in shown(process, place)
    finally:
        await asyncio.to_thread(gateway.end)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows a process's environment as a file")
async def test_a_private_servers_address_is_in_no_environment(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, GATEWAY_WORKERS="2")
    try:
        await asyncio.to_thread(gateway.started)
        assert (await asyncio.to_thread(gateway.record)).status_code == 201

        for process in psutil.Process(gateway.process.pid).children(recursive=True):
            assert b"GATEWAY_DATABASE_URL" not in shown(process, "environ")
    finally:
        await asyncio.to_thread(gateway.end)
