"""Encounters over REST: read the request, call the one function, phrase the answer."""

import re
from typing import Any

import orjson
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import Response

from models import Encounter
from resolvers import json_text
from resolvers.access import Operation
from resolvers.encounters import list_encounters_by_offset, record_encounter
from resolvers.errors import InvalidInput, MalformedBody, UnsupportedMediaType, Violation
from rest.answers import json_answer, json_bytes, write_json
from rest.signin import admitted

MEMBERS = (
    "id", "patient_id", "provider_id", "brand_id", "encounter_type", "status", "scheduled_at", "started_at",
    "ended_at", "chief_complaint", "notes", "metadata", "created_at", "updated_at",
)  # fmt: skip
"""The fourteen published members, in the published order. Source: the endpoint's public page."""

COLUMN = {"metadata": "metadata_"}
"""Where the row calls a member otherwise: `metadata` is taken on a table class."""

MAX_OFFSET = 2**63 - 1


class PatientEncounters(HTTPEndpoint):
    """The encounters of one patient."""

    async def post(self, request: Request) -> Response:
        """Record an encounter: 201 and the encounter."""
        context = await admitted(request, Operation.RECORD_ENCOUNTER)
        members = await _members(request)
        recording = await record_encounter(context, request.path_params["patient_id"], members, _key(request))
        headers = {"Idempotent-Replayed": "true"} if recording.replayed else {}
        return json_bytes(recording.answer, 201, headers)

    async def get(self, request: Request) -> Response:
        """List a patient's encounters, newest first: 200, the slice asked for, and how many there are in all."""
        context = await admitted(request, Operation.READ_ENCOUNTERS)
        patient_id = request.path_params["patient_id"]
        page_limits = context.services.page_limits
        limit = _whole_number(request, "limit", page_limits.default, least=1, most=page_limits.maximum)
        offset = _whole_number(request, "offset", 0, least=0, most=MAX_OFFSET)
        encounters, total = await list_encounters_by_offset(context, patient_id, limit, offset)
        return json_answer(
            {"patient_id": patient_id, "encounters": [encounter_json(each) for each in encounters], "total": total}
        )


def encounter_json(encounter: Encounter) -> dict[str, Any]:
    """Give the published object of an encounter."""
    members = {name: getattr(encounter, COLUMN.get(name, name)) for name in MEMBERS}
    # Already JSON, checked when it came in: it goes out as PostgreSQL holds it, every digit of every number.
    members["metadata"] = orjson.Fragment(members["metadata"])
    return members


def published(encounter: Encounter) -> bytes:
    """Write an encounter as the published page shows it."""
    return write_json(encounter_json(encounter))


def _key(request: Request) -> str | None:
    keys = request.headers.getlist("idempotency-key")
    if len(keys) > 1:
        raise InvalidInput([Violation("/idempotency_key", "idempotency_key", "must be sent once")])
    if not keys:
        return None
    # The IETF draft has a quoted string here; most clients send the bare key. Both are the same key.
    quoted = re.fullmatch(r'"((?:[^"\\]|\\["\\])*)"', keys[0])
    return re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else keys[0]


async def _members(request: Request) -> dict[str, Any]:
    media_type, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    charset = parameters.partition("charset=")[2].partition(";")[0].strip('" ')
    if media_type.strip() != "application/json" or charset not in {"", "utf-8"}:
        raise UnsupportedMediaType
    body = json_text.read(await request.body())
    if not isinstance(body, dict):
        raise MalformedBody("object", "The body must be a JSON object.")
    return body


def _whole_number(request: Request, name: str, default: int, *, least: int, most: int) -> int:
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
    raise InvalidInput([Violation(f"/{name}", "whole_number", f"must be a whole number from {least} to {most}")])
