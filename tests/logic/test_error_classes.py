"""The classes of errors: their tree, codes, messages, statuses and headers."""

import json
import re

import pytest

import gateway.app  # imports every module that could define an error
import resolvers.errors
from resolvers.errors import GatewayError
from rest.errors import STATUS, envelope, headers_of, status_of
from schema.errors import Recorded, phrase
from tests.error_kinds import KINDS, instance_of

# Published with the platform's conventions (contract, part 2); the other codes are the gateway's own.
PUBLISHED = {
    "validation_error": 400,
    "unauthenticated": 401,
    "invalid_token": 401,
    "insufficient_scope": 403,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "idempotency_key_payload_mismatch": 409,
    "rate_limited": 429,
    "server_error": 500,
    "temporarily_unavailable": 503,
}


every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@every_kind
def test_every_error_class_is_in_the_file_and_in_its_tree(kind: type[GatewayError]) -> None:
    assert gateway.app
    assert kind.__module__ == resolvers.errors.__name__
    assert re.search(rf"── {kind.__name__}\b", resolvers.errors.__doc__ or "")


@every_kind
def test_every_error_code_is_lower_case_words(kind: type[GatewayError]) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", kind.code)


@every_kind
def test_every_error_has_its_own_docstring_which_is_its_message(kind: type[GatewayError]) -> None:
    words = vars(kind).get("__doc__") or ""
    error = instance_of(kind)

    assert re.fullmatch(r"[A-Z].*\.", words.splitlines()[0])
    assert error.message
    assert str(error) == error.message
    if "violations" not in vars(error):
        # A message may continue with a remedy.
        assert error.message.startswith(words.splitlines()[0].removesuffix("."))


@every_kind
def test_every_error_has_a_status_over_rest(kind: type[GatewayError]) -> None:
    status = status_of(instance_of(kind))

    assert any(ancestor in STATUS for ancestor in kind.__mro__)
    assert 400 <= status < 600
    assert status != 422
    assert status == PUBLISHED.get(kind.code, status)


def test_every_published_code_belongs_to_an_error_class() -> None:
    codes = {kind.code for kind in KINDS}

    # Rate limits have tests of their own.
    assert PUBLISHED.keys() - codes <= {"rate_limited"}


@every_kind
def test_every_error_has_its_body_and_valid_headers(kind: type[GatewayError]) -> None:
    error = instance_of(kind)

    body = json.loads(json.dumps(envelope(error, "an-id")))

    assert body == body | {
        "error": kind.code,
        "message": error.message,
        "recorded": error.recorded,
        "request_id": "an-id",
    }
    for name, value in headers_of(error).items():
        assert name.isascii()
        assert re.fullmatch(r"[\x20-\x7e]+", value)


@every_kind
def test_every_401_and_403_repeats_its_message_as_error_description(kind: type[GatewayError]) -> None:
    error = instance_of(kind)

    body = envelope(error, "an-id")

    description = body.get("error_description")
    assert description == (error.message if status_of(error) in {401, 403, 429} else None)


@every_kind
def test_every_401_has_a_challenge_without_characters_to_escape(kind: type[GatewayError]) -> None:
    error = instance_of(kind)

    challenge = headers_of(error).get("WWW-Authenticate", "")

    if status_of(error) == 401:
        assert re.fullmatch(r'Bearer( error="[a-z_]+", error_description="[^"\\]+")?', challenge)


@every_kind
def test_every_error_has_the_same_message_in_graphql_and_rest(kind: type[GatewayError]) -> None:
    error = instance_of(kind)

    graphql_error = json.loads(json.dumps(phrase(error, "an-id")))

    assert graphql_error["message"] == error.message
    assert graphql_error["extensions"] == graphql_error["extensions"] | {
        "code": kind.code,
        "recorded": error.recorded,
        "request_id": "an-id",
    }
    assert Recorded(error.recorded)


def test_an_error_that_may_have_been_recorded_says_so() -> None:
    unknown = {kind.__name__ for kind in KINDS if kind.recorded != "no"}

    assert unknown == {"OutcomeUnknown", "ServerError", "Stopped"}
