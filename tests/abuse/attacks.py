"""Attacks of one client with a valid token, each bounded in requests and seconds.

Run as a process of its own, so that its CPU time is not the gateway's: `python -m tests.abuse.attacks NAME ORIGIN`.
"""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from uuid import uuid4

import httpx2

ATTACKER = {"authorization": "Bearer dev", "content-type": "application/json"}
MAX_REQUESTS = 20_000
MAX_SECONDS = 60.0
CONNECTIONS = 16

RECORDS = "/v1/patients/demo-patient/encounters"
LIST = "/v1/patients/demo-patient/encounters?limit=100"

Request = tuple[str, str, bytes]
"""Method, path and body."""


def conflicting_documents() -> Iterator[Request]:
    """Yield documents in which every field must be compared with many others, none of them seen before."""
    patients = " ".join(f"p{number}: patient {{ id }}" for number in range(10))
    pages = " ".join(f"nodes {{ {patients} }}" for _ in range(45))
    for _ in count():
        yield _graphql(f'{{ patient(id: "demo-patient") {{ encounters(first: 1) {{ {pages} }} }} }} # {uuid4()}')


def repeated_fields() -> Iterator[Request]:
    """Yield documents that name one field very often, none of them seen before."""
    nodes = " ".join("nodes { patient { id } }" for _ in range(300))
    for _ in count():
        yield _graphql(f'{{ patient(id: "demo-patient") {{ encounters(first: 1) {{ {nodes} }} }} }} # {uuid4()}')


def long_lists() -> Iterator[Request]:
    """Yield requests for the longest pages."""
    ids = json.dumps(["demo-patient"] * 100)
    query = f"{{ patients(ids: {ids}) {{ encounters(first: 100) {{ totalCount nodes {{ id notes metadata }} }} }} }}"
    for _ in count():
        yield _graphql(query)


def worklists() -> Iterator[Request]:
    """Yield requests for the longest pages, totals and counts of the brand."""
    page = "encounters(first: 100, orderBy: SCHEDULED_AT_DESC) { totalCount nodes { id notes } }"
    counts = "encounterCounts(by: CREATED_DAY) { key count }"
    for _ in count():
        yield _graphql(f"{{ {page} {counts} }}")


def rest_lists() -> Iterator[Request]:
    """Yield requests for the longest pages over REST."""
    for _ in count():
        yield "GET", LIST, b""


def recordings() -> Iterator[Request]:
    """Yield recordings with the largest notes."""
    body = json.dumps({"brand_id": "loop", "encounter_type": "lab", "notes": "n" * 50_000}).encode()
    for _ in count():
        yield "POST", RECORDS, body


def refused_requests() -> Iterator[Request]:
    """Yield requests that break a rule."""
    for _ in count():
        yield "POST", RECORDS, b'{"brand_id": 5}'


ATTACKS: dict[str, Callable[[], Iterator[Request]]] = {
    attack.__name__: attack
    for attack in (
        conflicting_documents,
        repeated_fields,
        long_lists,
        worklists,
        rest_lists,
        recordings,
        refused_requests,
    )
}


def _graphql(query: str) -> Request:
    return "POST", "/graphql", json.dumps({"query": query}).encode()


async def attack(name: str, origin: str) -> None:
    """Send the requests of an attack over several connections, as fast as they are answered."""
    requests = ATTACKS[name]()
    left = count(MAX_REQUESTS, -1)
    limits = httpx2.Limits(max_connections=CONNECTIONS)
    async with httpx2.AsyncClient(base_url=origin, headers=ATTACKER, limits=limits, timeout=60) as client:

        async def send() -> None:
            while next(left) > 0:
                method, path, body = next(requests)
                try:
                    await client.request(method, path, content=body)
                except httpx2.TransportError:
                    await asyncio.sleep(0.01)

        async with asyncio.timeout(MAX_SECONDS):
            senders: list[Awaitable[None]] = [send() for _ in range(CONNECTIONS)]
            await asyncio.gather(*senders)


if __name__ == "__main__":
    os.nice(10)  # What slows other clients down must be the gateway, not this process.
    asyncio.run(attack(sys.argv[1], sys.argv[2]))
