"""The help of each command ends in examples, which the command accepts."""

import re
import shlex
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from gateway.cli import app


def commands(group: click.Group = app, *names: str) -> Iterator[tuple[str, ...]]:
    """Yield the names of each command and group, from `()` for `gateway` itself."""
    yield names
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        else:
            yield *names, name


COMMANDS = list(commands())


def examples_in_help(names: tuple[str, ...]) -> list[str]:
    """Return the lines that `gateway NAMES --help` prints after `Examples:`."""
    shown = CliRunner().invoke(app, [*names, "--help"])
    assert shown.exit_code == 0
    return [line.strip() for line in shown.output.partition("\n  Examples:\n")[2].splitlines() if line.strip()]


def accept(example: str) -> list[str]:
    """Parse the arguments of an example, without running it; return the command's names. Raises `click.UsageError`."""
    command_line = re.fullmatch(r"(?:GATEWAY_[A-Z_]+=\S+ )*gateway (.*?)(?: [<>] \S+)?", example)
    assert command_line, example
    command: click.Command = app
    names, words = [], shlex.split(command_line[1])
    while isinstance(command, click.Group):
        names.append(words.pop(0))
        command = command.commands[names[-1]]
    command.make_context(names[-1], words)
    return names


@pytest.mark.parametrize("names", COMMANDS, ids=lambda names: " ".join(("gateway", *names)))
def test_help_ends_in_examples_of_the_command_that_parse(names: tuple[str, ...]) -> None:
    examples = examples_in_help(names)

    assert 1 <= len(examples) <= 2
    for example in examples:
        assert accept(example)[: len(names)] == list(names) or names == ("canary",)


def test_a_wrong_example_is_found() -> None:
    with pytest.raises(click.UsageError):
        accept("gateway serve --fault 1")


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert CliRunner().invoke(app, ["--version"]).output == f"gateway {version('encounter-gateway')}\n"
