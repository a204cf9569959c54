"""An LRU cache of parsed documents, bounded by their estimated total size in bytes."""

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

MAX_KEPT_BYTES = 64 * 1024 * 1024
"""Bytes; maximum size of the cache in each process."""


class Weighed(Protocol):
    """An object that can estimate its size."""

    def weight(self, text: str) -> int:
        """Estimate the size in bytes, including the text."""


D = TypeVar("D", bound=Weighed)


class KeptDocuments(Generic[D]):
    """An LRU cache. A document's size is estimated again at each lookup, because its plans grow with use."""

    def __init__(self, most_bytes: int = MAX_KEPT_BYTES) -> None:
        self._most_bytes = most_bytes
        self._documents: OrderedDict[str, tuple[D, int]] = OrderedDict()
        self.weight = 0
        """The estimated bytes of all cached documents."""

    def __len__(self) -> int:
        """Return the number of cached documents."""
        return len(self._documents)

    def __contains__(self, text: str) -> bool:
        """Whether the document of this text is cached."""
        return text in self._documents

    def find(self, text: str) -> D | None:
        """Return the document of this text, or None if it is not cached."""
        if text not in self._documents:
            return None
        document, _ = self._documents[text]
        self.keep(text, document)
        return document

    def keep(self, text: str, document: D) -> None:
        """Cache a document, and evict the least recently used ones beyond the maximum size."""
        _, before = self._documents.pop(text, (None, 0))
        weight = document.weight(text)
        self._documents[text] = (document, weight)
        self.weight += weight - before
        while self.weight > self._most_bytes:
            _, (_, freed) = self._documents.popitem(last=False)
            self.weight -= freed
