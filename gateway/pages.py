"""HTML pages: the start page, the board, the explorer and the REST page, as built by `web/build.py`.

The pages contain no data and need no token. The browser requests the data with the token that the user enters. The
pages load nothing from other hosts, so they work without internet access.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.auth.development import DEVELOPMENT_BRANDS, DEVELOPMENT_PATIENTS
from gateway.settings import Settings
from resolvers.media_ranges import media_ranges

FOLDER = Path(__file__).parent / "web"
ASSETS = FOLDER / "assets"
BOARD_DOCUMENTS = FOLDER / "documents.json"
"""The manifest of the board's GraphQL documents, in the plain form."""

# Only the gateway's own resources are allowed. The editor, Monaco, adds inline styles.
POLICY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; worker-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
}

# Media types of the GraphQL door's responses.
DATA = ("application/graphql-response+json", "application/json", "text/event-stream", "application/*", "*/*")

# Not the operating system's table: with another media type for scripts, browsers would not run them.
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".ttf": "font/ttf",
}

# File name endings of the compressed copies that `web/vite.config.js` writes, the preferred content coding first.
ENCODINGS = {"br": ".br", "gzip": ".gz"}

# Pages of their own: they need no built file. The colours are those of web/src/look.css.
PLAIN = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Encounter gateway</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark;
  --ground: #f4f7f8; --ink: #14242b; --quiet: #51656e; --line: #d8e1e5; --link: #0b6e75 }
@media (prefers-color-scheme: dark) {
  :root { --ground: #0f171b; --ink: #e4edf0; --quiet: #a0b2ba; --line: #2b3a42; --link: #62cbc8 }
}
body { max-width: 42rem; margin: 0 auto; padding: 12vh 20px 40px; background: var(--ground); color: var(--ink);
  font: 17px/1.6 system-ui, sans-serif }
h1 { margin: 0 0 14px; font-size: clamp(27px, 5vw, 38px); line-height: 1.15; letter-spacing: -0.02em }
p { color: var(--quiet) }
a { color: var(--link) }
code { font: 0.88em ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere }
dl { display: grid; grid-template-columns: auto 1fr; gap: 8px 24px; margin: 28px 0; padding: 20px 0;
  border: solid var(--line); border-width: 1px 0 }
dt { font-weight: 600 }
dd { margin: 0 }
</style>
<main>
<h1>%s</h1>
%s
<dl>
<dt>REST</dt><dd><code>/v1/patients/{patient_id}/encounters</code></dd>
<dt>GraphQL</dt><dd><code>/graphql</code></dd>
<dt>Description</dt><dd><a href="openapi.json">OpenAPI 3.1 of the REST calls</a></dd>
<dt>Health</dt><dd><a href="healthz">/healthz</a>, <a href="readyz">/readyz</a></dd>
</dl>
%s
</main>
</html>
"""

WHAT_IT_IS = "An HTTP gateway that records patient encounters"

# Served at `/` where the pages are off. It names neither the version nor anything else about this installation.
CLOSED = PLAIN % (
    WHAT_IT_IS,
    "<p>Frontends use GraphQL, existing systems REST. Every call needs a bearer token of the identity provider.</p>",
    "<p>Board, explorer and REST page are not served here. <code>GATEWAY_EXPLORER</code> turns them on.</p>",
)

NOT_BUILT = PLAIN % (
    WHAT_IT_IS,
    "<p>The gateway runs, but this page was not built.</p>",
    """<p>The pages are built when the gateway is installed, with packages from the npm registry. They were not
available then. To build them, run <code>make pages</code> and restart the gateway.</p>""",
)


class Page:
    """An HTML page in memory."""

    def __init__(self, html: str) -> None:
        self._body = html.encode()
        self._etag = f'"{sha256(self._body).hexdigest()[:32]}"'

    async def answer(self, request: Request) -> Response:
        """Return the page, or 304 if the browser has it."""
        # The same URL answers programs in JSON.
        headers = {**POLICY, "ETag": self._etag, "Cache-Control": "no-cache", "Vary": "Accept"}
        known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if known & {self._etag, "*"}:
            return Response(None, 304, headers)
        return Response(self._body, 200, headers, "text/html")


class Assets(StaticFiles):
    """Static files whose names contain a digest of their content, so that browsers may cache them permanently.

    A compressed copy beside a file is sent to clients that accept its content coding.
    """

    def lookup_path(self, path: str) -> Any:
        """Return path and status of a file. A compressed copy has no URL of its own."""
        return ("", None) if path.endswith(tuple(ENCODINGS.values())) else super().lookup_path(path)

    def file_response(self, full_path: Any, stat_result: Any, scope: Scope, status_code: int = 200) -> Response:
        """Return a file or its compressed copy, or 304."""
        copies = {coding: Path(f"{full_path}{ending}") for coding, ending in ENCODINGS.items()}
        copies = {coding: path for coding, path in copies.items() if path.is_file()}
        coding = preferred_coding(Headers(scope=scope).get("accept-encoding", ""), copies)
        sent, status = (copies[coding], copies[coding].stat()) if coding else (full_path, stat_result)
        response = super().file_response(sent, status, scope, status_code)
        response.headers.update({**POLICY, "Cache-Control": "public, max-age=31536000, immutable"})
        if copies:
            response.headers["Vary"] = "Accept-Encoding"
        if response.status_code == 200:
            response.headers["Content-Type"] = MEDIA_TYPES[Path(full_path).suffix]
            if coding:
                response.headers["Content-Encoding"] = coding
        return response


def preferred_coding(accept_encoding: str, available: Mapping[str, Any]) -> str | None:
    """Return the content coding that an `Accept-Encoding` header prefers, or None for the file as it is.

    The order of `available` decides between equal qualities. A coding that the header does not name is not used.
    Source: RFC 9110, 12.5.3.
    """
    accepted = media_ranges(accept_encoding)
    best, quality = None, accepted.get("identity", 0.0)
    for coding in available:
        asked = accepted.get(coding, accepted.get("*", 0.0))
        if asked > quality or (asked == quality > 0 and best is None):
            best, quality = coding, asked
    return best


def built() -> bool:
    """Whether the pages were built."""
    return ASSETS.is_dir()


def page(name: str, settings: Settings) -> Page:
    """Return a page, with the version and, in development mode, its tokens; `NOT_BUILT` if the pages were not built."""
    if not built():
        return plain_page(NOT_BUILT, settings)
    development = escape(json.dumps(_development() if settings.development else []))
    html = (FOLDER / f"{name}.html").read_text().replace('content="[]"', f'content="{development}"')
    html = html.replace('name="version" content=""', f'name="version" content="{version("encounter-gateway")}"')
    if settings.documents:
        html = html.replace('name="documents" content="text"', 'name="documents" content="hash"')
    return Page(html)


def plain_page(html: str, settings: Settings) -> Page:
    """Return a page that needs no built file, with the paths that clients request."""
    return Page(html.replace("<code>/", f"<code>{settings.public_path}/"))


def explorer_for_browsers(settings: Settings, door: ASGIApp) -> ASGIApp:
    """Return the GraphQL door, wrapped in `ExplorerForBrowsers` if the pages are served."""
    return ExplorerForBrowsers(page("explorer", settings), door) if settings.explorer_pages else door


class ExplorerForBrowsers:
    """ASGI application that sends the explorer to browsers, and passes all other requests to the GraphQL door."""

    def __init__(self, explorer: Page, door: ASGIApp) -> None:
        self._explorer = explorer
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        answer = self._door
        if scope["method"] in {"GET", "HEAD"}:
            request = Request(scope)
            if _prefers_html(request.headers.get("accept", "")):
                answer = await self._explorer.answer(request)
        await answer(scope, receive, send)


def _prefers_html(accept: str) -> bool:
    """Whether an `Accept` header prefers HTML to all media types of the GraphQL door, as browsers do."""
    accepted = media_ranges(accept)
    return accepted.get("text/html", 0) > max(accepted.get(each, 0) for each in DATA)


def page_routes(settings: Settings) -> list[BaseRoute]:
    """Return the routes of all pages except the explorer, which shares the URL of the GraphQL door.

    If the pages are off, only `/` has one, for browsers. Links in pages are relative to `/`, so the public path without
    its final slash is redirected.
    """
    redirects = [Route(settings.public_path, _add_slash, methods=["GET"])] if settings.public_path else []
    if not settings.explorer_pages:
        return [Route("/", closed_to_programs(plain_page(CLOSED, settings)), methods=["GET"]), *redirects]
    return [
        *redirects,
        Route("/", page("index", settings).answer, methods=["GET"]),
        Route("/docs", page("docs", settings).answer, methods=["GET"]),
        Route("/board", page("board", settings).answer, methods=["GET"]),
        *([Mount("/assets", Assets(directory=ASSETS))] if built() else []),
    ]


def closed_to_programs(page: Page) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint that sends the page to browsers. To other clients the path does not exist."""

    async def answer(request: Request) -> Response:
        if not _prefers_html(request.headers.get("accept", "")):
            raise HTTPException(404)
        return await page.answer(request)

    return answer


async def _add_slash(request: Request) -> Response:
    return RedirectResponse(f"{request.url.path}/", 308)


def _development() -> list[dict[str, str]]:
    patients = {brand_id: patient_id for patient_id, brand_id in DEVELOPMENT_PATIENTS.items()}
    return [
        {"token": token, "brand": brand_id, "patient": patients[brand_id]}
        for token, brand_id in DEVELOPMENT_BRANDS.items()
    ]
