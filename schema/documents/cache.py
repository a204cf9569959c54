"""Documents that were read and are kept: the ones asked for last, as far as they fit into so many bytes together."""

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

MAX_KEPT_BYTES = 64 * 1024 * 1024
"""In each process."""


class Weighed(Protocol):
    """What can be kept."""

    def weight(self, text: str) -> int:
        """Estimate how many bytes it takes, its text included."""


D = TypeVar("D", bound=Weighed)


class KeptDocuments(Generic[D]):
    """A cache, least recently used out first. A document is weighed again when it is found: its plans grow with use."""

    def __init__(self, most_bytes: int = MAX_KEPT_BYTES) -> None:
        self._most_bytes = most_bytes
        self._documents: OrderedDict[str, tuple[D, int]] = OrderedDict()
        self.weight = 0
        """Bytes of all, about."""

    def __len__(self) -> int:
        """Count the documents."""
        return len(self._documents)

    def __contains__(self, text: str) -> bool:
        """Whether a document is kept."""
        return text in self._documents

    def find(self, text: str) -> D | None:
        """Find a document by its text."""
        if text not in self._documents:
            return None
        document, _ = self._documents[text]
        self.keep(text, document)
        return document

    def keep(self, text: str, document: D) -> None:
        """Keep a document, and let go of what has not been asked for longest."""
        _, before = self._documents.pop(text, (None, 0))
        weight = document.weight(text)
        self._documents[text] = (document, weight)
        self.weight += weight - before
        while self.weight > self._most_bytes:
            _, (_, freed) = self._documents.popitem(last=False)
            self.weight -= freed
