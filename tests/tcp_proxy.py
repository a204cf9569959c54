"""A wire between the gateway and PostgreSQL that can be cut at any word of the conversation."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, urlsplit


class TcpProxy:
    """Passes bytes between a gateway and a server; cuts every connection when told to.

    `before` is called with what the gateway says before it is passed on, `after` with what the server answered before
    that is passed on; either may say True, and the connection is cut there and then. Where `silenced` names directions
    (`onward`, `back`), it is not cut, but what is said on it in these stays on the way: as with a network that is down.
    """

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = socket_path
        self._tasks: set[asyncio.Task[None]] = set()
        self.before: Callable[[bytes], bool] = _never
        self.after: Callable[[bytes], bool] = _never
        self.refuse_connections = False
        self.blackholed: frozenset[str] = frozenset()
        self._ways: list[asyncio.Event] = []

    @classmethod
    @asynccontextmanager
    async def to(cls, database_url: str) -> AsyncIterator[tuple[Self, str]]:
        """Lay a wire to a database, and give it with the URL of its near end."""
        url = urlsplit(database_url)
        query = parse_qs(url.query)
        wire = cls(Path(query["host"][0]) / f".s.PGSQL.{query['port'][0]}")
        server = await asyncio.start_server(wire._accept, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            yield wire, f"postgresql://{url.username}@127.0.0.1:{port}{url.path}?sslmode=disable"
            for task in wire._tasks:
                task.cancel()
            await asyncio.gather(*wire._tasks, return_exceptions=True)

    def restore(self) -> None:
        """Cut no more, and pass on what was held back."""
        self.before = self.after = _never
        self.refuse_connections = False
        for way in self._ways:
            way.set()

    async def _accept(self, near_reader: asyncio.StreamReader, near_writer: asyncio.StreamWriter) -> None:
        if self.refuse_connections:
            near_writer.close()
            return
        far_reader, far_writer = await asyncio.open_unix_connection(self._socket_path)

        def cut() -> None:
            # Both ends at once and without a goodbye, as a pulled cable would.
            near_writer.transport.abort()
            far_writer.transport.abort()

        ways = {"onward": asyncio.Event(), "back": asyncio.Event()}
        self._ways += ways.values()
        for way in ways.values():
            way.set()

        def ended(told: bool) -> bool:
            for direction in self.blackholed if told else ():
                ways[direction].clear()
            return told and not self.blackholed

        for reader, writer, watch, way in (
            (near_reader, far_writer, lambda said: ended(self.before(said)), ways["onward"]),
            (far_reader, near_writer, lambda said: ended(self.after(said)), ways["back"]),
        ):
            task = asyncio.create_task(_pass_on(reader, writer, watch, way, cut))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _pass_on(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    watch: Callable[[bytes], bool],
    way: asyncio.Event,
    cut: Callable[[], None],
) -> None:
    with contextlib.suppress(OSError):
        while said := await reader.read(65_536):
            if watch(said):
                break
            await way.wait()
            writer.write(said)
            await writer.drain()
    cut()


def _never(_said: bytes) -> bool:
    return False
