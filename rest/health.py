"""Whether the process runs, and whether it can serve. Needs no token and tells nothing about anybody."""

import time

from starlette.requests import Request
from starlette.responses import Response

from resolvers.errors import TemporarilyUnavailable
from rest.responses import json_answer


async def healthz(_request: Request) -> Response:
    """200 as long as the process runs."""
    return json_answer({"status": "ok"})


async def readyz(request: Request) -> Response:
    """200 when the database answers; 503 when it does not, or when the process was told to stop."""
    started = time.perf_counter()
    try:
        await request.state.services.database.ping()
        ok = True
    except TemporarilyUnavailable:
        ok = False
    ready = ok and not request.state.draining.is_set()
    check = {"ok": ok, "latency_ms": round((time.perf_counter() - started) * 1000, 3)}
    body = {
        "status": "ready" if ready else "not_ready",
        "uptime_seconds": round(time.monotonic() - request.state.started, 3),
        "checks": {"db": check},
    }
    return json_answer(body, 200 if ready else 503)
