"""The GraphQL types of encounters and patients. Only the columns listed here are published."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, TypeVar
from uuid import UUID

import strawberry
from graphql import FieldNode, FragmentSpreadNode, InlineFragmentNode
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

strawberry.enum(EncounterType, description="What kind of meeting it is.")
strawberry.enum(EncounterEventKind, description="What happened to an encounter.")


@dataclass(frozen=True, slots=True)
class OperationContext:
    """State shared by the fields of one operation: the caller's context and the operation's loaders."""

    context: Context
    loaders: Loaders
    met: Exception | None = None
    """The error that the operation's plan raised after it started. It is reported, and nothing is tried again."""
    last_event_id: str | None = None
    """The cursor in the `Last-Event-ID` header, which a client sends when it reconnects to server-sent events."""


Info = StrawberryInfo[OperationContext, None]

T = TypeVar("T")

ENUM_MEMBERS = {member.name for member in models.MEMBERS.values() if member.enum}


@strawberry.type(description="One member of an encounter that was changed.")
class EncounterChange:
    member: str = strawberry.field(description="The member, by its name here.")
    before: JSON | None
    after: JSON | None


@strawberry.type(description="One version of an encounter: who made it, when, why, and what changed.")
class EncounterVersion:
    """Resolved by attribute from a `resolvers.encounters.history.Version`."""

    version: int
    kind: EncounterEventKind
    changed_at: datetime
    changed_by: str = strawberry.field(description="Who is answerable: the person, or the client where there is none.")
    reason: str | None = strawberry.field(description="Why, in the words of whoever did it.")

    @strawberry.field(description="What changed since the version before; nothing in the first.")
    def changes(self, root: strawberry.Parent[versions.Version]) -> list[EncounterChange]:
        return [EncounterChange(**_shown(change)) for change in root.changes]


def _shown(change: versions.Change) -> dict[str, Any]:
    # GraphQL enum values are upper-case; the database stores lower-case values.
    values = {"before": change.before, "after": change.after}
    if change.member in ENUM_MEMBERS:
        values = {side: value.upper() for side, value in values.items()}
    return {"member": to_camel_case(change.member), **values}


@strawberry.type(description="One meeting of a patient with the clinic.")
class Encounter:
    """Resolved by attribute from a `models.Encounter`."""

    id: strawberry.ID
    patient_id: strawberry.ID
    provider_id: UUID | None = strawberry.field(description="Who met the patient, in the provider directory.")
    brand_id: str
    encounter_type: EncounterType
    status: EncounterStatus
    scheduled_at: datetime | None = strawberry.field(description="When it is due.")
    started_at: datetime | None = strawberry.field(description="When it was started.")
    ended_at: datetime | None = strawberry.field(description="When it was completed, or cancelled after its start.")
    chief_complaint: str | None = strawberry.field(description="Why the patient came, in the patient's words.")
    notes: str | None = strawberry.field(description="What the clinician wrote.")
    metadata: JSON = strawberry.field(description="Anything else the recording system kept with it.")
    created_at: datetime = strawberry.field(description="When the gateway recorded it.")
    updated_at: datetime = strawberry.field(description="When the gateway last changed it.")
    version: int = strawberry.field(description="Counts its changes, from 1.")

    @strawberry.field(description="What can be done with it now.")
    def allowed_actions(self, root: strawberry.Parent[models.Encounter]) -> list[EncounterAction]:
        return allowed_actions(root.status)

    @strawberry.field(
        description=f"Its versions, the first one first. Nothing is ever taken out. At most {MOST_VERSIONS} are given; "
        "for those that follow, ask `after` the last one."
    )
    async def history(
        self,
        root: strawberry.Parent[models.Encounter],
        info: Info,
        first: Annotated[
            int | None, strawberry.argument(description=f"The first so many: at most {MOST_VERSIONS}, as without it.")
        ] = UNSET,
        after: Annotated[
            int | None, strawberry.argument(description="Only those after the version with this number.")
        ] = UNSET,
    ) -> list[EncounterVersion]:
        key = HistoryKey(
            root.patient_id,
            root.id,
            _whole_number("first", first, MOST_VERSIONS, most=MOST_VERSIONS),
            _whole_number("after", after, 0, most=MOST_INT),
        )
        return await info.context.loaders.histories.load(key)  # type: ignore[return-value]

    @strawberry.field(description="Whose encounter it is.")
    def patient(self, root: strawberry.Parent[models.Encounter], info: Info) -> "Patient":
        return patient_of(info.context.context, root)  # type: ignore[return-value]


MOST_INT = 2**31 - 1


def _whole_number(argument: str, value: int | None, default: int, *, most: int) -> int:
    """Return an argument, or the default if it was not sent or null. Raise `InvalidInput` if it is out of range."""
    if value is None or value is UNSET:
        return default
    if not 0 <= value <= most:
        told = f"must be from 0 to {most}"
        came = Shape("number")
        raise InvalidInput([Violation(f"/{argument}", "page_size", told, minimum=0, maximum=most, received=came)])
    return value


@strawberry.type(description="Where a page lies in its list.")
class PageInfo:
    has_next_page: bool = strawberry.field(description="Whether older encounters follow.")
    has_previous_page: bool = strawberry.field(description="Whether newer encounters precede.")
    start_cursor: str | None
    end_cursor: str | None


@strawberry.type(description="An encounter and its place in the list.")
class EncounterEdge:
    cursor: str = strawberry.field(description="Opaque; good for this very list: patient, filter and brand.")
    node: Encounter


@strawberry.type(description="A page of a patient's encounters, newest first.")
class EncounterConnection:
    """Reads the page when a field of it is asked for, and counts only when asked to count."""

    key: strawberry.Private[PageKey]
    in_list: strawberry.Private[str]

    @strawberry.field(description="The encounters with their cursors.")
    async def edges(self, info: Info) -> list[EncounterEdge]:
        return [
            EncounterEdge(cursor=self._cursor(each), node=each)  # type: ignore[arg-type]
            for each in (await self._page(info)).items
        ]

    @strawberry.field(description="The encounters alone.")
    async def nodes(self, info: Info) -> list[Encounter]:
        return (await self._page(info)).items  # type: ignore[return-value]

    @strawberry.field(description="Where this page lies in the list.")
    async def page_info(self, info: Info) -> PageInfo:
        page = await self._page(info)
        return PageInfo(
            has_next_page=page.has_next,
            has_previous_page=page.has_previous,
            start_cursor=self._cursor(page.items[0]) if page.items else None,
            end_cursor=self._cursor(page.items[-1]) if page.items else None,
        )

    @strawberry.field(
        description="How many encounters the filter lets through, on all pages. Counted only when asked for."
    )
    async def total_count(self, info: Info) -> int:
        return await info.context.loaders.counts.load(CountKey(self.key.patient_id, self.key.filters))

    @strawberry.field(
        description="The place in the feed to follow this page from. Whatever happens to encounters that it does not "
        "show yet, however late its commit, comes from `encounterEvents(after:)` with this cursor; an event of what it "
        "does show may come, too. `before` is for paging: it passes by what is committed late. To learn of what is "
        "new, read a page once and follow the feed."
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


@strawberry.input(
    name="EncounterFilter", description="Narrows a list: an encounter must pass every part that is given."
)
class EncounterFilterInput:
    encounter_type: list[EncounterType] | None = strawberry.field(default=UNSET, description="Any of these.")
    status: list[EncounterStatus] | None = strawberry.field(default=UNSET, description="Any of these.")
    provider_id: UUID | None = UNSET
    scheduled_from: datetime | None = strawberry.field(default=UNSET, description="Inclusive.")
    scheduled_until: datetime | None = strawberry.field(default=UNSET, description="Exclusive.")


@strawberry.type(description="A patient, as far as this gateway knows one: that there is one.")
class Patient:
    """Resolved by attribute from a `models.Patient`, or from what an encounter says of one."""

    id: strawberry.ID
    brand_id: str

    @strawberry.field(
        description="The patient's encounters, newest first. A page holds 20 unless asked otherwise, and at most 100."
    )
    async def encounters(  # noqa: PLR0917 - the argument names are Relay's
        self,
        root: strawberry.Parent[SeenPatient],
        info: Info,
        first: Annotated[int | None, strawberry.argument(description="The newest so many.")] = UNSET,
        after: Annotated[
            str | None, strawberry.argument(description="Only those after this cursor: older ones.")
        ] = UNSET,
        last: Annotated[int | None, strawberry.argument(description="The oldest so many.")] = UNSET,
        before: Annotated[
            str | None,
            strawberry.argument(
                description="Only those before this cursor: newer ones. For paging; to learn of what is new, follow "
                "the feed from `feedCursor`."
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
    pending = [node.selection_set for node in raw.field_nodes]
    # Each fragment is visited once; otherwise nested spreads take exponential time.
    seen: set[str] = set()
    while pending:
        selections = pending.pop()
        for selection in selections.selections if selections else ():
            match selection:
                case FieldNode() if selection.name.value == name:
                    return True
                case InlineFragmentNode():
                    pending.append(selection.selection_set)
                case FragmentSpreadNode() if selection.name.value not in seen:
                    seen.add(selection.name.value)
                    pending.append(raw.fragments[selection.name.value].selection_set)
    return False


def require_not_null(name: str, argument: object | None) -> None:
    """Raise `InvalidInput` if a filter argument was sent as null, because null would match everything."""
    if argument is None:
        told, came = "must not be null; leave it out instead", shape_of(None)
        raise InvalidInput([Violation(f"/{name}", "null", told, received=came)])


def none_if_left_out(argument: T | None) -> T | None:
    """Return an optional argument, or None if it was not sent."""
    return None if argument is UNSET else argument
