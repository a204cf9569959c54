"""The benchmark runs end to end, briefly and on few encounters; its figures are not checked."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.driver import Drive, Plan
from bench.poolers import PGBOUNCER
from bench.servers import FULL_MERCURIUS, KINDS, ROOT
from bench.targets import TARGETS
from bench.workloads import WORKLOADS

BRIEFLY = ["--rounds=1", "--seconds=0.3", "--warm-up=0.1", "--connections=2", "--share=0.01", "--rest=0.3", "--seed=1"]


def run(output: Path, *arguments: str, module: str = "bench") -> Any:
    """Run the benchmark; return its raw figures."""
    command = [sys.executable, "-m", module, *BRIEFLY, f"--output={output}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (raw,) = output.glob("*.json")
    return json.loads(raw.read_text())


def test_the_benchmark_measures_the_gateway_over_both_doors(tmp_path: Path) -> None:
    found = run(tmp_path, "--servers=gateway", "--workloads=W1,W2,W3,R4", "--parts=closed,pgbench")

    measured = {each["workload"]: each for each in found["measurements"]}
    assert measured.keys() == {"W1", "W2", "W3", "R4"}
    for each in measured.values():
        assert each["outcome"]["requests"] > 0
        assert each["outcome"]["unanswered"] == 0
    assert found["pgbench_per_second"][0] > 0
    assert (tmp_path / "gateway.log").read_text().count('"route"') > 0
    assert not list(tmp_path.glob("data-*"))


@pytest.mark.skipif(not FULL_MERCURIUS.installed, reason="the peers are not installed: make .venv/bench")
def test_the_benchmark_compares_the_gateway_with_peers(tmp_path: Path) -> None:
    run(tmp_path, "--servers=gateway,full-mercurius,mercurius", "--workloads=W4,B2", "--parts=closed,rate,cold")

    (table,) = tmp_path.glob("*.md")
    against_full, against_bare = table.read_text().split("The gateway against peers that do less:")
    comparisons = [line for line in against_full.splitlines() if "| full-mercurius" in line]
    for part in ("closed", "rate", "memory", "cold"):
        assert any(line.startswith(f"| {part}") for line in comparisons), part
    targets = [line for line in comparisons if "<= 0." in line]
    assert any("W4" in line for line in targets)
    assert any("B2" in line for line in comparisons)
    assert "| mercurius" not in against_full
    assert [line for line in against_bare.splitlines() if "| mercurius" in line and "W4" in line]
    for drawing in ("cpu", "p99"):
        (figure,) = tmp_path.glob(f"*-{drawing}.svg")
        assert "W4" in figure.read_text()


@pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed: apt-get install pgbouncer")
def test_the_benchmark_measures_the_gateway_directly_and_through_pgbouncer(tmp_path: Path) -> None:
    costs = run(tmp_path, module="bench.poolers")

    measured = {(each["workload"], each["way"]) for each in costs}
    assert {way for _, way in measured} >= {"direct", "untracked"}
    assert measured == {(name, way) for name in ("idle", "W1", "W2", "R4", "R5") for _, way in measured}
    assert all(each["outcome"]["requests"] > 0 for each in costs if each["workload"] != "idle")
    # PgBouncer logs each connection of the gateway.
    assert "login attempt: db=gateway user=gateway" in (tmp_path / "pgbouncer.log").read_text()
    (table,) = tmp_path.glob("*-poolers.md")
    assert "| R5 over REST, latest 500 | untracked |" in table.read_text()
    assert not list(tmp_path.glob("data-*"))


def test_every_target_names_a_known_peer_and_workload() -> None:
    for target in TARGETS:
        assert KINDS[target.peer].does_all
        assert target.workload in {*WORKLOADS, ""}


def test_an_unanswered_request_counts_with_its_whole_waiting_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.driver.PATIENCE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as unresponsive:
        port = unresponsive.getsockname()[1]
        outcome = Drive(Plan("127.0.0.1", port, ["GET / HTTP/1.1\r\n\r\n"], 1, 0.5, 1, rate=20)).run()

    assert outcome.requests == 0
    assert outcome.unanswered == 10
    assert outcome.most > 500
