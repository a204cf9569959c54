"""Copy the data of the private PostgreSQL into a cluster of the major version that the gateway has now.

Both servers run for the time of the copy: the earlier one by its own programs, the new one on a folder beside it. The
new cluster gets its name only after every table has been compared. The earlier cluster stays as it is.
"""
# ruff: noqa: S603 -- no command line contains external input

import asyncio
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from gateway.database.connection import connect
from gateway.embedded_postgres.cluster import (
    PrivatePostgres,
    earlier_versions,
    find_programs,
    major_version,
    sync_folder,
)
from gateway.embedded_postgres.os_account import PostgresUnavailable

# The gateway sets no options of columns. Debian's PostgreSQL 15.20 stores one on each column, `pg_attver`, that its
# dump contains and that PostgreSQL 18 does not know.
COLUMN_OPTIONS = re.compile(rb"ALTER (?:TABLE|VIEW|MATERIALIZED VIEW)(?: ONLY)? \S+ ALTER COLUMN \S+ SET \(.+\);\n")

Digest = tuple[int, str]
"""The number of rows of a table, and the sum of their hashes."""

LIST_DATABASES = "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY datname"
LIST_TABLES = """SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
WHERE relkind = 'r' AND nspname <> 'information_schema' AND nspname !~ '^pg_' ORDER BY 1"""
DIGEST = "SELECT count(*), coalesce(sum(('x' || left(md5(t::text), 15))::bit(60)::bigint), 0)::text FROM {} t"


def upgrade(data_dir: Path, programs: Path) -> str:
    """Copy the newest earlier cluster of the folder into one of this version. Return the folder that may be removed.

    Args:
        data_dir: Data folder, which no gateway uses.
        programs: Folder of the programs of the version that made the earlier cluster.

    Raises:
        PostgresUnavailable: The copy was not made. Nothing is changed.
    """
    home = data_dir.expanduser().resolve() / "postgres"
    theirs, ours = major_version(programs), major_version(find_programs())
    found = earlier_versions(home.parent)
    if ours in found:
        raise PostgresUnavailable(f"{home} has data of PostgreSQL {ours} already: nothing is to be upgraded.")
    if not found:
        raise PostgresUnavailable(f"{home} has no data of an earlier PostgreSQL.")
    if found[-1] != theirs:
        raise PostgresUnavailable(f"{home} has data of PostgreSQL {found[-1]}, but {programs} is version {theirs}.")
    with PrivatePostgres(home.parent, programs=programs.resolve()) as earlier:
        # The next start removes a folder with this name, so an interrupted copy leaves nothing.
        half_made = Path(tempfile.mkdtemp(dir=home, prefix=f"{ours}.new-"))
        # The account of the server must enter it.
        half_made.chmod(0o711)
        try:
            with PrivatePostgres(half_made) as new:
                _copy(earlier.url(), new.url())
                if asyncio.run(_digests(earlier.url())) != asyncio.run(_digests(new.url())):
                    raise PostgresUnavailable("The copy differs from the earlier data, and was removed.")
            (half_made / "postgres" / ours).rename(home / ours)
            sync_folder(home)
        finally:
            shutil.rmtree(half_made, ignore_errors=True)
    return str(home / theirs)


def _copy(source: str, target: str) -> None:
    """Send every role and database of one server to another. Raises `PostgresUnavailable`."""
    folder = find_programs()
    dump = [str(folder / "pg_dumpall"), *_connection(source)]
    load = [
        str(folder / "psql"),
        *_connection(target),
        "--no-psqlrc",
        "--quiet",
        "--set=ON_ERROR_STOP=1",
        "--output=/dev/null",
    ]
    # Errors are not shown: a line of psql may quote a row.
    with (
        subprocess.Popen(dump, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as dumping,
        subprocess.Popen(load, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as loading,
    ):
        assert dumping.stdout is not None
        assert loading.stdin is not None
        try:
            for line in _loadable(dumping.stdout):
                loading.stdin.write(line)
        except BrokenPipeError:
            dumping.kill()
    if dumping.returncode != 0 or loading.returncode != 0:
        raise PostgresUnavailable("The data could not be copied, and nothing was changed.")


def _loadable(dump: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a dump without the statements that a new cluster would refuse. Lines of rows stay."""
    in_rows = False
    for line in dump:
        if in_rows:
            in_rows = line != b"\\.\n"
        elif line == b"CREATE ROLE postgres;\n" or COLUMN_OPTIONS.fullmatch(line):
            continue
        else:
            in_rows = line.startswith(b"COPY ") and line.endswith(b" FROM stdin;\n")
        yield line


def _connection(url: str) -> list[str]:
    """Return the options of a client program for the URL of a private server."""
    (folder,) = parse_qs(urlsplit(url).query)["host"]
    return [f"--host={folder}", "--port=5432", "--username=postgres"]


async def _digests(url: str) -> Mapping[tuple[str, str], Digest]:
    """Return the digest of every table of every database."""
    digests = {}
    server = await connect(url)
    databases = [row["datname"] for row in await server.fetch(LIST_DATABASES)]
    await server.close()
    for name in databases:
        connection = await connect(urlsplit(url)._replace(path=f"/{name}").geturl())
        await connection.execute("SET TimeZone = 'UTC'; SET search_path = ''")
        for (table,) in await connection.fetch(LIST_TABLES):
            rows, digest = await connection.fetchrow(DIGEST.format(table))
            digests[name, table] = (rows, digest)
        await connection.close()
    return digests
