"""Plain technical English in docstrings, comments, pages and names of tests: words and constructions to avoid."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULES = [
    path
    for folder in (".ci", "bench", "deploy", "docs", "gateway", "models", "resolvers", "rest", "schema", "tests", "web")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not {"node_modules", ".venv"} & set(path.parts)
]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "bench/README.md"]
SCRIPTS = [ROOT / name for name in ("Makefile", "pyproject.toml", ".ci/run", ".ci/uv", ".ci/commit-subject")]
CONTRACTS = [ROOT / "schema/schema.graphql", ROOT / "rest/openapi.json"]

AVOIDED = {
    "an indefinite person": r"\b(whoever|whomever|nobody|no one|somebody|someone|anybody|everybody)\b",
    "a person without a noun": r"(^|[.;:] )who (asks|calls|comes|goes|has|is|may|reads|says|sends|takes)\b",
    "a clause in place of a noun": r"\bwhat is (already )?(there|here|said|left|kept|meant)\b",
    "an error or event that is told": r"\btold\b",
    "an archaism": r"\b(lest|hence|thereof|wherein|for good|for ever)\b",
    "a metaphor": r"\b(cellar|doorbell|goodbye|lends|lent|ordinary way|patience|porch|rehears\w+)\b",
    "a docstring that returns nothing": r"\A(Give|Lend|Say|Tell)\b",
}
MAX_WORDS = 35
"""In a sentence. The aim is 25; code counts as one word."""
MAX_TEST_NAME = 70


def docstrings_and_comments(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each docstring, and each block of comments, with its first line's number."""
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value
    block: list[str] = []
    start = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            start = start if block else token.start[0]
            block.append(token.string.lstrip("# "))
        elif token.type != tokenize.NL and block:
            yield start, " ".join(block)
            block = []


def faults_of(text: str) -> Iterator[str]:
    """Yield the avoided constructions of a text, and its sentences that are too long. Code is not examined."""
    plain = re.sub(r"```.*?```|`[^`]*`", "code", text, flags=re.DOTALL)
    plain = re.sub(r"^.*[├└│].*$|^ {4}(make|gateway) .*$", "", plain, flags=re.MULTILINE)
    for name, pattern in AVOIDED.items():
        for found in re.finditer(pattern, plain, re.IGNORECASE):
            yield f"{name}: {found[0]!r}"
    # A paragraph, an item of a list and a cell of a table each begin a sentence.
    for part in re.split(r"\n\s*\n|\n\s*(?:[-*]|\d+\.) |\n#|\||<br>|\n(?=>)", plain):
        for sentence in re.split(r"(?<=[.?!:])\s", part):
            if len(words := sentence.split()) > MAX_WORDS:
                yield f"{len(words)} words: {' '.join(words[:8])!r} …"


def test_docstrings_and_comments_are_plain() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{line}: {fault}"
        for path in MODULES
        for line, text in docstrings_and_comments(path)
        for fault in faults_of(text)
    ]

    assert not faults, "\n".join(faults)


def test_comments_of_scripts_are_plain() -> None:
    faults = [
        f"{path.relative_to(ROOT)}: {fault}"
        for path in SCRIPTS
        for block in re.findall(r"(?:^ *#.*\n)+", path.read_text(), re.MULTILINE)
        for fault in faults_of(re.sub(r"^ *#+@? ?", "", block, flags=re.MULTILINE))
    ]

    assert not faults, "\n".join(faults)


def test_pages_are_plain() -> None:
    faults = [f"{path.relative_to(ROOT)}: {fault}" for path in PAGES for fault in faults_of(path.read_text())]

    assert not faults, "\n".join(faults)


def test_descriptions_of_the_contracts_are_plain() -> None:
    faults = [
        f"{path.relative_to(ROOT)}: {fault}"
        for path in CONTRACTS
        for description in re.findall(r'"""(.*?)"""|"(?:description|summary)": "(.*?)"', path.read_text(), re.DOTALL)
        for fault in faults_of("".join(description))
    ]

    assert not faults, "\n".join(faults)


def test_names_of_tests_are_short() -> None:
    names = {
        node.name
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }

    assert {name for name in names if len(name) > MAX_TEST_NAME} == set()
