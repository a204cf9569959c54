"""Client of the identity provider, with a timeout and a size limit for each response.

If the provider is unavailable, slow or answers invalidly, the caller gets 503. A token is accepted or rejected only if
it was actually verified.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

import httpx2

from gateway.http_client import http_client
from gateway.observability.metrics import IDENTITY_PROVIDER_FAILURES
from resolvers import json_text
from resolvers.errors import MalformedBody, TemporarilyUnavailable

logger = logging.getLogger(__name__)

Locate = Callable[[], Awaitable[str]]
"""Returns the URL of an endpoint, which may have to be discovered first. Raises `TemporarilyUnavailable`."""

MAX_CONNECTIONS = 32

# Seconds; common servers close a connection after 5 idle seconds, and a request sent at that moment would be lost.
KEEPALIVE_SECONDS = 4.0


class Provider:
    """HTTP client of the identity provider."""

    def __init__(self, client: httpx2.AsyncClient, *, seconds: float) -> None:
        self._client = client
        self._seconds = seconds

    @classmethod
    @asynccontextmanager
    async def reached(cls, *, over_tls: bool, seconds: float) -> AsyncIterator[Self]:
        """Yield a provider with a timeout of `seconds` for each response, and close its connections on exit."""
        async with http_client(
            over_tls=over_tls,
            limits=httpx2.Limits(max_connections=MAX_CONNECTIONS, keepalive_expiry=KEEPALIVE_SECONDS),
            # Uncompressed, so that the counted bytes are the bytes in memory.
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        ) as client:
            yield cls(client, seconds=seconds)

    async def fetch(self, topic: str, url: str, *, max_bytes: int, otherwise: str | None = None) -> dict[str, Any]:
        """Return the JSON object at `url`, or at the URL `otherwise` if the first answers 404.

        `topic` names the request in the log. Raises `TemporarilyUnavailable`.
        """
        return await self._object(topic, "GET", url, max_bytes=max_bytes, otherwise=otherwise)

    async def ask(
        self, topic: str, url: str, form: Mapping[str, str], credentials: httpx2.Auth, *, max_bytes: int
    ) -> dict[str, Any]:
        """Post a form and return the JSON object of the response. Raises `TemporarilyUnavailable`."""
        return await self._object(topic, "POST", url, max_bytes=max_bytes, data=form, auth=credentials)

    async def _object(
        self, topic: str, method: str, url: str, *, max_bytes: int, otherwise: str | None = None, **request: Any
    ) -> dict[str, Any]:
        # Only a complete response with status 200, within the size limit, is accepted. One timeout covers the exchange.
        try:
            async with asyncio.timeout(self._seconds), self._client.stream(method, url, **request) as response:
                is_elsewhere = otherwise is not None and response.status_code == 404
                body = b"" if is_elsewhere else await _body(topic, response, max_bytes)
        except TimeoutError:
            raise provider_error(topic, "timeout") from None
        except httpx2.HTTPError as error:
            # The error refers to the request, which contains the token, so only the error's type is logged.
            raise provider_error(topic, type(error).__name__) from None
        if otherwise is not None and is_elsewhere:
            return await self._object(topic, method, otherwise, max_bytes=max_bytes, **request)
        try:
            answer = json_text.read(body)
        except MalformedBody:
            raise provider_error(topic, "not JSON") from None
        if not isinstance(answer, dict):
            raise provider_error(topic, "not an object")
        return answer


async def _body(topic: str, response: httpx2.Response, max_bytes: int) -> bytes:
    if response.status_code != 200:
        raise provider_error(topic, f"status {response.status_code}")
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > max_bytes:
            raise provider_error(topic, "too large")
    return bytes(body)


def provider_error(topic: str, reason: str) -> TemporarilyUnavailable:
    """Log the reason, count the failure, and return the error for the caller.

    The reason never quotes the provider's response.
    """
    IDENTITY_PROVIDER_FAILURES.inc()
    logger.warning("identity provider", extra={"topic": topic, "reason": reason})
    return unavailable()


def unavailable() -> TemporarilyUnavailable:
    """Return the error for a caller whose token cannot be verified at present."""
    return TemporarilyUnavailable("The identity provider is unavailable or answers invalidly; try again shortly.")
