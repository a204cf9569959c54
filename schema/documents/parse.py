"""Documents: from the text of a request to an operation that is known to be valid. Each text is worked on once."""

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

# Longer texts are not kept: they hold values, and nobody sends them twice.
MAX_KEPT_CHARACTERS = 20_000

# Measured with tracemalloc: what graphql-core keeps of a token with its node, and the first plan with its statement.
BYTES_OF_A_DOCUMENT = 32_768
BYTES_OF_A_TOKEN = 1_024

# How graphql-core begins to say that it has stopped reading.
TOO_MANY_TOKENS = "Syntax Error: Document contains more than"
NESTED_TOO_DEEPLY = "Syntax Error: Document is nested too deeply"

# How graphql-core suggests what exists; that a field needs selections is no secret.
HINT = re.compile(r" Did you mean (?!'\w+ \{ \.\.\. \}').*\?$")

MOST_ERRORS = 10
"""How many errors of one document are told: to look for another costs more than to validate what has none."""
MANY_LINES = 2_000
"""Of a document with more, one error is told."""

TOO_DEEP = "The document is nested too deeply for this gateway, whatever its settings are."
TOO_LARGE = "The document has too many fields, fragments put in, for this gateway, whatever its settings are."


class Document(NamedTuple):
    """A parsed text, and what is wrong with it; the errors quote no value."""

    ast: DocumentNode | None
    errors: tuple[GraphQLError, ...] = ()
    """Each names its rule in its extensions, where it has one of its own."""
    errors_with_hints: tuple[GraphQLError, ...] = ()
    """The same in words that suggest what exists, for those who may know what does."""
    breaches: tuple[LimitViolation, ...] = ()
    """The limits it passes."""
    explores: bool = False
    only_explores: bool = False
    trusted: bool = False
    """Whether it is in the manifest, however it is laid out."""
    prepared: dict[str | None, PreparedOperation] | None = None
    """Its operations by the names they were asked for by; None where there is nothing to run."""

    def operation(self, name: str | None) -> PreparedOperation:
        """Choose the operation to run. Raises `InvalidInput` where there is none, or several and none is named."""
        assert self.ast is not None, "it can be run"
        assert self.prepared is not None, "it can be run"
        if name not in self.prepared:
            node = get_operation_ast(self.ast, name)
            if node is None:
                raise InvalidInput(
                    [Violation("/operationName", "operation", "must name one of the document's operations")]
                )
            self.prepared[name] = PreparedOperation(self.ast, node)
        return self.prepared[name]

    def weight(self, text: str) -> int:
        """Estimate how many bytes it takes to keep, with its text, its operations and their plans."""
        tokens = self.ast.token_count or 0 if self.ast else 0
        plans = sum(each.weight(tokens) for each in (self.prepared or {}).values())
        return BYTES_OF_A_DOCUMENT + 2 * sys.getsizeof(text) + BYTES_OF_A_TOKEN * tokens + plans

    def price(self, operation_name: str | None, variables: Mapping[str, Any]) -> RateUnits:
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
        self._kept = KeptDocuments[Document](MAX_KEPT_BYTES)
        self._named: dict[str, Document] = {}
        self._normal_forms: set[str] = set()
        self._most_characters = rules.limits.characters
        self._most_tokens = rules.limits.tokens
        self._trust(rules.manifest or {})

    def read(self, text: str) -> Document:
        """Parse and validate a document."""
        document = self._kept.find(text)
        if document is None:
            document = self._read(text)
            if len(text) <= MAX_KEPT_CHARACTERS:
                self._kept.keep(text, document)
        return document

    def knows(self, text: str) -> bool:
        """Whether a document was read, and is kept."""
        return text in self._kept

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
        """Count, then validate. What has no limits is trusted: someone has looked at it."""
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
        """Validate a document, with suggestions of what exists where somebody may be told them."""
        hides = self._rules.exploring == "off"
        # What can be merged is asked last: it takes for granted that all the rest is as it should be.
        most = _most_errors(ast)
        return validate(self._schema, ast, RULES, most, hides) or conflicts_in(self._schema, ast, most)


def _most_errors(ast: DocumentNode) -> int:
    # An error goes through all lines to find its own.
    text = ast.loc.source.body if ast.loc else ""
    return MOST_ERRORS if text.count("\n") + text.count("\r") <= MANY_LINES else 1


def _without_hint(error: GraphQLError) -> GraphQLError:
    """Give an error as it is told where suggestions are hidden, as graphql-core does: all but how to write a field."""
    plain = HINT.sub("", error.message)
    return error if plain == error.message else GraphQLError(plain, error.nodes)


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
        for fault in faults_of_literal(node, input_type) if input_type else ():
            told = " ".join([".".join(map(str, fault.path)), fault.message]).strip()
            extensions = {"rule": fault.rule, "allowed": fault.allowed}
            self.report_error(GraphQLError(f"This value does not fit: {told}.", fault.found, extensions=extensions))
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
    OURS.get(rule, rule)
    for rule in (*specified_rules, *recommended_rules)
    # `schema.documents.overlapping_fields` is in its place.
    if rule is not OverlappingFieldsCanBeMergedRule
)


def explain_variables(
    schema: GraphQLSchema, operation: OperationDefinitionNode, variables: Mapping[str, Any]
) -> list[Violation]:
    """Say which variables do not fit their types, without quoting them."""
    violations: list[Violation] = []
    for definition in operation.variable_definitions or ():
        name = definition.variable.name.value
        wanted = type_from_ast(schema, definition.type)
        if name in variables:
            faults = faults_of_value(variables[name], wanted)
            violations += [violation_of(fault, f"/variables/{name}") for fault in faults]
        elif is_non_null_type(wanted) and definition.default_value is None:
            told = "is required"
            if len(variables) <= MOST_FAULTS and near_miss(name, variables):
                told = "is required, and one of nearly this name was sent: case and underscores count"
            violations.append(Violation(f"/variables/{name}", "required", told))
    return violations[:MOST_FAULTS]
