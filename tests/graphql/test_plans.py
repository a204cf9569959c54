"""Plans and the executor return the same bytes for the same request, refusals included."""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from graphql import OperationDefinitionNode, parse, print_schema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis_graphql import nodes, queries

import schema.mutations
import schema.plans.record_plan
from gateway.database.database import PoolConnection
from gateway.settings import Settings
from resolvers.access import Caller, Permission
from resolvers.errors import (
    AnswerMemoryFull,
    AnswerTooLarge,
    EncounterNotFound,
    GatewayError,
    IllegalTransition,
    InvalidInput,
    Shape,
    StaleVersion,
    TemporarilyUnavailable,
    Violation,
)
from resolvers.list_sql import ORDERS
from schema import build_schema
from schema.plans.query_plan import MOST_CONDITIONS, Plan, plan_of
from schema.plans.record_plan import RecordPlan
from schema.plans.selection import Unplannable
from tests.cast import Cast
from tests.conftest import GENEROUS_LIMITS, fresh_database
from tests.doors import Service
from tests.error_kinds import KINDS, instance_of
from tests.logs import captured_logs
from tests.waiting import wait_until

EXAMPLES = int(os.environ.get("EXAMPLES", "200"))
"""Number of generated documents; small, because `make test` runs them."""

SAME_ID = {"x-request-id": "the-same", "accept": "application/graphql-response+json"}
CALLERS = {
    "reader": Caller("reader", frozenset({"read:encounters"}), brand_id="loop"),
    "other brand": Caller("other brand", frozenset({"manage:encounters", "read:patients"}), brand_id="loopbio"),
    "registrar": Caller("registrar", frozenset({"read:patients"}), brand_id="loop"),
    "auditor": Caller("auditor", frozenset({"read:encounters"}), brand_id="loop"),
    "recorder": Caller("recorder", frozenset({"write:encounters"}), brand_id="loop"),
    "clinician": Caller("clinician", frozenset({"manage:encounters"}), brand_id="loop"),
    "receptionist": Caller("receptionist", frozenset({"write:visits"}), brand_id="loop"),
    "machine": Caller("machine", frozenset({"admin:*"})),
}

TOKENS = sorted(CALLERS.keys() - {"auditor"})


@pytest.fixture(scope="module")
async def clinic(database_url: str) -> AsyncIterator[Service]:
    """A service whose callers have different scopes."""

    async def verify(token: str) -> Caller:
        return CALLERS[token]

    # A receptionist may record encounters and not change them.
    scopes: dict[Permission, tuple[str, ...]] = {Permission.RECORD_ENCOUNTER: ("write:encounters", "write:visits")}
    clinic_settings = Settings(database_url=database_url, scopes=scopes, **GENEROUS_LIMITS)
    async with Service.running(clinic_settings, verify=verify) as running:
        yield running


PROVIDER = str(uuid4())


class Known:
    """Ids and cursors of existing records, and some that match none."""

    def __init__(
        self, patients: list[str], encounters: list[str], cursors: list[str], of_brand: dict[str, list[str]]
    ) -> None:
        self.provider = PROVIDER
        self.of_brand = of_brand
        """Cursors of the list of the brand `loop`, by its order."""
        self.patients = [*patients, "nobody", "", "a\x00b", "no/where"]
        self.encounters = [*encounters, str(uuid4()), "no-id", ""]
        self.cursors = [*cursors, "made-up", ""]


@pytest.fixture(scope="module")
async def known(clinic: Service, cast: Cast) -> Known:
    """Patients of two brands, one with more encounters than a page; some encounters have all members."""
    everything = {
        "chief_complaint": 'Quotes " and \\ and \u0001\u001f\u007f\u2028 and 🩺', "notes": "two\nlines\ttabs\r\b\f",
        "provider_id": PROVIDER, "scheduled_at": "0033-02-01T00:00:00.000001Z",
        "metadata": {"b": [1.50, 1e3, None, True], "ä": {"x": "y"}},
    }  # fmt: skip
    plain = {"scheduled_at": "2026-12-01T10:00:00Z", "chief_complaint": "", "notes": ""}
    patients, encounters = [], []
    for brand, count in (("loop", 5), ("loop", 0), ("loopbio", 2), ("loop", 1)):
        patients.append(patient_id := await cast.patient(brand))
        for number in range(count):
            kind = ("lab", "telehealth", "pharmacy")[number % 3]
            members = {"brand_id": brand, "encounter_type": kind} | ({}, everything, plain)[number % 3]
            response = await clinic.rest("POST", f"/v1/patients/{patient_id}/encounters", token="machine", json=members)
            encounters.append(response.json()["id"])
    for encounter_id in encounters[:2]:
        query = "mutation ($id: ID!) { startEncounter(id: $id) { __typename } }"
        await clinic.graphql(query, {"id": encounter_id}, token="recorder")
    for number, encounter_id in enumerate(encounters[:3]):
        query = "mutation ($id: ID!, $ids: JSON) { amendEncounter(id: $id, input: {externalIds: $ids}) { __typename } }"
        external_ids = {"emr": f"V-{number}", 'a "name" ä': "\\ and 🩺"}
        await clinic.graphql(query, {"id": encounter_id, "ids": external_ids}, token="recorder")
    edges = "query ($id: ID!) { patient(id: $id) { encounters { edges { cursor } } } }"
    body = await clinic.graphql(edges, {"id": patients[0]}, token="reader")
    cursors = [edge["cursor"] for edge in body["data"]["patient"]["encounters"]["edges"]]
    of_brand = {}
    for order in ORDERS:
        edges = f"{{ encounters(orderBy: {order.name}, first: 40) {{ edges {{ cursor }} }} }}"
        body = await clinic.graphql(edges, {}, token="reader")
        of_brand[order.name] = [edge["cursor"] for edge in body["data"]["encounters"]["edges"]][::3]
    return Known(patients, encounters, cursors[::2], of_brand)


@contextmanager
def without_plans() -> Iterator[None]:
    """Make the executor serve every request."""

    async def decline(*_: object) -> bytes:
        raise Unplannable

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "run", decline)
        patch.setattr(RecordPlan, "run", decline)
        yield


async def compare(
    clinic: Service, query: str, variables: dict[str, Any], token: str = "reader", brand: str | None = None
) -> bytes:
    """Send a request to the plans and to the executor; assert equal responses and return the body."""
    body = json.dumps({"query": query, "variables": variables})
    headers = SAME_ID | {"content-type": "application/json"} | ({"x-brand-id": brand} if brand else {})
    planned = await clinic.rest("POST", "/graphql", token=token, content=body, headers=headers)
    with without_plans():
        executed = await clinic.rest("POST", "/graphql", token=token, content=body, headers=headers)
    assert (planned.status_code, planned.content) == (executed.status_code, executed.content), query
    return planned.content


# Generated documents of the schema, with existing ids


@st.composite
def documents(draw: st.DrawFn, known: Known) -> tuple[str, dict[str, Any]]:  # noqa: PLR0915 - one function a type
    """Generate a query and its variables."""
    variables: dict[str, tuple[str, Any]] = {}
    fragments: dict[str, str] = {}
    drawn = iter(range(10_000))

    def value(kind: str, strategy: st.SearchStrategy[Any], literal: Any = json.dumps) -> str:
        given = draw(strategy)
        if draw(st.booleans()):
            name = f"v{next(drawn)}"
            variables[name] = (kind, given)
            return f"${name}"
        return "null" if given is None else literal(given)

    def condition() -> str:
        if draw(st.integers(0, 5)):
            return ""
        name = draw(st.sampled_from(["skip", "include"]))
        return f" @{name}(if: {value('Boolean!', st.booleans())})"

    def some(fields: list[Any]) -> str:
        chosen = draw(st.lists(st.sampled_from(fields), min_size=1, max_size=4))
        texts = []
        for each in chosen:
            text = each() if callable(each) else each
            alias = f"a{next(drawn)}: " if draw(st.booleans()) or callable(each) else ""
            texts.append(f"{alias}{text}" if "..." not in text else text)
        return "{ " + " ".join(texts) + " }"

    def maybe_in_fragment(type_name: str, selection: str) -> str:
        """Return a selection, or wrap it in a fragment."""
        match draw(st.integers(0, 4)):
            case 0:
                return f"{{ ... on {type_name}{condition()} {selection} }}"
            case 1:
                name = f"f{next(drawn)}"
                fragments[name] = f"fragment {name} on {type_name} {selection}"
                return f"{{ ...{name}{condition()} __typename }}"
            case _:
                return selection

    def encounter() -> str:
        plain = [
            "id", "patientId", "providerId", "brandId", "encounterType", "status", "scheduledAt", "startedAt",
            "endedAt", "chiefComplaint", "notes", "metadata", "externalIds", "createdAt", "updatedAt", "version",
            "allowedActions", "__typename",
        ]  # fmt: skip
        return maybe_in_fragment("Encounter", some([*plain, lambda: f"patient {patient(deep=False)}"]))

    def patient(deep: bool = True) -> str:
        pages = (
            [lambda: f"encounters{arguments()}{condition()} {page()}"] if deep or not draw(st.integers(0, 6)) else []
        )
        # No plan serves a member of the patient's own row.
        own = ["externalIds", "createdAt"] if not draw(st.integers(0, 9)) else []
        return maybe_in_fragment("Patient", some(["id", "brandId", "__typename", *own, *pages]))

    def arguments() -> str:
        size = st.one_of(st.none(), st.integers(0, 7), st.sampled_from([100, 101, -1]))
        given = []
        for name in draw(
            st.sets(st.sampled_from(["first", "last", "after", "before", "where", "orderBy"]), max_size=2)
        ):
            if name == "orderBy":
                orders = st.sampled_from([None, *known.of_brand])
                given.append(f"orderBy: {value('EncounterOrder', orders, str)}")
            elif name in {"first", "last"}:
                given.append(f"{name}: {value('Int', size)}")
            elif name == "where":
                given.append(f"where: {value('EncounterFilter', filters(), literal)}")
            else:
                given.append(f"{name}: {value('String', st.one_of(st.none(), st.sampled_from(known.cursors)))}")
        return f"({', '.join(given)})" if given else ""

    def of_brand() -> str:
        order = draw(st.sampled_from(sorted(known.of_brand)))
        given = [f"orderBy: {value('EncounterOrder', st.just(order), str)}"]
        for name in draw(st.sets(st.sampled_from(["first", "last", "after", "before", "where"]), max_size=3)):
            if name in {"first", "last"}:
                given.append(f"{name}: {value('Int', st.integers(0, 7))}")
            elif name == "where":
                given.append(f"where: {value('EncountersFilter', brand_filters(known), literal)}")
            else:
                given.append(f"{name}: {value('String', st.sampled_from([*known.of_brand[order], known.cursors[0]]))}")
        return f"encounters({', '.join(given)}){condition()} {page()}"

    def owner() -> str:
        patients = st.sampled_from([None, *known.patients])
        return draw(st.sampled_from(["", f", patientId: {value('ID', patients)}"]))

    def page() -> str:
        info = ["hasNextPage", "hasPreviousPage", "startCursor", "endCursor", "__typename"]
        below = [
            "totalCount", "totalCountIsExact", "__typename", lambda: f"nodes {encounter()}",
            lambda: f"pageInfo {some(info)}", lambda: f"edges {edge()}",
        ]  # fmt: skip
        return maybe_in_fragment("EncounterConnection", some(below))

    def edge() -> str:
        return maybe_in_fragment("EncounterEdge", some(["cursor", "__typename", lambda: f"node {encounter()}"]))

    roots = some([
        "__typename",
        lambda: f"encounter(id: {value('ID!', st.sampled_from(known.encounters))}{owner()}){condition()} {encounter()}",
        lambda: f"patient(id: {value('ID!', st.sampled_from(known.patients))}){condition()} {patient()}",
        of_brand,
        lambda: f"patients(ids: {value('[ID!]!', st.lists(st.sampled_from(known.patients), max_size=4))}) {patient()}",
    ])  # fmt: skip
    declared = ", ".join(f"${name}: {kind}" for name, (kind, _) in variables.items())
    query = f"query {f'({declared}) ' if declared else ''}{roots} {' '.join(fragments.values())}"
    return query, {name: given for name, (_, given) in variables.items()}


def filters() -> st.SearchStrategy[Any]:
    instants = st.sampled_from([None, "2026-11-30T00:00:00Z", "0001-01-01T00:00:00Z", "yesterday"])
    kinds = st.lists(st.sampled_from(["LAB", "TELEHEALTH", "OTHER"]), max_size=2)
    return st.one_of(
        st.none(),
        st.fixed_dictionaries(
            {},
            optional={
                "encounterType": st.one_of(st.none(), kinds),
                "status": st.lists(st.sampled_from(["SCHEDULED", "IN_PROGRESS"]), max_size=2),
                "providerId": st.sampled_from([None, str(uuid4()), "nobody"]),
                "scheduledFrom": instants,
                "scheduledUntil": instants,
            },
        ),
    )


def brand_filters(known: Known) -> st.SearchStrategy[Any]:
    instants = st.sampled_from([None, "2026-11-30T00:00:00Z", "2100-01-01T00:00:00Z", "yesterday"])
    spans = [f"{of}{side}" for of in ("scheduled", "started", "created", "updated") for side in ("From", "Until")]
    kinds = st.lists(st.sampled_from(["LAB", "TELEHEALTH", "OTHER"]), max_size=2)
    return st.fixed_dictionaries(
        {},
        optional={
            "encounterType": st.one_of(st.none(), kinds),
            "status": st.lists(st.sampled_from(["SCHEDULED", "IN_PROGRESS"]), max_size=2),
            "providerId": st.lists(st.sampled_from([known.provider, str(uuid4()), "nobody"]), max_size=2),
            "patientId": st.lists(st.sampled_from(known.patients), max_size=3),
            **dict.fromkeys(spans, instants),
        },
    )


def literal(value: Any) -> str:
    """Return a filter as a GraphQL literal."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {literal(part)}" for name, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(each if each.isupper() else json.dumps(each) for each in value) + "]"
    return json.dumps(value)


async def test_plans_and_the_executor_answer_any_query_alike(clinic: Service, known: Known) -> None:
    loop = asyncio.get_running_loop()
    planned: list[bool] = []
    unexpected: list[Exception] = []
    run = Plan.run

    async def counted(self: Plan, *given: Any) -> bytes:
        planned.append(False)
        try:
            answer = await run(self, *given)
        except Unplannable:
            raise
        except Exception as error:
            # The executor then answers, so that only the log shows it.
            unexpected.append(error)
            raise
        planned[-1] = True
        return answer

    Plan.run = counted  # type: ignore[method-assign,assignment]

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        documents(known),
        st.sampled_from(sorted(CALLERS.keys() - {"auditor"})),
        st.sampled_from([None, "loop", "loopbio"]),
    )
    def ask(document: tuple[str, dict[str, Any]], token: str, brand: str | None) -> None:
        asyncio.run_coroutine_threadsafe(compare(clinic, *document, token=token, brand=brand), loop).result(60)

    try:
        await asyncio.to_thread(ask)
    finally:
        Plan.run = run  # type: ignore[method-assign]
    # Fewer plans would mean that the executor was compared with itself.
    assert sum(planned) > len(planned) / 5
    assert unexpected == []


async def test_plans_and_executor_answer_any_document_of_the_schema_alike(clinic: Service) -> None:
    loop = asyncio.get_running_loop()
    scalars = {
        "UUID": st.sampled_from([str(uuid4()), "x"]).map(nodes.String),
        "DateTime": st.sampled_from(["2026-11-30T00:00:00Z", "x"]).map(nodes.String),
        "JSON": st.just(nodes.Null),
    }
    printed = print_schema(build_schema()._schema)

    @settings(max_examples=EXAMPLES // 3, deadline=None, suppress_health_check=list(HealthCheck))
    @given(queries(printed, custom_scalars=scalars))
    def ask(query: str) -> None:
        asyncio.run_coroutine_threadsafe(compare(clinic, query, {}), loop).result(60)

    await asyncio.to_thread(ask)


# Edge cases


@pytest.mark.parametrize(
    ("query", "variables"),
    [
        (('mutation ($v: String) { recordEncounter(patientId: "nobody", input: {brandId: "loop", encounterType: LAB,'
         " externalIds: {lis: $v, emr: 7, b: true}}) { __typename } }"), {"v": "7"}),
        ("{ patients(ids: []) { id encounters { totalCount } } }", {}),
        ("{ encounters @skip(if: true) { totalCount } }", {}),
        ("{ encounters(last: 3) { pageInfo { hasNextPage } } }", {}),
        ("{ encounters(first: 3) { __typename pageInfo { hasPreviousPage } } }", {}),
        ("{ patients(ids: %s) { id } }" % ("9" * 5_000), {}),
        ('{ patient(id: "x") { encounters(first: %s) { totalCount } } }' % ("9" * 5_000), {}),
        ("{ patient(id: %s) { id } }" % ("9" * 5_000), {}),
        ("query ($x: Boolean = true) { a: __typename @skip(if: $x) b: __typename }", {"x": None}),
        ("query ($x: Boolean = true) { a: __typename @include(if: $x) b: __typename }", {"x": None}),
        ('query ($i: ID = "x") { patient(id: $i) { id } }', {"i": None}),
        ("query ($i: ID) { patients(ids: [$i]) { id } }", {"i": None}),
        ("query A { a: __typename } query B($x: Boolean!) { b: __typename @skip(if: $x) }", {"x": True}),
        (('mutation { recordEncounter(patientId: "nobody", input: {brandId: "loop", encounterType: LAB})'
         " @skip(if: true) { __typename } }"), {}),
        ('mutation { recordEncounter(patientId: %s, input: {brandId: "loop", encounterType: LAB}) { __typename } }'
         % ("9" * 5_000), {}),
        ('mutation ($m: JSON = {a: %s}) { recordEncounter(patientId: "nobody", input: {brandId: "loop",'
         " encounterType: LAB, metadata: $m}) { __typename } }" % ("9" * 5_000), {}),
        (('mutation ($b: String = "loop") { recordEncounter(patientId: "nobody", input: {brandId: $b,'
         " encounterType: LAB}) { __typename } }"), {"b": None}),
        (('mutation ($i: RecordEncounterInput = {brandId: "loop", encounterType: LAB})'
         ' { recordEncounter(patientId: "nobody", input: $i) { __typename } }'), {"i": None}),
        (('mutation ($p: ID!) { recordEncounter(patientId: $p, input: {brandId: "loop", encounterType: LAB},'
         ' idempotencyKey: "odd") { __typename } }'), {"p": "\ud800"}),
    ],
)  # fmt: skip
async def test_edge_cases_cause_no_server_error_and_are_answered_alike(
    clinic: Service, query: str, variables: dict[str, Any]
) -> None:
    with captured_logs() as lines:
        answer = await compare(clinic, query, variables, "clinician")

    assert b"server_error" not in answer
    assert not [line for line in lines if line["level"] == "error"]


async def test_a_document_with_many_conditions_has_no_plan(clinic: Service) -> None:
    names = [f"c{number}" for number in range(MOST_CONDITIONS + 1)]
    declared = " ".join(f"${name}: Boolean!" for name in names)
    query = (
        f"query ({declared}) {{ {' '.join(f'{name}: __typename @skip(if: ${name})' for name in names)} z: __typename }}"
    )
    operation = parse(query).definitions[0]
    assert isinstance(operation, OperationDefinitionNode)

    assert plan_of(parse(query), operation) is None
    assert b'"z":"Query"' in await compare(clinic, query, dict.fromkeys(names, True))


def test_of_the_mutations_only_record_encounter_has_a_plan() -> None:
    mutation = build_schema()._schema.mutation_type
    assert mutation is not None
    for name in mutation.fields:
        # A plan does not look at the arguments of other fields.
        given = '(patientId: "x", input: {brandId: "loop", encounterType: LAB}, idempotencyKey: "key")'
        document = parse(f"mutation {{ {name}{given} {{ __typename }} }}")
        operation = document.definitions[0]
        assert isinstance(operation, OperationDefinitionNode)

        assert (plan_of(document, operation) is not None) == (name == "recordEncounter")


async def test_a_plan_sends_one_statement(clinic: Service, known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    original = PoolConnection.fetch

    async def counted(self, statement, **values):
        sent.append(statement.text)
        return await original(self, statement, **values)

    monkeypatch.setattr(PoolConnection, "fetch", counted)
    query = """query ($ids: [ID!]!, $id: ID!) {
      patients(ids: $ids) { id encounters(first: 2) { totalCount nodes { id notes patient { id } } } }
      encounter(id: $id) { ...all } again: encounter(id: $id) { ...all }
    } fragment all on Encounter { id metadata allowedActions }"""

    body = await clinic.graphql(query, {"ids": known.patients[:2], "id": known.encounters[0]}, token="reader")

    assert body["data"]["encounter"] == body["data"]["again"]
    assert len([text for text in sent if "patient_graph.encounters" in text]) == 1


async def test_the_result_of_a_plan_is_audited_as_a_read(clinic: Service, known: Known, cast: Cast) -> None:
    page = "encounters(first: 3) { nodes { id } edges { cursor } totalCount }"
    query = f"query ($id: ID!) {{ patient(id: $id) {{ {page} }} }}"

    await clinic.graphql(query, {"id": known.patients[0]}, token="auditor")

    async def is_audited() -> bool:
        return len(await audited(cast, known.patients[0])) > 0

    await wait_until(is_audited)
    assert await audited(cast, known.patients[0]) == ['{"encounters": 3}']


async def audited(cast: Cast, patient_id: str) -> list[str]:
    rows = await cast.connection.fetch(
        "SELECT details::text FROM patient_graph.audit_log WHERE patient_id = $1 AND actor_id = 'auditor'"
        " AND event_type = 'patient_graph.encounters.read' ORDER BY occurred_at, id",
        patient_id,
    )
    return [row[0] for row in rows]


async def test_a_database_error_in_a_plan_is_reported_and_not_retried(
    clinic: Service, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(*_: object) -> Any:
        asked.append(1)
        raise TemporarilyUnavailable

    monkeypatch.setattr(clinic.services.database, "connection", refuse, raising=False)
    query = "query ($id: ID!, $other: ID!) { encounter(id: $id) { id } patient(id: $other) { id } }"

    body = await clinic.graphql(query, {"id": known.encounters[0], "other": known.patients[0]}, token="reader")

    assert [error["extensions"]["code"] for error in body["errors"]] == ["temporarily_unavailable"] * 2
    assert body["data"] == {"encounter": None, "patient": None}
    assert len(asked) == 1


@pytest.mark.parametrize(
    "fields",
    [
        "e: encounter(id: $encounter) { id }",
        "patient(id: $patient) { id } patient(id: $patient) { brandId }",
        "patients(ids: [$patient]) { id }",
        "t: __typename e: encounter(id: $encounter) { id } empty: patients(ids: []) { id }",
        "a: patients(ids: [$patient]) { id } ...f b: patients(ids: [$patient]) { id } __typename",
        "a: patients(ids: [$patient]) { id } b: encounter(id: $encounter) { id } c: encounter(id: $encounter) { id }",
    ],
)
async def test_a_failed_query_has_the_same_answer_both_ways(
    clinic: Service, known: Known, monkeypatch: pytest.MonkeyPatch, fields: str
) -> None:
    error: GatewayError

    def fail(*_: object, **__: object) -> Any:
        raise error

    monkeypatch.setattr(clinic.services.database, "connection", fail, raising=False)
    monkeypatch.setattr(clinic.services.database, "fetch_one_batched", fail, raising=False)
    query = f'{{ {fields} none: encounter(id: "no-id") {{ id }} }}'
    query += " fragment f on Query { d: patient(id: $patient) { id } }" if "...f" in fields else ""
    query = query.replace("$encounter", f'"{known.encounters[0]}"').replace("$patient", f'"{known.patients[0]}"')

    for error in map(instance_of, KINDS):
        assert error.code.encode() in await compare(clinic, query, {})


# Recording


@st.composite
def recordings(draw: st.DrawFn, known: Known) -> tuple[str, dict[str, Any]]:
    """Generate a recording and the selection of its payload."""
    texts = st.sampled_from([None, "", 'Quotes " \\ \u0001 🩺', "a\x00b", "x" * 2_001])
    needed = {
        "brandId": st.sampled_from(["loop", "loop", "loopbio", ""]),
        "encounterType": st.sampled_from(["LAB", "OTHER"]),
    }
    optional: dict[str, st.SearchStrategy[Any]] = {
        "providerId": st.sampled_from([str(uuid4()).upper(), "nobody", None]),
        "scheduledAt": st.sampled_from(["2026-03-29T02:30:00.120+01:00", "0001-01-01T00:00:00Z", "soon", None]),
        "chiefComplaint": texts,
        "notes": texts,
        "metadata": st.sampled_from([{}, {"b": 1.5, "ä": [None, "\u0001"]}, [], None, {"a": "\x00"}]),
        "status": st.sampled_from(["SCHEDULED", "COMPLETED", "NO_SHOW", "ENTERED_IN_ERROR", None]),
        "startedAt": st.sampled_from(["2026-01-31T09:30:00Z", "2999-01-01T00:00:00Z", None]),
        "endedAt": st.sampled_from(["2026-01-31T09:50:00.120+01:00", "2026-01-31T09:50:00Z", None]),
        "externalIds": st.sampled_from([{}, {"lis": "7", "ä": "\u0001"}, {"lis": ""}, {"lis": 7}, [], None]),
    }
    members: dict[str, Any] = draw(st.fixed_dictionaries(needed, optional=optional))
    plain = [
        "id", "patientId", "providerId", "brandId", "encounterType", "status", "scheduledAt", "startedAt", "endedAt",
        "chiefComplaint", "notes", "metadata", "externalIds", "version", "allowedActions", "__typename",
        "patient { id brandId }", "patient { externalIds }",
    ]  # fmt: skip
    encounter = " ".join(draw(st.lists(st.sampled_from(plain), min_size=1, unique=True)))
    outcomes = [
        "__typename", "...f", "... on EncounterRecorded { replayed }", "... on Problem { code message recorded }",
        "... on InvalidInput { violations { path rule message } }",
        f"... on EncounterRecorded {{ e: encounter {{ {encounter} }} }}",
    ]  # fmt: skip
    asked = " ".join(draw(st.lists(st.sampled_from(outcomes), min_size=1)))
    fragment = f"fragment f on EncounterRecorded {{ encounter {{ {encounter} }} }}" if "...f" in asked else ""
    query = f"""mutation ($patient: ID!, $input: RecordEncounterInput!, $key: String) {{
      r: recordEncounter(patientId: $patient, input: $input, idempotencyKey: $key) {{ {asked} }} }} {fragment}"""
    key = draw(st.sampled_from([None, "two words", "fresh"]))
    key = f"{uuid4()}" if key == "fresh" else key
    variables = {"patient": draw(st.sampled_from(known.patients)), "key": key}
    if draw(st.booleans()):
        return query, variables | {"input": members}
    # Each member has its own variable; some optional ones are not sent.
    kinds = {
        "brandId": "String!", "encounterType": "EncounterType!", "providerId": "UUID", "scheduledAt": "DateTime",
        "chiefComplaint": "String", "notes": "String", "metadata": "JSON", "status": "EncounterStatus",
        "startedAt": "DateTime", "endedAt": "DateTime", "externalIds": "JSON",
    }  # fmt: skip
    written = {name for name in optional if draw(st.booleans())} | needed.keys() | members.keys()
    declared = " ".join(f"${name}: {kinds[name]}" for name in sorted(written))
    given = " ".join(f"{name}: ${name}" for name in sorted(written))
    query = query.replace("$input: RecordEncounterInput!", declared).replace("input: $input", f"input: {{ {given} }}")
    return query, variables | members


async def test_plans_and_the_executor_answer_any_recording_alike(clinic: Service, known: Known) -> None:
    loop = asyncio.get_running_loop()
    own = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f-]{21}")

    async def compare_recordings(query: str, variables: dict[str, Any], token: str) -> None:
        body = json.dumps({"query": query, "variables": variables})
        headers = SAME_ID | {"content-type": "application/json"}
        planned = await clinic.rest("POST", "/graphql", token=token, content=body, headers=headers)
        # A new key, because the second request must not be a replay of the first.
        other = body if variables["key"] == "two words" else body.replace(str(variables["key"]), str(uuid4()))
        with without_plans():
            executed = await clinic.rest("POST", "/graphql", token=token, content=other, headers=headers)
            again = await clinic.rest("POST", "/graphql", token=token, content=body, headers=headers)
        replayed = await clinic.rest("POST", "/graphql", token=token, content=body, headers=headers)
        if variables["key"]:
            assert again.content == replayed.content
        assert planned.status_code == executed.status_code
        assert own.sub(b"id", planned.content) == own.sub(b"id", executed.content), (query, variables)

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(recordings(known), st.sampled_from(TOKENS))
    def ask(document: tuple[str, dict[str, Any]], token: str) -> None:
        asyncio.run_coroutine_threadsafe(compare_recordings(*document, token=token), loop).result(60)

    await asyncio.to_thread(ask)


async def test_a_refused_recording_is_attempted_once(
    clinic: Service, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    async def refuse(*_: object) -> Any:
        tried.append(1)
        raise TemporarilyUnavailable

    monkeypatch.setattr(schema.plans.record_plan, "record_encounter", refuse)
    monkeypatch.setattr(schema.mutations, "record_encounter", refuse)
    query = """mutation ($patient: ID!, $input: RecordEncounterInput!) {
      recordEncounter(patientId: $patient, input: $input) { __typename } }"""
    variables = {"patient": known.patients[0], "input": {"brandId": "loop", "encounterType": "LAB"}}

    body = await clinic.graphql(query, variables, token="recorder")

    assert body["errors"][0]["extensions"]["code"] == "temporarily_unavailable"
    assert tried == [1]


FRAGMENTS = {
    "...problem": " fragment problem on Problem { __typename c: code message recorded }",
    "...broken": """ fragment broken on InvalidInput {
      violations { __typename path rule message allowed minimum maximum received { __typename type length } }
      v: violations { ... on Violation { r: received { t: type } } } }""",
}
BROKEN = [
    Violation("/notes", "too_long", "must be shorter", ("a", "b"), 0, 5, Shape("string", 9)),
    Violation("/idempotency_key", "idempotency_key", "must be visible"),
    Violation("/metadata/secret", "json", "must be JSON", received=Shape("null")),
]
# The first two are of reading an answer; the union has no member for the others, because recording raises none of them.
NOT_OF_RECORDING = {AnswerTooLarge, AnswerMemoryFull, EncounterNotFound, IllegalTransition, StaleVersion}
FAILURES = [
    *(instance_of(kind) for kind in KINDS if kind not in NOT_OF_RECORDING),
    InvalidInput(BROKEN),
    RuntimeError(),
]


@pytest.mark.parametrize(
    "asked",
    [
        "r: recordEncounter(patientId: $p, input: $i) { __typename }",
        "recordEncounter(patientId: $p, input: $i) { ...problem ... on InvalidInput { message } ...broken }",
        "recordEncounter(patientId: $p, input: $i) { ... on EncounterRecorded { replayed } }",
        """recordEncounter(patientId: $p, input: $i) { ...problem ... on RecordEncounterResult { ...broken } }
        recordEncounter(patientId: $p, input: $i) { ... on PatientNotFound { own: code } ... { __typename } }""",
        "... { ... on Mutation { recordEncounter(patientId: $p, input: $i) { ...broken ...problem } } }",
    ],
)
async def test_a_failed_recording_has_the_same_answer_both_ways(
    clinic: Service, known: Known, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    error: Exception
    tried = []

    async def fail(*_: object) -> Any:
        tried.append(error)
        raise error

    monkeypatch.setattr(schema.plans.record_plan, "record_encounter", fail)
    monkeypatch.setattr(schema.mutations, "record_encounter", fail)
    query = f"mutation ($p: ID!, $i: RecordEncounterInput!) {{ {asked} }}"
    query += "".join(text for spread, text in FRAGMENTS.items() if spread in asked)
    variables = {"p": known.patients[0], "i": {"brandId": "loop", "encounterType": "LAB"}}

    for error in FAILURES:
        await compare(clinic, query, variables, token="recorder")

        assert tried[-2:] == [error, error]
    assert len(tried) == 2 * len(FAILURES)


# EXPLAIN

PAGE = "query ($id: ID!) { patient(id: $id) { encounters(first: 5) { nodes { id notes } } } }"


async def explained(service: Service, query: str, variables: dict[str, Any], token: str) -> Any:
    """Return the extensions of a query that requests EXPLAIN."""
    sent = {"query": query, "variables": variables, "extensions": {"explain": True}}
    answer = await service.rest("POST", "/graphql", token=token, json=sent)
    assert answer.json()["data"]
    return answer.json().get("extensions")


async def test_in_development_mode_explain_returns_the_statement_and_its_plan(server_url: str) -> None:
    # Its own database: which index PostgreSQL chooses depends on the statistics of the table.
    url = await fresh_database(server_url)
    async with Service.running(Settings(database_url=url)) as running:
        connection = await asyncpg.connect(url)
        extensions = await explained(running, PAGE, {"id": await Cast(connection).patient()}, "dev")
        await connection.close()

    assert extensions["explain"]["statement"].startswith("SELECT 0 AS root")
    assert any("ix_encounters_patient_id_created_at_id" in line for line in extensions["explain"]["plan"])


async def test_a_query_without_a_plan_has_no_explain(service: Service) -> None:
    assert await explained(service, "{ __schema { queryType { name } } }", {}, "dev") is None


async def test_outside_development_mode_explain_is_ignored(database_url: str, cast: Cast) -> None:
    async def verify(token: str) -> Caller:
        return CALLERS[token]

    production = Settings(
        database_url=database_url,
        introspection_url="https://provider.example/introspect",
        introspection_client_id="gateway",
        introspection_client_secret=uuid4().hex,
    )
    async with Service.running(production, verify=verify) as running:
        assert await explained(running, PAGE, {"id": await cast.patient()}, "reader") is None
