"""MkDocs hooks: the site has the paths of the repository, so that relative links need no rewriting."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent.parent

OUTSIDE_DOCS = [
    *(page.name for page in ROOT.glob("*.md")),
    "bench/README.md",
    "deploy/grafana/encounter-gateway.json",
    "deploy/prometheus/rules.yaml",
    "resolvers/encounters/record.py",
    "rest/openapi.json",
    "schema/federated.graphql",
    "schema/schema.graphql",
    *(
        f"web/src/board/{name}"
        for name in ("board.tsx", "client.ts", "live.ts", "operations.graphql", "outbox.ts", "vault.ts")
    ),
]
"""Files outside `docs/` that pages link to. A link to a file that is missing here fails the build."""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Return the files of `docs/` under `docs/`, those of `OUTSIDE_DOCS` and those of the theme."""
    return Files(
        [
            file
            if file.src_dir != config.docs_dir
            else File.generated(config, f"docs/{file.src_uri}", abs_src_path=file.abs_src_path)
            for file in files
        ]
        + [File.generated(config, path, abs_src_path=str(ROOT / path)) for path in OUTSIDE_DOCS]
    )
