"""Decide whether a caller may run a document, by its limits, the trusted documents and the introspection policy.

Validation results are cached per document. The checks per caller in this module are cheap.
"""

from collections.abc import Callable

from graphql import GraphQLSchema

from resolvers.access import Permission
from resolvers.context import Context
from schema.documents.limits import LimitViolation
from schema.documents.parse import Document, DocumentRules, Documents, refused
from schema.documents.trusted import sha256_of

LogBreach = Callable[[Context, LimitViolation], None]
"""Logs that a limit was exceeded that is not enforced."""

LogUnknown = Callable[[Context, str], None]
"""Logs that the manifest does not contain a document, given the SHA-256 of its text."""


class Admission:
    """Admits or refuses documents. The constructor raises `UntrustedManifest` for invalid trusted documents."""

    def __init__(
        self, schema: GraphQLSchema, rules: DocumentRules, log_breach: LogBreach, log_unknown: LogUnknown
    ) -> None:
        self._rules = rules
        self._documents = Documents(schema, rules)
        self._log_breach = log_breach
        self._log_unknown = log_unknown

    def find(self, text: str | None, document_id: str | None, context: Context, *, apollo: bool = False) -> Document:
        """Return a document with its errors for this caller.

        Args:
            text: The document's text; ignored beside the id of a trusted document. None if only an id was sent.
            document_id: The id of a trusted document; None if only a text was sent.
            context: The caller's context.
            apollo: Whether the id came in the `persistedQuery` extension of Apollo's clients.

        Raises:
            InsufficientScope: The document introspects the schema without permission.
        """
        named = self._documents.named(document_id) if document_id is not None else None
        if named is not None:
            return self._for_caller(named, context)
        if text is None:
            return self._unknown_id(apollo=apollo)
        document = self._for_caller(self._documents.read(text), context)
        if document.only_explores and not document.errors:
            # GraphQL explorers send standard introspection queries as text, so these need not be trusted documents.
            return document
        if untrusted := self._untrusted(document):
            return untrusted
        if self._rules.manifest is not None and not document.trusted:
            self._log_unknown(context, sha256_of(text))
        if not self._rules.limits.enforced:
            for breach in document.breaches:
                self._log_breach(context, breach)
        return document

    def knows(self, text: str | None, document_id: str | None) -> bool:
        """Whether the document can be run or refused without parsing."""
        if document_id is not None and self._documents.named(document_id) is not None:
            return True
        return text is None or self._documents.knows(text)

    def log_if_measuring(self, breach: LimitViolation, context: Context) -> bool:
        """Log an exceeded limit if limits are not enforced. Return whether it was logged instead of enforced."""
        if not self._rules.limits.enforced:
            self._log_breach(context, breach)
        return not self._rules.limits.enforced

    def _for_caller(self, document: Document, context: Context) -> Document:
        """Return the document for this caller, with suggestions of existing names only if introspection is allowed."""
        if self._rules.exploring == "open" or (self._rules.exploring == "scoped" and context.may(Permission.EXPLORE)):
            return document._replace(errors=document.errors_with_hints) if document.errors_with_hints else document
        if not document.explores:
            return document
        if self._rules.exploring == "scoped":
            context.require(Permission.EXPLORE)
        return refused("Introspection is disabled; only `__typename` may be queried.", "introspection")

    def _untrusted(self, document: Document) -> Document | None:
        if self._rules.policy == "enforce":
            return refused("Only trusted documents are run, by their ids (policy: enforce).", "unknown_document")
        if self._rules.policy == "safelist" and not document.trusted:
            return refused("Only trusted documents are run (policy: safelist).", "unknown_document")
        return None

    def _unknown_id(self, *, apollo: bool) -> Document:
        explained = f"No trusted document has this id (policy: {self._rules.policy})."
        if self._rules.manifest is None:
            explained = "This gateway has no trusted documents; send the text of the document."
        if not apollo:
            return refused(explained, "unknown_document")
        # Apollo's error messages: at `PersistedQueryNotFound` its clients send the text, at
        # `PersistedQueryNotSupported` they stop sending ids.
        word = "PersistedQueryNotSupported" if self._rules.manifest is None else "PersistedQueryNotFound"
        return refused(word, "unknown_document", explained)
