"""Documents of one client at most double the latency of another client."""

import asyncio
import time
from itertools import count
from statistics import median

import httpx2

from tests.gateways import DEV, gateways

OTHER = {"authorization": "Bearer dev-loopbio"}
LOOK = {"query": '{ patient(id: "demo-patient-loopbio") { id encounters(first: 5) { nodes { id status } } } }'}
WIDE = "nodes { " + "patient { id } " * 10 + "} "
SECONDS = 4.0
ATTACKERS = 8
TRIES = 6
NOISE_SECONDS = 0.002
"""Latency that a busy machine adds to a request of two milliseconds, in seconds."""


def expensive_document(number: int) -> str:
    """Return a new document of the largest width, as in the report of this attack."""
    return f'{{ patient(id: "x") {{ encounters(first: 1) {{ {WIDE * 40} }} }} }} # {number}'


async def latencies(client: httpx2.AsyncClient, origin: str, seconds: float) -> list[float]:
    """Send one request after another, and return the latencies."""
    took, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        answer = await client.post(f"{origin}/graphql", json=LOOK, headers=OTHER, timeout=30)
        took.append(time.monotonic() - began)
        assert answer.status_code == 200
    return took


async def attack(origin: str, numbers: "count[int]") -> None:
    async with httpx2.AsyncClient() as client:
        while True:
            answer = await client.post(
                f"{origin}/graphql", json={"query": expensive_document(next(numbers))}, headers=DEV, timeout=30
            )
            if answer.status_code == 429:
                # A refusal costs little; the attack needs accepted documents.
                await asyncio.sleep(0.2)


async def test_documents_of_one_client_at_most_double_the_latency_of_others(database_url: str) -> None:
    limits = {"GATEWAY_RATE_PARSING_MS_PER_MINUTE": "6000", "GATEWAY_WORKERS": "1"}
    async with gateways(database_url, **limits) as [gateway], httpx2.AsyncClient() as client:
        numbers, ratios = count(), []
        for _ in range(TRIES):
            quiet = median(await latencies(client, gateway.origin, SECONDS / 2))
            attackers = [asyncio.create_task(attack(gateway.origin, numbers)) for _ in range(ATTACKERS)]
            try:
                meanwhile = median(await latencies(client, gateway.origin, SECONDS))
            finally:
                for each in attackers:
                    each.cancel()
                await asyncio.gather(*attackers, return_exceptions=True)
            ratios.append((meanwhile, quiet))
            if meanwhile <= 2 * quiet + NOISE_SECONDS:
                return

    raise AssertionError(f"seconds, attacked and quiet: {ratios}")
