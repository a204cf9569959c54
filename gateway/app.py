"""The service on one screen: its routes, its middleware in order, and what lives as long as the process."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

import rest
import rest.errors
from gateway.auth import verify_development_token
from gateway.database import APP_ROLE, RELAY_ROLE, Database
from gateway.duties import Duty, do_duties, prune_keys
from gateway.edges import SecurityHeaders, cross_origin
from gateway.limits import BodyLimits
from gateway.settings import Settings, SettingsError
from gateway.telemetry import RequestLog, report
from resolvers.access import scopes_from
from resolvers.commands import InputLimits
from resolvers.context import Services, Verify
from resolvers.errors import GatewayError
from resolvers.paging import PageLimits
from rest.encounters import published
from schema import build_schema
from schema.endpoint import GraphQLEndpoint


def create_app(settings: Settings, verify: Verify | None = None) -> Starlette:
    """Build the service; `verify` in place of what the settings say. Nothing is connected until it starts."""

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[Mapping[str, Any]]:
        assert settings.database_url is not None, "whoever serves has found or started a database"
        url = settings.database_url.get_secret_value()
        patience = {
            "acquire_seconds": settings.database_acquire_seconds,
            "statement_seconds": settings.database_statement_seconds,
        }
        database = await Database.connect(url, role=APP_ROLE, size=settings.database_pool_size, **patience)
        relay = await Database.connect(url, role=RELAY_ROLE, size=2, **patience)
        duties = asyncio.create_task(do_duties(relay, [Duty("prune keys", prune_keys, pause_seconds=60)]))
        try:
            yield {"services": services(settings, database, verify or verifier(settings)), "started": time.monotonic()}
        finally:
            duties.cancel()
            await asyncio.gather(duties, return_exceptions=True)
            await relay.close()
            await database.close()

    app = Starlette(
        routes=[
            Route("/graphql", GraphQLEndpoint(build_schema(scopes_from(settings.scopes)), http_form, report)),
            *rest.routes,
        ],
        middleware=[
            Middleware(RequestLog),
            Middleware(SecurityHeaders),
            *([Middleware(cross_origin, origins=settings.browser_origins)] if settings.browser_origins else []),
            Middleware(BodyLimits, max_bytes=settings.max_body_bytes, seconds=settings.body_seconds),
        ],
        exception_handlers={GatewayError: rest.errors.phrase, HTTPException: rest.errors.phrase_http},
        lifespan=lifespan,
    )
    # A redirect would answer before anyone asked who calls.
    app.router.redirect_slashes = False
    return app


def services(settings: Settings, database: Database, verify: Verify) -> Services:
    """Put together what every request is lent."""
    return Services(
        verify=verify,
        database=database,
        published=published,
        scopes=scopes_from(settings.scopes),
        origins=settings.origins,
        input_limits=InputLimits(
            chief_complaint_characters=settings.chief_complaint_characters,
            notes_characters=settings.notes_characters,
            metadata_bytes=settings.metadata_bytes,
            metadata_levels=settings.metadata_levels,
        ),
        page_limits=PageLimits(settings.page_size, settings.page_size_max),
        keys_kept_for=timedelta(hours=settings.idempotency_hours),
    )


def verifier(settings: Settings) -> Verify:
    """Choose how tokens are verified. Raises `SettingsError`."""
    if not settings.development:
        raise SettingsError("GATEWAY_INTROSPECTION_URL, GATEWAY_JWKS_URL: real tokens are not verified yet")
    return verify_development_token


def http_form(error: GatewayError) -> tuple[int, Mapping[str, str]]:
    """Give a refusal's status and headers, which are HTTP's and so the same at both doors."""
    return rest.errors.status_of(error), rest.errors.headers_of(error)
