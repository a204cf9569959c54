"""What each peer in Python does around its application."""

import asyncio
import sys
from contextlib import suppress
from typing import Any

import uvicorn


async def listening(app: Any) -> None:
    """Print the address in the first line, and serve until standard input is closed."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, access_log=False, log_level="warning")
    listener = config.bind_socket()
    # Connections from now on wait until the server accepts them.
    listener.listen()
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await asyncio.to_thread(sys.stdin.read)
    server.should_exit = True
    with suppress(asyncio.CancelledError):
        await serving
