"""Unknown names in a request, and whether its sender prefers that they are refused. Source: RFC 7240.

Unknown names are ignored and listed in `X-Ignored`; under `Prefer: handling=strict` they are refused. A misspelt query
parameter is always refused: if it were ignored, a dry run would record, or a list would have other items than
requested.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Literal, cast

from starlette.requests import Request
from starlette.types import Scope

from resolvers.commands import NAMES, misspelt, unknown_names
from resolvers.errors import Violation
from resolvers.request_state import state_of
from resolvers.spelling import Ignored, near_misses
from rest.responses import Fields

Handling = Literal["strict", "lenient"]

# Preferences are separated by commas outside quoted strings.
_PREFERENCE = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+')
_HANDLING = re.compile(r'handling\s*=\s*("?)(strict|lenient)\1\s*(;.*)?', re.IGNORECASE)
_NAMES_HANDLING = re.compile(r"handling\s*(=|;|$)", re.IGNORECASE)
_TOKEN = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def is_strict(request: Request) -> bool:
    """Whether unknown names are refused. Stores the effective preference for the answer's `Preference-Applied`."""
    prefer = state_of(request.scope)["head"].get("prefer")
    if prefer is None:
        return False
    handling = _handling(prefer)
    if handling:
        state_of(request.scope)["handling"] = handling
    return handling == "strict"


def _handling(prefer: str) -> Handling | None:
    preferences = map(str.strip, _PREFERENCE.findall(prefer))
    # If a preference is named twice, the first counts.
    first = next(filter(_NAMES_HANDLING.match, preferences), "")
    match = _HANDLING.fullmatch(first)
    return cast("Handling", match[2].lower()) if match else None


def query_violations(request: Request, known: Collection[str], *, strict: bool) -> list[Violation]:
    """Return the violations of the query's parameter names; other unknown names are ignored."""
    if not request.scope["query_string"]:
        return []
    sent = [name for name in dict.fromkeys(request.query_params.keys()) if name not in known]
    if nearly := near_misses(sent, known):
        return [misspelt(right) for right in nearly]
    ignore(request, sent)
    return unknown_names(sent, known) if strict else []


def ignore(request: Request, names: Iterable[str]) -> None:
    """Store the ignored names of this request, so that its answer lists them."""
    state_of(request.scope).setdefault("ignored", []).extend(names)


def ignored_of(scope: Scope) -> Ignored:
    """Return the ignored names of the request."""
    return Ignored.of(state_of(scope).get("ignored", ()), NAMES)


def preference_fields(scope: Scope) -> Fields:
    """Return the answer's header fields for ignored names and for the applied preference."""
    state = state_of(scope)
    fields: list[tuple[bytes, bytes]] = []
    if state.get("ignored"):
        fields.append((b"x-ignored", ", ".join(_items(ignored_of(scope))).encode()))
    if handling := state.get("handling"):
        fields.append((b"preference-applied", f"handling={handling}".encode()))
    return fields


def _items(ignored: Ignored) -> Sequence[str]:
    """Return a list of RFC 9651: the names, and the number of those that are not repeated."""
    names = [name if _TOKEN.fullmatch(name) else _string(name) for name in ignored.names]
    return [*names, str(ignored.others)] if ignored.others else names


def _string(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
