"""Access tokens of six identity providers: who the caller is, and what makes a token unacceptable."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.auth.verifier import verifying
from gateway.settings import Settings
from resolvers.access import Caller
from resolvers.errors import InvalidToken
from tests import token_samples
from tests.identity_provider import FakeClock, IdentityProvider, signing_key
from tests.token_samples import ACCESS_TOKENS, ID_TOKENS, SAMPLES, Sample

KEY = signing_key("RS256", "one")
SCOPES = frozenset({"write:encounters", "read:encounters"})


def settings_of(sample: Sample, provider: IdentityProvider, **more: Any) -> Settings:
    """Return the settings of the provider's page, with the keys of the test's provider."""
    provider.keys = [KEY.jwk]
    advised = dict(sample.settings)
    # The metadata is that of the test's provider; the tokens have the issuer of the documentation.
    return Settings(**advised | {"oidc_issuer": provider.issuer, "jwt_issuer": advised["oidc_issuer"]} | more)


async def verified(
    sample: Sample, provider: IdentityProvider, clock: FakeClock, settings: dict[str, Any] | None = None, **changes: Any
) -> Caller:
    async with verifying(settings_of(sample, provider, **settings or {}), clock) as verify:
        return await verify(sample.signed(KEY, clock.now, **changes))


def sample_of(name: str) -> Sample:
    return next(each for each in SAMPLES if each.name == name)


@pytest.mark.parametrize("sample", ACCESS_TOKENS, ids=str)
async def test_an_access_token_names_its_client_person_and_brand(
    sample: Sample, provider: IdentityProvider, clock: FakeClock
) -> None:
    caller = await verified(sample, provider, clock)

    assert sample.caller == {
        "client_id": caller.client_id,
        "user_id": caller.user_id,
        "brand_id": caller.brand_id,
    }
    assert caller.scopes >= SCOPES
    assert caller.actor_type == ("user" if "person" in sample.name else "service")


@pytest.mark.parametrize("sample", [each for each in ACCESS_TOKENS if "machine" in each.name], ids=str)
async def test_a_machine_may_have_a_brand_of_its_own(
    sample: Sample, provider: IdentityProvider, clock: FakeClock
) -> None:
    caller = await verified(sample, provider, clock, settings={"claim_brand": "brand"}, brand="loop")

    assert (caller.user_id, caller.brand_id) == (None, "loop")


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://other.test"},
        {"aud": "another-service", "client_id": "another-client", "scope": "another-service/write:encounters"},
        {"exp": 1_799_999_900},
        {"cnf": {"jkt": "a thumbprint"}},
        {"at_hash": "MTIzNDU2Nzg5MDEyMzQ1Ng"},
    ],
    ids=str,
)
async def test_a_token_of_another_service_or_time_is_refused(
    sample: Sample, provider: IdentityProvider, clock: FakeClock, changes: dict[str, Any]
) -> None:
    with pytest.raises(InvalidToken):
        await verified(sample, provider, clock, **changes)


ID_TOKEN_CHANGES: list[dict[str, Any]] = [
    {},
    {"nonce": None},
    {"nonce": None, "at_hash": None},
]


@pytest.mark.parametrize("sample", ID_TOKENS, ids=str)
@pytest.mark.parametrize("changes", ID_TOKEN_CHANGES, ids=str)
@pytest.mark.parametrize("is_ours", [False, True], ids=["for its client", "also for the gateway"])
async def test_an_id_token_is_refused_even_with_the_right_audience(
    sample: Sample, provider: IdentityProvider, clock: FakeClock, changes: dict[str, Any], is_ours: bool
) -> None:
    aud = sample.claims["aud"]
    audiences = [*([aud] if isinstance(aud, str) else aud), *([sample.settings["jwt_audience"]] if is_ours else [])]

    with pytest.raises(InvalidToken):
        await verified(sample, provider, clock, **{"aud": audiences, "scope": "write:encounters", **changes})


@pytest.mark.parametrize("sample", [each for each in ACCESS_TOKENS if each.header.get("typ") != "at+jwt"], ids=str)
async def test_without_discovery_the_type_of_rfc_9068_is_required(
    sample: Sample, provider: IdentityProvider, clock: FakeClock
) -> None:
    explicit = {"oidc_issuer": None, "jwks_url": f"{provider.issuer}/jwks"}

    for settings in (explicit, {"jwt_type": "at+jwt"}):
        with pytest.raises(InvalidToken):
            await verified(sample, provider, clock, settings=settings)


# Persons who resemble machines


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("keycloak machine", {"preferred_username": "nurse.one"}),
        ("keycloak machine", {"preferred_username": None}),
        ("keycloak machine", {"preferred_username": "service-account-another"}),
        ("keycloak machine", {"sid": "2a88c258"}),
        ("keycloak machine", {"session_state": "2a88c258"}),
        ("keycloak person", {"preferred_username": "service-account-ward-app"}),
        ("keycloak person", {"client_id": "ward-app"}),
        ("keycloak person", {"client_id": "ward-app", "sid": None}),
        ("auth0 machine", {"sub": "auth0|awZfdIir8YFdGZWkvCejDoUb7SjTDicx@clients"}),
        ("auth0 machine", {"sub": "another@clients"}),
        ("auth0 machine", {"auth_time": 1_800_000_000}),
        ("okta person", {"sub": "0oaoesxtxmPf08QHk0h7@clients"}),
        ("keycloak person", {"sub": "ward-app@clients"}),
        ("cognito person", {"sub": "7ms1q8f0example7client1a@clients"}),
        ("auth0 person", {"gty": "client-credentials"}),
        ("okta machine", {"sub": "nurse.one@clinic.example"}),
        ("entra machine", {"scp": "write:encounters"}),
        ("entra machine", {"sub": "another"}),
        ("entra machine", {"idtyp": "user"}),
        ("entra machine", {"azpacr": None, "nbf": None, "scope": "write:encounters"}),
        ("cognito machine", {"sub": "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"}),
        ("zitadel machine", {"client_id": "244100000000000001"}),
        ("zitadel machine", {"client_id": "244100000000000001@clinic"}),
        ("zitadel machine", {"client_id": "https://app.example/client.json"}),
        ("zitadel machine", {"act": {"sub": "227800000000000001"}}),
    ],
    ids=str,
)
async def test_a_doubtful_caller_is_a_person(
    provider: IdentityProvider, clock: FakeClock, name: str, changes: dict[str, Any]
) -> None:
    caller = await verified(sample_of(name), provider, clock, **changes)

    assert caller.actor_type == "user"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("keycloak person", {"sub": None}),
        ("keycloak person", {"sub": None, "sid": None, "client_id": "ward-app"}),
        ("auth0 person", {"sub": None, "sid": "PqV2vQ0Nq0b2"}),
    ],
    ids=str,
)
async def test_a_persons_token_without_a_subject_is_refused(
    provider: IdentityProvider, clock: FakeClock, name: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(InvalidToken):
        await verified(sample_of(name), provider, clock, **changes)


async def test_another_provider_may_mark_its_machines_as_entra_id_does(
    provider: IdentityProvider, clock: FakeClock
) -> None:
    caller = await verified(sample_of("zitadel person"), provider, clock, idtyp="app")

    assert (caller.actor_type, caller.scopes) == ("service", SCOPES)


async def test_a_persons_roles_at_entra_id_are_no_scopes(provider: IdentityProvider, clock: FakeClock) -> None:
    caller = await verified(sample_of("entra person"), provider, clock, roles=["admin:*"])

    assert caller.scopes == SCOPES


# Cognito


@pytest.mark.parametrize(
    ("changes", "scopes"),
    [
        ({"aud": "encounters"}, ["read:encounters", "write:encounters"]),
        ({"client_id": "encounters", "scope": "openid"}, ["openid"]),
        ({"client_id": "encounters", "scope": None}, []),
        (
            {"scope": "encounters/read:encounters billing/write:encounters"},
            ["billing/write:encounters", "read:encounters"],
        ),
    ],
    ids=str,
)
async def test_a_token_of_cognito_is_for_its_client_or_resource_servers(
    provider: IdentityProvider, clock: FakeClock, changes: dict[str, Any], scopes: list[str]
) -> None:
    caller = await verified(sample_of("cognito machine"), provider, clock, **changes)

    assert sorted(caller.scopes - {""}) == scopes


@pytest.mark.parametrize(
    "changes",
    [
        {"scope": "encounters-2/read:encounters"},
        {"scope": "openid"},
        {"scope": None},
        {"scope": ["encounters/read:encounters"]},
        {"token_use": None},
        {"token_use": "id"},
        {"aud": []},
    ],
    ids=str,
)
async def test_a_token_of_cognito_for_another_resource_server_is_refused(
    provider: IdentityProvider, clock: FakeClock, changes: dict[str, Any]
) -> None:
    with pytest.raises(InvalidToken):
        await verified(sample_of("cognito machine"), provider, clock, **changes)


# Names of claims


@pytest.mark.parametrize(
    ("settings", "changes", "expected"),
    [
        ({"claim_brand": "clinic.brand"}, {"clinic.brand": "loop", "clinic": {"brand": "other"}}, "loop"),
        ({"claim_brand": "clinic.brand"}, {"clinic": {"brand": "loop"}}, "loop"),
        ({"claim_brand": "clinic.unit.brand"}, {"clinic": {"unit": {"brand": "loop"}}}, "loop"),
        ({"claim_brand": "clinic.brand"}, {"clinic": "loop"}, None),
        ({"claim_brand": "clinic.brand"}, {"clinic": ["brand"]}, None),
        ({"claim_brand": "clinic", "jwt_brand_claim": "unit"}, {"clinic": "other", "unit": "loop"}, "loop"),
    ],
    ids=str,
)
async def test_a_claim_is_named_exactly_or_by_a_path(
    provider: IdentityProvider,
    clock: FakeClock,
    settings: dict[str, Any],
    changes: dict[str, Any],
    expected: str | None,
) -> None:
    caller = await verified(sample_of("keycloak person"), provider, clock, settings=settings, **changes)

    assert caller.brand_id == expected


async def test_scopes_client_and_person_may_have_claims_of_their_own(
    provider: IdentityProvider, clock: FakeClock
) -> None:
    settings = {
        "claim_scopes": "resource_access.encounters.roles",
        "claim_client": "clinic.app",
        "claim_user": "clinic.staff_id",
    }
    changes = {
        "resource_access": {"encounters": {"roles": ["read:encounters"]}},
        "clinic": {"app": "ward", "staff_id": "nurse-1"},
    }

    caller = await verified(sample_of("keycloak person"), provider, clock, settings=settings, **changes)

    assert (caller.client_id, caller.user_id, caller.scopes) == ("ward", "nurse-1", frozenset({"read:encounters"}))


async def test_a_persons_token_without_the_configured_claim_is_refused(
    provider: IdentityProvider, clock: FakeClock
) -> None:
    with pytest.raises(InvalidToken):
        await verified(sample_of("keycloak person"), provider, clock, settings={"claim_user": "staff_id"})


async def test_an_introspected_service_account_of_keycloak_is_a_machine(
    provider: IdentityProvider, clock: FakeClock
) -> None:
    machine, person = (dict(sample_of(f"keycloak {kind}").claims) for kind in ("machine", "person"))
    for name, claims in {"machine": machine, "person": person}.items():
        # Keycloak adds the client and the user name to every answer.
        added = {"client_id": claims["azp"], "username": claims["preferred_username"], "token_type": "Bearer"}
        provider.tokens[name] = claims | added | {"iat": clock.now, "exp": clock.now + 300, "auth_time": clock.now}

    async with verifying(provider.settings(introspection=True), clock) as verify:
        callers = [await verify(name) for name in ("machine", "person")]

    assert [caller.actor_type for caller in callers] == ["service", "user"]


async def test_an_introspected_service_user_of_zitadel_is_a_machine(
    provider: IdentityProvider, clock: FakeClock
) -> None:
    scopes = sample_of("zitadel machine").settings["claim_scopes"]
    for name in ("machine", "person"):
        instants = {"iat": clock.now, "nbf": clock.now, "exp": clock.now + 300}
        added = {"username": "lab-feed", "token_type": "Bearer", "scope": "openid"}
        provider.tokens[name] = dict(sample_of(f"zitadel {name}").claims) | added | instants

    async with verifying(provider.settings(introspection=True, claim_scopes=scopes), clock) as verify:
        callers = [await verify(name) for name in ("machine", "person")]

    assert [(caller.actor_type, caller.scopes) for caller in callers] == [("service", SCOPES), ("user", SCOPES)]


# The files


@pytest.mark.parametrize("path", sorted(Path(token_samples.__file__).parent.glob("*.json")), ids=lambda path: path.stem)
def test_the_page_of_a_provider_shows_the_settings_of_its_samples(path: Path) -> None:
    content = json.loads(path.read_text())
    page = (Path(__file__).parents[2] / "docs" / content["page"]).read_text()

    assert all(source.startswith("https://") for source in content["sources"])
    for name in content["settings"]:
        assert f"GATEWAY_{name.upper()}=" in page
