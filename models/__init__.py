"""The tables, one in each module; `migrations/` has their history."""

from sqlalchemy.orm import configure_mappers

from models.audit import AuditEntry
from models.base import Table, table_of
from models.chain import ChainLink
from models.dead_letter import DeadLetter
from models.encounter import (
    MEMBERS,
    Encounter,
    EncounterAction,
    EncounterEventKind,
    EncounterOrder,
    Encounters,
    EncounterStatus,
    EncounterType,
)
from models.encounter_version import EncounterVersion
from models.external_id import EncounterExternalId, PatientExternalId
from models.feed_key import FeedKey
from models.idempotency import IdempotencyKey
from models.lease import Lease
from models.members import Kind, Member
from models.oldest_revision import OldestRevision
from models.outbox import OutboxEvent
from models.patient import Patient
from models.sink import Sink
from models.watermark import Watermark

# Rows are built by `model_construct`, which bypasses SQLAlchemy's constructor and so its implicit call of this.
configure_mappers()

__all__ = [
    "MEMBERS",
    "AuditEntry",
    "ChainLink",
    "DeadLetter",
    "Encounter",
    "EncounterAction",
    "EncounterEventKind",
    "EncounterExternalId",
    "EncounterOrder",
    "EncounterStatus",
    "EncounterType",
    "EncounterVersion",
    "Encounters",
    "FeedKey",
    "IdempotencyKey",
    "Kind",
    "Lease",
    "Member",
    "OldestRevision",
    "OutboxEvent",
    "Patient",
    "PatientExternalId",
    "Sink",
    "Table",
    "Watermark",
    "table_of",
]
