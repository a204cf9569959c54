"""A misspelt member of a request is refused: ignored, it would change the meaning of the operation."""

import json
from urllib.parse import urlencode

import pytest

from tests.doors import Service
from tests.websocket_client import GatewayServer

QUERY = 'query A($id: ID! = "nobody") { patient(id: $id) { id } } query B { __typename }'
MARKER = "tuberculosis"

MISSPELT = pytest.mark.parametrize(
    ("name", "right"),
    [
        ("Variables", "variables"),
        ("variable", "variables"),
        ("operation_name", "operationName"),
        ("operationname", "operationName"),
        ("extension", "extensions"),
        ("document_id", "documentId"),
    ],
)


def members(name: str) -> dict[str, str]:
    operation = {} if name.startswith("operation") else {"operationName": "B"}
    return {"query": QUERY, **operation, name: MARKER}


@MISSPELT
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_a_misspelt_member_is_refused_over_http(
    service: Service, method: str, accept: str, name: str, right: str
) -> None:
    path = "/graphql" if method == "POST" else f"/graphql?{urlencode(members(name))}"
    headers = {"content-type": "application/json", "accept": accept}

    answer = await service.rest(method, path, headers=headers, content=json.dumps(members(name)))

    (violation,) = answer.json()["errors"][0]["extensions"]["violations"]
    assert (answer.status_code, violation["pointer"], violation["rule"]) == (400, f"/{right}", "misspelt_name")
    assert violation["allowed"] == [right]
    assert MARKER not in answer.text


@MISSPELT
async def test_a_misspelt_member_is_refused_over_a_websocket(sockets: GatewayServer, name: str, right: str) -> None:
    async with sockets.connect() as websocket:
        await websocket.send(type="connection_init", payload={"authorization": "Bearer dev"})
        await websocket.receive()
        await websocket.send(type="subscribe", id="1", payload=members(name))

        heard = await websocket.receive()

    assert heard["type"] == "error"
    (violation,) = heard["payload"][0]["extensions"]["violations"]
    assert (violation["pointer"], violation["rule"]) == (f"/{right}", "misspelt_name")


async def test_other_unknown_members_are_ignored(service: Service) -> None:
    sent = {"query": "{ __typename }", "id": "x", "doc_id": "y", "tracing": True, "queryId": 1}

    answer = await service.rest("POST", "/graphql", json=sent)

    assert answer.json() == {"data": {"__typename": "Query"}}
