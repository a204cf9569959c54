"""What a refusal means: a page for each code and each rule, to which refusals point.

Needs no token, because whoever was refused one may follow the link, and tells nothing about anybody.
"""

from collections.abc import Iterator

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from resolvers.errors import GatewayError
from resolvers.rules import RULES
from rest.errors import status_of_kind, summary_of


async def problem(request: Request) -> Response:
    """Say what a code means, in each case in which it is told."""
    code = request.path_params["code"]
    kinds = [kind for kind in refusals() if kind.code == code]
    if not kinds:
        raise HTTPException(404)
    cases = (f"{summary_of(kind)}\nStatus {status_of_kind(kind)}, recorded: {kind.recorded}." for kind in kinds)
    return _page(code, *cases)


async def rule(request: Request) -> Response:
    """Say what a rule asks for, with an example that breaks it and one that keeps it."""
    name = request.path_params["rule"]
    found = RULES.get(name)
    if found is None:
        raise HTTPException(404)
    return _page(name, found.means, f"Breaks it:\n{found.breaks}", f"Keeps it:\n{found.keeps}")


def refusals(kind: type[GatewayError] = GatewayError) -> Iterator[type[GatewayError]]:
    """Give every kind of refusal that has a code."""
    for child in kind.__subclasses__():
        if hasattr(child, "code"):
            yield child
        yield from refusals(child)


def _page(*paragraphs: str) -> Response:
    return PlainTextResponse("\n\n".join(paragraphs) + "\n", headers={"Cache-Control": "max-age=3600"})
