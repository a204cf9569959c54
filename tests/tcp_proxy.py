"""A proxy between a gateway and PostgreSQL that can cut a connection at any message."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, urlsplit


class TcpProxy:
    """Forwards bytes between a gateway and a server, and cuts connections when a hook says so.

    `before` is called with bytes of the gateway before they are forwarded, `after` with those of the server. If it
    returns True, the connection is cut. Where `blackholed` names directions (`onward`, `back`), the connection stays
    open, but no further bytes are forwarded in them, as with a network that drops packets.
    """

    def __init__(self, connect: Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]) -> None:
        self._connect = connect
        self._tasks: set[asyncio.Task[None]] = set()
        self.before: Callable[[bytes], bool] = _never
        self.after: Callable[[bytes], bool] = _never
        self.refuse_connections = False
        self.blackholed: frozenset[str] = frozenset()
        self._open_directions: list[asyncio.Event] = []

    @classmethod
    @asynccontextmanager
    async def to(cls, database_url: str) -> AsyncIterator[tuple[Self, str]]:
        """Start a proxy to a database; yield it and the database URL through it."""
        url = urlsplit(database_url)
        query = parse_qs(url.query)
        if "host" in query:
            path = Path(query["host"][0]) / f".s.PGSQL.{query['port'][0]}"
            wire = cls(lambda: asyncio.open_unix_connection(path))
        else:
            wire = cls(lambda: asyncio.open_connection(url.hostname, url.port))
        server = await asyncio.start_server(wire._accept, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            yield wire, f"postgresql://{url.username}@127.0.0.1:{port}{url.path}?sslmode=disable"
            for task in wire._tasks:
                task.cancel()
            await asyncio.gather(*wire._tasks, return_exceptions=True)

    def restore(self) -> None:
        """Cut no more connections, and forward the bytes that were held back."""
        self.before = self.after = _never
        self.refuse_connections = False
        for open_direction in self._open_directions:
            open_direction.set()

    async def _accept(self, near_reader: asyncio.StreamReader, near_writer: asyncio.StreamWriter) -> None:
        if self.refuse_connections:
            near_writer.close()
            return
        far_reader, far_writer = await self._connect()

        def cut() -> None:
            # Both ends at once and without a FIN, like an unplugged cable.
            near_writer.transport.abort()
            far_writer.transport.abort()

        open_directions = {"onward": asyncio.Event(), "back": asyncio.Event()}
        self._open_directions += open_directions.values()
        for open_direction in open_directions.values():
            open_direction.set()

        def is_cut(cut_requested: bool) -> bool:
            for direction in self.blackholed if cut_requested else ():
                open_directions[direction].clear()
            return cut_requested and not self.blackholed

        for reader, writer, watch, open_direction in (
            (near_reader, far_writer, lambda data: is_cut(self.before(data)), open_directions["onward"]),
            (far_reader, near_writer, lambda data: is_cut(self.after(data)), open_directions["back"]),
        ):
            task = asyncio.create_task(_pass_on(reader, writer, watch, open_direction, cut))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _pass_on(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    watch: Callable[[bytes], bool],
    open_direction: asyncio.Event,
    cut: Callable[[], None],
) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            if watch(data):
                break
            await open_direction.wait()
            writer.write(data)
            await writer.drain()
    cut()


def _never(_data: bytes) -> bool:
    return False
