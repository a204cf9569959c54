"""Liveness and readiness of the process. Needs no token and reveals no data of any person."""

import time

from starlette.requests import Request
from starlette.responses import Response

from resolvers.errors import TemporarilyUnavailable
from resolvers.request_state import state_of
from rest.responses import json_answer


async def healthz(_request: Request) -> Response:
    """Return 200 while the process runs."""
    return json_answer({"status": "ok"})


async def readyz(request: Request) -> Response:
    """Return 200 if the database answers; 503 if it does not, or if the process is shutting down.

    On a cluster, a node that is away leaves it 200, because the patients of the other nodes are served.
    """
    state, started = state_of(request.scope), time.perf_counter()
    try:
        await state["ping"]()
        ok = True
    except TemporarilyUnavailable:
        ok = False
    ready = ok and not state["draining"].is_set()
    checks: dict[str, object] = {"db": {"ok": ok, "latency_ms": round((time.perf_counter() - started) * 1000, 3)}}
    if nodes := state["nodes"]():
        checks["nodes"] = {"ok": nodes.ok, "answering": nodes.answering, "of": nodes.of}
    body = {
        "status": "ready" if ready else "not_ready",
        "uptime_seconds": round(time.monotonic() - state["started"], 3),
        "checks": checks,
    }
    return json_answer(body, 200 if ready else 503)
