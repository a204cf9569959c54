"""The roles of a private server: an owner of the tables, and a login for serving that owns nothing.

`docs/operators.md` has the same as SQL for an external server.
"""

from gateway.database.connection import connect
from gateway.database.database import APP_ROLE, RELAY_ROLE
from gateway.embedded_postgres.cluster import PrivatePostgres

DATABASE = "gateway"
OWNER = "gateway_owner"
LOGIN = "gateway"

ROLES = {OWNER: "LOGIN", LOGIN: "LOGIN", APP_ROLE: "NOLOGIN", RELAY_ROLE: "NOLOGIN"}


async def create_database(postgres: PrivatePostgres) -> None:
    """Create the database and its roles if they are missing."""
    connection = await connect(postgres.url())
    try:
        there = {row["rolname"] for row in await connection.fetch("SELECT rolname FROM pg_roles")}
        for role in ROLES.keys() - there:
            await connection.execute(f"CREATE ROLE {role} {ROLES[role]}")
        await connection.execute(f"GRANT {APP_ROLE}, {RELAY_ROLE} TO {LOGIN}")
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE):
            await connection.execute(f"CREATE DATABASE {DATABASE} OWNER {OWNER}")
        await connection.execute(f"GRANT pg_checkpoint TO {OWNER}")
    finally:
        await connection.close()
    connection = await connect(postgres.url(database=DATABASE))
    try:
        # For `gateway patients erase --rewrite`, which renews the write-ahead log.
        for function in ("pg_switch_wal()", "pg_ls_waldir()"):
            if not await connection.fetchval("SELECT has_function_privilege($1, $2, 'EXECUTE')", OWNER, function):
                await connection.execute(f"GRANT EXECUTE ON FUNCTION {function} TO {OWNER}")
    finally:
        await connection.close()
