"""The gateway alone, on tables of increasing size: the cost of the size of a table, of a patient and of an offset."""

import asyncio
import hashlib
import http.client
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import asyncpg

from bench import charts, report
from bench.correctness import ask
from bench.cpu_accounting import CpuAccounting, own_postmaster
from bench.load_test import LoadTest
from bench.results import Measurement
from bench.seed import BRAND, Population, insert_scattered
from bench.servers import GATEWAY, Server, running, token_server
from bench.workloads import (
    ALL,
    OVER_REST,
    RECORD,
    WORKLOADS,
    Question,
    Workload,
    encounters_to_record,
    graphql,
)
from gateway.database.migrate import migrate
from gateway.database.roles import DATABASE, OWNER, create_database
from gateway.embedded_postgres.cluster import PrivatePostgres

PATIENT_SIZES = (1, 10, 100, 1_000, 10_000)
"""Encounters of a patient; a size is omitted from tables of which these patients would fill more than half."""

ENCOUNTERS_OF_OTHERS = 50
PAGE = 50
DEPTH = 9_000
"""Number of encounters before a deep page."""

AFTER = graphql(
    f"""query ($id: ID!, $first: Int!, $after: String) {{
          patient(id: $id) {{ encounters(first: $first, after: $after) {{
            nodes {{ {ALL} }} pageInfo {{ endCursor }} }} }} }}"""
)


WORKLIST = graphql(
    f"""query ($first: Int!, $after: String, $where: EncountersFilter, $orderBy: EncounterOrder!) {{
          encounters(first: $first, after: $after, where: $where, orderBy: $orderBy) {{
            nodes {{ {ALL} }} pageInfo {{ endCursor }} }} }}"""
)
ORDERS = (
    "CREATED_AT_DESC", "UPDATED_AT_DESC", "SCHEDULED_AT_ASC", "SCHEDULED_AT_DESC", "PROVIDER_THEN_SCHEDULED_AT_ASC",
)  # fmt: skip
PAGES = 1_000
"""Number of the deep page of a worklist; pages have `PAGE` encounters."""
PROVIDER = str(UUID(hashlib.md5(b"provider1").hexdigest()))  # noqa: S324 - as `bench.seed` makes it
ROUNDS, WARM_UP = 200, 10
DAY = {"scheduledFrom": "2025-03-03T00:00:00Z", "scheduledUntil": "2025-03-04T00:00:00Z"}


def scale(sizes: Sequence[int], seconds: float, rest: float, output: Path) -> None:
    """Measure each question for patients of each size, on each size of table in turn."""
    found: dict[int, dict[str, Measurement]] = {}
    worklists: dict[int, dict[str, Sequence[float]]] = {}
    for size in sizes:
        print(f"making {size:,} encounters", flush=True)
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="data-", dir=output))
            postgres = stack.enter_context(PrivatePostgres(Path(folder)))
            population = asyncio.run(_prepare(postgres, size))
            url = stack.enter_context(token_server())
            server = stack.enter_context(running(GATEWAY, postgres, url, output))
            worklists[size] = _interleaved(server, _worklists(server, size))
            found[size] = dict(_measured(server, size, population, seconds, rest))
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-scale"
    raw = {size: {question: asdict(each) for question, each in of.items()} for size, of in found.items()}
    (output / f"{name}.json").write_text(json.dumps(raw, indent=1))
    table = _table(found)
    (output / f"{name}.md").write_text(table + "\n")
    (output / f"{name}.svg").write_text(_drawing(found))
    table_of_worklists = _table_of_worklists(worklists)
    (output / f"{name}-worklists.md").write_text(table_of_worklists + "\n")
    (output / f"{name}-worklists.svg").write_text(_drawing_of_worklists(worklists))
    print(f"\n{table}\n\n{table_of_worklists}\n\nraw numbers, table and drawing: {output / name}*")


async def _prepare(postgres: PrivatePostgres, size: int) -> Population:
    await create_database(postgres)
    url = postgres.url(OWNER, DATABASE)
    await migrate(url)
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(
            "INSERT INTO patient_graph.patients (id, brand_id) SELECT 'has-' || unnest($2::text[]), $1"
            " UNION ALL SELECT 'other-' || generate_series(0, $3::int), $1",
            BRAND, [str(number) for number in _patients(size)], size // ENCOUNTERS_OF_OTHERS,
        )  # fmt: skip
        await insert_scattered(connection, size, _patient_sql(size))
        rows = await connection.fetch("SELECT id FROM patient_graph.encounters ORDER BY md5(id::text) LIMIT 2000")
        return Population(ids=[str(row["id"]) for row in rows])
    finally:
        await connection.close()


def _patients(size: int) -> list[int]:
    return [number for number in PATIENT_SIZES if 2 * sum(PATIENT_SIZES[: PATIENT_SIZES.index(number) + 1]) <= size]


def _patient_sql(size: int) -> str:
    """Return SQL for the patient of the nth encounter: first the patients with a known number, then the others."""
    cases, end = [], 0
    for number in _patients(size):
        end += number
        cases.append(f"WHEN n < {end} THEN 'has-{number}'")
    return f"CASE {' '.join(cases)} ELSE 'other-' || n % {size // ENCOUNTERS_OF_OTHERS} END"


def _measured(
    server: Server, size: int, population: Population, seconds: float, rest: float
) -> Iterator[tuple[str, Measurement]]:
    measure = LoadTest(CpuAccounting(own_postmaster()), rest)
    for name, (workload, questions) in _asked(server, size, population).items():
        measure.send(server, workload, questions, 1, 0.5)
        measured = measure("scale", 1, server, workload, questions, connections=1, seconds=seconds)
        print(f"{size:>11,} {name:36} {report.line(measured)}", flush=True)
        yield name, measured


def _asked(server: Server, size: int, population: Population) -> Mapping[str, tuple[Workload, list[Question]]]:
    """Return the questions by name: for any encounter, and for each patient with a known number."""
    chance = random.Random(0)  # noqa: S311 - the same at each run
    asked = {"one by id": (WORKLOADS["W3"], WORKLOADS["W3"].questions(chance, population))}
    over_graphql = Workload("G", "latest over GraphQL", encounters_to_record, {"gateway": AFTER}, None)
    over_rest = Workload("R", "latest over REST", encounters_to_record, OVER_REST, None)
    recording = Workload("W", "record", encounters_to_record, RECORD, None, is_write=True)
    for number in _patients(size):
        whose = f"has-{number}"
        asked[f"first 50 of {number}, GraphQL"] = over_graphql, [{"id": whose, "first": PAGE, "after": None}]
        asked[f"first 50 of {number}, REST"] = over_rest, [{"id": whose, "first": PAGE, "offset": 0}]
        if number > DEPTH:
            deep = _cursor(server, over_graphql, {"id": whose}, DEPTH)
            asked[f"50 after {DEPTH} of {number}, GraphQL"] = (
                over_graphql,
                [{"id": whose, "first": PAGE, "after": deep}],
            )
            asked[f"50 after {DEPTH} of {number}, REST"] = over_rest, [{"id": whose, "first": PAGE, "offset": DEPTH}]
    # Last, because recordings enlarge the patients beyond the number in their names.
    for number in _patients(size):
        sent: list[Question] = [
            {**each, "patientId": f"has-{number}"} for each in encounters_to_record(chance, population)
        ]
        asked[f"record, {number} there"] = recording, sent
    return asked


def _cursor(server: Server, workload: Workload, question: Question, depth: int) -> str:
    """Return the cursor after `depth` encounters, by reading all pages before it."""
    cursor, pages = None, 500
    for _ in range(depth // pages):
        request = workload.requests(server, [{**question, "first": pages, "after": cursor}])[0]
        _, answer = ask(server, request)
        data = answer["data"].get("patient") or answer["data"]
        cursor = data["encounters"]["pageInfo"]["endCursor"]
    assert cursor is not None
    return str(cursor)


def _table(found: Mapping[int, Mapping[str, Measurement]]) -> str:
    rows = [["one connection; p50 / p99 ms; server + PostgreSQL CPU ms", *(f"{size:,}" for size in found)]]
    for question in dict.fromkeys(question for of in found.values() for question in of):
        cells = []
        for of in found.values():
            each = of.get(question)
            cells.append(
                f"{each.outcome.p50:.2f} / {each.outcome.p99:.2f}; {each.cpu:.2f} + "
                f"{each.cpu_with_database - each.cpu:.2f}"
                if each
                else ""
            )
        rows.append([question, *cells])
    return "\n".join(report.aligned(rows))


def _drawing(found: Mapping[int, Mapping[str, Measurement]]) -> str:
    """Return a drawing of the first page over the patient's size, with a line for each table size and door."""
    series = {}
    for size, of in found.items():
        for what in ("first 50 of {}, GraphQL", "first 50 of {}, REST", "record, {} there"):
            named = [(number, of.get(what.format(number))) for number in PATIENT_SIZES]
            series[f"{what.format('them')}, {size:,} in all"] = [
                (float(number), each.outcome.p50) for number, each in named if each
            ]
    return charts.line_chart("One after the other", "encounters of the patient", "p50 in ms", series)


PATIENTS_PAGE = "a patient's page, first 50 of 100"


def _worklists(server: Server, size: int) -> Mapping[str, str]:
    """Return requests for worklists by name, and one for a patient's page, with which they are compared."""
    of_patient = Workload("G", "latest over GraphQL", encounters_to_record, {"gateway": AFTER}, None)
    worklist = Workload("L", "worklist", encounters_to_record, {"gateway": WORKLIST}, None)
    first: Question = {"first": PAGE, "after": None, "where": {}}
    named = {order: {**first, "orderBy": order} for order in ORDERS}
    if size > PAGES * PAGE:
        for order in ORDERS:
            deep = _cursor(server, worklist, named[order], PAGES * PAGE)
            named[f"page {PAGES:,}, {order}"] = {**named[order], "after": deep}
    by_time = {**first, "orderBy": "SCHEDULED_AT_ASC"}
    named |= {
        "a day": {**by_time, "where": DAY},
        "a provider's day": {**by_time, "where": DAY | {"providerId": [PROVIDER]}},
        "in progress": {**by_time, "where": {"status": ["IN_PROGRESS"]}},
    }
    questions = {name: worklist.requests(server, [question])[0] for name, question in named.items()}
    patients_page = of_patient.requests(server, [{"id": "has-100", "first": PAGE, "after": None}])[0]
    return {PATIENTS_PAGE: patients_page, **questions}


def _interleaved(server: Server, requests: Mapping[str, str]) -> dict[str, Sequence[float]]:
    """Return the sorted times of each request in ms. They are sent in turn, so that all have the same noise."""
    times: dict[str, list[float]] = {name: [] for name in requests}
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    for round_ in range(ROUNDS + WARM_UP):
        for name, request in requests.items():
            head, _, body = request.partition("\r\n\r\n")
            first, *lines = head.split("\r\n")
            method, path, _ = first.split(" ")
            started = time.perf_counter()
            connection.request(method, path, body, dict(line.split(": ", 1) for line in lines))
            answer = connection.getresponse().read()
            if round_ >= WARM_UP:
                times[name].append(1000 * (time.perf_counter() - started))
            if b'"errors"' in answer:
                raise RuntimeError(f"{name}: {answer[:300]!r}")
    connection.close()
    return {name: sorted(each) for name, each in times.items()}


def _table_of_worklists(found: Mapping[int, Mapping[str, Sequence[float]]]) -> str:
    rows = [
        ["one connection, in turn; p50 / p95 ms; p50 to that of the patient's page", *(f"{size:,}" for size in found)]
    ]
    for name in dict.fromkeys(name for of in found.values() for name in of):
        cells = []
        for of in found.values():
            if name in of:
                p50, p95 = statistics.median(of[name]), of[name][int(0.95 * len(of[name]))]
                cells.append(f"{p50:.2f} / {p95:.2f}; {p50 / statistics.median(of[PATIENTS_PAGE]):.2f}")
            else:
                cells.append("")
        rows.append([name, *cells])
    return "\n".join(report.aligned(rows))


def _drawing_of_worklists(found: Mapping[int, Mapping[str, Sequence[float]]]) -> str:
    """Return a drawing of worklists over the table's size, with a line for each, and one for a patient's page."""
    series = {
        name: [(float(size), statistics.median(of[name])) for size, of in found.items() if name in of]
        for name in dict.fromkeys(name for of in found.values() for name in of)
    }
    return charts.line_chart("Worklists, in turn", "encounters of the brand", "p50 in ms", series)
