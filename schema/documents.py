"""Documents: from the text of a request to an operation that is known to be valid. Each text is worked on once."""

from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any, NamedTuple

from graphql import (
    SKIP,
    ASTValidationRule,
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLInputType,
    GraphQLSchema,
    GraphQLSyntaxError,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionNode,
    SelectionSetNode,
    ValueNode,
    VisitorAction,
    get_operation_ast,
    is_enum_type,
    is_input_object_type,
    is_list_type,
    is_non_null_type,
    is_required_input_field,
    parse,
    specified_rules,
    type_from_ast,
    validate,
)
from graphql.utilities import validate_input_literal, validate_input_value
from graphql.validation import UniqueInputFieldNamesRule, ValuesOfCorrectTypeRule

from resolvers import json_text
from resolvers.errors import InvalidInput, Violation

# Longer texts are not kept: nobody sends them twice, and a thousand of them would be a lot of memory.
MAX_KEPT_CHARACTERS = 20_000
MAX_KEPT_DOCUMENTS = 1_000

# An answer as deep as its document is still written: each level may be an object in a list, and orjson writes 254.
MAX_LEVELS = 100


class Document(NamedTuple):
    """A parsed text, and what is wrong with it; the errors quote no value."""

    ast: DocumentNode | None
    errors: tuple[GraphQLError, ...]


class Documents:
    """The documents of one schema."""

    def __init__(self, schema: GraphQLSchema) -> None:
        self._schema = schema
        self._kept = lru_cache(MAX_KEPT_DOCUMENTS)(self._read)

    def read(self, text: str) -> Document:
        """Parse and validate a document."""
        return self._kept(text) if len(text) <= MAX_KEPT_CHARACTERS else self._read(text)

    def _read(self, text: str) -> Document:
        try:
            ast = parse(text)
        except GraphQLSyntaxError as error:
            # The parser quotes what it stumbled over, which may be a patient's note cut off in the middle.
            return Document(
                None,
                (
                    GraphQLError(
                        "The document has a syntax error here.", source=error.source, positions=error.positions
                    ),
                ),
            )
        except RecursionError:
            return Document(None, (GraphQLError("The document is nested too deeply."),))
        errors = validate(self._schema, ast, RULES)
        # Only a valid document is sure to end: a fragment that contains itself does not.
        if not errors and _levels_of(ast) > MAX_LEVELS:
            return Document(ast, (GraphQLError(f"The document must not be nested deeper than {MAX_LEVELS} levels."),))
        return Document(ast, tuple(errors))


def _levels_of(document: DocumentNode) -> int:
    fragments = {each.name.value: each for each in document.definitions if isinstance(each, FragmentDefinitionNode)}

    def levels(selections: SelectionSetNode | None) -> int:
        return max((level(each) for each in selections.selections), default=0) if selections else 0

    def level(selection: SelectionNode) -> int:
        match selection:
            case FieldNode():
                return 1 + levels(selection.selection_set)
            case InlineFragmentNode():
                return levels(selection.selection_set)
            case FragmentSpreadNode():
                return of_fragment(selection.name.value)
        raise TypeError(f"not a selection: {type(selection).__name__}")

    @cache
    def of_fragment(name: str) -> int:
        return levels(fragments[name].selection_set)

    operations = [each for each in document.definitions if isinstance(each, OperationDefinitionNode)]
    return max((levels(each.selection_set) for each in operations), default=0)


class ValuesOfCorrectType(ValuesOfCorrectTypeRule):
    """The specified rule, in words that name the member and do not quote the value."""

    def is_valid_value_node(self, node: ValueNode, input_type: GraphQLInputType | None) -> VisitorAction:
        """Report where a value does not fit, and what would."""

        def report(error: GraphQLError, path: list[str | int]) -> None:
            rule = " ".join([".".join(map(str, path)), _wanted(_type_at(path, input_type))]).strip()
            # A list or an object where a scalar should be is reported on a copy that stands nowhere.
            self.report_error(
                GraphQLError(f"This value does not fit: {rule}.", error.nodes if error.locations else node)
            )

        if input_type:
            validate_input_literal(node, input_type, report)
        return SKIP


class UniqueInputFieldNames(UniqueInputFieldNamesRule):
    """The specified rule, in words that do not quote a name: within `metadata` it is as much a value as any."""

    def report_error(self, error: GraphQLError) -> None:
        """Report where a member is named again."""
        super().report_error(GraphQLError("An object must not name a member twice.", error.nodes))


OURS: dict[type[ASTValidationRule], type[ASTValidationRule]] = {
    ValuesOfCorrectTypeRule: ValuesOfCorrectType,
    UniqueInputFieldNamesRule: UniqueInputFieldNames,
}
RULES: tuple[type[ASTValidationRule], ...] = tuple(OURS.get(rule, rule) for rule in specified_rules)


def operation_of(document: DocumentNode, name: str | None) -> OperationDefinitionNode:
    """Choose the operation to run. Raises `InvalidInput` where there is none, or several and none is named."""
    operation = get_operation_ast(document, name)
    if operation is None:
        raise InvalidInput([Violation("/operationName", "operation", "must name one of the document's operations")])
    return operation


def explain_variables(
    schema: GraphQLSchema, operation: OperationDefinitionNode, variables: Mapping[str, Any]
) -> list[Violation]:
    """Say which variables do not fit their types, without quoting them."""
    violations: list[Violation] = []
    for definition in operation.variable_definitions or ():
        name = definition.variable.name.value
        input_type = type_from_ast(schema, definition.type)
        if name not in variables:
            if is_non_null_type(input_type) and definition.default_value is None:
                violations.append(Violation(f"/variables/{name}", "required", "is required"))
            continue

        def note(_error: GraphQLError, path: list[str | int], name: str = name, wanted: Any = input_type) -> None:
            violations.append(_violation(name, path, wanted, variables))

        validate_input_value(variables[name], input_type, note, True)  # type: ignore[arg-type]
    return violations


def _violation(name: str, path: list[str | int], wanted: Any, variables: Mapping[str, Any]) -> Violation:
    value: Any = variables[name]
    for step in path:
        value = value.get(step) if isinstance(value, dict) else value[step]
    wanted = _type_at(path, wanted)
    pointer = "".join(f"/{step}" for step in ("variables", name, *path))
    plain = _nullable(wanted)
    received = json_text.shape_of(value)
    if value is None:
        return Violation(pointer, "null", "must not be null", received=received)
    if is_input_object_type(plain) and isinstance(value, dict):
        missing = [
            field_name
            for field_name, field in plain.fields.items()
            if is_required_input_field(field) and field_name not in value
        ]
        if missing:
            return Violation(f"{pointer}/{missing[0]}", "required", "is required")
        told = f"must have no member that {plain.name} does not define"
        return Violation(pointer, "unknown_member", told, received=received)
    if is_enum_type(plain):
        return Violation(pointer, "enum", _wanted(wanted), allowed=tuple(plain.values), received=received)
    return Violation(pointer, "type", _wanted(wanted), received=received)


def _type_at(path: list[str | int], wanted: Any) -> Any:
    for step in path:
        wanted = _nullable(wanted)
        wanted = wanted.of_type if is_list_type(wanted) else wanted.fields[step].type
    return wanted


def _wanted(wanted: GraphQLInputType) -> str:
    plain = _nullable(wanted)
    if is_enum_type(plain):
        return f"must be one of: {', '.join(plain.values)}"
    return f"must be of type {plain}"


def _nullable(wanted: GraphQLInputType) -> GraphQLInputType:
    return wanted.of_type if is_non_null_type(wanted) else wanted
