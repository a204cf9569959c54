"""What an operation is charged: one read is reserved before anything is parsed, and settled when the price is known.

So parsing is never free, whatever is sent. A client without a read to reserve, or one that made the gateway parse for
too long, is still served what is known here already: its mutations, under their own limit, as long as they are short.
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
"""How much is read of a client that has nothing to reserve: it takes about 3 ms at worst."""

AuditRecord = Callable[[Allowance], None]
"""Takes what the client is told it has left."""


class Reservation:
    """A read that was reserved for a request, or was not."""

    def __init__(self, context: Context, allowance: Allowance) -> None:
        self._context = context
        self.allowance = allowance

    async def require_parsing(self) -> None:
        """Return if something new may be parsed. Raises `RateLimited`."""
        self.allowance.require()
        if seconds := self._context.parsing_wait:
            await self.release()
            raise RateLimited(seconds)

    async def release(self) -> None:
        """Give the read back, if it was reserved."""
        if self.allowance.granted:
            await self._context.release(Kind.READS)

    def refuse(self, error: GatewayError) -> GatewayError:
        """Give the error of a request that got no further. Raises what comes before it: how often, and which brand."""
        self.allowance.require()
        self._context.require_one_brand()
        return error


async def reserve(context: Context) -> Reservation:
    """Reserve one read."""
    return Reservation(context, await context.spend(Kind.READS))


async def charge(
    runner: Runner, ask: GraphQLRequest, context: Context, reservation: Reservation, note: AuditRecord = lambda _: None
) -> tuple[Document, RateUnits]:
    """Find the document that is asked for, and charge for it what it counts for.

    Raises `RateLimited`, then `Forbidden` for a brand that the token is not for, then what `Runner.read` raises.
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
    allowance.require()
    context.require_one_brand()
    return document, price


async def _settled(context: Context, price: RateUnits, reservation: Reservation, *, known: bool) -> Allowance:
    """Take what is left of the price. Give the reserved read back where something else is charged, or nothing is.

    One that is refused after its document was parsed for the first time is charged that read: else parsing were free.
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
