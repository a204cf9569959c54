"""Audit records for reads and refusals, which have no transaction of their own.

A request adds records in memory and continues; `gateway/audit/buffer.py` inserts them in batches. A record is lost if
the process dies or the queue is full, but it never delays or fails a write. `docs/audit.md` states the consequences of
a loss, and what is recorded.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
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
PATIENTS_READ = "patient_graph.patients.read"
REQUEST_REFUSED = "patient_graph.request.refused"

UNKNOWN = ""
"""Replaces a patient or a brand whose existence only the caller claims."""

SEVERAL = ""
"""Replaces the patient of an entry that names several in its details."""

NOT_A_REFUSAL = (Unauthenticated, InvalidToken, TemporarilyUnavailable, ServerError)
"""No authenticated caller, or a fault of the gateway: neither is an attempt that was denied."""


def reads(caller: Caller, request_id: str, given: Mapping[tuple[str, str], int]) -> list[AuditRecord]:
    """Return one record for each brand, of which a request has one, with the patients whose encounters the caller read.

    `given` maps brand and patient to the number of encounters. The record of several patients is that of a worklist: an
    entry for each would cost the database more than the read.
    """
    if len(given) == 1:
        (((brand_id, patient_id), number),) = given.items()
        return [_read(ENCOUNTERS_READ, caller, request_id, brand_id, {"encounters": number}, patient_id=patient_id)]
    of_brand = defaultdict[str, dict[str, int]](dict)
    for (brand_id, patient_id), number in given.items():
        of_brand[brand_id][patient_id] = number
    return [worklist_read(caller, request_id, brand_id, patients) for brand_id, patients in of_brand.items()]


def patients_read(caller: Caller, request_id: str, brand_id: str, patient_ids: Sequence[str]) -> AuditRecord:
    """Return the record of a list of patients, or of external ids, that the caller read: one for all its patients."""
    return _read(PATIENTS_READ, caller, request_id, brand_id, {"patients": patient_ids})


def worklist_read(caller: Caller, request_id: str, brand_id: str, given: Mapping[str, int]) -> AuditRecord:
    """Return the record of a worklist that the caller read: the number of its encounters, and its patients.

    `given` maps patients to the number of encounters.
    """
    details = {"encounters": sum(given.values()), "patients": list(given)}
    return _read(ENCOUNTERS_READ, caller, request_id, brand_id, details)


def _read(
    event_type: str,
    caller: Caller,
    request_id: str,
    brand_id: str,
    details: Mapping[str, Any],
    *,
    patient_id: str | None = None,
) -> AuditRecord:
    """Return a record of one patient; without a patient that of a worklist, whose patients the details name."""
    return AuditRecord(
        event_type=event_type,
        actor_type=caller.actor_type,
        actor_id=caller.actor_id,
        actor_brand_id=caller.brand_id,
        entity_type="worklist" if patient_id is None else "patient",
        entity_id=patient_id,
        patient_id=SEVERAL if patient_id is None else patient_id,
        brand_id=brand_id,
        request_id=request_id,
        details=details,
    )


def export_note(
    event_type: str, caller: Caller, request_id: str, brand_id: str, details: Mapping[str, Any]
) -> AuditRecord:
    """Return the record of the begin or the end of an export; each of its pages has a record of its own."""
    return _read(event_type, caller, request_id, brand_id, details)._replace(entity_type="export")


def refusal(caller: Caller, request_id: str, error: GatewayError) -> AuditRecord:
    """Return the record of a refusal and its reason, without text from the caller.

    The requested patient and the stated brand may be invented; only the token's brand is verified. A refusal by the
    rate limit names the client, whose requests are counted, instead of the person.
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
    """Return the broken rules, each once. The members are left out: the caller may have invented their names."""
    return sorted({violation.rule for violation in error.violations}) if isinstance(error, InvalidInput) else []
