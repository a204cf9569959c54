"""GraphQL over HTTP: requests, statuses, media types, and that refused values are not repeated.

The audits of the npm package `graphql-http` cover some of these cases; this file covers the rest too.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from gateway.settings import Settings
from resolvers.access import Caller
from tests.cast import Cast
from tests.doors import Service
from tests.logs import captured_logs

JSON = "application/json"
RESPONSE = "application/graphql-response+json"
MARKER = "tuberculosis"

# Documents with existing fields, so that the only fault is the one under test.
HELLO = "{ __typename }"
RECORD = """mutation ($patientId: ID!, $input: RecordEncounterInput!) {
  recordEncounter(patientId: $patientId, input: $input) { __typename ... on Problem { code message recorded } }
}"""


async def post(
    service: Service, body: Any, *, accept: str = RESPONSE, content_type: str = JSON, token: str | None = "dev"
) -> httpx2.Response:
    """Send a body: text and bytes unchanged, other values as JSON."""
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    headers = {"accept": accept, "content-type": content_type}
    return await service.rest("POST", "/graphql", token=token, headers=headers, content=content)


async def get(service: Service, *, accept: str = RESPONSE, **parameters: str) -> httpx2.Response:
    return await service.rest("GET", "/graphql", headers={"accept": accept}, params=parameters)


def refused(answer: httpx2.Response, status: int, code: str = "validation_error") -> list[dict[str, Any]]:
    """Assert that the whole request was refused, with the extensions of each error; return the errors."""
    body = answer.json()
    assert (answer.status_code, set(body)) == (status, {"errors"})
    assert answer.headers["cache-control"] == "no-store"
    assert body["errors"]
    for error in body["errors"]:
        extensions = error["extensions"]
        assert (extensions["code"], extensions["recorded"]) == (code, "no")
        assert extensions["request_id"] == answer.headers["x-request-id"]
        assert error["message"]
        assert error.get("locations") != []
    errors: list[dict[str, Any]] = body["errors"]
    return errors


# Media types


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        (JSON, JSON),
        ("APPLICATION/JSON", JSON),
        (f"{JSON}; charset=utf-8", JSON),
        (RESPONSE, RESPONSE),
        (f"{RESPONSE}; charset=utf-8", RESPONSE),
        (f"{RESPONSE}, {JSON}", RESPONSE),
        (f"{JSON}, {RESPONSE}", JSON),
        (f"{JSON};q=0.9, {RESPONSE}", RESPONSE),
        (f"{RESPONSE};q=0.1, {JSON};q=0.2", JSON),
        (f"{RESPONSE};q=0, {JSON}", JSON),
        (f"text/html, {RESPONSE};q=0.5", RESPONSE),
        ("image/png, */*;q=0.1", JSON),
        (f"{RESPONSE};q=nonsense", RESPONSE),
    ],
)
async def test_the_response_has_the_preferred_media_type(service: Service, accept: str, media_type: str) -> None:
    answer = await post(service, {"query": HELLO}, accept=accept)

    assert (answer.status_code, answer.json()) == (200, {"data": {"__typename": "Query"}})
    assert answer.headers["content-type"] == f"{media_type}; charset=utf-8"


@pytest.mark.parametrize("accept", ["text/html", "image/*", f"{JSON};q=0", "*/*;q=0", "nonsense"])
async def test_a_request_that_accepts_neither_media_type_is_406(service: Service, accept: str) -> None:
    refused(await post(service, {"query": HELLO}, accept=accept), 406, "not_acceptable")


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "application/graphql", RESPONSE, f"{JSON}; charset=latin-1", f'{JSON}; charset="utf-16"',
     "application/jsonp", "multipart/form-data"],
)  # fmt: skip
async def test_a_body_of_another_media_type_is_415(service: Service, content_type: str) -> None:
    answer = await post(service, {"query": HELLO}, content_type=content_type)

    refused(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "content_type",
    [f"{JSON};charset=utf-8", f'{JSON}; charset="UTF-8"', "Application/JSON", f"{JSON}; charset=utf-8; profile=x"],
)
async def test_a_content_type_with_charset_utf_8_is_accepted(service: Service, content_type: str) -> None:
    answer = await post(service, {"query": HELLO}, content_type=content_type)

    assert (answer.status_code, answer.json()) == (200, {"data": {"__typename": "Query"}})


# Bodies


@pytest.mark.parametrize("accept", [JSON, RESPONSE])
@pytest.mark.parametrize(
    "body",
    ['"x"', "5", "null", "true", "[]", f'[{{"query": "{HELLO}"}}]', "", " ", "{", "NaN", "\ufeff{}", b"\xff",
     f'{{"query": "{HELLO}"}}'.encode("utf-16"),
     f'{{"query": "{HELLO}", "query": "{HELLO}"}}', "[" * 100_000, "{}", '{"variables": {}}'],
)  # fmt: skip
async def test_a_malformed_body_is_400_for_either_media_type(service: Service, accept: str, body: str | bytes) -> None:
    refused(await post(service, body, accept=accept), 400)


@pytest.mark.parametrize("accept", [JSON, RESPONSE])
@pytest.mark.parametrize(
    ("members", "pointer"),
    [
        ({"query": None}, "/query"),
        ({"query": 5}, "/query"),
        ({"query": [HELLO]}, "/query"),
        ({"query": {"a": MARKER}}, "/query"),
        ({"query": HELLO + "\x00"}, "/query"),
        ({"query": HELLO + "\ud800"}, "/query"),
        ({"variables": MARKER}, "/variables"),
        ({"variables": [MARKER]}, "/variables"),
        ({"variables": 0}, "/variables"),
        ({"variables": False}, "/variables"),
        ({"operationName": 5}, "/operationName"),
        ({"operationName": [MARKER]}, "/operationName"),
        ({"operationName": "\ud800"}, "/operationName"),
        ({"extensions": MARKER}, "/extensions"),
        ({"extensions": []}, "/extensions"),
    ],
    ids=str,
)
async def test_a_member_of_the_wrong_type_is_400_and_named(
    service: Service, accept: str, members: dict[str, Any], pointer: str
) -> None:
    answer = await post(service, {"query": HELLO} | members, accept=accept)

    (error,) = refused(answer, 400)
    assert [each["pointer"] for each in error["extensions"]["violations"]] == [pointer]
    assert MARKER not in answer.text


@pytest.mark.parametrize(
    "members",
    [
        {"variables": None, "operationName": None, "extensions": None},
        {"variables": {}, "extensions": {"persistedQuery": {"version": 1}}},
        {"variables": {"unknown": MARKER}},
        {"anything": MARKER},
    ],
    ids=str,
)
async def test_null_and_unknown_members_are_ignored(service: Service, members: dict[str, Any]) -> None:
    answer = await post(service, {"query": HELLO} | members)

    assert (answer.status_code, answer.json()) == (200, {"data": {"__typename": "Query"}})


# Documents: well-formed GraphQL requests, so the older media type gets 200

WRONG_DOCUMENTS: dict[str, dict[str, Any]] = {
    "nothing": {"query": ""},
    "a comment": {"query": f"# {MARKER}"},
    "a syntax error": {"query": "{ __typename"},
    "another syntax error": {"query": f'{{ patient(id: "{MARKER}" }}'},
    "an unknown field": {"query": "{ nope }"},
    "a leaf with fields": {"query": "{ __typename { a } }"},
    "no fields": {"query": '{ patient(id: "x") }'},
    "a missing argument": {"query": "{ patient { id } }"},
    "no operation": {"query": "fragment F on Query { __typename }"},
    "a type definition": {"query": "type Query { a: Int }"},
    "an unknown operation": {"query": "query A { __typename } query B { __typename }", "operationName": MARKER},
    "no name among two": {"query": "query A { __typename } query B { __typename }"},
    "the same name twice": {"query": "query A { __typename } query A { __typename }", "operationName": "A"},
    "a subscription": {"query": "subscription { nothing }"},
    "a missing variable": {"query": "query ($id: ID!) { patient(id: $id) { id } }"},
    "a null variable": {"query": "query ($id: ID!) { patient(id: $id) { id } }", "variables": {"id": None}},
    "a variable of the wrong type": {
        "query": "query ($id: ID!) { patient(id: $id) { id } }",
        "variables": {"id": {"a": MARKER}},
    },
    "an unused variable": {"query": "query ($id: ID!) { __typename }", "variables": {"id": MARKER}},
    "a fragment in a circle": {"query": "{ ...F } fragment F on Query { ...F }"},
    "fields a thousand deep": {"query": "{ a" * 1_000 + " }" * 1_000},
    "lists a thousand deep": {"query": f"query ($a: {'[' * 1_000}Int{']' * 1_000}) {{ __typename }}"},
    "fragments a thousand deep": {
        "query": "{ ...F0 }"
        + "".join(f" fragment F{n} on Query {{ ...F{n + 1} }}" for n in range(1_000))
        + " fragment F1000 on Query { __typename }"
    },
    "20,000 unknown fields": {"query": "{" + " nope" * 20_000 + " }"},
    "a defer": {"query": "{ ... @defer { __typename } }"},
}


@pytest.mark.parametrize(("accept", "status"), [(JSON, 200), (RESPONSE, 400)], ids=["older", "newer"])
@pytest.mark.parametrize("body", WRONG_DOCUMENTS.values(), ids=WRONG_DOCUMENTS)
async def test_an_invalid_document_is_refused_with_errors_and_no_data(
    service: Service, accept: str, status: int, body: dict[str, Any]
) -> None:
    answer = await post(service, body, accept=accept)

    refused(answer, status)
    assert MARKER not in answer.text


@pytest.mark.parametrize("accept", [JSON, RESPONSE])
async def test_a_failing_field_is_200_with_data_for_either_media_type(service: Service, accept: str) -> None:
    too_many = f"{{ patients(ids: {json.dumps(['x'] * 101)}) {{ id }} }}"

    answer = await post(service, {"query": too_many}, accept=accept)

    assert (answer.status_code, answer.json()["data"]) == (200, None)
    (error,) = answer.json()["errors"]
    assert (error["path"], error["locations"]) == (["patients"], [{"line": 1, "column": 3}])
    assert error["extensions"]["code"] == "validation_error"
    assert error["extensions"]["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("name", ["A", "B"])
async def test_the_operation_of_operation_name_is_executed(service: Service, name: str) -> None:
    query = "query A { A: __typename } query B { B: __typename }"

    answer = await post(service, {"query": query, "operationName": name})

    assert answer.json() == {"data": {name: "Query"}}


# GET


async def test_a_query_with_variables_may_be_sent_by_get(service: Service, cast: Cast) -> None:
    patient_id = await cast.patient()

    answer = await get(
        service,
        query="query Q($id: ID!) { patient(id: $id) { id } }",
        variables=json.dumps({"id": patient_id}),
        operationName="Q",
        extensions="{}",
    )

    assert (answer.status_code, answer.json()) == (200, {"data": {"patient": {"id": patient_id}}})
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("parameters", [{"operationName": ""}, {"variables": ""}, {"variables": "null"}], ids=str)
async def test_an_empty_parameter_is_treated_as_omitted(service: Service, parameters: dict[str, str]) -> None:
    answer = await get(service, query="query Q { __typename }", **parameters)

    assert (answer.status_code, answer.json()) == (200, {"data": {"__typename": "Query"}})


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"query": ""},
        {"query": HELLO, "variables": MARKER},
        {"query": HELLO, "variables": "[]"},
        {"query": HELLO, "variables": '"x"'},
        {"query": HELLO, "extensions": MARKER},
        {"query": HELLO, "extensions": "5"},
        {"query": HELLO + "\x00"},
    ],
    ids=str,
)
async def test_malformed_parameters_are_400(service: Service, parameters: dict[str, str]) -> None:
    answer = await get(service, **parameters)

    refused(answer, 400)
    assert MARKER not in answer.text


@pytest.mark.parametrize("accept", [JSON, RESPONSE])
@pytest.mark.parametrize("operation", ["M", "Q"])
async def test_a_mutation_by_get_is_405_and_records_nothing(
    service: Service, cast: Cast, accept: str, operation: str
) -> None:
    patient_id = await cast.patient()
    record = f'recordEncounter(patientId: "{patient_id}", input: {{brandId: "loop", encounterType: LAB}})'
    query = f"query Q {{ __typename }} mutation M {{ {record} {{ __typename }} }}"

    answer = await get(service, accept=accept, query=query, operationName=operation)

    assert await cast.rows(patient_id) == []
    if operation == "M":
        refused(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == "POST"
    else:
        assert answer.status_code == 200


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "QUERY"])
async def test_another_method_is_405_and_allow_names_both(service: Service, method: str) -> None:
    answer = await service.rest(
        method, "/graphql", headers={"content-type": JSON}, content=json.dumps({"query": HELLO})
    )

    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")


# Authentication


# A GET that prefers HTML gets the explorer: tests/http/test_pages.py.
@pytest.mark.parametrize(
    ("method", "accept"),
    [("GET", JSON), ("GET", RESPONSE), ("GET", f"{RESPONSE}, text/html")]
    + [(method, accept) for method in ("POST", "PUT") for accept in (JSON, RESPONSE, "text/html")],
)
async def test_a_request_without_a_token_is_401_whatever_else_is_wrong(
    service: Service, accept: str, method: str
) -> None:
    answer = await service.rest(method, "/graphql", token=None, headers={"accept": accept}, content=b"\xff")

    refused(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_an_invalid_token_is_401_with_a_challenge(service: Service) -> None:
    answer = await post(service, {"query": HELLO}, token=MARKER)

    refused(answer, 401, "invalid_token")
    assert answer.headers["www-authenticate"].startswith('Bearer error="invalid_token", error_description="')
    assert MARKER not in answer.text + str(answer.headers)


async def verify_writer(_token: str) -> Caller:
    return Caller("writer", frozenset({"write:encounters"}), brand_id="loop")


@pytest.fixture(scope="module")
async def service_for_writers(database_url: str) -> AsyncIterator[Service]:
    """The service for callers with only the scope to record."""
    async with Service.running(Settings(database_url=database_url), verify_writer) as running:
        yield running


async def test_a_field_without_its_scope_is_insufficient_scope(service_for_writers: Service, cast: Cast) -> None:
    query = f'{{ patient(id: "{await cast.patient()}") {{ id encounters {{ totalCount }} }} }}'

    body = await service_for_writers.graphql(query)

    (error,) = body["errors"]
    assert (error["extensions"]["code"], error["extensions"]["recorded"]) == ("insufficient_scope", "no")


# Errors after a recording

RECORD_AND_READ = """mutation ($patientId: ID!) {{
  recordEncounter(patientId: $patientId, input: {{brandId: "loop", encounterType: LAB}}) {{
    ... on EncounterRecorded {{ encounter {{ id patient {{ id {further} }} }} }}
  }}
}}"""


async def test_the_write_scope_returns_the_recorded_encounter_and_its_patient(
    service_for_writers: Service, cast: Cast
) -> None:
    patient_id = await cast.patient()

    body = await service_for_writers.graphql(RECORD_AND_READ.format(further=""), {"patientId": patient_id})

    assert body["data"]["recordEncounter"]["encounter"]["patient"]["id"] == patient_id


@pytest.mark.parametrize(
    ("further", "code"),
    [
        ("encounters { totalCount }", "insufficient_scope"),
        ("encounters(first: 1000) { totalCount }", "validation_error"),
        ('encounters(after: "x") { totalCount }', "validation_error"),
    ],
)
async def test_an_error_below_a_recording_reports_recorded_as_unknown(
    service_for_writers: Service, cast: Cast, further: str, code: str
) -> None:
    patient_id = await cast.patient()

    body = await service_for_writers.graphql(RECORD_AND_READ.format(further=further), {"patientId": patient_id})

    (error,) = body["errors"]
    assert error["extensions"]["code"] == code
    assert len(await cast.rows(patient_id)) == 1
    assert error["extensions"]["recorded"] == "unknown"


def levels(count: int) -> str:
    return "encounters(first: 1) { nodes { patient { " * count + "id" + " } } }" * count


@pytest.mark.parametrize("count", [1, 10, 60, 62, 63, 64, 65, 66])
async def test_a_deep_document_is_executed_or_refused_without_a_server_error(
    service: Service, cast: Cast, count: int
) -> None:
    patient_id = await cast.patient()

    answer = await post(
        service,
        {"query": RECORD_AND_READ.format(further=levels(count)), "variables": {"patientId": patient_id}},
    )

    assert answer.status_code in {200, 400}
    assert len(await cast.rows(patient_id)) == (1 if answer.status_code == 200 else 0)


# Refused values are not repeated

INPUT = {"brandId": "loop", "encounterType": "LAB"}


@pytest.mark.parametrize(
    "changed",
    [
        {"brandId": MARKER},
        {"brandId": [MARKER]},
        {"encounterType": MARKER},
        {"encounterType": [MARKER]},
        {"providerId": MARKER},
        {"providerId": {MARKER: MARKER}},
        {"scheduledAt": MARKER},
        {"scheduledAt": [MARKER]},
        {"chiefComplaint": [MARKER]},
        {"notes": {"a": MARKER}},
        {"notes": MARKER + "\x00"},
        {"notes": MARKER * 5_000},
        {"metadata": MARKER},
        {"metadata": [MARKER]},
        {"metadata": {MARKER: "\x00"}},
        {"metadata": {"a": MARKER * 10_000}},
        {MARKER: 1},
    ],
    ids=lambda changed: f"{next(iter(changed))}-{type(next(iter(changed.values()))).__name__}",
)
async def test_a_refused_variable_is_not_repeated(service: Service, cast: Cast, changed: dict[str, Any]) -> None:
    variables = {"patientId": await cast.patient(), "input": INPUT | changed}

    with captured_logs() as lines:
        answer = await post(service, {"query": RECORD, "variables": variables})

    assert answer.status_code in {200, 400}
    assert "EncounterRecorded" not in answer.text
    assert MARKER not in answer.text + json.dumps(lines)


@pytest.mark.parametrize(
    ("literal", "named"),
    [
        (f'brandId: ["{MARKER}"]', "brandId must be of type String"),
        (f"brandId: {MARKER}", "brandId must be of type String"),
        (f"encounterType: {MARKER}", "encounterType must be one of: OFFICE_VISIT"),
        (f'encounterType: "{MARKER}"', "encounterType must be one of: OFFICE_VISIT"),
        (f'providerId: "{MARKER}"', "providerId must be a UUID"),
        (f'providerId: ["{MARKER}"]', "providerId must be of type UUID"),
        (f'scheduledAt: "{MARKER}"', "scheduledAt must be an RFC 3339 date-time"),
        ("scheduledAt: 1700000000", "scheduledAt must be of type DateTime"),
        (f"chiefComplaint: {MARKER}", "chiefComplaint must be of type String"),
        (f'notes: {{a: "{MARKER}"}}', "notes must be of type String"),
        (f'notes: "\\u0000{MARKER}"', "notes must not contain the NUL character"),
        (f'metadata: "{MARKER}"', "metadata must be an object"),
        (f"metadata: {MARKER}", "metadata must be of type JSON"),
        (f'metadata: {{a: "\\u0000{MARKER}"}}', "metadata must not contain the NUL character"),
        (f"metadata: {{{MARKER}: 1e200000}}", "metadata must be of type JSON"),
        (f'metadata: {{{MARKER}: 1, {MARKER}: "{MARKER}"}}', "must not have two members of the same name"),
        (f"{MARKER}: 1", "must have only members that RecordEncounterInput defines"),
        (f'notes: "{MARKER}', "syntax error"),
        (f'notes: "pain" {MARKER} "gone"', "syntax error"),
        (f'notes: """{MARKER}', "syntax error"),
        (f'notes: "\\q{MARKER}"', "syntax error"),
    ],
)
async def test_a_refused_literal_is_not_repeated_and_its_member_is_named(
    service: Service, cast: Cast, literal: str, named: str
) -> None:
    members = ", ".join(f"{name}: {value}" for name, value in WRITTEN.items() if not literal.startswith(name))
    record = f'recordEncounter(patientId: "{await cast.patient()}", input: {{{members}, {literal}}})'

    with captured_logs() as lines:
        answer = await post(
            service, {"query": f"mutation {{ {record} {{ __typename ... on Problem {{ message }} }} }}"}
        )

    assert named in answer.text
    assert "EncounterRecorded" not in answer.text
    assert MARKER not in answer.text + json.dumps(lines)
    assert all(error.get("locations") for error in answer.json().get("errors", []))


WRITTEN = {"brandId": '"loop"', "encounterType": "LAB"}


@pytest.mark.parametrize(
    "body",
    [
        {"query": f'{{ patient(id: "{MARKER}") {{ id }} }}'},
        {"query": f'{{ encounter(id: "{MARKER}") {{ id }} }}'},
        {"query": f"{{ encounter(id: {MARKER}) {{ id }} }}"},
        {"query": f'{{ patients(ids: ["{MARKER}", null]) {{ id }} }}'},
        {"query": f'{{ __type(name: "{MARKER}") {{ name }} }}'},
        {"query": f'{{ __typename @skip(if: "{MARKER}") }}'},
        {"query": f'{{ a: patient(id: "{MARKER}") {{ id }} a: patient(id: "x") {{ id }} }}'},
        {"query": "query ($a: Boolean!) { __typename @skip(if: $a) }", "variables": {"a": MARKER}},
        {"query": f'query ($a: Int = "{MARKER}") {{ __typename @skip(if: $a) }}'},
        {"query": HELLO, "operationName": MARKER},
        {"query": HELLO, "extensions": {MARKER: MARKER}, "variables": {MARKER: MARKER}, MARKER: MARKER},
    ],
    ids=lambda body: str(body)[:60],
)
async def test_a_refused_value_elsewhere_is_not_repeated(service: Service, body: dict[str, Any]) -> None:
    with captured_logs() as lines:
        answer = await post(service, body)

    assert answer.status_code in {200, 400}
    assert MARKER not in answer.text + json.dumps(lines)


async def test_a_refused_filter_or_cursor_is_not_repeated(service: Service, cast: Cast) -> None:
    patient_id = await cast.patient()
    arguments = [
        f'after: "{MARKER}"',
        f'where: {{providerId: "{MARKER}"}}',
        f'where: {{scheduledFrom: "{MARKER}"}}',
        f"where: {{status: [{MARKER}]}}",
        f"where: {{{MARKER}: 1}}",
        f'first: "{MARKER}"',
    ]

    for argument in arguments:
        answer = await post(
            service, {"query": f'{{ patient(id: "{patient_id}") {{ encounters({argument}) {{ totalCount }} }} }}'}
        )
        assert answer.json()["errors"]
        assert MARKER not in answer.text


async def test_an_unknown_field_of_a_document_is_named(service: Service) -> None:
    answer = await post(service, {"query": f"{{ {MARKER} }}"})

    assert [error["message"] for error in refused(answer, 400)] == [f"Cannot query field '{MARKER}' on type 'Query'."]


# Numbers and JSON


@pytest.mark.parametrize(
    ("literal", "kept"),
    [
        ("{a: 1.50, b: 12345678901234567890.10}", '{"a": 1.50, "b": 12345678901234567890.10}'),
        ("{a: 1e3, b: -0.5e-2}", '{"a": 1000, "b": -0.005}'),
        ('{a: [true, null, "x", {b: []}]}', '{"a": [true, null, "x", {"b": []}]}'),
        ("{a: $x, b: [$x]}", '{"a": {"deep": [1.50]}, "b": [{"deep": [1.50]}]}'),
    ],
)
async def test_a_metadata_literal_is_stored_with_every_digit(
    service: Service, cast: Cast, literal: str, kept: str
) -> None:
    patient_id = await cast.patient()
    members = f'brandId: "loop", encounterType: LAB, metadata: {literal}'
    record = f'recordEncounter(patientId: "{patient_id}", input: {{{members}}})'
    declared = "($x: JSON)" if "$x" in literal else ""
    query = json.dumps(f"mutation {declared} {{ {record} {{ __typename }} }}")

    answer = await post(service, f'{{"query": {query}, "variables": {{"x": {{"deep": [1.50]}}}}}}')

    assert answer.json() == {"data": {"recordEncounter": {"__typename": "EncounterRecorded"}}}
    (row,) = await cast.rows(patient_id)
    assert row["metadata"] == kept


@pytest.mark.parametrize("size", ["5.5", "1e1", "1e100000", "9" * 5_000, "true", '"5"', "[5]", "99999999999"])
async def test_a_variable_that_is_no_integer_is_refused(service: Service, size: str) -> None:
    query = 'query ($first: Int) { patient(id: \\"x\\") { encounters(first: $first) { totalCount } } }'

    answer = await post(service, f'{{"query": "{query}", "variables": {{"first": {size}}}}}')

    (error,) = refused(answer, 400)
    assert error["message"] == "variables/first must be of type Int"
