"""A thousand sockets without a token: those who sign in come in all the same."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.graphql.test_socket_limits import by_hand
from tests.sockets import Sockets
from tests.staged import STAGE, TOKENS, staged
from tests.streams import listen_to

FLOOD = 1_000
WAIT = "subscription { wait }"


@pytest.fixture(autouse=True)
def _beginning() -> None:
    STAGE.__init__()  # type: ignore[misc]
    TOKENS.__init__()  # type: ignore[misc]
    TOKENS.give("dev")


@asynccontextmanager
async def flooded(sockets: Sockets) -> AsyncIterator[None]:
    """Hold as many sockets open as the flood has, none of them signed in."""
    async with AsyncExitStack() as held:
        for _ in range(FLOOD):
            await held.enter_async_context(by_hand(sockets))
        yield


async def test_sockets_without_a_token_keep_no_socket_and_no_stream_out(database_url: str) -> None:
    async with staged(database_url) as sockets, sockets.signed_in() as before, flooded(sockets):
        async with sockets.signed_in() as talk:
            await talk.ask("{ __typename }")
        async with listen_to(f"http://127.0.0.1:{sockets.port}", WAIT) as stream:
            assert stream.response.status_code == 200
            await stream.hear()
        await before.ask("{ __typename }")


async def test_who_signs_in_is_not_evicted_while_a_flood_goes_on(database_url: str) -> None:
    async with staged(database_url, sockets_unauthenticated_max=20) as sockets:
        flood = asyncio.create_task(_flood(sockets))
        for _ in range(20):
            async with sockets.signed_in() as talk:
                await talk.ask("{ __typename }")
        flood.cancel()
        await asyncio.gather(flood, return_exceptions=True)


async def _flood(sockets: Sockets) -> None:
    async with flooded(sockets):
        await asyncio.Event().wait()
