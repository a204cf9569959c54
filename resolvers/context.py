"""What every resolver is given: who calls, for which brand, and what it may use. Both doors make it the same way."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from models import Encounter
from resolvers.access import DEFAULT_SCOPES, Caller, Operation, Scopes, require, resolve_brand
from resolvers.commands import DEFAULT_LIMITS, InputLimits
from resolvers.errors import Forbidden, Unauthenticated
from resolvers.paging import PageLimits
from resolvers.sql import Database

Verify = Callable[[str], Awaitable[Caller]]
"""Turns a token into who it stands for, or raises `InvalidToken`."""


@dataclass(frozen=True, slots=True)
class Services:
    """What exists once per process and is lent to every request."""

    verify: Verify
    database: Database
    published: Callable[[Encounter], bytes]
    """How the published page shows an encounter: what a replay must repeat byte for byte."""
    origins: Mapping[str, Collection[str]] = field(default_factory=dict)
    """From which pages a client may call out of a browser, by client id."""
    scopes: Scopes = field(default_factory=lambda: DEFAULT_SCOPES)
    input_limits: InputLimits = DEFAULT_LIMITS
    page_limits: PageLimits = PageLimits()
    keys_kept_for: timedelta = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Context:
    """One request, as the resolvers see it."""

    caller: Caller
    stated_brand_id: str | None
    request_id: str
    services: Services

    @property
    def database(self) -> Database:
        """Where everything is kept."""
        return self.services.database

    def require(self, operation: Operation) -> None:
        """Return if the caller may do this. Raises `InsufficientScope`."""
        require(self.caller, self.services.scopes[operation])

    def acting_brand(self, named_in_command: object = None) -> str:
        """Give the brand the caller acts for: the token's, else `X-Brand-Id`'s, else the command's own.

        Raises `Forbidden` when they contradict each other, or when nothing says which brand.
        """
        brand_id = resolve_brand(self.caller, self.stated_brand_id)
        named = named_in_command if isinstance(named_in_command, str) and named_in_command else None
        if brand_id is None:
            brand_id = named
        if brand_id is None or (named is not None and named != brand_id):
            raise Forbidden
        return brand_id


async def sign_in(
    services: Services,
    *,
    authorization: str | None,
    stated_brand_id: str | None,
    request_id: str,
    origin: str | None = None,
) -> Context:
    """Find out who calls, from the `Authorization` and `X-Brand-Id` of a request or of a socket's first message.

    `origin` is that of the page that calls, where it is another site's. Raises `Unauthenticated`, `InvalidToken`, or
    `Forbidden` for a page that this client does not call from.
    """
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated
    caller = await services.verify(token.strip())
    if origin is not None and origin not in services.origins.get(caller.client_id, ()):
        raise Forbidden("This client does not call from that page.")
    resolve_brand(caller, stated_brand_id)
    return Context(caller, stated_brand_id, request_id, services)
