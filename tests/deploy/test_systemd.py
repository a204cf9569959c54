"""The unit is valid and hardened, and the gateway reports to a service manager that it listens."""

import asyncio
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from gateway.settings import PREFIX, Settings
from tests.gateways import ROOT, Gateway, is_ready

UNIT = ROOT / "deploy/systemd/encounter-gateway.service"
MIGRATIONS = ROOT / "deploy/systemd/encounter-gateway-migrate.service"

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="apt-get install systemd")


def analyze(*arguments: str | Path) -> str:
    ran = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


@needs_systemd
def test_the_units_are_valid(tmp_path: Path) -> None:
    # The program must exist; /opt/gateway does not on this machine.
    for unit in (UNIT, MIGRATIONS):
        (tmp_path / unit.name).write_text(
            unit.read_text().replace("/opt/gateway/bin/gateway", shutil.which("true") or "")
        )

    assert analyze("verify", "--man=no", tmp_path / UNIT.name, tmp_path / MIGRATIONS.name) == ""


@needs_systemd
@pytest.mark.parametrize("unit", [UNIT, MIGRATIONS], ids=["serve", "migrate"])
def test_a_unit_is_hardened(unit: Path) -> None:
    # 1.2 of 10 with systemd 252; the rest is that it reaches the network.
    analyze("security", "--offline=true", "--threshold=15", unit)


def test_the_unit_waits_longer_than_the_gateway_drains() -> None:
    (timeout,) = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(), re.MULTILINE)
    default = Settings.model_fields

    assert int(timeout) >= default["drain_pause_seconds"].default + default["drain_seconds"].default + 15


@pytest.mark.parametrize("unit", [UNIT, MIGRATIONS], ids=["serve", "migrate"])
def test_a_unit_names_settings_of_the_gateway(unit: Path) -> None:
    named = set(re.findall(rf"^(?:Environment=)?({PREFIX}\w+)=", unit.read_text(), re.MULTILINE))

    assert {name.removesuffix("_FILE") for name in named} <= {PREFIX + name.upper() for name in Settings.model_fields}
    assert named == {"GATEWAY_DATABASE_URL_FILE"}


def test_only_the_migrations_have_the_password_of_the_owner() -> None:
    assert "owner" not in UNIT.read_text()
    assert "Requires=encounter-gateway-migrate.service" in UNIT.read_text()
    assert "LoadCredential=database_owner_url:" in MIGRATIONS.read_text()


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_service_manager_hears_when_the_gateway_listens(
    database_url: str, tmp_path: Path, workers: str
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        gateway = Gateway.on(database_url, NOTIFY_SOCKET=str(tmp_path / "notify"), GATEWAY_WORKERS=workers)
        try:
            assert await asyncio.to_thread(manager.recv, 100) == b"READY=1"
            await asyncio.to_thread(gateway.started)
            assert await is_ready(gateway.origin)
        finally:
            await asyncio.to_thread(gateway.end)
