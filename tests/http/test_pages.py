"""The HTML pages: content negotiation, caching, and modes; other requests are answered as without them."""

import gzip
import json
import re
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from gateway import pages
from gateway.settings import Settings
from rest.errors import status_of_kind
from rest.openapi import openapi
from rest.problem_pages import refusals
from tests.doors import Service
from tests.identity_provider import IdentityProvider

CHROME = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"
SAFARI = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
RESPONSE = "application/graphql-response+json"

VERSION = version("encounter-gateway")
REMEDIES = Path(__file__).parent.parent.parent / "web" / "src" / "refusals.json"

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
        loaded = re.findall(r'(?:src|href)="[.](/assets/[^"]+)"', text)
        assert loaded
        assert re.findall(r'(?:src|href)="(?:/|[a-z]+:(?!image/))[^"]*"', text) == []
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
    suffixes = {path.suffix for path in pages.ASSETS.iterdir()} - set(pages.ENCODINGS.values())

    assert suffixes <= pages.MEDIA_TYPES.keys()


# Compressed copies


class Script(NamedTuple):
    """A script of the pages, with its content in each coding; None is the content itself."""

    url: str
    contents: dict[str | None, bytes]


@pytest.fixture
def script() -> Script:
    """The script of the REST page."""
    path = next(pages.ASSETS.glob("docs-*.js"))
    copies = {coding: Path(f"{path}{ending}").read_bytes() for coding, ending in pages.ENCODINGS.items()}
    return Script(f"/assets/{path.name}", {None: path.read_bytes()} | copies)


@needs_pages
def test_every_large_asset_has_smaller_copies() -> None:
    large = [path for path in pages.ASSETS.iterdir() if path.suffix in pages.MEDIA_TYPES and path.stat().st_size > 1024]

    assert large
    for path in large:
        for ending in pages.ENCODINGS.values():
            assert Path(f"{path}{ending}").stat().st_size < path.stat().st_size


@needs_pages
@pytest.mark.parametrize(
    ("accept_encoding", "coding"),
    [
        ("gzip, deflate, br, zstd", "br"),
        ("gzip, br;q=0", "gzip"),
        ("gzip", "gzip"),
        ("br;q=0.5, gzip;q=0.8", "gzip"),
        ("GZIP", "gzip"),
        ("*", "br"),
        ("*, br;q=0", "gzip"),
        ("identity, br;q=0.5", None),
        ("br;q=0, gzip;q=0", None),
        ("identity", None),
        ("deflate", None),
        ("", None),
    ],
)
async def test_an_asset_is_sent_in_the_preferred_coding(
    service: Service, script: Script, accept_encoding: str, coding: str | None
) -> None:
    fields = {"accept-encoding": accept_encoding}
    answer = await get(service, script.url, **fields)

    assert answer.status_code == 200
    assert answer.headers.get("content-encoding") == coding
    assert answer.headers["vary"] == "Accept-Encoding"
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert answer.headers["content-length"] == str(len(script.contents[coding]))
    if coding != "br":  # The client of the tests decodes gzip, not Brotli.
        assert answer.content == script.contents[None]
    head = await service.rest("HEAD", script.url, token=None, headers=fields)
    assert (head.status_code, head.headers["content-length"]) == (200, answer.headers["content-length"])
    assert head.headers.get("content-encoding") == coding


@needs_pages
async def test_each_coding_of_an_asset_has_its_own_etag(service: Service, script: Script) -> None:
    etags = {
        coding: (await get(service, script.url, **{"accept-encoding": coding})).headers["etag"]
        for coding in ("br", "gzip", "identity")
    }

    assert len(set(etags.values())) == 3
    again = await get(service, script.url, **{"accept-encoding": "gzip", "if-none-match": etags["gzip"]})
    assert (again.status_code, again.content, again.headers["vary"]) == (304, b"", "Accept-Encoding")
    other = await get(service, script.url, **{"accept-encoding": "gzip", "if-none-match": etags["br"]})
    assert other.status_code == 200


@needs_pages
async def test_a_range_is_one_of_the_sent_coding(service: Service, script: Script) -> None:
    plain = await get(service, script.url, **{"accept-encoding": "identity", "range": "bytes=0-9"})
    compressed = await get(service, script.url, **{"accept-encoding": "br", "range": "bytes=0-9"})

    assert (plain.status_code, plain.content) == (206, script.contents[None][:10])
    assert "content-encoding" not in plain.headers
    assert (compressed.status_code, compressed.headers["content-encoding"]) == (206, "br")
    assert compressed.content == script.contents["br"][:10]
    assert compressed.headers["content-range"] == f"bytes 0-9/{len(script.contents['br'])}"


@needs_pages
def test_a_compressed_copy_has_the_content_of_the_asset(script: Script) -> None:
    assert gzip.decompress(script.contents["gzip"]) == script.contents[None]


@needs_pages
@pytest.mark.parametrize("ending", pages.ENCODINGS.values())
async def test_a_compressed_copy_has_no_address(service: Service, script: Script, ending: str) -> None:
    assert (await get(service, script.url + ending)).status_code == 401
    assert (await service.rest("GET", script.url + ending)).status_code == 404


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


@pytest.fixture(scope="module")
async def quiet(database_url: str, identity_provider: IdentityProvider) -> AsyncIterator[Service]:
    """A gateway that verifies tokens, with default settings otherwise: the pages are off."""
    settings = identity_provider.settings(introspection=True, database_url=database_url)
    async with Service.running(settings) as running:
        yield running


async def test_in_production_pages_are_off_by_default(quiet: Service) -> None:
    for path in ("/docs", "/graphql", "/assets/x.js"):
        assert (await get(quiet, path, accept=CHROME)).status_code == 401
    assert (await get(quiet, "/openapi.json")).status_code == 200


@pytest.mark.parametrize("accept", [CHROME, SAFARI, "text/html"])
async def test_in_production_a_browser_gets_a_start_page_without_data(quiet: Service, accept: str) -> None:
    answer = await get(quiet, "/", accept=accept)

    assert answer.status_code == 200
    assert is_page(answer)
    assert "An HTTP gateway that records patient encounters" in answer.text
    for secret in (VERSION, "demo-patient", "dev-loopbio", "/assets/", "<script"):
        assert secret not in answer.text
    assert answer.headers["content-security-policy"] == pages.POLICY["Content-Security-Policy"]
    again = await get(quiet, "/", accept=accept, **{"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304
    linked = re.findall(r'href="([a-z.]+)"', answer.text)
    assert linked == ["openapi.json", "healthz", "readyz"]
    for address in linked:
        assert (await get(quiet, f"/{address}")).status_code == 200


@pytest.mark.parametrize("accept", ["", "*/*", "application/json", "text/html;q=0.5, application/json"])
async def test_in_production_programs_get_no_start_page(quiet: Service, accept: str) -> None:
    answer = await get(quiet, "/", accept=accept)

    assert (answer.status_code, answer.json()["error"]) == (401, "unauthenticated")


async def test_in_development_mode_pages_can_be_switched_off(database_url: str) -> None:
    async with Service.running(Settings(database_url=database_url, explorer="off")) as closed:
        assert "GATEWAY_EXPLORER" in (await get(closed, "/", accept=CHROME)).text
        assert (await get(closed, "/docs", accept=CHROME)).status_code == 401
        refused = await closed.rest("GET", "/", headers={"accept": "application/json"})
        assert (refused.status_code, refused.json()["error"]) == (404, "not_found")


@needs_pages
async def test_the_start_page_has_the_version(production: Service) -> None:
    assert f'name="version" content="{VERSION}"' in (await get(production, "/", accept=CHROME)).text


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


def test_the_rest_page_has_a_remedy_for_each_refusal() -> None:
    described = openapi()["components"]["responses"]
    rows = json.loads(REMEDIES.read_text())

    assert [str(row["status"]) for row in rows] == list(described)
    for row in rows:
        assert row["remedy"]
        kinds = [kind for kind in refusals() if status_of_kind(kind) == row["status"] and kind.code in row["codes"]]
        assert {kind.code for kind in kinds} == set(row["codes"])
        example = described[str(row["status"])]["content"]["application/json"]["example"]
        assert example["error"] in row["codes"]
        assert row.get("recorded", example["recorded"]) == " or ".join(sorted({kind.recorded for kind in kinds}))
