"""The GraphQL types of encounters and patients. Only the columns listed here are published."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, TypeVar
from uuid import UUID

import strawberry
from strawberry import UNSET
from strawberry.types.info import Info as StrawberryInfo
from strawberry.utils.str_converters import to_camel_case

import models
from models import EncounterAction, EncounterEventKind, EncounterOrder, EncounterStatus, EncounterType
from resolvers.access import Permission
from resolvers.commands import MOST_VALUES, Command, EncounterFilter
from resolvers.context import Context
from resolvers.encounters import history as versions
from resolvers.encounters.history import MOST_VERSIONS
from resolvers.encounters.lifecycle import allowed_actions
from resolvers.encounters.worklists import MOST_COUNTED
from resolvers.errors import InvalidInput, Shape, TemporarilyUnavailable, Violation
from resolvers.json_text import shape_of
from resolvers.list_sql import ORDERS
from resolvers.paging import ListOf, Page, position_of, window_of, write_cursor
from resolvers.patient_list import PatientPage
from resolvers.patients import SeenPatient, patient_of
from schema.arguments import in_argument
from schema.loaders import HistoryKey, Loaders, PageKey
from schema.scalars import JSON
from schema.selections import collect_fields

strawberry.enum(EncounterType, description="The type of an encounter.")
strawberry.enum(EncounterStatus, description="The status of an encounter in its lifecycle.")
strawberry.enum(EncounterAction, description="An action on a recorded encounter.")
strawberry.enum(
    EncounterOrder,
    description="An order of a list. Null comes last in both directions. The id decides between equals, in the "
    "same direction.",
)
strawberry.enum(EncounterEventKind, description="The kind of a change to an encounter.")


@dataclass(frozen=True, slots=True)
class OperationContext:
    """State shared by the fields of one operation: the caller's context and the operation's loaders."""

    context: Context
    loaders: Loaders
    extensions: dict[str, Any] = field(default_factory=dict)
    """Members of the response's `extensions` that resolvers add."""
    last_event_id: str | None = None
    """The cursor in the `Last-Event-ID` header, which a client sends when it reconnects to server-sent events."""


Info = StrawberryInfo[OperationContext, None]

T = TypeVar("T")
F = TypeVar("F", bound=Command)

ENUM_MEMBERS = {member.name for member in models.MEMBERS.values() if member.enum}


@strawberry.type(description="A changed member of an encounter.")
class EncounterChange:
    member: str = strawberry.field(description="The name of the member in this schema.")
    before: JSON | None
    after: JSON | None


@strawberry.type(
    description="A version of an encounter: the actor, the time and the reason of the change, and the changed members."
)
class EncounterVersion:
    """Resolved by attribute from a `resolvers.encounters.history.Version`."""

    version: int
    kind: EncounterEventKind
    changed_at: datetime
    changed_by: str = strawberry.field(description="The actor: the person, or the client if there is none.")
    reason: str | None = strawberry.field(description="The reason of the change, as text that the caller sent.")

    @strawberry.field(
        description="The members that changed since the previous version. In the first version: the status and the "
        "times, if the encounter was recorded with another status than `SCHEDULED`."
    )
    def changes(self, root: strawberry.Parent[versions.Version]) -> list[EncounterChange]:
        return [EncounterChange(**_shown(change)) for change in root.changes]


def _shown(change: versions.Change) -> dict[str, Any]:
    # GraphQL enum values are upper-case; the database stores lower-case values.
    values = {"before": change.before, "after": change.after}
    if change.member in ENUM_MEMBERS:
        values = {side: value if value == "null" else value.upper() for side, value in values.items()}
    return {"member": to_camel_case(change.member), **values}


@strawberry.type(description="One visit of a patient.")
class Encounter:
    """Resolved by attribute from a `models.Encounter`."""

    id: strawberry.ID
    patient_id: strawberry.ID
    provider_id: UUID | None = strawberry.field(
        description="The provider directory's id of the provider who saw the patient."
    )
    brand_id: str
    encounter_type: EncounterType
    status: EncounterStatus
    scheduled_at: datetime | None = strawberry.field(description="The scheduled time.")
    started_at: datetime | None = strawberry.field(description="The time of the start.")
    ended_at: datetime | None = strawberry.field(
        description="The time of the completion, or of the cancellation after a start."
    )
    chief_complaint: str | None = strawberry.field(description="The reason for the visit, in the patient's words.")
    notes: str | None = strawberry.field(description="The clinician's notes.")
    metadata: JSON = strawberry.field(description="Additional data of the recording system.")
    external_ids: JSON = strawberry.field(
        description="The encounter's ids in other systems: an object with a string for each system."
    )
    created_at: datetime = strawberry.field(description="The time at which the gateway recorded it.")
    updated_at: datetime = strawberry.field(description="The time at which the gateway last changed it.")
    version: int = strawberry.field(description="The number of the version, from 1.")

    @strawberry.field(
        description="The actions that the status allows. Empty for a caller who may not change encounters."
    )
    def allowed_actions(self, root: strawberry.Parent[models.Encounter], info: Info) -> list[EncounterAction]:
        return allowed_actions(root.status) if info.context.context.may(Permission.CHANGE_ENCOUNTER) else []

    @strawberry.field(
        description=f"The versions of the encounter, oldest first. At most {MOST_VERSIONS} are returned; "
        "request those that follow with `after`. No version is ever deleted."
    )
    async def history(
        self,
        root: strawberry.Parent[models.Encounter],
        info: Info,
        first: Annotated[
            int | None,
            strawberry.argument(description=f"Number of versions, at most {MOST_VERSIONS}, which is the default."),
        ] = UNSET,
        after: Annotated[
            int | None, strawberry.argument(description="Return only versions after this version number.")
        ] = UNSET,
    ) -> list[EncounterVersion]:
        key = HistoryKey(
            root.patient_id,
            root.id,
            _whole_number("first", first, MOST_VERSIONS, most=MOST_VERSIONS),
            _whole_number("after", after, 0, most=MOST_INT),
        )
        return await info.context.loaders.histories.load(key)  # type: ignore[return-value]

    @strawberry.field(description="The patient of the encounter.")
    def patient(self, root: strawberry.Parent[models.Encounter], info: Info) -> "Patient":
        return patient_of(info.context.context, root)  # type: ignore[return-value]


MOST_INT = 2**31 - 1


def _whole_number(argument: str, value: int | None, default: int, *, most: int) -> int:
    """Return an argument, or the default if it was not sent or null. Raise `InvalidInput` if it is out of range."""
    if value is None or value is UNSET:
        return default
    if not 0 <= value <= most:
        message, received = f"must be from 0 to {most}", Shape("number")
        raise InvalidInput(
            [Violation(f"/{argument}", "page_size", message, minimum=0, maximum=most, received=received)]
        )
    return value


@strawberry.type(description="The position of a page in its list.")
class PageInfo:
    has_next_page: bool = strawberry.field(description="Whether the list continues after this page.")
    has_previous_page: bool = strawberry.field(description="Whether the list begins before this page.")
    start_cursor: str | None
    end_cursor: str | None


@strawberry.type(description="An encounter and its position in the list.")
class EncounterEdge:
    cursor: str = strawberry.field(
        description="Opaque; valid for this list only: the same brand, patient, filter and order."
    )
    node: Encounter


@strawberry.type(description="A page of a list of encounters, in the list's order.")
class EncounterConnection:
    """Reads the page, and counts the list, only if a field that needs it is selected."""

    key: strawberry.Private[PageKey]

    @strawberry.field(description="The encounters with their cursors.")
    async def edges(self, info: Info) -> list[EncounterEdge]:
        return [
            EncounterEdge(cursor=self._cursor(each), node=each)  # type: ignore[arg-type]
            for each in (await self._page(info)).items
        ]

    @strawberry.field(description="The encounters without cursors.")
    async def nodes(self, info: Info) -> list[Encounter]:
        return (await self._page(info)).items  # type: ignore[return-value]

    @strawberry.field(description="The position of the page in the list.")
    async def page_info(self, info: Info) -> PageInfo:
        page = await self._page(info)
        return PageInfo(
            has_next_page=page.has_next,
            has_previous_page=page.has_previous,
            start_cursor=self._cursor(page.items[0]) if page.items else None,
            end_cursor=self._cursor(page.items[-1]) if page.items else None,
        )

    @strawberry.field(
        description="Number of encounters that match the filter, on all pages. Counted only if selected. In a list of "
        f"a brand's encounters it is at most {MOST_COUNTED:,}; `totalCountIsExact` tells whether there are more."
    )
    async def total_count(self, info: Info) -> int:
        count = await info.context.loaders.counts.load(self.key.of)
        return count if self.key.of.patient_id else min(count, MOST_COUNTED)

    @strawberry.field(description="Whether `totalCount` counts all encounters.")
    async def total_count_is_exact(self, info: Info) -> bool:
        return bool(self.key.of.patient_id) or await info.context.loaders.counts.load(self.key.of) <= MOST_COUNTED

    @strawberry.field(
        description="The position in the feed from which to follow this page with `encounterEvents(after:)`. Every "
        "change that the page does not show is sent, however late it commits; a change that it shows may be sent too. "
        "Paging with `before` can miss encounters that commit late. To follow new encounters, read one page, "
        "then subscribe."
    )
    async def feed_cursor(self, info: Info) -> str:
        context = info.context.context
        position = (await self._page(info)).position
        assert position is not None, "the page was read for the feed"
        cursors = await context.services.feed.cursors()
        return cursors.write(position, context.acting_brand(), salted=True)

    async def read(self, info: Info) -> None:
        """Read what the query selects of the list. An error is then that of the list, not of one of its fields."""
        if asks_for(info, "nodes", "edges", "pageInfo", "feedCursor"):
            await self._page(info)
        if asks_for(info, "totalCount", "totalCountIsExact"):
            await info.context.loaders.counts.load(self.key.of)

    async def _page(self, info: Info) -> Page:
        return await info.context.loaders.pages.load(self.key)

    def _cursor(self, encounter: models.Encounter) -> str:
        return write_cursor(position_of(encounter, ORDERS[self.key.of.order]), self.key.of)


@strawberry.input(name="EncounterFilter", description="A filter of a list: an encounter must match every given member.")
class EncounterFilterInput:
    encounter_type: list[EncounterType] | None = strawberry.field(
        default=UNSET, description="An encounter matches if it has any of these values."
    )
    status: list[EncounterStatus] | None = strawberry.field(
        default=UNSET, description="An encounter matches if it has any of these values."
    )
    provider_id: UUID | None = UNSET
    scheduled_from: datetime | None = strawberry.field(default=UNSET, description="Inclusive.")
    scheduled_until: datetime | None = strawberry.field(default=UNSET, description="Exclusive.")


@strawberry.input(
    name="EncountersFilter",
    description="A filter of a brand's encounters: an encounter must match every given member, and of a list any "
    f"value. A list has at most {MOST_VALUES} values.",
)
class EncountersFilterInput:
    encounter_type: list[EncounterType] | None = UNSET
    status: list[EncounterStatus] | None = UNSET
    provider_id: list[UUID] | None = UNSET
    patient_id: list[strawberry.ID] | None = UNSET
    scheduled_from: datetime | None = strawberry.field(default=UNSET, description="Inclusive.")
    scheduled_until: datetime | None = strawberry.field(default=UNSET, description="Exclusive.")
    started_from: datetime | None = strawberry.field(default=UNSET, description="Inclusive.")
    started_until: datetime | None = strawberry.field(default=UNSET, description="Exclusive.")
    created_from: datetime | None = strawberry.field(default=UNSET, description="Inclusive.")
    created_until: datetime | None = strawberry.field(default=UNSET, description="Exclusive.")
    updated_from: datetime | None = strawberry.field(default=UNSET, description="Inclusive.")
    updated_until: datetime | None = strawberry.field(default=UNSET, description="Exclusive.")


First = Annotated[int | None, strawberry.argument(description="Number of encounters, from the first of the list.")]
After = Annotated[
    str | None, strawberry.argument(description="Return only encounters that come after this cursor in the list.")
]
Last = Annotated[int | None, strawberry.argument(description="Number of encounters, from the last of the list.")]
Before = Annotated[
    str | None,
    strawberry.argument(
        description="Return only encounters that come before this cursor in the list. For paging only; to follow "
        "new encounters, subscribe after `feedCursor`."
    ),
]
OrderBy = Annotated[EncounterOrder | None, strawberry.argument(description="The order of the list.")]
PatientId = Annotated[
    strawberry.ID | None,
    strawberry.argument(
        description="The encounter's patient, if the caller knows it. A cluster then reads one shard instead of all. "
        "Of another patient, the encounter is not found."
    ),
]


@strawberry.type(
    description="A patient: an id, a brand, and ids in other systems. The gateway stores no other data of a person."
)
class Patient:
    """Resolved by attribute from a `models.Patient` or a `resolvers.patients.SeenPatient`."""

    id: strawberry.ID
    brand_id: str

    @strawberry.field(description="The patient's ids in other systems: an object with a string for each system.")
    async def external_ids(self, root: strawberry.Parent[SeenPatient | models.Patient], info: Info) -> JSON:
        patient = await _stored(root, info)
        await info.context.loaders.shown_patients.load((patient.brand_id, patient.id))
        return JSON(patient.external_ids)

    @strawberry.field(description="The time at which the gateway registered the patient.")
    async def created_at(self, root: strawberry.Parent[SeenPatient | models.Patient], info: Info) -> datetime:
        return (await _stored(root, info)).created_at

    @strawberry.field(
        description="The patient's encounters, newest first unless `orderBy` differs. A page has 20 encounters by "
        "default, and at most 100."
    )
    async def encounters(  # noqa: PLR0917 - the argument names are Relay's
        self,
        root: strawberry.Parent[SeenPatient],
        info: Info,
        first: First = UNSET,
        after: After = UNSET,
        last: Last = UNSET,
        before: Before = UNSET,
        where: EncounterFilterInput | None = UNSET,
        order_by: OrderBy = EncounterOrder.CREATED_AT_DESC,
    ) -> EncounterConnection:
        of = ListOf(root.brand_id, root.id, filter_of(EncounterFilter, where, info), order_of(order_by))
        return connection_of(of, {"first": first, "after": after, "last": last, "before": before}, info)


def filter_of(kind: type[F], where: object | None, info: Info) -> F:
    """Return the filter that an argument describes. Raises `InvalidInput`."""
    require_not_null("where", where)
    try:
        return kind.read(given(where), info.context.context.services.input_limits)
    except InvalidInput as error:
        raise in_argument("where", error) from None


def order_of(order_by: EncounterOrder | None) -> EncounterOrder:
    """Return the order that an argument names. Raises `InvalidInput` for null."""
    if order_by is None:
        message, allowed = "must not be null; leave it out instead", [each.name for each in EncounterOrder]
        raise InvalidInput([Violation("/orderBy", "null", message, allowed=allowed, received=shape_of(None))])
    return order_by


def connection_of(of: ListOf, relay: Mapping[str, Any], info: Info) -> EncounterConnection:
    """Return the connection to a list that Relay's arguments describe. Raises `InvalidInput`."""
    arguments = {name: value for name, value in relay.items() if value is not UNSET}
    window = window_of(info.context.context.services.page_limits, of, **arguments)
    return EncounterConnection(key=PageKey(of, window, for_feed=asks_for(info, "feedCursor")))


async def _stored(patient: SeenPatient | models.Patient, info: Info) -> models.Patient:
    """Return the patient's row, which is read only for the patient of an encounter."""
    row = patient if isinstance(patient, models.Patient) else await info.context.loaders.patients.load(patient.id)
    if row is None:
        # Erased after the encounter was read: the next attempt finds neither.
        raise TemporarilyUnavailable
    return row


@strawberry.input(name="PatientFilter", description="A filter of a list: a patient must match every given member.")
class PatientFilterInput:
    """The members of `resolvers.commands.PatientFilter`, which holds their rules."""

    created_from: datetime | None = strawberry.field(default=UNSET, description="Inclusive.")
    created_until: datetime | None = strawberry.field(default=UNSET, description="Exclusive.")


@strawberry.type(description="A patient and its position in the list.")
class PatientEdge:
    cursor: str = strawberry.field(description="Opaque; valid for this list only: the same filter and brand.")
    node: Patient


@strawberry.type(description="A page of a brand's patients, newest first.")
class PatientConnection:
    page: strawberry.Private[PatientPage]

    @strawberry.field(description="The patients with their cursors.")
    def edges(self) -> list[PatientEdge]:
        return [PatientEdge(cursor=self.page.cursor(each), node=each) for each in self.page.items]  # type: ignore[arg-type]

    @strawberry.field(description="The patients without cursors.")
    def nodes(self) -> list[Patient]:
        return self.page.items  # type: ignore[return-value]

    @strawberry.field(description="The position of the page in the list.")
    def page_info(self) -> PageInfo:
        items = self.page.items
        return PageInfo(
            has_next_page=self.page.has_next,
            has_previous_page=self.page.has_previous,
            start_cursor=self.page.cursor(items[0]) if items else None,
            end_cursor=self.page.cursor(items[-1]) if items else None,
        )


def given(an_input: object | None) -> dict[str, object]:
    """Return the members of an input that the client sent, including nulls, by their Python names."""
    return {name: value for name, value in vars(an_input).items() if value is not UNSET} if an_input else {}


def asks_for(info: Info, *names: str) -> bool:
    """Whether a field's selection contains a field of these names at its first level, including in fragments."""
    raw = info._raw_info  # noqa: SLF001 - Strawberry's `selected_fields` would convert all levels
    selections = [("", node.selection_set) for node in raw.field_nodes if node.selection_set]
    groups = collect_fields(selections, raw.fragments).values()
    return any(node.name.value in names for group in groups for _, node in group)


def require_not_null(name: str, argument: object | None) -> None:
    """Raise `InvalidInput` if an argument was sent as null: a filter of null would match everything."""
    if argument is None:
        message, received = "must not be null; leave it out instead", shape_of(None)
        raise InvalidInput([Violation(f"/{name}", "null", message, received=received)])


def none_if_left_out(argument: T | None) -> T | None:
    """Return an optional argument, or None if it was not sent."""
    return None if argument is UNSET else argument
