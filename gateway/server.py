"""Start of the server: bind the port, run the preflight, and serve in one process or several workers."""

import asyncio
import gc
import os
import socket
import sys
from collections.abc import Mapping
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, TextIO

import uvicorn
from starlette.applications import Starlette

from gateway.app import create_app
from gateway.http_client import refuse_unusable_proxies
from gateway.middleware.fault_injection import CuttingProtocol
from gateway.observability.logs import FLUSH_SECONDS, configure_logging
from gateway.observability.queued_writer import QueuedWriter
from gateway.preflight import preflight
from gateway.protocols.http import LimitedHttpProtocol, bound_unsent_bytes
from gateway.settings import PREFIX, Settings, SettingsError
from gateway.shutdown import GracefulShutdown
from gateway.supervisor import Supervisor, WorkerApp
from rest.encounters import PATIENT_ENCOUNTERS


def websocket_protocol(**given: Any) -> asyncio.Protocol:
    """Return the protocol that takes over a connection after the upgrade to a WebSocket."""
    # Imported here: the first response need not wait for the import of the WebSocket parser.
    from gateway.protocols.websocket import LimitedWebSocketProtocol

    return LimitedWebSocketProtocol(**given)


PROTOCOLS: Mapping[str, Any] = {
    # Import strings for uvicorn: see `WorkerApp`.
    "http": "gateway.protocols.http:LimitedHttpProtocol",
    "ws": "gateway.server:websocket_protocol",
    "ws_max_size": 1024 * 1024,
    # Off: before authentication, a client could send a kilobyte that decompresses to a megabyte.
    "ws_per_message_deflate": False,
    # Seconds; proxies close idle connections, often after 60 s.
    "ws_ping_interval": 20.0,
    "ws_ping_timeout": 20.0,
}


def refuse_what_cannot_be_served(settings: Settings, faults: int | None = None) -> None:
    """Return if these settings can be served. Raises `SettingsError`."""
    if faults is not None:
        refuse_fault_injection(settings)
    refuse_unusable_proxies(settings)
    if settings.workers > 1:
        _metrics_folder().cleanup()
    if settings.documents:
        # Errors in the trusted documents are reported here once, and not by each worker.
        create_app(settings)


def bind_socket(settings: Settings) -> socket.socket:
    """Return a socket bound to the port, not listening yet. Raises `SettingsError` if the port is unavailable."""
    port = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound_unsent_bytes(port)
    try:
        port.bind((settings.host, settings.port))
    except OSError as error:
        port.close()
        raise _taken(settings) from error
    port.set_inheritable(True)
    return port


def _taken(settings: Settings) -> SettingsError:
    where = f"{settings.host}:{settings.port}"
    return SettingsError(
        f"{PREFIX}PORT: cannot listen on {where}; stop the program that listens there, or set another port"
    )


def serve(settings: Settings, port: socket.socket, faults: int | None = None) -> None:
    """Run the preflight, print the startup banner, and serve until a signal.

    Args:
        settings: They must name a database.
        port: The bound socket.
        faults: Seed of the fault injection. None: no faults.

    """
    assert settings.database_url is not None
    config = uvicorn.Config(
        # Workers get the settings through a pipe, not through their environment, which other programs may read.
        WorkerApp("gateway.server:worker", settings) if settings.workers > 1 else partial(worker, settings, faults),
        factory=True,
        workers=settings.workers,
        **(PROTOCOLS if faults is None else {**PROTOCOLS, "http": CuttingProtocol}),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.drain_seconds,
    )
    configure_logging(queued=True)
    asyncio.run(preflight(settings, partial(print_to, sys.stderr), changing=True))
    # Listen before printing the banner: a client that connects at once is queued instead of refused.
    try:
        port.listen(config.backlog)
    except OSError as error:
        # With SO_REUSEADDR two processes can bind the same port; only one can listen.
        raise _taken(settings) from error
    print_to(sys.stdout, startup_banner(settings, port.getsockname()[1], faults))
    notify_systemd("READY=1")

    if settings.workers > 1:
        gc.enable()
        with _metrics_folder() as folder:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
            Supervisor(config, sockets=[port]).run()
    else:
        uvicorn.Server(config).run(sockets=[port])


def _metrics_folder() -> TemporaryDirectory[str]:
    try:
        return TemporaryDirectory(prefix="gateway-metrics-")
    except OSError as error:
        raise SettingsError(
            f"{PREFIX}WORKERS: several workers share their metrics in files, and no temporary folder is writable; set "
            f"TMPDIR to a writable folder, or {PREFIX}WORKERS=1"
        ) from error


def refuse_fault_injection(settings: Settings) -> None:
    """Return if fault injection is allowed. Raises `SettingsError` outside development mode, and for several workers.

    Several workers would share the requests, so the same seed would not produce the same faults.
    """
    if not settings.development:
        raise SettingsError(
            "--faults makes requests fail on purpose, so it requires development mode: "
            f"leave out {PREFIX}OIDC_ISSUER, {PREFIX}INTROSPECTION_URL and {PREFIX}JWKS_URL, or leave out --faults"
        )
    if settings.workers > 1:
        raise SettingsError(
            "--faults is reproducible in a single process only, because several share the requests at random: "
            f"set {PREFIX}WORKERS=1"
        )


def notify_systemd(state: str) -> None:
    """Send a state to the service manager, if one waits for it (`Type=notify`). Source: sd_notify(3)."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            # An address that begins with @ is abstract.
            manager.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)


def print_to(stream: TextIO | None, text: str) -> None:
    """Write to standard output or standard error. A blocked reader delays the call by at most `FLUSH_SECONDS`."""
    if stream is not None:
        writer = QueuedWriter(stream.fileno())
        writer.put(f"{text}\n".encode(errors="surrogateescape"))
        writer.flush(FLUSH_SECONDS)


def worker(settings: Settings, faults: int | None = None) -> Starlette:
    """Return the application, built in the process that serves it."""
    configure_logging(queued=True)
    LimitedHttpProtocol.head_seconds = settings.head_seconds
    LimitedHttpProtocol.send_seconds = settings.socket_send_seconds
    LimitedHttpProtocol.min_send_bytes_per_second = settings.min_send_bytes_per_second
    stop = GracefulShutdown(settings.drain_pause_seconds)
    stop.catch_signals()
    app = create_app(settings, stop=stop, faults=faults)
    gc.enable()
    return app


def startup_banner(settings: Settings, port: int, faults: int | None = None) -> str:
    """Return the text with the URLs of the doors and, in development mode, a command that can be pasted."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    origin = f"http://{host}:{port}"
    lines = [
        f"REST     {origin}{PATIENT_ENCOUNTERS}",
        f"GraphQL  {origin}/graphql",
        *([f"Pages    {origin}/"] if settings.explorer_pages else []),
        *([f"Public   {settings.public_origin}{settings.public_path}/"] if settings.public_url else []),
    ]
    if faults is not None:
        lines.append(f"Fault injection is on, seed {faults}. Requests fail on purpose; see docs/integrators.md.")
    if settings.development:
        lines += [
            "",
            "Development mode: the token `dev` has every scope for the brand `loop`. Try:",
            "",
            f"curl {origin}{PATIENT_ENCOUNTERS.format(patient_id='demo-patient')} \\",
            "  -H 'Authorization: Bearer dev' -H 'Content-Type: application/json' \\",
            """  -d '{"brand_id": "loop", "encounter_type": "telehealth", "notes": "Slept well."}'""",
            "",
        ]
    return "\n".join(lines)
