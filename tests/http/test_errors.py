"""Errors of REST: their body, status and headers, and that none repeats sent text.

Unreadable bodies and numbers of the query are at the end. `test_raw_connections.py` tests what needs a socket.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

import asyncpg
import httpx2
import pytest

from gateway.settings import Settings
from resolvers.access import Caller
from resolvers.errors import InvalidToken
from tests import citus
from tests.cast import Cast
from tests.conftest import fresh_database
from tests.doors import Service
from tests.logs import captured_logs

ENCOUNTERS = "/v1/patients/nobody/encounters"
VISIT = '{"brand_id": "loop", "encounter_type": "lab"}'
JSON = {"content-type": "application/json"}
MARKER = "tuberculosis"


def refused(answer: httpx2.Response, status: int, code: str, recorded: str = "no") -> dict[str, Any]:
    """Assert that an answer is an error in the common shape, and return its body."""
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["error"], body["recorded"]) == (status, code, recorded)
    assert body["message"]
    assert body["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert "detail" not in body
    return body


async def post(service: Service, path: str = ENCOUNTERS, content: Any = VISIT, **headers: str) -> httpx2.Response:
    """Send a body. Names of headers have underscores."""
    named = JSON | {name.replace("_", "-"): value for name, value in headers.items()}
    return await service.rest("POST", path, headers=named, content=content)


def encounters_of(patient_id: str) -> str:
    return f"/v1/patients/{patient_id}/encounters"


# Authentication


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "dev", "Basic ZGV2OmRldg==", "Token dev"])
async def test_a_missing_token_is_401_and_the_challenge_names_no_error(service: Service, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}

    answer = await service.rest("GET", ENCOUNTERS, token=None, headers=headers)

    body = refused(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert body["error_description"] == body["message"]


@pytest.mark.parametrize("token", ["nope", "dev dev", "DEV", "dev,", '"dev"', "dévé"])
async def test_a_rejected_token_is_401_and_the_challenge_says_invalid_token(service: Service, token: str) -> None:
    answer = await service.rest("GET", ENCOUNTERS, token=None, headers={"authorization": f"Bearer {token}".encode()})  # type: ignore[dict-item]

    body = refused(answer, 401, "invalid_token")
    assert body["error_description"] == body["message"]
    # RFC 6750, section 3: the description contains no quote and no backslash.
    challenge = f'Bearer error="invalid_token", error_description="{body["message"]}"'
    assert answer.headers["www-authenticate"] == challenge
    assert challenge.isascii()
    assert challenge.count('"') == 4


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([("authorization", "Bearer dev"), ("authorization", "Bearer dev-loopbio")], "invalid_token"),
        ([("authorization", "Bearer dev"), ("x-brand-id", "loop"), ("x-brand-id", "loop")], "forbidden"),
    ],
)
@pytest.mark.parametrize("path", [ENCOUNTERS, "/graphql?query={patient(id:%22nobody%22){id}}"])
async def test_a_repeated_header_is_not_read_as_its_first_value(
    service: Service, path: str, lines: list[tuple[str, str]], code: str
) -> None:
    accept = ("accept", "application/graphql-response+json" if "graphql" in path else "application/json")

    answer = await service.client.get(path, headers=[*lines, accept])

    assert f'"{code}"' in answer.text


@pytest.mark.parametrize("scheme", ["bearer", "BEARER"])
async def test_the_scheme_is_case_insensitive(service: Service, scheme: str) -> None:
    answer = await service.rest("GET", ENCOUNTERS, token=None, headers={"authorization": f"{scheme}  dev"})

    refused(answer, 404, "not_found")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", [ENCOUNTERS, ENCOUNTERS + "/", "/nowhere", "/v1/patients//encounters"])
async def test_a_missing_token_is_401_for_every_path_and_method(service: Service, method: str, path: str) -> None:
    answer = await service.rest(method, path, token=None, headers={"content-type": "text/plain"}, content=b"\xff")

    refused(answer, 401, "unauthenticated")


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_health_needs_no_token(service: Service, path: str) -> None:
    answer = await service.rest("GET", path, token=None)

    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"


# Authorization

CALLERS = {
    "reader": Caller("reader", frozenset({"read:encounters"}), brand_id="loop"),
    "writer": Caller("writer", frozenset({"write:encounters"}), brand_id="loop"),
    "manager": Caller("manager", frozenset({"manage:encounters"}), brand_id="loop"),
    "admin": Caller("admin", frozenset({"admin:*"}), brand_id="loop"),
    "nothing": Caller("nothing", frozenset(), brand_id="loop"),
    "machine": Caller("machine", frozenset({"manage:encounters"})),
}


async def verify(token: str) -> Caller:
    if token not in CALLERS:
        raise InvalidToken
    return CALLERS[token]


@pytest.fixture(scope="module")
async def guarded(database_url: str) -> AsyncIterator[Service]:
    """The service, with callers that have different scopes."""
    async with Service.running(Settings(database_url=database_url), verify) as running:
        yield running


@pytest.mark.parametrize(
    ("token", "method", "needed"),
    [
        ("reader", "POST", "write:encounters"),
        ("writer", "GET", "read:encounters"),
        ("nothing", "GET", "read:encounters"),
        ("nothing", "POST", "write:encounters"),
    ],
)
async def test_a_missing_scope_is_403_and_the_challenge_names_sufficient_ones(
    guarded: Service, token: str, method: str, needed: str
) -> None:
    # The request has other errors too; the answer mentions none of them.
    answer = await guarded.rest(method, ENCOUNTERS + "?limit=x", token=token, content=b"{")

    body = refused(answer, 403, "insufficient_scope")
    assert answer.headers["www-authenticate"] == f'Bearer error="insufficient_scope", scope="{needed}"'
    assert body["error_description"] == body["message"]


@pytest.mark.parametrize("token", ["writer", "manager", "admin"])
async def test_a_token_that_may_only_record_is_answered_with_the_new_encounter(
    guarded: Service, cast: Cast, token: str
) -> None:
    patient_id = await cast.patient()

    answer = await guarded.rest("POST", encounters_of(patient_id), token=token, headers=JSON, content=VISIT)

    assert (answer.status_code, answer.json()["patient_id"]) == (201, patient_id)


@pytest.mark.parametrize("token", ["manager", "admin"])
async def test_managing_includes_reading(guarded: Service, token: str) -> None:
    refused(await guarded.rest("GET", ENCOUNTERS, token=token), 404, "not_found")


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_brand_that_contradicts_the_token_is_403_without_a_challenge(service: Service, method: str) -> None:
    answer = await service.rest(method, ENCOUNTERS, headers={"x-brand-id": "loopbio"}, content=b"{")

    body = refused(answer, 403, "forbidden")
    assert "www-authenticate" not in answer.headers
    assert body["error_description"] == body["message"]


async def test_a_machine_without_a_brand_acts_for_the_one_it_states(guarded: Service, cast: Cast) -> None:
    path = encounters_of(await cast.patient("loopbio"))

    stated = await guarded.rest("GET", path, token="machine", headers={"x-brand-id": "loopbio"})
    unstated = await guarded.rest("GET", path, token="machine")
    contradicting = await guarded.rest("GET", path, token="reader", headers={"x-brand-id": "loopbio"})
    over_graphql = await guarded.graphql('{ patient(id: "nobody") { id } }', token="machine")

    assert stated.status_code == 200
    message = refused(unstated, 403, "forbidden")["message"]
    assert message.startswith("The token names no brand")
    assert message != refused(contradicting, 403, "forbidden")["message"]
    assert over_graphql["errors"][0]["message"] == message


async def test_a_machine_without_a_brand_acts_for_the_one_in_the_body(guarded: Service, cast: Cast) -> None:
    path, body = encounters_of(await cast.patient("loopbio")), VISIT.replace("loop", "loopbio")

    agreeing = await guarded.rest("POST", path, token="machine", headers=JSON, content=body)
    contradicting = await guarded.rest(
        "POST", path, token="machine", headers=JSON | {"x-brand-id": "loop"}, content=body
    )

    assert agreeing.status_code == 201
    refused(contradicting, 403, "forbidden")


# Unknown paths, methods and media types: 404, 405, 415


@pytest.mark.parametrize(
    "path",
    ["/nowhere", "/v1", "/v1/patients", "/v1/patients/nobody", "/v1/patients//encounters", ENCOUNTERS + "/",
     "/V1/patients/nobody/encounters", "/graphql/", "/healthz/", "/docs/", "/openapi", "/favicon.ico"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_an_unknown_path_is_404_and_not_a_redirect(service: Service, method: str, path: str) -> None:
    refused(await service.rest(method, path), 404, "not_found")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (ENCOUNTERS, "GET, HEAD, OPTIONS, POST"),
        (ENCOUNTERS + "/an-id", "GET, HEAD, OPTIONS"),
        ("/problems/not_found", "GET, HEAD, OPTIONS"),
        ("/healthz", "GET, HEAD, OPTIONS"),
        ("/readyz", "GET, HEAD, OPTIONS"),
    ],
)
@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "TRACE", "QUERY"])
async def test_an_unsupported_method_is_405_and_allow_names_the_others(
    service: Service, method: str, path: str, allowed: str
) -> None:
    answer = await service.rest(method, path, content=b"{")

    assert allowed in refused(answer, 405, "method_not_allowed")["message"]
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/v1/patients/tuberculosis/encounters", "/v1/patients/{patient_id}/encounters"),
        ("/v1/patients/tuberculosis/encounters/x", "/v1/patients/{patient_id}/encounters/{encounter_id}"),
        ("/graphql", "/graphql"),
        ("/healthz", "/healthz"),
        ("/metrics", "/metrics"),
        ("/rules/null", "/rules/{rule}"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
async def test_a_trailing_slash_is_404_and_names_the_right_path(
    service: Service, method: str, path: str, template: str
) -> None:
    message = refused(await service.rest(method, path + "/"), 404, "not_found")["message"]

    assert message.endswith(f"the path without the final slash is {template}.")
    assert "tuberculosis" not in message
    assert (
        refused(await service.rest(method, path + "//"), 404, "not_found")["message"]
        == "There is no resource at this path."
    )
    refused(await service.rest(method, path + "/", token=None), 401, "unauthenticated")


async def test_the_graphql_path_names_its_methods_too(service: Service) -> None:
    answer = await service.rest("DELETE", "/graphql")

    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")
    assert "GET, POST" in answer.json()["errors"][0]["message"]


@pytest.mark.parametrize("path", [ENCOUNTERS, "/graphql"])
@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b'{"notes": tuberculosis}', "line 1, column 11"),
        (b'{\n  "a": "tuberculosis",\n}', "line 3, column 1"),
        (b'{"a": 1, "a": 2}', "line 1, column 10"),
        (b'{"a": NaN}', "line 1, column 7"),
        (b'{"a": "\xff"}', "line 1, column 8"),
    ],
)
async def test_invalid_json_is_reported_by_line_and_column(
    service: Service, path: str, content: bytes, place: str
) -> None:
    answer = await post(service, path, content)

    assert answer.status_code == 400
    assert f"({place})" in answer.text
    assert MARKER not in answer.text


async def test_an_invalid_parameter_of_a_graphql_query_is_named(service: Service) -> None:
    answer = await service.rest("GET", "/graphql?query={__typename}&variables={tuberculosis")

    assert "The parameter variables must be one JSON value (line 1, column 2)." in answer.text
    assert MARKER not in answer.text


@pytest.mark.parametrize(
    "media_type",
    [None, "", "text/plain", "text/json", "application/jsonx", "application/x-www-form-urlencoded",
     "multipart/form-data; boundary=x", "application/json; charset=latin-1", "application/json; charset=utf-16",
     "application/json, text/plain"],
)  # fmt: skip
async def test_another_media_type_is_415_before_any_error_of_the_body(service: Service, media_type: str | None) -> None:
    headers = {} if media_type is None else {"content-type": media_type}

    refused(await service.rest("POST", ENCOUNTERS, headers=headers, content=b"\xff"), 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "media_type",
    ["application/json;charset=UTF-8", 'application/json; charset="utf-8"', "APPLICATION/JSON ; charset=utf-8",
     "application/json; charset=utf-8; profile=x"],
)  # fmt: skip
async def test_json_in_utf_8_is_accepted_in_any_spelling_of_the_media_type(
    service: Service, cast: Cast, media_type: str
) -> None:
    answer = await post(service, encounters_of(await cast.patient()), content_type=media_type)

    assert answer.status_code == 201


# Size and duration of bodies: 413 and 408


async def pieces(count: int, size: int = 65_536) -> AsyncIterator[bytes]:
    """Yield a body of undeclared length."""
    for _ in range(count):
        yield b"x" * size


async def test_a_content_length_over_the_limit_is_413(service: Service) -> None:
    answer = await post(service, content=b"x" * (256 * 1024 + 1))

    refused(answer, 413, "payload_too_large")


async def test_a_streamed_body_over_the_limit_is_413(service: Service) -> None:
    answer = await post(service, content=pieces(5))

    refused(answer, 413, "payload_too_large")


async def test_a_body_of_the_largest_size_is_read(service: Service) -> None:
    answer = await post(service, content=VISIT.ljust(256 * 1024))

    refused(answer, 404, "not_found")


@pytest.fixture
async def impatient(database_url: str) -> AsyncIterator[Service]:
    async with Service.running(Settings(database_url=database_url, body_seconds=0.05)) as running:
        yield running


async def half_a_body() -> AsyncIterator[bytes]:
    yield b'{"brand_id": "loop",'
    await asyncio.Event().wait()


async def test_a_body_that_does_not_arrive_in_time_is_408(impatient: Service) -> None:
    answer = await post(impatient, content=half_a_body())

    refused(answer, 408, "request_timeout")


# Internal errors (500)


@asynccontextmanager
async def broken_database() -> AsyncIterator[None]:
    """Let every statement of the block raise an exception whose text repeats sent values, as drivers do."""

    async def fetch(*_: object, **__: object) -> None:
        raise RuntimeError(MARKER)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.database.database.PoolConnection.fetch", fetch)
        patch.setattr("gateway.database.database.PoolConnection.fetch_one", fetch)
        yield


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_internal_error_is_500_and_its_text_is_in_no_answer_or_log(
    service: Service, cast: Cast, method: str
) -> None:
    path = encounters_of(await cast.patient())

    async with broken_database():
        with captured_logs() as lines:
            answer = await service.rest(method, path, headers=JSON, content=VISIT)

    body = refused(answer, 500, "server_error", recorded="unknown")
    assert MARKER not in answer.text + json.dumps(lines)
    (fault,) = [line for line in lines if line["event"] == "unexpected"]
    assert (fault["error"], fault["request_id"]) == ("RuntimeError", body["request_id"])


async def test_an_internal_error_is_500_in_the_graphql_shape(service: Service, cast: Cast) -> None:
    query = f'{{ patient(id: "{await cast.patient()}") {{ id }} }}'

    async with broken_database():
        with captured_logs() as lines:
            answer = await service.graphql(query)

    (error,) = answer["errors"]
    assert (error["extensions"]["code"], error["extensions"]["recorded"]) == ("server_error", "unknown")
    assert MARKER not in json.dumps([answer, lines])


async def test_an_internal_error_of_the_verifier_is_500_and_not_401(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.auth.development.DEVELOPMENT_BRANDS", None)

    for path in (ENCOUNTERS, "/nowhere"):
        refused(await service.rest("GET", path), 500, "server_error", recorded="unknown")


# Temporarily unavailable (503)


@pytest.fixture
async def small(database_url: str) -> AsyncIterator[Service]:
    """A service with one connection and short timeouts."""
    settings = Settings(
        database_url=database_url,
        database_pool_size=1,
        database_acquire_seconds=0.05,
        database_statement_seconds=0.5,
    )
    async with Service.running(settings) as running:
        yield running


@asynccontextmanager
async def locked_patient(database_url: str, patient_id: str) -> AsyncIterator[asyncpg.Connection]:
    """Lock the patient's row in another transaction for the block: recordings for the patient wait."""
    holder = await asyncpg.connect(database_url)
    try:
        async with holder.transaction():
            await holder.execute("SELECT FROM patient_graph.patients WHERE id = $1 FOR UPDATE", patient_id)
            yield holder
    finally:
        await holder.close()


async def waiting_processes(connection: asyncpg.Connection) -> list[int]:
    """Return the ids of the processes that wait for the lock, once there is one."""
    async with asyncio.timeout(5):
        while True:
            if rows := await connection.fetch(citus.BLOCKED_PROCESSES):
                return [row["pid"] for row in rows]


async def test_a_full_connection_pool_is_503_with_retry_after(small: Service, cast: Cast, database_url: str) -> None:
    patient_id = await cast.patient()

    async with locked_patient(database_url, patient_id) as holder:
        busy = asyncio.create_task(post(small, encounters_of(patient_id)))
        await waiting_processes(holder)
        answers = [await post(small, encounters_of(patient_id)), await small.rest("GET", encounters_of(patient_id))]

    for answer in answers:
        refused(answer, 503, "temporarily_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
    assert (await busy).status_code == 201


async def test_a_statement_timeout_is_503_and_records_nothing(small: Service, cast: Cast, database_url: str) -> None:
    patient_id = await cast.patient()

    async with locked_patient(database_url, patient_id):
        answer = await post(small, encounters_of(patient_id))

    refused(answer, 503, "temporarily_unavailable")
    assert await cast.rows(patient_id) == []
    assert (await post(small, encounters_of(patient_id))).status_code == 201


async def test_a_lost_connection_is_503_with_recorded_unknown_or_no(
    small: Service, cast: Cast, database_url: str
) -> None:
    patient_id = await cast.patient()

    async with locked_patient(database_url, patient_id) as holder:
        lost = asyncio.create_task(post(small, encounters_of(patient_id)))
        (pid,) = await waiting_processes(holder)
        await cast.connection.execute("SELECT pg_terminate_backend($1::int)", pid)
        answer = await lost

    # The server may send a FATAL after the commit. It did not here, but the gateway cannot know. On a cluster, the
    # commit is a statement of its own, which was not sent.
    refused(answer, 503, "temporarily_unavailable", recorded="no" if citus.COORDINATOR_URL else "unknown")
    assert await cast.rows(patient_id) == []
    assert (await post(small, encounters_of(patient_id))).status_code == 201


async def test_a_refused_database_login_is_503_and_not_ready(server_url: str) -> None:
    url = await fresh_database(server_url)
    name = url.split("?")[0].rsplit("/", 1)[1]
    admin = await asyncpg.connect(server_url)

    async with Service.running(Settings(database_url=url)) as service:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        answer, readiness = await post(service), await service.rest("GET", "/readyz", token=None)

    await admin.close()
    refused(answer, 503, "temporarily_unavailable")
    assert (readiness.status_code, readiness.json()["status"]) == (503, "not_ready")
    assert readiness.json()["checks"]["db"]["ok"] is False


# Request ids


@pytest.mark.parametrize("sent", ["abc", "A-1_b.c~d:e", "x" * 128, "3f2504e0-4f89-11d3-9a0c-0305e82c3301"])
async def test_a_valid_request_id_is_echoed_in_header_body_and_log(service: Service, sent: str) -> None:
    with captured_logs() as lines:
        answer = await service.rest("GET", ENCOUNTERS, headers={"x-request-id": sent})

    assert refused(answer, 404, "not_found")["request_id"] == sent
    assert [line["request_id"] for line in lines] == [sent]


@pytest.mark.parametrize("sent", ["", " ", "x" * 129, "a b", 'a"b', "a\tb", "é", "a/b", "<script>", "a\x00", "\x1b[2J"])
async def test_an_invalid_request_id_is_replaced(service: Service, sent: str) -> None:
    raw = {"x-request-id": sent.encode("latin-1")}
    first = await service.rest("GET", ENCOUNTERS, headers=raw)  # type: ignore[arg-type]
    second = await service.rest("GET", ENCOUNTERS, headers=raw)  # type: ignore[arg-type]

    ids = {refused(answer, 404, "not_found")["request_id"] for answer in (first, second)}
    assert len(ids) == 2
    assert sent not in ids


async def test_the_log_line_has_the_route_and_not_the_path(service: Service) -> None:
    with captured_logs() as lines:
        await service.rest("GET", f"/v1/patients/{MARKER}/encounters?limit={MARKER}")
        await service.rest("GET", f"/{MARKER}", token=MARKER)

    assert [line["route"] for line in lines] == ["/v1/patients/{patient_id}/encounters", None]
    assert MARKER not in json.dumps(lines)


# Unreadable bodies: 400

DEEP = 100_000
UNREADABLE: dict[str, tuple[Any, str]] = {
    "a string": ('"x"', "object"),
    "a number": ("5", "object"),
    "null": ("null", "object"),
    "an array": (f"[{VISIT}]", "object"),
    "nothing": ("", "json"),
    "white space": (" \n", "json"),
    "half an object": (VISIT[:-1], "json"),
    "two objects": (VISIT + VISIT, "json"),
    "a trailing comma": (VISIT[:-1] + ",}", "json"),
    "single quotes": ("{'brand_id': 'loop'}", "json"),
    "a comment": (VISIT + "// lab", "json"),
    "a byte order mark": ("\ufeff" + VISIT, "json"),
    "a line break in a string": (VISIT[:-1] + ', "notes": "a\nb"}', "json"),
    "an octal number": (VISIT[:-1] + ', "metadata": {"a": 012}}', "json"),
    "invalid UTF-8": (b'{"brand_id": "\xff"}', "utf8"),
    "an overlong NUL": (b'{"brand_id": "\xc0\x80"}', "utf8"),
    "a raw surrogate": (b'{"brand_id": "\xed\xa0\x80"}', "utf8"),
    "UTF-16": (VISIT.encode("utf-16"), "utf8"),
    "NaN": (VISIT[:-1] + ', "metadata": {"a": NaN}}', "number_range"),
    "Infinity": (VISIT[:-1] + ', "metadata": {"a": -Infinity}}', "number_range"),
    "1e200000": (VISIT[:-1] + ', "metadata": {"a": 1e200000}}', "number_range"),
    "an exponent of 30 digits": (VISIT[:-1] + f', "metadata": {{"a": 1e{"9" * 30}}}}}', "number_range"),
    "1e-200000": (VISIT[:-1] + ', "metadata": {"a": 1e-200000}}', "number_range"),
    "200,000 digits": (VISIT[:-1] + f', "x": {"7" * 200_000}}}', "number_range"),
    "a repeated member": (VISIT[:-1] + ', "brand_id": "loop"}', "duplicate_member"),
    "a repeated nested member": (VISIT[:-1] + ', "metadata": {"a": [{"b": 1, "b": 1}]}}', "duplicate_member"),
    "100,000 arrays": ("[" * DEEP + "]" * DEEP, "too_deep"),
    "100,000 arrays without an end": ("[" * DEEP, "too_deep"),
    "40,000 objects": ('{"a":' * 40_000, "too_deep"),
}


@pytest.mark.parametrize(("body", "rule"), UNREADABLE.values(), ids=UNREADABLE)
async def test_a_body_that_cannot_be_read_is_400_with_its_rule(
    service: Service, cast: Cast, body: str | bytes, rule: str
) -> None:
    patient_id = await cast.patient()

    answer = await post(service, encounters_of(patient_id), content=body)

    (violation,) = refused(answer, 400, "validation_error")["violations"]
    assert (violation["pointer"], violation["rule"]) == ("", rule)
    assert await cast.rows(patient_id) == []


@pytest.mark.parametrize(
    ("number", "digits"),
    [("1e400", 401), ("7" * 60_000, 60_000), ("-1e-400", 403), ("1E+2", 3), ("12345678901234567890.10", 23)],
    ids=lambda value: str(value)[:20],
)
async def test_a_number_beyond_a_float_is_stored_with_every_digit(
    service: Service, cast: Cast, number: str, digits: int
) -> None:
    patient_id = await cast.patient()

    answer = await post(service, encounters_of(patient_id), content=VISIT[:-1] + f', "metadata": {{"a": {number}}}}}')

    assert answer.status_code == 201
    (row,) = await cast.rows(patient_id)
    assert len(json.loads(row["metadata"], parse_int=str, parse_float=str)["a"]) == digits


async def test_a_short_number_counts_with_its_full_length(service: Service, cast: Cast) -> None:
    answer = await post(
        service, encounters_of(await cast.patient()), content=VISIT[:-1] + ', "metadata": {"a": 1e131071}}'
    )

    (violation,) = refused(answer, 400, "validation_error")["violations"]
    assert (violation["pointer"], violation["rule"]) == ("/metadata", "too_large")


@pytest.mark.parametrize(
    ("members", "pointer", "rule"),
    [
        (r'"notes": "\ud800"', "/notes", "surrogate"),
        (r'"notes": "\udc00\ud800"', "/notes", "surrogate"),
        (r'"metadata": {"\udfff": 1}', "/metadata", "surrogate"),
        (r'"chief_complaint": "\u0000"', "/chief_complaint", "nul"),
        (f'"notes": {"7" * 60_000}', "/notes", "string"),
    ],
    ids=["high", "low first", "in a name", "NUL", "60,000 digits"],
)
async def test_text_that_cannot_be_stored_is_400_with_the_member(
    service: Service, cast: Cast, members: str, pointer: str, rule: str
) -> None:
    answer = await post(service, encounters_of(await cast.patient()), content=VISIT[:-1] + f", {members}}}")

    (violation,) = refused(answer, 400, "validation_error")["violations"]
    assert (violation["pointer"], violation["rule"]) == (pointer, rule)


@pytest.mark.parametrize(
    "members",
    [
        {"brand_id": MARKER},
        {"encounter_type": MARKER},
        {"encounter_type": {MARKER: MARKER}},
        {"provider_id": MARKER},
        {"scheduled_at": MARKER},
        {"scheduled_at": f"2026-01-31T10:00:00 {MARKER}"},
        {"notes": [MARKER]},
        {"notes": MARKER * 5_000},
        {"chief_complaint": {MARKER: 1}},
        {"metadata": MARKER},
        {"metadata": {MARKER: "\x00"}},
        {"metadata": {"a": MARKER * 10_000}},
        {MARKER: MARKER, "brand_id": None},
    ],
    ids=lambda members: next(iter(members)),
)
async def test_a_refusal_and_its_log_line_repeat_no_sent_text(
    service: Service, cast: Cast, members: dict[str, Any]
) -> None:
    path = encounters_of(await cast.patient())

    with captured_logs() as lines:
        answer = await post(service, path, content=json.dumps(json.loads(VISIT) | members))

    assert answer.status_code in {400, 403}
    assert MARKER not in answer.text + json.dumps(lines) + str(answer.headers)


# Numbers of the query: 400


@pytest.mark.parametrize(
    "value",
    ["", "-1", "101", "abc", "٣", "1.5", "1e1", "+1", " 1", "1 ", "0x1", "9" * 5_000, "%00", "%ff", "NaN"],
)
async def test_a_limit_that_is_not_an_integer_from_1_to_100_is_400(service: Service, cast: Cast, value: str) -> None:
    answer = await service.rest("GET", f"{encounters_of(await cast.patient())}?limit={value}")

    (violation,) = refused(answer, 400, "validation_error")["violations"]
    assert violation == {
        "pointer": "/limit",
        "rule": "whole_number",
        "message": "must be a whole number from 1 to 100",
        "minimum": 1,
        "maximum": 100,
        "received": {"type": "string", "length": len(unquote(value, errors="replace"))},
    }


@pytest.mark.parametrize("query", ["limit=0", "limit=1&limit=1", "limit=1&limit=2", "offset=1&offset=1", "offset="])
async def test_an_empty_or_repeated_number_is_400(service: Service, cast: Cast, query: str) -> None:
    refused(await service.rest("GET", f"{encounters_of(await cast.patient())}?{query}"), 400, "validation_error")


async def test_both_invalid_numbers_are_reported_together(service: Service, cast: Cast) -> None:
    answer = await service.rest("GET", f"{encounters_of(await cast.patient())}?offset=-1&limit=x")

    violations = refused(answer, 400, "validation_error")["violations"]
    assert [each["pointer"] for each in violations] == ["/limit", "/offset"]


@pytest.mark.parametrize("value", ["-1", "abc", "٣", "1.5", str(2**63), "9" * 5_000])
async def test_an_offset_that_is_not_an_integer_is_400(service: Service, cast: Cast, value: str) -> None:
    answer = await service.rest("GET", f"{encounters_of(await cast.patient())}?offset={value}")

    (violation,) = refused(answer, 400, "validation_error")["violations"]
    assert (violation["pointer"], violation["rule"]) == ("/offset", "whole_number")


@pytest.mark.parametrize(
    ("query", "shown"),
    [("limit=1", 1), ("limit=100", 2), ("limit=01", 1), ("offset=1", 1), ("offset=2", 0), (f"offset={2**63 - 1}", 0),
     ("limit=100&offset=9223372036854775807", 0), ("colour=blue", 2), ("", 2)],
)  # fmt: skip
async def test_a_page_has_its_items_and_the_total(service: Service, cast: Cast, query: str, shown: int) -> None:
    path = encounters_of(await cast.patient())
    for _ in range(2):
        await post(service, path)

    answer = await service.rest("GET", f"{path}?{query}")

    assert answer.status_code == 200
    assert (len(answer.json()["encounters"]), answer.json()["total"]) == (shown, 2)


async def test_an_invalid_number_precedes_an_unknown_patient(service: Service) -> None:
    refused(await service.rest("GET", ENCOUNTERS + "?limit=0"), 400, "validation_error")


# Patients


@pytest.mark.parametrize(
    "patient_id", ["%00", "%ff", "%ed%a0%80", "%0a", "%20", "a" * 201, "..", ".", "%25", "é", "null"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_impossible_patient_id_is_404(service: Service, method: str, patient_id: str) -> None:
    answer = await service.rest(method, encounters_of(patient_id), headers=JSON, content=VISIT)

    assert refused(answer, 404, "not_found")["message"] in {
        "The patient was not found.",
        "There is no resource at this path.",
    }
