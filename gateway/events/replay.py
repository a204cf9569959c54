"""Send events of the outbox to a sink again (`gateway events replay`)."""

from sqlalchemy import BigInteger, Text, bindparam, delete, func, literal_column, null, update

from gateway.database.database import Database
from gateway.events.pipeline import DEAD_LETTERS, SINKS
from gateway.events.status import FIND_WATERMARK, LIST_SINKS, _one
from resolvers.sql import Statement


class NoReplay(Exception):
    """The requested replay is impossible; the message says why."""


REPLAY = Statement(
    update(SINKS)
    .values(
        position=bindparam("position", type_=BigInteger),
        since=func.now(),
        failures=literal_column("0"),
        next_attempt_at=func.now(),
        last_error=null(),
        disabled_at=null(),
        updated_at=func.now(),
    )
    .where(SINKS.c.name == bindparam("sink", type_=Text))
)


FORGET_DEAD_LETTERS = Statement(
    delete(DEAD_LETTERS).where(
        DEAD_LETTERS.c.sink == bindparam("sink", type_=Text), DEAD_LETTERS.c.position > bindparam("position")
    )
)


async def replay(database: Database, sink: str, first: int | None) -> int:
    """Replay events to a sink from position `first`, and return that position. None: resume at the current position.

    A disabled sink is enabled, and a retry delay is cleared. Dead letters among the replayed events are deleted. Raises
    `NoReplay` if the sink is unknown, or the events are pruned or do not exist yet.
    """
    async with database.transaction(None) as connection:
        sinks = {row["name"]: row["position"] for row in await connection.fetch(LIST_SINKS)}
        if sink not in sinks:
            raise NoReplay(f"no sink {sink}; the sinks are: {', '.join(sinks) or 'none'}")
        mark = await _one(connection, FIND_WATERMARK)
        before = sinks[sink] if first is None else first - 1
        if not mark["pruned"] <= before <= mark["position"]:
            raise NoReplay(f"the first position must be from {mark['pruned'] + 1} to {mark['position'] + 1}")
        await connection.fetch(REPLAY, sink=sink, position=before)
        await connection.fetch(FORGET_DEAD_LETTERS, sink=sink, position=before)
    return before + 1


async def print_replay(database: Database, sink: str, first: int | None) -> None:
    """Replay, and print the first position."""
    print(f"{sink} gets the events from position {await replay(database, sink, first)}")
