"""The tree of refusals is closed, and every one of them has its words at both doors."""

import json
import re

import pytest

import gateway.app  # every module that could add an error
import resolvers.errors
from resolvers.errors import GatewayError
from rest.errors import STATUS, envelope, headers_of, status_of
from schema.errors import Recorded, phrase
from tests.error_kinds import KINDS, made

# Published with the platform's conventions (contract, part 2); the others are ours.
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
def test_every_error_stands_in_the_one_file_and_in_the_tree_drawn_at_its_top(kind: type[GatewayError]) -> None:
    assert gateway.app
    assert kind.__module__ == resolvers.errors.__name__
    assert re.search(rf"── {kind.__name__}\b", resolvers.errors.__doc__ or "")


@every_kind
def test_every_error_has_a_code_of_plain_letters(kind: type[GatewayError]) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", kind.code)


@every_kind
def test_the_docstring_of_every_error_is_its_own_and_its_message(kind: type[GatewayError]) -> None:
    words = vars(kind).get("__doc__") or ""
    error = made(kind)

    assert re.fullmatch(r"[A-Z].*\.", words.splitlines()[0])
    assert error.message
    assert str(error) == error.message
    if "violations" not in vars(error):
        # One may go on to say what would do.
        assert error.message.startswith(words.splitlines()[0].removesuffix("."))


@every_kind
def test_every_error_has_its_status_over_rest(kind: type[GatewayError]) -> None:
    status = status_of(made(kind))

    assert any(ancestor in STATUS for ancestor in kind.__mro__)
    assert 400 <= status < 600
    assert status != 422
    assert status == PUBLISHED.get(kind.code, status)


def test_every_published_code_is_somebodys() -> None:
    codes = {kind.code for kind in KINDS}

    # Limits per client come with the issue that is about them.
    assert PUBLISHED.keys() - codes <= {"rate_limited"}


@every_kind
def test_every_error_has_its_envelope_and_headers_that_may_be_sent(kind: type[GatewayError]) -> None:
    error = made(kind)

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
def test_every_401_and_403_repeats_its_message_as_the_description(kind: type[GatewayError]) -> None:
    error = made(kind)

    body = envelope(error, "an-id")

    told = body.get("error_description")
    assert told == (error.message if status_of(error) in {401, 403, 429} else None)


@every_kind
def test_every_401_has_a_challenge_and_a_description_that_needs_no_escape(kind: type[GatewayError]) -> None:
    error = made(kind)

    challenge = headers_of(error).get("WWW-Authenticate", "")

    if status_of(error) == 401:
        assert re.fullmatch(r'Bearer( error="[a-z_]+", error_description="[^"\\]+")?', challenge)


@every_kind
def test_every_error_says_in_graphql_what_it_says_over_rest(kind: type[GatewayError]) -> None:
    error = made(kind)

    told = json.loads(json.dumps(phrase(error, "an-id")))

    assert told["message"] == error.message
    assert told["extensions"] == told["extensions"] | {
        "code": kind.code,
        "recorded": error.recorded,
        "request_id": "an-id",
    }
    assert Recorded(error.recorded)


def test_an_error_that_may_have_been_recorded_says_so() -> None:
    unknown = {kind.__name__ for kind in KINDS if kind.recorded != "no"}

    assert unknown == {"OutcomeUnknown", "ServerError", "Stopped"}
