"""The mutations of the GraphQL schema. Each outcome that a client can act on is a member of the result union."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

import strawberry
from strawberry import UNSET

from models import EncounterAction, EncounterStatus, EncounterType
from resolvers.context import Context
from resolvers.encounters.dry_run import dry_run_encounter
from resolvers.encounters.lifecycle import change_encounter
from resolvers.encounters.record import Recording, record_encounter, require_recorder
from resolvers.encounters.record_many import MAX_ITEMS, Item, Outcome, record_all_or_none, record_encounters
from resolvers.errors import GatewayError
from resolvers.patients import register_patient, set_external_ids
from schema.errors import (
    EncounterHeldBack,
    EncounterNotFound,
    IdempotencyKeyReused,
    IllegalTransition,
    InvalidInput,
    PatientNotFound,
    Problem,
    Recorded,
    StaleVersion,
    outcome,
)
from schema.scalars import JSON
from schema.types import Encounter, Info, Patient, PatientId, given, none_if_left_out


@strawberry.input(description="The data of an encounter to record. Optional members may be left out; null is refused.")
class RecordEncounterInput:
    """The members of `resolvers.commands.RecordEncounter`, which holds their rules."""

    brand_id: str = strawberry.field(description="The patient's brand.")
    encounter_type: EncounterType
    provider_id: UUID | None = strawberry.field(
        default=UNSET, description="The provider directory's id of the provider who saw the patient."
    )
    scheduled_at: datetime | None = strawberry.field(
        default=UNSET, description="The scheduled time, with an offset from UTC."
    )
    chief_complaint: str | None = strawberry.field(default=UNSET, description="At most 2,000 characters.")
    notes: str | None = strawberry.field(default=UNSET, description="At most 50,000 characters.")
    metadata: JSON | None = strawberry.field(
        default=UNSET, description="An object, at most 64 KiB of JSON and 32 levels deep."
    )
    status: EncounterStatus | None = strawberry.field(
        default=UNSET,
        description="The status that the encounter has already; `SCHEDULED` if it is left out. `ENTERED_IN_ERROR` is "
        "refused. Each status needs its times: see the rule `recorded_status`.",
    )
    started_at: datetime | None = strawberry.field(
        default=UNSET,
        description="The time of the start, not in the future. Required by `IN_PROGRESS` and `COMPLETED`.",
    )
    ended_at: datetime | None = strawberry.field(
        default=UNSET, description="The time of the end, not in the future. Required by `COMPLETED`."
    )
    external_ids: JSON | None = strawberry.field(
        default=UNSET,
        description="The encounter's ids in other systems: an object of at most 20 strings. Names and values have 1 to "
        "200 characters.",
    )


@strawberry.type(description="The encounter was recorded and committed to disk.")
class EncounterRecorded:
    encounter: Encounter
    replayed: bool = strawberry.field(
        description="Whether it was recorded earlier under the same key. `encounter` has the current state."
    )

    @strawberry.field(
        description="The newest encounters, at most 10, of the same patient, type and provider that were recorded "
        "shortly before this one and are not entered in error. This is only a warning; nothing is merged. Null, with "
        "an error, if they cannot be read; the encounter is still recorded."
    )
    async def possible_duplicates(self, info: Info) -> list[Encounter] | None:
        of = (self.encounter.patient_id, self.encounter.id)
        return await info.context.loaders.duplicates.load(of)  # type: ignore[arg-type, return-value]


@strawberry.type(description="The request is valid. Nothing was recorded, because `validateOnly` is true.")
class EncounterValid(Problem):
    """A `Problem`, so that a client which selects only `Problem` learns that nothing was recorded."""


RecordEncounterResult = Annotated[
    EncounterRecorded | PatientNotFound | InvalidInput | IdempotencyKeyReused | EncounterValid | EncounterHeldBack,
    strawberry.union("RecordEncounterResult"),
]


@strawberry.input(description="An encounter to record: the arguments of `recordEncounter`.")
class RecordEncountersItem:
    patient_id: strawberry.ID
    input: RecordEncounterInput
    idempotency_key: str | None = strawberry.field(
        default=UNSET, description="1 to 128 visible characters, unique to this item."
    )


@strawberry.type(description="The outcomes of several recordings.")
class RecordEncountersResult:
    results: list[RecordEncounterResult | None] = strawberry.field(
        description="The outcome of each item, in their order. Null if the item was refused for a reason that "
        "`recordEncounter` reports as an error; that error is in `errors`, with the item's path."
    )


@strawberry.input(description="The data of a patient to register.")
class RegisterPatientInput:
    """The members of `resolvers.patients.RegisterPatient`, which holds their rules."""

    id: strawberry.ID = strawberry.field(
        description="1 to 200 printable characters without a slash. Every request about the patient uses this id."
    )
    brand_id: str
    external_ids: JSON | None = strawberry.field(
        default=UNSET,
        description="The patient's ids in other systems: an object of at most 20 strings. Names and values have 1 to "
        "200 characters.",
    )


@strawberry.type(description="The patient is registered, by this request or an earlier one.")
class PatientRegistered:
    patient: Patient
    already_known: bool = strawberry.field(
        description="Whether the brand had the id already. If so, nothing was changed. A replay repeats the value."
    )
    replayed: bool = strawberry.field(
        description="Whether the request was processed earlier under the same key. `patient` has the current state."
    )


RegisterPatientResult = Annotated[
    PatientRegistered | InvalidInput | IdempotencyKeyReused, strawberry.union("RegisterPatientResult")
]


@strawberry.type(description="The patient was changed, and the change is committed to disk.")
class PatientChanged:
    patient: Patient
    replayed: bool = strawberry.field(
        description="Whether it was changed earlier under the same key. `patient` has the current state."
    )


SetPatientExternalIdsResult = Annotated[
    PatientChanged | PatientNotFound | InvalidInput | IdempotencyKeyReused,
    strawberry.union("SetPatientExternalIdsResult"),
]


@strawberry.input(
    description="Corrections and additions to an encounter. A member left out stays unchanged; null clears it."
)
class AmendEncounterInput:
    """The members of `resolvers.commands.AmendEncounter`, which holds their rules."""

    encounter_type: EncounterType | None = strawberry.field(default=UNSET, description="Cannot be cleared.")
    provider_id: UUID | None = UNSET
    chief_complaint: str | None = UNSET
    notes: str | None = UNSET
    metadata: JSON | None = strawberry.field(
        default=UNSET, description="An object that replaces the previous one; `{}` clears it."
    )
    external_ids: JSON | None = strawberry.field(
        default=UNSET, description="An object that replaces the previous one; `{}` clears it."
    )
    reason: str | None = strawberry.field(
        default=UNSET, description="The reason, for the history. At most 2,000 characters."
    )


@strawberry.type(description="The encounter was changed, and the change is committed to disk.")
class EncounterChanged:
    encounter: Encounter
    replayed: bool = strawberry.field(
        description="Whether it was changed earlier under the same key. `encounter` has the current state."
    )


ChangeEncounterResult = Annotated[
    EncounterChanged | EncounterNotFound | IllegalTransition | StaleVersion | InvalidInput | IdempotencyKeyReused,
    strawberry.union("ChangeEncounterResult"),
]

ExpectedVersion = Annotated[
    int | None,
    strawberry.argument(
        description="The version that the caller has read. If it is not current, the result is `StaleVersion`."
    ),
]
Reason = Annotated[
    str | None, strawberry.argument(description="The reason, for the history. At most 2,000 characters.")
]
IdempotencyKey = Annotated[
    str | None,
    strawberry.argument(
        description="1 to 128 visible characters. A repeated request with the same key changes nothing again. A "
        "refused request leaves the key unused."
    ),
]


@strawberry.type
class Mutation:
    @strawberry.mutation(description="Record an encounter. The answer is sent after it is committed to disk.")
    async def record_encounter(
        self,
        info: Info,
        patient_id: strawberry.ID,
        input: RecordEncounterInput,
        idempotency_key: Annotated[
            str | None,
            strawberry.argument(
                description="1 to 128 visible characters. A repeated request with the same key is recorded once, "
                "over GraphQL and REST together."
            ),
        ] = UNSET,
        validate_only: Annotated[
            bool | None,
            strawberry.argument(
                description="Only validate the request (dry run): the result is `EncounterValid`, or that of the same "
                "call without this argument. Nothing is written, and the key stays free."
            ),
        ] = UNSET,
    ) -> RecordEncounterResult:
        try:
            recorder = require_recorder(info.context.context)
            asked = (recorder, patient_id, given(input), none_if_left_out(idempotency_key))
            recording = await (dry_run_encounter if validate_only is True else record_encounter)(*asked)
        except GatewayError as error:
            return outcome(error, info.context.context)  # type: ignore[no-any-return]
        if recording is None:
            message = "The request is valid. Nothing was recorded, because `validateOnly` is true."
            return EncounterValid(code="valid", message=message, recorded=Recorded.NO)
        return EncounterRecorded(encounter=recording.encounter, replayed=recording.replayed)  # type: ignore[arg-type]

    @strawberry.mutation(
        description=f"Record at most {MAX_ITEMS} encounters, independently unless `allOrNothing` is true. The rate "
        "limit counts each item."
    )
    async def record_encounters(
        self,
        info: Info,
        input: list[RecordEncountersItem],
        all_or_nothing: Annotated[
            bool | None,
            strawberry.argument(
                description="If one is refused, record none; the others are `EncounterHeldBack`. All must have the "
                "same brand. An encounter that was recorded earlier under its key is not a refusal."
            ),
        ] = False,
    ) -> RecordEncountersResult:
        context = info.context.context
        items = [Item(each.patient_id, given(each.input), none_if_left_out(each.idempotency_key)) for each in input]
        outcomes = await (record_all_or_none if all_or_nothing else record_encounters)(require_recorder(context), items)
        results = [_result(outcome, number, context) for number, outcome in enumerate(outcomes)]
        return RecordEncountersResult(results=results)  # type: ignore[arg-type]

    @strawberry.mutation(
        description="Register a patient, so that encounters can be recorded. Repeating the request is safe."
    )
    async def register_patient(
        self, info: Info, input: RegisterPatientInput, idempotency_key: IdempotencyKey = UNSET
    ) -> RegisterPatientResult:
        context = info.context.context
        try:
            registration = await register_patient(context, given(input), none_if_left_out(idempotency_key))
        except GatewayError as error:
            return outcome(error, context)  # type: ignore[no-any-return]
        return PatientRegistered(**registration._asdict())

    @strawberry.mutation(description="Replace the patient's ids in other systems.")
    async def set_patient_external_ids(
        self,
        info: Info,
        id: strawberry.ID,
        external_ids: Annotated[
            JSON, strawberry.argument(description="All ids, as an object of at most 20 strings; `{}` removes them.")
        ],
        idempotency_key: IdempotencyKey = UNSET,
    ) -> SetPatientExternalIdsResult:
        context = info.context.context
        try:
            patient, replayed = await set_external_ids(
                context, id, {"external_ids": external_ids}, none_if_left_out(idempotency_key)
            )
        except GatewayError as error:
            return outcome(error, context, None)  # type: ignore[no-any-return]
        return PatientChanged(patient=patient, replayed=replayed)  # type: ignore[arg-type]

    @strawberry.mutation(description="Start the encounter: `startedAt` is the current time.")
    async def start_encounter(
        self,
        info: Info,
        id: strawberry.ID,
        expected_version: ExpectedVersion = UNSET,
        idempotency_key: IdempotencyKey = UNSET,
        *,
        patient_id: PatientId = UNSET,
    ) -> ChangeEncounterResult:
        return await _change(info, id, EncounterAction.START, expected_version, idempotency_key, patient_id=patient_id)

    @strawberry.mutation(description="Complete the encounter: `endedAt` is the current time.")
    async def complete_encounter(
        self,
        info: Info,
        id: strawberry.ID,
        expected_version: ExpectedVersion = UNSET,
        idempotency_key: IdempotencyKey = UNSET,
        *,
        patient_id: PatientId = UNSET,
    ) -> ChangeEncounterResult:
        return await _change(
            info, id, EncounterAction.COMPLETE, expected_version, idempotency_key, patient_id=patient_id
        )

    @strawberry.mutation(description="Cancel the encounter; if it was started, `endedAt` is the current time.")
    async def cancel_encounter(
        self,
        info: Info,
        id: strawberry.ID,
        expected_version: ExpectedVersion = UNSET,
        reason: Reason = UNSET,
        idempotency_key: IdempotencyKey = UNSET,
        *,
        patient_id: PatientId = UNSET,
    ) -> ChangeEncounterResult:
        return await _change(
            info, id, EncounterAction.CANCEL, expected_version, idempotency_key, patient_id=patient_id, reason=reason
        )

    @strawberry.mutation(description="Mark the encounter as no-show: the patient did not come.")
    async def mark_encounter_no_show(
        self,
        info: Info,
        id: strawberry.ID,
        expected_version: ExpectedVersion = UNSET,
        reason: Reason = UNSET,
        idempotency_key: IdempotencyKey = UNSET,
        *,
        patient_id: PatientId = UNSET,
    ) -> ChangeEncounterResult:
        return await _change(
            info,
            id,
            EncounterAction.MARK_NO_SHOW,
            expected_version,
            idempotency_key,
            patient_id=patient_id,
            reason=reason,
        )

    @strawberry.mutation(
        description="Mark the encounter as entered in error: it stays readable, and allows no further action."
    )
    async def mark_encounter_entered_in_error(
        self,
        info: Info,
        id: strawberry.ID,
        reason: str,
        expected_version: ExpectedVersion = UNSET,
        idempotency_key: IdempotencyKey = UNSET,
        *,
        patient_id: PatientId = UNSET,
    ) -> ChangeEncounterResult:
        action = EncounterAction.MARK_ENTERED_IN_ERROR
        return await _change(info, id, action, expected_version, idempotency_key, patient_id=patient_id, reason=reason)

    @strawberry.mutation(description="Change the scheduled time.")
    async def reschedule_encounter(  # noqa: PLR0917 - the published arguments
        self,
        info: Info,
        id: strawberry.ID,
        scheduled_at: datetime,
        expected_version: ExpectedVersion = UNSET,
        reason: Reason = UNSET,
        idempotency_key: IdempotencyKey = UNSET,
        *,
        patient_id: PatientId = UNSET,
    ) -> ChangeEncounterResult:
        action = EncounterAction.RESCHEDULE
        return await _change(
            info,
            id,
            action,
            expected_version,
            idempotency_key,
            patient_id=patient_id,
            scheduled_at=scheduled_at,
            reason=reason,
        )

    @strawberry.mutation(description="Correct or add members of the encounter. Earlier versions stay in the history.")
    async def amend_encounter(
        self,
        info: Info,
        id: strawberry.ID,
        input: AmendEncounterInput,
        expected_version: ExpectedVersion = UNSET,
        idempotency_key: IdempotencyKey = UNSET,
        *,
        patient_id: PatientId = UNSET,
    ) -> ChangeEncounterResult:
        return await _change(
            info,
            id,
            EncounterAction.AMEND,
            expected_version,
            idempotency_key,
            patient_id=patient_id,
            within="input",
            **given(input),
        )

    @strawberry.mutation(
        description="Undo a start made by mistake, before the completion: the encounter is scheduled again, and "
        "`startedAt` is null."
    )
    async def undo_start_encounter(
        self,
        info: Info,
        id: strawberry.ID,
        reason: Annotated[str, strawberry.argument(description="The reason, for the history. 1 to 2,000 characters.")],
        expected_version: ExpectedVersion = UNSET,
        idempotency_key: IdempotencyKey = UNSET,
        *,
        patient_id: PatientId = UNSET,
    ) -> ChangeEncounterResult:
        return await _change(
            info,
            id,
            EncounterAction.UNDO_START,
            expected_version,
            idempotency_key,
            patient_id=patient_id,
            reason=reason,
        )


def _result(recorded: Outcome, number: int, context: Context) -> object:
    """Return the union member of one item of a batch, or an exception, which graphql-core reports at its path."""
    if isinstance(recorded, Recording):
        return EncounterRecorded(encounter=recorded.encounter, replayed=recorded.replayed)  # type: ignore[arg-type]
    if not isinstance(recorded, GatewayError):
        return recorded
    try:
        problem = outcome(recorded, context)
    except GatewayError as error:
        return error
    if isinstance(problem, InvalidInput):
        for violation in problem.violations:
            violation.path[:0] = ["input", str(number)]
    return problem


async def _change(
    info: Info,
    encounter_id: str,
    action: EncounterAction,
    expected_version: int | None,
    idempotency_key: str | None,
    *,
    patient_id: str | None,
    within: str | None = None,
    **members: object,
) -> ChangeEncounterResult:
    context = info.context.context
    sent = {name: value for name, value in members.items() if value is not UNSET}
    version, key = none_if_left_out(expected_version), none_if_left_out(idempotency_key)
    patient_id = none_if_left_out(patient_id)
    try:
        changed = await change_encounter(context, encounter_id, action, sent, version, key=key, patient_id=patient_id)
    except GatewayError as error:
        return outcome(error, context, within)  # type: ignore[no-any-return]
    return EncounterChanged(**changed._asdict())
