"""The explorer's example operations run on the served schema, with their example variables."""

import json
from pathlib import Path

import pytest
from graphql import OperationDefinitionNode, parse, validate

from schema import build_schema
from tests.cast import Cast
from tests.doors import Service

FOLDER = Path(__file__).parent.parent.parent / "web" / "src" / "examples"
EXAMPLES = {
    path.stem: (path.read_text(), path.with_suffix(".json").read_text()) for path in sorted(FOLDER.glob("*.graphql"))
}


@pytest.mark.parametrize(("query", "written"), EXAMPLES.values(), ids=EXAMPLES)
async def test_an_example_runs_unchanged(service: Service, cast: Cast, query: str, written: str) -> None:
    document = parse(query)
    # The explorer fills in the brand of the caller.
    variables = json.loads(written.replace("A_BRAND", "loop"))
    if "patientId" in variables:
        variables["patientId"] = await cast.patient()
    if "system" in variables:
        register = "mutation ($input: RegisterPatientInput!) { registerPatient(input: $input) { __typename } }"
        members = {"id": "found-patient", "brandId": "loop", "externalIds": {variables["system"]: variables["value"]}}
        await service.graphql(register, {"input": members})

    assert validate(build_schema()._schema, document) == []
    for operation in document.definitions:
        if isinstance(operation, OperationDefinitionNode):
            assert {each.variable.name.value for each in operation.variable_definitions or ()} >= variables.keys()
            if operation.operation.value != "subscription":
                body = {"query": query, "variables": variables, "operationName": operation.name.value}
                answer = (await service.rest("POST", "/graphql", json=body)).json()
                assert "errors" not in answer
                assert all(answer["data"].values())
