"""Schemathesis against the GraphQL door: documents of the printed schema, with arbitrary values of their types.

Schemathesis counts every error as a fault of the server; here a refusal needs a code of a client error.
"""

import re
from typing import Any

import schemathesis
from graphql import parse_value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case

from resolvers.errors import ServerError
from rest.problem_pages import refusals
from tests.cast import Cast
from tests.doors import Service
from tests.gateways import ROOT

JSON = ["null", "7", '"text"', "[]", "{}", '{lab: "L-7"}', "{lab: {deep: [1.5, true]}}"]
schemathesis.graphql.scalar("JSON", st.sampled_from(JSON).map(parse_value))
SCHEMA = schemathesis.graphql.from_path(str(ROOT / "schema/schema.graphql"))
FIELDS = [found.ok() for found in SCHEMA.get_all_operations()]
CODES = {kind.code for kind in refusals()} - {ServerError.code}

# A literal in the place of a patient's id or a brand.
LITERAL = r'("(?:[^"\\]|\\.)*"|-?\d+)'
PATIENT = re.compile(rf"(patient\(id: |patientId: ){LITERAL}")
BRAND = re.compile(rf"(brandId: ){LITERAL}")


@given(st.one_of([field.as_strategy() for field in FIELDS]), st.booleans())
@settings(deadline=None, suppress_health_check=list(HealthCheck))
async def test_a_valid_document_is_answered_or_refused_with_a_code(
    service: Service, cast: Cast, case: Case[Any], known: bool
) -> None:
    query = str(case.body)
    if known:
        patient_id = await cast.patient()
        query = BRAND.sub(r'\g<1>"loop"', PATIENT.sub(rf'\g<1>"{patient_id}"', query))

    answer = await service.graphql(query)

    for error in answer.get("errors", []):
        assert error["extensions"]["code"] in CODES
        assert "document" not in [each["rule"] for each in error["extensions"].get("violations", [])], query


def test_every_root_field_is_tried() -> None:
    tried = {field.label for field in FIELDS}

    assert {"Query.encounter", "Mutation.recordEncounter"} <= tried
