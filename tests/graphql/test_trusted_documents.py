"""Trusted documents: execution by id, and the policies that log or refuse other documents."""

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from graphql import get_introspection_query, parse, print_ast

from gateway.app import create_app
from gateway.check import check
from gateway.pages import BOARD_DOCUMENTS
from gateway.settings import Settings, SettingsError
from resolvers.access import Caller
from schema.documents.trusted import UntrustedManifest, read_manifest
from tests.cast import Cast
from tests.doors import LIST, RECORD, Service
from tests.gateways import free_port
from tests.http.test_pages import needs_pages
from tests.logs import captured_logs
from tests.websocket_client import GatewayServer

HEADERS = {"accept": "application/graphql-response+json", "content-type": "application/json"}
HELLO = "query Hello { __typename }"
MARKER = "tuberculosis"

# Reviewed, and larger than any limit.
LONG = "query Long { " + " ".join(f"a{number}: __typename" for number in range(800)) + " }"
PAGE = "encounters(first: 100) {{ nodes {{ patient {{ {} }} }} }}"
EXPENSIVE = f"query Expensive {{ patient(id: 1) {{ {PAGE.format(PAGE.format(PAGE.format('id')))} }} }}"
TRUSTED = {"hello": HELLO, "list": LIST, "record": RECORD, "long": LONG, "expensive": EXPENSIVE}


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def manifest(folder: Path, content: Any = TRUSTED, name: str = "manifest.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


async def verify(token: str) -> Caller:
    scopes = {"manage:encounters"} | ({"read:schema"} if token == "explorer" else set())
    return Caller(token, frozenset(scopes), brand_id="loop")


def serve_documents(
    database_url: str, documents: Path | None, policy: str, **changed: Any
) -> AbstractAsyncContextManager[Service]:
    chosen: dict[str, Any] = {"explorer": "scoped", "documents_policy": policy, **changed}
    return Service.running(
        Settings(database_url=database_url, documents=documents, rate_parsing_ms_per_minute=0, **chosen), verify
    )


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return manifest(tmp_path_factory.mktemp("documents"))


@pytest.fixture(scope="module")
async def with_log_policy(database_url: str, documents: Path) -> AsyncIterator[Service]:
    async with serve_documents(database_url, documents, "log") as running:
        yield running


@pytest.fixture(scope="module")
async def with_safelist_policy(database_url: str, documents: Path) -> AsyncIterator[Service]:
    async with serve_documents(database_url, documents, "safelist") as running:
        yield running


@pytest.fixture(scope="module")
async def with_enforce_policy(database_url: str, documents: Path) -> AsyncIterator[Service]:
    async with serve_documents(database_url, documents, "enforce") as running:
        yield running


@pytest.fixture(params=["log", "safelist", "enforce"])
def under_each_policy(
    request: pytest.FixtureRequest,
    with_log_policy: Service,
    with_safelist_policy: Service,
    with_enforce_policy: Service,
) -> Service:
    """A gateway with trusted documents, under each policy."""
    services: Mapping[str, Service] = {
        "log": with_log_policy,
        "safelist": with_safelist_policy,
        "enforce": with_enforce_policy,
    }
    return services[request.param]


async def post(service: Service, token: str = "reader", **members: Any) -> httpx2.Response:
    return await service.rest("POST", "/graphql", token=token, content=json.dumps(members), headers=HEADERS)


def violation(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code == 400
    (error,) = answer.json()["errors"]
    assert (error["extensions"]["code"], error["extensions"]["recorded"]) == ("validation_error", "no")
    (only_violation,) = error["extensions"]["violations"]
    assert MARKER not in answer.text
    return only_violation


# Execution by id


def apollo(document_id: str) -> dict[str, Any]:
    return {"extensions": {"persistedQuery": {"version": 1, "sha256Hash": document_id}}}


@pytest.mark.parametrize(
    "members",
    [
        {"documentId": "hello"},
        {"documentId": sha256(HELLO)},
        {"documentId": f"sha256:{sha256(HELLO)}"},
        {"doc_id": "hello"},
        {"id": "hello"},
        apollo("hello"),
        apollo(sha256(HELLO)),
        {"documentId": "hello", "query": "{ " + MARKER},
        {"documentId": "hello", "query": None, "operationName": "Hello", "variables": None},
    ],
    ids=str,
)
async def test_a_trusted_document_runs_by_its_id_over_post_and_get(
    under_each_policy: Service, members: dict[str, Any]
) -> None:
    posted = await post(under_each_policy, **members)
    parameters = {
        name: value if isinstance(value, str) else json.dumps(value) for name, value in members.items() if value
    }
    got = await under_each_policy.rest("GET", "/graphql", token="reader", params=parameters)

    assert posted.json() == got.json() == {"data": {"__typename": "Query"}}


async def test_a_trusted_document_takes_variables(under_each_policy: Service, cast: Cast) -> None:
    patient_id = await cast.patient()
    recorded = await post(
        under_each_policy,
        documentId="record",
        variables={"patientId": patient_id, "input": {"brandId": "loop", "encounterType": "LAB"}},
    )
    listed = await post(under_each_policy, documentId="list", variables={"id": patient_id})

    assert "encounter" in recorded.json()["data"]["recordEncounter"]
    assert listed.json()["data"]["patient"]["encounters"]["totalCount"] == 1


async def test_a_trusted_mutation_over_get_is_405(with_enforce_policy: Service) -> None:
    answer = await with_enforce_policy.rest("GET", "/graphql", token="reader", params={"documentId": "record"})

    assert answer.status_code == 405


async def test_a_trusted_document_runs_by_its_id_over_a_websocket(database_url: str, documents: Path) -> None:
    settings = Settings(database_url=database_url, documents=documents, documents_policy="enforce")
    async with GatewayServer.serving(settings, verify) as sockets, sockets.authenticated("reader") as websocket:
        for number, members in enumerate([{"documentId": "hello"}, apollo(sha256(HELLO))]):
            await websocket.send(type="subscribe", id=str(number), payload=members)
            assert await websocket.next(str(number)) == {"data": {"__typename": "Query"}}
            assert await websocket.receive() == {"type": "complete", "id": str(number)}

        assert (await websocket.refusal("{ __typename }"))["violations"][0]["rule"] == "unknown_document"


@needs_pages
@pytest.mark.parametrize("served", ["open", "off"])
async def test_the_documents_of_the_board_are_trusted_while_it_is_served(
    database_url: str, documents: Path, served: str
) -> None:
    ids = [document_id for document_id, text in read_manifest(BOARD_DOCUMENTS).items() if "query Viewer" in text]
    async with serve_documents(database_url, documents, "enforce", explorer=served) as service:
        answer = await post(service, **apollo(ids[0]))

    if served == "open":
        assert answer.json()["data"]["viewer"]["brandId"] == "loop"
    else:
        assert violation(answer)["rule"] == "unknown_document"


async def test_an_unknown_id_is_refused_and_the_message_names_the_policy(under_each_policy: Service) -> None:
    refusal = violation(await post(under_each_policy, documentId=MARKER))

    assert refusal["rule"] == "unknown_document"
    assert "policy: " in refusal["message"]


async def test_an_unknown_apollo_hash_is_persisted_query_not_found(under_each_policy: Service) -> None:
    answer = await post(under_each_policy, **apollo(sha256("{ nothing }")))

    assert answer.json()["errors"][0]["message"] == "PersistedQueryNotFound"
    assert violation(answer)["rule"] == "unknown_document"


async def test_without_trusted_documents_an_id_is_persisted_query_not_supported(service: Service) -> None:
    answer = await post(service, token="dev", **apollo(sha256("{ nothing }")))

    assert answer.json()["errors"][0]["message"] == "PersistedQueryNotSupported"
    assert violation(answer)["rule"] == "unknown_document"
    assert violation(await post(service, token="dev", documentId="hello"))["rule"] == "unknown_document"


async def test_sending_a_document_with_a_new_hash_does_not_register_it(with_log_policy: Service) -> None:
    new = {"query": "query New { __typename }"} | apollo(sha256("query New { __typename }"))

    assert (await post(with_log_policy, **new)).json() == {"data": {"__typename": "Query"}}
    assert (await post(with_log_policy, **apollo(sha256("query New { __typename }")))).status_code == 400


@pytest.mark.parametrize("document_id", [5, ["hello"], {}, False, "\x00", "\ud800"], ids=repr)
async def test_an_invalid_document_id_is_400(under_each_policy: Service, document_id: Any) -> None:
    forms = ({"documentId": document_id}, {"id": document_id}, apollo(document_id) | {"query": HELLO})
    pointers = [violation(await post(under_each_policy, **form))["pointer"] for form in forms]

    assert pointers == ["/documentId", "/id", "/extensions/persistedQuery/sha256Hash"]


async def test_id_and_doc_id_beside_a_query_are_ignored(service: Service) -> None:
    for name in ("id", "doc_id"):
        assert (await post(service, token="dev", query=HELLO, **{name: 5})).status_code == 200


# The policies


UNKNOWN = f'query Unknown {{ patient(id: "{MARKER}") {{ id }} }}'
REFORMATTED = f"# printed by a tool\n{print_ast(parse(LIST))}".replace("\n", "\r\n  ")


async def test_policy_log_runs_every_document_and_logs_hashes_of_unknown_ones(with_log_policy: Service) -> None:
    with captured_logs() as logs:
        answer = await post(with_log_policy, query=UNKNOWN)
        await post(with_log_policy, query=HELLO)
        await post(with_log_policy, documentId="hello")
        await post(with_log_policy, query=REFORMATTED, variables={"id": "x"})

    assert answer.json() == {"data": {"patient": None}}
    (line,) = [line for line in logs if line["event"] == "unknown_document"]
    assert (line["sha256"], line["client_id"]) == (sha256(UNKNOWN), "reader")
    assert MARKER not in str(logs)


@pytest.mark.parametrize("query", [HELLO, HELLO + "  ", REFORMATTED], ids=["identical", "with spaces", "reformatted"])
async def test_policy_safelist_runs_the_text_of_a_trusted_document(with_safelist_policy: Service, query: str) -> None:
    assert "errors" not in (await post(with_safelist_policy, query=query, variables={"id": "x"})).json()


@pytest.mark.parametrize("query", [UNKNOWN, f"{{ {MARKER} ", f"{{ {MARKER} }}", LONG.replace("a0", "b0")])
async def test_policy_safelist_refuses_other_documents(with_safelist_policy: Service, query: str) -> None:
    refusal = violation(await post(with_safelist_policy, query=query))

    assert refusal["rule"] == "unknown_document"
    assert "policy: safelist" in refusal["message"]


@pytest.mark.parametrize("query", [UNKNOWN, HELLO, "{"])
async def test_policy_enforce_refuses_every_document_sent_as_text(with_enforce_policy: Service, query: str) -> None:
    refusal = violation(await post(with_enforce_policy, query=query))

    assert refusal["rule"] == "unknown_document"
    assert "policy: enforce" in refusal["message"]


async def test_policy_safelist_ignores_the_order_of_definitions(database_url: str, tmp_path: Path) -> None:
    query, fragment = "query Q { ...F }", "fragment F on Query { __typename }"
    async with serve_documents(database_url, manifest(tmp_path, {"q": f"{fragment} {query}"}), "safelist") as service:
        assert (await post(service, query=f"{query} {fragment}")).json() == {"data": {"__typename": "Query"}}
        assert violation(await post(service, query=f"{query} {fragment.replace('F', 'G')}"))


# Limits


async def test_a_trusted_document_is_exempt_from_all_limits_but_the_cost(
    with_log_policy: Service, with_safelist_policy: Service, with_enforce_policy: Service
) -> None:
    by_id = {"documentId": "long"}
    for service, members in (
        (with_log_policy, {"query": LONG}),
        (with_safelist_policy, {"query": LONG + " "}),
        (with_enforce_policy, by_id),
    ):
        assert len((await post(service, **members)).json()["data"]) == 800

    untrusted = await post(with_log_policy, query=LONG.replace("a0", "b0"))
    assert untrusted.status_code == 400
    assert violation(await post(with_enforce_policy, documentId="expensive"))["rule"] == "cost"


# Exploring


@pytest.mark.parametrize("query", [get_introspection_query(), '{ __type(name: "Query") { name } __typename }'])
async def test_introspection_with_the_scope_runs_under_every_policy(under_each_policy: Service, query: str) -> None:
    assert "errors" not in (await post(under_each_policy, token="explorer", query=query)).json()
    assert (await post(under_each_policy, query=query)).status_code == 403


async def test_the_introspection_scope_allows_no_other_untrusted_field(
    with_enforce_policy: Service, with_safelist_policy: Service
) -> None:
    query = f'{{ __schema {{ queryType {{ name }} }} patient(id: "{MARKER}") {{ id }} }}'

    for service in (with_enforce_policy, with_safelist_policy):
        assert violation(await post(service, token="explorer", query=query))["rule"] == "unknown_document"


# Manifests

APOLLO = {
    "format": "apollo-persisted-query-manifest",
    "version": 1,
    "operations": [
        {"id": sha256(text), "body": text, "name": "Any", "type": "query", "clientName": None}
        for text in TRUSTED.values()
    ],
}
RELAY = {hashlib.md5(text.encode()).hexdigest(): text for text in TRUSTED.values()}


@pytest.mark.parametrize(
    ("content", "ids"),
    [(TRUSTED, list(TRUSTED)), (APOLLO, [sha256(text) for text in TRUSTED.values()]), (RELAY, list(RELAY))],
    ids=["plain", "Apollo's", "Relay's"],
)
def test_the_format_of_a_manifest_is_recognised_by_its_content(tmp_path: Path, content: Any, ids: list[str]) -> None:
    assert read_manifest(manifest(tmp_path, content)) == dict(zip(ids, TRUSTED.values(), strict=True))


def test_a_folder_may_contain_manifests_of_several_clients(tmp_path: Path) -> None:
    manifest(tmp_path, {"hello": HELLO}, "one.json")
    manifest(tmp_path, APOLLO, "two.json")
    manifest(tmp_path, "no manifest", "README.md")

    assert len(read_manifest(tmp_path)) == 1 + len(TRUSTED)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must be one JSON object"),
        ("{", "must be one JSON object"),
        ('{"a": "{ __typename }", "a": "{ __typename }"}', "duplicate_member"),
        ([["id", "text"]], "must be an object"),
        ("5", "must be an object"),
        ({}, "contains no document"),
        ({"a": 5}, "must have an id and a text"),
        ({"": "{ __typename }"}, "must have an id and a text"),
        ({"a": "\ud800"}, "must have an id and a text"),
        (APOLLO | {"version": 2}, "version 1"),
        (APOLLO | {"operations": {}}, "version 1"),
        (APOLLO | {"operations": ["x"]}, "must have an id and a text"),
        (APOLLO | {"operations": [{"id": "x"}]}, "must have an id and a text"),
    ],
    ids=str,
)
def test_an_invalid_manifest_is_refused_and_its_file_named(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UntrustedManifest, match=message) as mistake:
        read_manifest(manifest(tmp_path, content))

    assert str(mistake.value).startswith("manifest.json: ")


def test_a_missing_manifest_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UntrustedManifest, match=r"gone\.json: cannot be read \(No such file or directory\)"):
        read_manifest(tmp_path / "gone.json")
    with pytest.raises(UntrustedManifest, match="contains no document"):
        read_manifest(tmp_path)


def test_one_id_with_two_documents_is_refused(tmp_path: Path) -> None:
    manifest(tmp_path, {"a": HELLO}, "one.json")
    manifest(tmp_path, {"a": HELLO}, "same.json")
    assert read_manifest(tmp_path) == {"a": HELLO}

    manifest(tmp_path, {"a": LIST}, "two.json")
    with pytest.raises(UntrustedManifest, match=r"two\.json: the id a identifies two documents"):
        read_manifest(tmp_path)


# Start-up and `gateway check`

BROKEN = {
    "good": HELLO,
    "unknown-field": f'{{ nope(a: "{MARKER}") }}',
    "unfinished": "{ __typename",
    "empty": "# nothing",
}


def test_the_gateway_does_not_start_with_an_invalid_trusted_document(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as mistake:
        create_app(Settings(documents=manifest(tmp_path, BROKEN)))

    message = str(mistake.value)
    assert message.startswith("GATEWAY_DOCUMENTS: ")
    assert all(each in message for each in ("unknown-field: Cannot query field 'nope'", "unfinished: ", "empty: "))
    assert "good" not in message
    assert MARKER not in message


def test_check_reports_invalid_trusted_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    assert check(Settings(documents=manifest(tmp_path, BROKEN), data_dir=tmp_path, port=port)) == 1
    assert "unknown-field: Cannot query field 'nope'" in capsys.readouterr().out

    assert check(Settings(documents=manifest(tmp_path), data_dir=tmp_path, port=port)) == 0
    assert "The trusted documents can be served (policy: log)." in capsys.readouterr().out


@pytest.mark.parametrize("policy", ["safelist", "enforce"])
def test_a_policy_without_documents_is_refused(monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    monkeypatch.setenv("GATEWAY_DOCUMENTS_POLICY", policy)

    with pytest.raises(SettingsError, match="GATEWAY_DOCUMENTS: required with"):
        Settings.from_environment()
