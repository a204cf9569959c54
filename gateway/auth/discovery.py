"""Discovery of an issuer's endpoints: OpenID Connect Discovery 1.0, and RFC 8414 for servers without it.

The metadata is fetched for the first token that needs it, and again after an hour. While it cannot be fetched, the old
metadata stays in use; without any, the caller gets 503.
"""

from typing import NamedTuple
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from gateway.auth.identity_provider import Provider, provider_error, unavailable
from gateway.auth.single_flight import SingleFlight
from gateway.auth.token_claims import Clock
from gateway.settings import ProviderUrl
from resolvers.errors import TemporarilyUnavailable

TOPIC = "discovery"
MAX_METADATA_BYTES = 64 * 1024

MAX_AGE_SECONDS = 3600.0
"""Maximum cache age in seconds: endpoints rarely move."""

RETRY_SECONDS = 30.0
"""Minimum seconds between fetches of stale metadata that failed."""

RETRY_WITHOUT_METADATA_SECONDS = 1.0
"""Minimum seconds between fetches while there is no metadata; shorter, because no token can be verified."""

_URL: TypeAdapter[ProviderUrl] = TypeAdapter(ProviderUrl)


class Metadata(NamedTuple):
    """Endpoints of an issuer; None if the issuer publishes none."""

    jwks_url: str | None
    introspection_url: str | None


class Discovery:
    """Cached metadata of an issuer."""

    def __init__(self, provider: Provider, *, issuer: str, clock: Clock) -> None:
        self._provider = provider
        self._issuer = issuer
        self._parts = urlsplit(issuer)
        self._clock = clock
        self._metadata: Metadata | None = None
        self._fetched_at = 0.0
        self._answered_at: float | None = None
        self._single_flight: SingleFlight[None, None] = SingleFlight()

    async def jwks_url(self) -> str:
        """Return the URL of the key set. Raises `TemporarilyUnavailable`."""
        url = (await self.metadata()).jwks_url
        if url is None:
            raise provider_error(TOPIC, "no jwks_uri")
        return url

    async def introspection_url(self) -> str:
        """Return the URL of the introspection endpoint. Raises `TemporarilyUnavailable`."""
        url = (await self.metadata()).introspection_url
        if url is None:
            raise provider_error(TOPIC, "no introspection_endpoint")
        return url

    async def metadata(self) -> Metadata:
        """Return the metadata. Raises `TemporarilyUnavailable` if there is none."""
        now = self._clock.monotonic()
        if self._metadata is None or now - self._fetched_at >= MAX_AGE_SECONDS:
            pause = RETRY_WITHOUT_METADATA_SECONDS if self._metadata is None else RETRY_SECONDS
            if self._answered_at is None or now - self._answered_at >= pause:
                await self._single_flight.run(None, self._refresh)
        if self._metadata is None:
            raise unavailable()
        return self._metadata

    async def _refresh(self) -> None:
        """Fetch the metadata. If that fails, the old metadata stays in use, and the reason is logged."""
        try:
            self._metadata = await self._fetch()
            self._fetched_at = self._clock.monotonic()
        except TemporarilyUnavailable:
            return
        finally:
            # Set after the response, so that callers during the fetch join it.
            self._answered_at = self._clock.monotonic()

    async def _fetch(self) -> Metadata:
        path = self._parts.path.rstrip("/")
        origin = f"{self._parts.scheme}://{self._parts.netloc}"
        # The well-known path comes after that of the issuer, but before it in RFC 8414, section 3.1.
        answer = await self._provider.fetch(
            TOPIC,
            f"{origin}{path}/.well-known/openid-configuration",
            max_bytes=MAX_METADATA_BYTES,
            otherwise=f"{origin}/.well-known/oauth-authorization-server{path}",
        )
        # Source: OpenID Connect Discovery 1.0, section 4.3, and RFC 8414, section 3.3.
        if answer.get("issuer") != self._issuer:
            raise provider_error(TOPIC, "another issuer; compare every character, and the final slash")
        return Metadata(*(self._endpoint(answer.get(name), name) for name in ("jwks_uri", "introspection_endpoint")))

    def _endpoint(self, url: object, name: str) -> str | None:
        """Return the URL of an endpoint if requests to it are confidential. Raises `TemporarilyUnavailable`."""
        if url is None:
            return None
        try:
            endpoint = _URL.validate_python(url)
        except ValidationError:
            raise provider_error(TOPIC, f"unusable {name}") from None
        # An issuer elsewhere must not send requests to this machine.
        if endpoint.scheme == "http" and self._parts.scheme != "http":
            raise provider_error(TOPIC, f"unusable {name}")
        return str(endpoint)

    async def close(self) -> None:
        """Cancel a fetch in flight."""
        await self._single_flight.close()
