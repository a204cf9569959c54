"""Webhooks: events delivered by signed HTTP requests, in the scheme of Standard Webhooks 1.0.0.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import asyncio
import hmac
import time
from base64 import b64encode
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2

from gateway.events.delivery import MEDIA_TYPE, DeliveryFailed, SinkGone, envelope
from gateway.http_client import http_client
from gateway.observability.traces import outgoing_headers
from gateway.settings import Webhook
from resolvers.outbox import Event

# Bytes; the body of a response is not used, and only read so that the connection can be reused.
READ_AT_MOST_BYTES = 16 * 1024


class WebhookReceiver:
    """A webhook (`gateway.events.delivery.Receiver`). `seconds` is the timeout of a request."""

    def __init__(self, webhook: Webhook, *, source: str, seconds: float) -> None:
        self.name = webhook.name
        self.brand_id = webhook.brand_id
        self._url = str(webhook.url)
        self._keys = webhook.keys
        self._source = source
        self._seconds = seconds
        self._client = http_client(
            over_tls=webhook.url.scheme == "https",
            headers={"User-Agent": "encounter-gateway", "Content-Type": MEDIA_TYPE, "Accept-Encoding": "identity"},
        )

    async def deliver(self, event: Event) -> None:
        """Send the event; return if the receiver answers 2xx. Raises `DeliveryFailed`, or `SinkGone` for 410."""
        body = envelope(event, self._source)
        headers = signed_headers(self._keys, str(event.id), int(time.time()), body) | outgoing_headers(event)
        try:
            async with (
                asyncio.timeout(self._seconds),
                self._client.stream("POST", self._url, content=body, headers=headers) as response,
            ):
                await _read_some(response)
        except TimeoutError:
            raise DeliveryFailed("timeout") from None
        except httpx2.HTTPError as error:
            # The error holds the request and its signature, so it is not chained.
            raise DeliveryFailed(type(error).__name__) from None
        if response.status_code == 410:
            raise SinkGone("status 410")
        if not response.is_success:
            raise DeliveryFailed(f"status {response.status_code}", retry_after_seconds(response))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def signed_headers(keys: Sequence[bytes], event_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the three headers that authenticate the sender of the body and its time.

    The body is signed with every key, so that a receiver can rotate keys at any time.

    Args:
        keys: Secret keys, one signature each.
        event_id: Id of the event.
        timestamp: Unix seconds.
        body: The body as sent.
    """
    content = f"{event_id}.{timestamp}.".encode() + body
    signatures = [b64encode(hmac.digest(key, content, "sha256")).decode() for key in keys]
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def retry_after_seconds(response: httpx2.Response) -> float:
    """Return the seconds of the response's `Retry-After`; 0 if there is none. Source: RFC 9110 section 10.2.3."""
    asked = response.headers.get("retry-after", "")
    if response.status_code not in {429, 503} or not asked.isascii():
        return 0
    if asked.isdigit():
        return float(asked)
    # A date whose year or offset is out of range raises OverflowError.
    with suppress(ValueError, OverflowError):
        return max(0.0, (parsedate_to_datetime(asked).astimezone(UTC) - datetime.now(UTC)).total_seconds())
    return 0


async def _read_some(response: httpx2.Response) -> None:
    size = 0
    async for piece in response.aiter_raw():
        size += len(piece)
        if size > READ_AT_MOST_BYTES:
            return
