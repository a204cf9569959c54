"""Token introspection (RFC 7662): verification of a token by the identity provider."""

from collections.abc import Collection, Mapping
from urllib.parse import quote_plus

import httpx2

from gateway.auth.identity_provider import Locate, Provider, provider_error
from gateway.auth.token_claims import (
    ClaimNames,
    Clock,
    UnreadableClaimsError,
    caller_of,
    invalid_token,
    refuse_another_services,
    refuse_outside_its_time,
)
from gateway.auth.token_profiles import Claims
from resolvers.access import Caller
from resolvers.errors import InvalidToken

TOPIC = "introspection"
MAX_ANSWER_BYTES = 64 * 1024

# Values of `token_type` for a bearer token. Some providers name the kind of token instead of its usage.
BEARER_TYPES = {"bearer", "access_token"}


class Introspection:
    """Verifier that sends each token, opaque or not, to the introspection endpoint.

    Args:
        provider: HTTP client of the identity provider.
        locate: Returns the URL of the introspection endpoint.
        client_id: Client id of this gateway at the endpoint (HTTP Basic).
        client_secret: Secret of that client.
        expected: Required `iss` and `aud`: see `refuse_another_services`.
        optional: Names of expected claims that the response may omit.
        names: Names of the claims that describe the caller.
        leeway: Seconds by which the provider's clock may differ.
        clock: Clock in seconds.

    """

    def __init__(
        self,
        provider: Provider,
        *,
        locate: Locate,
        client_id: str,
        client_secret: str,
        expected: Mapping[str, str],
        optional: Collection[str],
        names: ClaimNames,
        leeway: float,
        clock: Clock,
    ) -> None:
        self._provider = provider
        self._locate = locate
        # Both are form-encoded first. Source: RFC 6749 section 2.3.1.
        self._credentials = httpx2.BasicAuth(quote_plus(client_id), quote_plus(client_secret))
        self._expected = expected
        self._optional = optional
        self._names = names
        self._leeway = leeway
        self._clock = clock

    async def verify(self, token: str) -> Caller:
        """Return the caller of the token. Raises `InvalidToken` or `TemporarilyUnavailable`."""
        form = {"token": token, "token_type_hint": "access_token"}
        url = await self._locate()
        answer = await self._provider.ask(TOPIC, url, form, self._credentials, max_bytes=MAX_ANSWER_BYTES)
        try:
            return self._caller(answer)
        except UnreadableClaimsError as error:
            raise provider_error(TOPIC, f"unreadable: {error}") from None

    def _caller(self, answer: Claims) -> Caller:
        active, token_type = answer.get("active"), answer.get("token_type")
        if not isinstance(active, bool):
            raise UnreadableClaimsError("active")
        if not active:
            raise InvalidToken
        if not isinstance(token_type, str | None):
            raise UnreadableClaimsError("token_type")
        if token_type is not None and token_type.lower() not in BEARER_TYPES:
            raise invalid_token("not a bearer token")
        refuse_another_services(answer, self._expected, optional=self._optional)
        refuse_outside_its_time(answer, now=self._clock.time(), leeway=self._leeway)
        return caller_of(answer, self._names)
