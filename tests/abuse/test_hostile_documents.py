"""The cost of one document: about 50 ms of CPU at most to parse, validate, price and plan it."""

import gc
import sys
import time
from collections.abc import Callable, Iterable
from statistics import median

import pytest
from graphql import OperationDefinitionNode, parse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resolvers.paging import PageLimits
from schema import build_schema
from schema.documents.limits import DocumentLimits
from schema.documents.parse import Document, DocumentRules, Documents
from schema.plans.query_plan import plan_of

SCHEMA = build_schema()._schema
LIMITS = DocumentLimits()
MOST_YARDSTICKS = 10
"""50 ms where `YARDSTICK` takes 5 ms: a multiple is the same on a slow, busy or fast machine."""
MOST_CALLS = 250_000
"""Of functions in Python: unlike seconds, the same on every machine."""

PATIENT = 'patient(id: "x")'
RECORD = 'recordEncounter(patientId: "x", input: {brandId: "loop", encounterType: LAB%s}) { __typename }'
PROBLEMS = "{ ... on Problem { code } ... on InvalidInput { code message } }"
LINE, ESCAPED = "\r\n", "\\n"


def many(piece: str, tokens: int) -> str:
    """Repeat a piece of `tokens` tokens as often as a document may, with a different number for each `#`."""
    return " ".join(piece.replace("#", str(number)) for number in range((LIMITS.tokens - 40) // tokens))


def of_patient(selections: str) -> str:
    return f"{{ {PATIENT} {{ {selections} }} }}"


def where(members: str) -> str:
    return of_patient(f"encounters(where: {{{members}}}) {{ totalCount }}")


def listed(items: str) -> str:
    return f"{{ patients(ids: [{items}]) {{ id }} }}"


def metadata(value: str) -> str:
    return f"mutation {{ {RECORD % f', metadata: {value}'} }}"


def fragments(count: int, on: str, body: Callable[[int], str]) -> str:
    return "".join(f" fragment F{number} on {on} {{ {body(number)} }}" for number in range(count))


def spreads(numbers: Iterable[int]) -> str:
    return "id " + " ".join(f"...F{number}" for number in numbers)


def long(piece: str, but: int = 100) -> str:
    """Repeat a piece up to the largest length of a document."""
    return piece * ((LIMITS.characters - but) // len(piece))


HOSTILE = {
    "of the issue": of_patient("encounters(first: 1) { " + ("nodes { " + "patient { id } " * 10 + "} ") * 45 + "}"),
    "one field": of_patient("id " * (LIMITS.fields - 1)),
    "inline fragments": of_patient("... on Patient { id } " * 320),
    "deep inline fragments": of_patient("... { " * 150 + "id" + " }" * 150),
    "differing arguments": of_patient(many("encounters(first: #) { nodes { id } }", 12)),
    "one alias of differing fields": of_patient("encounters { " + "nodes { x: id x: notes } " * 24 + "}"),
    "a fragment in every field": of_patient("encounters { " + "nodes { ...F0 ...F0 } " * 30 + "}")
    + fragments(1, "Encounter", lambda _: "id notes status " * 10),
    "fragments that spread each other": of_patient("...F0")
    + fragments(12, "Patient", lambda number: spreads(range(number + 1, min(number + 3, 12)))),
    "fragments in a chain": "{ ...F0 }"
    + fragments(45, "Query", lambda n: f"{PATIENT} {{ id brandId }}" + (f" ...F{n + 1}" if n < 44 else "")),
    "circular fragments": of_patient("...F0")
    + fragments(40, "Patient", lambda number: spreads(m for m in range(40) if (number * m) % 4 == 1)),
    "unused fragments": "{ __typename }" + fragments(215, "Patient", lambda _: "id"),
    "spreads of unknown fragments": f"{{ {many('...X#', 2)} }}",
    "operations with one fragment": " ".join(f"query Q{number} {{ ...F0 }}" for number in range(LIMITS.operations))
    + fragments(1, "Query", lambda _: "__typename"),
    "operations with fragments": " ".join(f"query Q{number} {{ ...F0 }}" for number in range(LIMITS.operations))
    + fragments(100, "Query", lambda number: f"...F{number + 1}" if number < 99 else "__typename"),
    "variables": f"query ({many('$v#: ID', 4)}) {{ __typename }}",
    "one variable defined repeatedly": f"query ({many('$v: ID', 4)}) {{ __typename }}",
    "variables in a list": "query ("
    + " ".join(f"$v{number}: ID!" for number in range(240))
    + f") {listed(' '.join(f'$v{number}' for number in range(240)))}",
    "defaults": f"query ({many('$v#: EncounterFilter = {status: [LAB]}', 12)}) {{ __typename }}",
    "a type in brackets": f"query ($v: {'[' * 190}ID{']' * 190}) {{ __typename }}",
    "a list": listed(many("#", 1)),
    "a list of invalid items": listed(many("{}", 2)),
    "values of an enum": where(f"status: [{many('SCHEDULED', 1)}]"),
    "misspelt values of an enum": where(f"status: [{many('SCHEDULE', 1)}]"),
    "misspelt members": where(many("statu#: 1", 3)),
    "members of metadata": metadata(f"{{{many('k#: 1', 3)}}}"),
    "one member of metadata repeatedly": metadata(f"{{{many('k: 1', 3)}}}"),
    "deep metadata": metadata(f"{{k: {'[' * 180}{']' * 180}}}"),
    "misspelt fields": of_patient(many("encounter#", 1)),
    "long misspelt fields": of_patient(many(f"encounter{'x' * 17}#", 1)),
    "misspelt arguments": f"{{ patient({many('idd#: 1', 3)}) {{ id }} }}",
    "misspelt types": of_patient(many("... on Encounte# { id }", 6)),
    "outcomes": "mutation { "
    + " ".join(f"a{number}: {RECORD % ''}".replace("{ __typename }", PROBLEMS) for number in range(45))
    + " }",
    "directives": f"{{ {'__typename @skip(if: true) @include(if: true) ' * 25} }}",
    "introspection": f"{{ {'__schema { types { fields { type { ofType { name } } } } } ' * 49} }}",
    "pages": "{ "
    + " ".join(f"p{n}: {PATIENT} {{ encounters(first: {n}) {{ nodes {{ id }} totalCount }} }}" for n in range(49))
    + " }",
    "a long name": f"{{ {long('x')} }}",
    "commas": f"{{ __typename {long(',')} }}",
    "empty lines": f"{{ __typename {long(LINE)} }}",
    "empty lines before errors": f"{long(LINE, 1_000)} {{ {' '.join(f'x{number}' for number in range(40))} }}",
    "empty lines before a syntax error": f"{long(LINE)} (",
    "a string of escapes": f'{{ patient(id: "{long(ESCAPED)}") {{ id }} }}',
    "a block of lines": f'{{ patient(id: """{long("a" + LINE)}""") {{ id }} }}',
    "a number": of_patient(f"encounters(first: {long('1')}) {{ totalCount }}"),
    "a comment": f"{{ __typename #{long('é')}\n}}",
    "comments": "{ __typename " + "# x\n" * 1_950 + "}",
    "blocks": listed(('"""a' + "\n" * 20 + '""" ') * 1_900),
    "strings": listed(('"' + ESCAPED * 14 + '" ') * 1_900),
}


def work(documents: Documents, text: str) -> Document:
    """Do all work for a new document except its execution."""
    document = documents._read(text)
    if document.ast is not None and not document.errors:
        first = next(each for each in document.ast.definitions if isinstance(each, OperationDefinitionNode))
        name = first.name.value if first.name else None
        document.price(name, {})
        prepared = document.operation(name)
        prepared.costing.cost({}, PageLimits())
        plan_of(document.ast, prepared.node)
    return document


YARDSTICK = "{ " + "a(b: 1) { c } " * 200 + "}"
"""A plain document with about as many tokens as a document may have."""


def yardsticks_of(text: str) -> float:
    """Return the CPU time of a document as a multiple of the time to parse `YARDSTICK`: the median of some pairs."""
    documents = Documents(SCHEMA, DocumentRules(exploring="open"))
    ratios: list[float] = []
    # A gateway collects garbage once in some hundred requests.
    gc.disable()
    try:
        for tries in (3, 30):
            ratios += [cpu_seconds(work, documents, text) / cpu_seconds(parse, YARDSTICK) for _ in range(tries)]
            if median(ratios) < MOST_YARDSTICKS / 2:
                break
    finally:
        gc.enable()
    return median(ratios)


def cpu_seconds(function: Callable[..., object], *arguments: object) -> float:
    """Return the CPU seconds of a call."""
    began = time.thread_time()
    function(*arguments)
    return time.thread_time() - began


def calls_of(text: str) -> int:
    """Return the number of function calls."""
    documents = Documents(SCHEMA, DocumentRules(exploring="open"))
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work(documents, text)
    finally:
        sys.setprofile(before)
    return calls


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_document_within_the_limits_takes_50_ms(text: str) -> None:
    assert yardsticks_of(text) < MOST_YARDSTICKS
    assert calls_of(text) < MOST_CALLS


# Generated documents

NAMES = ["id", "notes", "brandId", "patient", "encounters", "nodes", "edges", "node", "nope", "__typename", "history"]
ARGUMENTS = ["", "", "", '(id: "x")', "(id: $v)", "(first: 1)", "(first: 2)", "(where: {status: [LAB]})", "(x: {y: 1})"]

MAX_REPEATED = 100_000
"""Characters of a selection up to which it is repeated."""


@st.composite
def selections(draw: st.DrawFn, levels: int) -> str:
    """Generate selections that repeat, alias, conflict and spread, valid or not."""
    written = []
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(["...F0", "...F1", "...F2", "... ", "... on Patient ", *NAMES, *NAMES]))
        if name.startswith("...F"):
            written.append(name)
            continue
        if not name.startswith("..."):
            name = draw(st.sampled_from(["", "", "a: ", "b: "])) + name + draw(st.sampled_from(ARGUMENTS))
        below = draw(selections(levels - 1)) if levels and draw(st.booleans()) else ""
        written.append(f"{name} {below or ('{ id }' if name.startswith('...') else '')}")
    text = " ".join(written)
    times = draw(st.sampled_from([1, 1, 2, 10, 100]))
    # Five levels that repeat 100 times each would take 10 GB.
    return "{ " + text * min(times, max(1, MAX_REPEATED // len(text))) + " }"


@st.composite
def documents(draw: st.DrawFn) -> str:
    operations = [f"query Q{number} ($v: ID!) {draw(selections(4))}" for number in range(draw(st.integers(1, 3)))]
    spread = [
        f"fragment F{number} on {on} {draw(selections(3))}"
        for number, on in enumerate(["Query", "Patient", "Encounter"])
    ]
    return " ".join(operations + spread) + draw(st.sampled_from(["", " # x"]))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=documents())
def test_no_document_costs_more_work_than_the_listed_ones(text: str) -> None:
    assert calls_of(text) < MOST_CALLS
