"""Settings: sources, defaults, and messages for invalid values."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from gateway.environment import of_kubernetes
from gateway.settings import Settings, SettingsError


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"GATEWAY_{name.upper()}", raising=False)


def test_a_setting_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_PORT", "9000")

    assert Settings.from_environment().port == 9000


def test_an_unknown_setting_is_an_error_that_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_DATABSE_URL", "postgresql://")

    with pytest.raises(SettingsError, match=r"GATEWAY_DATABSE_URL.*GATEWAY_DATABASE_URL"):
        Settings.from_environment()


def test_all_errors_are_reported_together_without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_PORT", "secret-one")
    monkeypatch.setenv("GATEWAY_WORKERS", "secret-two")

    with pytest.raises(SettingsError) as mistake:
        Settings.from_environment()

    assert "GATEWAY_PORT" in str(mistake.value)
    assert "GATEWAY_WORKERS" in str(mistake.value)
    assert "secret" not in str(mistake.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.test"])
def test_development_mode_refuses_every_address_but_loopback(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("GATEWAY_HOST", host)

    with pytest.raises(SettingsError, match="GATEWAY_HOST"):
        Settings.from_environment()


def test_a_database_url_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_DATABASE_URL", "postgresql://user:hunter2@127.0.0.1/db")

    assert "hunter2" not in repr(Settings.from_environment())


def test_a_secret_may_be_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://user:hunter2@127.0.0.1/db\n")
    monkeypatch.setenv("GATEWAY_DATABASE_URL_FILE", str(tmp_path / "url"))

    url = Settings.from_environment().database_url

    assert url is not None
    assert url.get_secret_value() == "postgresql://user:hunter2@127.0.0.1/db"


def test_a_missing_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GATEWAY_DATABASE_URL_FILE", str(tmp_path / "none"))

    with pytest.raises(SettingsError, match="GATEWAY_DATABASE_URL_FILE"):
        Settings.from_environment()


def test_the_effective_settings_are_shown_without_their_secrets() -> None:
    shown = Settings(database_url=SecretStr("postgresql://user:hunter2@127.0.0.1/db"), port=9000).shown()

    assert shown["GATEWAY_PORT"] == "9000"
    assert shown["GATEWAY_DATABASE_URL"] == "(hidden)"


VERIFIED = {
    "GATEWAY_JWKS_URL": "https://id.test/keys",
    "GATEWAY_JWT_ISSUER": "https://id.test",
    "GATEWAY_JWT_AUDIENCE": "gateway",
}


@pytest.mark.parametrize("empty", ["", " ", "\t\n"])
@pytest.mark.parametrize("name", Settings.model_fields)
def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch, name: str, empty: str) -> None:
    unset = Settings.from_environment()

    monkeypatch.setenv(f"GATEWAY_{name.upper()}", empty)

    assert Settings.from_environment() == unset


def test_an_empty_host_does_not_listen_on_every_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VERIFIED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GATEWAY_HOST", "")

    assert Settings.from_environment().host == "127.0.0.1"


@pytest.mark.parametrize("content", ["", "\n", None])
def test_an_empty_file_or_file_name_is_unset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    (tmp_path / "url").write_text(content or "")
    monkeypatch.setenv("GATEWAY_DATABASE_URL_FILE", str(tmp_path / "url") if content is not None else "")

    assert Settings.from_environment().database_url is None


def test_an_empty_file_leaves_the_variable_in_force(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("")
    monkeypatch.setenv("GATEWAY_DATABASE_URL_FILE", str(tmp_path / "url"))
    monkeypatch.setenv("GATEWAY_DATABASE_URL", "postgresql://127.0.0.1/db")

    assert Settings.from_environment().database_url == SecretStr("postgresql://127.0.0.1/db")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"postgresql://\xe9@host/db"])
def test_a_binary_file_is_reported_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "url").write_bytes(content)
    monkeypatch.setenv("GATEWAY_DATABASE_URL_FILE", str(tmp_path / "url"))

    with pytest.raises(SettingsError, match="GATEWAY_DATABASE_URL_FILE: the file cannot be read"):
        Settings.from_environment()


def test_a_user_without_a_home_needs_one_only_for_embedded_postgresql(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(_name: str) -> Path:
        raise RuntimeError

    monkeypatch.setattr("platformdirs.user_data_path", no_home)

    assert Settings.from_environment().database_url is None


# Printed settings can be read back


def test_shown_settings_can_be_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = VERIFIED | {
        "GATEWAY_PORT": "9000",
        "GATEWAY_FEDERATION": "true",
        "GATEWAY_SCOPES": '{"read_encounters": ["read:encounters"]}',
        "GATEWAY_ORIGINS": '{"app": ["https://app.example"]}',
        "GATEWAY_DATABASE_URL": "postgresql://user:hunter2@127.0.0.1/db",
        "GATEWAY_WEBHOOKS": '[{"name": "one", "url": "https://in.test/", "secrets": ["whsec_' + "A" * 32 + '"]}]',
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    first = Settings.from_environment()
    lines = first.assignments()
    for name in variables:
        monkeypatch.delenv(name)

    for line in lines:
        if not line.startswith("#"):
            monkeypatch.setenv(*line.split("=", 1))

    hidden = {"database_url": first.database_url, "webhooks": first.webhooks}
    assert Settings.from_environment().model_copy(update=hidden) == first
    assert "hunter2" not in str(lines)
    assert "AAAA" not in str(lines)
    assert "# GATEWAY_DATABASE_URL=(hidden)" in lines


# Variables that Kubernetes sets for a Service

SERVICE = {
    "GATEWAY_SERVICE_HOST": "10.0.0.1",
    "GATEWAY_SERVICE_PORT": "8000",
    "GATEWAY_SERVICE_PORT_HTTP": "8000",
    "GATEWAY_PORT": "tcp://10.0.0.1:8000",
    "GATEWAY_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "GATEWAY_PORT_8000_TCP_PROTO": "tcp",
    "GATEWAY_PORT_8000_TCP_PORT": "8000",
    "GATEWAY_PORT_8000_TCP_ADDR": "10.0.0.1",
    "GATEWAY_METRICS_SERVICE_HOST": "10.0.0.2",
    "GATEWAY_METRICS_PORT": "udp://10.0.0.2:9000",
    "GATEWAY_METRICS_PORT_9000_UDP": "udp://10.0.0.2:9000",
}


def test_service_variables_of_kubernetes_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    unset = Settings.from_environment()
    for name, value in SERVICE.items():
        monkeypatch.setenv(name, value)

    assert Settings.from_environment() == unset
    assert of_kubernetes("GATEWAY_") == sorted(SERVICE)


def test_a_port_beside_service_variables_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (SERVICE | {"GATEWAY_PORT": "9000"}).items():
        monkeypatch.setenv(name, value)

    assert Settings.from_environment().port == 9000
    assert "GATEWAY_PORT" not in of_kubernetes("GATEWAY_")


@pytest.mark.parametrize(
    ("name", "value"), [("GATEWAY_PORT", "http://x"), ("GATEWAY_METRICS_PORT", "9000"), ("GATEWAY_SERVICE", "x")]
)
def test_a_variable_that_resembles_a_service_is_an_error(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError, match=name):
        Settings.from_environment()


@pytest.mark.parametrize(
    ("urls", "cluster", "expected"),
    [
        ("postgresql://a,b/gateway", "", "each URL must name one server"),
        ("postgresql://a/gateway mysql://b/gateway", "", "must begin with postgresql://"),
        ("postgresql://a/gateway", "true", "not with GATEWAY_DATABASE_CLUSTER"),
    ],
)
def test_replicas_are_single_servers_and_not_those_of_a_cluster(
    monkeypatch: pytest.MonkeyPatch, urls: str, cluster: str, expected: str
) -> None:
    monkeypatch.setenv("GATEWAY_DATABASE_READ_URLS", urls)
    monkeypatch.setenv("GATEWAY_DATABASE_CLUSTER", cluster)

    with pytest.raises(SettingsError, match=expected):
        Settings.from_environment()


def test_replicas_are_named_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_DATABASE_READ_URLS", "postgresql://a/gateway  postgresql://b:6000/gateway")

    settings = Settings.from_environment()

    assert settings.read_urls == ("postgresql://a/gateway", "postgresql://b:6000/gateway")
    assert settings.shown()["GATEWAY_DATABASE_READ_URLS"] == "(hidden)"


@pytest.mark.parametrize(
    ("url", "origin", "path"),
    [
        ("https://clinic.example/gateway/", "https://clinic.example", "/gateway"),
        ("https://clinic.example/gateway", "https://clinic.example", "/gateway"),
        ("https://Clinic.example:443/a/b-1/", "https://clinic.example", "/a/b-1"),
        ("https://clinic.example:8443", "https://clinic.example:8443", ""),
        ("http://localhost:80/", "http://localhost", ""),
        ("http://[::1]:8080/gateway/", "http://[::1]:8080", "/gateway"),
        ("https://bücher.example/", "https://xn--bcher-kva.example", ""),
    ],
)
def test_a_public_url_has_the_origin_that_browsers_send_and_a_path(url: str, origin: str, path: str) -> None:
    settings = Settings(public_url=url)

    assert (settings.public_origin, settings.public_path) == (origin, path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("clinic.example/gateway", "valid URL"),
        ("ftp://clinic.example/", "URL scheme should be 'http' or 'https'"),
        ("https://nurse:secret@clinic.example/", "must not contain a user name"),
        ("https://clinic.example/?a=secret", "must not contain a user name, a password, a query or a fragment"),
        ("https://clinic.example/#secret", "a fragment"),
        ("https://clinic.example/a//b/", "the path may have letters"),
        ("https://clinic.example/a%20b/", "the path may have letters"),
        ("https://clinic.example/v1/", "the path must not begin with /v1, which is a path of the gateway itself"),
        ("https://clinic.example/docs", "/docs"),
        ("https://clinic.example/gateway/", "development mode serves the hosts localhost"),
    ],
)
def test_an_unusable_public_url_is_refused(monkeypatch: pytest.MonkeyPatch, url: str, message: str) -> None:
    monkeypatch.setenv("GATEWAY_PUBLIC_URL", url)

    with pytest.raises(SettingsError, match=r"^GATEWAY_PUBLIC_URL: ") as mistake:
        Settings.from_environment()

    assert message in str(mistake.value)
    assert "secret" not in str(mistake.value)
