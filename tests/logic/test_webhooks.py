"""Webhooks: signatures, backoff between attempts, and settings."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx2
import pytest

from gateway.events.delivery import LONGEST_RETRY_AFTER_SECONDS, LONGEST_RETRY_SECONDS, DeliveryFailed, retry_seconds
from gateway.events.webhooks import retry_after_seconds, signed_headers
from gateway.settings import Settings, SettingsError, signing_key

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
WEBHOOK = {"name": "crm", "url": "https://crm.test/events", "secrets": [SECRET]}


def test_the_signature_follows_standard_webhooks() -> None:
    # The test vector of the Standard Webhooks libraries.
    headers = signed_headers([signing_key(SECRET)], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')

    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_each_failure_doubles_the_backoff_with_jitter_up_to_a_limit() -> None:
    waits = [retry_seconds(failures) for failures in range(1, 100)]

    assert all(2**number / 2 <= wait <= 2**number for number, wait in enumerate(waits[:9]))
    assert all(LONGEST_RETRY_SECONDS / 2 <= wait <= LONGEST_RETRY_SECONDS for wait in waits[10:])
    assert len(set(waits)) == len(waits)


@pytest.mark.parametrize(
    ("status", "asked", "seconds"),
    [
        (429, "120", 120), (503, "7", 7), (500, "120", 0), (429, "", 0), (429, "soon", 0), (429, "-5", 0),
        (429, "Wed, 21 Oct 2015 07:28:00 GMT", 0), (503, "1.5", 0), (503, "٣", 0),
        (503, "Fri, 31 Dec 9999 23:59:59 -1200", 0), (503, "Mon, 01 Jan 2040 00:00:00 +99999999999999", 0),
    ],
)  # fmt: skip
def test_a_receiver_may_ask_for_a_pause_in_seconds(status: int, asked: str, seconds: float) -> None:
    headers = [(b"retry-after", asked.encode())]

    assert retry_after_seconds(httpx2.Response(status, headers=headers)) == seconds


def test_a_receiver_may_ask_for_a_pause_until_a_date() -> None:
    asked = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)

    assert 3590 < retry_after_seconds(httpx2.Response(503, headers={"retry-after": asked})) <= 3600


def test_a_pause_is_bounded() -> None:
    assert DeliveryFailed("status 429", 1e9).retry_after_seconds == LONGEST_RETRY_AFTER_SECONDS


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"GATEWAY_{name.upper()}", raising=False)


def settings(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(f"GATEWAY_{name.upper()}", value)
    return Settings.from_environment()


def test_the_single_webhook_and_the_list_can_be_combined(monkeypatch: pytest.MonkeyPatch) -> None:
    every = settings(
        monkeypatch,
        webhook_url="http://127.0.0.1:9000/events",
        webhook_secret=f"{SECRET} {SECRET}",
        webhooks=json.dumps([WEBHOOK | {"brand_id": "loop"}]),
    ).every_webhook

    assert [(webhook.name, str(webhook.url), len(webhook.keys), webhook.brand_id) for webhook in every] == [
        ("webhook", "http://127.0.0.1:9000/events", 2, None),
        ("crm", "https://crm.test/events", 1, "loop"),
    ]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"webhook_url": "http://crm.test/", "webhook_secret": SECRET}, "WEBHOOK_URL"),
        ({"webhook_url": "https://me:hunter2@crm.test/", "webhook_secret": SECRET}, "WEBHOOK_URL"),
        ({"webhook_url": "https://crm.test/"}, "WEBHOOK_SECRET"),
        ({"webhook_secret": SECRET}, "WEBHOOK_URL"),
        ({"webhook_url": "https://crm.test/", "webhook_secret": "hunter2"}, "WEBHOOK_SECRET"),
        ({"webhook_url": "https://crm.test/", "webhook_secret": "whsec_hunter2="}, "WEBHOOK_SECRET"),
        ({"webhook_url": "https://crm.test/", "webhook_secret": ""}, "WEBHOOK_SECRET"),
        ({"webhooks": json.dumps([WEBHOOK, WEBHOOK])}, "WEBHOOKS"),
        ({"webhooks": json.dumps([WEBHOOK | {"name": "nats"}])}, "WEBHOOKS"),
        ({"webhooks": json.dumps([WEBHOOK | {"url": "http://crm.test/"}])}, "WEBHOOKS"),
        ({"webhooks": json.dumps([WEBHOOK | {"secrets": ["hunter2"]}])}, "WEBHOOKS"),
        ({"webhooks": json.dumps([WEBHOOK | {"secrets": []}])}, "WEBHOOKS"),
        ({"webhooks": json.dumps([WEBHOOK | {"secret": "hunter2"}])}, "WEBHOOKS"),
        ({"webhooks": "hunter2"}, "WEBHOOKS"),
        ({"nats_url": "http://me:hunter2@nats.test"}, "NATS_URL"),
        ({"nats_subject": "a.*"}, "NATS_SUBJECT"),
        ({"event_retry_hours": "24", "event_days": "1"}, "EVENT_RETRY_HOURS"),
    ],
)
def test_an_invalid_sink_is_refused_without_its_secret(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    with pytest.raises(SettingsError, match=f"GATEWAY_{message}") as mistake:
        settings(monkeypatch, **variables)

    assert "hunter2" not in str(mistake.value)


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = settings(
        monkeypatch,
        webhook_url="https://crm.test/",
        webhook_secret=SECRET,
        webhooks=json.dumps([WEBHOOK]),
        nats_url=f"nats://me:{SECRET}@nats.test",
    )

    assert SECRET not in str(shown.shown())
    assert SECRET not in repr(shown)
    assert SECRET not in repr(shown.every_webhook)
