"""The dataclass `Encounter` has the columns of its table."""

from dataclasses import fields

from models import Encounter, Encounters


def test_an_encounter_has_a_member_for_each_column_of_its_table() -> None:
    assert {each.name for each in fields(Encounter)} == set(Encounters.__table__.columns.keys())  # type: ignore[attr-defined]
