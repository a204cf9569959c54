"""Checks before serving, shared by `gateway serve` and `gateway check`."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import asyncpg

from gateway.auth.development import DEVELOPMENT_PATIENTS
from gateway.auth.discovery import Discovery
from gateway.auth.token_introspection import Introspection
from gateway.auth.verifier import discovery_of, introspection_of, key_set_of, reaching_provider
from gateway.database.citus import undistributed
from gateway.database.database import APP_ROLE, RELAY_ROLE
from gateway.database.inspection import inspect_database, refuse_dangers
from gateway.database.migrate import is_newest, migrate
from gateway.database.problems import translate_driver_errors
from gateway.database.session import open_session
from gateway.pages import built
from gateway.settings import PREFIX, Settings, SettingsError
from models.base import PROCESS_SCHEMA, SCHEMA
from resolvers.audit import PATIENT_ERASED
from resolvers.errors import InvalidToken, TemporarilyUnavailable

MAY_MIGRATE = """SELECT has_database_privilege(current_database(), 'CREATE')
AND NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = ANY($1) AND NOT pg_has_role(nspowner, 'USAGE'))
AND (rolcreaterole OR rolsuper OR (SELECT count(*) FROM pg_roles WHERE rolname = ANY($2)) = cardinality($2))
FROM pg_roles WHERE rolname = current_user"""


class PreflightResult(NamedTuple):
    """Result of `preflight`."""

    is_migrated: bool
    serves_all_callers: bool
    """False while the identity provider does not answer."""

    facts: Sequence[str]
    """A sentence for each endpoint that was discovered, and for a cluster."""


async def preflight(settings: Settings, warn: Callable[[str], None], *, changing: bool) -> PreflightResult:
    """Check the database, the pages and the identity provider. Raises `SettingsError` if the gateway cannot serve.

    Args:
        settings: They must name a database.
        warn: Called with a sentence for each problem that does not prevent serving.
        changing: Whether to migrate the database and, in development mode, register the demo patients, as `serve` does.
            If False, nothing is changed, and a database that is not migrated is not inspected further.
    """
    assert settings.database_url is not None
    asking = asyncio.create_task(ask_provider(settings))
    try:
        dangers: list[str] = []
        facts: list[str] = []
        if is_migrated := await _is_migrated(settings, changing=changing):
            with translate_driver_errors(f"{PREFIX}DATABASE_URL"):
                dangers, warnings, facts = await inspect_database(settings.serving_url)
            for each in warnings:
                warn(f"warning: {each}")
        else:
            facts = await _undistributed(settings.owner_url)
        if settings.explorer_pages and not built():
            warn("warning: the pages were not built at installation; run `make pages`")
        outages, discovered = await asking
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    for each in outages:
        warn(f"outage: {each}")
    refuse_dangers(dangers, settings)
    for each in dangers:
        warn(f"warning: {each} ({PREFIX}DATABASE_UNSAFE allows it)")
    return PreflightResult(is_migrated, serves_all_callers=not outages, facts=[*facts, *discovered])


async def _is_migrated(settings: Settings, *, changing: bool) -> bool:
    with translate_driver_errors(settings.owner_variable):
        is_migrated = await is_newest(settings.owner_url)
        if not is_migrated and not await _may_migrate(settings.owner_url):
            raise SettingsError(
                f"{settings.owner_variable}: the database is not migrated, and this login may not migrate it: it must "
                "be allowed to create schemas, and to create the roles gateway_app and gateway_relay unless they exist"
                "; or run `gateway migrate` as the owner"
            )
        if changing:
            await migrate(settings.owner_url)
            if settings.development:
                # A login that only serves registers none.
                with suppress(asyncpg.InsufficientPrivilegeError):
                    await _register_demo_patients(settings.owner_url)
    return is_migrated or changing


async def _may_migrate(owner_url: str) -> bool:
    connection = await open_session(owner_url)
    try:
        await connection.begin(None)
        return bool(await connection.fetchval(MAY_MIGRATE, [SCHEMA, PROCESS_SCHEMA], [APP_ROLE, RELAY_ROLE]))
    finally:
        await connection.close()


async def _undistributed(owner_url: str) -> list[str]:
    """Return a sentence that names the tables which a cluster does not distribute yet; for one server nothing."""
    connection = await open_session(owner_url)
    try:
        tables = await undistributed(connection)
    finally:
        await connection.close()
    return [f"Citus cluster: not distributed yet: {', '.join(tables)}."] if tables else []


async def _register_demo_patients(owner_url: str) -> None:
    """Insert the patients of the examples, unless they exist or were erased."""
    connection = await open_session(owner_url)
    try:
        async with connection.transaction():
            await connection.executemany(
                "INSERT INTO patient_graph.patients (id, brand_id) SELECT $1, $2 WHERE NOT EXISTS ("
                "SELECT FROM patient_graph.audit_log WHERE patient_id = $1 AND brand_id = $2 AND event_type = $3"
                ") ON CONFLICT DO NOTHING",
                [(patient_id, brand_id, PATIENT_ERASED) for patient_id, brand_id in DEVELOPMENT_PATIENTS.items()],
            )
    finally:
        await connection.close()


async def ask_provider(settings: Settings) -> tuple[list[str], list[str]]:
    """Send the identity provider the requests that the verifiers will send.

    Return a message for each request that fails, and a sentence for each endpoint that was discovered.
    """
    if settings.development:
        return [], []
    async with reaching_provider(settings) as provider:
        discovery = discovery_of(settings, provider, time)
        discovered = [] if discovery is None else await _discovered(settings, discovery)
        asked: dict[str, Awaitable[object]] = {}
        if (introspection := introspection_of(settings, provider, discovery, time)) is not None:
            is_set = settings.introspection_url is not None
            asked["INTROSPECTION_URL" if is_set else "OIDC_ISSUER (introspection)"] = _introspect(introspection)
        if (keys := key_set_of(settings, provider, discovery, time)) is not None:
            # No key has this id; the call succeeds if the key set could be fetched.
            asked["JWKS_URL" if settings.jwks_url is not None else "OIDC_ISSUER"] = keys.matching_keys(
                "RS256", "preflight"
            )
        answers = await asyncio.gather(*asked.values(), return_exceptions=True)
    outages = [
        f"{PREFIX}{variable}: the identity provider is unavailable or answers invalidly, so its tokens are refused "
        "with 503; the log line `identity provider` has the reason"
        for variable, answer in zip(asked, answers, strict=True)
        if isinstance(answer, TemporarilyUnavailable)
    ]
    return outages, discovered


async def _discovered(settings: Settings, discovery: Discovery) -> list[str]:
    """Return a sentence for each endpoint that is used because it was discovered."""
    with suppress(TemporarilyUnavailable):
        metadata = await discovery.metadata()
        endpoints = {
            "The key set": metadata.jwks_url if settings.jwks_url is None else None,
            "The introspection endpoint": (
                metadata.introspection_url if settings.introspects and settings.introspection_url is None else None
            ),
        }
        return [f"{name} was discovered: {url}" for name, url in endpoints.items() if url is not None]
    return []


async def _introspect(introspection: Introspection) -> None:
    # The provider does not know this token; a rejection proves that the provider answers.
    with suppress(InvalidToken):
        await introspection.verify("preflight")
