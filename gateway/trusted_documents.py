"""Rules for GraphQL documents from the settings, and errors of the trusted-documents manifest as `SettingsError`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from gateway.pages import BOARD_DOCUMENTS
from gateway.settings import PREFIX, Settings, SettingsError
from schema.documents.limits import DocumentLimits
from schema.documents.parse import DocumentRules
from schema.documents.trusted import UntrustedManifest, read_manifest


def document_rules(settings: Settings) -> DocumentRules:
    """Return the rules for documents, including the manifest. Raises `UntrustedManifest`."""
    return DocumentRules(
        limits=DocumentLimits(
            tokens=settings.max_tokens,
            characters=settings.max_characters,
            depth=settings.max_depth,
            fields=settings.max_fields,
            aliases=settings.max_aliases,
            directives=settings.max_directives,
            root_fields=settings.max_root_fields,
            operations=settings.max_operations,
            enforced=settings.limits == "enforce",
        ),
        exploring=settings.exploring,
        manifest=_manifest(settings),
        policy=settings.documents_policy,
    )


def _manifest(settings: Settings) -> Mapping[str, str] | None:
    """Return the documents of the settings and, if the board is served, those of the board."""
    if settings.documents is None:
        return None
    of_board = read_manifest(BOARD_DOCUMENTS) if settings.explorer_pages and BOARD_DOCUMENTS.is_file() else {}
    return {**of_board, **read_manifest(settings.documents)}


@contextmanager
def translate_manifest_errors() -> Iterator[None]:
    """Convert an `UntrustedManifest` into a `SettingsError` with one line for each problem."""
    try:
        yield
    except UntrustedManifest as error:
        listed = "\n".join(f"  {problem}" for problem in str(error).splitlines())
        raise SettingsError(f"{PREFIX}DOCUMENTS: these cannot be served:\n{listed}") from None
