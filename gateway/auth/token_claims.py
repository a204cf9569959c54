"""Claims of a token, from an introspection response or a JWT access token.

A null claim counts as absent. Numbers are exact (`int` or `Decimal`), because `json_text` parses them so.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Protocol

from gateway.auth.token_profiles import Claims, machine_profile, marks_other_token
from resolvers import json_text
from resolvers.access import Caller
from resolvers.errors import InvalidToken

logger = logging.getLogger(__name__)

BRAND = ("brand", "brand_id")
CLIENT = ("client_id", "azp", "appid", "cid")
"""Claims that name the client: in the RFCs, in OpenID Connect, in Entra ID (version 1.0) and in Okta.

`sub` is not one of them: it may name a person.
"""

SCOPES = ("scope", "scp")
"""Claims that list the scopes, in the RFCs, and in Okta and Entra ID."""


@dataclass(frozen=True, slots=True)
class ClaimNames:
    """Names of the claims that describe a caller. Of several names, the first that a token has counts.

    A name is that of a claim, or a path to a member of a nested claim: see `value_of`.
    """

    brand: Sequence[str] = BRAND
    """Two claims of these that differ are ambiguous, and refused."""

    client: Sequence[str] = CLIENT
    scopes: Sequence[str] | None = None
    """None: those of `SCOPES`, and the provider's own for a machine."""

    user: str = "sub"
    """Claim that identifies a person."""


MAX_TOKEN_CHARACTERS = 8 * 1024

MAX_NAME_CHARACTERS = 255
"""Characters of a client, user or brand name; they become parts of database keys, whose size is limited.

Source: OpenID Connect Core section 2, on `sub`.
"""

# Seconds since 1970; below the maximum of `datetime`, so that adding the leeway does not overflow.
LAST_INSTANT = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


class Clock(Protocol):
    """Clock in seconds; the module `time` implements it."""

    def time(self) -> float:
        """Return the seconds since 1970; this clock can be set back."""

    def monotonic(self) -> float:
        """Return the seconds since an arbitrary start; this clock cannot be set back."""


class UnreadableClaimsError(Exception):
    """A claim violates its RFC. The message names the claim, never its value."""


def invalid_token(reason: str) -> InvalidToken:
    """Log why a token is rejected, for the developer of the client, and return the error for the caller."""
    logger.info("token refused", extra={"reason": reason})
    return InvalidToken()


def value_of(claims: Claims, name: str) -> Any:
    """Return the claim of this name; else the member at this path of names with dots between; else None."""
    if name in claims:
        return claims[name]
    outer, _, rest = name.partition(".")
    inner = claims.get(outer)
    return value_of(inner, rest) if rest and isinstance(inner, Mapping) else None


def caller_of(claims: Claims, names: ClaimNames) -> Caller:
    """Return the caller that the claims describe.

    A caller is a person who acts through the client, unless the token has the marks of a machine (`token_profiles`).

    Raises:
        UnreadableClaimsError: A claim has another type than its RFC or its provider gives it.
        InvalidToken: The token is an ID token, is bound to a key, or names no client or no person.

    """
    if marks_other_token(claims):
        raise invalid_token("not an access token")
    # The gateway checks no proof of possession of the key. Source: RFC 9449 section 7.2, RFC 8705 section 3.
    if claims.get("cnf") is not None:
        raise invalid_token("bound to a key")
    client_id = next((name for name in (_name(claims, claim) for claim in names.client) if name is not None), None)
    if client_id is None:
        raise invalid_token("no client")
    _name(claims, "sub")
    machine = machine_profile(claims, client_id)
    user_id = None if machine else _name(claims, names.user)
    if machine is None and user_id is None:
        raise invalid_token("no user")
    scopes = names.scopes or ((machine.machine_scopes, *SCOPES) if machine and machine.machine_scopes else SCOPES)
    expires = instant(claims, "exp")
    return Caller(
        client_id=client_id,
        scopes=_scopes(claims, scopes),
        user_id=user_id,
        brand_id=_brand(claims, names.brand),
        expires_at=None if expires is None else datetime.fromtimestamp(expires, UTC),
    )


def refuse_another_services(claims: Claims, expected: Mapping[str, str], *, optional: Collection[str] = ()) -> None:
    """Return if the issuer and the audience of a token are the expected ones. Raises `InvalidToken`.

    Args:
        claims: The claims of the token.
        expected: The required `iss`, and the name of this gateway that `aud` must equal or contain.
        optional: Names of expected claims that may be absent. A claim that is present must match all the same.

    """
    for claim, right in expected.items():
        named = claims.get(claim)
        if named is None and claim in optional:
            continue
        if right not in (named if claim == "aud" and isinstance(named, list) else [named]):
            raise invalid_token(claim)


def refuse_outside_its_time(claims: Claims, *, now: float, leeway: float) -> None:
    """Return if `now` is between the `nbf` and the `exp` of a token.

    Args:
        claims: The claims of the token.
        now: Seconds since 1970.
        leeway: Seconds by which the issuer's clock may differ.

    Raises:
        InvalidToken: The token is expired or not valid yet.
        UnreadableClaimsError: `exp` or `nbf` is not a NumericDate.

    """
    expires, not_before = instant(claims, "exp"), instant(claims, "nbf")
    if expires is not None and expires <= now - leeway:
        raise invalid_token("expired")
    if not_before is not None and not_before > now + leeway:
        raise invalid_token("not valid yet")


def instant(claims: Claims, claim: str) -> float | None:
    """Return a NumericDate (RFC 7519, 2) in seconds since 1970, or None if absent. Raises `UnreadableClaimsError`."""
    value = claims.get(claim)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or not 0 <= value <= LAST_INSTANT:
        raise UnreadableClaimsError(claim)
    return float(value)


def _scopes(claims: Claims, names: Sequence[str]) -> frozenset[str]:
    for name in names:
        value = value_of(claims, name)
        if isinstance(value, str):
            return frozenset(value.split(" ")) - {""}
        # Zitadel lists roles as the names of an object's members.
        if isinstance(value, list | dict):
            if not all(isinstance(each, str) for each in value):
                raise UnreadableClaimsError(name)
            return frozenset(value)
        if value is not None:
            raise UnreadableClaimsError(name)
    return frozenset()


def _brand(claims: Claims, names: Sequence[str]) -> str | None:
    brands = {brand for brand in (_name(claims, claim) for claim in names) if brand is not None}
    # Two different brands are ambiguous.
    if len(brands) > 1:
        raise UnreadableClaimsError(" and ".join(names))
    return brands.pop() if brands else None


def _name(claims: Claims, claim: str) -> str | None:
    value = value_of(claims, claim)
    if value is None:
        return None
    # An empty name is refused rather than treated as absent, because a caller without a brand may choose any brand.
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_CHARACTERS or json_text.problem_with(value):
        raise UnreadableClaimsError(claim)
    return value
