"""Preflight: inspect the database for readiness and safety, and report dangers before serving."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from gateway.database import citus
from gateway.database.database import APP_ROLE, RELAY_ROLE
from gateway.database.session import READ_ONLY, RELIED_ON, Session, UnusableSession, open_session
from gateway.settings import PREFIX, Settings, SettingsError

# The oldest and the newest PostgreSQL version that the tests run on.
OLDEST, NEWEST = 15, 18


class PreflightReport(NamedTuple):
    """The findings: dangers forbid serving, warnings should be fixed, and `gateway check` prints the facts."""

    dangers: list[str]
    warnings: list[str]
    facts: list[str]


# Settings that may lose an acknowledged record: name, dangerous values, and the harm.
DURABILITY = (
    ("fsync", {"off"}, "a power cut may destroy the whole database"),
    ("full_page_writes", {"off"}, "a power cut may destroy pages"),
    ("synchronous_commit", {"off"}, "a power cut may lose encounters that were acknowledged"),
)

# Settings that may write patient data into the server's log: name, safe values, and the harm.
PRIVACY = (
    ("log_error_verbosity", {"terse"}, "a refused row is written to the server's log"),
    ("log_parameter_max_length", {"0"}, "arguments of logged statements are written to the server's log"),
    ("log_parameter_max_length_on_error", {"0"}, "arguments of failed statements are written to the server's log"),
    ("log_min_error_statement", {"panic"}, "failed statements are written to the server's log"),
)

LOOKED_AT = [name for name, *_ in (*DURABILITY, *PRIVACY)] + [
    "server_encoding",
    "server_version_num",
    "transaction_read_only",
]


async def inspect_database(database_url: str) -> PreflightReport:
    """Inspect the server's settings and the role of the gateway.

    Raises:
        SettingsError: The session does not have the properties that the gateway relies on.
        OSError, asyncpg.PostgresError: The database refuses the connection.
    """
    try:
        # A second connection shows whether each connection has a session of its own.
        async with _session(database_url, APP_ROLE) as connection, _session(database_url, RELAY_ROLE):
            # Behind a pooler in transaction mode, the connection has the role in a transaction only.
            await connection.begin(None)
            found = await connection.fetchrow(
                f"SELECT {', '.join(f'current_setting({name!r}) AS {name}' for name in LOOKED_AT)},"  # noqa: S608 - names of this module
                " rolsuper OR rolbypassrls AS passes,"
                " EXISTS (SELECT FROM pg_tables WHERE schemaname = 'patient_graph' AND tableowner = rolname) AS owns"
                ", (SELECT reset_val FROM pg_settings WHERE name = 'row_security') AS row_security_of_login"
                " FROM pg_roles WHERE rolname = current_user"
            )
            is_citus = await citus.is_cluster(connection)
            nodes = await citus.nodes(connection) if is_citus else {}
            pending = await citus.pending(connection) if is_citus and all(nodes.values()) else 0
    except UnusableSession as error:
        raise SettingsError(f"{PREFIX}DATABASE_URL: {error}") from error
    assert found is not None
    dangers = [f"{name} is {found[name]}: {harm}" for name, bad, harm in DURABILITY if found[name] in bad]
    if found["server_encoding"] != "UTF8":
        dangers.append(f"the database's encoding is {found['server_encoding']}, not UTF8: it cannot store every text")
    if found["transaction_read_only"] == "on":
        dangers.append(READ_ONLY)
    if found["passes"] or found["owns"]:
        dangers.append(f"{APP_ROLE} owns the tables or bypasses row-level security: brands are not isolated")
    warnings = [
        f"{name} is {found[name]}, not {'/'.join(safe)}: {harm}"
        for name, safe, harm in PRIVACY
        if found[name] not in safe
    ]
    if found["row_security_of_login"] != "on":
        warnings.append("row_security is off for the login: the gateway enables it, but other programs read no rows")
    facts: list[str] = []
    if is_citus:
        away = [node for node, answers in nodes.items() if not answers]
        facts.append(
            f"Citus cluster: every table is distributed; {len(nodes) - len(away)} of {len(nodes)} nodes answer."
        )
        warnings += [f"the node {node} does not answer: its patients get 503" for node in away]
        if pending:
            warnings.append(
                f"{pending} transactions have been prepared for {citus.PENDING} and are not finished: requests with "
                "their keys get 503; see docs/cluster.md"
            )
        if not connection.cluster:
            dangers.append(f"the database is a Citus cluster: set {PREFIX}DATABASE_CLUSTER=true, or no row is visible")
    version = int(found["server_version_num"]) // 10_000
    if not OLDEST <= version <= NEWEST:
        warnings.append(f"PostgreSQL {version} is not a tested version ({OLDEST} to {NEWEST})")
    return PreflightReport(dangers, warnings, facts)


@asynccontextmanager
async def _session(database_url: str, role: str) -> AsyncIterator[Session]:
    session = await open_session(database_url, RELIED_ON, role)
    try:
        yield session
    finally:
        await session.close()


def refuse_dangers(dangers: Sequence[str], settings: Settings) -> None:
    """Return if there are no dangers, or if the settings allow an unsafe database. Raises `SettingsError`."""
    if dangers and not settings.database_unsafe:
        listed = "\n".join(f"  {danger}" for danger in dangers)
        raise SettingsError(
            f"the database is not safe for recording:\n{listed}\n"
            f"Correct this, or set {PREFIX}DATABASE_UNSAFE=true for tests."
        )
