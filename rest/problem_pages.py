"""Explanations of refusals: a page for each code and each rule, to which refusals link.

Needs no token, because a caller that was refused one may follow the link; it reveals no data of any person.
"""

from collections.abc import Iterator

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from resolvers.errors import GatewayError
from resolvers.rules import RULES
from rest.errors import status_of_kind, summary_of


async def problem(request: Request) -> Response:
    """Return the explanation of a code, for each error that has it."""
    code = request.path_params["code"]
    kinds = [kind for kind in refusals() if kind.code == code]
    if not kinds:
        raise HTTPException(404)
    cases = (f"{summary_of(kind)}\nStatus {status_of_kind(kind)}, recorded: {kind.recorded}." for kind in kinds)
    return _page(code, *cases)


async def rule(request: Request) -> Response:
    """Return the meaning of a rule, with an example that breaks it and one that satisfies it."""
    name = request.path_params["rule"]
    found = RULES.get(name)
    if found is None:
        raise HTTPException(404)
    return _page(name, found.means, f"Refused:\n{found.refused}", f"Accepted:\n{found.accepted}")


def refusals(kind: type[GatewayError] = GatewayError) -> Iterator[type[GatewayError]]:
    """Yield every error class that has a code."""
    for child in kind.__subclasses__():
        if hasattr(child, "code"):
            yield child
        yield from refusals(child)


def _page(*paragraphs: str) -> Response:
    return PlainTextResponse("\n\n".join(paragraphs) + "\n", headers={"Cache-Control": "max-age=3600"})
