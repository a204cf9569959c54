"""What the tests of the sockets share."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.controlled_schema import STAGE, TOKENS, Stage, Tokens, staged
from tests.websocket_client import Sockets


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A stage on which nothing has happened yet; whoever is held there is let go in the end."""
    STAGE.__init__()  # type: ignore[misc]
    yield STAGE
    STAGE.gate.set()


@pytest.fixture
def tokens() -> Tokens:
    """Tokens of which there is one: `dev` may do everything."""
    TOKENS.__init__()  # type: ignore[misc]
    TOKENS.give("dev")
    return TOKENS


@pytest.fixture(scope="module")
async def impatient(database_url: str) -> AsyncIterator[Sockets]:
    async with staged(
        database_url, socket_recheck_seconds=0.2, socket_init_seconds=0.5, socket_send_seconds=0.5
    ) as serving:
        yield serving


@pytest.fixture
def sockets(impatient: Sockets, stage: Stage, tokens: Tokens) -> Sockets:
    """A gateway whose patience is short."""
    return impatient
