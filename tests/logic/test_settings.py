"""What an operator may set, and what a mistake looks like."""

import pytest

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


def test_every_mistake_is_told_at_once_and_no_value_is(monkeypatch: pytest.MonkeyPatch) -> None:
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
