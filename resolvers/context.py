"""What every resolver is given: who calls, for which brand, and what it may use. Both doors make it the same way."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from models import Encounter
from resolvers.access import Caller, Permission, require, resolve_brand
from resolvers.answer_bytes import AnswerBytes, AnswerMemory
from resolvers.audit_notes import NOT_A_REFUSAL, reads, refusal
from resolvers.errors import Forbidden, GatewayError, InsufficientScope, Unauthenticated
from resolvers.outbox import Reads
from resolvers.rate_limits import Allowance, Kind
from resolvers.services import Services
from resolvers.sql import Database

# Told to a client whose token has no brand, and so of its own request alone.
NO_BRAND = "No brand was named: the token has none, so name one in X-Brand-Id."


NOT_BEGUN = AnswerMemory().begin()
"""In place of an answer, until the context of its request is made."""


@dataclass(frozen=True, slots=True)
class Context:
    """One request, as the resolvers see it."""

    caller: Caller
    stated_brand_id: str | None
    request_id: str
    services: Services
    strict: bool = False
    """Whether a member that is not known is refused, where it would be ignored otherwise."""
    noted: set[str] = field(default_factory=set, repr=False, compare=False)
    """Which refusals of this request are on the trail already."""
    reads: Reads | None = None
    """Where the fields of an event are read; None for everything but a subscription."""
    answer: AnswerBytes = field(default=NOT_BEGUN, repr=False, compare=False)
    """The bytes of the answer. The door releases them when the client has taken it."""

    def __post_init__(self) -> None:
        if self.answer is NOT_BEGUN:
            object.__setattr__(self, "answer", self.services.answers.begin())

    @property
    def database(self) -> Database:
        """Where everything is kept."""
        return self.services.database if self.reads is None else self.reads

    def require(self, operation: Permission) -> None:
        """Return if the caller may do this. Raises `InsufficientScope`."""
        require(self.caller, self.services.scopes[operation])

    def may(self, operation: Permission) -> bool:
        """Whether the caller may do this."""
        try:
            self.require(operation)
        except InsufficientScope:
            return False
        return True

    async def spend(self, kind: Kind, units: int = 1) -> Allowance:
        """Count the request as units of this kind. Who may is told first, so it is the door that calls `require`."""
        return await self.services.rates.spend(self.caller.client_id, kind, units)

    async def release(self, kind: Kind, units: int = 1) -> None:
        """Give back units that were granted."""
        await self.services.rates.release(self.caller.client_id, kind, units)

    @contextmanager
    def parsing(self) -> Iterator[None]:
        """Count the CPU time of a block, which parses or validates what was sent and awaits nothing."""
        began = time.thread_time()
        try:
            yield
        finally:
            self.services.rates.note_parsing(self.caller.client_id, time.thread_time() - began)

    @property
    def parsing_wait(self) -> float:
        """Seconds until something new of the client's may be parsed: 0 where it may be now."""
        return self.services.rates.parsing_wait(self.caller.client_id)

    def release_answer(self) -> None:
        """Release the memory of the answer, and count its bytes for the client."""
        self.services.rates.note_answer(self.caller.client_id, self.answer.total)
        self.answer.release()

    def require_one_brand(self) -> None:
        """Return if `X-Brand-Id` and the token do not contradict each other. Raises `Forbidden`."""
        resolve_brand(self.caller, self.stated_brand_id)

    def note_read(self, encounters: Iterable[Encounter]) -> None:
        """Leave on the trail whose encounters the caller is given. Never waits, never raises."""
        self.note_given(Counter((encounter.brand_id, encounter.patient_id) for encounter in encounters))

    def note_given(self, given: Mapping[tuple[str, str], int]) -> None:
        """The same, where the encounters are counted already, by brand and patient."""
        for note in reads(self.caller, self.request_id, given):
            self.services.audit_sink.record(note)

    def note_refusal(self, error: GatewayError) -> None:
        """Leave on the trail that the caller is refused; once a request, however many fields are refused alike.

        Counted is each of them, and what is no fault of the caller's too.
        """
        self.services.metrics.refused(error.code)
        if isinstance(error, NOT_A_REFUSAL):
            return
        note = refusal(self.caller, self.request_id, error)
        if (kind := str(note.details)) not in self.noted:
            self.noted.add(kind)
            self.services.audit_sink.record(note)

    def acting_brand(self, named_in_command: object = None) -> str:
        """Give the brand the caller acts for: the token's, else `X-Brand-Id`'s, else the command's own.

        Raises `Forbidden` when they contradict each other, or when nothing says which brand.
        """
        brand_id = resolve_brand(self.caller, self.stated_brand_id)
        named = named_in_command if isinstance(named_in_command, str) and named_in_command else None
        if brand_id is None:
            brand_id = named
        if brand_id is None:
            raise Forbidden(NO_BRAND)
        if named is not None and named != brand_id:
            raise Forbidden
        return brand_id


class Credentials(NamedTuple):
    """What a request, or a socket with its first message, says of who calls.

    Authorization and brand have all the lines of their headers, which together make the header (RFC 9110, 5.3): two
    tokens are none, nor two brands one.
    """

    authorization: str
    stated_brand_id: str | None
    request_id: str
    origin: str | None = None
    """That of the page that calls, where it is another site's."""
    address: str | None = None
    """The caller's own."""


async def authenticate(services: Services, said: Credentials) -> Context:
    """Find out who calls. Whether the brand fits is not asked yet.

    Raises `Unauthenticated`, `RateLimited` for an address that tried too many tokens, `InvalidToken`, or `Forbidden`
    for a page that this client does not call from.
    """
    try:
        caller = await _caller(services, said.authorization, said.address)
    except GatewayError as error:
        services.metrics.refused(error.code)
        raise
    context = Context(caller, said.stated_brand_id, said.request_id, services)
    if said.origin is not None and said.origin not in services.origins.get(caller.client_id, ()):
        forbidden = Forbidden("This client does not call from that page.")
        # Known here alone: whoever phrases it has no context to leave a note with.
        context.note_refusal(forbidden)
        raise forbidden
    return context


async def _caller(services: Services, authorization: str, address: str | None) -> Caller:
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated
    return await services.rates.verified(token.strip(), address, services.verify)
