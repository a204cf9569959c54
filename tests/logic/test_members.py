"""Every list of an encounter's members agrees with the annotations of `models.Encounter`."""

from collections.abc import Iterable
from typing import Any

import pytest
from graphql import GraphQLInputObjectType, GraphQLObjectType, get_named_type, is_non_null_type
from sqlalchemy import Enum
from sqlalchemy.dialects import postgresql

from models import MEMBERS, Encounter, Encounters, Kind, Member, table_of
from resolvers.commands import AmendEncounter, Command, RecordEncounter
from resolvers.encounters import insert, json_sql, lifecycle
from resolvers.encounters.published import PUBLISHED
from rest.openapi import openapi
from schema import build_schema
from schema.plans import record_plan, selection

SCHEMA = build_schema()._schema

SCALARS = {
    Kind.STRING: "String",
    Kind.TEXT: "String",
    Kind.UUID: "UUID",
    Kind.INSTANT: "DateTime",
    Kind.JSON: "JSON",
    Kind.INTEGER: "Int",
}

SET_BY_ACTIONS = {"status", "started_at", "ended_at", "updated_at", "version"}
"""Members that no change of a caller sets directly."""


def graphql_type(name: str) -> Any:
    kind = SCHEMA.type_map[name]
    assert isinstance(kind, GraphQLObjectType | GraphQLInputObjectType)
    return kind


def scalar_of(member: Member) -> str:
    if member.name in {"id", "patient_id"}:
        return "ID"
    return member.enum.__name__ if member.enum else SCALARS[member.kind]


def names_in_graphql(names: Iterable[str]) -> list[str]:
    return [MEMBERS[name].graphql_name for name in names]


def test_the_table_has_a_column_for_each_member() -> None:
    assert list(table_of(Encounters).c.keys()) == list(Encounter.__slots__) == list(MEMBERS)
    for name, member in MEMBERS.items():
        column = table_of(Encounters).c[name]
        stored = "text" if isinstance(column.type, Enum) else column.type.compile(postgresql.dialect()).lower()
        assert stored.replace("timestamp with time zone", "timestamptz") == member.sql_type
        assert column.nullable is member.optional


def test_the_openapi_schema_describes_each_published_member() -> None:
    described = openapi()["components"]["schemas"]["Encounter"]

    assert list(described["properties"]) == described["required"] == list(PUBLISHED)
    assert all(MEMBERS[name].description for name in PUBLISHED)


def test_the_graphql_type_has_a_field_for_each_member() -> None:
    fields = graphql_type("Encounter").fields
    scalars = [name for name, of in fields.items() if not isinstance(get_named_type(of.type), GraphQLObjectType)]

    assert scalars == [*names_in_graphql(MEMBERS), "allowedActions"]
    for member in MEMBERS.values():
        field = fields[member.graphql_name]
        assert str(get_named_type(field.type)) == scalar_of(member)
        assert is_non_null_type(field.type) is not member.optional


@pytest.mark.parametrize(
    ("command", "type_name", "others"),
    [(RecordEncounter, "RecordEncounterInput", []), (AmendEncounter, "AmendEncounterInput", ["reason"])],
)
def test_the_graphql_input_has_the_members_of_its_command(
    command: type[Command], type_name: str, others: list[str]
) -> None:
    fields = graphql_type(type_name).fields
    members = [name for name in command.model_fields if name not in others]

    assert sorted(fields) == sorted([*names_in_graphql(members), *others])
    for name in members:
        field = fields[MEMBERS[name].graphql_name]
        assert str(get_named_type(field.type)) == scalar_of(MEMBERS[name])
        assert is_non_null_type(field.type) is command.model_fields[name].is_required()


def test_each_member_that_is_recorded_can_be_changed() -> None:
    amended = AmendEncounter.model_fields.keys() - {"reason"}

    # The brand never changes; rescheduling changes the time, and the actions change the status and its times.
    assert amended == RecordEncounter.model_fields.keys() - {"brand_id", "scheduled_at"} - SET_BY_ACTIONS
    assert set(lifecycle.CHANGED_COLUMNS) == amended | {"scheduled_at"} | SET_BY_ACTIONS


def test_the_insert_sends_each_member_but_the_times() -> None:
    assert MEMBERS.keys() - insert.COLUMNS.keys() == {"created_at", "updated_at"}


def test_each_plan_writes_every_member() -> None:
    assert list(json_sql.members_of("e", upper=True)) == [*MEMBERS, "allowed_actions"]
    assert record_plan.ENCOUNTER.keys() == {"__typename", *MEMBERS, "allowed_actions"}
    assert selection.RECORDING.keys() == graphql_type("RecordEncounterInput").fields.keys()


def test_text_of_a_caller_is_marked_as_clinical() -> None:
    # The start and the end are also the times of events.
    sent = [MEMBERS[name] for name in RecordEncounter.model_fields if name not in SET_BY_ACTIONS]

    assert {member.name for member in MEMBERS.values() if member.clinical} == {
        member.name for member in sent if member.kind in {Kind.TEXT, Kind.JSON, Kind.INSTANT}
    }
