"""Rate limiting of operations: one read is reserved before parsing, and settled once the cost in units is known.

Parsing is therefore always charged. A client may have no read left to reserve, or may have exceeded its parsing time.
It can still run cached documents: its mutations, under their own limit, if the request is short.
"""

from collections.abc import Callable
from dataclasses import replace

from resolvers.context import Context
from resolvers.errors import GatewayError, RateLimited
from resolvers.rate_limits import Allowance, Kind
from schema.documents.parse import Document
from schema.documents.rate_units import RateUnits
from schema.execution import GraphQLRequest, Runner

MAX_SHORT_BYTES = 16 * 1024
"""Maximum bytes of a message that is parsed without a reserved read; parsing them takes about 3 ms at worst."""

AuditRecord = Callable[[Allowance], None]
"""Receives the allowance that the response headers report to the client."""


class Reservation:
    """The attempt to reserve one read for a request; `allowance.granted` tells whether it succeeded."""

    def __init__(self, context: Context, allowance: Allowance) -> None:
        self._context = context
        self.allowance = allowance

    async def require_parsing(self) -> None:
        """Raise `RateLimited` if the client may not have an uncached or long text parsed now."""
        self.allowance.require()
        if seconds := self._context.parsing_wait:
            await self.release()
            raise RateLimited(seconds)

    async def release(self) -> None:
        """Release the read, if it was reserved."""
        if self.allowance.granted:
            await self._context.release(Kind.READS)

    def refuse(self, error: GatewayError) -> GatewayError:
        """Return `error`. Raise `RateLimited` or `Forbidden` instead if one applies, because they take precedence."""
        self._context.require_admission(self.allowance)
        return error


async def reserve(context: Context) -> Reservation:
    """Reserve one read."""
    return Reservation(context, await context.spend(Kind.READS))


async def charge(
    runner: Runner, ask: GraphQLRequest, context: Context, reservation: Reservation, note: AuditRecord = lambda _: None
) -> tuple[Document, RateUnits]:
    """Find the requested document, and charge the client for its operation.

    Args:
        runner: Finds and parses the document.
        ask: The request.
        context: The caller's context.
        reservation: The read that was reserved for this request.
        note: Receives the allowance that remains after the charge.

    Raises:
        RateLimited: The client's limit is exhausted. It takes precedence over the others.
        Forbidden: The token is not valid for the requested brand.
        GatewayError: `Runner.read` refused the document.
        InvalidInput: A text that should be a marker is none.
    """
    known = runner.knows(ask)
    if not known:
        await reservation.require_parsing()
    try:
        with context.parsing():
            document = runner.read(ask, context)
            price = document.price(ask.operation_name, ask.variables)
    except GatewayError as error:
        raise reservation.refuse(error) from None
    allowance = await _settled(context, price, reservation, known=known)
    note(allowance)
    context.require_admission(allowance)
    await context.require_consistency(ask.consistency)
    return document, price


async def _settled(context: Context, price: RateUnits, reservation: Reservation, *, known: bool) -> Allowance:
    """Charge the rest of the price, and release the reserved read if writes are charged instead.

    A refused operation gets the read back only if its document was `known`, that is, already cached. Otherwise the
    read pays for parsing.
    """
    reserved = reservation.allowance
    if price.kind is Kind.READS and (price.units == 1 or not reserved.granted):
        return reserved
    allowance = await context.spend(price.kind, price.units - (price.kind is Kind.READS))
    gives_back = price.kind is Kind.WRITES if allowance.granted else known
    if gives_back:
        await reservation.release()
        if price.kind is Kind.READS:
            allowance = replace(allowance, remaining=allowance.remaining + 1)
    return allowance
