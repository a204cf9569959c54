"""The queries of the GraphQL schema."""

from dataclasses import replace
from datetime import datetime
from typing import Annotated

import strawberry
from strawberry import UNSET

from models import EncounterOrder
from resolvers.access import Permission, resolve_brand
from resolvers.commands import EncountersFilter, PatientFilter
from resolvers.encounters.read import encounters_by_external_id
from resolvers.encounters.submissions import SubmissionState, find_submission
from resolvers.encounters.worklists import MOST_GROUPS, EncounterDimension, count_by
from resolvers.errors import InvalidInput, Violation
from resolvers.ids import id_or_none
from resolvers.json_text import shape_of
from resolvers.paging import ListOf
from resolvers.patient_list import list_patients
from resolvers.patients import MAX_FOUND, patients_by_external_id
from schema.loaders import EncounterKey
from schema.types import (
    After,
    Before,
    Encounter,
    EncounterConnection,
    EncountersFilterInput,
    First,
    Info,
    Last,
    OrderBy,
    Patient,
    PatientConnection,
    PatientFilterInput,
    PatientId,
    connection_of,
    filter_of,
    none_if_left_out,
    order_of,
    require_not_null,
)

MAX_IDS = 100

System = Annotated[str, strawberry.argument(description="The name of the other system, 1 to 200 characters.")]
Value = Annotated[str, strawberry.argument(description="The id in that system, 1 to 200 characters.")]


strawberry.enum(SubmissionState, description="The state of an idempotency key.")


@strawberry.type(name="Submission", description="The state and the outcome of one of the caller's idempotency keys.")
class SubmissionType:
    """Resolved by attribute from a `resolvers.encounters.submissions.Submission`."""

    key: str
    state: SubmissionState = strawberry.field(
        description="`NEVER_SEEN` also if the key has expired, or belongs to another client or brand."
    )
    encounter: Encounter | None = strawberry.field(
        description="The current state of the encounter that was recorded or changed; null if a patient was changed."
    )
    recorded_at: datetime | None
    expires_at: datetime | None = strawberry.field(description="The earliest time at which the key may be deleted.")


strawberry.enum(EncounterDimension, description="A property by which encounters are counted.")


@strawberry.type(name="EncounterCount", description="The number of encounters with the same value.")
class EncounterCountType:
    """Resolved by attribute from a `resolvers.encounters.worklists.Group`."""

    key: str | None = strawberry.field(
        description="The value, a day as `2026-11-30`; null for encounters without a provider, or not scheduled."
    )
    count: int


strawberry.enum(Permission, name="Operation", description="An operation that scopes allow.")


@strawberry.type(description="The caller, as the token and the acting brand tell.")
class Viewer:
    client_id: str = strawberry.field(description="The OAuth client.")
    user_id: str | None = strawberry.field(description="The person who acts through the client, if there is one.")
    brand_id: str | None = strawberry.field(
        description="The acting brand: the token's, else that of `X-Brand-Id`. Null for a machine client that named "
        "none."
    )
    scopes: list[str] = strawberry.field(description="The scopes of the token, sorted.")
    can: list[Permission] = strawberry.field(description="The operations that the scopes allow.")


@strawberry.type
class Query:
    @strawberry.field(description="An encounter; null if it does not exist or the caller may not see it.")
    async def encounter(self, info: Info, id: strawberry.ID, patient_id: PatientId = UNSET) -> Encounter | None:
        info.context.context.require(Permission.READ_ENCOUNTERS)
        if (encounter_id := id_or_none(id)) is None:
            return None
        key = EncounterKey(encounter_id, none_if_left_out(patient_id))
        return await info.context.loaders.encounters.load(key)  # type: ignore[return-value]

    @strawberry.field(description="A patient; null if it does not exist or the caller may not see it.")
    async def patient(self, info: Info, id: strawberry.ID) -> Patient | None:
        return await info.context.loaders.patients.load(id)  # type: ignore[return-value]

    @strawberry.field(
        description="Patients in the order of `ids`, at most 100; null for each that does not exist or is not visible."
    )
    async def patients(
        self, info: Info, ids: Annotated[list[strawberry.ID], strawberry.argument(description="At most 100.")]
    ) -> list[Patient | None]:
        if len(ids) > MAX_IDS:
            message, received = f"must be at most {MAX_IDS}", shape_of(ids)
            raise InvalidInput([Violation("/ids", "too_many", message, maximum=MAX_IDS, received=received)])
        return await info.context.loaders.patients.load_many(ids)  # type: ignore[return-value]

    @strawberry.field(
        description="The encounters of the brand, newest first unless `orderBy` differs. A page has 20 encounters by "
        "default, and at most 100."
    )
    async def encounters(  # noqa: PLR0917 - the argument names are Relay's
        self,
        info: Info,
        first: First = UNSET,
        after: After = UNSET,
        last: Last = UNSET,
        before: Before = UNSET,
        where: EncountersFilterInput | None = UNSET,
        order_by: OrderBy = EncounterOrder.CREATED_AT_DESC,
    ) -> EncounterConnection:
        context = info.context.context
        context.require(Permission.READ_ENCOUNTERS)
        of = ListOf(context.acting_brand(), None, filter_of(EncountersFilter, where, info), order_of(order_by))
        connection = connection_of(of, {"first": first, "after": after, "last": last, "before": before}, info)
        await connection.read(info)
        return connection

    @strawberry.field(
        description=f"The numbers of the brand's encounters by a property, largest first. At most {MOST_GROUPS} groups "
        "are returned; if there are more, `extensions.cut` of the response has the name of the field."
    )
    async def encounter_counts(
        self,
        info: Info,
        by: EncounterDimension,
        where: EncountersFilterInput | None = UNSET,
        time_zone: Annotated[
            str | None,
            strawberry.argument(
                description="The time zone of the days, by its name in the IANA database. A day of 23 or 25 hours is "
                "one day."
            ),
        ] = "UTC",
    ) -> list[EncounterCountType]:
        require_not_null("timeZone", time_zone)
        assert time_zone is not None, "refused above"
        groups = await count_by(info.context.context, by, filter_of(EncountersFilter, where, info), time_zone)
        if len(groups) > MOST_GROUPS:
            info.context.extensions.setdefault("cut", []).append(info.path.key)
        return groups[:MOST_GROUPS]  # type: ignore[return-value]

    @strawberry.field(
        description=f"The patients with this id in another system, at most {MAX_FOUND}, in the order of their ids. "
        "External ids need not be unique."
    )
    async def patients_by_external_id(self, info: Info, system: System, value: Value) -> list[Patient]:
        patients = await patients_by_external_id(info.context.context, {"system": system, "value": value})
        info.context.loaders.add_patients(patients)
        return patients  # type: ignore[return-value]

    @strawberry.field(
        description=f"The encounters with this id in another system, at most {MAX_FOUND}, newest first. "
        "External ids need not be unique."
    )
    async def encounters_by_external_id(self, info: Info, system: System, value: Value) -> list[Encounter]:
        of = {"system": system, "value": value}
        return await encounters_by_external_id(info.context.context, of)  # type: ignore[return-value]

    @strawberry.field(
        description="The patients of the brand, newest first. A page has 20 patients by default, and at most 100."
    )
    async def patient_list(
        self,
        info: Info,
        first: Annotated[int | None, strawberry.argument(description="Number of patients, from the newest.")] = UNSET,
        after: Annotated[
            str | None, strawberry.argument(description="Return only patients after this cursor: older ones.")
        ] = UNSET,
        where: PatientFilterInput | None = UNSET,
    ) -> PatientConnection:
        filters = filter_of(PatientFilter, where, info)
        page = await list_patients(
            info.context.context, filters, first=none_if_left_out(first), after=none_if_left_out(after)
        )
        info.context.loaders.add_patients(page.items)
        return PatientConnection(page=page)

    @strawberry.field(
        description="The outcome of an idempotency key, sent over GraphQL or REST: query it before sending again."
    )
    async def submission(self, info: Info, key: str) -> SubmissionType | None:
        try:
            return await find_submission(info.context.context, key)  # type: ignore[return-value]
        except InvalidInput as error:
            raise InvalidInput([replace(each, pointer="/key") for each in error.violations]) from None

    @strawberry.field(
        description="The caller, for what an application shows or hides. It reads no data of a patient, and is not "
        "audited."
    )
    def viewer(self, info: Info) -> Viewer:
        context = info.context.context
        return Viewer(
            client_id=context.caller.client_id,
            user_id=context.caller.user_id,
            brand_id=resolve_brand(context.caller, context.stated_brand_id),
            scopes=sorted(context.caller.scopes),
            can=[operation for operation in Permission if context.may(operation)],
        )
