"""Micro-batching: items submitted at the same time share one statement, one commit and one flush to disk.

There is no timer. A batch is sent at the end of the event-loop turn if fewer than `max_in_flight` batches of its group
are in flight. Later items join the next batch. A single item is therefore sent at once, and batches grow with load. An
item that is queued for longer than `queue_timeout` fails with `TimeoutError`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import asyncpg

from resolvers.errors import AnswerTooLarge, Locked

MIN_ACQUIRE_SECONDS = 0.1
"""Seconds; the minimum time left to acquire a connection, however long the item was queued: a free one is acquired by
then."""

MAX_BATCH_SIZE = 64
"""Items in one statement; enough that their shared cost is low, few enough that no item waits for many others."""

Group = TypeVar("Group", bound=Hashable)
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

Work = Callable[[Group, Sequence[Item], float], Awaitable[Sequence[Outcome]]]
"""Processes items of a group and returns their outcomes in the same order. The number is the seconds that it may wait
for a connection."""


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Item, Outcome]):
    item: Item
    outcome: asyncio.Future[Outcome]
    since: float
    context: Context
    """The caller's context variables, in which the batch runs that this item begins."""


class MicroBatcher(Generic[Group, Item, Outcome]):
    """Process the items of each group, with one call of `work` for those submitted at the same time.

    Args:
        work: Processes one batch.
        queue_timeout: Seconds that an item may be queued.
        max_in_flight: Batches of one group in flight at once.
        max_batch_size: Items in one batch of the given group.
    """

    def __init__(
        self,
        work: Work[Group, Item, Outcome],
        queue_timeout: float,
        *,
        max_in_flight: int,
        max_batch_size: Callable[[Group], int] = lambda _group: MAX_BATCH_SIZE,
    ) -> None:
        self._work = work
        self._queue_timeout = queue_timeout
        self._max_in_flight = max_in_flight
        self._max_batch_size = max_batch_size
        self._waiting: dict[Group, list[_Waiting[Item, Outcome]]] = {}
        self._in_flight: dict[Group, set[asyncio.Task[None]]] = {}
        self._watched: set[Group] = set()
        """The groups for whose waiting items a timeout is armed."""

    def __contains__(self, group: Group) -> bool:
        """Whether items of this group are waiting or in flight."""
        return group in self._waiting or group in self._in_flight

    async def do(self, group: Group, item: Item) -> Outcome:
        """Process an item, batched with those submitted at the same time, and return its outcome.

        Raises what `work` raises. `TimeoutError` means that nothing was done. A cancelled caller stops waiting, but an
        item that was already sent is still processed.
        """
        loop = asyncio.get_running_loop()
        waiting = self._waiting.setdefault(group, [])
        outcome: asyncio.Future[Outcome] = loop.create_future()
        context = copy_context()
        waiting.append(_Waiting(item, outcome, loop.time(), context))
        if len(waiting) == 1:
            if len(self._in_flight.get(group, ())) < self._max_in_flight:
                loop.call_soon(self._send, group, context=context)
            else:
                self._arm_timeout(group)
        return await outcome

    def _send(self, group: Group) -> None:
        in_flight = self._in_flight.setdefault(group, set())
        max_batch_size = self._max_batch_size(group)
        while len(in_flight) < self._max_in_flight and (waiting := self._waiting.pop(group, None)):
            # Skip items whose caller was cancelled while they were queued.
            together = [one for one in waiting[:max_batch_size] if not one.outcome.done()]
            if rest := waiting[max_batch_size:]:
                self._waiting[group] = rest
            if together:
                task = asyncio.create_task(self._do(group, together), context=together[0].context)
                in_flight.add(task)
                task.add_done_callback(partial(self._sent, group))
        if not in_flight:
            del self._in_flight[group]
        if group in self._waiting:
            # More items were waiting than `max_in_flight` batches hold.
            self._arm_timeout(group)

    def _sent(self, group: Group, task: asyncio.Task[None]) -> None:
        self._in_flight[group].discard(task)
        self._send(group)

    def _arm_timeout(self, group: Group) -> None:
        """Schedule `_expire_waiting` for when the oldest waiting item has been queued for `queue_timeout`."""
        if group not in self._watched:
            self._watched.add(group)
            too_long_at = self._waiting[group][0].since + self._queue_timeout
            asyncio.get_running_loop().call_at(too_long_at, self._expire_waiting, group)

    def _expire_waiting(self, group: Group) -> None:
        """Fail the items queued for `queue_timeout` with `TimeoutError`; none of them was sent. Re-arm for the rest."""
        now = asyncio.get_running_loop().time()
        self._watched.discard(group)
        waiting = self._waiting.get(group, [])
        patient = [one for one in waiting if now < one.since + self._queue_timeout]
        _refuse(waiting[: len(waiting) - len(patient)], TimeoutError())
        if patient:
            self._waiting[group] = patient
            self._arm_timeout(group)
        else:
            self._waiting.pop(group, None)

    async def _do(self, group: Group, together: list[_Waiting[Item, Outcome]]) -> None:
        waited_seconds = asyncio.get_running_loop().time() - together[0].since
        within_seconds = max(self._queue_timeout - waited_seconds, MIN_ACQUIRE_SECONDS)
        try:
            outcomes = await self._work(group, [one.item for one in together], within_seconds)
        except (asyncpg.PostgresError, Locked, AnswerTooLarge) as error:
            if len(together) == 1:
                _refuse(together, error)
                return
            # One row violates a constraint or needs a lock that is held, so nothing was done; or the rows are too large
            # together. Send each item alone.
            for one in together:
                await self._do(group, [one])
        except Exception as error:  # noqa: BLE001 - the waiting callers get any error
            _refuse(together, error)
        else:
            for one, outcome in zip(together, outcomes, strict=True):
                if not one.outcome.done():
                    one.outcome.set_result(outcome)


def _refuse(together: Sequence[_Waiting[Item, Outcome]], error: Exception) -> None:
    for one in together:
        if not one.outcome.done():
            one.outcome.set_exception(error)
