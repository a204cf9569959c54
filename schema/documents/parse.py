"""Parse and validate documents, from the text of a request to a valid operation. Results are cached by text."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    is_non_null_type,
    parse,
    recommended_rules,
    specified_rules,
    type_from_ast,
    validate,
)
from graphql.validation import (
    OverlappingFieldsCanBeMergedRule,
    UniqueInputFieldNamesRule,
    ValuesOfCorrectTypeRule,
)

from resolvers.access import Exploring
from resolvers.errors import InvalidInput, Violation
from resolvers.rules import RuleId
from resolvers.spelling import near_miss
from schema.documents.cache import MAX_KEPT_BYTES, KeptDocuments
from schema.documents.input_values import MOST_FAULTS, faults_of_literal, faults_of_value, violation_of
from schema.documents.limits import (
    MOST_FIELDS,
    MOST_LEVELS,
    MOST_NESTED,
    DocumentLimits,
    LimitViolation,
    document_stats,
)
from schema.documents.operation import PreparedOperation
from schema.documents.overlapping_fields import conflicts_in
from schema.documents.rate_units import ONE_READ, RateUnits
from schema.documents.trusted import DocumentsPolicy, UntrustedManifest, normal_form, sha256_of

# Longer texts are not cached: they contain literal values and are unlikely to be sent again.
MAX_KEPT_CHARACTERS = 20_000

# Bytes, measured with tracemalloc: graphql-core's memory for a token and its node, and the first plan with its
# statement.
BYTES_OF_A_DOCUMENT = 32_768
BYTES_OF_A_TOKEN = 1_024

# Prefixes of graphql-core's messages when the parser stops at a limit.
TOO_MANY_TOKENS = "Syntax Error: Document contains more than"
NESTED_TOO_DEEPLY = "Syntax Error: Document is nested too deeply"

# graphql-core's suggestions of existing names. The hint that a field needs a selection set reveals nothing and stays.
HINT = re.compile(r" Did you mean (?!'\w+ \{ \.\.\. \}').*\?$")

MOST_ERRORS = 10
"""Maximum number of errors reported per document, because finding each costs more than validating a valid document."""
MANY_LINES = 2_000
"""Of a document with more lines, only one error is reported."""

TOO_DEEP = "The document is nested more deeply than any setting allows."
TOO_LARGE = "The document has more fields, with fragments expanded, than any setting allows."


class Document(NamedTuple):
    """A parsed document with its errors, which quote no values."""

    ast: DocumentNode | None
    errors: tuple[GraphQLError, ...] = ()
    """The errors of the document. Errors of the gateway's own rules have the rule's id in their extensions."""
    errors_with_hints: tuple[GraphQLError, ...] = ()
    """The same errors with suggestions of existing names, for callers who may introspect the schema."""
    breaches: tuple[LimitViolation, ...] = ()
    """The limits that the document exceeds."""
    explores: bool = False
    only_explores: bool = False
    trusted: bool = False
    """Whether the manifest contains the document, in any layout."""
    prepared: dict[str | None, PreparedOperation] | None = None
    """The operations by their requested names; None if the document cannot be run."""

    def operation(self, name: str | None) -> PreparedOperation:
        """Return the operation to run. Raise `InvalidInput` if `name` selects no single operation."""
        assert self.ast is not None, "the document can be run"
        assert self.prepared is not None, "the document can be run"
        if name not in self.prepared:
            node = get_operation_ast(self.ast, name)
            if node is None:
                raise InvalidInput(
                    [Violation("/operationName", "operation", "must name one of the document's operations")]
                )
            self.prepared[name] = PreparedOperation(self.ast, node)
        return self.prepared[name]

    def weight(self, text: str) -> int:
        """Estimate the memory of the cached document in bytes, with its text, operations and plans."""
        tokens = self.ast.token_count or 0 if self.ast else 0
        plans = sum(each.weight(tokens) for each in (self.prepared or {}).values())
        return BYTES_OF_A_DOCUMENT + 2 * sys.getsizeof(text) + BYTES_OF_A_TOKEN * tokens + plans

    def price(self, operation_name: str | None, variables: Mapping[str, Any]) -> RateUnits:
        """Return the rate units of the requested operation. A document that cannot be run counts as one read."""
        if self.ast is None or self.errors:
            return ONE_READ
        try:
            return self.operation(operation_name).pricing.price(variables)
        except InvalidInput:
            return ONE_READ


@dataclass(frozen=True, slots=True)
class DocumentRules:
    """The limits of documents, the access to introspection, and the trusted documents."""

    limits: DocumentLimits = DocumentLimits()
    exploring: Exploring = "open"
    manifest: Mapping[str, str] | None = None
    """The trusted documents by their ids; None if no manifest is configured."""
    policy: DocumentsPolicy = "log"


class Documents:
    """Parses and caches the documents of one schema. Raises `UntrustedManifest` for invalid trusted documents."""

    def __init__(self, schema: GraphQLSchema, rules: DocumentRules) -> None:
        self._schema = schema
        self._rules = rules
        self._kept = KeptDocuments[Document](MAX_KEPT_BYTES)
        self._named: dict[str, Document] = {}
        self._normal_forms: set[str] = set()
        self._most_characters = rules.limits.characters
        self._most_tokens = rules.limits.tokens
        self._trust(rules.manifest or {})

    def read(self, text: str) -> Document:
        """Return the parsed and validated document of a text, from the cache if possible."""
        document = self._kept.find(text)
        if document is None:
            document = self._read(text)
            if len(text) <= MAX_KEPT_CHARACTERS:
                self._kept.keep(text, document)
        return document

    def knows(self, text: str) -> bool:
        """Whether the document of this text is cached."""
        return text in self._kept

    def named(self, document_id: str) -> Document | None:
        """Return the trusted document with this id in the manifest or this SHA-256 of its text, or None."""
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
            # The limits before parsing must admit a trusted document that is sent in another layout.
            self._most_characters = max(self._most_characters, len(text))
            self._most_tokens = max(self._most_tokens, document.ast.token_count)
        if problems:
            raise UntrustedManifest(problems)

    def _read_trusted(self, text: str) -> Document:
        ast = _parsed(text, max_tokens=None)
        return ast if isinstance(ast, Document) else self._checked(ast, len(text), limits=None)

    def _read(self, text: str) -> Document:
        limits = self._rules.limits
        if limits.enforced and len(text) > self._most_characters:
            breach = LimitViolation("characters", self._most_characters, len(text))
            return refused(breach.message, breach.rule)
        ast = _parsed(text, max_tokens=self._most_tokens if limits.enforced else None)
        return ast if isinstance(ast, Document) else self._checked(ast, len(text), limits)

    def _checked(self, ast: DocumentNode, characters: int, limits: DocumentLimits | None) -> Document:
        """Check the limits, then validate. `limits` is None for a trusted document, which an operator has reviewed."""
        extent = document_stats(ast, characters)
        if extent.depth > MOST_LEVELS or extent.nested > MOST_NESTED:
            return refused(TOO_DEEP, "depth")
        if extent.fields > MOST_FIELDS:
            return refused(TOO_LARGE, "fields")
        trusted = limits is None or (bool(self._normal_forms) and normal_form(ast) in self._normal_forms)
        breaches = limits.exceeded(extent) if limits and not trusted else ()
        document = Document(ast, (), (), breaches, extent.explores, extent.only_explores, trusted, {})
        if limits and limits.enforced and breaches:
            return document._replace(errors=tuple(_error(each.message, each.rule) for each in breaches))
        errors = tuple(self._faults(ast))
        if not errors or self._rules.exploring == "off":
            return document._replace(errors=errors)
        return document._replace(errors=tuple(map(_without_hint, errors)), errors_with_hints=errors)

    def _faults(self, ast: DocumentNode) -> Sequence[GraphQLError]:
        """Return the validation errors, with suggestions of existing names unless introspection is off."""
        hides = self._rules.exploring == "off"
        # The check of overlapping fields runs last, because it assumes that all other rules hold.
        most = _most_errors(ast)
        return validate(self._schema, ast, RULES, most, hides) or conflicts_in(self._schema, ast, most)


def _most_errors(ast: DocumentNode) -> int:
    # graphql-core scans all lines to locate each error, which is slow for a document with many lines.
    text = ast.loc.source.body if ast.loc else ""
    return MOST_ERRORS if text.count("\n") + text.count("\r") <= MANY_LINES else 1


def _without_hint(error: GraphQLError) -> GraphQLError:
    """Return the error without suggestions of existing names, as graphql-core words it if suggestions are hidden."""
    plain = HINT.sub("", error.message)
    return error if plain == error.message else GraphQLError(plain, error.nodes)


def _parsed(text: str, max_tokens: int | None) -> DocumentNode | Document:
    """Return the AST of a text, or a document with the syntax error or the exceeded limit.

    `max_tokens` is None for no limit.
    """
    try:
        return parse(text, max_tokens=max_tokens)
    except GraphQLSyntaxError as error:
        if error.message.startswith(TOO_MANY_TOKENS):
            return refused(f"The document has more than {max_tokens:,} tokens, the maximum.", "tokens")
        if error.message.startswith(NESTED_TOO_DEEPLY):
            return refused(TOO_DEEP, "depth")
        # The parser's message quotes the unexpected token, which may contain part of a patient's note.
        located = GraphQLError("The document has a syntax error here.", source=error.source, positions=error.positions)
        return Document(None, (located,))


def refused(message: str, rule: RuleId, explained: str | None = None) -> Document:
    """Return a document that cannot be run.

    Args:
        message: The error's message.
        rule: The id of the violated rule.
        explained: The explanation for people; None if `message` is one already, and not a code for programs.
    """
    return Document(None, (_error(message, rule, explained),))


def _error(message: str, rule: RuleId, explained: str | None = None) -> GraphQLError:
    return GraphQLError(message, extensions={"rule": rule, "explained": explained or message})


class ValuesOfCorrectType(ValuesOfCorrectTypeRule):
    """The specification's rule, with messages that name the member and do not quote the value."""

    def is_valid_value_node(self, node: ValueNode, input_type: GraphQLInputType | None) -> VisitorAction:
        """Report each fault of a value with its path and the allowed values."""
        for fault in faults_of_literal(node, input_type) if input_type else ():
            fault_text = " ".join([".".join(map(str, fault.path)), fault.message]).strip()
            extensions = {"rule": fault.rule, "allowed": fault.allowed}
            self.report_error(GraphQLError(f"Invalid value: {fault_text}.", fault.found, extensions=extensions))
        return SKIP


class UniqueInputFieldNames(UniqueInputFieldNamesRule):
    """The specification's rule, with a message that quotes no name, because names within `metadata` are client data."""

    def report_error(self, error: GraphQLError) -> None:
        """Report a duplicate member."""
        super().report_error(GraphQLError("An object must not have two members of the same name.", error.nodes))


OURS: dict[type[ASTValidationRule], type[ASTValidationRule]] = {
    ValuesOfCorrectTypeRule: ValuesOfCorrectType,
    UniqueInputFieldNamesRule: UniqueInputFieldNames,
}
RULES: tuple[type[ASTValidationRule], ...] = tuple(
    OURS.get(rule, rule)
    for rule in (*specified_rules, *recommended_rules)
    # Replaced by `schema.documents.overlapping_fields`.
    if rule is not OverlappingFieldsCanBeMergedRule
)


def explain_variables(
    schema: GraphQLSchema, operation: OperationDefinitionNode, variables: Mapping[str, Any]
) -> list[Violation]:
    """Return the violations of variables that do not fit their types, without quoting values."""
    violations: list[Violation] = []
    for definition in operation.variable_definitions or ():
        name = definition.variable.name.value
        wanted = type_from_ast(schema, definition.type)
        if name in variables:
            faults = faults_of_value(variables[name], wanted)
            violations += [violation_of(fault, f"/variables/{name}") for fault in faults]
        elif is_non_null_type(wanted) and definition.default_value is None:
            message = "is required"
            if len(variables) <= MOST_FAULTS and near_miss(name, variables):
                message = "is required; a similar name was sent, but case and underscores matter"
            violations.append(Violation(f"/variables/{name}", "required", message))
    return violations[:MOST_FAULTS]
