"""The client examples of docs/graphql.md work, with only the URL replaced."""

import asyncio
import re
import sys
from pathlib import Path

import pytest

from tests.cast import Cast
from tests.doors import Service
from tests.node import FOLDER, SECONDS, needs_node

PAGE = (Path(__file__).parent.parent.parent / "docs/graphql.md").read_text()
SNIPPETS = re.findall(r"```(js|python)\n(.*?)```", PAGE, re.DOTALL)
VISIT = {"brand_id": "loop", "encounter_type": "lab"}
PRINTED = ["EncounterRecorded", "demo-patient", "demo-patient", "RECORDED", "demo-patient"]
COMMANDS = {"js": ["node", "--input-type=module", "-"], "python": [sys.executable, "-"]}


@pytest.fixture
async def demo_patient(cast: Cast) -> None:
    """The patient that development mode registers."""
    await cast.connection.execute(
        "INSERT INTO patient_graph.patients (id, brand_id) VALUES ('demo-patient', 'loop') ON CONFLICT DO NOTHING"
    )


@pytest.mark.usefixtures("demo_patient")
@pytest.mark.parametrize(
    ("language", "snippet", "printed"),
    [
        pytest.param(language, snippet, printed, marks=[needs_node] if language == "js" else [])
        for (language, snippet), printed in zip(SNIPPETS, PRINTED, strict=True)
    ],
    ids=["urql", "apollo", "graphql-ws", "graphql-sse", "gql"],
)
async def test_the_example_works(gateway_url: str, service: Service, language: str, snippet: str, printed: str) -> None:
    pasted = snippet.replace("//127.0.0.1:8000", gateway_url.removeprefix("http:"))
    process = await asyncio.create_subprocess_exec(
        *COMMANDS[language],
        cwd=FOLDER,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )

    running = asyncio.create_task(process.communicate(pasted.encode()))
    async with asyncio.timeout(SECONDS):
        while not running.done():
            # Record encounters, for the examples that subscribe.
            await service.rest("POST", "/v1/patients/demo-patient/encounters", json=VISIT)
            await asyncio.wait({running}, timeout=0.2)

    out, err = running.result()
    assert out.decode().strip() == printed, err.decode()
