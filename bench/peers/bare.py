"""The least that the gateway's own libraries can do: uvicorn and asyncpg, and nothing else that makes a service.

No framework, no GraphQL but the JSON that it travels in, no sign-in, no rules, no refusals, no log. What comes at the
same time shares a statement, as with the gateway, and PostgreSQL writes the JSON. Nothing on these can take much less.
"""

import asyncio
import os
from collections.abc import Callable, Iterable
from typing import Any
from uuid import uuid4

import asyncpg
import orjson
import uvloop
from listening import listening

MEMBERS = (
    "id", "patientId", "providerId", "brandId", "encounterType", "status", "scheduledAt", "startedAt", "endedAt",
    "chiefComplaint", "notes", "metadata", "createdAt", "updatedAt",
)  # fmt: skip


def snake_case(name: str) -> str:
    """Return the column of a member."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


COLUMNS = {name: snake_case(name) for name in MEMBERS}


def written(names: Iterable[str]) -> str:
    """Return the SQL of an encounter's JSON, with the names of members or of columns."""
    columns = ", ".join(f'e.{COLUMNS.get(name, name)} AS "{name}"' for name in names)
    return f"(SELECT to_json(of)::text FROM (SELECT {columns}) AS of)"  # noqa: S608


FIND = f"SELECT e.id::text, {written(MEMBERS)} FROM patient_graph.encounters e WHERE e.id = ANY ($1::uuid[])"  # noqa: S608
SENT = "id, patient_id, brand_id, encounter_type, provider_id, scheduled_at, chief_complaint, notes, metadata"
RECORD = f"""INSERT INTO patient_graph.encounters AS e ({SENT})
    SELECT {SENT} FROM json_to_recordset($1::json) AS sent (
      id uuid, patient_id text, brand_id text, encounter_type text, provider_id uuid, scheduled_at timestamptz,
      chief_complaint text, notes text, metadata jsonb
    ) RETURNING e.id::text, """  # noqa: S608


class MicroBatcher:
    """Calls that arrive during a statement share the next one, on a separate connection."""

    def __init__(self, connection: asyncpg.Connection, statement: str, argument: Callable[[list[Any]], object]) -> None:
        self._connection, self._statement, self._argument = connection, statement, argument
        self._waiting: list[tuple[str, Any, asyncio.Future[str]]] = []
        self._sending: asyncio.Task[None] | None = None

    async def do(self, id_: str, item: object) -> bytes:
        """Return the JSON of the encounter with this id."""
        outcome = asyncio.get_running_loop().create_future()
        self._waiting.append((id_, item, outcome))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())
        return (await outcome).encode()

    async def _send(self) -> None:
        while self._waiting:
            together, self._waiting = self._waiting, []
            argument = self._argument([item for _, item, _ in together])
            found = dict(await self._connection.fetch(self._statement, argument))
            for id_, _, outcome in together:
                outcome.set_result(found.get(id_, "null"))
        self._sending = None


class Bare:
    """The application."""

    def __init__(self, find: asyncpg.Connection, graphql: asyncpg.Connection, rest: asyncpg.Connection) -> None:
        self._find = MicroBatcher(find, FIND, list)
        self._over_graphql = MicroBatcher(graphql, RECORD + written(["id", "status", "createdAt"]), text)
        self._over_rest = MicroBatcher(rest, RECORD + written(COLUMNS.values()), text)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one of three questions."""
        sent = orjson.loads((await receive())["body"])
        status = 200
        if scope["path"] != "/graphql":
            row = {**sent, "id": str(uuid4()), "patient_id": scope["path"].split("/")[3]}
            status, body = 201, await self._over_rest.do(row["id"], row)
        elif "input" in (given := sent["variables"]):
            row = {COLUMNS[name]: value for name, value in given["input"].items()}
            row |= {"id": str(uuid4()), "patient_id": given["patientId"]}
            body = b'{"data":{"recordEncounter":' + await self._over_graphql.do(row["id"], row) + b"}}"
        else:
            body = b'{"data":{"encounter":' + await self._find.do(given["id"], given["id"]) + b"}}"
        fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": body})


def text(rows: list[Any]) -> str:
    """Write rows as JSON."""
    return orjson.dumps(rows).decode()


async def main() -> None:
    """Serve."""
    await listening(Bare(*[await asyncpg.connect(os.environ["DATABASE_URL"]) for _ in range(3)]))


if __name__ == "__main__":
    uvloop.run(main())
