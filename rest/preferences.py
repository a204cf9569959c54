"""What a request names that is not known here, and whether its sender wants it refused. Source: RFC 7240.

Unknown names are ignored and told in `X-Ignored`; under `Prefer: handling=strict` they are refused. A query parameter
that is nearly a known one is always refused: ignored, it would record what was only to be tried, or list everything.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Literal, cast

from starlette.requests import Request
from starlette.types import Scope

from resolvers.commands import NAMES, misspelt, unknown_names
from resolvers.errors import Violation
from resolvers.spelling import Ignored, near_misses
from rest.responses import Fields

Handling = Literal["strict", "lenient"]

# The commas between preferences, and not those in their quoted strings, take them apart.
_PREFERENCE = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+')
_HANDLING = re.compile(r'handling\s*=\s*("?)(strict|lenient)\1\s*(;.*)?', re.IGNORECASE)
_NAMES_HANDLING = re.compile(r"handling\s*(=|;|$)", re.IGNORECASE)
_TOKEN = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def is_strict(request: Request) -> bool:
    """Whether unknown names are to be refused. The preference that decides is kept to be told as applied."""
    prefer: str | None = request.scope["state"]["head"].get("prefer")
    if prefer is None:
        return False
    handling = _handling(prefer)
    if handling:
        request.scope["state"]["handling"] = handling
    return handling == "strict"


def _handling(prefer: str) -> Handling | None:
    preferences = map(str.strip, _PREFERENCE.findall(prefer))
    # Of a preference that is named twice the first counts.
    first = next(filter(_NAMES_HANDLING.match, preferences), "")
    match = _HANDLING.fullmatch(first)
    return cast("Handling", match[2].lower()) if match else None


def query_violations(request: Request, known: Collection[str], *, strict: bool) -> list[Violation]:
    """Return what is wrong with the names of the query's parameters; other unknown ones are ignored."""
    if not request.scope["query_string"]:
        return []
    sent = [name for name in dict.fromkeys(request.query_params.keys()) if name not in known]
    if nearly := near_misses(sent, known):
        return [misspelt(right) for right in nearly]
    ignore(request, sent)
    return unknown_names(sent, known) if strict else []


def ignore(request: Request, names: Iterable[str]) -> None:
    """Keep the names of what is ignored of this request, so that its answer tells them."""
    request.scope["state"].setdefault("ignored", []).extend(names)


def ignored_of(scope: Scope) -> Ignored:
    """Return what was ignored of the request."""
    return Ignored.of(scope["state"].get("ignored", ()), NAMES)


def preference_fields(scope: Scope) -> Fields:
    """Return the fields of an answer that tell what was ignored, and which preference was applied."""
    state = scope["state"]
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
