"""Raw connections to a gateway process: pipelining, slow and misbehaving clients, malformed HTTP."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests import citus
from tests.cast import Cast

ROOT = Path(__file__).parents[2]
VISIT = '{"brand_id": "loop", "encounter_type": "lab"}'
ENCOUNTERS = "/v1/patients/nobody/encounters"
BODY_SECONDS = 0.5
MARKER = "tuberculosis"
MEGABYTE = 2**20
UPGRADE = (
    b"GET /graphql HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n"
)


@dataclass
class Gateway:
    """A gateway process: its port, and the file of its log."""

    port: int
    log: Path

    def logged(self, request_id: str) -> list[dict[str, Any]]:
        """Return the log lines of a request, waiting for the first."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            written = self.log.read_text().splitlines(keepends=True)
            lines = [json.loads(line) for line in written if request_id in line and line.endswith("\n")]
            if any(line["event"] == "request" for line in lines):
                return lines
        raise AssertionError("no log line in time")


@pytest.fixture(scope="module")
def gateway(database_url: str) -> Iterator[Gateway]:
    """`gateway serve` as an operator starts it, on a free port."""
    settings = {
        "GATEWAY_DATABASE_URL": database_url,
        "GATEWAY_DATABASE_UNSAFE": "true",
        "GATEWAY_PORT": "0",
        "GATEWAY_BODY_SECONDS": str(BODY_SECONDS),
    }
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    # Read through its name: a shared file offset would move the position at which the gateway writes.
    with tempfile.NamedTemporaryFile("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve"],
            cwd=ROOT,
            env=surroundings | dict(citus.for_gateway(settings)),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        with process:
            assert process.stdout is not None
            first_line = process.stdout.readline()
            yield Gateway(int(first_line.split("/v1/")[0].rsplit(":", 1)[1]), Path(log.name))
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0


@contextmanager
def connected(gateway: Gateway) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as client:
        yield client


def head(method: str, path: str, *headers: str, token: str | None = "dev") -> bytes:
    """Return the head of a request."""
    who = [] if token is None else [f"Authorization: Bearer {token}"]
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *who, *headers, "", ""]).encode()


def posted(path: str, body: str | bytes = VISIT, *headers: str, length: int | None = None) -> bytes:
    """Return a POST, with `length` as its Content-Length if given."""
    content = body.encode() if isinstance(body, str) else body
    announced = len(content) if length is None else length
    return head("POST", path, "Content-Type: application/json", f"Content-Length: {announced}", *headers) + content


@dataclass
class Answer:
    """A received response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def read(client: socket.socket) -> Answer:
    """Read one response and not a byte more."""
    raw = b""
    while not raw.endswith(b"\r\n\r\n"):
        byte = client.recv(1)
        assert byte, f"the connection ended within a head: {raw!r}"
        raw += byte
    status_line, *lines = raw.decode("latin-1").strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = b""
    while missing := int(headers.get("content-length", "0")) - len(body):
        piece = client.recv(missing)
        assert piece, "the connection ended within a body"
        body += piece
    return Answer(int(status_line.split()[1]), headers, body)


def ask(gateway: Gateway, request: bytes) -> Answer:
    with connected(gateway) as client:
        client.sendall(request)
        return read(client)


def closed(client: socket.socket) -> bool:
    """Whether the gateway closes the connection before the longest body timeout."""
    client.settimeout(BODY_SECONDS + 2)
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


# Size


def test_a_content_length_of_50_mb_is_refused_before_the_body(gateway: Gateway) -> None:
    with connected(gateway) as client:
        client.sendall(posted(ENCOUNTERS, "", "Expect: 100-continue", length=50 * MEGABYTE))
        answer = read(client)

        assert (answer.status, answer.json["error"]) == (413, "payload_too_large")
        assert answer.headers["connection"] == "close"
        assert closed(client)


def chunk(size: int) -> bytes:
    return b"%x\r\n" % size + b"x" * size + b"\r\n"


def chunked(path: str) -> bytes:
    return head("POST", path, "Content-Type: application/json", "Transfer-Encoding: chunked")


@pytest.mark.parametrize("path", [ENCOUNTERS, "/graphql"])
def test_a_chunk_over_the_limit_is_413_before_the_next_chunk(gateway: Gateway, path: str) -> None:
    answer = ask(gateway, chunked(path) + chunk(256 * 1024 + 1))

    assert (answer.status, answer.headers["connection"]) == (413, "close")


@pytest.mark.parametrize(
    "request_bytes",
    [posted(ENCOUNTERS, b"x" * 50 * MEGABYTE), chunked("/graphql") + chunk(MEGABYTE) * 50],
    ids=["announced", "not announced"],
)
def test_a_client_that_sends_50_mb_before_it_reads_still_gets_413(gateway: Gateway, request_bytes: bytes) -> None:
    assert ask(gateway, request_bytes).status == 413


def test_an_endless_body_is_cut_off(gateway: Gateway) -> None:
    sent = 0

    with connected(gateway) as client:
        client.sendall(chunked(ENCOUNTERS))
        try:
            while sent < 500 * MEGABYTE:
                client.sendall(chunk(MEGABYTE))
                sent += MEGABYTE
        except ConnectionError:
            pass

    # The gateway reads up to 64 MiB so that the client can read the answer; the rest is in the buffers of two kernels.
    assert sent < 100 * MEGABYTE


# Duration


@pytest.mark.parametrize(
    "request_head",
    [
        posted(ENCOUNTERS, VISIT[:20], length=40),
        posted(ENCOUNTERS, "", length=40),
        head("POST", ENCOUNTERS, "Content-Type: application/json", "Transfer-Encoding: chunked") + b"5\r\nabc",
        posted("/graphql", '{"query":', length=40),
    ],
    ids=["half a body", "no body", "half a chunk", "graphql"],
)
def test_a_stalled_body_is_408_after_the_configured_seconds(gateway: Gateway, request_head: bytes) -> None:
    with connected(gateway) as client:
        started = time.monotonic()
        client.sendall(request_head)
        answer = read(client)
        took = time.monotonic() - started

        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert BODY_SECONDS <= took < BODY_SECONDS + 2
        assert closed(client)


def test_a_body_that_arrives_byte_by_byte_is_408(gateway: Gateway) -> None:
    with connected(gateway) as client:
        client.sendall(posted(ENCOUNTERS, "", length=200_000))
        client.settimeout(0.05)
        answer = b""
        started = time.monotonic()
        while not answer and time.monotonic() - started < BODY_SECONDS + 2:
            client.sendall(b" ")
            try:
                answer = client.recv(100)
            except TimeoutError:
                continue

    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("path", [ENCOUNTERS, "/graphql"])
def test_a_disconnect_during_the_body_logs_one_line_and_no_error(gateway: Gateway, path: str) -> None:
    request_id = f"hang-up-{path.count('/')}"

    with connected(gateway) as client:
        client.sendall(posted(path, VISIT[:20], f"X-Request-Id: {request_id}", length=40))

    (line,) = gateway.logged(request_id)
    assert (line["level"], line["status"]) == ("info", None)


async def test_a_disconnect_during_the_body_records_nothing(gateway: Gateway, cast: Cast) -> None:
    patient_id = await cast.patient()

    with connected(gateway) as client:
        client.sendall(
            posted(f"/v1/patients/{patient_id}/encounters", VISIT[:-1], "X-Request-Id: gone", length=len(VISIT))
        )

    gateway.logged("gone")
    assert await cast.rows(patient_id) == []


async def test_a_disconnect_after_the_body_records(gateway: Gateway, cast: Cast) -> None:
    patient_id = await cast.patient()

    with connected(gateway) as client:
        client.sendall(posted(f"/v1/patients/{patient_id}/encounters", VISIT, "X-Request-Id: sent"))

    (line,) = gateway.logged("sent")
    assert line["level"] == "info"
    assert len(await cast.rows(patient_id)) == 1


# Responses before the body has arrived: the connection must not wait for the rest


@pytest.mark.parametrize(
    ("status", "request_head"),
    [
        (401, head("POST", ENCOUNTERS, "Content-Type: application/json", "Content-Length: 1000", token=None)),
        (404, head("POST", "/nowhere", "Content-Length: 1000")),
        (405, head("PUT", ENCOUNTERS, "Content-Length: 1000")),
        (415, head("POST", ENCOUNTERS, "Content-Type: text/plain", "Content-Length: 1000")),
        (401, head("POST", "/graphql", "Content-Type: application/json", "Content-Length: 1000", token=None)),
        (200, head("GET", "/healthz", "Content-Length: 1000", token=None)),
    ],
    ids=["401", "404", "405", "415", "graphql", "healthz"],
)
def test_a_connection_closes_if_its_request_body_was_not_read(
    gateway: Gateway, status: int, request_head: bytes
) -> None:
    with connected(gateway) as client:
        client.sendall(request_head + b"x" * 10)
        assert read(client).status == status

        try:
            client.sendall(b"x" * 10)
        except ConnectionError:
            return
        assert closed(client)


def test_a_post_that_offers_a_websocket_is_answered_or_closed(gateway: Gateway) -> None:
    with connected(gateway) as client:
        client.sendall(posted("/graphql", '{"query": "{ __typename }"}', "Connection: Upgrade", "Upgrade: websocket"))
        client.settimeout(BODY_SECONDS + 0.5)

        assert client.recv(100)[:9] in {b"", b"HTTP/1.1 "}


@pytest.mark.parametrize("offered", ["websocket", "h2c, websocket", "TLS/1.0"])
def test_an_ignored_upgrade_does_not_lose_the_body(gateway: Gateway, offered: str) -> None:
    request = posted("/graphql", '{"query": "{ __typename }"}', "Connection: Upgrade", f"Upgrade: {offered}")

    with connected(gateway) as client:
        client.sendall(request + head("GET", "/healthz"))

        assert [read(client).status, read(client).status] == [200, 200]


def test_the_h2c_upgrade_of_java_does_not_lose_the_body(gateway: Gateway) -> None:
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA")

    assert ask(gateway, posted("/graphql", '{"query": "{ __typename }"}', *offer)).status == 200


# Paths


@pytest.mark.parametrize(
    "patient_id", ["%00", "%ff", "%ed%a0%80", "a%2Fb", "%2F", "%0a", "%", "%zz", "..", "a" * 8_000]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_impossible_id_is_404_in_any_encoding(gateway: Gateway, method: str, patient_id: str) -> None:
    path = f"/v1/patients/{patient_id}/encounters"

    answer = ask(gateway, posted(path) if method == "POST" else head("GET", path))

    assert (answer.status, answer.json["error"]) == (404, "not_found")


async def test_an_id_outside_ascii_is_found_by_its_percent_encoding(gateway: Gateway, cast: Cast) -> None:
    patient_id = uuid4().hex
    await cast.connection.execute(
        "INSERT INTO patient_graph.patients (id, brand_id) VALUES ($1, 'loop')", f"é{patient_id}"
    )

    answer = ask(gateway, head("GET", f"/v1/patients/%C3%A9{patient_id}/encounters"))

    assert (answer.status, answer.json["patient_id"]) == (200, f"é{patient_id}")


@pytest.mark.parametrize(
    "ending", ["%2F", "/", "%00", "%20", ";x", ".json", "%0A", "%0D", "%0D%0A", "%0B", "%1F", "%7F"]
)
@pytest.mark.parametrize(
    "path",
    ["/v1/patients/demo-patient/encounters", "/graphql", "/healthz", "/readyz", "/openapi.json", "/metrics", "/docs"],
)
def test_a_path_with_a_suffix_is_another_path(gateway: Gateway, path: str, ending: str) -> None:
    answer = ask(gateway, head("GET", path + ending))

    assert answer.status == 404


def test_a_websocket_path_with_a_line_break_is_refused(gateway: Gateway) -> None:
    assert ask(gateway, UPGRADE.replace(b"/graphql", b"/graphql%0A")).status == 403


# One connection, several requests


def test_pipelined_requests_are_answered_in_order(gateway: Gateway) -> None:
    ids = ["one", "two", "three", "four"]
    requests = [
        posted(ENCOUNTERS, VISIT, "X-Request-Id: one"),
        head("GET", ENCOUNTERS, "X-Request-Id: two"),
        posted("/graphql", '{"query": "{ __typename }"}', "X-Request-Id: three"),
        head("GET", "/nowhere", "X-Request-Id: four", token=None),
    ]

    with connected(gateway) as client:
        client.sendall(b"".join(requests))
        answers = [read(client) for _ in requests]

    assert [answer.status for answer in answers] == [404, 404, 200, 401]
    assert [answer.headers["x-request-id"] for answer in answers] == ids


def test_a_refusal_after_the_body_was_read_keeps_the_connection(gateway: Gateway) -> None:
    with connected(gateway) as client:
        for body in ("{", "[]", VISIT):
            client.sendall(posted(ENCOUNTERS, body))
            assert read(client).status in {400, 404}


def test_head_sends_no_body_and_the_next_answer_follows(gateway: Gateway) -> None:
    with connected(gateway) as client:
        client.sendall(head("HEAD", "/healthz") + head("GET", "/healthz", "Connection: close"))
        answers = b""
        while piece := client.recv(65_536):
            answers += piece

    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert answers.count(b'{"status":"ok"}') == 1


def everything(client: socket.socket) -> bytes:
    """Read until the gateway closes the connection."""
    received = b""
    try:
        while piece := client.recv(65_536):
            received += piece
    except ConnectionError:
        pass
    return received


def keyed(patient_id: str, body: str = VISIT) -> bytes:
    """Return a recording under a new key."""
    return posted(f"/v1/patients/{patient_id}/encounters", body, f"Idempotency-Key: {uuid4()}")


BROKEN = {
    "a chunk": lambda: chunked("/graphql") + b"ZZ\r\n",
    "a trailer": lambda: chunked("/graphql") + b"0\r\nno field\r\n\r\n",
    "a large trailer": lambda: chunked("/graphql") + b"0\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
    "many trailer fields": lambda: chunked("/graphql") + b"0\r\n" + b"X: a\r\n" * 101 + b"\r\n",
    "two lengths": lambda: posted("/graphql", VISIT, "Transfer-Encoding: chunked"),
    "another coding": lambda: head("POST", "/graphql", "Transfer-Encoding: gzip, chunked"),
    "no host": lambda: b"GET /healthz HTTP/1.1\r\n\r\n",
    "another version": lambda: b"GET /healthz HTTP/2.0\r\nHost: localhost\r\n\r\n",
    "a large head": lambda: head("GET", "/healthz", f"X: {'a' * 40_000}"),
    "not HTTP": lambda: b"\x16\x03\x01\r\n",
}


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_recording_is_answered_before_an_invalid_request_behind_it(
    gateway: Gateway, cast: Cast, broken: str
) -> None:
    patient_id = await cast.patient()

    with connected(gateway) as client:
        client.sendall(keyed(patient_id) + BROKEN[broken]())
        received = everything(client)

    assert received.startswith(b"HTTP/1.1 201 ")
    assert received.count(b"HTTP/1.1 ") == 1
    assert len(await cast.rows(patient_id)) == 1


async def test_a_refusal_is_sent_once(gateway: Gateway) -> None:
    unknown = head("POST", ENCOUNTERS, "Content-Type: application/json", "Transfer-Encoding: chunked", token=None)

    for pieces in ([unknown + b"ZZ\r\n"], [unknown, b"ZZ\r\n"], [unknown + b"0\r\nX", b": a", b"\r\nno field\r\n"]):
        with connected(gateway) as client:
            received = b""
            for piece in pieces:
                client.sendall(piece)
            received = everything(client)
        assert received[:12] in {b"HTTP/1.1 400", b"HTTP/1.1 401"}
        assert received.count(b"HTTP/1.1 ") == 1


async def test_an_incomplete_head_after_a_large_body_is_waited_for(gateway: Gateway, cast: Cast) -> None:
    patient_id = await cast.patient()
    large = json.dumps({"brand_id": "loop", "encounter_type": "lab", "notes": "x" * 39_000})
    second = keyed(patient_id)

    with connected(gateway) as client:
        client.sendall(keyed(patient_id, large) + second[:100])
        first = read(client)
        client.sendall(second[100:])
        answers = [first.status, read(client).status]

    assert answers == [201, 201]
    assert len(await cast.rows(patient_id)) == 2


async def test_a_thousand_requests_in_one_segment_are_answered_in_order(gateway: Gateway) -> None:
    requests = [head("GET", "/healthz", f"X-Request-Id: n-{number}", token=None) for number in range(1_000)]
    requests[-1] = requests[-1].replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")

    with connected(gateway) as client:
        client.sendall(b"".join(requests))
        received = everything(client).decode()

    assert re.findall(r"x-request-id: n-(\d+)", received) == [f"{number}" for number in range(1_000)]


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 50])
async def test_a_chunked_body_may_have_chunks_of_any_size(gateway: Gateway, cast: Cast, cut: int) -> None:
    patient_id = await cast.patient()
    size = len(VISIT) // 2
    path = f"/v1/patients/{patient_id}/encounters"
    sent = (
        chunked(path)
        + b"%x;name=value\r\n%b\r\n" % (size, VISIT[:size].encode())
        + b"%X\r\n%b\r\n" % (len(VISIT) - size, VISIT[size:].encode())
        + b"0\r\nX-Checksum: 1\r\n\r\n"
    )

    with connected(gateway) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(sent), cut):
            client.sendall(sent[start : start + cut])
        statuses = [read(client).status]
        client.sendall(head("GET", path))
        statuses.append(read(client).status)

    assert statuses == [201, 200]


# Trailers: bounded, and never header fields (RFC 9110, 6.5.1)


def with_trailer(path: str, *fields: str, head_fields: Sequence[str] = (), token: str | None = "dev") -> list[bytes]:
    """Return a chunked recording in two parts: up to the last chunk, and from it on."""
    begun = head("POST", path, "Transfer-Encoding: chunked", *head_fields, token=token)
    trailer = "".join(f"{field}\r\n" for field in fields).encode()
    return [begun + b"%x\r\n%b\r\n" % (len(VISIT), VISIT.encode()), b"0\r\n" + trailer + b"\r\n"]


JSON = "Content-Type: application/json"


@pytest.mark.parametrize("together", [True, False], ids=["in one segment", "later"])
@pytest.mark.parametrize(
    "case",
    [
        ("Authorization: Bearer dev", [JSON], None, 401),
        ("Authorization: Bearer worthless", [JSON], "dev", 201),
        ("Content-Type: application/json", [], "dev", 415),
        ("Content-Type: text/plain", [JSON], "dev", 201),
        ("X-Brand-Id: loopbio", [JSON], "dev", 201),
        ("Host: elsewhere", [JSON], "dev", 201),
        ("X-Forwarded-For: 192.0.2.1", [JSON], "dev", 201),
        ("Content-Length: 5", [JSON], "dev", 201),
        ("Transfer-Encoding: gzip", [JSON], "dev", 201),
        ("Connection: close", [JSON], "dev", 201),
        ("Origin: https://elsewhere.example", [JSON], "dev", 201),
        ("Prefer: handling=strict", [JSON], "dev", 201),
    ],
)
async def test_a_trailer_field_is_no_header_field(
    gateway: Gateway, cast: Cast, case: tuple[str, list[str], str | None, int], together: bool
) -> None:
    field, head_fields, token, status = case
    path = f"/v1/patients/{await cast.patient()}/encounters"
    pieces = with_trailer(path, field, head_fields=head_fields, token=token)

    with connected(gateway) as client:
        for piece in [b"".join(pieces)] if together else pieces:
            client.sendall(piece)
        answer = read(client)
        assert answer.status == status
        if answer.headers.get("connection") != "close":
            client.sendall(head("GET", path))
            assert read(client).status == 200


@pytest.mark.parametrize("together", [True, False], ids=["in one segment", "later"])
async def test_a_key_in_a_trailer_is_no_key(gateway: Gateway, cast: Cast, together: bool) -> None:
    patient_id = await cast.patient()
    pieces = with_trailer(f"/v1/patients/{patient_id}/encounters", f"Idempotency-Key: {patient_id}", head_fields=[JSON])

    with connected(gateway) as client:
        for _ in range(2):
            for piece in [b"".join(pieces)] if together else pieces:
                client.sendall(piece)
            assert read(client).status == 201

    assert len(await cast.rows(patient_id)) == 2


@pytest.mark.parametrize(
    ("status", "fields"),
    [(431, [f"X: {'a' * 9_000}"]), (431, ["X: a"] * 101), (400, ["no field"]), (400, ["X : a"]), (400, ["X: \x00"])],
    ids=["large", "many", "no field", "white space", "control character"],
)
async def test_an_invalid_or_too_large_trailer_is_refused_and_nothing_recorded(
    gateway: Gateway, cast: Cast, status: int, fields: list[str]
) -> None:
    patient_id = await cast.patient()
    head_fields = [JSON, f"X-Request-Id: {patient_id}"]
    pieces = with_trailer(f"/v1/patients/{patient_id}/encounters", *fields, head_fields=head_fields)

    with connected(gateway) as client:
        client.sendall(b"".join(pieces))
        answer = read(client)
        assert everything(client) == b""

    assert (answer.status, answer.json["recorded"]) == (status, "no")
    assert [line["level"] for line in gateway.logged(patient_id)] == ["info"]
    assert await cast.rows(patient_id) == []


# Fields, versions and codings


@pytest.mark.parametrize("space", [" ", "\t", " \t \t"], ids=["space", "tab", "many"])
async def test_white_space_around_a_field_value_is_removed(gateway: Gateway, cast: Cast, space: str) -> None:
    patient_id = await cast.patient()
    answers = []

    for around in ("", space):
        fields = [f"{name}:{around}{value}{around}" for name, value in {
            "Host": "localhost",
            "Authorization": "Bearer dev",
            "X-Brand-Id": "loop",
            "Idempotency-Key": patient_id,
            "Content-Type": "application/json",
            "Content-Encoding": "identity",
            "Content-Length": f"{len(VISIT)}",
            "X-Request-Id": patient_id,
            "Accept": "application/json",
        }.items()]  # fmt: skip
        request = "\r\n".join([f"POST /v1/patients/{patient_id}/encounters HTTP/1.1", *fields, "", VISIT])
        answers.append(ask(gateway, request.encode()))

    first, again = answers
    assert (first.status, again.status, again.body) == (201, 201, first.body)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["x-request-id"] == patient_id


@pytest.mark.parametrize(
    "request_line", ["GET / HTTP/2.0", "GET / HTTP/0.9", "GET / HTTP/1.2", "GET / HTTP/3", "GET /", "PRI * HTTP/2.0"]
)
def test_an_unsupported_http_version_is_505(gateway: Gateway, request_line: str) -> None:
    answer = ask(gateway, f"{request_line}\r\nHost: localhost\r\n\r\n".encode())

    assert (answer.status, answer.json["error"]) == (505, "http_version_not_supported")
    assert (answer.json["recorded"], answer.headers["connection"]) == ("no", "close")


@pytest.mark.parametrize("request_line", ["GET / RTSP/1.0", "GET / http/1.1", "get", "GE T / HTTP/1.1"])
def test_an_invalid_request_line_is_400(gateway: Gateway, request_line: str) -> None:
    answer = ask(gateway, f"{request_line}\r\nHost: localhost\r\n\r\n".encode())

    assert (answer.status, answer.json["error"]) == (400, "bad_request")


@pytest.mark.parametrize(
    "coding", ["gzip, chunked", "gzip", "identity", "chunked, gzip", "chunked, chunked", "xchunked"]
)
async def test_another_transfer_coding_is_501_and_nothing_is_recorded(
    gateway: Gateway, cast: Cast, coding: str
) -> None:
    patient_id = await cast.patient()
    path = f"/v1/patients/{patient_id}/encounters"
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(VISIT), VISIT.encode())

    answer = ask(gateway, head("POST", path, JSON, f"Transfer-Encoding: {coding}") + body)

    assert answer.status in {400, 501}
    assert answer.json["recorded"] == "no"
    assert await cast.rows(patient_id) == []


def test_chunks_over_http_1_0_are_refused(gateway: Gateway) -> None:
    request = chunked("/graphql").replace(b"HTTP/1.1", b"HTTP/1.0")

    assert ask(gateway, request + b"0\r\n\r\n").status == 400


def test_invalid_http_is_refused_and_not_repeated_in_the_log(gateway: Gateway) -> None:
    answer = ask(gateway, f"{MARKER} please\r\n\r\n".encode())

    assert answer.status == 400
    assert MARKER not in answer.body.decode() + gateway.log.read_text()


def test_a_request_with_two_lengths_is_refused(gateway: Gateway) -> None:
    answer = ask(gateway, posted(ENCOUNTERS, VISIT, "Transfer-Encoding: chunked"))

    assert (answer.status, answer.headers["connection"]) == (400, "close")
