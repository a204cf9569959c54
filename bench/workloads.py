"""The workloads: requests in each server's dialect, and answers normalized to rows of the tables.

A question is the same for all servers: which patients, which members, how many. A schema's names and the case of its
enums differ between servers, and are normalized before answers are compared.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Literal, Protocol
from uuid import UUID

from graphql import parse, print_ast, separate_operations

from bench.driver import KEY
from bench.seed import BRAND, ENCOUNTERS_OF_LARGE, ENCOUNTERS_OF_SMALL, RECORDING_PATIENTS, Population
from bench.servers import ROOT, Dialect, Server

Row = Mapping[str, Any]
Question = Mapping[str, Any]

QUESTIONS = 500
"""Number of different questions, sent in turn."""

MEMBERS = (
    "id", "patientId", "providerId", "brandId", "encounterType", "status", "scheduledAt", "startedAt", "endedAt",
    "chiefComplaint", "notes", "metadata", "createdAt", "updatedAt",
)  # fmt: skip
BESIDE = {"version", "allowedActions"}
"""Members of an answer that are compared with nothing: the first is no published member, the second no column."""
INSTANTS = {"scheduled_at", "started_at", "ended_at", "created_at", "updated_at"}
ALL = " ".join(MEMBERS)
# PostGraphile calls the column `rowId`, because its `id` is Relay's global id.
ALL_OF_POSTGRAPHILE = ALL.replace("id ", "rowId ", 1)


class RequestBuilder(Protocol):
    """Builds the request of a question: method, path and, for a POST, the JSON body."""

    def __call__(self, question: Question) -> tuple[str, str, Mapping[str, Any] | None]:
        """Return the request of one question."""


RequestBuilders = Mapping[Dialect, RequestBuilder]
Questions = Callable[[random.Random, Population], list[Question]]


@dataclass(frozen=True)
class Workload:
    """A kind of question. `ask` has a request builder for each supported dialect."""

    name: str
    title: str
    questions: Questions
    ask: RequestBuilders
    truth: str | None
    """The SQL of the correct answer, with the question's `truth` as $1; None for a write."""
    is_write: bool = False
    members: Sequence[str] = MEMBERS
    """The members of the encounters in an answer."""

    def dialect_of(self, server: Server) -> Dialect | None:
        """Return the dialect in which the server is asked, or None if it supports none."""
        return next((dialect for dialect in self.ask if dialect in server.kind.dialects), None)

    def requests(self, server: Server, questions: Sequence[Question]) -> list[str]:
        """Return the HTTP request of each question, as text."""
        dialect = self.dialect_of(server)
        assert dialect is not None
        return [
            _http(server, server.head(method, path, number), path, body, keyed=self.is_write)
            for number, question in enumerate(questions)
            for method, path, body in [self.ask[dialect](question)]
        ]


def _http(server: Server, head: str, path: str, body: Mapping[str, Any] | None, *, keyed: bool) -> str:
    if body is None:
        return head + "\r\n"
    text = json.dumps(body)
    # Every key is a UUID of 36 characters.
    length = len(text) + text.count(KEY.decode()) * (36 - len(KEY))
    if keyed and path != "/graphql" and server.kind.does_all:
        head += f"Idempotency-Key: {KEY.decode()}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{text}"


# The requests


NO_VARIABLES = {"truth", "offset"}
"""Members of a question that are no GraphQL variables."""


def graphql(document: str, variables: Callable[[Question], Mapping[str, Any]] = dict) -> RequestBuilder:
    """Return the request builder of a document, on one line as clients send it."""
    one_line = " ".join(document.split())

    def ask(question: Question) -> tuple[str, str, Mapping[str, Any]]:
        values = {name: value for name, value in variables(question).items() if name not in NO_VARIABLES}
        return "POST", "/graphql", {"query": one_line, "variables": values}

    return ask


RECORDED_MEMBERS = "{ id status createdAt }"
RECORD_SAME = graphql(
    f"""mutation ($patientId: ID!, $input: RecordEncounterInput!) {{
          recordEncounter(patientId: $patientId, input: $input) {RECORDED_MEMBERS} }}"""
)
RECORD: RequestBuilders = {
    "gateway": graphql(
        """mutation ($patientId: ID!, $input: RecordEncounterInput!, $key: String) {
             recordEncounter(patientId: $patientId, input: $input, idempotencyKey: $key) {
               __typename
               ... on EncounterRecorded { replayed encounter { id status createdAt } }
               ... on Problem { code message recorded }
             } }""",
        lambda q: {"patientId": q["patientId"], "input": _upper(q["input"]), "key": KEY.decode()},
    ),
    "sdl": RECORD_SAME,
    "bare": RECORD_SAME,
    "postgraphile": graphql(
        """mutation ($encounter: EncounterInput!) {
             createEncounter(input: {encounter: $encounter}) { encounter { rowId status createdAt } } }""",
        lambda q: {"encounter": {"rowId": KEY.decode(), "patientId": q["patientId"], **q["input"]}},
    ),
}

ONE_SAME = graphql(f"query ($id: ID!) {{ encounter(id: $id) {{ {ALL} }} }}")
ONE: RequestBuilders = {
    "gateway": ONE_SAME,
    "sdl": ONE_SAME,
    "bare": ONE_SAME,
    "postgraphile": graphql(
        f"""query ($id: UUID!) {{
              allEncounters(condition: {{rowId: $id}}, first: 1) {{ nodes {{ {ALL_OF_POSTGRAPHILE} }} }} }}"""
    ),
}

LATEST_SAME = (
    f"query ($id: ID!, $first: Int!) {{ patient(id: $id) {{ encounters(first: $first) {{ nodes {{ {ALL} }} }} }} }}"
)
LATEST: RequestBuilders = {
    "gateway": graphql(LATEST_SAME),
    "sdl": graphql(LATEST_SAME),
    "postgraphile": graphql(
        f"""query ($id: String!, $first: Int!) {{
              allEncounters(
                condition: {{patientId: $id}}, first: $first, orderBy: [CREATED_AT_DESC, PRIMARY_KEY_DESC]) {{
                nodes {{ {ALL_OF_POSTGRAPHILE} }} }} }}"""
    ),
}

OF_SEVERAL_SAME = f"""query ($ids: [ID!]!, $first: Int!) {{
  patients(ids: $ids) {{ id encounters(first: $first) {{ nodes {{ {ALL} }} }} }} }}"""
OF_SEVERAL: RequestBuilders = {
    "gateway": graphql(OF_SEVERAL_SAME),
    "sdl": graphql(OF_SEVERAL_SAME),
    "postgraphile": graphql(
        f"""query ($ids: [String!]!, $first: Int!) {{
              benchPatientsByIds(ids: $ids) {{ nodes {{ rowId encountersByPatientIdAndBrandId(
                first: $first, orderBy: [CREATED_AT_DESC, PRIMARY_KEY_DESC]) {{
                  nodes {{ {ALL_OF_POSTGRAPHILE} }} }} }} }} }}"""
    ),
}

# A page within another object than its patient: no plan supports it, so the executor resolves it field by field.
UNPLANNED = graphql(
    f"""query ($id: ID!, $first: Int!) {{
          encounter(id: $id) {{ patient {{ encounters(first: $first) {{ nodes {{ {ALL} }} }} }} }} }}"""
)
LATEST_UNPLANNED: RequestBuilders = {"gateway": UNPLANNED, "sdl": UNPLANNED}

WORKLIST: RequestBuilders = {
    "gateway": graphql(
        f"""query ($first: Int!, $where: EncountersFilter!) {{
              encounters(first: $first, where: $where, orderBy: SCHEDULED_AT_ASC) {{
                nodes {{ {ALL} }} pageInfo {{ hasNextPage endCursor }} }} }}"""
    )
}

BOARD = separate_operations(parse((ROOT / "web" / "src" / "board" / "operations.graphql").read_text()))
"""The operations of the board, each with its fragments."""
CARD = tuple(name for name in MEMBERS if name not in {"brandId", "notes", "metadata", "updatedAt"})
"""The members of an encounter that the board shows; also others, which are no columns."""
BOARD_DAY: RequestBuilders = {"gateway": graphql(print_ast(BOARD["Day"]))}
BOARD_COUNTS: RequestBuilders = {"gateway": graphql(print_ast(BOARD["Counts"]))}


def _record_over_rest(question: Question) -> tuple[str, str, Mapping[str, Any]]:
    return "POST", f"/v1/patients/{question['patientId']}/encounters", _snake(question["input"])


def list_over_rest(question: Question) -> tuple[str, str, None]:
    """Return the REST request for a page of a patient's encounters."""
    return (
        "GET",
        f"/v1/patients/{question['id']}/encounters?limit={question['first']}&offset={question['offset']}",
        None,
    )


def _upper(sent: Row) -> Row:
    return {**sent, "encounterType": sent["encounterType"].upper()}


def _snake(members: Row) -> Row:
    return {_snake_case(name): value for name, value in members.items()}


def _snake_case(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


RECORD_OVER_REST: RequestBuilders = {"rest": _record_over_rest, "bare": _record_over_rest}
OVER_REST: RequestBuilders = {"rest": list_over_rest}

# The questions


def encounters_to_record(chance: random.Random, _population: Population) -> list[Question]:
    """Return synthetic encounters to record."""
    return [
        {
            "patientId": f"written-{chance.randrange(RECORDING_PATIENTS)}",
            "input": {
                "brandId": BRAND,
                "encounterType": chance.choice(["office_visit", "telehealth", "lab", "pharmacy", "other"]),
                "providerId": f"00000000-0000-4000-8000-{chance.randrange(50):012}",
                "scheduledAt": f"2026-12-{chance.randrange(1, 29):02}T09:30:00.000000Z",
                "chiefComplaint": f"Complaint {number}: a cough that will not go",
                "notes": f"Made up, number {number}. " + 5 * "Slept well, ate little, walks again. ",
                "metadata": {"room": number % 30, "source": "clinic", "weight_kg": 61.5, "flags": ["a", "b"]},
            },
        }
        for number in range(QUESTIONS)
    ]


def _any_encounter(chance: random.Random, population: Population) -> list[Question]:
    return [{"id": each, "truth": each} for each in chance.sample(population.ids, min(QUESTIONS, len(population.ids)))]


def _latest_of(kind: Literal["small", "large"], first: int) -> Questions:
    def questions(chance: random.Random, population: Population) -> list[Question]:
        names = [f"{kind}-{chance.randrange(getattr(population, kind))}" for _ in range(QUESTIONS)]
        return [{"id": name, "first": first, "offset": 0, "truth": [name]} for name in names]

    return questions


def _latest_of_twenty(chance: random.Random, population: Population) -> list[Question]:
    groups = [[f"small-{number}" for number in chance.sample(range(population.small), 20)] for _ in range(QUESTIONS)]
    return [{"ids": names, "first": 5, "truth": names} for names in groups]


def _latest_beside(chance: random.Random, population: Population) -> list[Question]:
    return [{**each, "first": 50} for each in _any_encounter(chance, population)]


DAYS = 690
"""Days on which encounters are scheduled."""


def _spans(chance: random.Random, days: int) -> Iterator[tuple[Question, list[str]]]:
    for _ in range(QUESTIONS):
        first = date(2024, 1, 3) + timedelta(days=chance.randrange(DAYS - days))
        span = [f"{day}T00:00:00Z" for day in (first, first + timedelta(days=days))]
        yield dict(zip(("scheduledFrom", "scheduledUntil"), span, strict=True)), span


def _open_of_a_day(chance: random.Random, _population: Population) -> list[Question]:
    return [
        {"first": 50, "where": {**where, "status": ["SCHEDULED", "IN_PROGRESS"]}, "truth": span}
        for where, span in _spans(chance, 1)
    ]


def _of_a_providers_week(chance: random.Random, _population: Population) -> list[Question]:
    providers = [str(UUID(hashlib.md5(f"provider{n}".encode()).hexdigest())) for n in range(50)]  # noqa: S324 - as seeded
    chosen = [(*each, chance.choice(providers)) for each in _spans(chance, 7)]
    return [
        {"first": 50, "where": {**where, "providerId": [provider]}, "truth": [*span, provider]}
        for where, span, provider in chosen
    ]


def _board_of_a_day(chance: random.Random, _population: Population) -> list[Question]:
    return [{"where": where, "truth": span} for where, span in _spans(chance, 1)]


def _counts_of_a_day(chance: random.Random, _population: Population) -> list[Question]:
    return [{"tiles": where, "day": where, "truth": span} for where, span in _spans(chance, 1)]


OF_SPAN = """
    FROM patient_graph.encounters
    WHERE scheduled_at >= CAST(($1::text[])[1] AS timestamptz)
        AND scheduled_at < CAST(($1::text[])[2] AS timestamptz)"""
TRUTH_OF_OPEN = f"""SELECT * {OF_SPAN} AND status IN ('scheduled', 'in_progress')
    ORDER BY scheduled_at, id LIMIT 50"""
TRUTH_OF_PROVIDER = f"""SELECT * {OF_SPAN} AND provider_id = CAST(($1::text[])[3] AS uuid)
    ORDER BY scheduled_at, id LIMIT 50"""
TRUTH_OF_BOARD = f"SELECT * {OF_SPAN} ORDER BY provider_id NULLS LAST, scheduled_at, id LIMIT 100"
TRUTH_OF_COUNTS = f"""
    SELECT key, count FROM (
        SELECT 1 AS nth, upper(status) AS key, count(*) {OF_SPAN} GROUP BY status
        UNION ALL SELECT 2, CAST(provider_id AS text), count(*) {OF_SPAN} GROUP BY provider_id
    ) AS counted ORDER BY nth, count DESC, key"""  # noqa: S608


def _truth_of_latest(first: int) -> str:
    return f"""
        SELECT e.* FROM unnest($1::text[]) WITH ORDINALITY AS wanted (id, nth) CROSS JOIN LATERAL (
            SELECT * FROM patient_graph.encounters WHERE patient_id = wanted.id
            ORDER BY created_at DESC, id DESC LIMIT {first}
        ) AS e ORDER BY nth, e.created_at DESC, e.id DESC"""  # noqa: S608


TRUTH_BESIDE = """
    SELECT * FROM patient_graph.encounters
    WHERE patient_id = (SELECT patient_id FROM patient_graph.encounters WHERE id = $1)
    ORDER BY created_at DESC, id DESC LIMIT 50"""
TRUTH_OF_ONE = "SELECT * FROM patient_graph.encounters WHERE id = $1"
assert ENCOUNTERS_OF_SMALL >= 50
assert ENCOUNTERS_OF_LARGE >= 500

WORKLOADS = {
    each.name: each
    for each in (
        Workload("W1", "record over GraphQL", encounters_to_record, RECORD, None, is_write=True),
        Workload("W2", "record over REST", encounters_to_record, RECORD_OVER_REST, None, is_write=True),
        Workload("W3", "one encounter by id", _any_encounter, ONE, TRUTH_OF_ONE),
        Workload("W4", "a patient's latest 50", _latest_of("small", 50), LATEST, _truth_of_latest(50)),
        Workload("W5", "a patient's latest 500", _latest_of("large", 500), LATEST, _truth_of_latest(500)),
        Workload("W6", "20 patients' latest 5", _latest_of_twenty, OF_SEVERAL, _truth_of_latest(5)),
        Workload("W7", "latest 50 of an encounter's patient", _latest_beside, LATEST_UNPLANNED, TRUTH_BESIDE),
        Workload("L1", "a day's open encounters", _open_of_a_day, WORKLIST, TRUTH_OF_OPEN),
        Workload("L2", "a provider's week", _of_a_providers_week, WORKLIST, TRUTH_OF_PROVIDER),
        Workload("B1", "the board's day", _board_of_a_day, BOARD_DAY, TRUTH_OF_BOARD, members=CARD),
        Workload("B2", "the board's counts", _counts_of_a_day, BOARD_COUNTS, TRUTH_OF_COUNTS),
        Workload("R4", "over REST, latest 50", _latest_of("small", 50), OVER_REST, _truth_of_latest(50)),
        Workload("R5", "over REST, latest 500", _latest_of("large", 500), OVER_REST, _truth_of_latest(500)),
    )
}

# The workloads of `bench.cluster`, which compares the gateway on several databases.


def _pair(chance: random.Random, population: Population, kind: Literal["small", "large"]) -> list[Question]:
    pairs = [pair for pair in population.pairs if pair[1].startswith(kind)]
    chosen = chance.sample(pairs, min(QUESTIONS, len(pairs)))
    return [{"id": id_, "patientId": patient_id, "truth": id_} for id_, patient_id in chosen]


def _encounter_to_read(chance: random.Random, population: Population) -> list[Question]:
    return _pair(chance, population, "small")


def _encounter_to_change(chance: random.Random, population: Population) -> list[Question]:
    # Not those that are read: these are compared with what was inserted.
    return _pair(chance, population, "large")


def _day_of_the_brand(_chance: random.Random, _population: Population) -> list[Question]:
    # No encounter is recorded for this day, so that the list stays the same.
    return [
        {
            "truth": "2025-03-03T00:00:00Z",
            "where": {"scheduledFrom": "2025-03-03T00:00:00Z", "scheduledUntil": "2025-03-04T00:00:00Z"},
        }
    ]


def _change(arguments: str, declared: str = "") -> RequestBuilder:
    # The key makes each note a new one, so that each request makes a version.
    return graphql(
        f"""mutation ($id: ID!, $input: AmendEncounterInput!{declared}) {{
              amendEncounter(id: $id, input: $input{arguments}) {{
                __typename ... on EncounterChanged {{ encounter {{ id version }} }}
                ... on Problem {{ code message }} }} }}""",
        lambda q: (
            {"id": q["id"], "input": {"notes": KEY.decode()}} | ({"patientId": q["patientId"]} if declared else {})
        ),
    )


ONE_OF_PATIENT = graphql(
    f"query ($id: ID!, $patientId: ID) {{ encounter(id: $id, patientId: $patientId) {{ {ALL} }} }}"
)
TEN_OF_A_DAY = graphql(
    f"""query ($where: EncountersFilter) {{ encounters(first: 10, where: $where, orderBy: SCHEDULED_AT_ASC) {{
          nodes {{ {ALL} }} }} }}"""
)
OF_A_DAY = """
    SELECT * FROM patient_graph.encounters
    WHERE scheduled_at >= $1::text::timestamptz AND scheduled_at < $1::text::timestamptz + interval '1 day'
    ORDER BY scheduled_at, id LIMIT 10"""

ON_A_CLUSTER = {
    each.name: each
    for each in (
        Workload("record with a key", "REST", encounters_to_record, RECORD_OVER_REST, None, is_write=True),
        Workload("record without a key", "REST", encounters_to_record, RECORD_OVER_REST, None),
        Workload("a patient's latest 10, REST", "", _latest_of("small", 10), OVER_REST, _truth_of_latest(10)),
        Workload("a patient's latest 10, GraphQL", "", _latest_of("small", 10), LATEST, _truth_of_latest(10)),
        Workload("one by id and patient", "", _encounter_to_read, {"gateway": ONE_OF_PATIENT}, TRUTH_OF_ONE),
        Workload("one by id", "", _encounter_to_read, {"gateway": ONE_SAME}, TRUTH_OF_ONE),
        Workload(
            "a change by id and patient",
            "",
            _encounter_to_change,
            {"gateway": _change(", patientId: $patientId", ", $patientId: ID")},
            None,
        ),
        Workload("a change by id", "", _encounter_to_change, {"gateway": _change("")}, None),
        Workload(
            "20 patients' latest 5", "", _latest_of_twenty, {"gateway": graphql(OF_SEVERAL_SAME)}, _truth_of_latest(5)
        ),
        Workload("a worklist, 10 of a day", "", _day_of_the_brand, {"gateway": TEN_OF_A_DAY}, OF_A_DAY),
    )
}


# Reading answers


def rows_in(answer: Any) -> list[Row]:
    """Return the encounters and counts of an answer in order, with the server's names and enum case normalized."""
    return [_alike(each) for each in _encounters_in(answer)]


def _encounters_in(value: Any) -> Iterable[Row]:
    if isinstance(value, dict):
        if value.keys() & {"createdAt", "created_at", "count"}:
            yield value
        else:
            for inner in value.values():
                yield from _encounters_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _encounters_in(inner)


def _alike(row: Row) -> Row:
    if "count" in row:
        return row
    named = {_snake_case(name): value for name, value in row.items() if name not in BESIDE}
    named["id"] = named.pop("row_id", named.get("id"))
    for name in named.keys() & INSTANTS:
        named[name] = named[name] and datetime.fromisoformat(named[name])
    for name in named.keys() & {"encounter_type", "status"}:
        named[name] = named[name].lower()
    return named


def row_of(record: Mapping[str, Any], members: Sequence[str]) -> Row:
    """Return these members of a row of the table, or a count, in the form of `rows_in`."""
    if "count" in record.keys():  # noqa: SIM118 - iterating over a record yields its values
        return dict(record)
    row = {_snake_case(name): record[_snake_case(name)] for name in members}
    row["id"], row["provider_id"] = str(row["id"]), row["provider_id"] and str(row["provider_id"])
    if "metadata" in row:
        row["metadata"] = json.loads(row["metadata"])
    return row
