"""The check before a measurement: every server must give the answers that PostgreSQL itself gives."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import asyncpg

from bench.driver import KEY
from bench.servers import Server
from bench.workloads import MEMBERS, Question, Row, Workload, row_of, rows_in

QUESTIONS_CHECKED = 5


def ask(server: Server, request: str) -> tuple[int, Any]:
    """Send one request; return the status and the parsed answer."""
    head, _, body = request.replace(KEY.decode(), str(uuid4())).partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    method, path, _ = first.split(" ")
    connection = http.client.HTTPConnection(server.host, server.port, timeout=120)
    try:
        connection.request(method, path, body or None, dict(line.split(": ", 1) for line in lines))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


async def check(
    connection: asyncpg.Connection[Any],
    server: Server,
    workload: Workload,
    questions: Sequence[Question],
) -> list[str]:
    """Return a description of each wrong answer of a server, compared with its database."""
    wrong = []
    some = questions[:QUESTIONS_CHECKED] if workload.dialect_of(server) else []
    for question, request in zip(some, workload.requests(server, some) if some else [], strict=True):
        status, answer = ask(server, request)
        found = rows_in(answer)
        if workload.is_write:
            problem = await _recording_difference(connection, question, found)
        else:
            assert workload.truth is not None
            rows = await connection.fetch(workload.truth, question["truth"])
            problem = _difference([row_of(each, workload.members) for each in rows], found)
        if status not in {200, 201} or problem:
            wrong.append(f"{workload.name}, {server.kind.name}: {status}, {problem or answer}")
    return wrong


async def _recording_difference(connection: asyncpg.Connection[Any], question: Question, found: Sequence[Row]) -> str:
    """Return the difference between what was sent, answered and stored, or an empty string."""
    if len(found) != 1:
        return f"{len(found)} encounters in the answer to a recording"
    kept = await connection.fetchrow("SELECT * FROM patient_graph.encounters WHERE id = $1", found[0]["id"])
    if kept is None:
        return "acknowledged and not kept"
    row = row_of(kept, MEMBERS)
    sent = rows_in({"createdAt": None, **question["input"], "patientId": question["patientId"]})[0]
    return _difference([_only(row, sent)], [_only(sent, sent)]) or _difference([_only(row, found[0])], found)


def _only(row: Row, like: Row) -> Mapping[str, Any]:
    return {name: row[name] for name in like if name in row and like[name] is not None}


def _difference(truth: Sequence[Row], found: Sequence[Row]) -> str:
    if len(truth) != len(found):
        return f"{len(found)} rows, not {len(truth)}"
    for number, (expected, actual) in enumerate(zip(truth, found, strict=True)):
        differing = sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))
        if differing:
            return f"row {number} differs in {', '.join(differing)}"
    return ""


assert len(MEMBERS) == 14
