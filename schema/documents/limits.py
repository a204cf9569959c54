"""Static limits of a document, such as its length, depth and number of fields. They are measured before validation.

A fragment counts at every spread but is walked once. A document of exponential size is therefore measured in time
linear in its text. The number of objects that an operation may return depends on its variables; see `cost.py`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from graphql import (
    DefinitionNode,
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
)

from resolvers.rules import RuleId

# Hard limits of the process, which no setting can raise. MOST_LEVELS: each level of a response may be an object in a
# list, and orjson serializes 254 nested levels. MOST_NESTED: recursion over selections is bounded by the interpreter's
# stack.
MOST_LEVELS = 100
MOST_NESTED = 200
MOST_FIELDS = 100_000

# More directives than this at one location are abuse: only `@skip` and `@include` exist.
DIRECTIVES_AT_ONE_PLACE = 4

# Counts saturate here, because the counts of a malicious document could have thousands of digits.
SATURATED = 1_000_000_000

EXPLORING = frozenset({"__schema", "__type", "_service"})
"""Root fields that return the schema; `_service` is the one for a federation router."""


class LimitViolation(NamedTuple):
    """A limit that a document exceeds."""

    rule: RuleId
    limit: int
    found: int

    @property
    def message(self) -> str:
        """The measured count and the limit, as a sentence."""
        name = self.rule.replace("_", " ")
        found = f"{self.found:,}" if self.found < SATURATED else f"at least {SATURATED:,}"
        if self.rule == "depth":
            return f"The document is {found} levels deep; the limit is {self.limit:,}."
        return f"The document has {found} {name}; the limit is {self.limit:,}."


@dataclass(frozen=True, slots=True)
class DocumentLimits:
    """The maximum of each count. If they are not `enforced`, exceeding them is only logged."""

    characters: int = 65_536
    tokens: int = 2_000
    depth: int = 20
    fields: int = 1_000
    aliases: int = 50
    directives: int = 50
    root_fields: int = 50
    operations: int = 50
    enforced: bool = True

    def exceeded(self, extent: "DocumentStats") -> tuple[LimitViolation, ...]:
        """Return the limits that a document exceeds."""
        every = (
            LimitViolation("characters", self.characters, extent.characters),
            LimitViolation("tokens", self.tokens, extent.tokens),
            LimitViolation("depth", self.depth, extent.depth),
            LimitViolation("fields", self.fields, extent.fields),
            LimitViolation("aliases", self.aliases, extent.aliases),
            LimitViolation("directives", self.directives, extent.directives),
            LimitViolation("root_fields", self.root_fields, extent.root_fields),
            LimitViolation("operations", self.operations, extent.operations),
        )
        breaches = [each for each in every if each.found > each.limit]
        if extent.directives_at_one_place > DIRECTIVES_AT_ONE_PLACE and extent.directives <= self.directives:
            breaches.append(LimitViolation("directives", DIRECTIVES_AT_ONE_PLACE, extent.directives_at_one_place))
        return tuple(breaches)


@dataclass(slots=True)
class DocumentStats:
    """The counts of a document with its fragments expanded at every spread."""

    characters: int = 0
    tokens: int = 0
    depth: int = 0
    """Maximum nesting of fields."""
    nested: int = 0
    """Maximum nesting of selection sets, including those of fragments."""
    fields: int = 0
    """Number of fields that validation and execution visit. A fragment's fields count once per object spreading it."""
    aliases: int = 0
    directives: int = 0
    directives_at_one_place: int = 0
    root_fields: int = 0
    operations: int = 0
    root_names: set[str] = field(default_factory=set)
    explores: bool = False
    """Whether the document queries the schema."""

    @property
    def only_explores(self) -> bool:
        """Whether the document queries nothing but the schema and `__typename`."""
        return self.explores and self.root_names <= EXPLORING | {"__typename"}


class _Spread(NamedTuple):
    name: str
    level: int
    nested: int
    place: int
    """The number of the field's selection set that contains the spread, through inline fragments too."""


def document_stats(document: DocumentNode, characters: int = 0) -> DocumentStats:
    """Return the counts of a document, which need not be valid. Unknown fragments count 0, fragment cycles once."""
    fragments: dict[str, FragmentDefinitionNode] = {}
    for definition in document.definitions:
        if isinstance(definition, FragmentDefinitionNode):
            fragments.setdefault(definition.name.value, definition)
    own = {name: _own(fragment) for name, fragment in fragments.items()}
    full: dict[str, DocumentStats] = {}
    for name in _inner_first({name: spreads for name, (_, spreads) in own.items()}):
        full[name] = _with_fragments(*own[name], full)
    whole = DocumentStats(characters, document.token_count or 0)
    for definition in document.definitions:
        if isinstance(definition, OperationDefinitionNode):
            _widen(whole, _with_fragments(*_own(definition), full))
            whole.operations += 1
    # Validation refuses an unused fragment, but walks it first.
    for extent in full.values():
        whole.nested = max(whole.nested, extent.nested)
        whole.directives_at_one_place = max(whole.directives_at_one_place, extent.directives_at_one_place)
        whole.explores |= extent.explores
    return whole


def _own(definition: DefinitionNode) -> tuple[DocumentStats, list[_Spread]]:
    """Return the counts of a definition without its fragments, and its fragment spreads."""
    assert isinstance(definition, OperationDefinitionNode | FragmentDefinitionNode)
    extent, spreads = DocumentStats(), list[_Spread]()
    _count_directives(extent, definition)
    for variable in definition.variable_definitions or ():
        _count_directives(extent, variable)
    places = 0
    pending: list[tuple[SelectionSetNode, int, int, int]] = [(definition.selection_set, 0, 1, places)]
    while pending:
        selections, level, nested, place = pending.pop()
        extent.nested = max(extent.nested, nested)
        for selection in selections.selections:
            _count_directives(extent, selection)
            match selection:
                case FieldNode():
                    extent.depth = max(extent.depth, level + 1)
                    extent.fields += 1
                    extent.aliases += selection.alias is not None
                    extent.explores |= selection.name.value in EXPLORING
                    if level == 0:
                        extent.root_fields += 1
                        extent.root_names.add(selection.name.value)
                    if selection.selection_set:
                        places += 1
                        pending.append((selection.selection_set, level + 1, nested + 1, places))
                case InlineFragmentNode():
                    pending.append((selection.selection_set, level, nested + 1, place))
                case FragmentSpreadNode():
                    spreads.append(_Spread(selection.name.value, level, nested, place))
    return extent, spreads


def _count_directives(extent: DocumentStats, node: object) -> None:
    at_this_place = len(getattr(node, "directives", None) or ())
    extent.directives += at_this_place
    extent.directives_at_one_place = max(extent.directives_at_one_place, at_this_place)


def _inner_first(spreads: Mapping[str, list[_Spread]]) -> Iterator[str]:
    """Yield each fragment after the fragments that it spreads (post-order), without recursion.

    Within a cycle, the order depends on where the walk starts.
    """
    begun: set[str] = set()
    for root in spreads:
        path = [] if root in begun else [(root, iter(spreads[root]))]
        begun.add(root)
        while path:
            name, further = path[-1]
            spread = next((each for each in further if each.name in spreads and each.name not in begun), None)
            if spread is None:
                path.pop()
                yield name
            else:
                begun.add(spread.name)
                path.append((spread.name, iter(spreads[spread.name])))


def _with_fragments(extent: DocumentStats, spreads: list[_Spread], full: Mapping[str, DocumentStats]) -> DocumentStats:
    for spread, times in Counter(spreads).items():
        within = full.get(spread.name)
        if within is None:
            continue
        extent.depth = max(extent.depth, spread.level + within.depth)
        extent.nested = max(extent.nested, spread.nested + within.nested)
        extent.fields = min(extent.fields + within.fields, SATURATED)
        extent.aliases = min(extent.aliases + times * within.aliases, SATURATED)
        extent.directives = min(extent.directives + times * within.directives, SATURATED)
        if spread.level == 0:
            extent.root_fields = min(extent.root_fields + times * within.root_fields, SATURATED)
            extent.root_names |= within.root_names
    return extent


def _widen(whole: DocumentStats, operation: DocumentStats) -> None:
    """Add the counts of an operation to those of the document.

    Depths and root fields take the maximum, because only one operation is run. The other counts add up.
    """
    whole.depth = max(whole.depth, operation.depth)
    whole.nested = max(whole.nested, operation.nested)
    whole.fields = min(whole.fields + operation.fields, SATURATED)
    whole.aliases = min(whole.aliases + operation.aliases, SATURATED)
    whole.directives = min(whole.directives + operation.directives, SATURATED)
    whole.directives_at_one_place = max(whole.directives_at_one_place, operation.directives_at_one_place)
    whole.root_fields = max(whole.root_fields, operation.root_fields)
    whole.root_names |= operation.root_names
    whole.explores |= operation.explores
