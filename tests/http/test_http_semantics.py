"""HTTP semantics of REST: methods, content negotiation, links and conditional requests."""

import gzip
import json
import re
from typing import Any

import httpx2
import pytest

from resolvers.rules import RULES
from rest.content_negotiation import prefers_problem
from rest.problem_pages import refusals
from tests.cast import Cast
from tests.doors import Service
from tests.http.test_errors import broken_database

VISIT = {"brand_id": "loop", "encounter_type": "lab", "notes": "Slept well."}
ENCOUNTERS = "/v1/patients/nobody/encounters"
PROBLEM = "application/problem+json"
DESCRIBED = re.compile(r'<([^>]+)>; rel="describedby"')


@pytest.fixture
async def path(cast: Cast) -> str:
    return f"/v1/patients/{await cast.patient()}/encounters"


@pytest.fixture
async def recorded(service: Service, path: str) -> httpx2.Response:
    answer = await service.rest("POST", path, json=VISIT)
    assert answer.status_code == 201
    return answer


# Methods


@pytest.mark.parametrize(
    "where", ["list", "one", "/healthz", "/readyz", "/rules/enum", "/problems/not_found", "/nowhere"]
)
async def test_head_is_get_without_its_body(service: Service, path: str, recorded: httpx2.Response, where: str) -> None:
    address = {"list": path, "one": recorded.headers["location"]}.get(where, where)
    # The only answer with the time has the same length only by chance.
    changing = {"x-request-id", "x-ratelimit-reset", "ratelimit", "x-ratelimit-remaining"} | (
        {"content-length"} if where == "/readyz" else set()
    )

    head, get = await service.rest("HEAD", address), await service.rest("GET", address)

    assert (head.status_code, head.content) == (get.status_code, b"")
    assert {name: value for name, value in head.headers.items() if name not in changing} == {
        name: value for name, value in get.headers.items() if name not in changing
    }
    assert "content-length" in head.headers


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (ENCOUNTERS, "GET, HEAD, OPTIONS, POST"),
        (ENCOUNTERS + "/an-id", "GET, HEAD, OPTIONS"),
        ("/healthz", "GET, HEAD, OPTIONS"),
    ],
)
async def test_options_lists_the_methods_to_an_authenticated_caller(service: Service, path: str, allowed: str) -> None:
    stranger, caller = [await service.rest("OPTIONS", path, token=token) for token in (None, "dev")]

    assert stranger.status_code == 401
    assert (caller.status_code, caller.headers["allow"], caller.content) == (204, allowed, b"")


async def test_options_of_an_unknown_path_is_404(service: Service) -> None:
    assert (await service.rest("OPTIONS", "/nowhere")).status_code == 404


# Media types


@pytest.mark.parametrize(
    "accept", ["text/html", "image/png", "*/*;q=0", "application/json;q=0", "text/*, application/xml"]
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_an_unsupported_accept_is_406_and_nothing_is_recorded(
    service: Service, cast: Cast, path: str, method: str, accept: str
) -> None:
    answer = await service.rest(method, path, headers={"accept": accept}, json=VISIT)

    assert answer.status_code == 406
    assert method == "HEAD" or answer.json()["error"] == "not_acceptable"
    assert await cast.rows(path.split("/")[3]) == []


@pytest.mark.parametrize(
    "accept",
    ["", "*/*", "application/json", "application/*", "APPLICATION/JSON", "text/html, */*;q=0.1", PROBLEM,
     "application/json; charset=utf-8", "application/json;q=0.001", "application/json;q=2", ",",
     "text/html,application/json"],
)  # fmt: skip
async def test_an_accept_that_includes_json_is_served(service: Service, path: str, accept: str) -> None:
    answer = await service.rest("POST", path, headers={"accept": accept}, json=VISIT)

    assert (answer.status_code, answer.headers["content-type"]) == (201, "application/json")


async def test_authentication_precedes_content_negotiation(service: Service) -> None:
    html = {"accept": "text/html"}

    stranger, wrong_brand, lost = [
        await service.rest("GET", path, token=token, headers=html | more)
        for path, token, more in (
            (ENCOUNTERS, None, {}),
            (ENCOUNTERS, "dev", {"x-brand-id": "loopbio"}),
            ("/nowhere", "dev", {}),
        )
    ]

    assert [answer.status_code for answer in (stranger, wrong_brand, lost)] == [401, 403, 404]


@pytest.mark.parametrize(
    ("accept", "preferred"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", False),
        (PROBLEM, True),
        (f"application/json, {PROBLEM}", True),
        (f"{PROBLEM}, */*", True),
        (f"{PROBLEM};q=0.5, application/json", False),
        (f"{PROBLEM};q=0", False),
        (f"{PROBLEM}, application/json;q=0.9", True),
    ],
)
def test_a_problem_is_sent_if_named_and_json_is_not_preferred(accept: str, preferred: bool) -> None:
    assert prefers_problem(accept) is preferred


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (400, {"method": "POST", "json": {"brand_id": "loop"}}),
        (401, {"method": "GET", "token": None}),
        (403, {"method": "GET", "headers": {"x-brand-id": "loopbio"}}),
        (404, {"method": "GET"}),
        (405, {"method": "DELETE"}),
        (415, {"method": "POST", "content": b"x"}),
    ],
)
async def test_a_problem_has_all_members_of_the_default_error_and_of_rfc_9457(
    service: Service, status: int, request_: dict[str, Any]
) -> None:
    headers = request_.pop("headers", {}) | {"x-request-id": "the-same"}
    method = request_.pop("method")

    ordinary = await service.rest(method, ENCOUNTERS, headers=headers, **request_)
    problem = await service.rest(method, ENCOUNTERS, headers=headers | {"accept": PROBLEM}, **request_)

    body = problem.json()
    assert problem.headers["content-type"] == PROBLEM
    assert ordinary.headers["content-type"] == "application/json"
    assert body == ordinary.json() | {
        "type": f"/problems/{body['error']}",
        "title": body["title"],
        "status": status,
        "detail": body["message"],
        "instance": "urn:encounter-gateway:request:the-same",
    }
    assert problem.status_code == ordinary.status_code == status
    assert problem.headers["vary"] == ordinary.headers["vary"] == "Accept"


async def test_an_internal_error_is_a_problem_too(service: Service, path: str) -> None:
    async with broken_database():
        answer = await service.rest("GET", path, headers={"accept": PROBLEM})

    assert (answer.status_code, answer.headers["content-type"]) == (500, PROBLEM)
    assert answer.json()["title"] == answer.json()["message"]


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate, gzip", "identity, gzip", "GZIP", "x"])
@pytest.mark.parametrize("where", ["rest", "graphql"])
async def test_a_compressed_body_is_415_and_names_the_accepted_codings(
    service: Service, path: str, coding: str, where: str
) -> None:
    answer = await service.rest(
        "POST",
        path if where == "rest" else "/graphql",
        headers={"content-type": "application/json", "content-encoding": coding},
        content=gzip.compress(json.dumps(VISIT).encode()),
    )

    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")
    assert answer.headers["accept"] == "application/json"


@pytest.mark.parametrize("where", ["rest", "graphql"])
async def test_a_repeated_media_type_is_415(service: Service, path: str, where: str) -> None:
    answer = await service.client.post(
        path if where == "rest" else "/graphql",
        headers=[("authorization", "Bearer dev"), *[("content-type", "application/json")] * 2],
        content=json.dumps(VISIT).encode(),
    )

    assert answer.status_code == 415


@pytest.mark.parametrize("coding", ["identity", "", " Identity "])
async def test_an_identity_content_encoding_is_read(service: Service, path: str, coding: str) -> None:
    answer = await service.rest("POST", path, headers={"content-encoding": coding}, json=VISIT)

    assert answer.status_code == 201


# Links


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "DELETE"])
async def test_every_answer_links_to_the_description(service: Service, path: str, method: str) -> None:
    answer = await service.rest(method, path, json=VISIT)

    assert answer.headers["link"].startswith('</openapi.json>; rel="service-desc", </docs>; rel="help"')


async def test_an_error_links_to_the_pages_of_its_code_and_rules(service: Service, path: str) -> None:
    broken = VISIT | {"notes": 5, "chief_complaint": 6, "scheduled_at": "soon"}

    answer = await service.rest("POST", path, json=broken)

    pages = DESCRIBED.findall(answer.headers["link"])
    assert pages == ["/problems/validation_error", "/rules/date_time", "/rules/string"]
    for page in pages:
        # A client without a valid token may follow the link too.
        explained = await service.rest("GET", page, token=None)
        assert (explained.status_code, explained.headers["content-type"]) == (200, "text/plain; charset=utf-8")
        assert explained.text.startswith(page.rsplit("/", 1)[1] + "\n")


async def test_every_code_and_every_rule_has_a_page(service: Service) -> None:
    pages = {f"/problems/{kind.code}" for kind in refusals()} | {f"/rules/{rule}" for rule in RULES}

    for page in sorted(pages):
        assert (await service.rest("GET", page, token=None)).status_code == 200


@pytest.mark.parametrize("page", ["/rules/nonsense", "/problems/nonsense", "/rules/", "/rules/a/b"])
async def test_an_unknown_page_is_404_but_401_without_a_token(service: Service, page: str) -> None:
    stranger, caller = [await service.rest("GET", page, token=token) for token in (None, "dev")]

    assert (stranger.status_code, caller.status_code) == (401, 404)


# Conditional requests


async def test_the_location_of_a_recording_is_its_encounter_with_the_same_etag(
    service: Service, recorded: httpx2.Response
) -> None:
    shown = await service.rest("GET", recorded.headers["location"])

    assert shown.status_code == 200
    assert shown.json() == recorded.json()
    assert shown.headers["etag"] == recorded.headers["etag"] == '"1"'


@pytest.mark.parametrize("known", ['"1"', 'W/"1"', "*", '"x", "1"', '"a,b",W/"1"'])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_matching_if_none_match_is_304(
    service: Service, recorded: httpx2.Response, method: str, known: str
) -> None:
    answer = await service.rest(method, recorded.headers["location"], headers={"if-none-match": known})

    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == '"1"'
    assert "content-type" not in answer.headers


@pytest.mark.parametrize("known", ['"2"', "1", '"11"', "", 'W/"2", "3"', '"*"'])
async def test_another_if_none_match_is_200(service: Service, recorded: httpx2.Response, known: str) -> None:
    answer = await service.rest("GET", recorded.headers["location"], headers={"if-none-match": known})

    assert (answer.status_code, answer.json()) == (200, recorded.json())


async def test_a_change_makes_another_etag(service: Service, cast: Cast, recorded: httpx2.Response) -> None:
    location = recorded.headers["location"]
    await cast.connection.execute(
        "UPDATE patient_graph.encounters SET version = 2, status = 'in_progress' WHERE id = $1", recorded.json()["id"]
    )

    answer = await service.rest("GET", location, headers={"if-none-match": recorded.headers["etag"]})

    assert (answer.status_code, answer.headers["etag"], answer.json()["status"]) == (200, '"2"', "in_progress")


async def test_a_replay_has_the_etag_of_the_stored_answer(service: Service, cast: Cast, path: str) -> None:
    key = {"idempotency-key": path}
    first = await service.rest("POST", path, json=VISIT, headers=key)
    await cast.connection.execute(
        "UPDATE patient_graph.encounters SET version = 2, status = 'in_progress' WHERE id = $1", first.json()["id"]
    )

    again = await service.rest("POST", path, json=VISIT, headers=key)

    assert again.content == first.content
    assert again.headers["idempotent-replayed"] == "true"
    assert [again.headers[name] for name in ("location", "etag")] == [first.headers["location"], '"1"']


async def test_a_list_is_304_until_one_of_its_encounters_changes(
    service: Service, path: str, recorded: httpx2.Response
) -> None:
    tag = {"if-none-match": (await service.rest("GET", path)).headers["etag"]}

    unchanged = await service.rest("GET", path, headers=tag)
    other_page = await service.rest("GET", path + "?offset=1", headers=tag)
    await service.rest("POST", path, json=VISIT)
    changed = await service.rest("GET", path, headers=tag)

    assert [answer.status_code for answer in (unchanged, other_page, changed)] == [304, 200, 200]
