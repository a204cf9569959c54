"""The leak check finds no marked text in any output, and would find it."""

import subprocess
import sys
from pathlib import Path

from gateway.cli import app
from gateway.leak_check import MARK, Outputs

ROOT = Path(__file__).parent.parent.parent


def test_the_leak_check_finds_no_leak() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "gateway", "leak-check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )

    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 leaks" in run.stdout


def test_the_earlier_name_of_the_command_runs_the_same_check() -> None:
    assert app.commands["canary"].callback is app.commands["leak-check"].callback


def test_marked_text_in_an_output_is_a_leak_and_is_not_repeated() -> None:
    outputs = Outputs()
    outputs.add("the log", f"one line\nwith the text {MARK} in it\n")

    (leak,) = outputs.leaks()

    assert leak.where == "the log"
    assert leak.line == "with the text █ in it"
