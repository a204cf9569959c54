"""Publish events to an existing NATS JetStream stream. Needs the extra `nats`."""

import asyncio

import nats.errors
import nats.js
from nats.aio.client import Client

from gateway.events.delivery import MEDIA_TYPE, DeliveryFailed, envelope
from gateway.observability.traces import outgoing_headers
from resolvers.outbox import Event


class JetStreamReceiver:
    """A subject of a stream (`gateway.events.delivery.Receiver`). `seconds` is the timeout of an acknowledgement."""

    name = "nats"
    brand_id: str | None = None

    def __init__(self, url: str, subject: str, *, source: str, seconds: float) -> None:
        self._url = url
        self._subject = subject
        self._source = source
        self._seconds = seconds
        self._client: Client | None = None

    async def deliver(self, event: Event) -> None:
        """Publish the event; return once the stream has stored it. Raises `DeliveryFailed`.

        The stream recognises duplicates by the event's id.
        """
        headers = {nats.js.api.Header.MSG_ID.value: str(event.id), "Content-Type": MEDIA_TYPE}
        headers |= outgoing_headers(event)
        try:
            async with asyncio.timeout(self._seconds):
                stream = (await self._connected()).jetstream(timeout=self._seconds)
                await stream.publish(self._subject, envelope(event, self._source), headers=headers)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            await self.close()
            raise DeliveryFailed(type(error).__name__) from None

    async def close(self) -> None:
        """Close the connection; the next delivery opens another."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _connected(self) -> Client:
        if self._client is None:
            self._client = Client()
            # The delivery queue schedules retries, so the client does not reconnect. `deliver` raises the errors.
            await self._client.connect(
                self._url,
                name="encounter-gateway",
                allow_reconnect=False,
                connect_timeout=max(1, int(self._seconds)),
                error_cb=_ignore,
            )
        return self._client


async def _ignore(_error: Exception) -> None:
    pass
