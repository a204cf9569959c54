"""`gateway check` and `gateway serve` report each fault by the same sentence."""

import asyncio
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg
import httpx2
import pytest

from gateway.database.migrate import migrate
from tests.conftest import create_database, fresh_database
from tests.database.test_connection_url import closed_port
from tests.forked_gateway import ForkedGateway
from tests.gateways import ROOT, Gateway
from tests.identity_provider import IdentityProvider, claims, jwt, signing_key
from tests.process.test_preflight import run
from tests.waiting import wait_until

UNSAFE = {"GATEWAY_DATABASE_UNSAFE": "true"}
COMMANDS = [["migrate"], ["patients", "import", "-"], ["encounters", "import", "-"], ["audit", "verify"]]
COMMANDS += [["events", "status"], ["events", "replay", "--sink", "webhook"]]


@asynccontextmanager
async def as_superuser(server_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(server_url)
    try:
        yield connection
    finally:
        await connection.close()


async def refused_by_both(url: str | None, **settings: str) -> str:
    """Assert that both refuse with the same sentence; return it."""
    checked, served = await run("check", url, **UNSAFE | settings), await run("serve", url, **UNSAFE | settings)
    for code, output in (checked, served):
        assert code == 1, output
        assert "Traceback" not in output
    sentence = served[1].removeprefix("gateway: ").strip()
    assert sentence.count("\n") == 0, sentence
    assert sentence in checked[1]
    return sentence


async def test_the_public_url_is_printed_or_refused(server_url: str) -> None:
    url = await create_database(server_url)

    code, output = await run("check", url, **UNSAFE, GATEWAY_PUBLIC_URL="http://localhost:8080/gateway")

    assert code == 0
    assert "GATEWAY_PUBLIC_URL=http://localhost:8080/gateway\n" in output
    assert "\nClients use http://localhost:8080/gateway/.\n" in output
    for command in ("check", "serve"):
        code, output = await run(command, url, **UNSAFE, GATEWAY_PUBLIC_URL="http://localhost/gateway/?token=secret")
        assert (code, output) == (
            1,
            "gateway: GATEWAY_PUBLIC_URL: must not contain a user name, a password, a query or a fragment\n",
        )


async def test_an_unmigrated_database_is_reported_as_migrated_by_serve(server_url: str) -> None:
    url = await create_database(server_url)

    code, output = await run("check", url, **UNSAFE)

    assert code == 0
    assert re.search(r"must be migrated to \d{4}; `gateway serve`", output)
    await migrate(url)
    code, output = await run("check", url, **UNSAFE)
    assert code == 0
    assert "The database is ready to be served.\n" in output


async def test_a_database_of_a_newer_revision_is_refused(server_url: str) -> None:
    url = await fresh_database(server_url)
    async with as_superuser(url) as connection:
        await connection.execute(
            "UPDATE gateway.alembic_version SET version_num = '9998';"
            "UPDATE gateway.schema_revision SET version_num = '9999'"
        )

    sentence = await refused_by_both(url)

    assert "was migrated by a newer gateway (revision 9999; this one knows up to " in sentence
    for command in COMMANDS[:3]:
        code, output = await run_command(command, url)
        assert code == 1
        assert output.splitlines() == [f"gateway: {sentence}"]


async def run_command(command: list[str], url: str) -> tuple[int, str]:
    environment = os.environ | {"GATEWAY_DATABASE_URL": url} | UNSAFE
    process = ForkedGateway(command, env=environment)
    output = await asyncio.to_thread(process.output)
    return process.wait(), output


async def test_an_unmigrated_database_is_refused_if_the_login_cannot_migrate(server_url: str) -> None:
    url = await create_database(server_url)
    login = await create_login(server_url)

    code, output = await run("check", as_user(url, login))
    served = await run("serve", as_user(url, login))

    assert code == served[0] == 1
    assert "GATEWAY_DATABASE_URL: the database is not migrated, and this login may not migrate it" in output
    assert "or run `gateway migrate` as the owner" in served[1]
    assert len(served[1].splitlines()) == 1


async def create_login(server_url: str, *granted: str) -> str:
    name = f"login_{os.urandom(6).hex()}"
    async with as_superuser(server_url) as connection:
        await connection.execute(f"CREATE ROLE {name} LOGIN")
        for role in granted:
            await connection.execute(f"GRANT {role} TO {name}")
    return name


def as_user(url: str, name: str) -> str:
    return re.sub("//[^@]*@", f"//{name}@", url)


@pytest.mark.parametrize("granted", [(), ("gateway_app",)])
async def test_a_login_that_is_not_a_member_of_both_roles_is_refused(server_url: str, granted: tuple[str, ...]) -> None:
    url = await fresh_database(server_url)
    login = await create_login(server_url, *granted)

    sentence = await refused_by_both(as_user(url, login), GATEWAY_DATABASE_OWNER_URL=url)

    assert "GATEWAY_DATABASE_URL: the database cannot be used (InsufficientPrivilegeError): rights" in sentence


FAULTS = {
    "no such database": (
        "{base}_none?{query}",
        "InvalidCatalogNameError): the server has no database of that name",
    ),
    "no such role": ("//nobody@", "InvalidAuthorizationSpecificationError): the login was refused"),
    "nothing listens": ("postgresql://me@127.0.0.1:{port}/db", "ConnectionRefusedError): no server listens"),
    "no socket": ("postgresql://me@/db?host=/nowhere", "FileNotFoundError): no server has a socket"),
    "no such setting": (
        "{base}?{query}&options=-cno_such%3D1",
        "UndefinedObjectError): a role or a setting in `options`",
    ),
    "a host without a name": ("postgresql://me@no.such.host.invalid/db", "gaierror): the host name cannot be resolved"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_refused_connection_is_reported_in_one_sentence(database_url: str, fault: str) -> None:
    form, expected = FAULTS[fault]
    with closed_port() as port:
        if form.startswith("//"):
            url = as_user(database_url, form[2:-1])
        else:
            base, _, query = database_url.partition("?")
            url = form.format(base=base, query=query, port=port)

        sentence = await refused_by_both(url)

    assert sentence.startswith("GATEWAY_DATABASE_URL: the database cannot be used (")
    assert expected in sentence


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://me:hunter2@/db?host=/nowhere&connect_timeout=2", r"the database cannot be used \(FileNotFoundE"),
        (
            "postgresql://me:hunter2@h/db?channel_binding=require",
            "GATEWAY_DATABASE_URL: channel_binding: ",
        ),
    ],
)
async def test_every_command_reports_the_fault_of_a_url(command: list[str], url: str, expected: str) -> None:
    code, output = await run_command(command, url)

    assert code == 1
    assert re.search(expected, output)
    assert [line for line in output.splitlines() if not line.startswith("{")] == [output.strip().splitlines()[-1]]
    assert "hunter2" not in output


async def test_read_only_commands_report_an_unmigrated_database(server_url: str) -> None:
    url = await create_database(server_url)

    for command in (["audit", "verify"], ["events", "status"]):
        code, output = await run_command(command, url)
        assert code == 1
        assert "gateway migrate" in output
        assert len(output.splitlines()) == 1


async def test_a_port_in_use_is_refused_by_both(database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sentence = await refused_by_both(database_url, GATEWAY_PORT=str(server.getsockname()[1]))

    assert sentence.startswith("GATEWAY_PORT: cannot listen on 127.0.0.1:")


# The identity provider: an outage is reported, and the gateway serves.


async def test_an_identity_provider_that_does_not_answer_is_an_outage(database_url: str) -> None:
    with closed_port() as port:
        keys = {
            "GATEWAY_JWKS_URL": f"http://127.0.0.1:{port}/keys",
            "GATEWAY_JWT_ISSUER": "https://id.test",
            "GATEWAY_JWT_AUDIENCE": "gateway",
        }
        tokens = {
            "GATEWAY_INTROSPECTION_URL": f"http://127.0.0.1:{port}/introspect",
            "GATEWAY_INTROSPECTION_CLIENT_ID": "gateway",
            "GATEWAY_INTROSPECTION_CLIENT_SECRET": "secret-of-ours",
        }

        code, output = await run("check", database_url, **UNSAFE | keys | tokens)

        assert code == 1
        assert "outage: GATEWAY_JWKS_URL: the identity provider is unavailable" in output
        assert "outage: GATEWAY_INTROSPECTION_URL: the identity provider is unavailable" in output
        assert "secret-of-ours" not in output
        gateway = Gateway.on(database_url, **keys)
        try:
            assert gateway.process.stdout is not None
            assert "REST" in await asyncio.to_thread(gateway.process.stdout.readline)
            assert "outage: GATEWAY_JWKS_URL: the identity provider is unavailable" in gateway.errors()
        finally:
            await asyncio.to_thread(gateway.end)


async def test_an_identity_provider_that_answers_is_no_outage(database_url: str, provider: IdentityProvider) -> None:
    settings = provider.settings(introspection=True)
    assert settings.introspection_client_secret is not None

    code, output = await run(
        "check",
        database_url,
        **UNSAFE,
        GATEWAY_INTROSPECTION_URL=str(settings.introspection_url),
        GATEWAY_INTROSPECTION_CLIENT_ID=str(settings.introspection_client_id),
        GATEWAY_INTROSPECTION_CLIENT_SECRET=settings.introspection_client_secret.get_secret_value(),
    )

    assert code == 0, output
    assert "outage" not in output


@pytest.mark.parametrize("has_database", [True, False], ids=["database", "embedded"])
async def test_the_check_prints_what_was_discovered(
    database_url: str, provider: IdentityProvider, tmp_path: Path, has_database: bool
) -> None:
    provider.keys = [signing_key("ES256", "one").jwk]
    issuer = {
        "GATEWAY_OIDC_ISSUER": provider.issuer,
        "GATEWAY_JWT_AUDIENCE": "gateway",
        "GATEWAY_DATA_DIR": str(tmp_path),
    }

    code, output = await run("check", database_url if has_database else None, **UNSAFE | issuer)

    assert code == 0, output
    assert f"\nThe key set was discovered: {provider.issuer}/jwks\n" in output
    assert "outage" not in output
    assert "Development mode" not in output


async def test_the_gateway_starts_without_its_issuer_and_answers_503(
    database_url: str, provider: IdentityProvider
) -> None:
    key = signing_key("ES256", "one")
    provider.keys = [key.jwk]
    token = jwt(key, claims(iss=provider.issuer, aud="gateway"))
    settings = {"GATEWAY_OIDC_ISSUER": provider.issuer, "GATEWAY_JWT_AUDIENCE": "gateway"}
    async with AsyncExitStack() as closing:
        client = await closing.enter_async_context(
            httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=30)
        )
        async with provider.unavailable():
            gateway = Gateway.on(database_url, **settings)
            closing.push_async_callback(asyncio.to_thread, gateway.end)
            assert gateway.process.stdout is not None
            origin = re.search(r"http://[\d.:]+", await asyncio.to_thread(gateway.process.stdout.readline))
            assert origin is not None, gateway.errors()
            assert "outage: GATEWAY_OIDC_ISSUER: the identity provider is unavailable" in gateway.errors()
            unavailable = await client.post(f"{origin[0]}/graphql", json={"query": "{ viewer { userId } }"})
        await wait_until(lambda: _is_served(client, origin[0]))

    assert (unavailable.status_code, unavailable.headers["content-type"][:16]) == (503, "application/json")
    assert unavailable.json()["errors"][0]["extensions"]["code"] == "temporarily_unavailable"


async def _is_served(client: httpx2.AsyncClient, origin: str) -> bool:
    answer = (await client.post(f"{origin}/graphql", json={"query": "{ viewer { userId } }"})).json()
    return bool(answer.get("data") == {"viewer": {"userId": "nurse-1"}})


# The data folder of an embedded PostgreSQL.


async def test_the_data_of_another_major_version_is_refused_by_both(tmp_path: Path) -> None:
    (tmp_path / "data/postgres/99").mkdir(parents=True)

    sentence = await refused_by_both(None, GATEWAY_DATA_DIR=str(tmp_path / "data"))

    assert "contains data of PostgreSQL 99, but this gateway has " in sentence


async def test_a_read_only_data_folder_is_refused_by_both(tmp_path: Path) -> None:
    (tmp_path / "a-file").touch()

    for folder in (tmp_path / "a-file", tmp_path / "a-file" / "data"):
        checked = await run("check", None, GATEWAY_DATA_DIR=str(folder))
        served = await run("serve", None, GATEWAY_DATA_DIR=str(folder))
        for code, output in (checked, served):
            assert code == 1
            assert f"PostgreSQL cannot use {folder}: " in output
            assert "Set GATEWAY_DATA_DIR to a writable folder" in output
        assert len(served[1].splitlines()) == 1


# Environments without a home, a user name or a writable folder.

ALONE = ["unshare", "--user", "--map-user=12345", "--map-group=12345", "env", "-u", "HOME", "-u", "XDG_DATA_HOME"]
READ_ONLY = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]


def can(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def run_in(command: list[str], **settings: str) -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment | {"GATEWAY_PORT": "0"} | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.skipif(not can([*ALONE, "true"]), reason="this machine does not allow user namespaces")
@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_user_without_name_and_home_is_referred_to_the_setting(command: str) -> None:
    gateway = [*ALONE, sys.executable, "-m", "gateway", command]

    code, output = run_in(gateway)
    assert code == 1
    assert "This user has no home folder for the data of a private PostgreSQL. Set GATEWAY_DATA_DIR" in output
    assert "Traceback" not in output

    code, output = run_in(gateway, GATEWAY_DATABASE_URL="postgresql://127.0.0.1/db")
    assert code == 1
    assert "the URL names no user, and the account of this process has no name" in output
    assert "Traceback" not in output


@pytest.mark.skipif(not can([*READ_ONLY, "mount -o remount,bind,ro /"]), reason="this machine does not allow mounts")
@pytest.mark.parametrize("command", ["check", "serve"])
def test_two_workers_without_a_writable_folder_need_tmpdir(command: str) -> None:
    mounts = "for each in / /tmp /var/tmp /dev/shm; do mount -o remount,bind,ro $each 2>/dev/null; done"

    code, output = run_in([*READ_ONLY, f"{mounts}; {sys.executable} -m gateway {command}"], GATEWAY_WORKERS="2")

    assert code == 1
    assert "no temporary folder is writable; set TMPDIR to a writable folder, or GATEWAY_WORKERS=1" in output
    assert "Traceback" not in output


@pytest.mark.skipif(not can([*READ_ONLY, "mount -t tmpfs x /mnt"]), reason="this machine does not allow mounts")
def test_a_full_disk_at_the_first_start_is_reported_in_one_sentence(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=5m x {tmp_path}"

    code, output = run_in([*READ_ONLY, f"{mount}; {sys.executable} -m gateway serve"], GATEWAY_DATA_DIR=f"{tmp_path}/d")

    assert code == 1
    assert re.fullmatch(r"gateway: PostgreSQL cannot use .*No space left on device.*\n", output)
