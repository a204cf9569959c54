"""A request's context for the resolvers: the caller, its brand, and the services. REST and GraphQL build it alike."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from models import Encounter
from resolvers.access import Caller, Permission, require, resolve_brand
from resolvers.answer_bytes import AnswerBytes, AnswerMemory
from resolvers.audit_notes import NOT_A_REFUSAL, patients_read, reads, refusal, worklist_read
from resolvers.consistency import Consistency
from resolvers.errors import Forbidden, GatewayError, InsufficientScope, Unauthenticated
from resolvers.outbox import Reads
from resolvers.rate_limits import Allowance, Kind
from resolvers.services import Services
from resolvers.sql import Database

# Sent only to a client whose token has no brand, about its own request.
NO_BRAND = "The token names no brand; send one in X-Brand-Id."


NOT_BEGUN = AnswerMemory().begin()
"""Placeholder for the answer until the request's context exists."""


@dataclass(frozen=True, slots=True)
class Context:
    """One request, as the resolvers see it."""

    caller: Caller
    stated_brand_id: str | None
    request_id: str
    services: Services
    strict: bool = False
    """Whether an unknown member is refused instead of ignored."""
    noted: set[str] = field(default_factory=set, repr=False, compare=False)
    """The refusals of this request that have an audit record already."""
    reads: Reads | None = None
    """Where the fields of an event are read; None outside subscriptions."""
    consistency: Consistency | None = field(default=None, repr=False, compare=False)
    """None if the process has no replicas and the request brings no marker."""
    answer: AnswerBytes = field(default=NOT_BEGUN, repr=False, compare=False)
    """The bytes of the answer. The REST or GraphQL door releases them when the client has received it."""

    def __post_init__(self) -> None:
        if self.answer is NOT_BEGUN:
            object.__setattr__(self, "answer", self.services.answers.begin())

    @property
    def database(self) -> Database:
        """The database for this request: the event's own reads in a subscription, a replica, or the primary."""
        if self.reads is not None:
            return self.reads
        reads = self.consistency.reads if self.consistency else None
        return self.services.database if reads is None else reads.requests

    @property
    def worklist_database(self) -> Database:
        """The database for statements about all patients of a brand."""
        reads = self.consistency.reads if self.consistency else None
        if reads is not None:
            return reads.worklists
        assert self.services.worklists is not None, "both doors have them"
        return self.services.worklists.database

    async def require_consistency(self, extension: str | None = None) -> None:
        """Read the markers that the request brings, in its header and its `extensions`.

        Raises `InvalidInput` or `TemporarilyUnavailable`.
        """
        if self.consistency is not None:
            await self.consistency.require(extension)
        elif extension is not None:
            await consistency_of(self.services, self.caller.client_id, extension).require()

    def begin_change(self) -> None:
        """Read from the primary from now on, and give the answer a marker if there are replicas."""
        if self.consistency is not None:
            self.consistency.begin_change()

    async def marker(self) -> str | None:
        """Return the marker of the answer; None without replicas, or if the request changes nothing. Never raises."""
        return None if self.consistency is None else await self.consistency.marker()

    def require(self, operation: Permission) -> None:
        """Return if the caller may perform the operation. Raises `InsufficientScope`."""
        require(self.caller, self.services.scopes[operation])

    def may(self, operation: Permission) -> bool:
        """Whether the caller may perform the operation."""
        try:
            self.require(operation)
        except InsufficientScope:
            return False
        return True

    async def spend(self, kind: Kind, units: int = 1) -> Allowance:
        """Count the request as units of this kind. Callers check permissions first: 403 takes precedence over 429."""
        return await self.services.rates.spend(self.caller.client_id, kind, units)

    async def release(self, kind: Kind, units: int = 1) -> None:
        """Return units that were granted to the rate limit."""
        await self.services.rates.release(self.caller.client_id, kind, units)

    @property
    def traceparent(self) -> str | None:
        """The running span, in the form of W3C Trace Context; None without traces."""
        current = self.services.traceparent
        return None if current is None else current()

    @contextmanager
    def parsing(self) -> Iterator[None]:
        """Count the CPU time of a block that parses or validates input and awaits nothing."""
        began = time.thread_time()
        try:
            yield
        finally:
            self.services.rates.note_parsing(self.caller.client_id, time.thread_time() - began)

    @property
    def parsing_wait(self) -> float:
        """Seconds until new input of the client may be parsed; 0 if it may be parsed now."""
        return self.services.rates.parsing_wait(self.caller.client_id)

    def release_answer(self) -> None:
        """Release the memory of the answer, and count its bytes for the client."""
        self.services.rates.note_answer(self.caller.client_id, self.answer.total)
        self.answer.release()

    def require_admission(self, allowance: Allowance) -> None:
        """Return if the request may proceed. Raises `RateLimited`, or else `Forbidden` for a contradicting brand."""
        allowance.require()
        self.require_one_brand()

    def require_one_brand(self) -> None:
        """Return if `X-Brand-Id` does not contradict the token. Raises `Forbidden`."""
        resolve_brand(self.caller, self.stated_brand_id)

    def note_read(self, encounters: Iterable[Encounter]) -> None:
        """Add audit records for the encounters that the caller reads. Never waits, never raises."""
        self.note_given(Counter((encounter.brand_id, encounter.patient_id) for encounter in encounters))

    def note_given(self, given: Mapping[tuple[str, str], int]) -> None:
        """Like `note_read`, for encounters already counted by brand and patient."""
        for note in reads(self.caller, self.request_id, given):
            self.services.audit_sink.record(note)

    def note_patients(self, patients: Sequence[tuple[str, str]]) -> None:
        """Add an audit record for patients, by brand and id, whose list or external ids the caller reads.

        There is one record for each brand, of which a request has one. Never waits, never raises.
        """
        of_brand = defaultdict[str, list[str]](list)
        for brand_id, patient_id in patients:
            of_brand[brand_id].append(patient_id)
        for brand_id, patient_ids in of_brand.items():
            self.services.audit_sink.record(patients_read(self.caller, self.request_id, brand_id, patient_ids))

    def note_worklist(self, brand_id: str, given: Mapping[str, int]) -> None:
        """Add one audit record for the encounters of a worklist, which names the patients; none if there are none.

        `given` maps patients to the number of encounters.
        """
        if given:
            self.services.audit_sink.record(worklist_read(self.caller, self.request_id, brand_id, given))

    def note_refusal(self, error: GatewayError) -> None:
        """Add an audit record: one for each distinct refusal of a request, however many fields it affects.

        The metrics count each refusal, including those that are no fault of the caller.
        """
        self.services.metrics.refused(error.code)
        if isinstance(error, NOT_A_REFUSAL):
            return
        note = refusal(self.caller, self.request_id, error)
        if (kind := str(note.details)) not in self.noted:
            self.noted.add(kind)
            self.services.audit_sink.record(note)

    def acting_brand(self, named_in_command: object = None) -> str:
        """Return the brand that the caller acts for: the token's, else `X-Brand-Id`'s, else the command's own.

        Raises `Forbidden` if they contradict each other, or if none of them names a brand.
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
    """The credentials of a request, or of a WebSocket with its first message.

    Repeated header lines of Authorization and brand are joined (RFC 9110, 5.3), which makes a repeated token or brand
    invalid.
    """

    authorization: str
    stated_brand_id: str | None
    request_id: str
    origin: str | None = None
    """The origin of the calling page, if it is another site's."""
    address: str | None = None
    """The caller's network address."""
    consistency: str | None = None
    """The marker of an earlier change, which the request must see."""


async def authenticate(services: Services, credentials: Credentials) -> Context:
    """Return the context of the authenticated caller. The brand is not checked yet.

    Raises `Unauthenticated`, `RateLimited` for an address that tried too many tokens, `InvalidToken`, or `Forbidden`
    for an origin that is not allowed for this client.
    """
    try:
        caller = await _caller(services, credentials.authorization, credentials.address)
    except GatewayError as error:
        services.metrics.refused(error.code)
        raise
    consistency = None
    if services.replicas is not None or credentials.consistency is not None:
        consistency = consistency_of(services, caller.client_id, credentials.consistency)
    context = Context(caller, credentials.stated_brand_id, credentials.request_id, services, consistency=consistency)
    if credentials.origin is not None and not services.origins.allows(credentials.origin, caller.client_id):
        forbidden = Forbidden("The client may not call from this origin; GATEWAY_ORIGINS lists those that may.")
        # Audited here: the code that formats this error has no context to add a record with.
        context.note_refusal(forbidden)
        raise forbidden
    return context


def consistency_of(services: Services, client_id: str, sent: str | None) -> Consistency:
    """Return the consistency of a request of this client, with the marker that it sent."""
    return Consistency(services.replicas, client_id, services.feed.cursors, sent)


async def _caller(services: Services, authorization: str, address: str | None) -> Caller:
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated
    return await services.rates.verified(token.strip(), address, services.verify)
