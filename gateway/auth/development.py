"""Tokens and patients of development mode. Source: the contract, part 5."""

from resolvers.access import Caller
from resolvers.errors import InvalidToken

# Brand of each development token. The contract publishes the tokens; they are invalid where a verifier is configured.
DEVELOPMENT_BRANDS = {"dev": "loop", "dev-loopbio": "loopbio"}


DEVELOPMENT_PATIENTS = {"demo-patient": "loop", "demo-patient-loopbio": "loopbio"}


async def verify_development_token(token: str) -> Caller:
    """Return the caller of a development token. Raises `InvalidToken`."""
    brand_id = DEVELOPMENT_BRANDS.get(token)
    if brand_id is None:
        raise InvalidToken
    return Caller(client_id=token, brand_id=brand_id, scopes=frozenset({"admin:patient_graph"}))
