"""The rule on overlapping fields accepts and refuses the same documents as graphql-core's."""

import re
from collections.abc import Mapping

import pytest
from graphql import (
    DocumentNode,
    FragmentDefinitionNode,
    GraphQLSchema,
    build_schema,
    get_named_type,
    is_composite_type,
    parse,
    print_ast,
    specified_rules,
    validate,
)
from graphql.utilities import do_types_overlap
from graphql.validation import NoUnusedVariablesRule, OverlappingFieldsCanBeMergedRule
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import schema as ours
from schema.documents.overlapping_fields import conflicts_in

OTHERS = [rule for rule in specified_rules if rule not in {OverlappingFieldsCanBeMergedRule, NoUnusedVariablesRule}]
ABSTRACT = build_schema(
    """
    interface Node { id: ID!  next: Node  nexts: [Node] }
    interface Named implements Node { id: ID!  next: Named  nexts: [Named]  name: String  size(of: In): Int }
    type Cat implements Node & Named { id: ID!  next: Cat  nexts: [Cat]  name: String  size(of: In): Int  age: Int! }
    type Dog implements Node & Named { id: ID!  next: Dog  nexts: [Dog]  name: String  size(of: In): Int  age: String }
    type Cow implements Node { id: ID!  next: Node  nexts: [Node!]  age: Int  name: [String] }
    union Pet = Cat | Dog | Cow
    input In { a: Int  b: [String]  c: In  d: Boolean }
    type Query { node(id: ID): Node  pet: Pet  pets: [Pet!]  named: Named  cat: Cat }
    """
)
REAL = ours.build_schema()._schema
TYPES = ["Node", "Named", "Cat", "Dog", "Cow", "Pet"]
IN = ["", "{a: 1}", "{a: 1, b: []}", "{b: [], a: 1}", '{b: "x"}', '{b: """x"""}', "$in", "$other", "{d: true}", "null"]
ARGUMENTS = {"size": [f"(of: {each})" if each else "" for each in IN], "node": ["", "(id: 1)", '(id: "1")']}


def overlapping(name: str) -> list[str]:
    """Return the types that a fragment within a type may have."""
    parent = ABSTRACT.type_map[name]
    assert is_composite_type(parent)
    return [each for each in TYPES if do_types_overlap(ABSTRACT, parent, ABSTRACT.type_map[each])]  # type: ignore[arg-type]


@st.composite
def selections(draw: st.DrawFn, name: str, fragments: Mapping[str, str], levels: int = 4) -> str:
    """A selection set of few names, so that they often overlap."""
    fields = {"__typename": None, **getattr(ABSTRACT.type_map[name], "fields", {})}
    spreads = [each for each, on in fragments.items() if name in overlapping(on)]
    written = []
    for _ in range(draw(st.integers(1, 4))):
        match draw(st.sampled_from(["field", "field", "field", "inline", "spread"])):
            case "inline" if levels > 1 and name != "Query":
                condition = draw(st.sampled_from(overlapping(name)))
                written.append(f"... on {condition} {draw(selections(condition, fragments, levels - 1))}")
            case "spread" if spreads:
                written.append(f"...{draw(st.sampled_from(spreads))}")
            case _:
                field = draw(st.sampled_from(sorted(fields)))
                kind = None if field == "__typename" else get_named_type(fields[field].type)
                alias = draw(st.sampled_from(["", "", "", "x: ", "id: "]))
                below = ""
                if is_composite_type(kind):
                    below = "{ __typename }" if levels == 1 else draw(selections(kind.name, fragments, levels - 1))
                written.append(f"{alias}{field}{draw(st.sampled_from(ARGUMENTS.get(field, [''])))} {below}")
    return "{ " + " ".join(written) + " }"


@st.composite
def documents(draw: st.DrawFn) -> str:
    first, second = (draw(st.sampled_from(TYPES)) for _ in "FG")
    within_g = draw(selections(second, {}, 3))
    within_f = draw(selections(first, {"G": second}, 3))
    root = draw(selections("Query", {"F": first, "G": second}))
    return f"query ($in: In, $other: In) {root} fragment F on {first} {within_f} fragment G on {second} {within_g}"


def refused_by_each(schema: GraphQLSchema, text: str) -> tuple[bool, bool]:
    """Return whether our rule and graphql-core's refuse a document that satisfies every other rule."""
    document = parse(text)
    used = set(re.findall(r"\.\.\.([FGPQAB])\b", text.split(" fragment ", maxsplit=1)[0]))
    for _ in range(3):
        for each in document.definitions:
            if isinstance(each, FragmentDefinitionNode) and each.name.value in used:
                used |= set(re.findall(r"\.\.\.([FGPQAB])\b", print_ast(each)))
    # Another rule refuses unused fragments.
    kept = [
        each for each in document.definitions if not isinstance(each, FragmentDefinitionNode) or each.name.value in used
    ]
    document = DocumentNode(definitions=tuple(kept))
    if validate(schema, document, OTHERS):
        return False, False
    by_graphql_core = validate(schema, document, [OverlappingFieldsCanBeMergedRule])
    return bool(conflicts_in(schema, document, 10)), bool(by_graphql_core)


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=documents())
def test_the_rule_refuses_exactly_what_graphql_core_refuses(text: str) -> None:
    by_ours, by_graphql_core = refused_by_each(ABSTRACT, text)

    assert by_ours == by_graphql_core


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("{ pet { ... on Cat { x: id } ... on Dog { x: name } } }", True),  # ID! and String
        ("{ pet { ... on Cat { x: name } ... on Dog { x: age } } }", False),
        ("{ pet { ... on Cat { age } ... on Dog { age } } }", True),
        ("{ named { ... on Cat { x: size(of: {a: 1}) } ... on Dog { x: size(of: {a: 2}) } } }", False),
        ("{ named { x: size(of: {a: 1}) ... on Dog { x: size(of: {a: 2}) } } }", True),
        ("{ named { next { x: name } ... on Cat { next { x: id } } } }", True),
        ("{ pet { ... on Cat { next { x: name } } ... on Dog { next { x: id } } } }", True),
        ("{ pet { ... on Cat { next { x: name } } ... on Dog { next { x: age } } } }", False),
        ("{ cat { ...A ...B } } fragment A on Cat { next { id } } fragment B on Cat { next { id: name } }", True),
        ("{ cat { x: next { id } x: nexts { id } } }", True),
        ("{ __schema { types { name kind } } __schema { types { name } } }", False),
        ('{ __type(name: "Cat") { name } __type(name: "Dog") { name } }', True),
        ("{ pet { ... on Cat { id } ... on Dog { id: __typename } ... on Cow { id } } }", False),
        ("{ pet { ... on Cat { x: __typename } ... on Dog { x: id } ... on Cow { x: age } } }", True),
        ("{ cat { size(of: {a: 1, d: true}) size(of: {d: true, a: 1}) } }", False),
        ('{ cat { size(of: {b: ["1"]}) size(of: {b: "1"}) } }', True),
    ],
)
def test_the_rule_decides_the_known_cases(text: str, refused: bool) -> None:
    assert refused_by_each(ABSTRACT, text) == (refused, refused)


REAL_PARTS = [
    'patient(id: "x") { id }', 'patient(id: "y") { id }', 'patient(id: "x") { ...P }', "p: patient(id: $id) { ...P }",
    "p: patient(id: $id) { brandId encounters(first: 1) { nodes { x: notes } } }", "...Q",
    'patient: encounter(id: "x") { id }', 'encounter(id: "x") { patient { ...P } }',
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    root=st.lists(st.sampled_from(REAL_PARTS), min_size=1, max_size=4),
    within=st.lists(st.sampled_from(["id", "x: id", "x: brandId", "encounters { nodes { x: id } }"]), min_size=1),
)
def test_the_rule_agrees_with_graphql_core_on_the_served_schema(root: list[str], within: list[str]) -> None:
    text = (
        f"query ($id: ID!) {{ {' '.join(root)} }} fragment P on Patient {{ {' '.join(within)} }} "
        'fragment Q on Query { patient(id: "x") { ...P } }'
    )

    by_ours, by_graphql_core = refused_by_each(REAL, text)

    assert by_ours == by_graphql_core


def test_a_conflict_is_reported_with_both_locations() -> None:
    [error] = conflicts_in(REAL, parse('{ patient(id: "x") { a: id\n a: brandId } }'), 10)

    assert error.message.startswith("Fields 'a' conflict because 'id' and 'brandId' are different fields.")
    assert [(each.line, each.column) for each in error.locations or ()] == [(1, 22), (2, 2)]
