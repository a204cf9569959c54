"""What can be changed over GraphQL. One outcome a client can act on is one member of the result's union."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

import strawberry
from strawberry import UNSET

from models import EncounterType
from resolvers.encounters import record_encounter
from resolvers.errors import GatewayError
from schema.errors import IdempotencyKeyReused, InvalidInput, PatientNotFound, outcome
from schema.scalars import JSON
from schema.types import Encounter, Info, given


@strawberry.input(
    description="What a clinic's system says happened. Members left out are not recorded; null is refused."
)
class RecordEncounterInput:
    """The members of `resolvers.commands.RecordEncounter`, which holds their rules."""

    brand_id: str = strawberry.field(description="The brand the patient belongs to.")
    encounter_type: EncounterType
    provider_id: UUID | None = strawberry.field(default=UNSET, description="Who met the patient; kept as sent.")
    scheduled_at: datetime | None = strawberry.field(
        default=UNSET, description="When it is due. An offset is required."
    )
    chief_complaint: str | None = strawberry.field(default=UNSET, description="At most 2,000 characters.")
    notes: str | None = strawberry.field(default=UNSET, description="At most 50,000 characters.")
    metadata: JSON | None = strawberry.field(
        default=UNSET, description="An object, at most 64 KiB of JSON and 32 levels deep."
    )


@strawberry.type(description="The encounter was recorded, and is safe on disk.")
class EncounterRecorded:
    encounter: Encounter
    replayed: bool = strawberry.field(
        description="Whether the same request under the same key had recorded it earlier. It is shown as it stands now."
    )


RecordEncounterResult = Annotated[
    EncounterRecorded | PatientNotFound | InvalidInput | IdempotencyKeyReused, strawberry.union("RecordEncounterResult")
]


@strawberry.type
class Mutation:
    @strawberry.mutation(description="Record that an encounter happened. The answer comes after it is safe on disk.")
    async def record_encounter(
        self,
        info: Info,
        patient_id: strawberry.ID,
        input: RecordEncounterInput,  # noqa: A002
        idempotency_key: Annotated[
            str | None,
            strawberry.argument(
                description="1 to 128 visible characters. With the same key, the same request is recorded once, "
                "through whichever door it comes again."
            ),
        ] = UNSET,
    ) -> RecordEncounterResult:
        try:
            key = None if idempotency_key is UNSET else idempotency_key
            recording = await record_encounter(info.context.context, patient_id, given(input), key)
        except GatewayError as error:
            return outcome(error, info.context.context)  # type: ignore[no-any-return]
        return EncounterRecorded(encounter=recording.encounter, replayed=recording.replayed)  # type: ignore[arg-type]
