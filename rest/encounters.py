"""Encounters over REST: parse the request, call the resolver, build the response."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from models import Encounter
from resolvers import json_text
from resolvers.access import Permission
from resolvers.commands import EncounterBody
from resolvers.encounters.dry_run import dry_run_encounter
from resolvers.encounters.offset_pages import list_encounters_by_offset
from resolvers.encounters.published import published
from resolvers.encounters.read import visible_encounter
from resolvers.encounters.record import Recorder, record_encounter
from resolvers.errors import InvalidInput, MalformedBody, UnsupportedMediaType, Violation
from resolvers.request_state import state_of
from resolvers.spelling import Ignored
from rest.authorize import authorize_request
from rest.content_negotiation import require_json_is_accepted
from rest.etags import is_known, not_modified, tag_of_body, tag_of_version
from rest.preferences import ignore, ignored_of, is_strict, query_violations
from rest.public_url import public_path
from rest.responses import json_answer, json_bytes, write_json

PATIENT_ENCOUNTERS = "/v1/patients/{patient_id}/encounters"
PATIENT_ENCOUNTER = f"{PATIENT_ENCOUNTERS}/{{encounter_id}}"

BODY_MEMBERS = frozenset(EncounterBody.model_fields)

MAX_OFFSET = 2**63 - 1

VALID = {"recorded": "no", "message": "The request is valid. Nothing was recorded, because `validate_only` is true."}
"""The answer to a valid request with `validate_only=true`."""


async def post_encounter(request: Request) -> Response:
    """Record an encounter: 201 and the encounter; with `validate_only=true`, only validate it: 200."""
    context = Recorder(await authorize_request(request, Permission.RECORD_ENCOUNTER))
    require_json_is_accepted(request)
    if strict := is_strict(request):
        context = replace(context, strict=True)
    asked = (context, request.path_params["patient_id"], await _members(request), _key(request), EncounterBody)
    recording = await (dry_run_encounter if _validate_only(request, strict) else record_encounter)(*asked)
    if recording is None:
        return json_answer(_valid(ignored_of(request.scope)))
    # A replay is the first answer, with its tag: a conditional request with that tag detects later changes.
    headers = {"Location": path_of(recording.encounter), "ETag": tag_of_version(1)}
    if recording.replayed:
        headers["Idempotent-Replayed"] = "true"
    body = recording.first_answer or published(recording.encounter)
    context.answer.add_regardless(len(body))
    return json_bytes(body, 201, headers)


async def get_encounters(request: Request) -> Response:
    """List a patient's encounters, newest first: 200, the requested slice, and the total number."""
    context = await authorize_request(request, Permission.READ_ENCOUNTERS)
    require_json_is_accepted(request)
    patient_id = request.path_params["patient_id"]
    page_limits = context.services.page_limits
    broken = query_violations(request, {"limit", "offset"}, strict=is_strict(request))
    limit = _whole_number(request, "limit", page_limits.default, broken, least=1, most=page_limits.maximum)
    offset = _whole_number(request, "offset", 0, broken, least=0, most=MAX_OFFSET)
    if broken:
        raise InvalidInput(broken)
    encounters, total = await list_encounters_by_offset(context, patient_id, limit, offset)
    # Built in one step, because it may be long.
    body = b'{"patient_id":%b,"encounters":[%b],"total":%d}' % (write_json(patient_id), encounters, total)
    tag = tag_of_body(body)
    return not_modified(tag) if is_known(request, tag) else json_bytes(body, 200, {"ETag": tag})


async def get_encounter(request: Request) -> Response:
    """Return an encounter: 200, or 304 if the caller has the current version."""
    context = await authorize_request(request, Permission.READ_ENCOUNTERS)
    require_json_is_accepted(request)
    if broken := query_violations(request, (), strict=is_strict(request)):
        raise InvalidInput(broken)
    encounter = await visible_encounter(context, **request.path_params)
    tag = tag_of_version(encounter.version)
    if is_known(request, tag):
        return not_modified(tag)
    body = published(encounter)
    context.answer.add(len(body))
    return json_bytes(body, 200, {"ETag": tag})


def path_of(encounter: Encounter) -> str:
    """Return the URL path of the encounter."""
    path = PATIENT_ENCOUNTER.format(patient_id=quote(encounter.patient_id, safe=""), encounter_id=encounter.id)
    return public_path(path)


def _key(request: Request) -> str | None:
    keys = [value.decode("latin-1") for name, value in request.scope["headers"] if name == b"idempotency-key"]
    if len(keys) > 1:
        received = json_text.shape_of(keys)
        raise InvalidInput([Violation("/idempotency_key", "idempotency_key", "must be sent once", received=received)])
    if not keys:
        return None
    # The IETF draft requires a quoted string; most clients send the bare key. Both denote the same key.
    quoted = re.fullmatch(r'"((?:[^"\\]|\\["\\])*)"', keys[0])
    return re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else keys[0]


def _validate_only(request: Request, strict: bool) -> bool:
    if not request.scope["query_string"]:
        return False
    broken = query_violations(request, {"validate_only"}, strict=strict)
    values = request.query_params.getlist("validate_only")
    if values not in ([], ["false"], ["true"]):
        # If a misspelt `true` counted as false, a dry run would record the encounter.
        allowed, received = ("true", "false"), json_text.shape_of(values if len(values) > 1 else values[0])
        message = "must be true or false, and must be sent once"
        broken.append(Violation("/validate_only", "enum", message, allowed=allowed, received=received))
    if broken:
        raise InvalidInput(broken)
    return values == ["true"]


def _valid(ignored: Ignored) -> Mapping[str, Any]:
    return VALID | {"ignored": ignored._asdict()} if any(ignored) else VALID


async def _members(request: Request) -> dict[str, Any]:
    if not state_of(request.scope)["sends_json"]:
        raise UnsupportedMediaType
    body = json_text.read(await request.body())
    if not isinstance(body, dict):
        raise MalformedBody("object", "The body must be a JSON object.", json_text.shape_of(body))
    if unknown := [name for name in body if name not in BODY_MEMBERS]:
        ignore(request, unknown)
    return body


def _whole_number(request: Request, name: str, default: int, broken: list[Violation], *, least: int, most: int) -> int:
    values = request.query_params.getlist(name)
    if not values:
        return default
    text = values[0]
    if (
        len(values) == 1
        and len(text) <= len(str(most))
        and text.isascii()
        and text.isdecimal()
        and least <= int(text) <= most
    ):
        return int(text)
    message = f"must be a whole number from {least} to {most}"
    received = json_text.shape_of(values if len(values) > 1 else text)
    broken.append(Violation(f"/{name}", "whole_number", message, minimum=least, maximum=most, received=received))
    return default
