"""The origins of browser pages that may call."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

# As browsers serialize an origin: lower case, and without a default port. The hosts are those of a loopback interface.
LOOPBACK_PAGE = re.compile(r"http://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class AllowedOrigins:
    """The origins of pages that may call, as browsers send them in `Origin`."""

    of_clients: Mapping[str, Collection[str]] = field(default_factory=dict)
    """The origins that each client lists, by client id."""
    loopback: bool = False
    """Whether every page that is served over HTTP by this computer may call, for every client."""

    def allows(self, origin: str, client_id: str | None = None) -> bool:
        """Return whether a page of this origin may call for the client; None: for any client."""
        if self.loopback and LOOPBACK_PAGE.fullmatch(origin):
            return True
        listed = self.of_clients.values() if client_id is None else [self.of_clients.get(client_id, ())]
        return any(origin in origins for origins in listed)
