"""A schema whose operations a test can block, and tokens that a test can issue and revoke."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import strawberry
from strawberry.schema.config import StrawberryConfig

import gateway.app
from gateway.settings import Settings
from resolvers.access import Caller
from resolvers.errors import InvalidToken, TemporarilyUnavailable
from schema.mutations import Mutation
from schema.queries import Query
from schema.scalars import SCALARS
from schema.types import Info, Patient
from tests.websocket_client import GatewayServer

MARKER = "tuberculosis"


class Control:
    """Blocks operations until `gate` is set, and lists the finished ones."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()
        self.done: list[str] = []


CONTROL = Control()


@strawberry.type(name="Query")
class ControlledQuery(Query):
    @strawberry.field
    async def held(self) -> str:
        CONTROL.entered.set()
        try:
            await CONTROL.gate.wait()
            return "let go"
        finally:
            CONTROL.done.append("held")

    @strawberry.field
    async def broken(self) -> str:
        raise ValueError(MARKER)

    @strawberry.field
    async def long(self, characters: int) -> str:
        return "x" * characters


@strawberry.type(name="Mutation")
class ControlledMutation(Mutation):
    @strawberry.mutation
    async def hold(self) -> str:
        CONTROL.entered.set()
        await CONTROL.gate.wait()
        CONTROL.done.append("hold")
        return "done"


@strawberry.type
class LoadersProbe:
    @strawberry.field
    def loaders(self, info: Info) -> str:
        CONTROL.done.append(info.context.loaders)  # type: ignore[arg-type]
        return "seen"


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def count(self, to: int, characters: int = 0) -> AsyncIterator[str]:
        try:
            for number in range(to):
                yield f"{number}{'x' * characters}"
                await asyncio.sleep(0)
        finally:
            CONTROL.done.append("count")

    @strawberry.subscription
    async def wait(self) -> AsyncIterator[str]:
        try:
            yield "begun"
            await CONTROL.gate.wait()
            yield "let go"
        finally:
            CONTROL.done.append("wait")

    @strawberry.subscription
    async def breaks(self) -> AsyncIterator[str]:
        yield "begun"
        raise ValueError(MARKER)

    @strawberry.subscription
    async def away(self) -> AsyncIterator[str]:
        yield "begun"
        raise TemporarilyUnavailable

    @strawberry.subscription
    async def patients(self) -> AsyncIterator[list[Patient]]:
        yield []

    @strawberry.subscription
    async def loaders(self, info: Info) -> AsyncIterator[LoadersProbe]:
        for _ in range(2):
            yield LoadersProbe()


def controlled_schema(_scopes: object = None, *, federated: bool = False) -> strawberry.Schema:
    """Build the real schema with the controlled fields added."""
    return strawberry.Schema(
        query=ControlledQuery,
        mutation=ControlledMutation,
        subscription=Subscription,
        config=StrawberryConfig(scalar_map=SCALARS),
    )


@dataclass
class Tokens:
    """The caller of each token; a test can revoke a token, or make the verifier unavailable."""

    callers: dict[str, Caller] = field(default_factory=dict)
    away: bool = False
    asked: int = 0

    async def verify(self, token: str) -> Caller:
        self.asked += 1
        if self.away:
            raise TemporarilyUnavailable
        if token == "trouble":
            raise ValueError(MARKER)
        if token not in self.callers:
            raise InvalidToken
        return self.callers[token]

    def give(self, token: str, *scopes: str, brand_id: str | None = "loop", seconds: float | None = None) -> str:
        expires_at = None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
        granted = frozenset(scopes or {"admin:patient_graph"})
        self.callers[token] = Caller(client_id="app", brand_id=brand_id, scopes=granted, expires_at=expires_at)
        return token


TOKENS = Tokens()


def settings(database_url: str, **changed: Any) -> Settings:
    """Return settings without rate limits, and with the origins of two clients."""
    usual: dict[str, Any] = {
        "rate_reads_per_minute": 1_000_000,
        "rate_writes_per_minute": 1_000_000,
        "rate_parsing_ms_per_minute": 0,
        "rate_answer_bytes_per_minute": 0,
        "origins": {"app": ("https://app.example",), "other": ("https://other.example",)},
    }
    return Settings(database_url=database_url, **usual | changed)


@asynccontextmanager
async def controlled_gateway(
    database_url: str, server: Mapping[str, Any] | None = None, **changed: Any
) -> AsyncIterator[GatewayServer]:
    """Serve the controlled schema; `server` are options for uvicorn."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gateway.app, "build_schema", controlled_schema)
        async with GatewayServer.serving(settings(database_url, **changed), TOKENS.verify, **server or {}) as serving:
            yield serving
