"""Trusted documents: read the manifest that lists them, and normalize documents for comparison.

Three forms of manifests are supported and detected by their content. Sources:

- The persisted query manifest of Apollo (`@apollo/generate-persisted-query-manifest`, version 1).
- The local persisting of relay-compiler, which writes one object from id to text.
- The same object from other tools.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeGuard

from graphql import DocumentNode, print_ast

from resolvers import json_text
from resolvers.errors import MalformedBody

DocumentsPolicy = Literal["log", "safelist", "enforce"]
"""Treatment of a document outside the manifest: `log` it or refuse it (`safelist`). `enforce` allows only ids."""


class UntrustedManifest(Exception):
    """The manifest is unusable. The message has one line for each problem."""

    def __init__(self, problems: Iterable[str]) -> None:
        super().__init__("\n".join(problems))


def read_manifest(path: Path) -> Mapping[str, str]:
    """Return the documents of a file, or of all `.json` files in a folder, by their ids. Raise `UntrustedManifest`."""
    documents: dict[str, str] = {}
    problems: list[str] = []
    for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
        try:
            for document_id, text in _documents_in(json_text.read(file.read_bytes())):
                if documents.setdefault(document_id, text) != text:
                    problems.append(f"{file.name}: the id {document_id} identifies two documents")
        except OSError as error:
            problems.append(f"{file.name}: cannot be read ({error.strerror})")
        except MalformedBody as error:
            problems.append(f"{file.name}: must be one JSON object ({error.violations[0].rule})")
        except ValueError as error:
            problems.append(f"{file.name}: {error}")
    if not documents and not problems:
        problems = [f"{path.name}: contains no document"]
    if problems:
        raise UntrustedManifest(problems)
    return documents


def _documents_in(manifest: Any) -> Iterator[tuple[str, str]]:
    """Yield each id with its text. Raise `ValueError` for an unsupported or malformed manifest."""
    match manifest:
        case {"format": "apollo-persisted-query-manifest", "version": 1, "operations": list(operations)}:
            pairs = [
                (each.get("id"), each.get("body")) if isinstance(each, dict) else (each, None) for each in operations
            ]
        case {"format": "apollo-persisted-query-manifest"}:
            raise ValueError("only version 1 of Apollo's manifests, with a list of operations, is supported")
        case dict():
            pairs = list(manifest.items())
        case _:
            raise ValueError("must be an object from id to text, or an Apollo manifest")
    for document_id, text in pairs:
        if not _is_text(document_id) or not _is_text(text):
            raise ValueError("each document must have an id and a text")
        yield document_id, text


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and value != "" and not json_text.problem_with(value)


def normal_form(document: DocumentNode) -> str:
    """Return the text of a document, normalized in layout and in the order of its definitions.

    Apollo's tool sorts the definitions in the manifest, but its client does not sort them in the request.
    """
    return "\n".join(sorted(map(print_ast, document.definitions)))


def sha256_of(text: str) -> str:
    """Return the SHA-256 of a text in hex, which Apollo's clients use as its id."""
    return hashlib.sha256(text.encode()).hexdigest()
