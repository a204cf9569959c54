"""Tokens of six identity providers, as they document them, with made-up names.

Each file has the `sources` of its form, the `page` that describes the provider, the `settings` that the page advises,
and tokens. `caller` is the caller that the gateway reads in a token. A token without it is an ID token, and refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.identity_provider import SigningKey, jwt


class Sample(NamedTuple):
    """A token of a provider."""

    name: str
    settings: Mapping[str, Any]
    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    caller: Mapping[str, Any] | None

    def __str__(self) -> str:
        return self.name

    def signed(self, key: SigningKey, now: float, **changes: Any) -> str:
        """Return the token, issued at `now`, with changes; a claim whose change is None is left out."""
        instants = {"now": int(now), "now + 300": int(now) + 300}
        claims = {
            name: instants.get(value, value) if isinstance(value, str) else value for name, value in self.claims.items()
        }
        kept = {name: value for name, value in (claims | changes).items() if value is not None}
        return jwt(key, kept, **{"typ": None, **self.header})


def _read(path: Path) -> list[Sample]:
    content = json.loads(path.read_text())
    return [
        Sample(f"{path.stem} {kind}", content["settings"], token["header"], token["claims"], token.get("caller"))
        for kind, token in content.items()
        if isinstance(token, dict) and "claims" in token
    ]


SAMPLES = [sample for path in sorted(Path(__file__).parent.glob("*.json")) for sample in _read(path)]
ACCESS_TOKENS = [sample for sample in SAMPLES if sample.caller is not None]
ID_TOKENS = [sample for sample in SAMPLES if sample.caller is None]
