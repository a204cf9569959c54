"""An identity provider on loopback, whose answers a test sets.

Tokens are signed with `cryptography`, not with the library that verifies them.
"""

import asyncio
import base64
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Self
from urllib.parse import parse_qsl, unquote_plus

import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gateway.settings import Settings
from tests.background_server import BackgroundServer

ISSUER = "https://issuer.test"
AUDIENCE = "https://gateway.test"

CLIENT_ID = "gateway:one"
CLIENT_SECRET = "s3cret +/%:ä"  # characters that must be encoded in the header

Answer = Callable[[], Response]


class IdentityProvider:
    """An HTTP server with an introspection endpoint (`tokens`, by their text), a key set (`keys`) and metadata."""

    def __init__(self) -> None:
        self.port = 0
        self.reset()
        self._app = Starlette(
            routes=[
                Route("/introspect", self._introspect, methods=["POST"]),
                Route("/jwks", self._jwks),
                Route("/{path:path}", self._discover),
            ]
        )

    def reset(self) -> None:
        """Restore the initial state."""
        self.tokens: dict[str, Any] = {}
        self.keys: Any = []
        self.introspections = 0
        self.asked = asyncio.Event()
        """Set by the first introspection or discovery."""
        self.key_fetches = 0
        self.metadata: dict[str, Any] = {}
        """The members of the metadata that a test replaces; None removes one."""
        self.metadata_path = "/.well-known/openid-configuration"
        """The only path of the metadata; every other one is 404."""
        self.discoveries: list[str] = []
        """The paths of the requests for metadata."""
        self.cookies: list[str] = []
        """The cookies received."""
        self.answer: Answer | None = None
        """Replaces every regular answer."""
        self.may_answer = asyncio.Event()
        """Every answer waits until it is set."""
        self.may_answer.set()

    @property
    def issuer(self) -> str:
        """The issuer for discovery, without a path."""
        return f"http://127.0.0.1:{self.port}"

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator[Self]:
        """Start a provider, and stop it at the end."""
        provider = cls()
        await provider.start()
        try:
            yield provider
        finally:
            provider.may_answer.set()
            await provider.stop()

    async def start(self) -> None:
        """Listen, at the previous port if there was one."""
        listening = socket.create_server(("127.0.0.1", self.port))
        # uvicorn sends head and body separately. Without TCP_NODELAY, asyncio delays the body by 40 ms, until the head
        # is acknowledged.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = listening.getsockname()[1]
        self._server = BackgroundServer(uvicorn.Config(self._app, log_config=None, access_log=False, lifespan="off"))
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]))
        await self._server.listening.wait()

    async def stop(self) -> None:
        """Stop listening."""
        self._server.should_exit = self._server.force_exit = True
        await self._serving
        # The garbage collector would report unanswered requests in the middle of another test.
        unfinished = list(self._server.server_state.tasks)
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)

    @asynccontextmanager
    async def unavailable(self) -> AsyncIterator[None]:
        """Be unavailable for the block."""
        await self.stop()
        try:
            yield
        finally:
            await self.start()

    @asynccontextmanager
    async def with_fault(self, fault: str) -> AsyncIterator[None]:
        """Be `down`, `slow`, `failing` (500) or `invalid` (HTML) for the block."""
        if fault == "down":
            async with self.unavailable():
                yield
            return
        if fault == "slow":
            self.may_answer.clear()
        elif fault == "failing":
            self.answer = lambda: Response(status_code=500)
        else:
            self.answer = lambda: Response(b"<html>")
        yield
        self.may_answer.set()
        self.answer = None

    def settings(self, *, introspection: bool = False, jwt: bool = False, **more: Any) -> Settings:
        """Return the settings of a gateway that uses this provider.

        The timeout is long for a busy machine. Tests of timeouts set their own.
        """
        members: dict[str, Any] = {"identity_provider_seconds": 30}
        if introspection:
            members |= {
                "introspection_url": f"http://127.0.0.1:{self.port}/introspect",
                "introspection_client_id": CLIENT_ID,
                "introspection_client_secret": CLIENT_SECRET,
            }
        if jwt:
            members |= {
                "jwks_url": f"http://127.0.0.1:{self.port}/jwks",
                "jwt_issuer": ISSUER,
                "jwt_audience": AUDIENCE,
            }
        return Settings(**members | more)

    async def _introspect(self, request: Request) -> Response:
        self.introspections += 1
        self._note_cookies(request)
        self.asked.set()
        await self.may_answer.wait()
        if self.answer:
            return self.answer()
        if _credentials(request) != (CLIENT_ID, CLIENT_SECRET):
            return Response(status_code=401)
        assert request.headers["content-type"] == "application/x-www-form-urlencoded"
        form = dict(parse_qsl((await request.body()).decode(), strict_parsing=True))
        assert form["token_type_hint"] == "access_token"
        content = self.tokens.get(form["token"])
        return JSONResponse({"active": False} if content is None else {"active": True} | content)

    async def _jwks(self, request: Request) -> Response:
        self.key_fetches += 1
        self._note_cookies(request)
        await self.may_answer.wait()
        return self.answer() if self.answer else JSONResponse({"keys": self.keys})

    async def _discover(self, request: Request) -> Response:
        self.discoveries.append(request.url.path)
        self.asked.set()
        self._note_cookies(request)
        await self.may_answer.wait()
        if self.answer:
            return self.answer()
        if request.url.path != self.metadata_path:
            return Response(status_code=404)
        endpoints = {"jwks_uri": f"{self.issuer}/jwks", "introspection_endpoint": f"{self.issuer}/introspect"}
        members = {"issuer": self.issuer} | endpoints | self.metadata
        return JSONResponse({name: value for name, value in members.items() if value is not None})

    def _note_cookies(self, request: Request) -> None:
        if "cookie" in request.headers:
            self.cookies.append(request.headers["cookie"])


TIMEOUT_SECONDS = 2.0
"""Timeout of an endless response: longer than any regular one takes."""


def endless_response() -> Response:
    """Return a response that never ends."""

    async def spaces() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    return StreamingResponse(spaces())


def _credentials(request: Request) -> tuple[str, str]:
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    assert scheme == "Basic"
    client_id, _, secret = base64.b64decode(encoded).decode().partition(":")
    return unquote_plus(client_id), unquote_plus(secret)


# JSON Web Tokens


@dataclass(frozen=True)
class SigningKey:
    """A key pair of an issuer, for one algorithm."""

    algorithm: str
    private: Any
    kid: str | None

    def __str__(self) -> str:
        return f"{self.algorithm} {self.kid}"

    def sign(self, message: bytes) -> bytes:
        signature: bytes
        if self.algorithm == "RS256":
            signature = self.private.sign(message, padding.PKCS1v15(), SHA256())
        elif self.algorithm == "ES256":
            r, s = decode_dss_signature(self.private.sign(message, ec.ECDSA(SHA256())))
            signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        else:
            signature = self.private.sign(message)
        return signature

    @property
    def jwk(self) -> dict[str, Any]:
        """The public key, as it is published."""
        public = self.private.public_key()
        match public:
            case rsa.RSAPublicKey():
                numbers = public.public_numbers()
                members = {"kty": "RSA", "n": _whole(numbers.n, public.key_size // 8), "e": _whole(numbers.e, 3)}
            case ec.EllipticCurvePublicKey():
                point = public.public_numbers()
                members = {"kty": "EC", "crv": "P-256", "x": _whole(point.x, 32), "y": _whole(point.y, 32)}
            case _:
                members = {"kty": "OKP", "crv": "Ed25519", "x": encoded(public.public_bytes_raw())}
        return members if self.kid is None else members | {"kid": self.kid}


@cache
def signing_key(algorithm: str, kid: str | None = None, bits: int = 2048) -> SigningKey:
    """Return a key pair, the same for the same arguments."""
    private: Any
    match algorithm:
        case "RS256":
            private = rsa.generate_private_key(65537, bits)
        case "ES256":
            private = ec.generate_private_key(ec.SECP256R1())
        case _:
            private = ed25519.Ed25519PrivateKey.generate()
    return SigningKey(algorithm, private, kid)


def encoded(raw: bytes) -> str:
    """Encode bytes as base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _whole(number: int, size: int) -> str:
    return encoded(number.to_bytes(size, "big"))


def claims(now: float | None = None, **changes: Any) -> dict[str, Any]:
    """Return valid claims with changes; a claim whose change is None is left out."""
    issued_at = int(time.time() if now is None else now)
    good = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "nurse-1",
        "client_id": "app",
        "scope": "write:encounters read:encounters",
        "brand": "loop",
        "jti": "one",
        "iat": issued_at,
        "exp": issued_at + 300,
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def jwt(key: SigningKey, content: Mapping[str, Any] | bytes, **header: Any) -> str:
    """Sign a token. A header member that is None is left out."""
    members = {"alg": key.algorithm, "typ": "at+jwt", "kid": key.kid} | header
    head = {name: value for name, value in members.items() if value is not None}
    payload = content if isinstance(content, bytes) else json.dumps(content).encode()
    message = f"{encoded(json.dumps(head).encode())}.{encoded(payload)}"
    return f"{message}.{encoded(key.sign(message.encode()))}"


@dataclass
class FakeClock:
    """A clock that a test sets. `ran` counts only the time in which the machine was awake."""

    now: float = 1_800_000_000.0
    ran: float = 0.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.ran

    def advance(self, seconds: float) -> None:
        """Advance the clock."""
        self.now += seconds
        self.ran += seconds

    def suspend(self, seconds: float) -> None:
        """Advance the clock while the machine is suspended."""
        self.now += seconds
