"""Arbitrary bytes: no internal error, no hang, and no partial recording. `make fuzz` tries many more."""

import asyncio
import json
import re
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import httpx2
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from resolvers import json_text
from resolvers.errors import MalformedBody
from tests.cast import Cast
from tests.doors import RECORD, Service

DEADLINE_SECONDS = 30
HALF_A_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
STATUSES = {200, 201, 204, 304, 400, 404, 405, 406, 409, 413, 415, 403}
"""The statuses of an authenticated caller's requests; none is an internal error."""

bounded = settings(deadline=None, suppress_health_check=list(HealthCheck))

VISIT: dict[str, Any] = {
    "brand_id": "loop",
    "encounter_type": "lab",
    "provider_id": "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
    "scheduled_at": "2026-03-29T02:30:00.5+01:00",
    "notes": "Slept well.",
    "metadata": {"nested": [1, 2.5, None, {"é": "𝄞"}]},
}
ASKED = {
    "query": RECORD,
    "variables": {"patientId": "{patient}", "input": {"brandId": "loop", "encounterType": "LAB", "metadata": {"a": 1}}},
}

snippets = st.binary(max_size=8) | st.sampled_from(
    [b"\x00", b"\\u0000", b"\\ud800", b"\xff", b"\xed\xa0\x80", b"NaN", b"-Infinity", b"1e999999", b"-0", b"9" * 400,
     b'"', b"{", b"}", b"[", b"]", b",", b":", b"null", b"[" * 2_000, b'{"a":' * 2_000, b"\xef\xbb\xbf", b'"notes":']
)  # fmt: skip


@st.composite
def corrupted(draw: st.DrawFn, body: bytes) -> bytes:
    """Cut some pieces out of a valid body, and insert others."""
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(body)))
        body = body[:start] + draw(snippets) + body[start + draw(st.integers(0, 12)) :]
    return body


texts = st.sampled_from(["\x00", "a\x00b", "\ud800", "x\udfff", "", "9999-12-31T23:59:60Z", "é" * 2_001]) | st.text(
    max_size=20
)
values = st.recursive(
    texts | st.none() | st.booleans() | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
# Sometimes only one member is unusual, and all others would be recorded.
odd_member = st.sampled_from([*VISIT, "x", ""]).flatmap(lambda name: values.map(lambda value: {name: value}))
members = odd_member | st.dictionaries(st.sampled_from([*VISIT, "x", ""]), values, max_size=7)
bodies = st.one_of(
    corrupted(json.dumps(VISIT).encode()),
    corrupted(json.dumps(VISIT, ensure_ascii=False).encode()),
    members.map(lambda some: json.dumps(VISIT | some).encode()),
    values.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=200),
)
visible = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=40)
headers = st.fixed_dictionaries(
    {},
    optional={
        "content-type": st.sampled_from(["application/json", "application/json;charset=utf-8"]) | visible,
        "accept": st.sampled_from(["*/*", "application/problem+json"]) | visible,
        "idempotency-key": st.sampled_from(["a-key", '"a-key"']) | visible,
        "content-encoding": st.just("identity") | visible,
        "if-none-match": st.sampled_from(["*", '"1"']) | visible,
        "x-request-id": visible,
        "expect": visible,
    },
).map(lambda named: {"content-type": "application/json"} | named)


async def sent(service: Service, method: str, path: str, headers: dict[str, str], content: bytes) -> httpx2.Response:
    """Send a request and assert that the response is one of the gateway's."""
    raw: Any = {name: value.strip().encode("latin-1") for name, value in headers.items()}
    async with asyncio.timeout(DEADLINE_SECONDS):
        answer = await service.rest(method, path, headers=raw, content=content)
    assert answer.status_code in STATUSES, (answer.status_code, content)
    if answer.status_code >= 400 and answer.content and path != "/graphql":
        assert answer.json()["recorded"] == "no"
    return answer


async def stored_count(cast: Cast, patient_id: str) -> int:
    """Return the number of a patient's encounters, and assert that each has its other rows."""
    tables = ["encounters", "encounter_versions", "outbox", "audit_log"]
    counts = {table: await cast.count(table, patient_id) for table in tables}
    assert len(set(counts.values())) == 1, counts
    return counts["encounters"]


@given(st.binary(max_size=400) | bodies)
@example(b"-0")
@example(b"1e5")
@settings(deadline=None)
def test_the_json_reader_agrees_with_other_readers_or_names_a_rule(body: bytes) -> None:
    try:
        value = json_text.read(body)
    except MalformedBody as error:
        assert error.violations[0].message
        return

    assert value == json.loads(body, parse_float=Decimal, parse_int=Decimal)
    # The writer refuses half a surrogate pair.
    if not HALF_A_PAIR.search(body):
        assert json_text.read(json_text.write(value)) == value


@given(bodies, headers)
@bounded
async def test_any_bytes_at_the_rest_door(service: Service, cast: Cast, body: bytes, headers: dict[str, str]) -> None:
    patient_id = await cast.patient()
    # With one key for all examples, all but the first would be replays.
    headers = {name: value.replace("a-key", patient_id) for name, value in headers.items()}

    answer = await sent(service, "POST", f"/v1/patients/{patient_id}/encounters", headers, body)

    assert await stored_count(cast, patient_id) == (1 if answer.status_code == 201 else 0)


@given(st.data(), headers)
@bounded
async def test_any_bytes_at_the_graphql_door(service: Service, cast: Cast, data, headers: dict[str, str]) -> None:
    patient_id = await cast.patient()
    asked = json.dumps(ASKED).replace("{patient}", patient_id).encode()

    answer = await sent(service, "POST", "/graphql", headers, data.draw(corrupted(asked) | st.binary(max_size=200)))

    body = answer.json()
    recorded = ((body.get("data") or {}).get("recordEncounter") or {}).get("encounter")
    assert await stored_count(cast, patient_id) == (1 if recorded else 0)
    codes = [error["extensions"]["code"] for error in body.get("errors", [])]
    assert "server_error" not in codes


@given(
    st.sampled_from(["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH"]),
    st.lists(st.text(st.characters(codec="utf-8"), max_size=12), max_size=6),
    visible,
    headers,
)
@bounded
async def test_any_path_and_any_query(
    service: Service, method: str, segments: list[str], query: str, headers: dict[str, str]
) -> None:
    address = "/v1/patients/" if len(segments) > 2 else "/"
    address += "/".join(quote(segment, safe="") for segment in segments) + "?" + quote(query, safe="&=")

    answer = await sent(service, method, address, headers, b"")

    assert answer.status_code != 201
