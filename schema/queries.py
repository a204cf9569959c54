"""What can be read over GraphQL."""

from typing import Annotated
from uuid import UUID

import strawberry

from resolvers.access import Operation
from resolvers.errors import InvalidInput, Violation
from resolvers.patients import patients_by_ids
from schema.types import Encounter, Info, Patient

MAX_IDS = 100


@strawberry.type
class Query:
    @strawberry.field(description="An encounter, or null where the caller sees none with this id.")
    async def encounter(self, info: Info, id: strawberry.ID) -> Encounter | None:  # noqa: A002
        info.context.context.require(Operation.READ_ENCOUNTERS)
        try:
            encounter_id = UUID(id)
        except ValueError:
            return None
        return await info.context.loaders.encounters.load(encounter_id)  # type: ignore[return-value]

    @strawberry.field(description="A patient, or null where the caller sees none with this id.")
    async def patient(self, info: Info, id: strawberry.ID) -> Patient | None:  # noqa: A002
        return await info.context.loaders.patients.load(id)  # type: ignore[return-value]

    @strawberry.field(description="Patients in the order of `ids`, null where the caller sees none. At most 100.")
    async def patients(
        self, info: Info, ids: Annotated[list[strawberry.ID], strawberry.argument(description="At most 100.")]
    ) -> list[Patient | None]:
        if len(ids) > MAX_IDS:
            raise InvalidInput([Violation("/ids", "too_many", f"must be at most {MAX_IDS}")])
        return await patients_by_ids(info.context.context, ids)  # type: ignore[return-value]
