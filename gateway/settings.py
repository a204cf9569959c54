"""Settings of the gateway, with unit, default and reason. The environment is not read at import."""

import importlib.util
import re
from base64 import b64decode
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

import orjson
import platformdirs
from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    field_validator,
)

from gateway import connection_url, environment
from resolvers.access import Exploring, Permission, scopes_from
from resolvers.origins import AllowedOrigins

PREFIX = "GATEWAY_"
HIDDEN = "(hidden)"
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
DEFAULT_PORTS = {"http": 80, "https": 443}

# Settings that must be set together. The introspection endpoint must require credentials (RFC 7662 section 2.1). A
# token of another issuer or for another audience must be refused (RFC 9068 section 4).
VERIFIERS = (
    ("introspection_url", "introspection_client_id", "introspection_client_secret"),
    ("jwks_url", "jwt_issuer", "jwt_audience"),
)
DISCOVERED = ("introspection_url", "jwks_url", "jwt_issuer")
"""Settings of these that `oidc_issuer` makes optional."""
FOR_INTROSPECTION = ("introspection_issuer", "introspection_audience")
"""Optional settings of introspection, which have no effect without it."""


def _confidential(url: AnyHttpUrl) -> AnyHttpUrl:
    """Return the URL if requests to it are confidential: HTTPS or loopback. Raises `ValueError`."""
    if url.scheme == "http" and (url.host or "").strip("[]") not in LOOPBACK:
        raise ValueError("must begin with https:// (http:// is for an address of this machine only)")
    if url.username or url.password or url.fragment:
        raise ValueError("must not contain a user name, a password or a fragment")
    return url


ProviderUrl = Annotated[AnyHttpUrl, AfterValidator(_confidential)]


def _as_written(issuer: str) -> str:
    """Return the URL of an issuer unchanged, because issuers are compared exactly. Raises `ValueError`."""
    try:
        url = TypeAdapter(ProviderUrl).validate_python(issuer)
    except ValidationError as error:
        raise ValueError(error.errors(include_input=False)[0]["msg"].removeprefix("Value error, ")) from None
    if url.query is not None:
        raise ValueError("must not contain a query")
    return issuer


PUBLIC_PATH = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*/?")
"""Paths without an empty segment, a dot segment or an escape, which proxies treat differently."""

OWN_PATHS = frozenset(
    {
        "assets",
        "board",
        "docs",
        "graphql",
        "healthz",
        "metrics",
        "openapi.json",
        "problems",
        "readyz",
        "rules",
        "v1",
    }
)
"""First segments of the gateway's own paths."""


def _public(url: AnyHttpUrl) -> AnyHttpUrl:
    """Return the URL if the gateway can be reached under it. Raises `ValueError`."""
    if url.username or url.password or url.query is not None or url.fragment is not None:
        raise ValueError("must not contain a user name, a password, a query or a fragment")
    path = url.path or "/"
    if not PUBLIC_PATH.fullmatch(path):
        raise ValueError("the path may have letters, digits, -, _, ~ and, not at the start of a segment, dots")
    if path.split("/")[1] in OWN_PATHS:
        raise ValueError(f"the path must not begin with /{path.split('/')[1]}, which is a path of the gateway itself")
    return url


HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'+.^_`|~-]{1,100}$")]
"""Name of a header field, without `*`, which would allow any name. Source: RFC 9110, 5.1 and 5.6.2."""


def signing_key(secret: str) -> bytes:
    """Return the key of a `whsec_…` secret. Raises `ValueError`. Source: Standard Webhooks 1.0.0."""
    prefix, _, encoded = secret.partition("_")
    try:
        key = b64decode(encoded, validate=True)
    except ValueError:
        key = b""
    if prefix != "whsec" or not 24 <= len(key) <= 64:
        raise ValueError("must be whsec_ and 24 to 64 random bytes in base64")
    return key


class Webhook(BaseModel):
    """A receiver of signed webhooks. With `brand_id` it gets the events of that brand only; without, all events."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")
    url: ProviderUrl
    secrets: tuple[SecretStr, ...] = Field(min_length=1, max_length=4)
    brand_id: str | None = None

    @field_validator("secrets")
    @classmethod
    def _can_sign(cls, secrets: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for secret in secrets:
            signing_key(secret.get_secret_value())
        return secrets

    @property
    def keys(self) -> list[bytes]:
        """The signing keys of all secrets; there are several while the receiver rotates its secret."""
        return [signing_key(secret.get_secret_value()) for secret in self.secrets]


def _user_data_folder() -> Path:
    try:
        return platformdirs.user_data_path("encounter-gateway")
    except RuntimeError:
        # The user has no home folder. Only a private PostgreSQL needs the folder, and it then reports the error.
        return Path("~/.local/share/encounter-gateway")


class SettingsError(Exception):
    """The settings are invalid. The message names the setting and the remedy."""


class Settings(BaseModel):
    """Settings of the gateway. The field `max_body_bytes` is read from `GATEWAY_MAX_BODY_BYTES`.

    A secret may also be read from a file: `GATEWAY_DATABASE_URL_FILE` names the file with the database URL.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    host: str = Field("127.0.0.1", description="Address to listen on. Development mode allows loopback only.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on.")
    public_url: Annotated[AnyHttpUrl, AfterValidator(_public)] | None = Field(
        None,
        description="URL under which clients reach the gateway, if a proxy serves it below a path "
        "(`https://clinic.example/gateway/`). Empty: the root of the host. See [behind a "
        "path](deploying.md#behind-a-path).",
    )
    workers: int = Field(1, ge=1, le=64, description="Number of server processes.")
    data_dir: Path = Field(
        default_factory=_user_data_folder,
        description="Folder of the private PostgreSQL; unused if a database URL is set.",
    )
    database_url: SecretStr | None = Field(
        None, description="PostgreSQL to use (postgresql://…), 15 to 18. Empty: a private one is started."
    )
    database_owner_url: SecretStr | None = Field(
        None,
        description="URL of the same database for the role that owns the tables, for migrations. Empty: the "
        "database URL.",
    )
    database_unsafe: bool = Field(
        False, description="Serve on a database that can lose committed data. For tests only."
    )
    database_cluster: bool = Field(
        False,
        description=(
            "Whether the database is a Citus cluster. Each recording is then a transaction of its own, of "
            "statements that each query one shard and are planned for their arguments."
        ),
    )
    database_read_urls: SecretStr | None = Field(
        None,
        description="URLs of [streaming replicas](replicas.md) that reads are sent to, separated by spaces. Each names "
        "one server. Empty: the primary serves every read.",
    )
    database_read_lag_seconds: float = Field(
        10.0,
        ge=1,
        le=120,
        description="Seconds that a replica may be behind the primary before no read is sent to it.",
    )
    database_pool_size: int = Field(
        10, ge=1, le=1000, description="Maximum number of database connections of a process."
    )
    database_acquire_seconds: float = Field(
        1.0,
        gt=0,
        le=60,
        description="Seconds that a request waits for a free connection before it is refused with 503.",
    )
    database_statement_seconds: float = Field(
        10.0, gt=0, le=600, description="Seconds that a statement may run before PostgreSQL cancels it."
    )
    worklist_seconds: float = Field(
        2.0,
        gt=0,
        le=600,
        description="Seconds that the statement of a list across patients may run before it is refused as `too_broad`.",
    )
    oidc_issuer: Annotated[str, AfterValidator(_as_written)] | None = Field(
        None,
        description="Issuer of the identity provider, spelt as in its tokens. Its key set and introspection endpoint "
        "are discovered (OpenID Connect Discovery, RFC 8414), unless they are set below. GATEWAY_JWT_AUDIENCE is "
        "required with it. See [identity providers](access.md#identity-providers).",
    )
    introspection_url: ProviderUrl | None = Field(
        None,
        description="Token introspection endpoint (RFC 7662). Empty: the discovered one, if a client id and a secret "
        "are set.",
    )
    introspection_client_id: str | None = Field(
        None, min_length=1, description="Client id of this gateway at the introspection endpoint (HTTP Basic)."
    )
    introspection_client_secret: SecretStr | None = Field(None, min_length=1, description="Secret of that client.")
    introspection_issuer: str | None = Field(
        None,
        min_length=1,
        description="Required `iss` of an introspection response. Empty: GATEWAY_JWT_ISSUER or GATEWAY_OIDC_ISSUER, if "
        "the response has an `iss`; if both are empty too, any.",
    )
    introspection_audience: str | None = Field(
        None,
        min_length=1,
        description="Name of this gateway, which the `aud` of an introspection response must contain. Empty: "
        "GATEWAY_JWT_AUDIENCE, if the response has an `aud`; if that is empty too, any. See "
        "[authorization](access.md).",
    )
    jwks_url: ProviderUrl | None = Field(
        None, description="URL of the key set that verifies JWT access tokens. Empty: the discovered one."
    )
    jwt_issuer: str | None = Field(
        None,
        min_length=1,
        description="Required `iss` of JWT access tokens, compared exactly. Empty: GATEWAY_OIDC_ISSUER.",
    )
    jwt_audience: str | None = Field(
        None, min_length=1, description="Name of this gateway, which the `aud` of a JWT access token must contain."
    )
    jwt_type: str | None = Field(
        None,
        min_length=1,
        description="Required `typ` of JWT access tokens. With `JWT`, only the audience distinguishes them from "
        "ID tokens. Empty: `at+jwt`, and with GATEWAY_OIDC_ISSUER also the access tokens that "
        "[six providers](access.md#identity-providers) mark otherwise.",
    )
    jwt_brand_claim: str | None = Field(
        None, min_length=1, description="The claim that names the brand in a JWT. Empty: GATEWAY_CLAIM_BRAND."
    )
    claim_brand: str | None = Field(
        None,
        min_length=1,
        description="The claim that names the brand: its exact name, else a path such as `clinic.brand` into nested "
        "claims. Empty: `brand`, else `brand_id`.",
    )
    claim_scopes: str | None = Field(
        None,
        min_length=1,
        description="The claim, or path, that lists the scopes: a text with spaces between, a list, or an object whose "
        "members have their names. Empty: `scope`, else `scp`; for an application of Entra ID, `roles`.",
    )
    claim_client: str | None = Field(
        None,
        min_length=1,
        description="The claim, or path, that names the client. Empty: `client_id`, else `azp`, `appid` or `cid`.",
    )
    claim_user: str | None = Field(
        None,
        min_length=1,
        description="The claim, or path, that identifies a person; a person's token without it is refused. "
        "Empty: `sub`.",
    )
    token_cache_seconds: float = Field(
        60.0, ge=0, le=60, description="Seconds for which a valid token is cached before it is verified again."
    )
    token_leeway_seconds: float = Field(
        60.0,
        ge=0,
        le=300,
        description="Maximum difference in seconds between the clocks of the identity provider and the gateway.",
    )
    identity_provider_seconds: float = Field(
        3.0,
        gt=0,
        le=30,
        description="Timeout in seconds of a request to the identity provider; then the caller gets 503.",
    )
    scopes: dict[Permission, tuple[str, ...]] = Field(
        {},
        description="Scopes that allow an operation, if not the defaults: a JSON object from operation to a list "
        "of scopes. See [authorization](access.md).",
    )
    origins: dict[str, tuple[str, ...]] = Field(
        {},
        description="Origins of pages that may call from a browser: a JSON object from client id to a list of "
        "origins (`https://app.example`). None by default; development mode also allows `http://localhost`, "
        "`http://127.0.0.1` and `http://[::1]`, on every port.",
    )
    cors_headers: tuple[HeaderName, ...] = Field(
        (),
        max_length=100,
        description="Additional request headers that those pages may send: a JSON list of names. See "
        "[authorization](access.md).",
    )
    rate_writes_per_minute: int = Field(
        200,
        ge=0,
        le=1_000_000,
        description="Maximum writes of one client in any minute, over REST and GraphQL together. 0: no limit.",
    )
    rate_reads_per_minute: int = Field(
        1_000,
        ge=0,
        le=1_000_000,
        description="Maximum reads of one client in any minute, over REST and GraphQL together. 0: no limit.",
    )
    rate_address_per_minute: int = Field(
        3_000,
        ge=0,
        le=1_000_000,
        description="Maximum unverified tokens of one address in any minute, in each process; not applied to "
        "loopback. 0: no limit.",
    )
    rate_failed_sign_ins_per_minute: int = Field(
        60,
        ge=0,
        le=1_000_000,
        description="Maximum rejected tokens among these, before further unverified tokens must wait. 0: no limit.",
    )
    rate_parsing_ms_per_minute: int = Field(
        6_000,
        ge=0,
        le=60_000,
        description="Milliseconds of CPU time for parsing and validating the GraphQL requests of one client in "
        "any minute, in each process. One millisecond of each request is not counted. 0: no limit.",
    )
    rate_answer_bytes_per_minute: int = Field(
        512 * 1024 * 1024,
        ge=0,
        description="Bytes of the answers of one client, and of the rows they are built from, in any minute, in "
        "each process. The first 64 KiB of each answer are not counted. Above the limit the client's "
        "reads get 429. 0: no limit.",
    )
    rate_limit_url: SecretStr | None = Field(
        None,
        description="URL of a Redis or Valkey server (redis://, rediss://, unix://) that counts requests for all "
        "processes; needs the extra `redis`. Empty: each process counts its own.",
    )
    head_seconds: float = Field(10.0, gt=0, description="Seconds within which the head of a request must arrive.")
    max_body_bytes: int = Field(256 * 1024, ge=1024, description="Maximum size of a request body, in bytes.")
    body_seconds: float = Field(10.0, gt=0, description="Seconds within which a request body must arrive.")
    sockets_max: int = Field(
        1_000,
        ge=0,
        le=100_000,
        description="Maximum number of authenticated WebSockets and event streams in each process. 0: none are "
        "accepted.",
    )
    sockets_max_per_client: int = Field(
        500, ge=1, le=100_000, description="Maximum number of these for one client in each process."
    )
    sockets_unauthenticated_max: int = Field(
        100,
        ge=1,
        le=100_000,
        description="Maximum number of unauthenticated WebSockets in each process. One more closes the oldest of "
        "the address that has the most.",
    )
    socket_operations: int = Field(
        100,
        ge=1,
        le=10_000,
        description="Maximum number of running operations on one WebSocket, including subscriptions.",
    )
    socket_init_seconds: float = Field(
        10.0, gt=0, le=600, description="Seconds within which a WebSocket must authenticate."
    )
    socket_send_seconds: float = Field(
        20.0,
        gt=0,
        le=600,
        description="Seconds that a message waits for a client that does not read, before the connection is closed.",
    )
    min_send_bytes_per_second: int = Field(
        4096,
        ge=0,
        le=1_000_000,
        description="Minimum rate at which a client must read a buffered HTTP answer, in bytes per second, "
        "averaged over GATEWAY_SOCKET_SEND_SECONDS. A slower client is disconnected. 0: at least one "
        "byte in that time.",
    )
    socket_recheck_seconds: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="Seconds between verifications of the token of an open WebSocket or stream. A revoked token "
        "may be accepted for GATEWAY_TOKEN_CACHE_SECONDS more.",
    )
    stream_heartbeat_seconds: float = Field(
        15.0,
        gt=0,
        le=600,
        description="Seconds between heartbeats of a stream of server-sent events. Proxies close idle "
        "connections, often after 60 s.",
    )
    drain_pause_seconds: float = Field(
        0.0,
        ge=0,
        le=300,
        description="Seconds that the gateway continues to serve after a signal to stop, while it reports that it "
        "is not ready. Choose the time that the load balancer needs to notice.",
    )
    drain_seconds: int = Field(10, ge=0, description="Seconds that requests in flight may take after that.")
    chief_complaint_characters: int = Field(
        2_000, ge=1, description="Maximum length of `chief_complaint`, in characters."
    )
    notes_characters: int = Field(50_000, ge=1, description="Maximum length of `notes`, in characters.")
    reason_characters: int = Field(
        2_000, ge=1, description="Maximum length of the `reason` of a change, in characters."
    )
    metadata_bytes: int = Field(64 * 1024, ge=2, description="Maximum size of `metadata`, in bytes of JSON.")
    metadata_levels: int = Field(32, ge=1, le=200, description="Maximum nesting of `metadata`, in levels.")
    idempotency_hours: int = Field(
        7 * 24, ge=24, description="Hours that an idempotency key is stored. Clinics that were offline send late."
    )
    duplicate_window_minutes: int = Field(
        60,
        ge=0,
        le=7 * 24 * 60,
        description="Maximum minutes between the recordings of two encounters of the same patient, type and "
        "provider for the earlier one to be named in `possibleDuplicates`. 0: none is named.",
    )
    audit_queue: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="Maximum number of queued audit records of refusals and reads in each process; half of the "
        "queue is reserved for reads. See [the audit log](audit.md).",
    )
    audit_key: SecretStr | None = Field(
        None,
        min_length=16,
        description="Secret key of the audit chain. Empty: a program that may write to the database can forge a "
        "valid chain.",
    )
    webhook_url: ProviderUrl | None = Field(
        None, description="URL of the webhook that receives every event. See [events](events.md)."
    )
    webhook_secret: SecretStr | None = Field(
        None,
        description="Secret that signs the webhooks: `whsec_…`; two secrets, separated by a space, during a rotation.",
    )
    webhooks: tuple[Webhook, ...] = Field(
        (), description="Further receivers, or one for each brand: a JSON list, see [events](events.md)."
    )
    webhook_seconds: float = Field(
        15.0, gt=0, le=300, description="Timeout in seconds of a delivery to a receiver of events."
    )
    nats_url: SecretStr | None = Field(
        None,
        description="URL of the NATS server (nats://, tls://) whose JetStream stores events; needs the extra `nats`.",
    )
    nats_subject: str = Field(
        "patient_graph.events",
        pattern=r"^[^\s.*>]+(\.[^\s.*>]+)*$",
        description="Subject that events are published to; a stream must listen to it.",
    )
    event_source: str = Field(
        "/encounter-gateway",
        min_length=1,
        description="The `source` of events: a URI that identifies this gateway, preferably its public URL.",
    )
    otlp_endpoint: AnyHttpUrl | None = Field(
        None,
        description="Base URL of an OpenTelemetry collector that receives traces by OTLP over HTTP "
        "(`http://collector:4318`); needs the extra `traces`. Empty: no traces. See [observing](observing.md).",
    )
    trace_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the traces that are recorded. A request with a `traceparent` is recorded if its caller "
        "records it.",
    )
    event_retry_hours: int = Field(
        72, ge=1, description="Hours for which the delivery of an event is retried before it becomes a dead letter."
    )
    event_days: int = Field(
        30, ge=1, description="Days that an event is stored in the feed; longer while a sink has not received it."
    )
    explorer: Exploring | None = Field(
        None,
        description="Callers that may explore the schema (introspection, suggestions, the explorer's page): "
        "`open` all, `scoped` callers with the scope for `explore`, `off` none. Empty: `open` in "
        "development mode, else `off`.",
    )
    limits: Literal["enforce", "measure"] = Field(
        "enforce",
        description="Whether a document that exceeds a limit below is refused, or only logged. See "
        "[limits](limits.md).",
    )
    max_tokens: int = Field(2_000, ge=100, description="Maximum length of a GraphQL document, in tokens.")
    max_characters: int = Field(65_536, ge=100, description="Maximum length of a GraphQL document, in characters.")
    max_depth: int = Field(20, ge=1, le=100, description="Maximum depth of a GraphQL document, in levels of fields.")
    max_fields: int = Field(
        1_000,
        ge=1,
        le=100_000,
        description="Maximum number of fields in a GraphQL document; those of a fragment count at every spread.",
    )
    max_aliases: int = Field(50, ge=0, description="Maximum number of aliases in a GraphQL document.")
    max_directives: int = Field(50, ge=0, description="Maximum number of directives in a GraphQL document.")
    max_root_fields: int = Field(50, ge=1, description="Maximum number of fields at the root of a GraphQL operation.")
    max_operations: int = Field(50, ge=1, description="Maximum number of operations in a GraphQL document.")
    max_cost: int = Field(
        25_000,
        ge=100,
        description="Maximum number of objects that one GraphQL operation can return; the sizes of nested pages "
        "are multiplied.",
    )
    max_answer_bytes: int = Field(
        16 * 1024 * 1024,
        ge=1024 * 1024,
        description="Maximum size in bytes of an answer, and of the rows that it is built from.",
    )
    answer_memory_bytes: int = Field(
        256 * 1024 * 1024,
        ge=1024 * 1024,
        description="Maximum bytes of all answers in flight in each process, from the first row until the client "
        "has read them. Further answers are refused with 503. The first 64 KiB of each are not "
        "counted.",
    )
    documents: Path | None = Field(
        None, description="Manifest of [trusted documents](documents.md), or a folder of manifests."
    )
    documents_policy: Literal["log", "safelist", "enforce"] = Field(
        "log",
        description="Treatment of a document outside the manifest: `log` runs and logs it, `safelist` refuses it, "
        "`enforce` runs documents by their ids only.",
    )
    batch_operations: int = Field(
        0,
        ge=0,
        le=100,
        description="Maximum number of operations in a GraphQL request that is an array. 0: arrays are refused, "
        "so that one request is one operation in every log and limit. See [GraphQL](graphql.md).",
    )
    federation: bool = Field(
        False,
        description="Also serve the schema as a subgraph of Apollo Federation 2, for a router. See "
        "[federation](federation.md).",
    )
    page_size: int = Field(20, ge=1, description="Default number of items on a page.")
    page_size_max: int = Field(100, ge=1, le=500, description="Maximum number of items on a page.")

    @classmethod
    def from_environment(cls) -> Self:
        """Return the settings from the environment. Raises `SettingsError`, which names every invalid variable.

        For an unknown variable the error also names the most similar known one.
        """
        values, problems = environment.read(PREFIX, cls.model_fields)
        try:
            settings = cls(**values)
        except ValidationError as error:
            # The message never quotes the value: it may be a secret in the wrong variable.
            problems += [
                f"{PREFIX}{str(detail['loc'][0]).upper()}: {detail['msg'].removeprefix('Value error, ')}"
                for detail in error.errors(include_input=False, include_url=False)
            ]
        if problems:
            raise SettingsError("\n".join(problems))
        settings.refuse_half_a_verifier()
        settings.refuse_contradicting_sinks()
        settings.refuse_open_development()
        settings.refuse_a_policy_without_documents()
        settings.refuse_answers_larger_than_their_memory()
        settings.refuse_replicas_of_a_cluster()
        return settings

    @field_validator("rate_limit_url")
    @classmethod
    def _rates_can_be_shared(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            if not url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
                raise ValueError("must begin with redis://, rediss:// or unix://")
            if not all(map(importlib.util.find_spec, ("redis", "limits"))):
                raise ValueError("needs the packages redis and limits: install encounter-gateway[redis]")
        return url

    @field_validator("webhook_secret")
    @classmethod
    def _webhooks_can_be_signed(cls, secrets: SecretStr | None) -> SecretStr | None:
        # An empty value is invalid too: `[""]` makes `signing_key` raise.
        for secret in [] if secrets is None else secrets.get_secret_value().split() or [""]:
            signing_key(secret)
        return secrets

    @field_validator("database_url", "database_owner_url")
    @classmethod
    def _is_of_postgresql(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            connection_url.parse(url.get_secret_value())
        return url

    @field_validator("database_read_urls")
    @classmethod
    def _each_is_one_server(cls, urls: SecretStr | None) -> SecretStr | None:
        for url in [] if urls is None else urls.get_secret_value().split():
            if len(connection_url.parse(url).hosts) > 1:
                raise ValueError("each URL must name one server; separate several URLs by spaces")
        return urls

    @field_validator("nats_url")
    @classmethod
    def _nats_can_be_reached(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            if not url.get_secret_value().startswith(("nats://", "tls://")):
                raise ValueError("must begin with nats:// or tls://")
            if importlib.util.find_spec("nats") is None:
                raise ValueError("needs the package nats-py: install encounter-gateway[nats]")
        return url

    @field_validator("otlp_endpoint")
    @classmethod
    def _traces_can_be_sent(cls, url: AnyHttpUrl | None) -> AnyHttpUrl | None:
        if url is not None:
            if url.username or url.password or url.query or url.fragment:
                raise ValueError("must not contain a user name, a password, a query or a fragment")
            if not traces_are_installed():
                raise ValueError("needs the packages of OpenTelemetry: install encounter-gateway[traces]")
        return url

    @field_validator("scopes")
    @classmethod
    def _every_operation_has_a_scope(
        cls, overrides: dict[Permission, tuple[str, ...]]
    ) -> dict[Permission, tuple[str, ...]]:
        scopes_from(overrides)
        return overrides

    def shown(self) -> dict[str, str]:
        """Return the values in force by variable, in the format that `from_environment` reads. Secrets are hidden."""
        return {f"{PREFIX}{name.upper()}": _shown(value) for name, value in self}

    def assignments(self) -> list[str]:
        """Return lines for an environment file. Secrets are commented out, so that the file can be loaded again."""
        return [f"{'# ' if HIDDEN in value else ''}{name}={value}" for name, value in self.shown().items()]

    @property
    def owner_variable(self) -> str:
        """Name of the variable that sets the owner's URL."""
        return PREFIX + ("DATABASE_URL" if self.database_owner_url is None else "DATABASE_OWNER_URL")

    @property
    def serving_url(self) -> str:
        """URL of the role that serves; it tells whether the database is a cluster. A database URL must be set."""
        assert self.database_url is not None, "the caller has set or started a database"
        url = self.database_url.get_secret_value()
        return f"{url}{'&' if '?' in url else '?'}cluster=true" if self.database_cluster else url

    @property
    def owner_url(self) -> str:
        """URL of the role that owns the tables. A database URL must be set."""
        url = self.database_owner_url or self.database_url
        assert url is not None, "the caller has set or started a database"
        return url.get_secret_value()

    @property
    def read_urls(self) -> tuple[str, ...]:
        """URLs of the replicas, in order."""
        return () if self.database_read_urls is None else tuple(self.database_read_urls.get_secret_value().split())

    @property
    def every_webhook(self) -> tuple[Webhook, ...]:
        """All receivers of webhooks: the one of `webhook_url`, and those of `webhooks`."""
        if self.webhook_url is None or self.webhook_secret is None:
            return self.webhooks
        secrets = tuple(SecretStr(secret) for secret in self.webhook_secret.get_secret_value().split())
        return (Webhook(name="webhook", url=self.webhook_url, secrets=secrets), *self.webhooks)

    @property
    def public_origin(self) -> str:
        """Origin of the public URL, as browsers send it; empty without a public URL."""
        if self.public_url is None:
            return ""
        scheme, host, port = self.public_url.scheme, self.public_url.host, self.public_url.port
        return f"{scheme}://{host}" if port == DEFAULT_PORTS[scheme] else f"{scheme}://{host}:{port}"

    @property
    def public_path(self) -> str:
        """Path of the public URL without a final slash; empty for the root of its origin."""
        return (self.public_url.path or "").rstrip("/") if self.public_url else ""

    @property
    def allowed_origins(self) -> AllowedOrigins:
        """The origins of pages that may call; in development mode also those of loopback."""
        return AllowedOrigins(self.origins, loopback=self.development)

    @property
    def development(self) -> bool:
        """Whether no token verification is configured, so that the development tokens are accepted."""
        return not self.introspects and not self.verifies_jwts

    @property
    def introspects(self) -> bool:
        """Whether tokens are introspected, at an endpoint that is set or discovered."""
        return self.introspection_url is not None or (
            self.oidc_issuer is not None and self.introspection_client_id is not None
        )

    @property
    def verifies_jwts(self) -> bool:
        """Whether JWTs are verified, with a key set that is set or discovered."""
        return self.jwks_url is not None or self.oidc_issuer is not None

    @property
    def issuer(self) -> str | None:
        """The `iss` of JWT access tokens, if it is set."""
        return self.jwt_issuer or self.oidc_issuer

    @property
    def exploring(self) -> Exploring:
        """The callers that may explore the schema; the default depends on development mode."""
        return self.explorer or ("open" if self.development else "off")

    @property
    def explorer_pages(self) -> bool:
        """Whether the explorer's page is served. The schema that it shows depends on the user's token."""
        return self.exploring != "off"

    def refuse_a_policy_without_documents(self) -> None:
        """Return if `documents` is set, or the policy needs no documents. Raises `SettingsError`."""
        if self.documents is None and self.documents_policy != "log":
            raise SettingsError(f"{PREFIX}DOCUMENTS: required with {PREFIX}DOCUMENTS_POLICY={self.documents_policy}")

    def refuse_open_development(self) -> None:
        """Return unless development mode would serve another address or host than loopback. Raises `SettingsError`."""
        if self.development and self.host not in LOOPBACK:
            raise SettingsError(
                f"{PREFIX}HOST: development mode accepts well-known tokens, so it listens on loopback only. "
                f"Set {PREFIX}OIDC_ISSUER, {PREFIX}INTROSPECTION_URL or {PREFIX}JWKS_URL to verify real tokens, or "
                f"leave {PREFIX}HOST out."
            )
        if self.development and self.public_url and (self.public_url.host or "").strip("[]") not in LOOPBACK:
            raise SettingsError(
                f"{PREFIX}PUBLIC_URL: development mode serves the hosts localhost, 127.0.0.1 and [::1] only. "
                f"Set {PREFIX}OIDC_ISSUER, {PREFIX}INTROSPECTION_URL or {PREFIX}JWKS_URL to verify real tokens."
            )

    def refuse_half_a_verifier(self) -> None:
        """Return if the verifiers are configured completely. Raises `SettingsError`, which names missing settings."""
        found = () if self.oidc_issuer is None else DISCOVERED
        incomplete = [
            f"{_variables(missing)}: required with {_variables(given)}"
            for names in VERIFIERS
            if (missing := [name for name in names if getattr(self, name) is None and name not in found])
            and (given := [name for name in names if getattr(self, name) is not None])
        ]
        if self.oidc_issuer is not None and not any((self.jwks_url, self.jwt_issuer, self.jwt_audience)):
            incomplete.append(f"{PREFIX}JWT_AUDIENCE: required with {PREFIX}OIDC_ISSUER")
        if not self.introspects and (given := [name for name in FOR_INTROSPECTION if getattr(self, name)]):
            incomplete.append(f"{PREFIX}INTROSPECTION_URL: required with {_variables(given)}")
        if incomplete:
            raise SettingsError("\n".join(incomplete))

    def refuse_replicas_of_a_cluster(self) -> None:
        """Return unless replicas of a Citus cluster are named. Raises `SettingsError`."""
        if self.database_read_urls is not None and self.database_cluster:
            raise SettingsError(
                f"{PREFIX}DATABASE_READ_URLS: not with {PREFIX}DATABASE_CLUSTER, because each node of a cluster has a "
                "log of its own. Read from secondary nodes by Citus' own setting"
            )

    def refuse_answers_larger_than_their_memory(self) -> None:
        """Return if `answer_memory_bytes` is at least `max_answer_bytes`. Raises `SettingsError`."""
        if self.answer_memory_bytes < self.max_answer_bytes:
            raise SettingsError(f"{PREFIX}ANSWER_MEMORY_BYTES: must be at least {PREFIX}MAX_ANSWER_BYTES")

    def refuse_contradicting_sinks(self) -> None:
        """Return if every sink is configured completely, with a unique name, and retries end before events are deleted.

        Raises `SettingsError`.
        """
        if (self.webhook_url is None) != (self.webhook_secret is None):
            raise SettingsError(f"{_variables(['webhook_url', 'webhook_secret'])}: set both or neither")
        names = [webhook.name for webhook in self.every_webhook] + ["nats"]
        if len(names) != len(set(names)):
            raise SettingsError(f"{PREFIX}WEBHOOKS: each must have a unique name other than `webhook` and `nats`")
        if self.event_retry_hours >= self.event_days * 24:
            raise SettingsError(f"{PREFIX}EVENT_RETRY_HOURS: must be less than {PREFIX}EVENT_DAYS")


def traces_are_installed() -> bool:
    """Whether the extra `traces` is installed."""
    try:
        return all(map(importlib.util.find_spec, ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")))
    except ModuleNotFoundError:  # a parent package is missing
        return False


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return HIDDEN
    if isinstance(value, dict | tuple):
        return orjson.dumps(value, default=_json_of, option=orjson.OPT_NON_STR_KEYS).decode()
    return str(value)


def _json_of(value: object) -> object:
    if isinstance(value, SecretStr):
        return HIDDEN
    return value.model_dump(exclude_none=True) if isinstance(value, BaseModel) else str(value)


def _variables(names: Iterable[str]) -> str:
    return ", ".join(PREFIX + name.upper() for name in names)
