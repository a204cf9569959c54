"""Who calls, as the headers of a REST request tell it."""

from starlette.requests import Request

from resolvers.context import Context, sign_in


async def signed_in(request: Request) -> Context:
    """Give the context of this request. Raises `Unauthenticated`, `InvalidToken` or `Forbidden`."""
    context = await sign_in(
        request.state.services,
        authorization=request.headers.get("authorization"),
        stated_brand_id=request.headers.get("x-brand-id"),
        request_id=request.state.request_id,
        origin=request.state.foreign_origin,
    )
    request.state.caller = context.caller
    return context
