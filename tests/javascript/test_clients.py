"""Clients of the npm registry at a gateway that listens: what whoever writes a frontend with them sees."""

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
    """What a client saw when it recorded three encounters of a patient and read them; it runs once for all tests."""
    if client not in SEEN:
        patient_id = await cast.patient()
        program, more = PROGRAMS[client]
        seen = await run_node(program, f"{gateway_url}/graphql", patient_id, *more)
        SEEN[client] = seen | {"kept": [str(row["id"]) for row in await cast.rows(patient_id)]}
    return SEEN[client]


def result(seen: dict[str, Any]) -> dict[str, Any]:
    """Give what `recordEncounter` gave."""
    recorded: dict[str, Any] = seen["data"]["recordEncounter"]
    return recorded


@every_client
async def test_an_encounter_is_recorded_and_shown(seen: dict[str, Any]) -> None:
    recorded = result(seen["first"])

    assert (recorded["__typename"], recorded["replayed"]) == ("EncounterRecorded", False)
    assert recorded["encounter"]["status"] == "SCHEDULED"
    assert recorded["encounter"]["notes"] == "Slept well."


@every_client
async def test_the_same_key_again_is_the_same_encounter(seen: dict[str, Any]) -> None:
    again = result(seen["again"])

    assert again["replayed"] is True
    assert again["encounter"]["id"] == result(seen["first"])["encounter"]["id"]
    assert len(seen["kept"]) == 3


@every_client
async def test_the_key_with_something_else_is_a_member_of_the_union_and_no_error(seen: dict[str, Any]) -> None:
    reused = result(seen["reused"])

    assert reused["__typename"] == "IdempotencyKeyReused"
    assert (reused["code"], reused["recorded"]) == ("idempotency_key_payload_mismatch", "NO")


@every_client
async def test_what_breaks_a_rule_is_a_member_of_the_union_that_names_the_rule(seen: dict[str, Any]) -> None:
    problem = result(seen["problem"])

    assert (problem["__typename"], problem["code"], problem["recorded"]) == ("InvalidInput", "validation_error", "NO")
    assert [(each["path"], each["rule"]) for each in problem["violations"]] == [(["input", "notes"], "too_long")]


@every_client
async def test_pages_are_followed_by_their_cursors_newest_first(seen: dict[str, Any]) -> None:
    first, second = seen["pages"]

    assert (len(first), len(second)) == (2, 1)
    assert [*first, *second] == seen["kept"][::-1]


@pytest.mark.parametrize("client", ["urql"])
async def test_a_query_may_be_fetched_by_get(seen: dict[str, Any]) -> None:
    assert seen["byGet"]["codes"] == []
    assert [node["id"] for node in seen["byGet"]["data"]["patient"]["encounters"]["nodes"]] == seen["pages"][0]


# Who may not


@pytest.mark.parametrize("client", ["urql", "apollo"])
@pytest.mark.parametrize(
    ("refused", "code"),
    [("otherBrand", "forbidden"), ("badToken", "invalid_token"), ("badDocument", "validation_error")],
)
async def test_a_refusal_reaches_the_client_as_an_error_of_graphql_with_its_code(
    seen: dict[str, Any], refused: str, code: str
) -> None:
    assert seen[refused]["codes"] == [code]
    assert seen[refused].get("data") is None


@pytest.mark.parametrize("client", ["older apollo"])
@pytest.mark.parametrize(
    ("refused", "status", "code"), [("otherBrand", 403, "forbidden"), ("badToken", 401, "invalid_token")]
)
async def test_over_the_older_media_type_who_may_not_is_told_by_the_status_with_the_code_in_the_body(
    seen: dict[str, Any], refused: str, status: int, code: str
) -> None:
    assert (seen[refused]["failed"], seen[refused]["status"]) == ("server", status)
    assert [each["extensions"]["code"] for each in seen[refused]["body"]["errors"]] == [code]


@pytest.mark.parametrize("client", ["older apollo"])
async def test_over_the_older_media_type_a_wrong_document_is_an_error_of_graphql_all_the_same(
    seen: dict[str, Any],
) -> None:
    assert seen["badDocument"] == {"failed": "graphql", "codes": ["validation_error"]}


@pytest.mark.parametrize("client", ["graphql-ws"])
async def test_on_a_socket_the_operation_is_refused_or_the_socket_is_closed_for_good(seen: dict[str, Any]) -> None:
    for refused, code in (("badDocument", "validation_error"), ("otherBrand", "forbidden")):
        assert [each["extensions"]["code"] for each in seen[refused]["refused"]] == [code]
    assert seen["badToken"]["refused"] == {"code": 4403, "reason": "invalid_token"}


# Media types and batches


@pytest.mark.parametrize("client", ["apollo", "older apollo"])
async def test_apollo_is_answered_in_the_media_type_it_likes_best(client: str, seen: dict[str, Any]) -> None:
    media_type = "application/json" if client == "older apollo" else "application/graphql-response+json"

    assert seen["spoken"] == [f"{media_type}; charset=utf-8"]


async def test_apollos_batches_are_one_request_in_which_one_may_fail_alone(gateway_url: str, cast: Cast) -> None:
    patient_id = await cast.patient()

    seen = await run_node("batching.mjs", f"{gateway_url}/graphql", patient_id)

    assert seen == {
        "requests": 1,
        "recorded": "EncounterRecorded",
        "patient": patient_id,
        "codes": ["validation_error"],
    }
