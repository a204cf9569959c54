"""The mutations of the GraphQL schema. Each outcome that a client can act on is a member of the result union."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

import strawberry
from strawberry import UNSET

from models import EncounterAction, EncounterType
from resolvers.context import Context
from resolvers.encounters.dry_run import dry_run_encounter
from resolvers.encounters.lifecycle import change_encounter
from resolvers.encounters.record import Recording, record_encounter, require_recorder
from resolvers.encounters.record_many import MAX_ITEMS, Item, Outcome, record_all_or_none, record_encounters
from resolvers.errors import GatewayError
from resolvers.patients import register_patient
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
from schema.types import Encounter, Info, Patient, given, none_if_left_out


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

    @strawberry.field(
        description="The newest 10 encounters of the same patient, type and provider that were recorded shortly before "
        "this one and not entered in error: a warning, nothing is merged. Null, with an error, where they cannot be "
        "read; the encounter is recorded all the same."
    )
    async def possible_duplicates(self, info: Info) -> list[Encounter] | None:
        of = (self.encounter.patient_id, self.encounter.id)
        return await info.context.loaders.duplicates.load(of)  # type: ignore[arg-type, return-value]


@strawberry.type(description="It would be recorded. Nothing was, because the request asked for that.")
class EncounterValid(Problem):
    """A `Problem` as every outcome but the first: whoever does not ask by name is told that nothing was recorded."""


RecordEncounterResult = Annotated[
    EncounterRecorded | PatientNotFound | InvalidInput | IdempotencyKeyReused | EncounterValid | EncounterHeldBack,
    strawberry.union("RecordEncounterResult"),
]


@strawberry.input(description="One of many encounters to record: the arguments of `recordEncounter`.")
class RecordEncountersItem:
    patient_id: strawberry.ID
    input: RecordEncounterInput
    idempotency_key: str | None = strawberry.field(
        default=UNSET, description="1 to 128 visible characters. Each item has its own."
    )


@strawberry.type(description="What came of many encounters.")
class RecordEncountersResult:
    results: list[RecordEncounterResult | None] = strawberry.field(
        description="What came of each, in the order of the items. Null where it was refused for a reason that "
        "`recordEncounter` would give as an error; then that stands among the errors, with its place."
    )


@strawberry.input(description="A patient, as far as this gateway needs to know one.")
class RegisterPatientInput:
    """The members of `resolvers.patients.RegisterPatient`, which holds their rules."""

    id: strawberry.ID = strawberry.field(
        description="1 to 200 printable characters without a slash; must be kept wherever the patient is meant."
    )
    brand_id: str
    external_ids: JSON | None = strawberry.field(
        default=UNSET, description="An object: what the patient is called elsewhere. Kept, and shown to nobody here."
    )


@strawberry.type(description="The patient is known, now or already.")
class PatientRegistered:
    patient: Patient
    already_known: bool = strawberry.field(description="Whether the brand knew the id before, and nothing was changed.")


RegisterPatientResult = Annotated[PatientRegistered | InvalidInput, strawberry.union("RegisterPatientResult")]


@strawberry.input(
    description="What was recorded wrongly or has to be added. A member left out stays as it is; null clears it."
)
class AmendEncounterInput:
    """The members of `resolvers.commands.AmendEncounter`, which holds their rules."""

    encounter_type: EncounterType | None = strawberry.field(default=UNSET, description="Cannot be cleared.")
    provider_id: UUID | None = UNSET
    chief_complaint: str | None = UNSET
    notes: str | None = UNSET
    metadata: JSON | None = strawberry.field(
        default=UNSET, description="An object that takes the place of the one before; `{}` clears it."
    )
    reason: str | None = strawberry.field(default=UNSET, description="Why, for the history. At most 2,000 characters.")


@strawberry.type(description="The encounter is changed, and that is safe on disk.")
class EncounterChanged:
    encounter: Encounter


ChangeEncounterResult = Annotated[
    EncounterChanged | EncounterNotFound | IllegalTransition | StaleVersion | InvalidInput,
    strawberry.union("ChangeEncounterResult"),
]

ExpectedVersion = Annotated[
    int | None,
    strawberry.argument(description="The version the caller has seen; refused with `StaleVersion` if it is not now's."),
]
Why = Annotated[str | None, strawberry.argument(description="For the history. At most 2,000 characters.")]


@strawberry.type
class Mutation:
    @strawberry.mutation(description="Record that an encounter happened. The answer comes after it is safe on disk.")
    async def record_encounter(
        self,
        info: Info,
        patient_id: strawberry.ID,
        input: RecordEncounterInput,
        idempotency_key: Annotated[
            str | None,
            strawberry.argument(
                description="1 to 128 visible characters. With the same key, the same request is recorded once, "
                "through whichever door it comes again."
            ),
        ] = UNSET,
        validate_only: Annotated[
            bool | None,
            strawberry.argument(
                description="Only say what would come of it: `EncounterValid`, or whatever the same call without this "
                "would give. Nothing is written, and the key stays free."
            ),
        ] = UNSET,
    ) -> RecordEncounterResult:
        try:
            if info.context.met is not None:
                raise info.context.met
            recorder = require_recorder(info.context.context)
            asked = (recorder, patient_id, given(input), none_if_left_out(idempotency_key))
            recording = await (dry_run_encounter if validate_only is True else record_encounter)(*asked)
        except GatewayError as error:
            return outcome(error, info.context.context)  # type: ignore[no-any-return]
        if recording is None:
            told = "It would be recorded. Nothing was, because the request asked for that."
            return EncounterValid(code="valid", message=told, recorded=Recorded.NO)
        return EncounterRecorded(encounter=recording.encounter, replayed=recording.replayed)  # type: ignore[arg-type]

    @strawberry.mutation(
        description=f"Record at most {MAX_ITEMS} encounters, each for itself unless `allOrNothing` says otherwise. "
        "Counts as many times as it has items."
    )
    async def record_encounters(
        self,
        info: Info,
        input: list[RecordEncountersItem],
        all_or_nothing: Annotated[
            bool | None,
            strawberry.argument(
                description="Where one is refused, record none: the others are `EncounterHeldBack`. All must be of one "
                "brand. What was recorded earlier under its key is no reason to refuse."
            ),
        ] = False,
    ) -> RecordEncountersResult:
        context = info.context.context
        items = [Item(each.patient_id, given(each.input), none_if_left_out(each.idempotency_key)) for each in input]
        outcomes = await (record_all_or_none if all_or_nothing else record_encounters)(require_recorder(context), items)
        results = [_result(outcome, number, context) for number, outcome in enumerate(outcomes)]
        return RecordEncountersResult(results=results)  # type: ignore[arg-type]

    @strawberry.mutation(description="Make a patient known, so that encounters can be recorded. Safe to send again.")
    async def register_patient(self, info: Info, input: RegisterPatientInput) -> RegisterPatientResult:
        try:
            patient, already_known = await register_patient(info.context.context, given(input))
        except GatewayError as error:
            return outcome(error, info.context.context)  # type: ignore[no-any-return]
        return PatientRegistered(patient=patient, already_known=already_known)  # type: ignore[arg-type]

    @strawberry.mutation(description="The patient is being met: `startedAt` is now.")
    async def start_encounter(
        self,
        info: Info,
        id: strawberry.ID,
        expected_version: ExpectedVersion = UNSET,
    ) -> ChangeEncounterResult:
        return await _change(info, id, EncounterAction.START, expected_version)

    @strawberry.mutation(description="It is over: `endedAt` is now.")
    async def complete_encounter(
        self,
        info: Info,
        id: strawberry.ID,
        expected_version: ExpectedVersion = UNSET,
    ) -> ChangeEncounterResult:
        return await _change(info, id, EncounterAction.COMPLETE, expected_version)

    @strawberry.mutation(description="It will not be held, or not to its end; if it was started, `endedAt` is now.")
    async def cancel_encounter(
        self,
        info: Info,
        id: strawberry.ID,
        expected_version: ExpectedVersion = UNSET,
        reason: Why = UNSET,
    ) -> ChangeEncounterResult:
        return await _change(info, id, EncounterAction.CANCEL, expected_version, reason=reason)

    @strawberry.mutation(description="The patient did not come.")
    async def mark_encounter_no_show(
        self,
        info: Info,
        id: strawberry.ID,
        expected_version: ExpectedVersion = UNSET,
    ) -> ChangeEncounterResult:
        return await _change(info, id, EncounterAction.MARK_NO_SHOW, expected_version)

    @strawberry.mutation(
        description="It was recorded by mistake: it stays readable, and nothing more can be done with it."
    )
    async def mark_encounter_entered_in_error(
        self,
        info: Info,
        id: strawberry.ID,
        reason: str,
        expected_version: ExpectedVersion = UNSET,
    ) -> ChangeEncounterResult:
        return await _change(info, id, EncounterAction.MARK_ENTERED_IN_ERROR, expected_version, reason=reason)

    @strawberry.mutation(description="It is due at another time.")
    async def reschedule_encounter(
        self,
        info: Info,
        id: strawberry.ID,
        scheduled_at: datetime,
        expected_version: ExpectedVersion = UNSET,
    ) -> ChangeEncounterResult:
        return await _change(info, id, EncounterAction.RESCHEDULE, expected_version, scheduled_at=scheduled_at)

    @strawberry.mutation(description="Correct or complete what was recorded. The versions before stay in the history.")
    async def amend_encounter(
        self,
        info: Info,
        id: strawberry.ID,
        input: AmendEncounterInput,
        expected_version: ExpectedVersion = UNSET,
    ) -> ChangeEncounterResult:
        return await _change(info, id, EncounterAction.AMEND, expected_version, "input", **given(input))


def _result(came: Outcome, number: int, context: Context) -> object:
    """Return the union member of one item of a batch, or an exception, which graphql-core reports at its path."""
    if isinstance(came, Recording):
        return EncounterRecorded(encounter=came.encounter, replayed=came.replayed)  # type: ignore[arg-type]
    if not isinstance(came, GatewayError):
        return came
    try:
        problem = outcome(came, context)
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
    within: str | None = None,
    **members: object,
) -> ChangeEncounterResult:
    context = info.context.context
    sent = {name: value for name, value in members.items() if value is not UNSET}
    try:
        encounter = await change_encounter(context, encounter_id, action, sent, none_if_left_out(expected_version))
    except GatewayError as error:
        return outcome(error, context, within)  # type: ignore[no-any-return]
    return EncounterChanged(encounter=encounter)  # type: ignore[arg-type]
