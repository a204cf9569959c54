"""HTML pages: the start page, the board, the explorer and the REST page, as built by `web/build.py`.

The pages contain no data and need no token. The browser requests the data with the token that the user enters. The
pages load nothing from other hosts, so they work without internet access.
"""

import json
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
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

NOT_BUILT = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Encounter gateway</title>
<style>
:root { color-scheme: light dark }
body { font: 17px/1.6 system-ui, sans-serif; max-width: 38rem; margin: 4rem auto; padding: 0 1rem }
</style>
<h1>The gateway runs, but this page was not built.</h1>
<p>The gateway serves REST at <code>/v1/patients/{patient_id}/encounters</code>, described at
<a href="/openapi.json"><code>/openapi.json</code></a>, and GraphQL at <code>/graphql</code>.</p>
<p>The pages are built when the gateway is installed, with packages from the npm registry, which were not available
then. To build them, run <code>make pages</code> and restart the gateway.</p>
</html>
"""


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
    """Static files whose names contain a digest of their content, so that browsers may cache them permanently."""

    def file_response(self, full_path: Any, *args: Any, **kwargs: Any) -> Response:
        """Return a file, or 304."""
        response = super().file_response(full_path, *args, **kwargs)
        response.headers.update({**POLICY, "Cache-Control": "public, max-age=31536000, immutable"})
        if response.status_code == 200:
            response.headers["Content-Type"] = MEDIA_TYPES[Path(full_path).suffix]
        return response


def built() -> bool:
    """Whether the pages were built."""
    return ASSETS.is_dir()


def page(name: str, settings: Settings) -> Page:
    """Return a page, with the development tokens in development mode; if the pages were not built, `NOT_BUILT`."""
    if not built():
        return Page(NOT_BUILT)
    development = escape(json.dumps(_development() if settings.development else []))
    html = (FOLDER / f"{name}.html").read_text().replace('content="[]"', f'content="{development}"')
    if settings.documents:
        html = html.replace('name="documents" content="text"', 'name="documents" content="hash"')
    return Page(html)


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
    """Return the routes of all pages except the explorer, which shares the URL of the GraphQL door."""
    if not settings.explorer_pages:
        return []
    return [
        Route("/", page("index", settings).answer, methods=["GET"]),
        Route("/docs", page("docs", settings).answer, methods=["GET"]),
        Route("/board", page("board", settings).answer, methods=["GET"]),
        *([Mount("/assets", Assets(directory=ASSETS))] if built() else []),
    ]


def _development() -> list[dict[str, str]]:
    patients = {brand_id: patient_id for patient_id, brand_id in DEVELOPMENT_PATIENTS.items()}
    return [
        {"token": token, "brand": brand_id, "patient": patients[brand_id]}
        for token, brand_id in DEVELOPMENT_BRANDS.items()
    ]
