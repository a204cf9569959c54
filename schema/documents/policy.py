"""Which document is run for whom: what its limits, the manifest of trusted documents and the explorer's policy say.

What a document is worth is read once and kept; here it is asked for each caller, and costs next to nothing.
"""

from collections.abc import Callable

from graphql import GraphQLSchema

from resolvers.access import Permission
from resolvers.context import Context
from schema.documents.limits import LimitViolation
from schema.documents.parse import Document, DocumentRules, Documents, refused
from schema.documents.trusted import sha256_of

LogBreach = Callable[[Context, LimitViolation], None]
"""Writes down that a limit would have refused what was asked for."""

LogUnknown = Callable[[Context, str], None]
"""Writes down that a document is in no manifest, by the SHA-256 of its text."""


class Admission:
    """Lets documents in. Raises `UntrustedManifest` when it is made with documents that the schema does not know."""

    def __init__(
        self, schema: GraphQLSchema, rules: DocumentRules, log_breach: LogBreach, log_unknown: LogUnknown
    ) -> None:
        self._rules = rules
        self._documents = Documents(schema, rules)
        self._log_breach = log_breach
        self._log_unknown = log_unknown

    def find(self, text: str | None, document_id: str | None, context: Context, *, apollo: bool = False) -> Document:
        """Find a document, with everything that keeps this caller from running it.

        A text beside the id of a trusted document is not looked at. `apollo` says that the id came as Apollo's clients
        send theirs. Raises `InsufficientScope` where the schema is asked for that this caller may not be told.
        """
        named = self._documents.named(document_id) if document_id is not None else None
        if named is not None:
            return self._as_told(named, context)
        if text is None:
            return self._unknown_id(apollo=apollo)
        document = self._as_told(self._documents.read(text), context)
        if document.only_explores and not document.errors:
            # An explorer cannot be asked to send the id of a question that is the same everywhere.
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
        """Whether a document need not be parsed, to be run or refused."""
        if document_id is not None and self._documents.named(document_id) is not None:
            return True
        return text is None or self._documents.knows(text)

    def log_if_measuring(self, breach: LimitViolation, context: Context) -> bool:
        """Write a limit that is passed down, if that is all that is to be done. Gives whether it was."""
        if not self._rules.limits.enforced:
            self._log_breach(context, breach)
        return not self._rules.limits.enforced

    def _as_told(self, document: Document, context: Context) -> Document:
        """Give the document as it is for this caller: who may not explore is told nothing of what exists."""
        if self._rules.exploring == "open" or (self._rules.exploring == "scoped" and context.may(Permission.EXPLORE)):
            return document._replace(errors=document.errors_with_hints) if document.errors_with_hints else document
        if not document.explores:
            return document
        if self._rules.exploring == "scoped":
            context.require(Permission.EXPLORE)
        return refused("This gateway does not tell its schema; `__typename` may be asked for.", "introspection")

    def _untrusted(self, document: Document) -> Document | None:
        if self._rules.policy == "enforce":
            return refused("Only trusted documents run here, and by their ids (policy: enforce).", "unknown_document")
        if self._rules.policy == "safelist" and not document.trusted:
            return refused("Only trusted documents run here (policy: safelist).", "unknown_document")
        return None

    def _unknown_id(self, *, apollo: bool) -> Document:
        explained = f"No trusted document has this id (policy: {self._rules.policy})."
        if self._rules.manifest is None:
            explained = "No trusted documents are named here, so none has an id."
        if not apollo:
            return refused(explained, "unknown_document")
        # Both words are Apollo's: at one its clients send the text, at the other they stop sending ids.
        word = "PersistedQueryNotSupported" if self._rules.manifest is None else "PersistedQueryNotFound"
        return refused(word, "unknown_document", explained)
