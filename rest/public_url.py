"""The URL under which clients reach the gateway (`GATEWAY_PUBLIC_URL`): the one place that completes a path by it."""

from contextvars import ContextVar
from typing import NamedTuple


class PublicUrl(NamedTuple):
    """A public URL in two parts."""

    origin: str = ""
    """As browsers send it in `Origin`; empty if it is unknown."""
    path: str = ""
    """The path of the gateway's root without a final slash, such as `/gateway`; empty for the root of the origin."""


UNSET = PublicUrl()

PUBLIC_URL: ContextVar[PublicUrl] = ContextVar("public_url", default=UNSET)
"""Set for each request by `gateway/middleware/public_path.py`."""


def public_path(path: str) -> str:
    """Return the path by which a client requests a path of the gateway."""
    return PUBLIC_URL.get().path + path
