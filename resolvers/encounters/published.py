"""The published form of an encounter: the JSON object of the REST door, which a replay of a key repeats."""

from operator import attrgetter
from typing import Any

import orjson

from models import MEMBERS, Encounter

PUBLISHED = tuple(name for name, member in MEMBERS.items() if member.published)
"""The published members, in the published order. Source: the endpoint's public page."""

_values = attrgetter(*PUBLISHED)


def encounter_json(encounter: Encounter) -> dict[str, Any]:
    """Return the published object of an encounter."""
    members = dict(zip(PUBLISHED, _values(encounter), strict=True))
    # Already JSON, validated on input: it is sent as PostgreSQL stores it, with every digit of every number.
    members["metadata"] = orjson.Fragment(members["metadata"])
    return members


def published(encounter: Encounter) -> bytes:
    """Serialize an encounter in the published form. Instants are in UTC with `Z`, UUIDs in lower case."""
    return orjson.dumps(encounter_json(encounter), default=str, option=orjson.OPT_UTC_Z)
