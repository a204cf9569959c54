"""What a token says of its bearer: the same members in an introspection answer and in a JWT access token.

A member that is null is one that is absent. Numbers are exact (`int` or `Decimal`), as `json_text` reads them.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Protocol

from gateway.observability.logs import log
from resolvers import json_text
from resolvers.access import Caller
from resolvers.errors import InvalidToken

Claims = Mapping[str, Any]

BRAND = ("brand", "brand_id")
CLIENT = ("client_id", "azp")
"""Claims that name the client: in the RFCs, and in OpenID Connect. `sub` is not one: it may be a person."""

MAX_TOKEN_CHARACTERS = 8 * 1024

MAX_NAME_CHARACTERS = 255
"""Source: OpenID Connect Core section 2, of `sub`. Names become parts of keys in the database, which are bounded."""

# Short of the last instant that Python knows, so that there is room for a leeway.
LAST_INSTANT = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


class Clock(Protocol):
    """What tells the time, in seconds; the module `time` is one."""

    def time(self) -> float:
        """Tell the time since 1970, which can be set back."""

    def monotonic(self) -> float:
        """Tell the time since some moment, which cannot."""


class UnreadableClaimsError(Exception):
    """A claim is not what the RFCs say it is; the message names the claim, never its value."""


def invalid_token(reason: str) -> InvalidToken:
    """Write down why a token is refused, for whoever sets a client up, and give what the caller is told."""
    log.info("token refused", reason=reason)
    return InvalidToken()


def caller_of(claims: Claims, *, brand: Sequence[str] = BRAND) -> Caller:
    """Give who these claims stand for. `brand` are the claims that may name the brand.

    A `sub` other than the client is a person who acts through it. Raises `UnreadableClaimsError`, and `InvalidToken`
    for a token that names no client or is bound to a key.
    """
    # Source: RFC 9449 section 7.2, RFC 8705 section 3. Nobody proves to us that the key is theirs.
    if claims.get("cnf") is not None:
        raise invalid_token("bound to a key")
    client_id = next((name for name in (_name(claims, claim) for claim in CLIENT) if name is not None), None)
    if client_id is None:
        raise invalid_token("no client")
    subject = _name(claims, "sub")
    expires = instant(claims, "exp")
    return Caller(
        client_id=client_id,
        scopes=_scopes(claims),
        user_id=subject if subject != client_id else None,
        brand_id=_brand(claims, brand),
        expires_at=None if expires is None else datetime.fromtimestamp(expires, UTC),
    )


def refuse_another_services(claims: Claims, expected: Mapping[str, str], *, optional: Collection[str] = ()) -> None:
    """Return for a token that was made by and for whom it should be. Raises `InvalidToken`.

    Args:
        claims: What the token says.
        expected: The right `iss`, and the name of this gateway that `aud` must hold, a text or a list of them.
        optional: Which of these the claims may leave out. One that is there must be right all the same.

    """
    for claim, right in expected.items():
        named = claims.get(claim)
        if named is None and claim in optional:
            continue
        if right not in (named if claim == "aud" and isinstance(named, list) else [named]):
            raise invalid_token(claim)


def refuse_outside_its_time(claims: Claims, *, now: float, leeway: float) -> None:
    """Return while a token is good by its own `exp` and `nbf`, of a clock that may be `leeway` seconds off.

    Raises `InvalidToken` or `UnreadableClaimsError`.
    """
    expires, not_before = instant(claims, "exp"), instant(claims, "nbf")
    if expires is not None and expires <= now - leeway:
        raise invalid_token("expired")
    if not_before is not None and not_before > now + leeway:
        raise invalid_token("not valid yet")


def instant(claims: Claims, claim: str) -> float | None:
    """Give a NumericDate (RFC 7519 section 2), in seconds since 1970. Raises `UnreadableClaimsError`."""
    value = claims.get(claim)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or not 0 <= value <= LAST_INSTANT:
        raise UnreadableClaimsError(claim)
    return float(value)


def _scopes(claims: Claims) -> frozenset[str]:
    scope = claims.get("scope")
    if not isinstance(scope, str | None):
        raise UnreadableClaimsError("scope")
    return frozenset((scope or "").split(" ")) - {""}


def _brand(claims: Claims, names: Sequence[str]) -> str | None:
    brands = {brand for brand in (_name(claims, claim) for claim in names) if brand is not None}
    # Which of two would hold is not for us to guess.
    if len(brands) > 1:
        raise UnreadableClaimsError(" and ".join(names))
    return brands.pop() if brands else None


def _name(claims: Claims, claim: str) -> str | None:
    value = claims.get(claim)
    if value is None:
        return None
    # An empty name is not an absent one: a caller without a brand may choose it.
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_CHARACTERS or json_text.problem_with(value):
        raise UnreadableClaimsError(claim)
    return value
