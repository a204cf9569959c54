"""Documents: from the text of a request to an operation that is known to be valid. Each text is worked on once."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from graphql import (
    SKIP,
    ASTValidationRule,
    DocumentNode,
    GraphQLError,
    GraphQLInputType,
    GraphQLSchema,
    GraphQLSyntaxError,
    OperationDefinitionNode,
    ValueNode,
    VisitorAction,
    get_operation_ast,
    is_enum_type,
    is_input_object_type,
    is_list_type,
    is_non_null_type,
    is_required_input_field,
    parse,
    recommended_rules,
    specified_rules,
    type_from_ast,
    validate,
)
from graphql.utilities import validate_input_literal, validate_input_value
from graphql.validation import UniqueInputFieldNamesRule, ValuesOfCorrectTypeRule

from resolvers import json_text
from resolvers.access import Exploring
from resolvers.errors import InvalidInput, Violation
from resolvers.rules import RuleId
from schema.limits import MOST_LEVELS, MOST_NESTED, Breach, DocumentLimits, extent_of
from schema.prepared import Prepared
from schema.rates import ONE_READ, Price
from schema.trusted import DocumentsPolicy, UntrustedManifest, normal_form, sha256_of

# Longer texts are not kept: nobody sends them twice, and a thousand of them would be a lot of memory.
MAX_KEPT_CHARACTERS = 20_000
MAX_KEPT_DOCUMENTS = 1_000

# How graphql-core begins to say that it has stopped reading.
TOO_MANY_TOKENS = "Syntax Error: Document contains more than"
NESTED_TOO_DEEPLY = "Syntax Error: Document is nested too deeply"

TOO_DEEP = "The document is nested too deeply for this gateway, whatever its settings are."


class Document(NamedTuple):
    """A parsed text, and what is wrong with it; the errors quote no value."""

    ast: DocumentNode | None
    errors: tuple[GraphQLError, ...] = ()
    """Each names its rule in its extensions, where it has one of its own."""
    errors_with_hints: tuple[GraphQLError, ...] = ()
    """The same in words that suggest what exists, for those who may know what does."""
    breaches: tuple[Breach, ...] = ()
    """The limits it passes."""
    explores: bool = False
    only_explores: bool = False
    trusted: bool = False
    """Whether it is in the manifest, however it is laid out."""
    prepared: dict[str | None, Prepared] | None = None
    """Its operations by the names they were asked for by; None where there is nothing to run."""

    def operation(self, name: str | None) -> Prepared:
        """Choose the operation to run. Raises `InvalidInput` where there is none, or several and none is named."""
        assert self.ast is not None, "it can be run"
        assert self.prepared is not None, "it can be run"
        if name not in self.prepared:
            node = get_operation_ast(self.ast, name)
            if node is None:
                raise InvalidInput(
                    [Violation("/operationName", "operation", "must name one of the document's operations")]
                )
            self.prepared[name] = Prepared(self.ast, node)
        return self.prepared[name]

    def price(self, operation_name: str | None, variables: Mapping[str, Any]) -> Price:
        """Price the operation that is asked for. A document that cannot be run is one read."""
        if self.ast is None or self.errors:
            return ONE_READ
        try:
            return self.operation(operation_name).pricing.price(variables)
        except InvalidInput:
            return ONE_READ


@dataclass(frozen=True, slots=True)
class DocumentRules:
    """What a document may be, and who may know what can be asked."""

    limits: DocumentLimits = DocumentLimits()
    exploring: Exploring = "open"
    manifest: Mapping[str, str] | None = None
    """The trusted documents by their ids. None: nobody has named any."""
    policy: DocumentsPolicy = "log"


class Documents:
    """The documents of one schema. Raises `UntrustedManifest` for trusted ones that this schema does not know."""

    def __init__(self, schema: GraphQLSchema, rules: DocumentRules) -> None:
        self._schema = schema
        self._rules = rules
        self._kept = lru_cache(MAX_KEPT_DOCUMENTS)(self._read)
        self._named: dict[str, Document] = {}
        self._normal_forms: set[str] = set()
        self._most_tokens = rules.limits.tokens
        self._trust(rules.manifest or {})

    def read(self, text: str) -> Document:
        """Parse and validate a document."""
        return self._kept(text) if len(text) <= MAX_KEPT_CHARACTERS else self._read(text)

    def named(self, document_id: str) -> Document | None:
        """Find a trusted document by its id in the manifest, or by the SHA-256 of its text."""
        return self._named.get(document_id) or self._named.get(document_id.removeprefix("sha256:"))

    def _trust(self, manifest: Mapping[str, str]) -> None:
        problems = []
        for document_id, text in manifest.items():
            document = self._read_trusted(text)
            if document.ast is None or document.errors:
                problems += [f"{document_id}: {error.message}" for error in document.errors]
                continue
            self._named[document_id] = document
            self._named.setdefault(sha256_of(text), document)
            self._normal_forms.add(normal_form(document.ast))
            # Laid out otherwise, it must still be read far enough to be known again.
            self._most_tokens = max(self._most_tokens, document.ast.token_count)
        if problems:
            raise UntrustedManifest(problems)

    def _read_trusted(self, text: str) -> Document:
        ast = _parsed(text, max_tokens=None)
        return ast if isinstance(ast, Document) else self._checked(ast, limits=None)

    def _read(self, text: str) -> Document:
        limits = self._rules.limits
        ast = _parsed(text, max_tokens=self._most_tokens if limits.enforced else None)
        return ast if isinstance(ast, Document) else self._checked(ast, limits)

    def _checked(self, ast: DocumentNode, limits: DocumentLimits | None) -> Document:
        """Count, then validate. What has no limits is trusted: someone has looked at it."""
        extent = extent_of(ast)
        if extent.depth > MOST_LEVELS or extent.nested > MOST_NESTED:
            return refused(TOO_DEEP, "depth")
        trusted = limits is None or (bool(self._normal_forms) and normal_form(ast) in self._normal_forms)
        breaches = limits.passed_by(extent) if limits and not trusted else ()
        document = Document(ast, (), (), breaches, extent.explores, extent.only_explores, trusted, {})
        if limits and limits.enforced and breaches:
            return document._replace(errors=tuple(_error(each.message, each.rule) for each in breaches))
        errors = tuple(validate(self._schema, ast, RULES, hide_suggestions=True))
        if errors and self._rules.exploring != "off":
            return document._replace(errors=errors, errors_with_hints=tuple(validate(self._schema, ast, RULES)))
        return document._replace(errors=errors)


def _parsed(text: str, max_tokens: int | None) -> DocumentNode | Document:
    """Parse a text, or give the document that says why it cannot be."""
    try:
        return parse(text, max_tokens=max_tokens)
    except GraphQLSyntaxError as error:
        if error.message.startswith(TOO_MANY_TOKENS):
            return refused(f"The document has more than {max_tokens:,} tokens, which is the most.", "tokens")
        if error.message.startswith(NESTED_TOO_DEEPLY):
            return refused(TOO_DEEP, "depth")
        # The parser quotes what it stumbled over, which may be a patient's note cut off in the middle.
        said = GraphQLError("The document has a syntax error here.", source=error.source, positions=error.positions)
        return Document(None, (said,))


def refused(message: str, rule: RuleId, explained: str | None = None) -> Document:
    """Give a document that cannot be run. `explained` is for a person, where the message is for a program."""
    return Document(None, (_error(message, rule, explained),))


def _error(message: str, rule: RuleId, explained: str | None = None) -> GraphQLError:
    return GraphQLError(message, extensions={"rule": rule, "explained": explained or message})


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
RULES: tuple[type[ASTValidationRule], ...] = tuple(
    OURS.get(rule, rule) for rule in (*specified_rules, *recommended_rules)
)


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
