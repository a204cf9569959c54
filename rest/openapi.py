"""The description of the REST door, built from the models and tables that serve it."""

import json
from functools import lru_cache
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import WithDefaultSchema
from starlette.requests import Request
from starlette.responses import Response

from models import Encounter
from resolvers.access import DEFAULT_SCOPES, Operation, Scopes, told
from resolvers.commands import RecordEncounter
from resolvers.paging import PageLimits
from rest.answers import json_bytes
from rest.encounters import MAX_OFFSET, MEMBERS

Json = dict[str, Any]

PATH = "/v1/patients/{patient_id}/encounters"

REFUSALS = {
    400: "What was sent breaks a rule; `violations` says which member and which rule.",
    401: "No bearer token came, or one that is worth nothing.",
    403: "The caller may not do this, or not for this brand.",
    404: "Patient not found",
    405: "This method is not served here.",
    408: "The body did not arrive in time.",
    413: "The body is larger than this gateway reads.",
    415: "The body is not JSON in UTF-8.",
    429: "The caller asks too often.",
    500: "Internal error",
    503: "The gateway cannot answer just now; `recorded` says whether the encounter may have been kept.",
}

HEADERS: dict[int, Json] = {
    401: {"WWW-Authenticate": "The challenge, as RFC 6750 has it."},
    403: {"WWW-Authenticate": "The scopes that would do, where a scope is what is missing."},
    405: {"Allow": "The methods that are served here."},
    429: {"Retry-After": "When to come back, in seconds."},
    503: {"Retry-After": "When to come back, in seconds."},
}

RATE_HEADERS = {
    "X-RateLimit-Remaining": "How many reads, or writes, the client has left of those it may make in a minute.",
    "X-RateLimit-Reset": "When there will be more, in seconds since 1970.",
    "RateLimit-Policy": 'What is allowed: `"writes";q=200;w=60` is 200 writes in any 60 seconds.',
    "RateLimit": 'What is left: `"writes";r=199;t=60` is 199 now, and more in 60 seconds.',
}
"""On every answer to a caller who has signed in, unless the kind has no limit."""


OPERATIONS = {("post", PATH): Operation.RECORD_ENCOUNTER, ("get", PATH): Operation.READ_ENCOUNTERS}
"""Which right each operation needs; every one that needs a token is listed."""


async def openapi_document(request: Request) -> Response:
    """Answer with the description, as this gateway's scopes have it. Needs no token: it is the published contract."""
    return json_bytes(_written(frozenset(request.state.services.scopes.items())), 200)


@lru_cache(maxsize=1)
def _written(scopes: frozenset[tuple[Operation, tuple[str, ...]]]) -> bytes:
    return json.dumps(openapi(dict(scopes)), ensure_ascii=False).encode()


def openapi_json() -> str:
    """Give the description as JSON text, as it is kept in `rest/openapi.json`."""
    return json.dumps(openapi(), indent=2, ensure_ascii=False)


def openapi(scopes: Scopes = DEFAULT_SCOPES) -> Json:
    """Describe every path, status and member of the REST door (OpenAPI 3.1)."""
    described = _described()
    for (method, path), operation in OPERATIONS.items():
        entry = described["paths"][path][method]
        entry["description"] = f"{entry['description']}\n\n{told(scopes[operation])}"
        entry["security"] = [{"bearer": [scope]} for scope in scopes[operation]]
    return described


def _described() -> Json:
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Encounter gateway",
            "version": "1",
            "description": "Records and serves patient encounters: once, durably, and only to those who may see them.",
        },
        "paths": {
            PATH: {
                "parameters": [_patient_id(), _brand_header(), _request_id_header()],
                "post": _record(),
                "get": _list(),
            },
            "/healthz": {"get": _health("healthz", "Whether the process runs", {"200": "It runs."})},
            "/readyz": {
                "get": _health("readyz", "Whether it can serve", {"200": "It can.", "503": "It cannot just now."})
            },
        },
        "components": {
            "schemas": {
                "RecordEncounter": _inlined(RecordEncounter.model_json_schema(schema_generator=_WithoutDefaults)),
                "Encounter": _encounter(),
                "Error": _error(),
            },
            "headers": {
                name: {"description": text, "schema": {"type": "string"}} for name, text in RATE_HEADERS.items()
            },
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"bearer": []}],
    }


def _record() -> Json:
    return {
        "operationId": "recordEncounter",
        "summary": "Record that an encounter happened",
        "description": "Answers after the encounter is safe on disk. Members this page does not name are ignored.",
        "requestBody": {
            "required": True,
            "content": _json(
                {"$ref": "#/components/schemas/RecordEncounter"},
                {"brand_id": "loop", "encounter_type": "telehealth", "notes": "Slept well."},
            ),
        },
        "responses": {
            "201": {
                "description": "Encounter recorded",
                "headers": _headers({}, signed_in=True),
                "content": _json({"$ref": "#/components/schemas/Encounter"}),
            },
            **_refusals(REFUSALS),
        },
    }


def _list() -> Json:
    limits = PageLimits()
    return {
        "operationId": "listEncounters",
        "summary": "List a patient's encounters, newest first",
        "description": "A long list is better read by cursors, over GraphQL: an offset counts what it skips.",
        "parameters": [
            _query("limit", "How many, at most.", default=limits.default, minimum=1, maximum=limits.maximum),
            _query("offset", "How many to pass over.", default=0, minimum=0, maximum=MAX_OFFSET),
        ],
        "responses": {
            "200": {
                "description": "The encounters, and how many there are in all",
                "headers": _headers({}, signed_in=True),
                "content": _json(
                    {
                        "type": "object",
                        "required": ["patient_id", "encounters", "total"],
                        "properties": {
                            "patient_id": {"type": "string"},
                            "encounters": {"type": "array", "items": {"$ref": "#/components/schemas/Encounter"}},
                            "total": {"type": "integer", "minimum": 0},
                        },
                    }
                ),
            },
            **_refusals({status: said for status, said in REFUSALS.items() if status not in {408, 413, 415}}),
        },
    }


def _encounter() -> Json:
    columns = _inlined(Encounter.model_json_schema())["properties"]
    members = {name: columns[name] for name in MEMBERS if name != "metadata"}
    members = {
        name: {key: column[key] for key in column if key not in {"title", "default"}}
        for name, column in members.items()
    }
    members["metadata"] = {"type": "object", "additionalProperties": True}
    return {
        "type": "object",
        "required": list(MEMBERS),
        "properties": {name: members[name] for name in MEMBERS},
    }


def _error() -> Json:
    return {
        "type": "object",
        "required": ["error", "message"],
        "properties": {
            "error": {"type": "string", "description": "Stable; a program may switch on it."},
            "message": {"type": "string", "description": "For a person; never repeats what was sent."},
            "recorded": {"enum": ["no", "unknown"], "description": "Whether it may have been kept all the same."},
            "request_id": {"type": "string"},
            "error_description": {"type": "string", "description": "On 401, 403 and 429: `message` again."},
            "retry_after_ms": {"type": "integer", "description": "On 429: when to come back, in milliseconds."},
            "violations": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["pointer", "rule", "message"],
                    "properties": {
                        "pointer": {"type": "string", "description": "JSON Pointer (RFC 6901) to the member."},
                        "rule": {"type": "string", "description": "Stable; a program may switch on it."},
                        "message": {"type": "string"},
                    },
                },
            },
        },
    }


def _refusals(said: dict[int, str]) -> Json:
    return {
        str(status): {
            "description": description,
            "headers": _headers(HEADERS.get(status, {}), signed_in=status != 401),
            "content": _json({"$ref": "#/components/schemas/Error"}),
        }
        for status, description in said.items()
    }


def _health(operation_id: str, summary: str, said: dict[str, str]) -> Json:
    answers = {
        status: {"description": description, "content": _json({"type": "object"})}
        for status, description in said.items()
    }
    return {"operationId": operation_id, "summary": summary, "security": [], "responses": answers}


def _patient_id() -> Json:
    description = "Opaque. One that does not exist, or that the caller may not see, is 404."
    return {
        "name": "patient_id",
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
        "description": description,
    }


def _brand_header() -> Json:
    description = "For a client whose token names no brand: the brand it acts for."
    return {"name": "X-Brand-Id", "in": "header", "schema": {"type": "string"}, "description": description}


def _request_id_header() -> Json:
    description = "Names the request in the answer and in our log; made up where it is missing or ill-formed."
    return {"name": "X-Request-Id", "in": "header", "schema": {"type": "string"}, "description": description}


def _query(name: str, description: str, **whole_number: int) -> Json:
    return {"name": name, "in": "query", "description": description, "schema": {"type": "integer", **whole_number}}


def _headers(described: Json, *, signed_in: bool) -> Json:
    described = {"X-Request-Id": "The request's id.", **described}
    headers = {name: {"description": text, "schema": {"type": "string"}} for name, text in described.items()}
    shared = {name: {"$ref": f"#/components/headers/{name}"} for name in RATE_HEADERS if signed_in}
    return headers | shared


def _json(schema: Json, example: Any = None) -> Json:
    return {"application/json": {"schema": schema} | ({} if example is None else {"example": example})}


class _WithoutDefaults(GenerateJsonSchema):
    """A member that may be left out simply may be: what Python holds in its place is not part of the wire."""

    def default_schema(self, schema: WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def _inlined(schema: Json) -> Json:
    """Put each definition where it is referred to, and drop the titles pydantic makes up."""
    definitions = schema.pop("$defs", {})

    def inline(part: Any) -> Any:
        if isinstance(part, list):
            return [inline(item) for item in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            target = definitions[part["$ref"].rsplit("/", 1)[-1]]
            part = {key: value for key, value in target.items() if key != "description"} | {
                key: value for key, value in part.items() if key != "$ref"
            }
        return {key: inline(value) for key, value in part.items() if key != "title"}

    inlined: Json = inline(schema)
    return inlined
