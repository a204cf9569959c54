"""The command models, and the validation rules of their members.

The REST body and the GraphQL input use the same command. Every rule has a stable name (see `resolvers.rules`) and a
message that states the rule and never repeats the value.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import EnumType
from typing import Annotated, Any, ClassVar, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from models import MEMBERS, EncounterEventKind, EncounterStatus, EncounterType
from resolvers import json_text
from resolvers.errors import InvalidInput, Shape, Violation
from resolvers.ids import HYPHENATED
from resolvers.rules import RULES, RuleId
from resolvers.spelling import Ignored, near_miss


@dataclass(frozen=True, slots=True)
class InputLimits:
    """Limits of a command's members. Lengths in characters (code points), sizes in bytes of JSON text."""

    chief_complaint_characters: int = 2_000
    notes_characters: int = 50_000
    reason_characters: int = 2_000
    metadata_bytes: int = 64 * 1024
    metadata_levels: int = 32


DEFAULT_LIMITS = InputLimits()


# RFC 3339 section 5.6 `date-time`; the offset is optional here so that its absence breaks a rule of its own.
_DATE_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[Tt]([0-9]{2}):[0-9]{2}:([0-9]{2}))(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})?"
)

# Source: RFC 3339 section 5.6, `time-hour` and `time-minute`. `fromisoformat` accepts 60 to 99 minutes as an hour more,
# and some versions accept 24:00 as the next day.
_OFFSET = re.compile(r"[Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9]")


def broken(rule: RuleId, message: str, **limits: int) -> PydanticCustomError:
    """Return the error of a broken rule; the message may contain `{minimum}` and `{maximum}`."""
    return PydanticCustomError(rule, message, limits)


def _text(value: object) -> object:
    if isinstance(value, str) and (problem := json_text.problem_with(value)):
        raise broken(*problem)
    return value


def _not_empty(value: str) -> str:
    if not value:
        raise broken("too_short", "must have at least 1 character", minimum=1)
    return value


def _at_most(limit: str) -> AfterValidator:
    def check(value: str | None, info: ValidationInfo) -> str | None:
        characters: int = getattr(_limits(info), limit)
        if value is not None and len(value) > characters:
            raise broken("too_long", "must have at most {maximum} characters", maximum=characters)
        return value

    return AfterValidator(check)


def refuse_null(value: object) -> object:
    """Return the value of an optional member; null is refused."""
    # A member may be left out. Null would be a third state that a row cannot distinguish from absence.
    if value is None:
        raise broken("null", "must not be null; leave it out instead")
    return value


def uuid_of(value: object) -> UUID | None:
    """Return the UUID that a text is in its hyphenated form, or None."""
    return UUID(value) if isinstance(value, str) and HYPHENATED.fullmatch(value) else None


def _uuid(value: object) -> UUID:
    uuid = uuid_of(value)
    if uuid is None:
        raise broken("uuid", "must be a UUID in its hyphenated form")
    return uuid


def parse_instant(value: object) -> datetime:
    """Parse an RFC 3339 date-time as an instant in UTC, to the microsecond (further digits are cut off).

    Raises the error of the rule `date_time` or `offset`.
    """
    match = _DATE_TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise broken("date_time", "must be an RFC 3339 date-time such as 2026-01-31T09:30:00+01:00")
    date_and_time, hour, second, fraction, offset = match.groups()
    if offset is None:
        raise broken("offset", "must end in an offset such as Z or +01:00")
    if not _OFFSET.fullmatch(offset):
        raise broken("date_time", "must have an offset of at most 23 hours and 59 minutes")
    if second == "60":
        raise broken("date_time", "must not be a leap second (:60): it cannot be stored; send :59 or the next minute")
    try:
        if hour == "24":
            raise ValueError
        local = datetime.fromisoformat((date_and_time + (fraction or "")[:7] + offset).upper())
        return local.astimezone(UTC)
    except (ValueError, OverflowError):
        # A day that is not in the calendar, or an instant outside the years 1 to 9999.
        raise broken("date_time", "must be a date and time that exists in the calendar") from None


def _metadata(value: object, info: ValidationInfo) -> str:
    limits = _limits(info)
    if not isinstance(value, dict):
        raise broken("object", "must be an object")
    _check_tree(value, limits.metadata_levels, limits.metadata_levels)
    try:
        return json_text.write(value, limits.metadata_bytes)
    except json_text.TooLarge:
        raise broken("too_large", "must be at most {maximum} bytes of JSON", maximum=limits.metadata_bytes) from None


def _check_tree(tree: dict[str, Any] | list[Any], levels: int, most: int) -> None:
    if levels == 0:
        raise broken("too_deep", "must not be nested deeper than {maximum} levels", maximum=most)
    for each in (*tree, *tree.values()) if isinstance(tree, dict) else tree:
        if isinstance(each, str):
            if problem := json_text.problem_with(each):
                raise broken(*problem)
        elif isinstance(each, dict | list):
            _check_tree(each, levels - 1, most)


def _limits(info: ValidationInfo) -> InputLimits:
    return info.context or DEFAULT_LIMITS


def _or_none(check: Callable[[object], object]) -> BeforeValidator:
    return BeforeValidator(lambda value: None if value is None else check(value))


def _schema(**keywords: object) -> WithJsonSchema:
    # The member's schema on the wire. Its Python type may include None, for a member that was left out.
    return WithJsonSchema(keywords)


Text = Annotated[str, BeforeValidator(_text)]
ProviderId = Annotated[
    UUID | None, BeforeValidator(_uuid), BeforeValidator(refuse_null), _schema(type="string", format="uuid")
]
Instant = Annotated[
    datetime | None,
    BeforeValidator(parse_instant),
    BeforeValidator(refuse_null),
    _schema(type="string", format="date-time"),
]
ChiefComplaint = Annotated[
    Text | None,
    _at_most("chief_complaint_characters"),
    BeforeValidator(refuse_null),
    _schema(type="string", maxLength=DEFAULT_LIMITS.chief_complaint_characters),
]
Notes = Annotated[
    Text | None,
    _at_most("notes_characters"),
    BeforeValidator(refuse_null),
    _schema(type="string", maxLength=DEFAULT_LIMITS.notes_characters),
]
Reason = Annotated[Text | None, _at_most("reason_characters")]
MetadataText = Annotated[
    str,
    BeforeValidator(_metadata),
    BeforeValidator(refuse_null),
    _schema(type="object", additionalProperties=True),
]
"""A JSON object as its own text (see `json_text.write`), so that no number is rounded."""

MAX_EXTERNAL_IDS = 20
MAX_EXTERNAL_ID_CHARACTERS = 200


def _few_external_ids(external_ids: object) -> object:
    if not isinstance(external_ids, dict):
        raise broken("object", "must be an object")
    if len(external_ids) > MAX_EXTERNAL_IDS:
        raise broken("too_many", "must have at most {maximum} members", maximum=MAX_EXTERNAL_IDS)
    return external_ids


def _short(text: str) -> str:
    if len(text) > MAX_EXTERNAL_ID_CHARACTERS:
        raise broken("too_long", "must have at most {maximum} characters", maximum=MAX_EXTERNAL_ID_CHARACTERS)
    return text


ExternalIdText = Annotated[Text, AfterValidator(_not_empty), AfterValidator(_short)]
"""The name of another system, or a record's id in it: 1 to `MAX_EXTERNAL_ID_CHARACTERS`."""

ExternalIds = Annotated[dict[ExternalIdText, ExternalIdText], BeforeValidator(_few_external_ids)]
"""The ids of a record in other systems, by the names of these: at most `MAX_EXTERNAL_IDS`."""

ExternalIdsText = Annotated[
    ExternalIds | None,
    AfterValidator(json_text.write),
    BeforeValidator(refuse_null),
    # pydantic would expect the object that was validated.
    PlainSerializer(lambda text: text),
]
"""External ids that become a JSON object as its own text, as the row of an encounter holds them."""


class Command(BaseModel):
    """The base of every command: strict types; unknown members are ignored unless the caller requests strictness."""

    # Deferred: the validator is built when the first command is read.
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", defer_build=True)

    @classmethod
    def read(cls, members: Mapping[str, Any], limits: InputLimits, *, strict: bool = False) -> Self:
        """Validate `members` and return the command. Raises `InvalidInput` with every broken rule.

        With `strict`, an unknown member breaks a rule.
        """
        unknown = (
            unknown_names([each for each in members if each not in cls.model_fields], cls.model_fields)
            if strict
            else []
        )
        try:
            command = cls.model_validate(members, context=limits)
        except ValidationError as error:
            violations = [cls._violation(detail, members) for detail in error.errors(include_input=False)]
            raise InvalidInput([*violations, *unknown]) from None
        if unknown:
            raise InvalidInput(unknown)
        return command

    def given(self) -> dict[str, Any]:
        """Return every member by its name; a member that was left out has its default."""
        # Iterating over the model returns the same and takes twenty times as long.
        return vars(self)

    @classmethod
    def _violation(cls, detail: Any, members: Mapping[str, Any]) -> Violation:
        rule, message = _RULES.get(detail["type"], (detail["type"], detail["msg"]))
        limits = detail.get("ctx", {})
        kind = cls.model_fields[detail["loc"][0]].annotation
        allowed = [str(member) for member in kind] if rule == "enum" and isinstance(kind, EnumType) else ()
        return Violation(
            pointer="".join(f"/{member}" for member in detail["loc"]),
            rule=rule if rule in RULES else "type",
            message=message.format_map(limits),
            allowed=allowed,
            minimum=limits.get("minimum"),
            maximum=limits.get("maximum"),
            received=_received(members, detail["loc"]),
        )


def unknown_names(sent: Collection[str], known: Collection[str]) -> list[Violation]:
    """Return the violations for unknown names, where unknown names are refused."""
    ignored = Ignored.of(sent, NAMES)
    violations = [_unknown(name, known) for name in ignored.names]
    if ignored.others:
        message = f"has {ignored.others} unknown {'name' if ignored.others == 1 else 'names'}"
        violations.append(Violation("", "unknown_member", message, allowed=sorted(known)))
    return violations


def _unknown(name: str, known: Collection[str]) -> Violation:
    pointer = "/" + name.replace("~", "~0").replace("/", "~1")
    right = near_miss(name, known)
    return Violation(pointer, "unknown_member", "is unknown", allowed=[right] if right else sorted(known))


def misspelt(right: str) -> Violation:
    """Return the violation for a misspelling of `right`, where the difference would change the meaning."""
    return Violation(f"/{right}", "misspelt_name", "must be spelt exactly so; a misspelling was sent", allowed=[right])


class EncounterBody(Command):
    """The data of an encounter to record."""

    brand_id: Annotated[Text, AfterValidator(_not_empty), _schema(type="string", minLength=1)] = Field(
        description="The patient's brand."
    )
    encounter_type: Annotated[EncounterType, Field(strict=False)] = Field(description="The type of the encounter.")
    provider_id: ProviderId = Field(
        default=None,
        description="The provider directory's id of the provider who saw the patient; not checked for existence.",
    )
    scheduled_at: Instant = Field(default=None, description="The scheduled time, with an offset from UTC.")
    chief_complaint: ChiefComplaint = Field(
        default=None, description="The reason for the visit, in the patient's words."
    )
    notes: Notes = Field(default=None, description="The clinician's notes.")
    metadata: MetadataText = Field(
        default="{}", description="Additional data as an object; stored as sent. `{}` if left out."
    )


CLOCK_ALLOWANCE = timedelta(minutes=1)
"""How far a sent time may be ahead of this machine's clock, because the clocks of callers differ."""

_NONE, _BOTH = frozenset[str](), frozenset({"started_at", "ended_at"})
TIMES_OF_STATUS: Mapping[EncounterStatus, Sequence[frozenset[str]]] = {
    EncounterStatus.SCHEDULED: [_NONE],
    EncounterStatus.IN_PROGRESS: [frozenset({"started_at"})],
    EncounterStatus.COMPLETED: [_BOTH],
    EncounterStatus.CANCELLED: [_NONE, _BOTH],
    EncounterStatus.NO_SHOW: [_NONE, _BOTH],
}
"""The statuses with which an encounter can be recorded, and the times that each may have."""


def _none_if_scheduled(status: EncounterStatus) -> EncounterStatus | None:
    return None if status is EncounterStatus.SCHEDULED else status


def _none_if_empty(external_ids: str) -> str | None:
    return None if external_ids == "{}" else external_ids


class RecordEncounter(EncounterBody):
    """The data of an encounter to record, with the members that only GraphQL and imports accept.

    A status or external ids that change nothing are None, as if left out. So requests and lines of the same meaning
    have the same hash, and the hashes of requests without these members stay the same.
    """

    times_of_status: ClassVar[Mapping[EncounterStatus, Sequence[frozenset[str]]]] = TIMES_OF_STATUS
    """The accepted statuses, and the times that each may have."""

    status: Annotated[
        EncounterStatus | None,
        Field(strict=False),
        AfterValidator(_none_if_scheduled),
        BeforeValidator(refuse_null),
    ] = None
    started_at: Instant = None
    ended_at: Instant = None
    external_ids: Annotated[ExternalIdsText, AfterValidator(_none_if_empty)] = None

    @classmethod
    def read(cls, members: Mapping[str, Any], limits: InputLimits, *, strict: bool = False) -> Self:
        """Validate `members` as `Command.read` does, and that status and times agree."""
        command = super().read(members, limits, strict=strict)
        sends_any = not members.keys().isdisjoint({"status", *_BOTH})
        if sends_any and (violations := list(_disagreements(command))):
            raise InvalidInput([replace(each, received=_received(members, (each.pointer[1:],))) for each in violations])
        return command


def _disagreements(command: RecordEncounter) -> Iterator[Violation]:
    times = {"started_at": command.started_at, "ended_at": command.ended_at}
    sent = {name: at for name, at in times.items() if at is not None}
    status = command.status or EncounterStatus.SCHEDULED
    if status not in command.times_of_status:
        message = "must not be entered in error; record the encounter, then mark it"
        yield Violation("/status", "recorded_status", message)
    elif sent.keys() not in (accepted := command.times_of_status[status]):
        need = "with the other time" if _NONE in accepted else "with this status"
        other = "must be left out, or sent with another status than scheduled"
        excess = "must be left out with this status" if command.status else other
        for name in times:
            if name in accepted[-1] and name not in sent:
                yield Violation(f"/{name}", "recorded_status", f"is required {need}")
            if name in sent and name not in accepted[-1]:
                yield Violation(f"/{name}", "recorded_status", excess)
    latest = datetime.now(UTC) + CLOCK_ALLOWANCE
    for name, at in sent.items():
        if at > latest:
            yield Violation(f"/{name}", "future", "must not be in the future")
    if len(sent) == len(times) and sent["ended_at"] < sent["started_at"]:
        yield Violation("/ended_at", "time_order", "must not be before the start")


MAX_VERSION = 2**31 - 1
"""The greatest version of an encounter that its column holds."""


def _uuid7(value: object) -> UUID:
    uuid = uuid_of(value)
    if uuid is None or uuid.version != 7:
        raise broken("uuid", "must be a UUID of version 7 in its hyphenated form")
    return uuid


def _version(value: object) -> int:
    if type(value) is not int or not 1 <= value <= MAX_VERSION:
        raise broken("type", "must be a whole number from {minimum} to {maximum}", minimum=1, maximum=MAX_VERSION)
    return value


class RestoredEncounter(RecordEncounter):
    """The data of an exported encounter to record again, with the members that the gateway set."""

    times_of_status: ClassVar = {
        **TIMES_OF_STATUS,
        EncounterStatus.ENTERED_IN_ERROR: [_NONE, frozenset({"started_at"}), _BOTH],
    }

    id: Annotated[UUID, BeforeValidator(_uuid7)]
    created_at: Annotated[datetime, BeforeValidator(parse_instant)]
    updated_at: Annotated[datetime, BeforeValidator(parse_instant)]
    version: Annotated[int, BeforeValidator(_version)]


class Change(Command):
    """The base of commands that change a recorded encounter."""

    reason: Reason = None

    def members(self) -> dict[str, Any]:
        """Return the members of the encounter that are set, by their columns; a cleared member is None."""
        return {
            name: value for name, value in self.given().items() if name in self.model_fields_set and name != "reason"
        }


class ExplainedChange(Change):
    """A change whose reason is required."""

    reason: Annotated[Text, AfterValidator(_not_empty), _at_most("reason_characters")]


class Reschedule(Change):
    """Change the scheduled time."""

    scheduled_at: Annotated[datetime, BeforeValidator(parse_instant)]


class AmendEncounter(Change):
    """Correct or add members. A member left out stays unchanged; null clears an optional member."""

    encounter_type: Annotated[EncounterType | None, Field(strict=False), BeforeValidator(refuse_null)] = None
    provider_id: Annotated[UUID | None, _or_none(_uuid)] = None
    chief_complaint: Annotated[Text | None, _at_most("chief_complaint_characters")] = None
    notes: Annotated[Text | None, _at_most("notes_characters")] = None
    metadata: MetadataText = "{}"
    external_ids: ExternalIdsText = None


class FindByExternalId(Command):
    """An external id to find records by: another system, and the record's id in it."""

    system: ExternalIdText
    value: ExternalIdText


class PatientFilter(Command):
    """A filter of a brand's patients: those that match every given criterion, or all."""

    created_from: Instant = Field(default=None, description="Inclusive.")
    created_until: Instant = Field(default=None, description="Exclusive.")

    def criteria(self) -> dict[str, Any]:
        """Return the filter's criteria by name. A criterion left out matches everything."""
        return {name: value for name, value in self.given().items() if value is not None}


class ListFilter(Command):
    """The base of filters of lists: encounters that match every given criterion, or all."""

    def criteria(self) -> dict[str, Any]:
        """Return the filter's criteria by their names in `resolvers.list_sql.CRITERIA`.

        An empty list matches nothing; a criterion left out matches everything.
        """
        return {name: value for name, value in self.given().items() if value is not None}


class EncounterFilter(ListFilter):
    """A filter of a patient's encounters."""

    encounter_type: Annotated[tuple[EncounterType, ...] | None, Field(strict=False), BeforeValidator(refuse_null)] = (
        None
    )
    status: Annotated[tuple[EncounterStatus, ...] | None, Field(strict=False), BeforeValidator(refuse_null)] = None
    provider_id: ProviderId = None
    scheduled_from: Instant = Field(default=None, description="Inclusive.")
    scheduled_until: Instant = Field(default=None, description="Exclusive.")


EVERYTHING = EncounterFilter()

MOST_VALUES = 100
"""Maximum number of values in a criterion of `EncountersFilter` or `EventFilter`."""


def _few(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(values) > MOST_VALUES:
        raise broken("too_many", "must be at most {maximum}", maximum=MOST_VALUES)
    return values


_Uuid = Annotated[UUID, BeforeValidator(_uuid)]
_ANY_OF = (AfterValidator(_few), BeforeValidator(refuse_null))


class EncountersFilter(ListFilter):
    """A filter of a brand's encounters."""

    encounter_type: Annotated[tuple[EncounterType, ...] | None, Field(strict=False), *_ANY_OF] = None
    status: Annotated[tuple[EncounterStatus, ...] | None, Field(strict=False), *_ANY_OF] = None
    provider_id: Annotated[
        tuple[Annotated[UUID, BeforeValidator(_uuid)], ...] | None, Field(strict=False), *_ANY_OF
    ] = None
    patient_id: Annotated[tuple[Text, ...] | None, Field(strict=False), *_ANY_OF] = None
    scheduled_from: Instant = None
    scheduled_until: Instant = None
    started_from: Instant = None
    started_until: Instant = None
    created_from: Instant = None
    created_until: Instant = None
    updated_from: Instant = None
    updated_until: Instant = None

    def criteria(self) -> dict[str, Any]:
        """Return the criteria. A list with one value is a criterion of its own, which an index serves in order."""
        criteria = super().criteria()
        if (patients := criteria.pop("patient_id", None)) is not None:
            criteria["patients"] = patients
        if (providers := criteria.pop("provider_id", None)) is not None:
            criteria |= {"one_provider": providers[0]} if len(providers) == 1 else {"providers": providers}
        if len(criteria.get("status", ())) == 1:
            (criteria["one_status"],) = criteria.pop("status")
        return criteria


ALL_OF_BRAND = EncountersFilter()


class EventFilter(ListFilter):
    """A filter of the feed: the events that match every given criterion, or all.

    An event matches a type or a provider that the encounter had before or after the change, so that a list of one
    provider's encounters learns of those that leave it.
    """

    encounter_type: Annotated[tuple[EncounterType, ...] | None, Field(strict=False), *_ANY_OF] = None
    provider_id: Annotated[tuple[_Uuid, ...] | None, Field(strict=False), *_ANY_OF] = None
    patient_id: Annotated[tuple[Text, ...] | None, Field(strict=False), *_ANY_OF] = None
    kinds: Annotated[tuple[EncounterEventKind, ...] | None, Field(strict=False)] = None

    def of_patient(self, patient_id: str) -> Self:
        """Return the filter narrowed to a patient."""
        patients = (patient_id,) if self.patient_id is None or patient_id in self.patient_id else ()
        return self.model_copy(update={"patient_id": patients})


EVERY_EVENT = EventFilter()

QUERY_PARAMETERS = frozenset({"validate_only", "limit", "offset"})
"""The query parameters of all REST operations."""

NAMES = MEMBERS.keys() | RecordEncounter.model_fields.keys() | QUERY_PARAMETERS
"""The names that may be repeated to a client: every member that REST accepts or shows, and every parameter."""


# Pydantic's own error types, with this project's rules and messages.
_RULES: Mapping[str, tuple[RuleId, str]] = {
    "missing": ("required", "is required"),
    "string_type": ("string", "must be a string"),
    "enum": ("enum", "must be one of: {expected}"),
}


def _received(members: Mapping[str, Any], place: tuple[str | int, ...]) -> Shape | None:
    value: Any = members
    try:
        for step in place:
            value = value[step]
    except (LookupError, TypeError):
        # The member is missing, or the location is the name of a member and has no value.
        return None
    return json_text.shape_of(value)
