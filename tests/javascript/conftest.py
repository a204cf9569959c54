"""What the programs of the npm registry are shown."""

from collections.abc import AsyncIterator

import pytest

from tests.sockets import Sockets
from tests.staged import settings


@pytest.fixture(scope="session")
async def gateway(database_url: str) -> AsyncIterator[str]:
    """A gateway that listens on a port of this machine, in development mode: its address."""
    async with Sockets.serving(settings(database_url)) as serving:
        yield f"http://127.0.0.1:{serving.port}"
