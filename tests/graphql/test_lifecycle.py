"""The states of an encounter: transitions, timestamps, concurrent changes, audit and history."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from gateway.settings import Settings
from models import EncounterAction, EncounterStatus
from resolvers.access import Caller
from resolvers.encounters.lifecycle import LIFECYCLE
from tests.cast import Cast
from tests.doors import Service

ENCOUNTER = """{
  id status version scheduledAt startedAt endedAt chiefComplaint notes metadata providerId encounterType
  createdAt updatedAt allowedActions
  history { version kind changedAt changedBy reason changes { member before after } }
}"""
OUTCOME = f"""{{
  __typename
  ... on EncounterChanged {{ replayed encounter {ENCOUNTER} }}
  ... on Problem {{ code message recorded }}
  ... on StaleVersion {{ currentVersion }}
  ... on IllegalTransition {{ status allowedActions }}
  ... on InvalidInput {{ violations {{ path rule }} }}
}}"""

# The mutation of each action, with its arguments.
ACTIONS: dict[EncounterAction, tuple[str, dict[str, tuple[str, Any]]]] = {
    EncounterAction.START: ("startEncounter", {}),
    EncounterAction.COMPLETE: ("completeEncounter", {}),
    EncounterAction.CANCEL: ("cancelEncounter", {"reason": ("String", "The patient rang.")}),
    EncounterAction.MARK_NO_SHOW: ("markEncounterNoShow", {"reason": ("String", "Nobody came.")}),
    EncounterAction.MARK_ENTERED_IN_ERROR: ("markEncounterEnteredInError", {"reason": ("String!", "Wrong patient.")}),
    EncounterAction.RESCHEDULE: (
        "rescheduleEncounter",
        {"scheduledAt": ("DateTime!", "2026-12-24T09:30:00Z"), "reason": ("String", "The clinic is closed.")},
    ),
    EncounterAction.AMEND: ("amendEncounter", {"input": ("AmendEncounterInput!", {"notes": "Amended."})}),
    EncounterAction.UNDO_START: ("undoStartEncounter", {"reason": ("String!", "Another patient's visit.")}),
}


async def act(
    service: Service, encounter_id: str, action: EncounterAction, version: int | None = None, **given: Any
) -> dict[str, Any]:
    """Execute an action on an encounter; return the payload, or the extensions of the error."""
    token, key, patient_id = given.pop("token", "dev"), given.pop("key", None), given.pop("patient_id", None)
    field, arguments = ACTIONS[action]
    variables = {name: given.get(name, value) for name, (_, value) in arguments.items()}
    declared = "".join(f", ${name}: {kind}" for name, (kind, _) in arguments.items())
    passed = "".join(f", {name}: ${name}" for name in arguments)
    query = (
        f"mutation ($id: ID!, $version: Int, $key: String, $patient: ID{declared}) {{"
        f" {field}(id: $id, expectedVersion: $version, idempotencyKey: $key, patientId: $patient{passed}) {OUTCOME} }}"
    )
    sent = {"id": encounter_id, "version": version, "key": key, "patient": patient_id, **variables}
    body = await service.graphql(query, sent, token=token)
    return body["data"][field] if body.get("data") else body["errors"][0]["extensions"]


async def changed(service: Service, encounter_id: str, action: EncounterAction, **given: Any) -> dict[str, Any]:
    """Execute an action that must succeed; return the encounter."""
    outcome = await act(service, encounter_id, action, **given)
    assert outcome["__typename"] == "EncounterChanged", outcome
    encounter: dict[str, Any] = outcome["encounter"]
    return encounter


async def read(service: Service, encounter_id: str) -> dict[str, Any]:
    body = await service.graphql(f"query ($id: ID!) {{ encounter(id: $id) {ENCOUNTER} }}", {"id": encounter_id})
    encounter: dict[str, Any] = body["data"]["encounter"]
    return encounter


async def recorded(service: Service, cast: Cast, **members: Any) -> str:
    """Record an encounter; return its id."""
    response = await service.rest(
        "POST",
        f"/v1/patients/{await cast.patient()}/encounters",
        json={"brand_id": "loop", "encounter_type": "lab", **members},
    )
    encounter_id: str = response.json()["id"]
    return encounter_id


# Authorization


async def test_a_caller_without_permission_or_of_another_brand_changes_nothing(
    database_url: str, cast: Cast, service: Service
) -> None:
    callers = {
        "reader": Caller("reader", frozenset({"read:encounters"}), brand_id="loop"),
        "other brand": Caller("other brand", frozenset({"manage:encounters"}), brand_id="loopbio"),
    }
    encounter_id = await recorded(service, cast)

    async def verify(token: str) -> Caller:
        return callers[token]

    async with Service.running(
        Settings(database_url=database_url, rate_parsing_ms_per_minute=0), verify=verify
    ) as strict:
        for action in EncounterAction:
            assert (await act(strict, encounter_id, action, token=None))["code"] == "unauthenticated"
            assert (await act(strict, encounter_id, action, token="reader"))["code"] == "insufficient_scope"
            foreign = await act(strict, encounter_id, action, token="other brand")
            assert (foreign["__typename"], foreign["code"]) == ("EncounterNotFound", "not_found")
    assert (await read(service, encounter_id))["version"] == 1


@pytest.mark.parametrize("encounter_id", ["", "no-id", "\u0000", "01936c2e-7b19-7a41-8a2c-0c8b0d8f7e55", "9" * 400])
async def test_an_action_on_an_unknown_encounter_is_not_found(service: Service, encounter_id: str) -> None:
    outcome = await act(service, encounter_id, EncounterAction.START)

    assert (outcome["__typename"], outcome["code"], outcome["recorded"]) == ("EncounterNotFound", "not_found", "NO")


# Transitions


class EncounterMachine(RuleBasedStateMachine):
    """One encounter under any sequence of actions, compared to a model of the published states."""

    service: Service
    loop: asyncio.AbstractEventLoop
    cast: Cast

    AFTER = {
        ("scheduled", "start"): "in_progress",
        ("in_progress", "complete"): "completed",
        ("scheduled", "cancel"): "cancelled",
        ("in_progress", "cancel"): "cancelled",
        ("scheduled", "mark_no_show"): "no_show",
        ("scheduled", "reschedule"): "scheduled",
        ("in_progress", "undo_start"): "scheduled",
    } | {
        (status, action): after or status
        for status in ("scheduled", "in_progress", "completed", "cancelled", "no_show")
        for action, after in (("mark_entered_in_error", "entered_in_error"), ("amend", None))
    }

    def ask(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    @initialize()
    def record(self) -> None:
        self.id = self.ask(recorded(self.service, self.cast))
        self.status, self.version, self.started, self.ended = "scheduled", 1, False, False
        self.kinds = ["RECORDED"]

    @rule(action=st.sampled_from(EncounterAction), stale=st.booleans(), number=st.integers(0, 10**6))
    def act(self, action: EncounterAction, stale: bool, number: int) -> None:
        given = {"input": {"notes": f"Amended {number}."}, "scheduledAt": f"2027-01-01T00:00:00.{number:06}Z"}
        before = self.ask(read(self.service, self.id))
        expected = self.version - 1 if stale else self.version
        outcome = self.ask(act(self.service, self.id, action, expected, **given))
        after = self.AFTER.get((self.status, action))
        if stale:
            assert (outcome["__typename"], outcome["currentVersion"]) == ("StaleVersion", self.version)
        elif after is None:
            assert outcome["__typename"] == "IllegalTransition"
            assert outcome["status"] == self.status.upper()
            assert outcome["allowedActions"] == before["allowedActions"]
        else:
            kind = LIFECYCLE[action].kind.name
            same = action is EncounterAction.AMEND and before["notes"] == f"Amended {number}."
            same |= (
                action is EncounterAction.RESCHEDULE and outcome["encounter"]["scheduledAt"] == before["scheduledAt"]
            )
            if not same:
                self.version += 1
                self.kinds.append(kind)
            if action in {EncounterAction.START, EncounterAction.UNDO_START}:
                self.started = action is EncounterAction.START
            self.ended |= action is EncounterAction.COMPLETE or (action is EncounterAction.CANCEL and self.started)
            self.status = after

    @invariant()
    def encounter_matches_model(self) -> None:
        now = self.ask(read(self.service, self.id))
        assert now["status"] == self.status.upper()
        assert now["version"] == self.version
        assert (now["startedAt"] is not None, now["endedAt"] is not None) == (self.started, self.ended)
        assert [each["version"] for each in now["history"]] == list(range(1, self.version + 1))
        assert [each["kind"] for each in now["history"]] == self.kinds
        allowed = {action for status, action in self.AFTER if status == self.status}
        assert {action.lower() for action in now["allowedActions"]} == allowed


async def test_any_sequence_of_actions_follows_the_published_transitions(service: Service, cast: Cast) -> None:
    machine = type(
        "BoundMachine", (EncounterMachine,), {"service": service, "cast": cast, "loop": asyncio.get_running_loop()}
    )

    await asyncio.to_thread(
        run_state_machine_as_test, machine, settings=settings(max_examples=25, stateful_step_count=8, deadline=None)
    )


def test_the_transition_table_covers_every_action_and_status() -> None:
    assert set(LIFECYCLE) == set(EncounterAction) == set(ACTIONS)
    targets = {transition.target for transition in LIFECYCLE.values()} - {None}
    assert targets | {EncounterStatus.SCHEDULED} == set(EncounterStatus)


# Timestamps


async def test_only_starting_and_completing_set_their_timestamps(service: Service, cast: Cast) -> None:
    encounter_id = await recorded(service, cast, scheduled_at="2026-12-01T10:00:00Z")

    started = await changed(service, encounter_id, EncounterAction.START)
    completed = await changed(service, encounter_id, EncounterAction.COMPLETE)

    assert started["createdAt"] < started["startedAt"] == started["updatedAt"]
    assert started["endedAt"] is None
    assert completed["startedAt"] == started["startedAt"] < completed["endedAt"] == completed["updatedAt"]
    assert completed["scheduledAt"] == "2026-12-01T10:00:00Z"


async def test_cancelling_sets_an_end_only_for_a_started_encounter(service: Service, cast: Cast) -> None:
    never_started, started = await recorded(service, cast), await recorded(service, cast)
    await changed(service, started, EncounterAction.START)

    assert (await changed(service, never_started, EncounterAction.CANCEL))["endedAt"] is None
    assert (await changed(service, started, EncounterAction.CANCEL))["endedAt"] is not None


async def test_an_undone_start_leaves_a_scheduled_encounter_without_a_start(service: Service, cast: Cast) -> None:
    encounter_id = await recorded(service, cast)
    started = await changed(service, encounter_id, EncounterAction.START)

    undone = await changed(service, encounter_id, EncounterAction.UNDO_START, reason="Another patient's visit.")
    again = await changed(service, encounter_id, EncounterAction.START)

    assert (undone["status"], undone["startedAt"]) == ("SCHEDULED", None)
    assert again["startedAt"] > started["startedAt"]
    version = undone["history"][-1]
    assert (version["kind"], version["reason"]) == ("START_UNDONE", "Another patient's visit.")
    assert {each["member"]: each["after"] for each in version["changes"]} == {"status": "SCHEDULED", "startedAt": None}


@pytest.mark.parametrize("action", [EncounterAction.MARK_NO_SHOW, EncounterAction.RESCHEDULE, EncounterAction.CANCEL])
async def test_the_reason_of_an_action_is_in_the_history(service: Service, cast: Cast, action: EncounterAction) -> None:
    encounter_id = await recorded(service, cast)

    outcome = await changed(service, encounter_id, action, reason="The patient rang.")

    assert outcome["history"][-1]["reason"] == "The patient rang."


# Amending


async def test_an_amendment_keeps_omitted_members_and_clears_null_ones(service: Service, cast: Cast) -> None:
    kept = {"chief_complaint": "Cough.", "notes": "Dry.", "metadata": {"bp": 120.50}, "provider_id": str(uuid4())}
    encounter_id = await recorded(service, cast, **kept)

    amended = await changed(
        service, encounter_id, EncounterAction.AMEND, input={"notes": None, "providerId": None, "reason": "Mixed up."}
    )

    assert (amended["notes"], amended["providerId"]) == (None, None)
    assert (amended["chiefComplaint"], amended["metadata"]) == ("Cough.", {"bp": 120.5})
    assert amended["history"][-1]["reason"] == "Mixed up."
    assert {each["member"]: (each["before"], each["after"]) for each in amended["history"][-1]["changes"]} == {
        "notes": ("Dry.", None),
        "providerId": (kept["provider_id"], None),
    }


@pytest.mark.parametrize(
    ("given", "path", "rule"),
    [
        ({"metadata": None}, ["input", "metadata"], "null"),
        ({"encounterType": None}, ["input", "encounterType"], "null"),
        ({"metadata": [1]}, ["input", "metadata"], "object"),
        ({"notes": "x" * 50_001}, ["input", "notes"], "too_long"),
        ({"notes": "x\u0000"}, ["input", "notes"], "nul"),
        ({"providerId": "nobody"}, ["input", "providerId"], "uuid"),
        ({"reason": "x" * 2_001}, ["input", "reason"], "too_long"),
    ],
)
async def test_an_amendment_is_validated_like_a_recording(
    service: Service, cast: Cast, given: dict[str, Any], path: list[str], rule: str
) -> None:
    encounter_id = await recorded(service, cast)

    outcome = await act(service, encounter_id, EncounterAction.AMEND, input=given)

    assert outcome["violations"] == [{"path": path, "rule": rule}]
    assert outcome["recorded"] == "NO"


@pytest.mark.parametrize("action", [EncounterAction.MARK_ENTERED_IN_ERROR, EncounterAction.UNDO_START])
@pytest.mark.parametrize(("reason", "rule"), [("", "too_short"), ("x" * 2_001, "too_long")])
async def test_a_reason_is_validated(
    service: Service, cast: Cast, action: EncounterAction, reason: str, rule: str
) -> None:
    encounter_id = await recorded(service, cast)

    outcome = await act(service, encounter_id, action, reason=reason)

    assert outcome["violations"] == [{"path": ["reason"], "rule": rule}]


async def test_an_amendment_without_a_change_adds_no_version_and_no_event(service: Service, cast: Cast) -> None:
    encounter_id = await recorded(service, cast, notes="The same.", metadata={"b": 1, "a": [1.0]})
    same = {"notes": "The same.", "metadata": {"a": [1.0], "b": 1}}

    outcomes = [
        await changed(service, encounter_id, EncounterAction.AMEND, input=each)
        for each in ({}, same, {"reason": "So."})
    ]

    assert {each["version"] for each in outcomes} == {1}
    patient_id = (await cast.connection.fetchrow(
        "SELECT patient_id FROM patient_graph.encounters WHERE id = $1", encounter_id
    ))["patient_id"]  # fmt: skip
    assert await cast.count("outbox", patient_id) == await cast.count("audit_log", patient_id) == 1


# Concurrent changes


async def test_an_amendment_without_a_change_returns_nothing_without_read_scope(
    database_url: str, cast: Cast, service: Service
) -> None:
    encounter_id = await recorded(service, cast, notes="Fasting.")

    async def verify(token: str) -> Caller:
        return Caller(token, frozenset({"write:encounters"}), brand_id="loop")

    async with Service.running(
        Settings(database_url=database_url, rate_parsing_ms_per_minute=0), verify=verify
    ) as strict:
        outcome = await act(strict, encounter_id, EncounterAction.AMEND, token="writer", input={})

    assert outcome["code"] == "insufficient_scope"
    assert "Fasting." not in str(outcome)


STALE = """mutation ($id: ID!) { completeEncounter(id: $id, expectedVersion: 7) {
  __typename ... on StaleVersion { currentVersion encounter { version status notes history { kind } } } } }"""


async def test_a_stale_version_shows_the_current_encounter_to_its_readers(service: Service, cast: Cast) -> None:
    encounter_id = await recorded(service, cast, notes="Fasting.")
    await changed(service, encounter_id, EncounterAction.START)

    body = await service.graphql(STALE, {"id": encounter_id})

    assert body["data"]["completeEncounter"] == {
        "__typename": "StaleVersion",
        "currentVersion": 2,
        "encounter": {
            "version": 2,
            "status": "IN_PROGRESS",
            "notes": "Fasting.",
            "history": [{"kind": "RECORDED"}, {"kind": "STARTED"}],
        },
    }


async def test_a_stale_version_shows_no_encounter_without_read_scope(
    database_url: str, cast: Cast, service: Service
) -> None:
    encounter_id = await recorded(service, cast, notes="Fasting.")

    async def verify(token: str) -> Caller:
        return Caller(token, frozenset({"write:encounters"}), brand_id="loop")

    async with Service.running(
        Settings(database_url=database_url, rate_parsing_ms_per_minute=0), verify=verify
    ) as strict:
        without = await act(strict, encounter_id, EncounterAction.COMPLETE, 7, token="writer")
        selecting = await strict.graphql(STALE, {"id": encounter_id}, token="writer")

    assert (without["__typename"], without["currentVersion"]) == ("StaleVersion", 1)
    (error,) = selecting["errors"]
    assert error["path"] == ["completeEncounter", "encounter"]
    assert (error["extensions"]["code"], error["extensions"]["recorded"]) == ("insufficient_scope", "no")
    assert "Fasting." not in str(selecting)


async def test_of_concurrent_changes_to_one_version_exactly_one_succeeds(service: Service, cast: Cast) -> None:
    encounter_id = await recorded(service, cast)
    notes = [f"Note {number}." for number in range(20)]

    outcomes = await asyncio.gather(
        *(act(service, encounter_id, EncounterAction.AMEND, 1, input={"notes": each}) for each in notes)
    )

    assert sorted(each["__typename"] for each in outcomes) == ["EncounterChanged"] + ["StaleVersion"] * 19
    now = await read(service, encounter_id)
    assert now["version"] == 2
    (winner,) = [each for each in outcomes if "replayed" in each]
    assert now["notes"] == winner["encounter"]["notes"]


async def test_concurrent_changes_without_a_version_are_applied_in_sequence(service: Service, cast: Cast) -> None:
    encounter_id = await recorded(service, cast)
    notes = [f"Note {number}." for number in range(20)]

    await asyncio.gather(
        *(changed(service, encounter_id, EncounterAction.AMEND, input={"notes": each}) for each in notes)
    )

    history = (await read(service, encounter_id))["history"]
    written = [each["changes"][0] for each in history[1:]]
    assert sorted(each["after"] for each in written) == sorted(notes)
    # Each change starts from the result of the one before it.
    assert [each["before"] for each in written] == [None] + [each["after"] for each in written[:-1]]
    assert [each["changedAt"] for each in history] == sorted(each["changedAt"] for each in history)


# Audit and history


async def test_every_change_has_an_audit_entry_and_event_without_clinical_text(service: Service, cast: Cast) -> None:
    encounter_id = await recorded(service, cast)
    await changed(service, encounter_id, EncounterAction.AMEND, input={"notes": "Pregnant.", "reason": "She said so."})
    await changed(service, encounter_id, EncounterAction.RESCHEDULE, scheduledAt="2031-07-13T11:42:07Z")
    await changed(service, encounter_id, EncounterAction.CANCEL, reason="Pregnant.")

    entries = await cast.connection.fetch(
        "SELECT event_type, details::text FROM patient_graph.audit_log WHERE entity_id = $1 ORDER BY occurred_at",
        encounter_id,
    )
    events = await cast.connection.fetch(
        "SELECT event_type, payload::text FROM patient_graph.outbox WHERE payload ->> 'encounter_id' = $1"
        " ORDER BY created_at",
        encounter_id,
    )

    assert [row["event_type"].rpartition(".")[2] for row in entries] == [
        "recorded", "amended", "rescheduled", "cancelled",
    ]  # fmt: skip
    assert [row["event_type"] for row in events] == ["patient_graph.encounter.recorded.v1"] + [
        "patient_graph.encounter.changed.v1"
    ] * 3
    texts = " ".join(row[1] for row in (*entries, *events))
    assert '"kind": "amended"' in texts
    assert not [mark for mark in ("Pregnant", "She said", "2031") if mark in texts]


async def test_the_histories_of_a_page_are_read_by_one_statement(
    service: Service, cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gateway.database.database import PoolConnection

    patient_id = await cast.patient()
    for _ in range(5):
        await service.rest(
            "POST", f"/v1/patients/{patient_id}/encounters", json={"brand_id": "loop", "encounter_type": "lab"}
        )
    sent: list[str] = []
    original = PoolConnection.fetch

    async def counted(self, statement, **values):
        sent.append(statement.text)
        return await original(self, statement, **values)

    monkeypatch.setattr(PoolConnection, "fetch", counted)

    body = await service.graphql(
        "query ($id: ID!) { patient(id: $id) { encounters { nodes { history { kind changedBy } allowedActions } } } }",
        {"id": patient_id},
    )

    assert [len(node["history"]) for node in body["data"]["patient"]["encounters"]["nodes"]] == [1] * 5
    assert len([text for text in sent if "encounter_versions" in text]) == 1
