"""The hash of a request under an idempotency key: of its content, and the same in every release."""

import hashlib
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from models import EncounterType
from resolvers import json_text
from resolvers.commands import DEFAULT_LIMITS, RecordEncounter
from resolvers.idempotency import claim_of

CONTEXT: Any = SimpleNamespace(caller=SimpleNamespace(client_id="lab"))

text = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=40)
offsets = st.timedeltas(timedelta(hours=-14), timedelta(hours=14)).map(
    lambda of: timezone(timedelta(minutes=of // timedelta(minutes=1)))
)
instants = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=offsets)  # noqa: DTZ001
members = st.fixed_dictionaries(
    {"brand_id": text, "encounter_type": st.sampled_from(EncounterType)},
    optional={
        "provider_id": st.uuids().map(str),
        "scheduled_at": instants.map(datetime.isoformat),
        "chief_complaint": text,
        "notes": text,
        "metadata": st.dictionaries(text, st.integers() | st.decimals(allow_nan=False, allow_infinity=False) | text),
    },
)


def first_version_hash(patient_id: str, command: RecordEncounter) -> bytes:
    """Return the hash of a command as the first version computed it."""
    meaning = json_text._written(command.model_dump(mode="json", exclude_none=True), None)
    return hashlib.sha256(f"{patient_id}\n{meaning}".encode("utf-8", "surrogatepass")).digest()


@given(members, text)
def test_the_hash_does_not_change_between_releases(members: dict[str, Any], patient_id: str) -> None:
    command = RecordEncounter.read(members, DEFAULT_LIMITS)

    assert claim_of("k", CONTEXT, "loop", patient_id, command).request_hash == first_version_hash(patient_id, command)


SENT = r"""
{
    "brand_id": "loop", "encounter_type": "lab", "provider_id": "0198C0DE-0000-7000-8000-00000000000A",
    "scheduled_at": "2026-01-31T09:30:00.5+01:00", "notes": "Slept \"well\".\nR\u00e9sum\u00e9 \ud83e\ude7a",
    "metadata": {"room": 7, "dose": 0.10}
}
"""


def test_a_hash_of_the_first_version_is_recognised() -> None:
    command = RecordEncounter.read(json_text.read(SENT), DEFAULT_LIMITS)

    assert command.scheduled_at == datetime(2026, 1, 31, 8, 30, 0, 500_000, UTC)
    assert claim_of("k", CONTEXT, "loop", "p-1", command).request_hash.hex() == (
        "ad9fc3c510a4cfd681b8444ce21a5edb479088581e0c3be008d48d906e96309b"
    )
