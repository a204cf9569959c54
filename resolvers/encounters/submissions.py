"""What became of an idempotency key, through whichever door it came: ask, instead of sending again in the dark."""

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import text

from models import Encounter
from resolvers.access import Permission
from resolvers.context import Context
from resolvers.encounters.read import encounter_of_key
from resolvers.errors import Locked
from resolvers.idempotency import find_key, require_key, try_key
from resolvers.sql import Statement


class SubmissionState(StrEnum):
    """How far the request under a key has come."""

    RECORDED = "recorded"
    IN_PROGRESS = "in_progress"
    NEVER_SEEN = "never_seen"


class Submission(NamedTuple):
    """What became of a key of the caller's own."""

    key: str
    state: SubmissionState
    encounter: Encounter | None = None
    """As it stands now."""
    recorded_at: datetime | None = None
    expires_at: datetime | None = None
    """Until when the key is kept."""


class _NeverSeen(Exception):
    """Rolls back the trial."""


# Longer than a recording takes, shorter than anybody notices.
WAIT_A_MOMENT = Statement(text("SET LOCAL lock_timeout = '50ms'"))


async def find_submission(context: Context, key: str) -> Submission:
    """Say what became of a key of the caller's in this brand.

    What is being recorded has not committed, and so cannot be read. But whoever records holds the key until the end, so
    it is tried whether the key can be had: the trial waits in vain, finds the key taken, or is rolled back. Raises
    `InsufficientScope`, `Forbidden`, `InvalidInput` for a text that is no key, or `TemporarilyUnavailable`.
    """
    context.require(Permission.FIND_SUBMISSION)
    brand_id = context.acting_brand()
    require_key(key)
    try:
        async with context.database.transaction(brand_id) as connection:
            await connection.fetch(WAIT_A_MOMENT)
            mine = {"brand_id": brand_id, "client_id": context.caller.client_id, "key": key}
            if await try_key(connection, **mine) or (kept := await find_key(connection, **mine)) is None:
                raise _NeverSeen
            encounter = await encounter_of_key(context, connection, kept)
    except Locked:
        return Submission(key, SubmissionState.IN_PROGRESS)
    except _NeverSeen:
        return Submission(key, SubmissionState.NEVER_SEEN)
    return Submission(key, SubmissionState.RECORDED, encounter, kept.created_at, kept.expires_at)
