"""Collect the fields of selection sets, through inline fragments and fragment spreads."""

from collections.abc import Callable, Mapping, Sequence

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    SelectionNode,
    SelectionSetNode,
)

Fragments = Mapping[str, FragmentDefinitionNode]
"""Fragment definitions by their names."""

Selections = Sequence[tuple[str, SelectionSetNode]]
"""Selection sets that are merged into one object, each with the name of the type that it is on."""


def fragments_of(document: DocumentNode) -> Fragments:
    """Return the fragments of a document."""
    return {each.name.value: each for each in document.definitions if isinstance(each, FragmentDefinitionNode)}


def collect_fields(
    selections: Selections, fragments: Fragments, includes: Callable[[SelectionNode, str], bool] | None = None
) -> dict[str, list[tuple[str, FieldNode]]]:
    """Return the fields of one object by response name, in document order, each with the type that it is selected on.

    Each fragment is visited once; otherwise nested spreads take exponential time. The recursion is as deep as the
    selection sets are nested, which `schema.documents.limits` bounds.
    Source: GraphQL specification, 6.3.2 "Field Collection".

    Args:
        selections: The selection sets of the object.
        fragments: The fragments of the document. Every fragment that is spread must exist.
        includes: Whether to include a selection, given the type that it or its fields are on. None includes all.
    """
    fields: dict[str, list[tuple[str, FieldNode]]] = {}
    visited: set[str] = set()

    def collect(type_name: str, selection_set: SelectionSetNode) -> None:
        for selection in selection_set.selections:
            match selection:
                case FieldNode():
                    if includes is None or includes(selection, type_name):
                        fields.setdefault((selection.alias or selection.name).value, []).append((type_name, selection))
                case InlineFragmentNode(type_condition=condition):
                    within = condition.name.value if condition else type_name
                    if includes is None or includes(selection, within):
                        collect(within, selection.selection_set)
                case FragmentSpreadNode() if (name := selection.name.value) not in visited:
                    fragment = fragments[name]
                    within = fragment.type_condition.name.value
                    if includes is None or includes(selection, within):
                        visited.add(name)
                        collect(within, fragment.selection_set)

    for type_name, selection_set in selections:
        collect(type_name, selection_set)
    return fields
