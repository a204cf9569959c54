"""`gateway serve --faults SEED` as a process: its output, refusals and lost answers."""

import asyncio
from pathlib import Path

import httpx2
import pytest

from tests.conftest import create_database
from tests.faulty_gateway import FaultyGateway, serve

PATH = "/v1/patients/demo-patient/encounters"
DEV = {"authorization": "Bearer dev"}


def outcomes(origin: str, requests: int) -> list[str]:
    """Send requests one after the other; return the outcome of each."""
    results = []
    with httpx2.Client(base_url=origin, headers=DEV, timeout=30) as client:
        for number in range(requests):
            visit = {"brand_id": "loop", "encounter_type": "lab", "notes": f"{number:02}"}
            try:
                answer = client.post(PATH, json=visit)
            except httpx2.TransportError:
                results.append("lost_answer")
            else:
                results.append(answer.headers.get("x-rehearsed-fault", "none"))
    return results


async def test_a_seed_repeats_its_faults_and_lost_answers_were_recorded(server_url: str, tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        async with FaultyGateway.running(server_url, tmp_path, seed=11) as faulty:
            seen.append(await asyncio.to_thread(outcomes, faulty.origin, 40))
            recorded = await faulty.recorded()

    assert seen[0] == seen[1]
    assert set(seen[0]) == {"none", "delay", "rate_limited", "unavailable", "lost_answer", "delivered_twice"}
    times = {"rate_limited": 0, "unavailable": 0, "delivered_twice": 2}
    assert recorded == [f"{number:02}" for number, fault in enumerate(seen[0]) for _ in range(times.get(fault, 1))]


async def test_the_first_lines_show_that_faults_are_on_and_the_seed(server_url: str, tmp_path: Path) -> None:
    async with FaultyGateway.running(server_url, tmp_path, seed=42) as faulty:
        assert "Fault injection is on, seed 42" in faulty.banner.partition("curl")[0]
        ready = await asyncio.to_thread(httpx2.get, f"{faulty.origin}/readyz")

    assert ready.json()["status"] == "ready"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {
                "GATEWAY_JWKS_URL": "https://id.example/keys",
                "GATEWAY_JWT_ISSUER": "https://id.example",
                "GATEWAY_JWT_AUDIENCE": "encounters",
            },
            "gateway: --faults makes requests fail on purpose, so it requires development mode: leave out ",
        ),
        (
            {"GATEWAY_WORKERS": "2"},
            "gateway: --faults is reproducible in a single process only, ",
        ),
    ],
    ids=["real tokens", "workers"],
)
async def test_faults_are_refused_outside_development_mode_and_with_workers(
    server_url: str, tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    url = await create_database(server_url)
    process = serve("--faults", "7", stderr=tmp_path / "log", GATEWAY_DATABASE_URL=url, **settings)

    output = await asyncio.to_thread(process.output, 30)

    (line,) = (tmp_path / "log").read_text().splitlines()
    assert (process.returncode, output) == (1, "")
    assert line.startswith(message)
