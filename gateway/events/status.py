"""Status of the outbox and its sinks (`gateway events status`, `/metrics`)."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Text, bindparam, func, literal_column, select

from gateway.events.pipeline import DEAD_LETTERS, OUTBOX, SINKS, WATERMARK
from resolvers.sql import Connection, RelayDatabase, Row, Statement


@dataclass(frozen=True, slots=True)
class SinkNumbers:
    """Status of one sink."""

    name: str
    position: int
    behind: int
    """Events after the sink's position, including those of brands that it does not receive."""
    oldest_seconds: float
    """Seconds that the first of these has waited; 0 if there is none."""
    failures: int
    """Consecutive failed deliveries."""
    last_error: str | None
    next_attempt_at: datetime
    disabled_at: datetime | None
    dead_letters: int


@dataclass(frozen=True, slots=True)
class EventStatus:
    """Status of the event pipeline."""

    waiting: int
    """Events without a position."""
    oldest_seconds: float
    """Seconds that the oldest of these has waited; 0 if there is none. A growing value means that no relay is
    running."""
    position: int
    """The watermark: events up to this position may be read."""
    unsettled: int
    """Events with a position beyond the watermark. A value that stays above 0 for more than a moment is a fault."""
    pruned: int
    """Events up to this position have been deleted."""
    sinks: tuple[SinkNumbers, ...]


WAITING = Statement(
    select(func.count(), func.extract("epoch", func.now() - func.min(OUTBOX.c.created_at)).label("age")).where(
        OUTBOX.c.position.is_(None)
    )
)


FIND_WATERMARK = Statement(select(WATERMARK.c.stamped, WATERMARK.c.position, WATERMARK.c.pruned))


LIST_SINKS = Statement(select(SINKS).order_by(SINKS.c.name))


AGE_OF_FIRST = Statement(
    select(func.extract("epoch", func.now() - OUTBOX.c.published_at).label("age"))
    .where(OUTBOX.c.position > bindparam("position"))
    .order_by(OUTBOX.c.position)
    .limit(literal_column("1"))
)


COUNT_DEAD_LETTERS = Statement(
    select(func.count()).select_from(DEAD_LETTERS).where(DEAD_LETTERS.c.sink == bindparam("sink", type_=Text))
)


async def event_numbers(database: RelayDatabase) -> EventStatus:
    """Return the status of the event pipeline. `database` acts as the relay's role.

    Raises `TemporarilyUnavailable`.
    """
    async with database.unscoped() as connection:
        waiting = await _one(connection, WAITING)
        mark = await _one(connection, FIND_WATERMARK)
        sinks = [await _sink_numbers(connection, sink, mark) for sink in await connection.fetch(LIST_SINKS)]
    return EventStatus(
        waiting=waiting[0],
        oldest_seconds=float(waiting["age"] or 0),
        position=mark["position"],
        unsettled=mark["stamped"] - mark["position"],
        pruned=mark["pruned"],
        sinks=tuple(sinks),
    )


async def _sink_numbers(connection: Connection, sink: Row, mark: Row) -> SinkNumbers:
    waited = await connection.fetch_one(AGE_OF_FIRST, position=sink["position"])
    dead_letters = await _one(connection, COUNT_DEAD_LETTERS, sink=sink["name"])
    same = ("name", "position", "failures", "last_error", "next_attempt_at", "disabled_at")
    return SinkNumbers(
        **{name: sink[name] for name in same},
        behind=max(0, mark["position"] - sink["position"]),
        oldest_seconds=float(waited["age"]) if waited else 0.0,
        dead_letters=dead_letters[0],
    )


async def _one(connection: Connection, statement: Statement, **values: object) -> Row:
    row = await connection.fetch_one(statement, **values)
    assert row is not None
    return row


def describe(numbers: EventStatus) -> str:
    """Return the status as text, with a line for each sink."""
    lines = [
        f"events up to position {numbers.position}, kept from {numbers.pruned + 1}",
        f"{numbers.waiting} waiting for a position, the oldest for {numbers.oldest_seconds:.0f} s"
        + (f"; {numbers.unsettled} beyond the watermark" if numbers.unsettled else ""),
    ]
    for sink in numbers.sinks:
        words = [f"sink {sink.name}: at {sink.position}, {sink.behind} behind by {sink.oldest_seconds:.0f} s"]
        if sink.disabled_at:
            words.append(f"disabled {sink.disabled_at:%Y-%m-%dT%H:%M:%SZ} ({sink.last_error})")
        elif sink.failures:
            again = f"{sink.next_attempt_at:%Y-%m-%dT%H:%M:%SZ}"
            words.append(f"failed {sink.failures} times in a row ({sink.last_error}), again at {again}")
        if sink.dead_letters:
            words.append(f"{sink.dead_letters} dead letters")
        lines.append(", ".join(words))
    return "\n".join(lines)


async def print_status(database: RelayDatabase) -> None:
    """Print the status."""
    print(describe(await event_numbers(database)))
