"""The outcome of an idempotency key, for any door: a caller can query it instead of resending blindly."""

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
    """The progress of the request under a key."""

    RECORDED = "recorded"
    IN_PROGRESS = "in_progress"
    NEVER_SEEN = "never_seen"


class Submission(NamedTuple):
    """The outcome of one of the caller's own keys."""

    key: str
    state: SubmissionState
    encounter: Encounter | None = None
    """Its current state; None also for a change of a patient."""
    recorded_at: datetime | None = None
    expires_at: datetime | None = None
    """When the key expires."""


class _NeverSeen(Exception):
    """Rolls back the trial claim."""


# 50 ms: longer than a recording takes, and too short for a caller to notice.
WAIT_A_MOMENT = Statement(text("SET LOCAL lock_timeout = '50ms'"))


async def find_submission(context: Context, key: str) -> Submission:
    """Return the outcome of one of the caller's keys in this brand.

    A recording in progress has not committed and cannot be read, but it holds the key until it ends. So this claims the
    key on trial: the claim times out, finds the key taken, or is rolled back. Raises `InsufficientScope`, `Forbidden`,
    `InvalidInput` for a text that is not a key, or `TemporarilyUnavailable`.
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
            encounter = None if kept.encounter_id is None else await encounter_of_key(context, connection, kept)
    except Locked:
        return Submission(key, SubmissionState.IN_PROGRESS)
    except _NeverSeen:
        return Submission(key, SubmissionState.NEVER_SEEN)
    return Submission(key, SubmissionState.RECORDED, encounter, kept.created_at, kept.expires_at)
