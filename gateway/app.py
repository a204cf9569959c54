"""Application factory: routes, middleware in order, and resources that live as long as the process."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from datetime import timedelta
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute

import rest
import rest.errors
from gateway.audit.buffer import AuditBuffer
from gateway.audit.chain_job import CHAIN_AUDIT, chaining
from gateway.auth.verifier import verifying
from gateway.database.database import APP_ROLE, RELAY_ROLE, Database, Timeouts
from gateway.database.node_monitor import NodeMonitor
from gateway.database.replicas import ReplicaSet
from gateway.events.pipeline import event_pipeline
from gateway.jobs import LeasedJob
from gateway.metrics_endpoint import metrics
from gateway.middleware.body_limits import BodyLimits
from gateway.middleware.cors import CrossOrigin
from gateway.middleware.fault_injection import FaultInjectionMiddleware
from gateway.middleware.public_path import PublicPath
from gateway.middleware.request_context import KnownHosts, RequestContextMiddleware
from gateway.observability.logs import HANDLER, log_breach, log_operation, log_unknown_document, report
from gateway.observability.metrics import PrometheusMetrics
from gateway.pages import explorer_for_browsers, page_routes
from gateway.rate_limits.limiter import RateLimits, network_of
from gateway.settings import LOOPBACK, Settings
from gateway.shutdown import GracefulShutdown
from gateway.trusted_documents import document_rules, translate_manifest_errors
from resolvers.access import Verify, scopes_from
from resolvers.answer_bytes import AnswerMemory
from resolvers.client_semaphores import Turns
from resolvers.commands import InputLimits
from resolvers.encounters.batcher import EncounterBatcher
from resolvers.errors import GatewayError, TooBroad
from resolvers.idempotency import prune_keys
from resolvers.paging import PageLimits
from resolvers.rate_limits import Rates
from resolvers.services import AuditSink, Feed, Services, Worklists
from rest.openapi import METRICS
from rest.public_url import PublicUrl
from schema import build_schema
from schema.execution import Runner
from schema.transport.http import GraphQLEndpoint
from schema.transport.long_lived import ConnectionLimit
from schema.transport.sse import StreamLimits
from schema.transport.websocket import GraphQLSocket, SocketLimits

WORKLIST_CONNECTIONS = 4
"""Connections of a process for worklists, apart from those of other requests."""

SHARDS = 32
"""Citus' default number of shards of a table."""

REQUESTS_FIRST_SECONDS = 0.25
"""Seconds from the start of a process to its first background job, so that the first requests are not delayed."""


def create_app(
    settings: Settings, verify: Verify | None = None, stop: GracefulShutdown | None = None, faults: int | None = None
) -> Starlette:
    """Return the application. Connections are opened when it starts, not here.

    Args:
        settings: They must name a database when the application starts.
        verify: Token verifier. None: the one that the settings configure.
        stop: Shutdown state, which the signal handlers change. None: a new one.
        faults: Seed of the fault injection. None: no faults.

    Raises:
        SettingsError: The trusted documents cannot be served.

    """
    stopping = stop or GracefulShutdown()
    tracer = None
    if settings.otlp_endpoint is not None:
        # Imported here, because the dependency is an optional extra.
        from gateway.observability.opentelemetry import OpenTelemetryTracer

        tracer = OpenTelemetryTracer(str(settings.otlp_endpoint), settings.trace_ratio)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[Mapping[str, Any]]:
        url = settings.serving_url
        timeouts: Timeouts = {
            "acquire_seconds": settings.database_acquire_seconds,
            "statement_seconds": settings.database_statement_seconds,
        }
        database, relay = await asyncio.gather(
            Database.connect(
                url,
                role=APP_ROLE,
                size=settings.database_pool_size,
                # Citus routes a statement by its arguments, so it must plan each execution.
                plans_once=not settings.database_cluster,
                long_answers=True,
                **timeouts,
            ),
            Database.connect(url, "relay", role=RELAY_ROLE, size=4, **timeouts),
        )
        monitor = None
        if settings.database_cluster:
            monitor = NodeMonitor(
                await Database.connect(url, "nodes", role=RELAY_ROLE, size=1, opens_first=False, **timeouts)
            )
        worklists = await Database.connect(
            url,
            "worklists",
            role=APP_ROLE,
            size=WORKLIST_CONNECTIONS,
            acquire_seconds=settings.database_acquire_seconds,
            statement_seconds=settings.worklist_seconds,
            long_answers=True,
            opens_first=False,
            late=TooBroad,
            is_node_away=monitor.is_node_away if monitor else None,
        )
        if tracer is not None:
            tracer.start()
        key = settings.audit_key.get_secret_value().encode() if settings.audit_key else b""
        jobs = [
            LeasedJob("prune keys", prune_keys, pause_seconds=60),
            LeasedJob(CHAIN_AUDIT, chaining(key), pause_seconds=5),
        ]
        rates = RateLimits.of(settings)
        try:
            async with (
                AuditBuffer.open(url, settings.audit_queue, **timeouts) as audit_sink,
                event_pipeline(settings, url, relay, jobs, REQUESTS_FIRST_SECONDS) as feed,
                nullcontext(verify) if verify else verifying(settings) as known,
                replicas_of(settings, url, database, worklists) as replicas,
            ):
                if replicas is not None:
                    # Read now: a change is answered with a marker even if the database is lost after it.
                    await feed.cursors()
                guarded = stopping.refuse_when_closed(known)
                shared = services(
                    settings,
                    database,
                    worklists=worklists,
                    replicas=replicas,
                    audit_sink=audit_sink,
                    feed=feed,
                    verify=guarded,
                    rates=rates,
                    traceparent=tracer.traceparent if tracer else None,
                )
                yield {
                    "services": shared,
                    "ping": database.ping,
                    "started": time.monotonic(),
                    "draining": stopping.draining,
                    "relay": relay,
                    "nodes": monitor.latest if monitor else lambda: None,
                }
        finally:
            if monitor is not None:
                await monitor.close()
            await rates.close()
            await relay.close()
            await worklists.close()
            await database.close()
            if tracer is not None:
                await tracer.close()
            # Flush the log here: a worker ends by the signal that stopped it, and runs no code after this.
            await asyncio.to_thread(HANDLER.flush)

    with translate_manifest_errors():
        schema = build_schema(scopes_from(settings.scopes), federated=settings.federation)
        runner = (tracer.runner if tracer else Runner)(
            schema,
            report,
            document_rules(settings),
            log_breach,
            log_unknown_document,
            explains=settings.development,
        )
    connection_limit = ConnectionLimit(
        settings.sockets_max,
        per_client=settings.sockets_max_per_client,
        unauthenticated=settings.sockets_unauthenticated_max,
        network_of=network_of,
    )
    door = GraphQLEndpoint(
        runner,
        http_form,
        limits=stream_limits(settings),
        connection_limit=connection_limit,
        log_operation=log_operation,
        batch_operations=settings.batch_operations,
    )
    public_url = PublicUrl(settings.public_origin, settings.public_path)
    app = Starlette(
        routes=[
            Route("/graphql", explorer_for_browsers(settings, door)),
            WebSocketRoute("/graphql", GraphQLSocket(runner, socket_limits(settings), connection_limit, log_operation)),
            *rest.routes,
            Route(METRICS, metrics),
            *page_routes(settings),
        ],
        middleware=[
            *([Middleware(PublicPath, url=public_url)] if settings.public_url else []),
            *([Middleware(tracer.middleware)] if tracer else []),
            Middleware(RequestContextMiddleware),
            *([Middleware(KnownHosts, hosts={*LOOPBACK, settings.host})] if settings.development else []),
            Middleware(CrossOrigin, origins=settings.allowed_origins, headers=settings.cors_headers),
            Middleware(BodyLimits, max_bytes=settings.max_body_bytes, seconds=settings.body_seconds),
            *([Middleware(FaultInjectionMiddleware, seed=faults)] if faults is not None else []),
        ],
        exception_handlers=rest.exception_handlers,
        lifespan=lifespan,
    )
    # A redirect would be sent before the caller is authenticated.
    app.router.redirect_slashes = False
    anchor(app.routes)
    return app


def anchor(routes: Iterable[BaseRoute]) -> None:
    r"""Replace the final `$` of each route's pattern with `\Z`.

    Starlette's `$` also matches before a final line break (`%0A`).
    """
    for route in routes:
        if isinstance(route, Route | WebSocketRoute | Mount) and route.path_regex.pattern.endswith("$"):
            route.path_regex = re.compile(route.path_regex.pattern[:-1] + r"\Z")


def replicas_of(
    settings: Settings, url: str, database: Database, worklists: Database
) -> AbstractAsyncContextManager[ReplicaSet | None]:
    """Poll the replicas of the settings during the block; None if the settings name none."""
    if not settings.read_urls:
        return nullcontext()
    return ReplicaSet.open(
        url,
        settings.read_urls,
        (database, worklists),
        size=settings.database_pool_size,
        worklist_size=WORKLIST_CONNECTIONS,
        acquire_seconds=settings.database_acquire_seconds,
        statement_seconds=settings.database_statement_seconds,
        worklist_seconds=settings.worklist_seconds,
        max_lag_seconds=settings.database_read_lag_seconds,
    )


def services(
    settings: Settings,
    database: Database,
    *,
    worklists: Database | None = None,
    replicas: ReplicaSet | None = None,
    audit_sink: AuditSink,
    feed: Feed,
    verify: Verify,
    rates: Rates,
    traceparent: Callable[[], str | None] | None = None,
) -> Services:
    """Return the services that every request uses."""
    keys_kept_for = timedelta(hours=settings.idempotency_hours)
    return Services(
        verify=verify,
        database=database,
        worklists=Worklists(worklists, Turns(WORKLIST_CONNECTIONS // 2), Turns(1), settings.worklist_seconds)
        if worklists
        else None,
        replicas=replicas,
        batcher=None
        if settings.database_cluster
        else EncounterBatcher(database, keys_kept_for, settings.database_acquire_seconds),
        audit_sink=audit_sink,
        feed=feed,
        scopes=scopes_from(settings.scopes),
        rates=rates,
        metrics=PrometheusMetrics(),
        traceparent=traceparent,
        origins=settings.allowed_origins,
        input_limits=InputLimits(
            chief_complaint_characters=settings.chief_complaint_characters,
            notes_characters=settings.notes_characters,
            reason_characters=settings.reason_characters,
            metadata_bytes=settings.metadata_bytes,
            metadata_levels=settings.metadata_levels,
        ),
        page_limits=PageLimits(settings.page_size, settings.page_size_max, SHARDS if settings.database_cluster else 0),
        max_cost=settings.max_cost,
        answers=AnswerMemory(settings.max_answer_bytes, settings.answer_memory_bytes),
        keys_kept_for=keys_kept_for,
        duplicate_window=timedelta(minutes=settings.duplicate_window_minutes),
    )


def socket_limits(settings: Settings) -> SocketLimits:
    """Return the limits of a WebSocket."""
    return SocketLimits(
        operations=settings.socket_operations,
        message_bytes=settings.max_body_bytes,
        init_seconds=settings.socket_init_seconds,
        send_seconds=settings.socket_send_seconds,
        recheck_seconds=settings.socket_recheck_seconds,
    )


def stream_limits(settings: Settings) -> StreamLimits:
    """Return the limits of an event stream."""
    return StreamLimits(
        heartbeat_seconds=settings.stream_heartbeat_seconds, recheck_seconds=settings.socket_recheck_seconds
    )


def http_form(error: GatewayError) -> tuple[int, Mapping[str, str]]:
    """Return the HTTP status and headers of an error; they are the same at both doors."""
    return rest.errors.status_of(error), rest.errors.headers_of(error)
