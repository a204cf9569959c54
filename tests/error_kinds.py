"""One error of each class of `resolvers.errors`."""

import inspect
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from models import EncounterStatus
from resolvers.commands import DEFAULT_LIMITS, RecordEncounter
from resolvers.encounters.record import columns_of, recorded
from resolvers.errors import GatewayError, Violation

VISIT = RecordEncounter.read({"brand_id": "loop", "encounter_type": "lab"}, DEFAULT_LIMITS)

# Arguments of the constructors, by name.
SAMPLES: dict[str, Any] = {
    "scopes": ["read:encounters", "write:encounters"],
    "allowed": ["POST", "GET"],
    "violations": [Violation("/notes", "too_long", "must have at most 5 characters")],
    "rule": "json",
    "message": "It is so.",
    "maximum": 16_777_216,
    "seconds": 1.5,
    "status": EncounterStatus.COMPLETED,
    "encounter": recorded(columns_of(VISIT, "p-1"), datetime(2026, 11, 30, tzinfo=UTC)),
}


def subclasses(kind: type[GatewayError]) -> Iterator[type[GatewayError]]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def instance_of(kind: type[GatewayError]) -> GatewayError:
    """Return an error of a class, with only the required arguments."""
    needed = [each for each in inspect.signature(kind).parameters.values() if each.default is each.empty]
    return kind(*(SAMPLES[each.name] for each in needed))


KINDS = sorted(set(subclasses(GatewayError)), key=lambda kind: kind.__name__)
