"""JavaScript GraphQL clients against a running gateway: the results that a frontend sees."""

from typing import Any

import pytest

from tests.cast import Cast
from tests.node import needs_node, run_node

pytestmark = needs_node

PROGRAMS = {
    "urql": ("urql.mjs", []),
    "apollo": ("apollo.mjs", []),
    "older apollo": ("apollo.mjs", ["application/json"]),
    "graphql-ws": ("socket.mjs", []),
}
SEEN: dict[str, dict[str, Any]] = {}

every_client = pytest.mark.parametrize("client", PROGRAMS)


@pytest.fixture
async def seen(client: str, gateway_url: str, cast: Cast) -> dict[str, Any]:
    """The results of a client that recorded and read three encounters; it runs once for all tests."""
    if client not in SEEN:
        patient_id = await cast.patient()
        program, more = PROGRAMS[client]
        seen = await run_node(program, f"{gateway_url}/graphql", patient_id, *more)
        SEEN[client] = seen | {"kept": [str(row["id"]) for row in await cast.rows(patient_id)]}
    return SEEN[client]


def result(seen: dict[str, Any]) -> dict[str, Any]:
    """Return the payload of `recordEncounter`."""
    recorded: dict[str, Any] = seen["data"]["recordEncounter"]
    return recorded


@every_client
async def test_a_client_records_an_encounter(seen: dict[str, Any]) -> None:
    recorded = result(seen["first"])

    assert (recorded["__typename"], recorded["replayed"]) == ("EncounterRecorded", False)
    assert recorded["encounter"]["status"] == "SCHEDULED"
    assert recorded["encounter"]["notes"] == "Slept well."


@every_client
async def test_a_client_gets_a_replay_under_the_same_key(seen: dict[str, Any]) -> None:
    again = result(seen["again"])

    assert again["replayed"] is True
    assert again["encounter"]["id"] == result(seen["first"])["encounter"]["id"]
    assert len(seen["kept"]) == 3


@every_client
async def test_a_reused_key_is_a_union_member_for_a_client(seen: dict[str, Any]) -> None:
    reused = result(seen["reused"])

    assert reused["__typename"] == "IdempotencyKeyReused"
    assert (reused["code"], reused["recorded"]) == ("idempotency_key_payload_mismatch", "NO")


@every_client
async def test_a_broken_rule_is_a_union_member_for_a_client(seen: dict[str, Any]) -> None:
    problem = result(seen["problem"])

    assert (problem["__typename"], problem["code"], problem["recorded"]) == ("InvalidInput", "validation_error", "NO")
    assert [(each["path"], each["rule"]) for each in problem["violations"]] == [(["input", "notes"], "too_long")]


@every_client
async def test_a_client_reads_pages_by_cursors_newest_first(seen: dict[str, Any]) -> None:
    first, second = seen["pages"]

    assert (len(first), len(second)) == (2, 1)
    assert [*first, *second] == seen["kept"][::-1]


@pytest.mark.parametrize("client", ["urql"])
async def test_a_client_may_send_a_query_by_get(seen: dict[str, Any]) -> None:
    assert seen["byGet"]["codes"] == []
    assert [node["id"] for node in seen["byGet"]["data"]["patient"]["encounters"]["nodes"]] == seen["pages"][0]


# Refusals


@pytest.mark.parametrize("client", ["urql", "apollo"])
@pytest.mark.parametrize(
    ("refused", "code"),
    [("otherBrand", "forbidden"), ("badToken", "invalid_token"), ("badDocument", "validation_error")],
)
async def test_a_refusal_is_a_graphql_error_with_its_code_for_a_client(
    seen: dict[str, Any], refused: str, code: str
) -> None:
    assert seen[refused]["codes"] == [code]
    assert seen[refused].get("data") is None


@pytest.mark.parametrize("client", ["older apollo"])
@pytest.mark.parametrize(
    ("refused", "status", "code"), [("otherBrand", 403, "forbidden"), ("badToken", 401, "invalid_token")]
)
async def test_with_the_older_media_type_a_refused_caller_gets_status_and_code(
    seen: dict[str, Any], refused: str, status: int, code: str
) -> None:
    assert (seen[refused]["failed"], seen[refused]["status"]) == ("server", status)
    assert [each["extensions"]["code"] for each in seen[refused]["body"]["errors"]] == [code]


@pytest.mark.parametrize("client", ["older apollo"])
async def test_with_the_older_media_type_an_invalid_document_is_a_graphql_error(
    seen: dict[str, Any],
) -> None:
    assert seen["badDocument"] == {"failed": "graphql", "codes": ["validation_error"]}


@pytest.mark.parametrize("client", ["graphql-ws"])
async def test_on_a_websocket_a_refusal_is_an_error_or_a_final_close(seen: dict[str, Any]) -> None:
    for refused, code in (("badDocument", "validation_error"), ("otherBrand", "forbidden")):
        assert [each["extensions"]["code"] for each in seen[refused]["refused"]] == [code]
    assert seen["badToken"]["refused"] == {"code": 4403, "reason": "invalid_token"}


# Media types and batches


@pytest.mark.parametrize("client", ["apollo", "older apollo"])
async def test_apollo_gets_the_media_type_that_it_prefers(client: str, seen: dict[str, Any]) -> None:
    media_type = "application/json" if client == "older apollo" else "application/graphql-response+json"

    assert seen["mediaTypes"] == [f"{media_type}; charset=utf-8"]


async def test_an_apollo_batch_is_one_request_with_independent_results(gateway_url: str, cast: Cast) -> None:
    patient_id = await cast.patient()

    seen = await run_node("batching.mjs", f"{gateway_url}/graphql", patient_id)

    assert seen == {
        "requests": 1,
        "recorded": "EncounterRecorded",
        "patient": patient_id,
        "codes": ["validation_error"],
    }
