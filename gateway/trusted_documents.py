"""Which documents are let in: settings become rules, and what is wrong with the manifest becomes a sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.settings import PREFIX, Settings, SettingsError
from schema.documents.limits import DocumentLimits
from schema.documents.parse import DocumentRules
from schema.documents.trusted import UntrustedManifest, read_manifest


def document_rules(settings: Settings) -> DocumentRules:
    """Say what a document may be, and read the manifest. Raises `UntrustedManifest`."""
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
        manifest=read_manifest(settings.documents) if settings.documents else None,
        policy=settings.documents_policy,
    )


@contextmanager
def trusted_plainly() -> Iterator[None]:
    """Turn what is wrong with the trusted documents into a `SettingsError` with a line for each."""
    try:
        yield
    except UntrustedManifest as error:
        told = "\n".join(f"  {problem}" for problem in str(error).splitlines())
        raise SettingsError(f"{PREFIX}DOCUMENTS: these cannot be served:\n{told}") from None
