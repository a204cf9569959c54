"""Authentication and authorization of a REST request by its headers."""

from starlette.requests import Request

from resolvers.access import Permission
from resolvers.context import Context, authenticate
from resolvers.rate_limits import Kind
from resolvers.request_state import state_of


async def authorize_request(request: Request, operation: Permission | None = None) -> Context:
    """Authenticate, rate-limit and authorize the request; return its context.

    Raises the errors of authentication, then `InsufficientScope`, `RateLimited`, `Forbidden`, or `InvalidInput` for a
    marker that is none, in this order.
    """
    context = await signed_in(request)
    # Counted before any refusal, because refused requests count too.
    kind = Kind.READS if request.method in {"GET", "HEAD", "OPTIONS"} else Kind.WRITES
    state_of(request.scope)["allowance"] = allowance = await context.spend(kind)
    if operation is not None:
        context.require(operation)
    context.require_admission(allowance)
    await context.require_consistency()
    if kind is Kind.WRITES:
        context.begin_change()
    return context


async def signed_in(request: Request) -> Context:
    """Return the context of this request. Raises `Unauthenticated`, `RateLimited`, `InvalidToken` or `Forbidden`."""
    state = state_of(request.scope)
    context = await authenticate(state["services"], state["introduction"])
    state["caller"] = context.caller
    state["context"] = context
    return context
