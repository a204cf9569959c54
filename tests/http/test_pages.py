"""The HTML pages: content negotiation, caching, and modes; other requests are answered as without them."""

import json
import re
from collections.abc import AsyncIterator

import httpx2
import pytest

from gateway import pages
from gateway.settings import Settings
from rest.openapi import openapi
from tests.doors import Service
from tests.identity_provider import IdentityProvider

CHROME = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"
SAFARI = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
RESPONSE = "application/graphql-response+json"

needs_pages = pytest.mark.skipif(not pages.built(), reason="the pages are not built: make pages")


async def get(service: Service, path: str, **headers: str) -> httpx2.Response:
    return await service.rest("GET", path, token=None, headers=headers)


def is_page(answer: httpx2.Response) -> bool:
    return answer.headers["content-type"] == "text/html; charset=utf-8" and "<title>" in answer.text


# Content negotiation


@pytest.mark.parametrize("path", ["/", "/board", "/docs", "/graphql", "/graphql?query={__typename}"])
@pytest.mark.parametrize("accept", [CHROME, SAFARI])
async def test_a_browser_gets_a_page_without_a_token(service: Service, path: str, accept: str) -> None:
    answer = await get(service, path, accept=accept)

    assert answer.status_code == 200
    assert is_page(answer)


@pytest.mark.parametrize("accept", ["text/html", f"text/html, {RESPONSE};q=0.5", "TEXT/HTML;q=0.2, */*;q=0.1"])
async def test_a_preference_for_html_gets_the_explorer(service: Service, accept: str) -> None:
    assert is_page(await get(service, "/graphql", accept=accept))


@pytest.mark.parametrize(
    "accept",
    ["", "*/*", "application/json", RESPONSE, f"{RESPONSE}, text/html", "text/html, */*", "text/html;q=0", "image/png",
     "text/html;q=0.5, application/json", "text/*"],
)  # fmt: skip
@pytest.mark.parametrize("token", ["dev", None])
async def test_other_requests_are_answered_as_without_pages(service: Service, accept: str, token: str | None) -> None:
    answer = await service.rest(
        "GET", "/graphql", token=token, headers={"accept": accept}, params={"query": "{ __typename }"}
    )

    taken = accept not in {"text/html;q=0", "image/png", "text/*"}
    assert answer.status_code == (401 if token is None else 200 if taken else 406)
    assert "json" in answer.headers["content-type"]
    assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


async def test_a_post_is_never_answered_with_a_page(service: Service) -> None:
    answer = await service.rest("POST", "/graphql", headers={"accept": CHROME}, json={"query": "{ __typename }"})

    assert answer.json() == {"data": {"__typename": "Query"}}


# Headers and assets


@pytest.mark.parametrize("path", ["/", "/docs", "/graphql"])
async def test_a_page_is_revalidated_and_sent_only_if_it_changed(service: Service, path: str) -> None:
    answer = await get(service, path, accept=CHROME)
    etag = answer.headers["etag"]

    assert re.fullmatch(r'"[0-9a-f]{32}"', etag)
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["vary"] == "Accept"
    for tags in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = await get(service, path, accept=CHROME, **{"if-none-match": tags})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert (await get(service, path, accept=CHROME, **{"if-none-match": '"other"'})).status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/graphql"])
async def test_head_has_the_headers_of_get(service: Service, path: str) -> None:
    head = await service.rest("HEAD", path, token=None, headers={"accept": CHROME})
    answer = await get(service, path, accept=CHROME)

    assert head.status_code == 200
    for name in ("etag", "content-type", "content-length", "content-security-policy"):
        assert head.headers[name] == answer.headers[name]


@needs_pages
async def test_every_asset_is_served_here_and_cached_as_immutable(service: Service) -> None:
    for path in ("/", "/docs", "/graphql"):
        text = (await get(service, path, accept=CHROME)).text
        loaded = re.findall(r'(?:src|href)="(/assets/[^"]+)"', text)
        assert loaded
        assert re.findall(r'(?:src|href)="(?!/|data:)[^"]*"', text) == []
        for asset in loaded:
            answer = await get(service, asset)
            assert answer.status_code == 200
            assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
            assert answer.headers["content-security-policy"] == pages.POLICY["Content-Security-Policy"]
            assert answer.headers["content-type"] == pages.MEDIA_TYPES["." + asset.rpartition(".")[2]]
            again = await get(service, asset, **{"if-none-match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            head = await service.rest("HEAD", asset, token=None)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == answer.headers["content-length"]


@needs_pages
def test_every_file_has_a_media_type() -> None:
    assert {path.suffix for path in pages.ASSETS.iterdir()} <= pages.MEDIA_TYPES.keys()


@pytest.mark.parametrize("path", ["/assets/nope.js", "/assets/", "/assets/../pages.py", "/assets/%2e%2e/digest"])
async def test_an_unknown_path_is_refused_as_elsewhere(service: Service, path: str) -> None:
    assert (await get(service, path)).status_code == 401
    assert (await service.rest("GET", path)).json()["error"] == "not_found"


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json"])
async def test_another_method_is_refused_as_elsewhere(service: Service, path: str) -> None:
    answer = await service.rest("POST", path)

    assert (answer.status_code, answer.json()["error"]) == (405, "method_not_allowed")


@needs_pages
async def test_in_development_mode_a_page_has_the_development_tokens(service: Service) -> None:
    (content,) = re.findall(r'name="development" content="([^"]*)"', (await get(service, "/")).text)

    assert [each["token"] for each in json.loads(content.replace("&quot;", '"'))] == ["dev", "dev-loopbio"]


# Production


@pytest.fixture(scope="module")
async def production(database_url: str, identity_provider: IdentityProvider) -> AsyncIterator[Service]:
    """A gateway that verifies tokens, with the pages switched on."""
    settings = identity_provider.settings(introspection=True, database_url=database_url, explorer="scoped")
    async with Service.running(settings) as running:
        yield running


async def test_in_production_no_page_has_a_token(production: Service) -> None:
    for path in ("/", "/docs", "/graphql"):
        text = (await get(production, path, accept=CHROME)).text
        assert "dev-loopbio" not in text
        assert "demo-patient" not in text


async def test_in_production_pages_are_off_by_default(database_url: str, identity_provider: IdentityProvider) -> None:
    settings = identity_provider.settings(introspection=True, database_url=database_url)
    async with Service.running(settings) as quiet:
        for path in ("/", "/docs", "/graphql", "/assets/x.js"):
            assert (await get(quiet, path, accept=CHROME)).status_code == 401
        assert (await get(quiet, "/openapi.json")).status_code == 200


async def test_in_development_mode_pages_can_be_switched_off(database_url: str) -> None:
    async with Service.running(Settings(database_url=database_url, explorer="off")) as quiet:
        assert (await get(quiet, "/", accept=CHROME)).status_code == 401


async def test_without_built_pages_the_pages_say_so(database_url: str, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(pages, "ASSETS", tmp_path / "nothing")

    async with Service.running(Settings(database_url=database_url)) as bare:
        for path in ("/", "/docs", "/graphql"):
            answer = await get(bare, path, accept=CHROME)
            assert answer.status_code == 200
            assert "make pages" in answer.text
        assert (await bare.graphql("{ __typename }"))["data"] == {"__typename": "Query"}


# The OpenAPI description


async def test_the_description_is_public_and_has_the_configured_scopes(service: Service, database_url: str) -> None:
    answer = await get(service, "/openapi.json")

    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == openapi()
    scopes = {"record_encounter": ("write:visits",)}
    async with Service.running(Settings(database_url=database_url, scopes=scopes)) as other:
        assert "write:visits" in (await get(other, "/openapi.json")).text
