"""Rate limits: shared by both doors, reported in headers, ordered among other checks, and shared in Redis."""

import asyncio
import contextlib
import json
import re
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.rate_limits import redis_window
from gateway.rate_limits.limiter import network_of
from gateway.rate_limits.redis_window import TIMEOUT_SECONDS
from gateway.settings import Settings
from resolvers.access import Caller
from resolvers.errors import InvalidToken
from tests.cast import Cast
from tests.doors import RECORD, Service
from tests.logs import captured_logs
from tests.websocket_client import GatewayServer

UNKNOWN_PATIENT = "/v1/patients/nobody/encounters"
JSON = {"content-type": "application/json"}
VISIT = '{"brand_id": "loop", "encounter_type": "lab"}'
LOOK = "{ __typename }"
WRITE = 'mutation { recordEncounter(patientId: "nobody", input: {brandId: "loop", encounterType: LAB}) { __typename } }'

REDIS_SERVER = Path("/usr/bin/redis-server")
DEADLINE_SECONDS = 10


async def verify(token: str) -> Caller:
    """Return a caller whose client is the token; `reader` may only read, `bad` is invalid."""
    if token.startswith("bad"):
        raise InvalidToken
    scopes = {"read:encounters"} if token == "reader" else {"admin:*"}
    return Caller(client_id=token, brand_id=None if token == "anywhere" else "loop", scopes=frozenset(scopes))


@contextlib.asynccontextmanager
async def serving(database_url: str, *, writes: int = 3, reads: int = 5, **rates: Any) -> AsyncIterator[Service]:
    """Run a service with low limits, whose counts end with it."""
    limits = {"rate_writes_per_minute": writes, "rate_reads_per_minute": reads}
    settings = Settings(database_url=database_url, **limits, **rates)
    async with Service.running(settings, verify) as running:
        yield running


@pytest.fixture
async def strict(database_url: str) -> AsyncIterator[Service]:
    """A service with three writes and five reads a minute for each client."""
    async with serving(database_url) as running:
        yield running


async def write(
    service: Service, client: str = "clinic", path: str = UNKNOWN_PATIENT, content: str = VISIT
) -> httpx2.Response:
    return await service.rest("POST", path, token=client, headers=JSON, content=content)


async def read(service: Service, client: str = "clinic", path: str = UNKNOWN_PATIENT) -> httpx2.Response:
    return await service.rest("GET", path, token=client)


async def ask(service: Service, query: Any, client: str = "clinic", **headers: str) -> httpx2.Response:
    return await service.rest("POST", "/graphql", token=client, headers=JSON | headers, json={"query": query})


def allowance(answer: httpx2.Response) -> tuple[str, int]:
    """Return the counted kind and its allowance; assert that the four header fields agree."""
    policy = re.fullmatch(r'"(reads|writes)";q=(\d+);w=60', answer.headers["ratelimit-policy"])
    state = re.fullmatch(r'"(reads|writes)";r=(\d+);t=(\d+)', answer.headers["ratelimit"])
    assert policy is not None
    assert state is not None
    assert policy[1] == state[1]
    assert int(state[2]) <= int(policy[2])
    assert 0 < int(state[3]) <= 60
    assert answer.headers["x-ratelimit-remaining"] == state[2]
    assert abs(int(answer.headers["x-ratelimit-reset"]) - time.time() - int(state[3])) < 2
    return state[1], int(state[2])


# One window for each client and kind


async def test_both_doors_share_one_window(strict: Service) -> None:
    answers = [await write(strict), await ask(strict, WRITE), await write(strict)]

    assert [allowance(each) for each in answers] == [("writes", 2), ("writes", 1), ("writes", 0)]
    assert (await write(strict)).status_code == 429
    assert (await ask(strict, WRITE)).status_code == 429


async def test_reads_and_writes_are_counted_separately(strict: Service) -> None:
    for _ in range(4):
        last_write = await write(strict)

    assert last_write.status_code == 429
    assert allowance(await read(strict)) == ("reads", 4)
    assert allowance(await ask(strict, LOOK)) == ("reads", 3)


async def test_each_client_has_its_own_window(strict: Service) -> None:
    for _ in range(4):
        await write(strict, "clinic")

    assert allowance(await write(strict, "pharmacy")) == ("writes", 2)


async def test_a_rate_limited_request_does_not_count(database_url: str, monkeypatch) -> None:
    monkeypatch.setattr("gateway.rate_limits.limiter.WINDOW_SECONDS", 1)
    async with serving(database_url, writes=1) as service:
        await write(service)
        refused = await write(service)
        # Repeated requests do not delay the reset.
        async with asyncio.timeout(DEADLINE_SECONDS):
            while (await write(service)).status_code == 429:
                pass

    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["ratelimit-policy"] == '"writes";q=1;w=1'


async def test_of_300_concurrent_requests_exactly_200_pass(database_url: str) -> None:
    async with serving(database_url, writes=200) as service:
        at_rest = [ask(service, "mutation { __typename }") for _ in range(150)]
        at_graphql = [write(service, content="{") for _ in range(150)]
        answers = await asyncio.gather(*at_rest, *at_graphql)

    assert sum(answer.status_code != 429 for answer in answers) == 200


async def test_a_limit_of_0_disables_the_limit_and_its_headers(database_url: str) -> None:
    async with serving(database_url, writes=0) as service:
        answers = [await write(service) for _ in range(20)]

    assert {answer.status_code for answer in answers} == {404}
    assert not any("ratelimit" in name for answer in answers for name in answer.headers)


# Cost of a request


async def test_a_mutation_counts_once_for_each_root_field(strict: Service) -> None:
    assert allowance(await ask(strict, "mutation { a: __typename b: __typename }")) == ("writes", 1)
    assert (await ask(strict, "mutation { a: __typename b: __typename }")).status_code == 429
    assert allowance(await write(strict)) == ("writes", 0)


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("{ nothing }", {}, 400),
        ("mutation {", {}, 400),
        (5, {}, 400),
        (LOOK, {"content-type": "text/plain"}, 415),
        (LOOK, {"accept": "text/html"}, 406),
    ],
)
async def test_an_invalid_graphql_document_counts_as_one_read(
    strict: Service, query: Any, headers: dict[str, str], status: int
) -> None:
    answers = [await ask(strict, query, **{"accept": "application/graphql-response+json"} | headers) for _ in range(6)]

    assert [answer.status_code for answer in answers] == [status] * 5 + [429]
    assert allowance(answers[0]) == ("reads", 4)


# Reported allowance


@pytest.mark.parametrize(
    ("method", "path", "client", "content", "status", "kind"),
    [
        ("POST", "patient", "clinic", VISIT, 201, "writes"),
        ("GET", "patient", "clinic", None, 200, "reads"),
        ("POST", "patient", "clinic", "{}", 400, "writes"),
        ("POST", "patient", "reader", VISIT, 403, "writes"),
        ("POST", "patient", "clinic", VISIT.replace("loop", "loopbio"), 403, "writes"),
        ("GET", UNKNOWN_PATIENT, "clinic", None, 404, "reads"),
        ("GET", "/nowhere", "clinic", None, 404, "reads"),
        ("PUT", UNKNOWN_PATIENT, "clinic", None, 405, "writes"),
        ("PUT", "/graphql", "clinic", None, 405, "reads"),
    ],
)
async def test_every_answer_reports_the_allowance(  # noqa: PLR0917
    strict: Service, cast: Cast, method: str, path: str, client: str, content: str | None, status: int, kind: str
) -> None:
    path = path.replace("patient", f"/v1/patients/{await cast.patient()}/encounters") if path == "patient" else path

    answer = await strict.rest(method, path, token=client, headers=JSON, content=content)

    assert answer.status_code == status
    assert allowance(answer) == (kind, {"reads": 4, "writes": 2}[kind])


async def test_an_internal_error_reports_the_allowance_too(strict: Service, monkeypatch) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("rest.encounters.list_encounters_by_offset", broken)

    answer = await read(strict)

    assert answer.status_code == 500
    assert allowance(answer) == ("reads", 4)


@pytest.mark.parametrize(
    ("path", "token"),
    [(UNKNOWN_PATIENT, None), (UNKNOWN_PATIENT, "bad"), ("/graphql", None), ("/healthz", None), ("/readyz", "clinic")],
)
async def test_an_unauthenticated_caller_gets_no_allowance(strict: Service, path: str, token: str | None) -> None:
    answer = await strict.rest("GET", path, token=token)

    assert not any("ratelimit" in name for name in answer.headers)


async def test_over_rest_an_exceeded_limit_is_429_with_retry_after(strict: Service) -> None:
    for _ in range(4):
        answer = await write(strict)

    body = answer.json()
    assert answer.status_code == 429
    assert (body["error"], body["recorded"]) == ("rate_limited", "no")
    assert body["error_description"] == body["message"]
    assert 0 < body["retry_after_ms"] <= 60_000
    assert int(answer.headers["retry-after"]) == -(-body["retry_after_ms"] // 1000)
    assert allowance(answer) == ("writes", 0)


@pytest.mark.parametrize("accept", ["application/json", "application/graphql-response+json"])
async def test_over_graphql_an_exceeded_limit_has_the_same_code_and_status(strict: Service, accept: str) -> None:
    for _ in range(4):
        answer = await ask(strict, WRITE, accept=accept)

    [error] = answer.json()["errors"]
    assert answer.status_code == 429
    assert "data" not in answer.json()
    assert (error["extensions"]["code"], error["extensions"]["recorded"]) == ("rate_limited", "no")
    assert int(answer.headers["retry-after"]) == -(-error["extensions"]["retry_after_ms"] // 1000)
    assert allowance(answer) == ("writes", 0)


async def test_a_client_over_its_byte_rate_waits(database_url: str, cast: Cast) -> None:
    patient_id = await cast.patient()
    path = f"/v1/patients/{patient_id}/encounters"
    page = f'{{ patient(id: "{patient_id}") {{ encounters {{ nodes {{ notes }} }} }} }}'
    reads = [partial(read, path=path), partial(ask, query=page)]
    async with serving(database_url, writes=0, reads=0, rate_answer_bytes_per_minute=2_000_000) as service:
        for _ in range(5):
            large = json.dumps({"brand_id": "loop", "encounter_type": "lab", "notes": "n" * 50_000})
            assert (await write(service, path=path, content=large)).status_code == 201
        for client, large_read in zip(("portal", "clinic"), reads, strict=True):
            first, second = await large_read(service, client=client), await large_read(service, client=client)

            assert (first.status_code, second.status_code) == (200, 429)
            assert 0 < int(second.headers["retry-after"]) <= 60
        # Both doors share the byte rate; other clients and recordings are not affected.
        for each, other in zip(reads, ("laboratory", "pharmacy"), strict=True):
            assert (await each(service, client="portal")).status_code == 429
            assert (await each(service, client=other)).status_code == 200
            assert (await write(service, client="portal", path=path)).status_code == 201


# Order of checks


async def test_authorization_precedes_the_rate_limit(strict: Service) -> None:
    for _ in range(4):
        answer = await write(strict, "reader")

    assert answer.status_code == 403
    assert answer.json()["error"] == "insufficient_scope"
    assert allowance(answer) == ("writes", 0)
    assert (await strict.rest("POST", UNKNOWN_PATIENT, token=None)).status_code == 401
    assert (await write(strict, "bad")).status_code == 401


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        (JSON | {"x-brand-id": "loopbio"}, VISIT),
        (JSON, VISIT.replace("loop", "loopbio")),
        ({"content-type": "text/plain"}, VISIT),
        (JSON, "{"),
        (JSON, "{}"),
        (JSON, "x" * 300_000),
    ],
    ids=["stated brand", "brand of the body", "media type", "JSON", "rules", "size"],
)
async def test_the_rate_limit_precedes_every_error_of_brand_and_body(
    strict: Service, headers: dict[str, str], content: str
) -> None:
    for _ in range(3):
        await write(strict)

    answer = await strict.rest("POST", UNKNOWN_PATIENT, token="clinic", headers=headers, content=content)

    assert answer.status_code == 429


async def test_over_graphql_the_rate_limit_precedes_the_stated_brand(strict: Service) -> None:
    answers = [await ask(strict, LOOK, **{"x-brand-id": "loopbio"}) for _ in range(6)]

    assert [answer.status_code for answer in answers] == [403] * 5 + [429]


@pytest.mark.parametrize(("method", "path", "times"), [("GET", "/nowhere", 5), ("PUT", UNKNOWN_PATIENT, 3)])
async def test_the_rate_limit_precedes_not_found(strict: Service, method: str, path: str, times: int) -> None:
    answers = [await strict.rest(method, path, token="clinic") for _ in range(times + 1)]

    assert answers[-2].status_code in {404, 405}
    assert answers[-1].status_code == 429


# Before authentication, by address


def with_address(service: Service, address: str) -> Service:
    """Return the same service, with requests from another address."""
    transport = httpx2.ASGITransport(
        service.client._transport.app,  # type: ignore[attr-defined]
        raise_app_exceptions=False,
        client=(address, 50_000),
    )
    return Service(httpx2.AsyncClient(transport=transport, base_url="http://localhost"), service.app)


async def test_guessing_tokens_is_rate_limited_at_both_doors_by_address(database_url: str) -> None:
    async with serving(database_url, rate_failed_sign_ins_per_minute=3) as service:
        guesser = with_address(service, "203.0.113.9")
        guesses = [await write(guesser, f"bad-{number}") for number in range(5)]
        at_graphql = await ask(guesser, LOOK, "bad-6")
        elsewhere = await write(with_address(service, "203.0.113.10"), "clinic")

    assert [answer.status_code for answer in guesses] == [401, 401, 401, 429, 429]
    assert at_graphql.status_code == 429
    assert guesses[-1].json()["error"] == "rate_limited"
    assert 0 < int(guesses[-1].headers["retry-after"]) <= 60
    assert "ratelimit" not in guesses[-1].headers
    assert elsewhere.status_code == 404


async def test_one_device_with_an_old_token_does_not_block_a_shared_address(database_url: str) -> None:
    async with serving(database_url, rate_failed_sign_ins_per_minute=3) as service:
        hospital = with_address(service, "203.0.113.9")
        before = await write(hospital, "clinic")
        for _ in range(10):
            stopped = await write(hospital, "bad")
        after = await write(hospital, "clinic")

    assert stopped.status_code == 429
    assert (before.status_code, after.status_code) == (404, 404)


async def test_a_revoked_token_counts_as_a_failed_attempt(database_url: str, monkeypatch) -> None:
    revoked: set[str] = set()

    async def with_revocations(token: str) -> Caller:
        return await verify("bad" if token in revoked else token)

    settings = Settings(database_url=database_url, rate_failed_sign_ins_per_minute=1)
    async with Service.running(settings, with_revocations) as service:
        caller = with_address(service, "203.0.113.9")
        answers = [await read(caller)]
        revoked.add("clinic")
        answers += [await read(caller), await read(caller)]

    assert [answer.status_code for answer in answers] == [404, 401, 429]


async def test_an_address_is_charged_for_unknown_tokens_only(database_url: str) -> None:
    async with serving(database_url, rate_address_per_minute=2) as service:
        caller = with_address(service, "203.0.113.9")
        answers = [await read(caller, client) for client in ("a", "a", "b", "a", "c", "b")]

    assert [answer.status_code for answer in answers] == [404, 404, 404, 404, 429, 404]


async def test_a_missing_token_and_loopback_are_not_charged(database_url: str) -> None:
    async with serving(database_url, rate_failed_sign_ins_per_minute=1, rate_address_per_minute=1) as service:
        without = [
            await with_address(service, "203.0.113.9").rest("GET", UNKNOWN_PATIENT, token=None) for _ in range(5)
        ]
        at_home = [await read(with_address(service, "127.0.0.1"), "bad") for _ in range(5)]

    assert {answer.status_code for answer in without + at_home} == {401}


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("127.0.0.1", None),
        ("127.8.8.8", None),
        ("::1", None),
        ("::ffff:127.0.0.1", None),
        ("testclient", None),
        ("", None),
        (None, None),
    ],
)
def test_an_address_is_the_network_prefix_of_one_caller(address: str | None, network: str | None) -> None:
    assert network_of(address) == network


# Several processes, one window


class Redis:
    """A Redis server on a Unix socket of the test, without persistence."""

    def __init__(self, folder: Path) -> None:
        self.url = f"unix://{folder}/redis.sock"
        self._command = f"{REDIS_SERVER} --port 0 --unixsocket {folder}/redis.sock --dir {folder} --save".split()

    def start(self) -> None:
        """Start it; connections from now on wait until it answers."""
        self._process = subprocess.Popen([*self._command, ""], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        # Its few lines fit into the pipe, so the rest need not be read.
        assert any("eady to accept connections" in line for line in self._process.stdout), "redis-server died"

    def kill(self) -> None:
        """Kill it with SIGKILL, if it runs."""
        with self._process:
            self._process.kill()


@pytest.fixture
def redis() -> Iterator[Redis]:
    if not REDIS_SERVER.exists():
        pytest.skip(f"{REDIS_SERVER} is missing: apt-get install redis-server")
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        server = Redis(Path(folder))
        server.start()
        yield server
        server.kill()


async def test_two_services_share_a_window_in_redis(database_url: str, redis: Redis) -> None:
    async with (
        serving(database_url, rate_limit_url=redis.url) as one,
        serving(database_url, rate_limit_url=redis.url) as other,
    ):
        answers = [await write(one), await ask(other, WRITE), await write(one), await write(other), await write(one)]

    assert [allowance(each) for each in answers] == [("writes", n) for n in (2, 1, 0, 0, 0)]
    assert [answer.status_code for answer in answers] == [404, 200, 404, 429, 429]
    assert 0 < answers[-1].json()["retry_after_ms"] <= 60_000


async def test_of_300_concurrent_requests_at_two_services_200_pass_in_redis(
    database_url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy server is not an unavailable one.
    monkeypatch.setattr(redis_window, "TIMEOUT_SECONDS", 30.0)
    async with (
        serving(database_url, writes=200, rate_limit_url=redis.url) as one,
        serving(database_url, writes=200, rate_limit_url=redis.url) as other,
    ):
        answers = await asyncio.gather(*[write(each, content="{") for each in (one, other) * 150])

    assert sum(answer.status_code != 429 for answer in answers) == 200


async def test_when_redis_fails_each_process_counts_and_no_request_is_500(
    database_url: str, cast: Cast, redis: Redis
) -> None:
    path = f"/v1/patients/{await cast.patient()}/encounters"
    async with serving(database_url, writes=5, rate_limit_url=redis.url) as service:
        before = [await write(service, path=path) for _ in range(3)]
        redis.kill()
        with captured_logs() as logs:
            after = [await write(service, path=path) for _ in range(6)]

    assert [answer.status_code for answer in before + after] == [201] * 8 + [429]
    assert [allowance(answer) for answer in after] == [("writes", n) for n in (4, 3, 2, 1, 0, 0)]
    # Once for the outage, not for each request.
    assert [each["counted"] for each in logs if each["event"] == "rate limits"] == ["in each process"]


async def test_when_redis_recovers_counts_are_shared_again(database_url: str, redis: Redis, monkeypatch) -> None:
    monkeypatch.setattr("gateway.rate_limits.redis_window.PAUSE_SECONDS", 0.1)
    async with serving(database_url, reads=1_000, rate_limit_url=redis.url) as service:
        redis.kill()
        with captured_logs() as logs:
            await read(service)
            redis.start()
            async with asyncio.timeout(DEADLINE_SECONDS):
                while not any(each.get("counted") == "together again" for each in logs):
                    await read(service)
                    await asyncio.sleep(0.02)


async def test_a_silent_redis_delays_no_request(database_url: str) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, serving(database_url, rate_limit_url=f"redis://127.0.0.1:{port}/0") as service:
        started = time.monotonic()
        answers = [await read(service) for _ in range(5)]
        took = time.monotonic() - started

    assert {answer.status_code for answer in answers} == {404}
    assert took < 2 * TIMEOUT_SECONDS


@pytest.mark.parametrize("url", ["memcached://127.0.0.1", "127.0.0.1:6379", "http://127.0.0.1"])
def test_a_server_that_is_not_redis_is_refused_at_start(monkeypatch, url: str) -> None:
    with pytest.raises(ValueError, match="redis://"):
        Settings(rate_limit_url=url)


async def test_a_request_within_the_limit_is_recorded(strict: Service, cast: Cast) -> None:
    patient_id = await cast.patient()
    variables = {"patientId": patient_id, "input": {"brandId": "loop", "encounterType": "LAB"}}

    for number in range(4):
        await strict.graphql(RECORD, variables | {"key": f"{patient_id}-{number}"}, token="clinic")

    assert len(await cast.rows(patient_id)) == 3


# A read is reserved before parsing


def fail_on_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the parsing of a document or a body fail the test."""

    def parsed(*_: object, **__: object) -> None:
        raise AssertionError("it was parsed")

    monkeypatch.setattr("schema.documents.parse", parsed)


async def test_without_a_read_left_no_new_document_is_parsed(strict: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        await ask(strict, f"{LOOK} # {number}")
    fail_on_parsing(monkeypatch)
    monkeypatch.setattr("schema.transport.http.json_text.read", None)

    posted = await strict.rest("POST", "/graphql", token="clinic", headers=JSON, content=" " * 20_000 + "{}")
    monkeypatch.undo()
    fail_on_parsing(monkeypatch)
    answers = [
        await ask(strict, "{ new: __typename }"),
        await ask(strict, "mutation { new: __typename }"),
        await strict.rest("GET", "/graphql", token="clinic", params={"query": "{ new: __typename }"}),
    ]

    assert [each.status_code for each in (posted, *answers)] == [429] * 4
    assert {allowance(each) for each in (posted, *answers)} == {("reads", 0)}


async def test_without_a_read_left_a_cached_mutation_still_runs(strict: Service) -> None:
    first = await ask(strict, WRITE)
    for _ in range(5):
        await ask(strict, LOOK)

    again, query = await ask(strict, WRITE), await ask(strict, LOOK)

    assert (first.status_code, again.status_code, query.status_code) == (200, 200, 429)
    assert (allowance(again), allowance(query)) == (("writes", 1), ("reads", 0))


async def test_a_mutation_returns_its_reserved_read(strict: Service) -> None:
    for _ in range(3):
        await ask(strict, WRITE)

    assert allowance(await ask(strict, LOOK)) == ("reads", 4)


async def test_a_mutation_over_the_limit_costs_a_read_if_it_is_new(strict: Service) -> None:
    for _ in range(3):
        await ask(strict, WRITE)

    refused = [await ask(strict, f"{WRITE} # {number}") for number in range(6)]

    # After five reads it is refused before it is parsed.
    assert [allowance(each)[0] for each in refused] == ["writes"] * 5 + ["reads"]
    assert {each.status_code for each in refused} == {429}


async def test_a_query_of_several_reads_is_charged_all_or_none(strict: Service) -> None:
    query = "{ a: __typename b: __typename c: __typename }"

    answers = [await ask(strict, query) for _ in range(2)]

    assert [(each.status_code, allowance(each)) for each in answers] == [(200, ("reads", 2)), (429, ("reads", 2))]
    assert allowance(await ask(strict, LOOK)) == ("reads", 1)


async def test_a_read_is_returned_in_redis_too(database_url: str, redis: Redis) -> None:
    async with serving(database_url, rate_limit_url=redis.url) as service:
        answers = [await ask(service, WRITE) for _ in range(4)]
        look = await ask(service, LOOK)

    assert [each.status_code for each in answers] == [200, 200, 200, 429]
    assert allowance(look) == ("reads", 4)


async def test_on_a_websocket_nothing_is_parsed_without_a_read_left(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(database_url=database_url, rate_writes_per_minute=2, rate_reads_per_minute=2)
    async with GatewayServer.serving(settings, verify) as sockets, sockets.authenticated("clinic") as websocket:
        await websocket.ask(WRITE)
        for number in range(2):
            await websocket.ask(f"{LOOK} # {number}")
        fail_on_parsing(monkeypatch)

        assert (await websocket.refusal("{ new: __typename }"))["code"] == "rate_limited"
        assert "errors" not in await websocket.ask(WRITE)


async def test_in_a_batch_each_operation_reserves_its_own_read(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(database_url, reads=3, batch_operations=5) as service:
        texts = [f"{LOOK} # {number}" for number in range(5)]
        answer = await service.rest("POST", "/graphql", token="clinic", json=[{"query": each} for each in texts])

    codes = [each["errors"][0]["extensions"]["code"] if "errors" in each else None for each in answer.json()]
    assert codes == [None, None, None, "rate_limited", "rate_limited"]


# CPU time of parsing


async def test_a_client_over_its_parsing_time_waits(database_url: str) -> None:
    wide = "{ " + "... on Query { __typename } " * 40 + "a: patient(id: 1) { " + "id " * 900 + "} }"
    async with serving(database_url, writes=100, reads=100_000, rate_parsing_ms_per_minute=300) as service:
        known = await ask(service, WRITE)
        async with asyncio.timeout(DEADLINE_SECONDS):
            for number in range(1_000):
                refused = await ask(service, f"{wide} # {number}")
                if refused.status_code == 429:
                    break
        again, other = await ask(service, WRITE), await ask(service, f"{wide} # other", "pharmacy")

    assert refused.json()["errors"][0]["extensions"]["code"] == "rate_limited"
    assert 0 < int(refused.headers["retry-after"]) <= 60
    # Cached documents are served, and so are other clients.
    assert (known.status_code, again.status_code, other.status_code) == (200, 200, 200)
