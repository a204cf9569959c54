"""Schemathesis against the OpenAPI description: all of its checks, on a gateway process.

It follows links (it reads the encounter just recorded), omits the token, sends what is not described, and compares
responses with the description. `make fuzz` tries more examples.
"""

import subprocess
import sys
from pathlib import Path

from hypothesis import settings

from rest.openapi import openapi
from tests.gateways import ROOT, running_gateway

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
METHODS = {"get", "post", "put", "patch", "delete", "head", "options"}
CONFIGURATION = Path(__file__).with_name("schemathesis.toml")


def test_the_gateway_conforms_to_its_description(database_url: str, tmp_path: Path) -> None:
    examples = settings().max_examples
    # The same cases in every test run; others in each run of `make fuzz`.
    repeatable = ["--seed", "1"] if examples <= 100 else []

    with running_gateway(database_url) as origin:
        run = subprocess.run(
            [
                *(SCHEMATHESIS, "--config-file", CONFIGURATION, "run", ROOT / "rest/openapi.json", "--url", origin),
                *("--header", "Authorization: Bearer dev", "--checks", "all", "--no-color"),
                *("--max-examples", str(examples // 3), "--max-failures", "3", *repeatable),
            ],
            cwd=tmp_path,
            check=False,
            capture_output=True,
            text=True,
        )

    assert run.returncode == 0, run.stdout
    described = sum(method in METHODS for item in openapi()["paths"].values() for method in item)
    assert f"{described} selected / {described} total" in run.stdout
