"""The trail: what is audited although no transaction of a change could carry it, refusals and reads.

A request notes in memory and goes on; `gateway/audit/buffer.py` inserts the notes in batches. So a note can be
lost, when the process dies or the queue is full, and can never slow or lose a write. What becomes of a loss, and what
is noted and what is not, is told in `docs/audit.md`.
"""

from collections.abc import Mapping
from typing import Any

from resolvers.access import Caller
from resolvers.errors import (
    GatewayError,
    InsufficientScope,
    InvalidInput,
    InvalidToken,
    RateLimited,
    ServerError,
    TemporarilyUnavailable,
    Unauthenticated,
)
from resolvers.services import AuditRecord

ENCOUNTERS_READ = "patient_graph.encounters.read"
REQUEST_REFUSED = "patient_graph.request.refused"

UNKNOWN = ""
"""In place of a patient or a brand of which nobody but the caller says that it exists."""

NOT_A_REFUSAL = (Unauthenticated, InvalidToken, TemporarilyUnavailable, ServerError)
"""Nobody is signed in, or the fault is ours: neither says what somebody tried and was not allowed to do."""


def reads(caller: Caller, request_id: str, given: Mapping[tuple[str, str], int]) -> list[AuditRecord]:
    """Say whose encounters the caller was given, by brand and patient, and how many: one note a patient."""
    return [
        AuditRecord(
            event_type=ENCOUNTERS_READ,
            actor_type=caller.actor_type,
            actor_id=caller.actor_id,
            actor_brand_id=caller.brand_id,
            entity_type="patient",
            entity_id=patient_id,
            patient_id=patient_id,
            brand_id=brand_id,
            request_id=request_id,
            details={"encounters": number},
        )
        for (brand_id, patient_id), number in given.items()
    ]


def refusal(caller: Caller, request_id: str, error: GatewayError) -> AuditRecord:
    """Say that the caller was refused, and why, in words that are ours alone.

    The patient asked for, and the brand stated, may be anybody's invention; of the brand, only the token's is known.
    A refusal by the rate limit names the client, whose requests are counted, in place of the person.
    """
    counted = isinstance(error, RateLimited)
    details: dict[str, Any] = {"code": error.code}
    if rules := rules_of(error):
        details["rules"] = rules
    if isinstance(error, InsufficientScope):
        details["scopes"] = list(error.scopes)
    return AuditRecord(
        event_type=REQUEST_REFUSED,
        actor_type="service" if counted else caller.actor_type,
        actor_id=caller.client_id if counted else caller.actor_id,
        actor_brand_id=caller.brand_id,
        entity_type="client" if counted else "request",
        entity_id=caller.client_id if counted else None,
        patient_id=UNKNOWN,
        brand_id=caller.brand_id or UNKNOWN,
        request_id=request_id,
        details=details,
    )


def rules_of(error: GatewayError) -> list[str]:
    """Give the rules that were broken, each once. Not the members: a caller may have made up their names."""
    return sorted({violation.rule for violation in error.violations}) if isinstance(error, InvalidInput) else []
