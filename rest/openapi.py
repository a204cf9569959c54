"""The OpenAPI description of the REST door: the authored `openapi_base.json`, completed with what the code defines.

In the base, `{"$insert": name}` stands for a value of that name: in `shared`, which the base itself defines, or in
`_derived`. A member `$headers` or `$responses` stands for references to those components, by a list of their names
and of groups of names in `shared`.
"""

import json
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, get_args

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import WithDefaultSchema
from starlette.requests import Request
from starlette.responses import Response

from models import MEMBERS, EncounterStatus, EncounterType, Kind, Member
from resolvers import errors
from resolvers.access import DEFAULT_SCOPES, Permission, Scopes, describe_scopes
from resolvers.commands import EncounterBody
from resolvers.encounters.published import PUBLISHED
from resolvers.errors import GatewayError, Shape, Violation
from resolvers.paging import PageLimits
from resolvers.request_state import state_of
from resolvers.rules import RULES, RuleId
from rest.content_negotiation import JSON, PROBLEM
from rest.encounters import MAX_OFFSET, PATIENT_ENCOUNTER, PATIENT_ENCOUNTERS, VALID
from rest.errors import envelope, problem_of, status_of
from rest.problem_pages import refusals
from rest.public_url import PUBLIC_URL, PublicUrl, public_path
from rest.responses import json_bytes, service_links

Json = dict[str, Any]

METRICS = "/metrics"

OPERATIONS = {
    ("post", PATIENT_ENCOUNTERS): Permission.RECORD_ENCOUNTER,
    ("get", PATIENT_ENCOUNTERS): Permission.READ_ENCOUNTERS,
    ("get", PATIENT_ENCOUNTER): Permission.READ_ENCOUNTERS,
    ("get", METRICS): Permission.READ_METRICS,
}
"""The permission that each operation needs; every operation with a token is listed."""

ERRORS: tuple[GatewayError, ...] = (
    errors.InvalidInput(
        [
            Violation(
                "/chief_complaint",
                "too_long",
                "must have at most 2000 characters",
                maximum=2000,
                received=Shape("string", 2001),
            ),
            Violation(
                "/scheduled_at", "offset", "must end in an offset such as Z or +01:00", received=Shape("string", 19)
            ),
        ]
    ),
    errors.InvalidToken(),
    errors.InsufficientScope(["write:encounters"]),
    errors.PatientNotFound(),
    errors.MethodNotAllowed(["GET", "HEAD", "OPTIONS", "POST"]),
    errors.NotAcceptable(),
    errors.RequestTimeout(),
    errors.IdempotencyKeyReused(),
    errors.PayloadTooLarge(),
    errors.UnsupportedMediaType(),
    errors.RateLimited(1.5),
    errors.ServerError(),
    errors.OutcomeUnknown(),
)
"""An error of each status, shown as an example answer."""

SCHEMAS: dict[Kind, Json] = {
    Kind.STRING: {"type": "string"},
    Kind.TEXT: {"type": "string"},
    Kind.UUID: {"format": "uuid", "type": "string"},
    Kind.INSTANT: {"format": "date-time", "type": "string"},
    Kind.JSON: {"type": "object", "additionalProperties": True},
    Kind.INTEGER: {"type": "integer"},
}
"""The JSON schema of a member of each kind; an enum has a component of its own."""


async def openapi_document(request: Request) -> Response:
    """Return the description with this gateway's scopes and URL. Needs no token: it is the published contract."""
    scopes = frozenset(state_of(request.scope)["services"].scopes.items())
    return json_bytes(_written(scopes, PUBLIC_URL.get()), 200)


@lru_cache(maxsize=1)
def _written(scopes: frozenset[tuple[Permission, tuple[str, ...]]], url: PublicUrl) -> bytes:
    described = openapi(dict(scopes))
    if url.origin:
        described["servers"][0]["url"] = url.origin + url.path
    return json.dumps(described, ensure_ascii=False).encode()


def openapi_json() -> str:
    """Return the description as JSON text, as stored in `rest/openapi.json`."""
    return json.dumps(openapi(), indent=2, ensure_ascii=False)


def openapi(scopes: Scopes = DEFAULT_SCOPES) -> Json:
    """Return the description of every path, status and member of the REST door (OpenAPI 3.1).

    Raises:
        KeyError: The base names a value that neither `shared` nor the code defines, or lacks an operation.
    """
    base = json.loads(Path(__file__).with_name("openapi_base.json").read_text(encoding="utf-8"))
    shared = base.pop("shared")
    described: Json = _fill(base, shared | _derived(shared["request_id"]))
    for (method, path), permission in OPERATIONS.items():
        entry = described["paths"][path][method]
        entry["description"] = f"{entry['description']}\n\n{describe_scopes(scopes[permission])}"
        entry["security"] = [{"bearer": [scope]} for scope in scopes[permission]]
    return described


def _fill(part: Any, values: Json) -> Any:
    if isinstance(part, list):
        return [_fill(each, values) for each in part]
    if not isinstance(part, dict):
        return part
    if "$insert" in part:
        return _fill(values[part["$insert"]], values)
    filled: Json = {}
    for key, value in part.items():
        if key in {"$headers", "$responses"}:
            names = chain.from_iterable(values.get(name, [name]) for name in value)
            filled |= {name: {"$ref": f"#/components/{key[1:]}/{name}"} for name in names}
        else:
            filled[key] = _fill(value, values)
    return filled


def _derived(request_id: str) -> Json:
    limits = PageLimits()
    encounter = {name: _schema_of(MEMBERS[name]) for name in PUBLISHED}
    example = {name: MEMBERS[name].example for name in PUBLISHED}
    derived = {
        "link": service_links(),
        "limit.default": limits.default,
        "limit.maximum": limits.maximum,
        "offset.maximum": MAX_OFFSET,
        "error.codes": sorted({kind.code for kind in refusals()}),
        "rule.names": list(get_args(RuleId)),
        "encounter.names": list(PUBLISHED),
        "encounter.properties": encounter,
        "encounter.patient_id": encounter["patient_id"],
        "example.encounter": example,
        "example.encounter_id": example["id"],
        "example.location": public_path(f"/v1/patients/demo-patient/encounters/{request_id}"),
        "example.command": {name: example[name] for name in EncounterBody.model_fields},
        "example.valid": VALID,
        "example.rule": RULES["required"].means,
        "schema.RecordEncounter": _schema_of_command(),
    }
    for enum in (EncounterType, EncounterStatus):
        words = [word.value for word in enum]
        derived[f"schema.{enum.__name__}"] = {"type": "string", "description": enum.__doc__, "enum": words}
    for error in ERRORS:
        plain = envelope(error, request_id)
        problem = problem_of(error, request_id) | plain
        derived[f"error.{status_of(error)}"] = {
            JSON: {"schema": {"$ref": "#/components/schemas/Error"}, "example": plain},
            PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": problem},
        }
    return derived


def _schema_of(member: Member) -> Json:
    """Return the schema of a published member; one without a value has "null" as a second type."""
    if member.enum:
        schema: Json = {"$ref": f"#/components/schemas/{member.enum.__name__}"}
    else:
        schema = dict(SCHEMAS[member.kind])
        if member.optional:
            schema["type"] = [schema["type"], "null"]
    schema["description"] = member.description
    return schema if member.example is None else schema | {"examples": [member.example]}


class _WithoutDefaults(GenerateJsonSchema):
    """Omits the default values: the Python value of an omitted member is not part of the wire format."""

    def default_schema(self, schema: WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def _schema_of_command() -> Json:
    """Return the schema by pydantic, without its titles and with enums as references to components."""
    schema: Json = EncounterBody.model_json_schema(
        schema_generator=_WithoutDefaults, ref_template="#/components/schemas/{model}"
    )
    del schema["$defs"], schema["title"]
    for name, member in schema["properties"].items():
        member.pop("title", None)
        member.setdefault("description", MEMBERS[name].description)
        member["examples"] = [MEMBERS[name].example]
    return schema
