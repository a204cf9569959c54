"""What an operator may set, and what a mistake looks like."""

from pathlib import Path

import pytest
from pydantic import SecretStr

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


def test_a_secret_may_lie_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://user:hunter2@127.0.0.1/db\n")
    monkeypatch.setenv("GATEWAY_DATABASE_URL_FILE", str(tmp_path / "url"))

    url = Settings.from_environment().database_url

    assert url is not None
    assert url.get_secret_value() == "postgresql://user:hunter2@127.0.0.1/db"


def test_a_file_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GATEWAY_DATABASE_URL_FILE", str(tmp_path / "none"))

    with pytest.raises(SettingsError, match="GATEWAY_DATABASE_URL_FILE"):
        Settings.from_environment()


def test_the_settings_in_force_are_shown_without_their_secrets() -> None:
    shown = Settings(database_url=SecretStr("postgresql://user:hunter2@127.0.0.1/db"), port=9000).shown()

    assert shown["GATEWAY_PORT"] == "9000"
    assert shown["GATEWAY_DATABASE_URL"] == "(hidden)"
