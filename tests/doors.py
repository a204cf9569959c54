"""The two doors behind one interface, so that a test of a behaviour is written once."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import httpx2
from starlette.types import Receive, Scope, Send

from gateway.app import create_app
from gateway.settings import Settings
from resolvers import json_text
from resolvers.access import Verify

TOKEN = "dev"  # of the brand `loop`


class Service:
    """The service in this process, without sockets."""

    def __init__(self, client: httpx2.AsyncClient, app: Any, services: Any = None) -> None:
        self.client = client
        self.app = app
        self.services = services

    @classmethod
    @asynccontextmanager
    async def running(
        cls, settings: Settings, verify: Verify | None = None, faults: int | None = None
    ) -> AsyncIterator[Self]:
        """Start the service, and stop it at the end."""
        app = create_app(settings, verify, faults=faults)
        async with app.router.lifespan_context(app) as state:

            async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
                await app({**scope, "state": dict(state or {})}, receive, send)

            transport = httpx2.ASGITransport(with_state, raise_app_exceptions=False)
            async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
                yield cls(client, app, state["services"] if state else None)

    async def rest(
        self,
        method: str,
        path: str,
        *,
        token: str | None = TOKEN,
        headers: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> httpx2.Response:
        """Send one request."""
        return await self.client.request(method, path, headers={**_bearer(token), **(headers or {})}, **kwargs)

    async def graphql(
        self,
        query: str,
        variables: Mapping[str, Any] | None = None,
        *,
        token: str | None = TOKEN,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Run one operation, and return the body of the response."""
        body = json_body({"query": query, "variables": dict(variables or {})})
        response = await self.client.post(
            "/graphql",
            content=body,
            headers={"content-type": "application/json", **_bearer(token), **(headers or {})},
        )
        answer: dict[str, Any] = parse_exact(response)
        return answer


@dataclass(frozen=True)
class Outcome:
    """The result of a request, in terms that both doors share.

    `code` is None after a success. `rules` are the broken rules, each with the REST name of its member.
    """

    code: str | None = None
    encounter: dict[str, Any] = field(default_factory=dict)
    recorded: str | None = None
    replayed: bool = False
    rules: frozenset[tuple[str, str]] = frozenset()


class Door(Protocol):
    """One of the public interfaces."""

    def __init__(self, service: Service) -> None: ...

    async def record(
        self,
        patient_id: str,
        members: Mapping[str, Any],
        *,
        token: str | None = TOKEN,
        brand_header: str | None = None,
        key: str | None = None,
        validate_only: bool = False,
    ) -> Outcome:
        """Record an encounter; `members` have REST names."""

    async def listed(self, patient_id: str, *, token: str | None = TOKEN) -> tuple[list[dict[str, Any]], int] | None:
        """Return the first page of a patient's encounters and the total; None for an unknown patient."""


class RestDoor:
    """The REST door."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def record(
        self,
        patient_id: str,
        members: Mapping[str, Any],
        *,
        token: str | None = TOKEN,
        brand_header: str | None = None,
        key: str | None = None,
        validate_only: bool = False,
    ) -> Outcome:
        response = await self.service.rest(
            "POST",
            f"/v1/patients/{patient_id}/encounters{'?validate_only=true' if validate_only else ''}",
            token=token,
            headers={"content-type": "application/json", **_brand(brand_header), **_key(key)},
            content=json_body(dict(members)),
        )
        body = response.json()
        if response.status_code == 200:
            return Outcome(recorded=body["recorded"])
        if response.status_code == 201:
            replayed = response.headers.get("idempotent-replayed") == "true"
            return Outcome(encounter=parse_exact(response), replayed=replayed)
        rules = frozenset((each["pointer"][1:], each["rule"]) for each in body.get("violations", []))
        return Outcome(body["error"], recorded=body["recorded"], rules=rules)

    async def listed(self, patient_id: str, *, token: str | None = TOKEN) -> tuple[list[dict[str, Any]], int] | None:
        response = await self.service.rest("GET", f"/v1/patients/{patient_id}/encounters", token=token)
        if response.status_code == 404:
            return None
        body = parse_exact(response)
        return body["encounters"], body["total"]


ENCOUNTER = """{
  id patientId providerId brandId encounterType status scheduledAt startedAt endedAt
  chiefComplaint notes metadata createdAt updatedAt
}"""

RECORD = f"""mutation ($patientId: ID!, $input: RecordEncounterInput!, $key: String) {{
  recordEncounter(patientId: $patientId, input: $input, idempotencyKey: $key) {{
    ... on EncounterRecorded {{ replayed encounter {ENCOUNTER} }}
    ... on Problem {{ code message recorded }}
    ... on InvalidInput {{ violations {{ path rule message }} }}
  }}
}}"""

VALIDATE = RECORD.replace("$key: String", "$key: String, $only: Boolean").replace(
    "idempotencyKey: $key)", "idempotencyKey: $key, validateOnly: $only)"
)

LIST = f"""query ($id: ID!) {{ patient(id: $id) {{ encounters {{ totalCount nodes {ENCOUNTER} }} }} }}"""


class GraphQLDoor:
    """The GraphQL door."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def record(
        self,
        patient_id: str,
        members: Mapping[str, Any],
        *,
        token: str | None = TOKEN,
        brand_header: str | None = None,
        key: str | None = None,
        validate_only: bool = False,
    ) -> Outcome:
        variables: dict[str, Any] = {
            "patientId": patient_id,
            "input": {camel(name): value for name, value in members.items()},
        }
        if key is not None:
            variables["key"] = key
        kind = variables["input"].get("encounterType")
        if isinstance(kind, str):
            variables["input"]["encounterType"] = kind.upper()
        if validate_only:
            variables["only"] = True
        body = await self.service.graphql(
            VALIDATE if validate_only else RECORD, variables, token=token, headers=_brand(brand_header)
        )
        if "errors" in body:
            extensions = body["errors"][0]["extensions"]
            rules = frozenset(
                (snake(each["pointer"].removeprefix("/variables/input/")), each["rule"])
                for each in extensions.get("violations", [])
            )
            return Outcome(extensions["code"], recorded=extensions["recorded"], rules=rules)
        result = body["data"]["recordEncounter"]
        if "encounter" in result:
            return Outcome(encounter=rest_names(result["encounter"]), replayed=result["replayed"])
        if "code" not in result:
            return Outcome(recorded=result["recorded"].lower())
        rules = frozenset((snake(each["path"][-1]), each["rule"]) for each in result.get("violations", []))
        # Over REST a valid dry run is a success; over GraphQL it is a problem with the code `valid`.
        code = None if result["code"] == "valid" else result["code"]
        return Outcome(code, recorded=result["recorded"].lower(), rules=rules)

    async def listed(self, patient_id: str, *, token: str | None = TOKEN) -> tuple[list[dict[str, Any]], int] | None:
        body = await self.service.graphql(LIST, {"id": patient_id}, token=token)
        patient = body["data"]["patient"]
        if patient is None:
            return None
        connection = patient["encounters"]
        return [rest_names(node) for node in connection["nodes"]], connection["totalCount"]


def json_body(body: Any) -> str:
    """Serialize a body; escape non-ASCII text, and write decimals with all digits."""
    try:
        return json.dumps(body)
    except TypeError:
        return json_text.write(body)


def parse_exact(response: httpx2.Response) -> Any:
    """Parse a JSON response without rounding its numbers."""
    return json_text.read(response.content)


def rest_names(encounter: Mapping[str, Any]) -> dict[str, Any]:
    """Return a GraphQL encounter with the names and values of REST."""
    shown = {snake(name): value for name, value in encounter.items()}
    return shown | {name: shown[name].lower() for name in ("encounter_type", "status")}


def camel(name: str) -> str:
    """`chief_complaint` → `chiefComplaint`."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def snake(name: str) -> str:
    """`chiefComplaint` → `chief_complaint`."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def _bearer(token: str | None) -> dict[str, str]:
    return {} if token is None else {"authorization": f"Bearer {token}"}


def _key(key: str | None) -> dict[str, str]:
    return {} if key is None else {"idempotency-key": key}


def _brand(brand_id: str | None) -> dict[str, str]:
    return {} if brand_id is None else {"x-brand-id": brand_id}
