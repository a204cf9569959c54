"""The subscriptions of the GraphQL schema."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Self
from uuid import UUID

import strawberry
from strawberry import UNSET

from models import EncounterEventKind
from resolvers.feed import FeedEvent, stream_events
from resolvers.outbox import Reads
from schema.types import Encounter, Info, require_not_null


@strawberry.type(description="A change to an encounter.")
class EncounterEvent:
    cursor: str = strawberry.field(description="Opaque position in the feed, to resume from. Valid at every gateway.")
    kind: EncounterEventKind
    encounter_id: strawberry.Private[UUID]
    reads: strawberry.Private[Reads]

    @classmethod
    def of(cls, event: FeedEvent) -> Self:
        """Return the GraphQL object of a feed event."""
        return cls(cursor=event.cursor, kind=event.kind, encounter_id=event.encounter_id, reads=event.reads)

    @strawberry.field(description="The current state of the encounter, which may be later than the event.")
    async def encounter(self, info: Info) -> Encounter:
        return await info.context.loaders.encounters.load(self.encounter_id)  # type: ignore[return-value]


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
        after: Annotated[
            str | None,
            strawberry.argument(
                description="Begin after this cursor: first the missed events, then the live ones. "
                "The header `Last-Event-ID` of server-sent events takes precedence."
            ),
        ] = UNSET,
    ) -> AsyncGenerator[EncounterEvent, None]:
        require_not_null("patientId", patient_id)
        # Errors are raised before the stream starts, so that the first response reports them.
        operation = info.context
        events = await stream_events(
            operation.context,
            None if patient_id is UNSET else patient_id,
            operation.last_event_id or (None if after is UNSET else after),
        )
        return _shown(events)


async def _shown(events: AsyncGenerator[FeedEvent, None]) -> AsyncGenerator[EncounterEvent, None]:
    async with aclosing(events):
        async for event in events:
            yield EncounterEvent.of(event)
