"""Asking the identity provider: one bounded exchange for all who wait for it, and every failure is the provider's.

Who asks while the provider is down, slow or talking nonsense is told 503: never let in, and never told that a token is
bad which nobody could look at.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

import httpx2

from gateway.http_client import http_client
from gateway.observability.logs import log
from resolvers import json_text
from resolvers.errors import MalformedBody, TemporarilyUnavailable

MAX_CONNECTIONS = 32

# Common servers hang up after five idle seconds; a request sent into that moment would be lost.
KEEPALIVE_SECONDS = 4.0


class Provider:
    """The identity provider, as far as it can be asked things."""

    def __init__(self, client: httpx2.AsyncClient, *, seconds: float) -> None:
        self._client = client
        self._seconds = seconds

    @classmethod
    @asynccontextmanager
    async def reached(cls, *, over_tls: bool, seconds: float) -> AsyncIterator[Self]:
        """Lend a provider that has `seconds` for each answer, and close the connections at the end."""
        async with http_client(
            over_tls=over_tls,
            limits=httpx2.Limits(max_connections=MAX_CONNECTIONS, keepalive_expiry=KEEPALIVE_SECONDS),
            # Uncompressed, so that what is counted is what is kept.
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        ) as client:
            yield cls(client, seconds=seconds)

    async def fetch(self, topic: str, url: str, *, max_bytes: int) -> dict[str, Any]:
        """Get the JSON object at `url`. `topic` names it in the log. Raises `TemporarilyUnavailable`."""
        return await self._object(topic, "GET", url, max_bytes=max_bytes)

    async def ask(
        self, topic: str, url: str, form: Mapping[str, str], credentials: httpx2.Auth, *, max_bytes: int
    ) -> dict[str, Any]:
        """Post a form and give the JSON object of the answer. Raises `TemporarilyUnavailable`."""
        return await self._object(topic, "POST", url, max_bytes=max_bytes, data=form, auth=credentials)

    async def _object(self, topic: str, method: str, url: str, *, max_bytes: int, **request: Any) -> dict[str, Any]:
        # Only a whole answer will do, with status 200, in time and in size. The whole exchange has one deadline.
        try:
            async with asyncio.timeout(self._seconds), self._client.stream(method, url, **request) as response:
                body = await _body(topic, response, max_bytes)
        except TimeoutError:
            raise provider_error(topic, "timeout") from None
        except httpx2.HTTPError as error:
            # The error holds the request, and the request the token: nothing of it goes further.
            raise provider_error(topic, type(error).__name__) from None
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
    """Write down what is wrong with the provider, in words of ours, and give what the caller is told."""
    log.warning("identity provider", topic=topic, reason=reason)
    return unavailable()


def unavailable() -> TemporarilyUnavailable:
    """Give what a caller is told whose token cannot be verified just now."""
    return TemporarilyUnavailable("The identity provider does not answer as it should; try again shortly.")
