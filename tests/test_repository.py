"""The hooks, the targets and the release of the repository agree with each other."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def test_the_commit_hooks_run_the_commands_of_make_check() -> None:
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert recipe
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook for hook in repository["hooks"] if "stages" not in hook]

    assert [hook["entry"] for hook in hooks] == [line.strip() for line in recipe[1].splitlines()]
    assert {(hook["language"], hook["pass_filenames"]) for hook in hooks} == {("system", False)}


@pytest.mark.parametrize(
    ("subject", "allowed"),
    [
        ("Add a metric", True),
        ("fixup! Add a metric", True),
        ("Ä" + "é" * 71, True),
        ("A" * 73, False),
        ("add a metric", False),
        ("Add a metric.", False),
        ("", False),
    ],
)
def test_a_commit_subject_is_short_capitalized_and_no_sentence(subject: str, allowed: bool, tmp_path: Path) -> None:
    message = tmp_path / "message"
    message.write_text(
        f"{subject}\n\nA body with a line that is longer than the seventy-two characters of a subject.\n"
    )

    ran = subprocess.run(["sh", ROOT / ".ci/commit-subject", message], check=False, capture_output=True)

    assert ran.returncode == (0 if allowed else 1)


def test_make_help_lists_every_described_target_under_a_group() -> None:
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    first, *groups = re.split(r"\n\n(?=\S)", listed)

    assert first == "Usage: make <target>"
    assert [group.partition("\n")[0] for group in groups] == re.findall(r"^##@ (.+)$", MAKEFILE, re.MULTILINE)
    assert re.findall(r"^  (\S+)", listed, re.MULTILINE) == re.findall(r"^([\w-]+):.*  ## ", MAKEFILE, re.MULTILINE)


def test_the_changelog_begins_with_unreleased_and_the_current_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    unreleased, newest, *_ = re.findall(r"^## (.+)$", CHANGELOG, re.MULTILINE)

    assert unreleased == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d", newest)


def test_the_changelog_has_the_sections_of_keep_a_changelog() -> None:
    sections = set(re.findall(r"^### (.+)$", CHANGELOG, re.MULTILINE))

    assert sections <= {"Broken", "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
