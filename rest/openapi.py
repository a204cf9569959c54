"""The OpenAPI description of the REST door, built from the models and tables that serve it."""

import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any, get_args

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import WithDefaultSchema
from starlette.requests import Request
from starlette.responses import Response

from models import MEMBERS, EncounterStatus, EncounterType, Kind, Member
from resolvers.access import DEFAULT_SCOPES, Permission, Scopes, describe_scopes
from resolvers.commands import RecordEncounter
from resolvers.encounters.published import PUBLISHED
from resolvers.paging import PageLimits
from resolvers.request_state import state_of
from resolvers.rules import RULES, RuleId
from rest.content_negotiation import JSON, PROBLEM
from rest.encounters import MAX_OFFSET, PATIENT_ENCOUNTER, PATIENT_ENCOUNTERS, VALID
from rest.errors import envelope, problem_of, status_of
from rest.openapi_text import (
    ABOUT_A_BODY,
    ALWAYS,
    EXAMPLE,
    EXAMPLES,
    HEADERS,
    HEADERS_OF,
    PREFERENCES,
    REFUSALS,
    REQUEST_ID,
    SIGNED_IN,
)
from rest.problem_pages import refusals
from rest.responses import json_bytes

Json = dict[str, Any]

METRICS = "/metrics"

OPERATIONS = {
    ("post", PATIENT_ENCOUNTERS): Permission.RECORD_ENCOUNTER,
    ("get", PATIENT_ENCOUNTERS): Permission.READ_ENCOUNTERS,
    ("get", PATIENT_ENCOUNTER): Permission.READ_ENCOUNTERS,
    ("get", METRICS): Permission.READ_METRICS,
}
"""The permission that each operation needs; every operation with a token is listed."""


async def openapi_document(request: Request) -> Response:
    """Return the description with this gateway's scopes. Needs no token: it is the published contract."""
    return json_bytes(_written(frozenset(state_of(request.scope)["services"].scopes.items())), 200)


@lru_cache(maxsize=1)
def _written(scopes: frozenset[tuple[Permission, tuple[str, ...]]]) -> bytes:
    return json.dumps(openapi(dict(scopes)), ensure_ascii=False).encode()


def openapi_json() -> str:
    """Return the description as JSON text, as stored in `rest/openapi.json`."""
    return json.dumps(openapi(), indent=2, ensure_ascii=False)


def openapi(scopes: Scopes = DEFAULT_SCOPES) -> Json:
    """Return the description of every path, status and member of the REST door (OpenAPI 3.1)."""
    described = _described()
    for (method, path), operation in OPERATIONS.items():
        entry = described["paths"][path][method]
        entry["description"] = f"{entry['description']}\n\n{describe_scopes(scopes[operation])}"
        entry["security"] = [{"bearer": [scope]} for scope in scopes[operation]]
    return described


def _described() -> Json:
    common = [_patient_id(), _brand_header(), _request_id_header()]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Encounter gateway",
            "version": "1",
            "description": "Records patient encounters once and durably, and serves them to authorized callers.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "The gateway that served this description."}],
        "tags": [
            {"name": "encounters", "description": "Record and read encounters."},
            {"name": "explanations", "description": "Explanations of error codes and rules. No token is needed."},
            {"name": "health", "description": "Health checks and metrics. The health checks need no token."},
        ],
        "paths": {
            PATIENT_ENCOUNTERS: {"parameters": common, "post": _record(), "get": _list()},
            PATIENT_ENCOUNTER: {"parameters": [_patient_id(), _encounter_id(), *common[1:]], "get": _show()},
            "/problems/{code}": {
                "get": _page("explainProblem", "Explain an error code", "code", sorted({k.code for k in refusals()}))
            },
            "/rules/{rule}": {"get": _page("explainRule", "Explain a rule", "rule", get_args(RuleId))},
            "/healthz": {"get": _health("healthz", "Return whether the process runs", {200: "The process runs."})},
            "/readyz": {
                "get": _health(
                    "readyz",
                    "Return whether the process can serve requests",
                    {200: "The process can serve requests.", 503: "The process cannot serve requests at present."},
                )
            },
            METRICS: {"parameters": [_request_id_header()], "get": _metrics()},
        },
        "components": {
            "schemas": {
                "EncounterType": _enum(EncounterType),
                "EncounterStatus": _enum(EncounterStatus),
                "RecordEncounter": _command(),
                "Encounter": _encounter(),
                "Encounters": _encounters(),
                "Valid": _valid(),
                "Violation": _violation(),
                "Error": _error(),
                "Problem": _problem(),
            },
            "responses": {str(status): _refusal(status) for status in REFUSALS},
            "headers": {
                name: {"description": text, "schema": {"type": "string"}, "example": example}
                for name, (text, example) in HEADERS.items()
            },
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An opaque token or a JWT access token (RFC 9068) of the identity provider that the "
                    "gateway is configured for. Each operation names its scopes, of which any one is sufficient. "
                    "`manage:<resource>` and `admin:*` include them.",
                }
            },
        },
        "security": [{"bearer": []}],
    }


def _record() -> Json:
    return {
        "operationId": "recordEncounter",
        "tags": ["encounters"],
        "summary": "Record an encounter",
        "description": "The answer is sent after the encounter is committed to disk. Unknown members are ignored and "
        "listed in `X-Ignored`, or refused under `Prefer: handling=strict`. A repeated request with the same "
        "`Idempotency-Key` gets the first answer, byte for byte, and records nothing.",
        "parameters": [
            _header(
                "Idempotency-Key",
                "A unique identifier of this request, such as `visit-4711`, so that it can be repeated safely. "
                "It is stored for at least 24 hours.",
                # A key, bare or in quotation marks.
                pattern=r'^([!#-~][!-~]{0,127}|"[!#-\[\]-~]{1,128}")$',
            ),
            _prefer(),
            {
                "name": "validate_only",
                "in": "query",
                "description": "With `true`, only validate the request (dry run): 200 if it would be recorded, else "
                "the same refusal, or the first answer under the same key. Nothing is written, and the key stays free.",
                "schema": {"type": "boolean", "default": False},
                "example": False,
            },
        ],
        "requestBody": {
            "required": True,
            "description": "The encounter to record.",
            "content": {
                JSON: {
                    "schema": _referring("RecordEncounter"),
                    "examples": {
                        "least": {
                            "summary": "The required members",
                            "value": {"brand_id": "loop", "encounter_type": "telehealth"},
                        },
                        "everything": {
                            "summary": "All members",
                            "value": {name: EXAMPLE[name] for name in RecordEncounter.model_fields},
                        },
                    },
                }
            },
        },
        "responses": {
            "200": {
                "description": "With `validate_only=true`: the encounter would be recorded",
                "headers": _headers(*PREFERENCES, *SIGNED_IN),
                "content": _json(_referring("Valid"), VALID),
            },
            "201": {
                "description": "Encounter recorded",
                "headers": _headers("Location", "ETag", "Idempotent-Replayed", *PREFERENCES, *SIGNED_IN),
                "content": _json(_referring("Encounter"), EXAMPLE),
                "links": {
                    "encounter": {
                        "operationId": "getEncounter",
                        "description": "The current state of the recorded encounter.",
                        "parameters": {
                            "patient_id": "$response.body#/patient_id",
                            "encounter_id": "$response.body#/id",
                        },
                    },
                    "encounters": {
                        "operationId": "listEncounters",
                        "description": "All of the patient's encounters.",
                        "parameters": {"patient_id": "$response.body#/patient_id"},
                    },
                },
            },
            **_refusals(REFUSALS),
        },
    }


def _list() -> Json:
    limits = PageLimits()
    return {
        "operationId": "listEncounters",
        "tags": ["encounters"],
        "summary": "List a patient's encounters, newest first",
        "description": "For a long list, use the cursors of GraphQL: the cost of an offset grows with its size.",
        "parameters": [
            _query("limit", "Maximum number of encounters.", default=limits.default, minimum=1, maximum=limits.maximum),
            _query("offset", "Number of encounters to skip.", default=0, minimum=0, maximum=MAX_OFFSET),
            _if_none_match(),
            _prefer(),
        ],
        "responses": {
            "200": {
                "description": "The encounters, and their total number",
                "headers": _headers("ETag", *PREFERENCES, *SIGNED_IN),
                "content": _json(
                    _referring("Encounters"),
                    {"patient_id": "demo-patient", "encounters": [EXAMPLE], "total": 1},
                ),
            },
            "304": _not_modified(),
            **_refusals(REFUSALS.keys() - ABOUT_A_BODY),
        },
    }


def _show() -> Json:
    return {
        "operationId": "getEncounter",
        "tags": ["encounters"],
        "summary": "Read an encounter",
        "description": "Returns the current state. An encounter of another patient, or of another brand, is 404.",
        "parameters": [_if_none_match(), _prefer()],
        "responses": {
            "200": {
                "description": "The encounter",
                "headers": _headers("ETag", *PREFERENCES, *SIGNED_IN),
                "content": _json(_referring("Encounter"), EXAMPLE),
            },
            "304": _not_modified(),
            **_refusals(REFUSALS.keys() - ABOUT_A_BODY),
        },
    }


def _metrics() -> Json:
    return {
        "operationId": "metrics",
        "tags": ["health"],
        "summary": "Return the metrics in the text format of Prometheus",
        "description": "For monitoring; the client's token need not name a brand.",
        "responses": {
            "200": {
                "description": "The metrics",
                "headers": _headers(*SIGNED_IN),
                "content": {"text/plain": {"schema": {"type": "string"}}},
            },
            **_refusals({401, 403, 405, 429, 500, 503}),
        },
    }


def _not_modified() -> Json:
    return {
        "description": "The client's copy, by its `If-None-Match`, is current",
        "headers": _headers("ETag", *PREFERENCES, *SIGNED_IN),
    }


def _command() -> Json:
    schema: Json = _inlined(RecordEncounter.model_json_schema(schema_generator=_WithoutDefaults))
    schema["properties"]["encounter_type"] = _referring("EncounterType")
    for name, member in schema["properties"].items():
        member.setdefault("description", MEMBERS[name].description)
        member["examples"] = [EXAMPLE[name]]
    return schema


def _encounter() -> Json:
    return {
        "type": "object",
        "description": "One visit of a patient.",
        "required": list(PUBLISHED),
        "properties": {name: _value(MEMBERS[name]) | _described_by(MEMBERS[name]) for name in PUBLISHED},
    }


def _enum(words: type[StrEnum]) -> Json:
    return {"type": "string", "description": words.__doc__, "enum": [word.value for word in words]}


def _referring(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _described_by(member: Member) -> Json:
    return {"description": member.description} | ({} if member.example is None else {"examples": [member.example]})


SCHEMAS: Mapping[Kind, Json] = {
    Kind.STRING: {"type": "string"},
    Kind.TEXT: {"type": "string"},
    Kind.UUID: {"format": "uuid", "type": "string"},
    Kind.INSTANT: {"format": "date-time", "type": "string"},
    Kind.JSON: {"type": "object", "additionalProperties": True},
    Kind.INTEGER: {"type": "integer"},
}
"""The JSON schema of a member of each kind; an enum has a component of its own."""


def _value(member: Member) -> Json:
    """Return the schema of a member's value, nullable in the form of the published page: "null" as one more type."""
    if member.enum:
        return _referring(member.enum.__name__)
    schema = SCHEMAS[member.kind]
    return schema | {"type": [schema["type"], "null"]} if member.optional else schema


def _encounters() -> Json:
    return {
        "type": "object",
        "description": "An offset page of a patient's encounters, newest first.",
        "required": ["patient_id", "encounters", "total"],
        "properties": {
            "patient_id": {"type": "string"} | _described_by(MEMBERS["patient_id"]),
            "encounters": {
                "type": "array",
                "items": _referring("Encounter"),
                "description": "The requested page.",
            },
            "total": {
                "type": "integer",
                "minimum": 0,
                "description": "Total number of encounters.",
                "examples": [1],
            },
        },
    }


def _valid() -> Json:
    return {
        "type": "object",
        "description": "The request would be recorded; nothing was recorded.",
        "required": list(VALID),
        "properties": {
            "recorded": {"type": "string", "enum": ["no"], "description": "Nothing was recorded."},
            "message": {"type": "string", "description": "Text for people."},
            "ignored": {
                "type": "object",
                "description": "Unknown names in the request, which would be ignored; absent if there are none.",
                "required": ["names", "others"],
                "properties": {
                    "names": {
                        "type": "array",
                        "items": {"type": "string"},
                        "description": "Names that are similar to known ones, or known in other requests; at most 20.",
                        "examples": [["note", "status"]],
                    },
                    "others": {"type": "integer", "minimum": 0, "description": "Number of other unknown names."},
                },
            },
        },
    }


def _violation() -> Json:
    lengths = "Characters of a string, items of an array, members of an object."
    return {
        "type": "object",
        "description": "One rule that one member breaks. It never repeats the input.",
        "required": ["pointer", "rule", "message"],
        "properties": {
            "pointer": {
                "type": "string",
                "description": "JSON Pointer (RFC 6901) to the member.",
                "examples": ["/notes"],
            },
            "rule": {
                "type": "string",
                "description": "Stable, for programs. Explained under `/rules/{rule}`.",
                "examples": ["too_long"],
            },
            "message": {"type": "string", "description": "The rule as text, for people."},
            "allowed": {
                "type": "array",
                "items": {"type": "string"},
                "description": "The allowed values, if they can be enumerated.",
            },
            "minimum": {"type": "integer", "description": "The least allowed value, in the unit of the rule."},
            "maximum": {"type": "integer", "description": "The greatest allowed value, in the unit of the rule."},
            "received": {
                "type": "object",
                "description": "Type and length of the received value; absent if the member was not sent.",
                "required": ["type"],
                "properties": {
                    "type": {"enum": ["string", "number", "boolean", "null", "array", "object"], "type": "string"},
                    "length": {"type": "integer", "minimum": 0, "description": lengths},
                },
            },
        },
    }


def _error() -> Json:
    return {
        "type": "object",
        "description": "A refusal, with its code and message.",
        "required": ["error", "message"],
        "properties": {
            "error": {
                "type": "string",
                "description": "Stable, for programs. Explained under `/problems/{code}`.",
                "examples": ["not_found"],
            },
            "message": {"type": "string", "description": "Text for people; it never repeats the input."},
            "recorded": {
                "type": "string",
                "enum": ["no", "unknown"],
                "description": "Whether the encounter may have been recorded despite the error.",
            },
            "request_id": {
                "type": "string",
                "description": "Id of the request in the gateway's log.",
                "examples": [REQUEST_ID],
            },
            "error_description": {"type": "string", "description": "On 401, 403 and 429: a copy of `message`."},
            "retry_after_ms": {
                "type": "integer",
                "description": "On 429: milliseconds to wait before a retry.",
            },
            "violations": {
                "type": "array",
                "items": _referring("Violation"),
                "description": "On 400: every broken rule.",
            },
        },
    }


def _problem() -> Json:
    members = {
        "type": "The page that explains the code.",
        "title": "The summary of the code.",
        "status": "The status of the response.",
        "detail": "A copy of `message`.",
        "instance": "A URN that identifies the request.",
    }
    return {
        "description": "The error for a client that prefers `application/problem+json` (RFC 9457).",
        "allOf": [
            _referring("Error"),
            {
                "type": "object",
                "required": list(members),
                "properties": {
                    name: {"type": "integer" if name == "status" else "string", "description": text}
                    for name, text in members.items()
                },
            },
        ],
    }


def _refusal(status: int) -> Json:
    error = next(each for each in EXAMPLES if status_of(each) == status)
    plain = envelope(error, REQUEST_ID)
    return {
        "description": REFUSALS[status],
        "headers": _headers(
            *HEADERS_OF.get(status, ()), *(PREFERENCES if status == 400 else ()), *(SIGNED_IN if status != 401 else ())
        ),
        "content": {
            JSON: {"schema": _referring("Error"), "example": plain},
            PROBLEM: {
                "schema": _referring("Problem"),
                "example": problem_of(error, REQUEST_ID) | plain,
            },
        },
    }


def _refusals(statuses: Iterable[int]) -> Json:
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(statuses)}


def _page(operation_id: str, summary: str, name: str, known: Iterable[str]) -> Json:
    known = list(known)
    return {
        "operationId": operation_id,
        "tags": ["explanations"],
        "summary": summary,
        "description": "Refusals link to this page in `Link` and `type`.",
        "security": [],
        "parameters": [
            {
                "name": name,
                "in": "path",
                "required": True,
                "description": "The name as it appears in a refusal.",
                "schema": {"type": "string", "enum": known},
            }
        ],
        "responses": {
            "200": {
                "description": "The explanation",
                "headers": _headers(among=("X-Request-Id",)),
                "content": {"text/plain": {"schema": {"type": "string"}, "example": RULES["required"].means}},
            },
            **_refusals([401, 404, 429]),
        },
    }


def _health(operation_id: str, summary: str, descriptions: Mapping[int, str]) -> Json:
    body = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}
    answers = {
        str(status): {
            "description": description,
            "headers": _headers(),
            "content": _json(
                body, {"status": {200: "ok" if operation_id == "healthz" else "ready"}.get(status, "not_ready")}
            ),
        }
        for status, description in descriptions.items()
    }
    return {
        "operationId": operation_id,
        "tags": ["health"],
        "summary": summary,
        "security": [],
        "responses": answers,
    }


def _patient_id() -> Json:
    return {
        "name": "patient_id",
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
        "description": "Opaque id. A patient that does not exist, or that the caller may not see, is 404.",
        "example": "demo-patient",
    }


def _encounter_id() -> Json:
    return {
        "name": "encounter_id",
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
        "description": "The encounter's `id`.",
        "example": EXAMPLE["id"],
    }


def _brand_header() -> Json:
    return _header("X-Brand-Id", "The brand to act for, such as `loop`; for a client whose token names no brand.")


def _request_id_header() -> Json:
    text = "Id of the request, repeated in the answer and the log. A missing or malformed id is replaced by a new one."
    return _header("X-Request-Id", text)


def _if_none_match() -> Json:
    return _header(
        "If-None-Match",
        'Entity tags of the client\'s copies, such as `"1"`. If one is current, the answer is 304.',
    )


def _prefer() -> Json:
    return _header(
        "Prefer",
        "With `handling=strict` (RFC 7240), an unknown member or query parameter is refused with 400.",
    )


def _header(name: str, description: str, **string: str) -> Json:
    """Return an optional header, without an example: documentation pages would prefill it for every reader."""
    return {
        "name": name,
        "in": "header",
        "schema": {"type": "string", **string},
        "description": description,
    }


def _query(name: str, description: str, **whole_number: int) -> Json:
    return {
        "name": name,
        "in": "query",
        "description": description,
        "schema": {"type": "integer", **whole_number},
        "example": whole_number["default"],
    }


def _headers(*names: str, among: tuple[str, ...] = ALWAYS) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in (*among, *names)}


def _json(schema: Json, example: Any) -> Json:
    return {JSON: {"schema": schema, "example": example}}


class _WithoutDefaults(GenerateJsonSchema):
    """Omits the default values: the Python value of an omitted member is not part of the wire format."""

    def default_schema(self, schema: WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def _inlined(schema: Json) -> Json:
    """Inline each definition where it is referenced, and drop the titles that pydantic generates."""
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
