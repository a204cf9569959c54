"""The subscriptions of the GraphQL schema."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Self
from uuid import UUID

import strawberry
from strawberry import UNSET

from models import EncounterEventKind, EncounterType
from resolvers.commands import EventFilter
from resolvers.errors import TemporarilyUnavailable
from resolvers.feed import FeedEvent, stream_events
from resolvers.outbox import Reads
from schema.loaders import EncounterKey, HistoryKey
from schema.types import Encounter, Info, filter_of, none_if_left_out, require_not_null

OVER = "The encounter of this event was erased; subscribe again after the last cursor."

EITHER = "An event matches if the encounter had any of these values before or after the change. At most 100."


@strawberry.input(
    name="EventsFilter",
    description="A filter of events: an event must match every given member. An empty list matches no event.",
)
class EventsFilterInput:
    encounter_type: list[EncounterType] | None = strawberry.field(default=UNSET, description=EITHER)
    provider_id: list[UUID] | None = strawberry.field(default=UNSET, description=EITHER)
    patient_id: list[strawberry.ID] | None = strawberry.field(
        default=UNSET, description="An event matches if it concerns any of these patients. At most 100."
    )


@strawberry.type(description="A change to an encounter.")
class EncounterEvent:
    cursor: str = strawberry.field(description="Opaque position in the feed, to resume from. Valid at every gateway.")
    kind: EncounterEventKind
    at: datetime = strawberry.field(description="The time of the change.")
    version: int = strawberry.field(description="The version of the encounter that the change made.")
    patient_id: strawberry.Private[str]
    encounter_id: strawberry.Private[UUID]
    actor_id: strawberry.Private[str | None]
    reads: strawberry.Private[Reads]

    @classmethod
    def of(cls, event: FeedEvent) -> Self:
        """Return the GraphQL object of a feed event."""
        return cls(
            cursor=event.cursor,
            kind=event.kind,
            at=event.at,
            version=event.version,
            patient_id=event.patient_id,
            encounter_id=event.encounter_id,
            actor_id=event.actor_id,
            reads=event.reads,
        )

    @strawberry.field(description="The actor: the person, or the client if there is none.")
    def changed_by(self, info: Info) -> str:
        # Only events of an earlier version of the gateway lack the actor.
        return self.actor_id or self._changed_by_of_version(info)  # type: ignore[return-value]

    async def _changed_by_of_version(self, info: Info) -> str:
        key = HistoryKey(self.patient_id, self.encounter_id, first=1, after=self.version - 1)
        versions = await info.context.loaders.histories.load(key)
        if not versions:
            raise TemporarilyUnavailable(OVER)
        return versions[0].changed_by

    @strawberry.field(description="The current state of the encounter, which may be later than the event.")
    async def encounter(self, info: Info) -> Encounter:
        encounter = await info.context.loaders.encounters.load(EncounterKey(self.encounter_id, self.patient_id))
        if encounter is None:
            # Erased after the event was read. Its events are deleted, so the resumed subscription does not get them.
            raise TemporarilyUnavailable(OVER)
        return encounter  # type: ignore[return-value]


@strawberry.type
class Subscription:
    @strawberry.subscription(
        description="The events of encounters, each once and in order, from now or after a cursor. After a lost "
        "connection, a client resumes after its last cursor, at any gateway, and misses no event."
    )
    async def encounter_events(
        self,
        info: Info,
        patient_id: Annotated[
            strawberry.ID | None,
            strawberry.argument(description="Only events of this patient. Default: all events of the brand."),
        ] = UNSET,
        where: EventsFilterInput | None = UNSET,
        kinds: Annotated[
            list[EncounterEventKind] | None,
            strawberry.argument(description="Only events of these kinds. An empty list matches no event."),
        ] = UNSET,
        after: Annotated[
            str | None,
            strawberry.argument(
                description="Begin after this cursor: first the missed events, then the live ones. "
                "The header `Last-Event-ID` of server-sent events takes precedence. "
                "A cursor is a position in the feed, so it is valid with another filter too."
            ),
        ] = UNSET,
    ) -> AsyncGenerator[EncounterEvent, None]:
        require_not_null("patientId", patient_id)
        require_not_null("kinds", kinds)
        filters = filter_of(EventFilter, where, info)
        if kinds is not UNSET:
            filters = filters.model_copy(update={"kinds": kinds})
        operation = info.context
        # Errors are raised before the stream starts, so that the first response reports them.
        events = await stream_events(
            operation.context,
            none_if_left_out(patient_id),
            operation.last_event_id or none_if_left_out(after),
            filters,
        )
        return _shown(events)


async def _shown(events: AsyncGenerator[FeedEvent, None]) -> AsyncGenerator[EncounterEvent, None]:
    async with aclosing(events):
        async for event in events:
            yield EncounterEvent.of(event)
