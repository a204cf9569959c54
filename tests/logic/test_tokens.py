"""Bearer tokens: introspection, caching of its results, and development tokens."""

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from gateway.auth.token_cache import TtlCache
from gateway.auth.verifier import verifying
from gateway.settings import Settings, SettingsError
from resolvers.access import Caller, Verify, resolve_brand
from resolvers.errors import Forbidden, InvalidToken, TemporarilyUnavailable
from tests.identity_provider import AUDIENCE, ISSUER, TIMEOUT_SECONDS, FakeClock, IdentityProvider, endless_response
from tests.logs import captured_logs

NURSE = {"client_id": "app", "sub": "nurse-1", "brand": "loop", "scope": "write:encounters read:encounters"}
MACHINE = {"client_id": "lab", "scope": "write:encounters"}


@pytest.fixture
async def introspected(provider: IdentityProvider, clock: FakeClock) -> AsyncIterator[Verify]:
    """The verifier of a gateway that introspects tokens, with a timeout."""
    async with verifying(
        provider.settings(introspection=True, identity_provider_seconds=TIMEOUT_SECONDS), clock
    ) as verify:
        yield verify


# Introspection: valid and invalid tokens


@pytest.mark.parametrize(
    ("introspection", "caller"),
    [
        (
            NURSE,
            Caller("app", frozenset({"write:encounters", "read:encounters"}), user_id="nurse-1", brand_id="loop"),
        ),
        (MACHINE, Caller("lab", frozenset({"write:encounters"}))),
        (MACHINE | {"sub": "lab", "brand": "loop"}, Caller("lab", frozenset({"write:encounters"}), brand_id="loop")),
        ({"client_id": "lab"}, Caller("lab", frozenset())),
        ({"client_id": "lab", "scope": " a  b "}, Caller("lab", frozenset({"a", "b"}))),
        ({"client_id": "lab", "scope": ["a", "b"]}, Caller("lab", frozenset({"a", "b"}))),
        ({"client_id": "lab", "scp": "a b"}, Caller("lab", frozenset({"a", "b"}))),
        ({"client_id": "lab", "scp": ["a", "b"]}, Caller("lab", frozenset({"a", "b"}))),
        ({"client_id": "lab", "scope": "a", "scp": ["b"]}, Caller("lab", frozenset({"a"}))),
        ({"appid": "app", "sub": "nurse-1"}, Caller("app", frozenset(), user_id="nurse-1")),
        ({"cid": "app", "sub": "nurse-1"}, Caller("app", frozenset(), user_id="nurse-1")),
        ({"client_id": "lab", "brand_id": "loop"}, Caller("lab", frozenset(), brand_id="loop")),
        ({"client_id": "lab", "brand_id": "loop", "brand": "loop"}, Caller("lab", frozenset(), brand_id="loop")),
        ({"azp": "app", "sub": "nurse-1"}, Caller("app", frozenset(), user_id="nurse-1")),
        ({"azp": "lab", "sub": "lab"}, Caller("lab", frozenset())),
        ({"client_id": "lab", "sub": None, "brand": None, "exp": None, "scope": None}, Caller("lab", frozenset())),
        ({"client_id": "lab", "token_type": "bearer"}, Caller("lab", frozenset())),
        ({"client_id": "lab", "token_type": "Bearer", "aud": ["x"], "more": {"a": 1.5}}, Caller("lab", frozenset())),
    ],
)
async def test_an_active_token_names_its_caller(
    provider: IdentityProvider, introspected: Verify, introspection: dict[str, Any], caller: Caller
) -> None:
    provider.tokens["opaque"] = introspection

    assert await introspected("opaque") == caller


async def test_a_caller_has_the_expiry_of_the_token(
    provider: IdentityProvider, introspected: Verify, clock: FakeClock
) -> None:
    provider.tokens["opaque"] = MACHINE | {"exp": clock.now + 90.5}

    assert (await introspected("opaque")).expires_at == datetime.fromtimestamp(clock.now + 90.5, UTC)


@pytest.mark.parametrize(
    "introspection",
    [
        None,
        MACHINE | {"active": False},
        MACHINE | {"exp": 1_799_999_940},  # a minute ago, the largest difference between clocks
        MACHINE | {"nbf": 1_800_000_061},
        MACHINE | {"token_type": "DPoP"},
        MACHINE | {"token_type": "refresh_token"},
        MACHINE | {"cnf": {"jkt": "a thumbprint"}},
        MACHINE | {"at_hash": "MTIzNDU2Nzg5MDEyMzQ1Ng"},
        MACHINE | {"typ": "Refresh"},
        {"scope": "admin:*", "brand": "loop"},
        {"sub": "lab"},
        {"sub": "nurse-1", "brand": "loop", "scope": "admin:*"},
        {"sub": "nurse-1", "client_id": None, "azp": None, "username": "nurse"},
    ],
    ids=str,
)
async def test_an_inactive_or_foreign_token_is_invalid(
    provider: IdentityProvider, introspected: Verify, introspection: dict[str, Any] | None
) -> None:
    if introspection is not None:
        provider.tokens["opaque"] = introspection

    with pytest.raises(InvalidToken):
        await introspected("opaque")


@pytest.mark.parametrize("introspection", [{"exp": 1_799_999_941}, {"nbf": 1_800_000_060}], ids=str)
async def test_clocks_may_differ_by_a_minute(
    provider: IdentityProvider, introspected: Verify, introspection: dict[str, Any]
) -> None:
    provider.tokens["opaque"] = MACHINE | introspection

    assert (await introspected("opaque")).client_id == "lab"


OTHER = "https://other.test"
OURS = {"introspection_issuer": ISSUER, "introspection_audience": AUDIENCE}


@pytest.mark.parametrize("settings", [OURS, {"jwt": True}, OURS | {"jwt": True}], ids=str)
@pytest.mark.parametrize(
    "introspection",
    [
        {"aud": OTHER},
        {"aud": [OTHER]},
        {"aud": []},
        {"aud": ""},
        {"aud": AUDIENCE + "/more"},
        {"aud": {AUDIENCE: True}},
        {"aud": 5},
        {"iss": OTHER},
        {"iss": [ISSUER]},
        {"iss": ISSUER + "/"},
        {"iss": True},
    ],
    ids=str,
)
async def test_a_token_of_another_issuer_or_audience_is_refused(
    provider: IdentityProvider, settings: dict[str, Any], introspection: dict[str, Any]
) -> None:
    provider.tokens["opaque"] = MACHINE | {"iss": ISSUER, "aud": AUDIENCE} | introspection

    async with verifying(provider.settings(introspection=True, **settings)) as verify:
        with pytest.raises(InvalidToken):
            await verify("opaque")


@pytest.mark.parametrize("settings", [{}, OURS, {"jwt": True}, OURS | {"jwt": True}], ids=str)
@pytest.mark.parametrize("aud", [AUDIENCE, [AUDIENCE], [OTHER, AUDIENCE]], ids=str)
async def test_a_token_with_several_audiences_is_valid(
    provider: IdentityProvider, settings: dict[str, Any], aud: Any
) -> None:
    provider.tokens["opaque"] = MACHINE | {"iss": ISSUER, "aud": aud}

    async with verifying(provider.settings(introspection=True, **settings)) as verify:
        assert (await verify("opaque")).client_id == "lab"


@pytest.mark.parametrize("claim", ["iss", "aud"])
@pytest.mark.parametrize(("settings", "is_good"), [({}, True), ({"jwt": True}, True), (OURS, False)], ids=str)
async def test_a_claim_may_be_missing_unless_introspection_requires_it(
    provider: IdentityProvider, claim: str, settings: dict[str, Any], is_good: bool
) -> None:
    answered = {"iss": ISSUER, "aud": AUDIENCE}
    del answered[claim]
    provider.tokens["opaque"] = MACHINE | answered

    async with verifying(provider.settings(introspection=True, **settings)) as verify:
        if is_good:
            assert (await verify("opaque")).client_id == "lab"
        else:
            with pytest.raises(InvalidToken):
                await verify("opaque")


async def test_introspection_may_have_its_own_audience_and_issuer(provider: IdentityProvider) -> None:
    provider.tokens["opaque"] = MACHINE | {"iss": "https://partner.test", "aud": "urn:gateway"}
    of_its_own = {"introspection_issuer": "https://partner.test", "introspection_audience": "urn:gateway"}

    async with verifying(provider.settings(introspection=True, jwt=True, **of_its_own)) as verify:
        assert (await verify("opaque")).client_id == "lab"


async def test_only_a_machine_may_choose_its_brand() -> None:
    person, machine = Caller("app", frozenset(), user_id="nurse-1"), Caller("lab", frozenset())

    assert resolve_brand(machine, "loop") == "loop"
    for stated in ("loop", None):
        with pytest.raises(Forbidden):
            resolve_brand(person, stated)


# Introspection: failures of the provider


def truncated() -> Response:
    return Response(b'{"active": true', headers={"content-length": "500"})


def introspection(active: Any = True, **members: Any) -> Callable[[], Response]:
    return lambda: JSONResponse(MACHINE | {"active": active} | members)


INVALID_ANSWERS: dict[str, Callable[[], Response]] = {
    "an error": lambda: Response(status_code=500),
    "an error with Retry-After": lambda: Response(status_code=503, headers={"retry-after": "60"}),
    "status 401": lambda: Response(status_code=401),
    "status 404": lambda: Response(status_code=404),
    "status 429": lambda: Response(status_code=429),
    "nothing": lambda: Response(status_code=204),
    "status 201": lambda: JSONResponse(MACHINE | {"active": True}, status_code=201),
    "a redirect": lambda: RedirectResponse("/introspect", 307),
    "an empty body": lambda: Response(b""),
    "plain text": lambda: PlainTextResponse("active"),
    "half an object": lambda: Response(b'{"active": true, "client_id": "lab"'),
    "a repeated member": lambda: Response(b'{"active": true, "active": true, "client_id": "lab"}'),
    "invalid UTF-8": lambda: Response(b'{"active": true, "client_id": "\xff"}'),
    "NaN": lambda: Response(b'{"active": true, "client_id": "lab", "exp": NaN}'),
    "depth": lambda: Response(b"[" * 60_000),
    "a list": lambda: JSONResponse([MACHINE | {"active": True}]),
    "true": lambda: JSONResponse(True),
    "null": lambda: JSONResponse(None),
    "everything but active": lambda: JSONResponse(MACHINE),
    "active is a string": introspection(active="true"),
    "active is a number": introspection(active=1),
    "active is null": introspection(active=None),
    "client_id is a number": introspection(client_id=5),
    "client_id is empty": introspection(client_id=""),
    "client_id is long": introspection(client_id="x" * 256),
    "client_id contains NUL": introspection(client_id="a\x00b"),
    "client_id contains half a surrogate pair": lambda: Response(rb'{"active": true, "client_id": "\ud800"}'),
    "sub is a list": introspection(sub=["nurse-1"]),
    "scope is a number": introspection(scope=5),
    "scope is a list of numbers": introspection(scope=[5]),
    "brand is empty": introspection(brand=""),
    "brand is a list": introspection(brand=["loop"]),
    "two brands": introspection(brand="loop", brand_id="loopbio"),
    "exp is a string": introspection(exp="1800000300"),
    "exp is true": introspection(exp=True),
    "exp is negative": introspection(exp=-1),
    "exp in milliseconds": introspection(exp=1_800_000_300_000),
    "exp is out of range": introspection(exp=1e300),
    "nbf is a list": introspection(nbf=[1]),
    "token_type is a number": introspection(token_type=5),
    "too many bytes": lambda: JSONResponse(MACHINE | {"active": True, "more": "x" * 65_536}),
    "an endless response": endless_response,
    "a truncated response": truncated,
}


@pytest.mark.parametrize("answer_name", INVALID_ANSWERS)
async def test_an_invalid_answer_of_the_provider_is_503(
    provider: IdentityProvider, introspected: Verify, answer_name: str
) -> None:
    provider.answer = INVALID_ANSWERS[answer_name]

    with pytest.raises(TemporarilyUnavailable):
        await introspected("opaque")
    assert provider.introspections == 1


async def test_a_slow_or_unavailable_provider_is_503_until_it_answers(
    provider: IdentityProvider, introspected: Verify, clock: FakeClock
) -> None:
    provider.tokens["opaque"] = MACHINE
    for trouble in ("slow", "down"):
        async with provider.with_fault(trouble), asyncio.timeout(5 * TIMEOUT_SECONDS):
            with pytest.raises(TemporarilyUnavailable):
                await introspected("opaque")

        assert (await introspected("opaque")).client_id == "lab"
        clock.advance(60)


async def test_wrong_client_credentials_are_503(provider: IdentityProvider) -> None:
    provider.tokens["opaque"] = MACHINE

    async with verifying(provider.settings(introspection=True, introspection_client_secret="another")) as verify:
        with pytest.raises(TemporarilyUnavailable):
            await verify("opaque")


# Caching


async def test_two_hundred_concurrent_requests_share_one_introspection(
    provider: IdentityProvider, introspected: Verify
) -> None:
    provider.tokens["opaque"] = MACHINE

    callers = await asyncio.gather(*(introspected("opaque") for _ in range(200)))

    assert len(callers) == 200
    assert provider.introspections == 1


async def test_two_hundred_concurrent_requests_share_one_failure(
    provider: IdentityProvider, introspected: Verify
) -> None:
    provider.answer = lambda: Response(status_code=500)

    outcomes = await asyncio.gather(*(introspected("opaque") for _ in range(200)), return_exceptions=True)

    assert {type(outcome) for outcome in outcomes} == {TemporarilyUnavailable}
    assert provider.introspections == 1


async def test_different_tokens_are_introspected_separately(provider: IdentityProvider, clock: FakeClock) -> None:
    provider.tokens |= {f"token-{number}": {"client_id": f"client-{number}"} for number in range(100)}

    async with verifying(provider.settings(introspection=True, identity_provider_seconds=30), clock) as verify:
        callers = await asyncio.gather(*(verify(f"token-{number}") for number in range(100)))

    assert [caller.client_id for caller in callers] == [f"client-{number}" for number in range(100)]


async def test_a_disconnected_first_caller_does_not_cancel_the_shared_call(
    provider: IdentityProvider, introspected: Verify
) -> None:
    provider.tokens["opaque"] = MACHINE
    provider.may_answer.clear()
    first, second = (asyncio.ensure_future(introspected("opaque")) for _ in range(2))
    await provider.asked.wait()

    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    provider.may_answer.set()

    assert (await second).client_id == "lab"
    assert provider.introspections == 1


async def test_an_answer_without_waiting_callers_is_cached(provider: IdentityProvider, introspected: Verify) -> None:
    provider.tokens["opaque"] = MACHINE
    provider.may_answer.clear()
    only = asyncio.ensure_future(introspected("opaque"))
    await provider.asked.wait()

    only.cancel()
    await asyncio.gather(only, return_exceptions=True)
    provider.may_answer.set()

    assert (await introspected("opaque")).client_id == "lab"
    assert provider.introspections == 1


async def test_closing_cancels_calls_in_flight(provider: IdentityProvider) -> None:
    provider.may_answer.clear()
    async with verifying(provider.settings(introspection=True)) as verify:
        waiting = asyncio.ensure_future(verify("opaque"))
        await provider.asked.wait()

    assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], asyncio.CancelledError)


@pytest.mark.parametrize(("ends_in", "believed_for"), [(None, 60), (3600, 60), (30, 30), (0.5, 0.5)])
async def test_a_valid_token_is_cached_for_a_minute_and_never_after_its_expiry(
    provider: IdentityProvider, introspected: Verify, clock: FakeClock, ends_in: float | None, believed_for: float
) -> None:
    provider.tokens["opaque"] = MACHINE | {"exp": None if ends_in is None else clock.now + ends_in}
    await introspected("opaque")
    del provider.tokens["opaque"]

    clock.advance(believed_for - 0.25)
    await introspected("opaque")
    clock.advance(0.25)

    with pytest.raises(InvalidToken):
        await introspected("opaque")
    assert provider.introspections == 2


async def test_an_operator_may_disable_the_cache(provider: IdentityProvider) -> None:
    provider.tokens["opaque"] = MACHINE

    async with verifying(provider.settings(introspection=True, token_cache_seconds=0)) as verify:
        await verify("opaque")
        await verify("opaque")

    assert provider.introspections == 2


async def test_a_token_that_expired_during_suspend_stays_expired(
    provider: IdentityProvider, introspected: Verify, clock: FakeClock
) -> None:
    provider.tokens["opaque"] = MACHINE | {"exp": clock.now + 3600}
    await introspected("opaque")

    for seconds in (4000, -4000):
        clock.suspend(seconds)
        with pytest.raises(InvalidToken):
            await introspected("opaque")


async def test_setting_the_clock_back_extends_no_cache_entry(
    provider: IdentityProvider, introspected: Verify, clock: FakeClock
) -> None:
    provider.tokens["opaque"] = MACHINE
    await introspected("opaque")
    del provider.tokens["opaque"]

    clock.advance(60)
    clock.suspend(-3600)

    with pytest.raises(InvalidToken):
        await introspected("opaque")


async def test_a_valid_token_stays_cached_while_the_provider_is_down(
    provider: IdentityProvider, introspected: Verify, clock: FakeClock
) -> None:
    provider.tokens["opaque"] = MACHINE
    await introspected("opaque")

    async with provider.unavailable():
        clock.advance(59)
        assert (await introspected("opaque")).client_id == "lab"
        clock.advance(1)
        with pytest.raises(TemporarilyUnavailable):
            await introspected("opaque")


async def test_a_rejected_token_is_not_introspected_again_for_five_seconds(
    provider: IdentityProvider, introspected: Verify, clock: FakeClock
) -> None:
    async def refused() -> int:
        with pytest.raises(InvalidToken):
            await introspected("opaque")
        return provider.introspections

    assert [await refused(), await refused()] == [1, 1]
    clock.advance(4.75)
    assert await refused() == 1
    clock.advance(0.25)
    assert await refused() == 2
    clock.advance(5)
    provider.tokens["opaque"] = MACHINE
    assert (await introspected("opaque")).client_id == "lab"


def test_the_cache_evicts_the_least_recently_used_token() -> None:
    cache: TtlCache[int] = TtlCache(2)
    cache.keep(b"a", 1, until=10)
    cache.keep(b"b", 2, until=10)
    cache.get(b"a", 0)

    cache.keep(b"c", 3, until=10)

    assert [cache.get(key, 0) for key in (b"a", b"b", b"c")] == [1, None, 3]
    assert cache.get(b"a", 10) is None


async def test_rejected_tokens_evict_no_valid_token(
    provider: IdentityProvider, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.auth.token_cache.MAX_CACHED", 10)
    provider.tokens["opaque"] = MACHINE
    async with verifying(provider.settings(introspection=True), clock) as verify:
        await verify("opaque")
        await asyncio.gather(*(verify(f"junk-{number}") for number in range(50)), return_exceptions=True)
        asked_before = provider.introspections

        await verify("opaque")

    assert provider.introspections == asked_before


@pytest.mark.parametrize("token", ["", "x" * 8193, "a b", "a\tb", "a\nb", "a\x00b", "tökén", "a\x7f", "💊"])
async def test_text_that_cannot_be_a_token_is_refused_without_introspection(
    provider: IdentityProvider, introspected: Verify, token: str
) -> None:
    with pytest.raises(InvalidToken):
        await introspected(token)

    assert provider.introspections == 0


async def test_the_longest_token_is_introspected(provider: IdentityProvider, introspected: Verify) -> None:
    provider.tokens["x" * 8192] = MACHINE

    assert (await introspected("x" * 8192)).client_id == "lab"


async def test_a_token_is_in_no_log_and_no_error(provider: IdentityProvider, introspected: Verify) -> None:
    token = "marked-8f2e"
    answers = [
        None,
        lambda: Response(status_code=500),
        lambda: PlainTextResponse(token),
        introspection(client_id=[token]),
        endless_response,
    ]

    with captured_logs() as lines:
        for answer in answers:
            provider.answer = answer
            with pytest.raises((InvalidToken, TemporarilyUnavailable)) as refusal:
                await introspected(token + str(answers.index(answer)))
            assert token not in "".join(traceback.format_exception(refusal.value))
    assert len(lines) == 4
    assert token not in str(lines)


# Development tokens, and inconsistent settings


async def test_development_tokens_are_for_development() -> None:
    async with verifying(Settings()) as verify:
        assert (await verify("dev")).brand_id == "loop"
        with pytest.raises(InvalidToken):
            await verify("opaque")


@pytest.mark.parametrize("ways", [{"introspection": True}, {"jwt": True}, {"introspection": True, "jwt": True}])
@pytest.mark.parametrize("token", ["dev", "dev-loopbio"])
async def test_development_tokens_are_refused_where_tokens_are_verified(
    provider: IdentityProvider, ways: dict[str, bool], token: str
) -> None:
    async with verifying(provider.settings(**ways)) as verify:
        with pytest.raises(InvalidToken):
            await verify(token)


INTROSPECTION = {
    "GATEWAY_INTROSPECTION_URL": "https://idp.test/introspect",
    "GATEWAY_INTROSPECTION_CLIENT_ID": "gateway",
    "GATEWAY_INTROSPECTION_CLIENT_SECRET": "hunter2",
}
JWT = {
    "GATEWAY_JWKS_URL": "https://idp.test/jwks",
    "GATEWAY_JWT_ISSUER": ISSUER,
    "GATEWAY_JWT_AUDIENCE": AUDIENCE,
}
DISCOVERY = {
    "GATEWAY_OIDC_ISSUER": "https://idp.test/realms/clinic",
    "GATEWAY_JWT_AUDIENCE": AUDIENCE,
    "GATEWAY_INTROSPECTION_CLIENT_ID": "gateway",
    "GATEWAY_INTROSPECTION_CLIENT_SECRET": "hunter2",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"GATEWAY_{name.upper()}", raising=False)

    def set_environment(variables: dict[str, str]) -> None:
        for each in variables.items():
            monkeypatch.setenv(*each)

    return set_environment


Environment = Callable[[dict[str, str]], None]


@pytest.mark.parametrize("way", [INTROSPECTION, JWT, INTROSPECTION | JWT, DISCOVERY])
def test_any_address_may_be_bound_where_tokens_are_verified(environment: Environment, way: dict[str, str]) -> None:
    environment(way | {"GATEWAY_HOST": "0.0.0.0"})

    settings = Settings.from_environment()

    assert not settings.development
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize("way", [INTROSPECTION, JWT])
def test_an_incomplete_verifier_is_refused_with_the_missing_settings(
    environment: Environment, way: dict[str, str]
) -> None:
    for missing in way:
        environment(way)
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv(missing)
            with pytest.raises(SettingsError, match=f"^{missing}: required with"):
                Settings.from_environment()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("GATEWAY_JWT_AUDIENCE", "GATEWAY_JWT_AUDIENCE: required with GATEWAY_OIDC_ISSUER"),
        (
            "GATEWAY_INTROSPECTION_CLIENT_SECRET",
            "GATEWAY_INTROSPECTION_CLIENT_SECRET: required with GATEWAY_INTROSPECTION_CLIENT_ID",
        ),
        (
            "GATEWAY_INTROSPECTION_CLIENT_ID",
            "GATEWAY_INTROSPECTION_CLIENT_ID: required with GATEWAY_INTROSPECTION_CLIENT_SECRET",
        ),
    ],
)
def test_discovery_needs_the_audience_and_complete_credentials(
    environment: Environment, missing: str, message: str
) -> None:
    environment({name: value for name, value in DISCOVERY.items() if name != missing})

    with pytest.raises(SettingsError, match=f"^{message}$"):
        Settings.from_environment()


@pytest.mark.parametrize(
    "issuer",
    [
        "hunter2",
        "http://idp.test/",
        "https://idp.test/?hunter2",
        "https://name:hunter2@idp.test/",
        "https://idp.test/#a",
    ],
)
def test_an_issuer_for_discovery_is_a_confidential_url(environment: Environment, issuer: str) -> None:
    environment(DISCOVERY | {"GATEWAY_OIDC_ISSUER": issuer})

    with pytest.raises(SettingsError, match=r"^GATEWAY_OIDC_ISSUER: ") as mistake:
        Settings.from_environment()
    assert "hunter2" not in str(mistake.value)


@pytest.mark.parametrize(
    "issuer", ["https://idp.test", "https://idp.test/", "https://idp.test/realms/x", "HTTPS://IDP.test"]
)
def test_an_issuer_is_kept_as_it_is_written(environment: Environment, issuer: str) -> None:
    environment(DISCOVERY | {"GATEWAY_OIDC_ISSUER": issuer})

    assert Settings.from_environment().issuer == issuer


@pytest.mark.parametrize("way", [{}, JWT], ids=["development", "jwt"])
@pytest.mark.parametrize("name", ["GATEWAY_INTROSPECTION_AUDIENCE", "GATEWAY_INTROSPECTION_ISSUER"])
def test_an_audience_that_is_not_checked_is_refused(environment: Environment, way: dict[str, str], name: str) -> None:
    environment(way | {name: AUDIENCE})

    with pytest.raises(SettingsError, match=f"^GATEWAY_INTROSPECTION_URL: required with {name}$"):
        Settings.from_environment()


async def test_an_incomplete_verifier_does_not_start() -> None:
    with pytest.raises(SettingsError):
        async with verifying(Settings(jwks_url="https://idp.test/jwks")):
            pass


@pytest.mark.parametrize("name", ["GATEWAY_INTROSPECTION_URL", "GATEWAY_JWKS_URL"])
@pytest.mark.parametrize(
    "url",
    [
        "",
        "hunter2",
        "http://idp.test/x",
        "http://127.0.0.1.idp.test/",
        "http://127.0.0.1@idp.test/",
        "https://name:hunter2@idp.test/",
        "https://idp.test/#hunter2",
        "ftp://idp.test/",
        "file:///etc/passwd",
        "https://",
        "https://idp.test:99999/",
    ],
)
def test_a_provider_needs_https(environment: Environment, name: str, url: str) -> None:
    environment(INTROSPECTION | JWT | {name: url})

    with pytest.raises(SettingsError, match=f"^{name}: ") as mistake:
        Settings.from_environment()
    assert "hunter2" not in str(mistake.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9000/jwks", "http://[::1]/jwks", "http://localhost/jwks?a=b"])
def test_a_provider_on_loopback_may_use_http(environment: Environment, url: str) -> None:
    environment(JWT | {"GATEWAY_JWKS_URL": url})

    assert str(Settings.from_environment().jwks_url) == url
