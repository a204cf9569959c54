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


@strawberry.type(description="Something happened to an encounter.")
class EncounterEvent:
    cursor: str = strawberry.field(description="Opaque; the place in the feed to go on from. Good at every gateway.")
    kind: EncounterEventKind
    encounter_id: strawberry.Private[UUID]
    reads: strawberry.Private[Reads]

    @classmethod
    def of(cls, event: FeedEvent) -> Self:
        """Return the GraphQL object of a feed event."""
        return cls(cursor=event.cursor, kind=event.kind, encounter_id=event.encounter_id, reads=event.reads)

    @strawberry.field(description="The encounter as it stands now, which may be later than the event.")
    async def encounter(self, info: Info) -> Encounter:
        return await info.context.loaders.encounters.load(self.encounter_id)  # type: ignore[return-value]


@strawberry.type
class Subscription:
    @strawberry.subscription(
        description="What happens to encounters, each event once and in order, from now or from where a cursor says. "
        "A client that lost its connection goes on after the last cursor it saw, at any gateway, and misses nothing."
    )
    async def encounter_events(
        self,
        info: Info,
        patient_id: Annotated[
            strawberry.ID | None, strawberry.argument(description="Only this patient's. Otherwise the whole brand's.")
        ] = UNSET,
        after: Annotated[
            str | None,
            strawberry.argument(
                description="Begin after this cursor: first what was missed, then what happens. "
                "The header `Last-Event-ID` of server-sent events counts more."
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
