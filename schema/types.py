"""The GraphQL types of encounters and patients. Only the columns listed here are published."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, TypeVar
from uuid import UUID

import strawberry
from strawberry import UNSET
from strawberry.types.info import Info as StrawberryInfo
from strawberry.utils.str_converters import to_camel_case

import models
from models import EncounterAction, EncounterEventKind, EncounterStatus, EncounterType
from resolvers.commands import EncounterFilter
from resolvers.context import Context
from resolvers.encounters import history as versions
from resolvers.encounters.history import MOST_VERSIONS
from resolvers.encounters.lifecycle import allowed_actions
from resolvers.errors import InvalidInput, Shape, Violation
from resolvers.json_text import shape_of
from resolvers.paging import Page, Position, cursor_scope, window_of, write_cursor
from resolvers.patients import SeenPatient, patient_of
from schema.errors import in_argument
from schema.loaders import CountKey, HistoryKey, Loaders, PageKey
from schema.scalars import JSON
from schema.selections import collect_fields

strawberry.enum(EncounterType, description="The type of an encounter.")
strawberry.enum(EncounterEventKind, description="The kind of a change to an encounter.")


@dataclass(frozen=True, slots=True)
class OperationContext:
    """State shared by the fields of one operation: the caller's context and the operation's loaders."""

    context: Context
    loaders: Loaders
    last_event_id: str | None = None
    """The cursor in the `Last-Event-ID` header, which a client sends when it reconnects to server-sent events."""


Info = StrawberryInfo[OperationContext, None]

T = TypeVar("T")

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

    @strawberry.field(description="The members that changed since the previous version; empty for the first version.")
    def changes(self, root: strawberry.Parent[versions.Version]) -> list[EncounterChange]:
        return [EncounterChange(**_shown(change)) for change in root.changes]


def _shown(change: versions.Change) -> dict[str, Any]:
    # GraphQL enum values are upper-case; the database stores lower-case values.
    values = {"before": change.before, "after": change.after}
    if change.member in ENUM_MEMBERS:
        values = {side: value.upper() for side, value in values.items()}
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
    created_at: datetime = strawberry.field(description="The time at which the gateway recorded it.")
    updated_at: datetime = strawberry.field(description="The time at which the gateway last changed it.")
    version: int = strawberry.field(description="The number of the version, from 1.")

    @strawberry.field(description="The actions that the status allows.")
    def allowed_actions(self, root: strawberry.Parent[models.Encounter]) -> list[EncounterAction]:
        return allowed_actions(root.status)

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
    has_next_page: bool = strawberry.field(description="Whether older encounters follow this page.")
    has_previous_page: bool = strawberry.field(description="Whether newer encounters precede this page.")
    start_cursor: str | None
    end_cursor: str | None


@strawberry.type(description="An encounter and its position in the list.")
class EncounterEdge:
    cursor: str = strawberry.field(description="Opaque; valid for this list only: the same patient, filter and brand.")
    node: Encounter


@strawberry.type(description="A page of a patient's encounters, newest first.")
class EncounterConnection:
    """Reads the page, and counts the list, only if a field that needs it is selected."""

    key: strawberry.Private[PageKey]
    in_list: strawberry.Private[str]

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

    @strawberry.field(description="Number of encounters that match the filter, on all pages. Counted only if selected.")
    async def total_count(self, info: Info) -> int:
        return await info.context.loaders.counts.load(CountKey(self.key.patient_id, self.key.filters))

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

    async def _page(self, info: Info) -> Page:
        return await info.context.loaders.pages.load(self.key)

    def _cursor(self, encounter: models.Encounter) -> str:
        return write_cursor(Position(encounter.created_at, encounter.id), self.in_list)


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


@strawberry.type(description="A patient: an id and a brand. The gateway stores no other data of a person.")
class Patient:
    """Resolved by attribute from a `models.Patient` or a `resolvers.patients.SeenPatient`."""

    id: strawberry.ID
    brand_id: str

    @strawberry.field(
        description="The patient's encounters, newest first. A page has 20 encounters by default, and at most 100."
    )
    async def encounters(  # noqa: PLR0917 - the argument names are Relay's
        self,
        root: strawberry.Parent[SeenPatient],
        info: Info,
        first: Annotated[int | None, strawberry.argument(description="Number of encounters, from the newest.")] = UNSET,
        after: Annotated[
            str | None, strawberry.argument(description="Return only encounters after this cursor: older ones.")
        ] = UNSET,
        last: Annotated[int | None, strawberry.argument(description="Number of encounters, from the oldest.")] = UNSET,
        before: Annotated[
            str | None,
            strawberry.argument(
                description="Return only encounters before this cursor: newer ones. For paging only; to follow "
                "new encounters, subscribe after `feedCursor`."
            ),
        ] = UNSET,
        where: EncounterFilterInput | None = UNSET,
    ) -> EncounterConnection:
        context = info.context.context
        require_not_null("where", where)
        try:
            filters = EncounterFilter.read(given(where), context.services.input_limits)
        except InvalidInput as error:
            raise in_argument("where", error) from None
        in_list = cursor_scope(root.brand_id, root.id, filters)
        relay: dict[str, Any] = {"first": first, "after": after, "last": last, "before": before}
        window = window_of(
            context.services.page_limits,
            in_list,
            **{name: value for name, value in relay.items() if value is not UNSET},
        )
        key = PageKey(root.id, window, filters, for_feed=asks_for(info, "feedCursor"))
        return EncounterConnection(key=key, in_list=in_list)


def given(an_input: object | None) -> dict[str, object]:
    """Return the members of an input that the client sent, including nulls, by their Python names."""
    return {name: value for name, value in vars(an_input).items() if value is not UNSET} if an_input else {}


def asks_for(info: Info, name: str) -> bool:
    """Whether a field's selection contains a field of this name at its first level, including in fragments."""
    raw = info._raw_info  # noqa: SLF001 - Strawberry's `selected_fields` would convert all levels
    selections = [("", node.selection_set) for node in raw.field_nodes if node.selection_set]
    groups = collect_fields(selections, raw.fragments).values()
    return any(node.name.value == name for group in groups for _, node in group)


def require_not_null(name: str, argument: object | None) -> None:
    """Raise `InvalidInput` if a filter argument was sent as null, because null would match everything."""
    if argument is None:
        message, received = "must not be null; leave it out instead", shape_of(None)
        raise InvalidInput([Violation(f"/{name}", "null", message, received=received)])


def none_if_left_out(argument: T | None) -> T | None:
    """Return an optional argument, or None if it was not sent."""
    return None if argument is UNSET else argument
