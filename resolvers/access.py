"""The caller, its permissions, and the brand it acts for."""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Literal

from resolvers.errors import Forbidden, InsufficientScope

ActorType = Literal["user", "service", "system"]

Exploring = Literal["open", "scoped", "off"]
"""Which callers may introspect the API: every caller, callers with the scope for it, or none."""


class Permission(StrEnum):
    """The operations of REST and GraphQL, as far as permissions distinguish them."""

    RECORD_ENCOUNTER = "record_encounter"
    CHANGE_ENCOUNTER = "change_encounter"
    FIND_SUBMISSION = "find_submission"
    READ_ENCOUNTERS = "read_encounters"
    READ_PATIENTS = "read_patients"
    LIST_PATIENTS = "list_patients"
    REGISTER_PATIENT = "register_patient"
    EXPLORE = "explore"
    READ_METRICS = "read_metrics"


Scopes = Mapping[Permission, tuple[str, ...]]

DEFAULT_SCOPES: Scopes = {
    Permission.RECORD_ENCOUNTER: ("write:encounters",),
    Permission.CHANGE_ENCOUNTER: ("write:encounters",),
    Permission.FIND_SUBMISSION: ("write:encounters",),
    Permission.READ_ENCOUNTERS: ("read:encounters",),
    Permission.READ_PATIENTS: ("read:patients", "read:encounters", "write:encounters"),
    # Not for callers that only record: the list shows every patient of the brand.
    Permission.LIST_PATIENTS: ("read:patients",),
    Permission.REGISTER_PATIENT: ("write:patients",),
    Permission.EXPLORE: ("read:schema",),
    Permission.READ_METRICS: ("read:metrics",),
}
"""The scopes that allow each operation; any one is enough. The published page names none, so these are this project's.
"""

SCOPE = re.compile(r"(read|write|manage):[a-z][a-z0-9_.-]*|admin:([a-z][a-z0-9_.-]*|\*)")
"""The form of a scope: `<verb>:<resource>`."""


def describe_scopes(scopes: Iterable[str]) -> str:
    """Return the text that names the sufficient scopes to a client."""
    return f"Requires the scope {' or '.join(f'`{scope}`' for scope in scopes)}."


def scopes_from(overrides: Mapping[Permission, tuple[str, ...]]) -> Scopes:
    """Return the table of scopes with some entries replaced.

    Raises `ValueError` that names an operation without a scope, or for a text that is not a scope. Every operation
    requires a scope.
    """
    scopes = {**DEFAULT_SCOPES, **overrides}
    for operation in Permission:
        if not scopes.get(operation):
            raise ValueError(f"{operation} requires at least one scope")
        for scope in scopes[operation]:
            if not SCOPE.fullmatch(scope):
                raise ValueError(f"{operation} lists an invalid scope; a scope looks like read:encounters")
    return scopes


@dataclass(frozen=True, slots=True)
class Caller:
    """The client or person that a token identifies.

    `brand_id` is None for a machine client that serves several brands.
    """

    client_id: str
    scopes: frozenset[str]
    user_id: str | None = None
    brand_id: str | None = None
    expires_at: datetime | None = None
    """When the token expires, if known."""

    @property
    def actor_id(self) -> str:
        """The accountable actor: the person, or the client if the token names no person."""
        return self.user_id or self.client_id

    @property
    def actor_type(self) -> ActorType:
        """`user` for a token that names a person, `service` for a client without a person."""
        return "user" if self.user_id else "service"


Verify = Callable[[str], Awaitable[Caller]]
"""Returns the caller that a token identifies, or raises `InvalidToken`."""


def require(caller: Caller, needed: Iterable[str]) -> None:
    """Return if the caller holds one of the scopes, or a scope that includes one. Raises `InsufficientScope`."""
    needed = tuple(needed)
    if not _satisfied(needed, caller.scopes):
        raise InsufficientScope(needed)


@lru_cache(4096)
def _satisfied(needed: Sequence[str], granted: frozenset[str]) -> bool:
    enough = {"admin:patient_graph", "admin:*", *needed}
    for scope in needed:
        verb, _, resource = scope.partition(":")
        if verb in {"read", "write"}:
            enough.add(f"manage:{resource}")
    return not granted.isdisjoint(enough)


def resolve_brand(caller: Caller, stated: str | None) -> str | None:
    """Return the brand that the caller acts for: the token's own, else the one stated in `X-Brand-Id`.

    Raises `Forbidden` if the two differ, or if a person's token names no brand: only a machine client may choose its
    brand.
    """
    if caller.user_id is not None and caller.brand_id is None:
        raise Forbidden("A person's token must name a brand.")
    if caller.brand_id is not None and stated is not None and stated != caller.brand_id:
        raise Forbidden
    return caller.brand_id if caller.brand_id is not None else stated
