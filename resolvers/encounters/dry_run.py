"""A dry run of recording: the outcome of `record_encounter`, without a write."""

from collections.abc import Mapping
from typing import Any

from resolvers.commands import EncounterBody, RecordEncounter
from resolvers.encounters.read import encounter_of_key
from resolvers.encounters.record import Recorder, Recording
from resolvers.errors import KeyErased, PatientNotFound
from resolvers.idempotency import claim_of, find_claimed
from resolvers.patients import find_patient


async def dry_run_encounter(
    context: Recorder,
    patient_id: str,
    members: Mapping[str, Any],
    key: str | None = None,
    kind: type[EncounterBody] = RecordEncounter,
) -> Recording | None:
    """Return what `record_encounter` would: None if it would record, the recording if it would replay one.

    It only reads, so the key stays unclaimed. Raises what `record_encounter` would raise, in the same order.
    """
    brand_id = context.acting_brand(members.get("brand_id"))
    command = kind.read(members, context.services.input_limits, strict=context.strict)
    claim = None if key is None else claim_of(key, context, brand_id, patient_id, command)

    async with context.database.connection(brand_id) as connection:
        patient = await find_patient(connection, brand_id, patient_id)
        try:
            earlier = claim and await find_claimed(connection, claim)
        except KeyErased:
            if patient is None:
                raise PatientNotFound from None
            raise
        if earlier:
            encounter = await encounter_of_key(context, connection, earlier)
            return Recording(encounter, earlier.answer, replayed=True)
        if patient is None:
            raise PatientNotFound
    return None
