"""What six identity providers put into their tokens: marks of an access token, and marks of a machine.

The table decides two questions. Which tokens without the type of RFC 9068 are access tokens all the same, and which
callers are machines although their `sub` is not the client. Its predicates accept claims of any JSON type, because
the signature may not be verified yet. A doubtful token is not an access token, and a doubtful caller is a person: a
person without a brand is refused, whereas a machine may choose its brand.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Claims = Mapping[str, Any]


class TokenProfile(NamedTuple):
    """The tokens of one provider."""

    provider: str
    is_access_token: Callable[[Claims], bool]
    """Whether the claims are marked as those of an access token; asked only if the header has no `at+jwt`."""

    is_machine: Callable[[Claims, str], bool]
    """Whether the token was issued to the client itself. The second argument is the client."""

    machine_scopes: str | None = None
    """Claim that lists the scopes of a machine, if it is not that of a person."""


def machine_profile(claims: Claims, client_id: str) -> TokenProfile | None:
    """Return the row that marks the caller as a machine, or None for a person."""
    return next((profile for profile in PROFILES if profile.is_machine(claims, client_id)), None)


def marks_access_token(claims: Claims) -> bool:
    """Whether a provider of the table marks its access tokens so."""
    return any(profile.is_access_token(claims) for profile in PROFILES)


def marks_other_token(claims: Claims) -> bool:
    """Whether the claims are marked as those of an ID token, or of a refresh or logout token.

    `at_hash` and `c_hash` bind an ID token to the tokens that were issued with it. Source: OpenID Connect Core, 3.1.3.6
    and 3.3.2.11. `typ` is that of Keycloak, `token_use` that of Cognito.
    """
    return (
        claims.get("typ") in ("ID", "Refresh", "Offline", "Logout")
        or claims.get("token_use") in ("id", "refresh")
        or not _lacks(claims, "at_hash", "c_hash")
    )


def with_cognito_audience(claims: Claims, audience: str) -> Claims:
    """Return the claims of a Cognito access token with `aud`, and with the scopes of this gateway in short form.

    Cognito names a custom scope `<resource server>/<scope>`, and sets no `aud` unless the client asks for a resource.
    The token is for this gateway if the audience is one of these resource servers, or the client. The claims of all
    other tokens are returned unchanged.
    """
    scope = claims.get("scope", "")
    if claims.get("token_use") != "access" or not isinstance(scope, str):
        return claims
    prefix = f"{audience}/"
    scopes = scope.split(" ")
    is_for_audience = claims.get("client_id") == audience or any(each.startswith(prefix) for each in scopes)
    named = audience if claims.get("aud") is None and is_for_audience else claims.get("aud")
    return {**claims, "aud": named, "scope": " ".join(each.removeprefix(prefix) for each in scopes)}


def _lacks(claims: Claims, *names: str) -> bool:
    return all(claims.get(name) is None for name in names)


def _is_of_client_itself(claims: Claims, client_id: str) -> bool:
    # Keycloak omits the `sub` of persons from lightweight tokens, and where a client lacks the scope `basic`.
    may_omit_subject = not _is_keycloak_access_token(claims) and _lacks(claims, "sid", "session_state")
    return claims.get("sub") == client_id or (claims.get("sub") is None and may_omit_subject)


def _is_keycloak_access_token(claims: Claims) -> bool:
    return claims.get("typ") == "Bearer" and isinstance(claims.get("azp"), str)


def _is_keycloak_service_account(claims: Claims, client_id: str) -> bool:
    # Only the client credentials grant sets the session note that becomes `client_id` (`clientId` before version 23).
    # An introspection answer always has it, so the user name and the absence of a session are required as well.
    username = claims.get("preferred_username", claims.get("username"))
    return (
        _is_keycloak_access_token(claims)
        and claims.get("client_id", claims.get("clientId")) == claims.get("azp") == client_id
        and isinstance(username, str)
        and username.lower() == f"service-account-{client_id}".lower()
        and _lacks(claims, "sid", "session_state")
    )


def _is_auth0_access_token(claims: Claims) -> bool:
    # An ID token names its client in `aud`, an access token an API. Source: OpenID Connect Core, section 2.
    azp, aud = claims.get("azp"), claims.get("aud")
    audiences = aud if isinstance(aud, list) else [aud]
    return (
        isinstance(azp, str)
        and azp not in audiences
        and not _lacks(claims, "scope", "gty")
        and _lacks(claims, "nonce", "typ", "token_use")
    )


# Claims that mark the tokens of other providers, and those of persons.
_NOT_OF_AN_AUTH0_MACHINE = (
    "typ", "token_use", "cid", "uid", "username", "preferred_username", "auth_time", "sid", "act"
)  # fmt: skip


def _is_auth0_machine(claims: Claims, client_id: str) -> bool:
    # The id of a user of Auth0 contains `|`, for instance `auth0|1234`. At other providers a person may choose a `sub`.
    return claims.get("sub") == f"{client_id}@clients" and _lacks(claims, *_NOT_OF_AN_AUTH0_MACHINE)


def _is_okta_access_token(claims: Claims) -> bool:
    jti = claims.get("jti")
    return isinstance(jti, str) and jti.startswith("AT.") and isinstance(claims.get("cid"), str)


def _is_entra_access_token(claims: Claims) -> bool:
    return not _lacks(claims, "azpacr", "appidacr") and _lacks(claims, "nonce")


def _is_entra_application(claims: Claims, _: str) -> bool:
    # `idtyp` is an optional claim. Without it, both ids of an application are those of its service principal.
    if claims.get("idtyp") is not None:
        return bool(claims["idtyp"] == "app")
    subject = claims.get("sub")
    return (
        _is_entra_access_token(claims)
        and _lacks(claims, "scp")
        and isinstance(subject, str)
        and claims.get("oid") == subject
    )


def _is_cognito_access_token(claims: Claims) -> bool:
    return claims.get("token_use") == "access"


def _is_zitadel_access_token(claims: Claims) -> bool:
    return (
        any(name.startswith("urn:zitadel:iam:") for name in claims)
        and not _lacks(claims, "jti")
        and not _lacks(claims, "nbf")
        and _lacks(claims, "azp", "auth_time", "amr", "nonce")
    )


# The name of a service user. Zitadel generates the client ids of applications: digits, and `@` with the project in old
# ones. The id of a client with a metadata document is a URL.
_ZITADEL_USER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._+-]*(@[A-Za-z0-9._-]+)?")


def _is_zitadel_service_user(claims: Claims, client_id: str) -> bool:
    return (
        _is_zitadel_access_token(claims)
        and _lacks(claims, "act")
        and _ZITADEL_USER_NAME.fullmatch(client_id) is not None
    )


def _never(*_: object) -> bool:
    return False


PROFILES = (
    # https://www.rfc-editor.org/rfc/rfc9068#section-2.2: `sub` of a token without a resource owner is the client.
    # So are the machines of Okta and Cognito, and the service users of Zitadel that sign in by a key.
    TokenProfile("RFC 9068", _never, _is_of_client_itself),
    # https://www.keycloak.org/docs/latest/server_admin/#_service_accounts and AccessToken.java, TokenUtil.java
    TokenProfile("Keycloak", _is_keycloak_access_token, _is_keycloak_service_account),
    # https://auth0.com/docs/secure/tokens/access-tokens/access-token-profiles
    TokenProfile("Auth0", _is_auth0_access_token, _is_auth0_machine),
    # https://developer.okta.com/docs/reference/api/oidc/#access-token
    TokenProfile("Okta", _is_okta_access_token, _never),
    # https://learn.microsoft.com/entra/identity-platform/access-token-claims-reference
    # https://learn.microsoft.com/entra/identity-platform/scenario-protected-web-api-verification-scope-app-roles
    TokenProfile("Entra ID", _is_entra_access_token, _is_entra_application, machine_scopes="roles"),
    # https://docs.aws.amazon.com/cognito/latest/developerguide/amazon-cognito-user-pools-using-the-access-token.html
    TokenProfile("Cognito", _is_cognito_access_token, _never),
    # https://zitadel.com/docs/apis/openidoauth/claims
    TokenProfile("Zitadel", _is_zitadel_access_token, _is_zitadel_service_user),
)
"""One row for each provider, with its source."""
