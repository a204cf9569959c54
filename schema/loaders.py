"""Data loaders: they batch the reads of sibling fields into one statement. Each operation has its own loaders."""

from collections import defaultdict
from functools import cached_property
from typing import NamedTuple
from uuid import UUID

from strawberry.dataloader import DataLoader

from models import Encounter, Patient
from resolvers.commands import EncounterFilter
from resolvers.context import Context
from resolvers.encounters.duplicates import possible_duplicates_of
from resolvers.encounters.history import Version, histories_of
from resolvers.encounters.read import count_encounters, encounters_by_ids, list_encounters
from resolvers.paging import Page, Window
from resolvers.patients import patients_by_ids


class PageKey(NamedTuple):
    """One page of one patient's encounters."""

    patient_id: str
    window: Window
    filters: EncounterFilter
    for_feed: bool = False
    """Whether the query selects the feed position, which must be read before the page."""


class CountKey(NamedTuple):
    """The number of one patient's encounters that match a filter."""

    patient_id: str
    filters: EncounterFilter


class HistoryKey(NamedTuple):
    """Versions of an encounter: at most `first`, after version number `after`."""

    patient_id: str
    encounter_id: UUID
    first: int
    after: int


class Loaders:
    """The loaders of one operation."""

    def __init__(self, context: Context) -> None:
        self._context = context

    # Loaders are created on first use, because most operations need one or two.

    @cached_property
    def patients(self) -> DataLoader[str, Patient | None]:
        """Patients by their ids."""
        return DataLoader(self._load_patients)

    @cached_property
    def encounters(self) -> DataLoader[UUID, Encounter | None]:
        """Encounters by their ids."""
        return DataLoader(self._load_encounters)

    @cached_property
    def pages(self) -> DataLoader[PageKey, Page]:
        """Pages of patients' encounters."""
        return DataLoader(self._load_pages)

    @cached_property
    def counts(self) -> DataLoader[CountKey, int]:
        """Numbers of patients' encounters."""
        return DataLoader(self._load_counts)

    @cached_property
    def duplicates(self) -> DataLoader[tuple[str, UUID], list[Encounter]]:
        """Possible duplicates of encounters, by patient and id."""
        return DataLoader(self._load_duplicates)

    @cached_property
    def histories(self) -> DataLoader[HistoryKey, list[Version]]:
        """Versions of encounters."""
        return DataLoader(self._load_histories)

    async def _load_patients(self, ids: list[str]) -> list[Patient | None]:
        return await patients_by_ids(self._context, ids)

    async def _load_encounters(self, ids: list[UUID]) -> list[Encounter | None]:
        return await encounters_by_ids(self._context, ids)

    async def _load_histories(self, keys: list[HistoryKey]) -> list[list[Version]]:
        encounters = defaultdict[tuple[int, int], list[tuple[str, UUID]]](list)
        for key in keys:
            encounters[key.first, key.after].append((key.patient_id, key.encounter_id))
        histories: dict[HistoryKey, list[Version]] = {}
        for (first, after), of in encounters.items():
            for each, history in zip(of, await histories_of(self._context, of, first, after), strict=True):
                histories[HistoryKey(*each, first, after)] = history
        return [histories[key] for key in keys]

    async def _load_duplicates(self, encounters: list[tuple[str, UUID]]) -> list[list[Encounter]]:
        return await possible_duplicates_of(self._context, encounters)

    async def _load_pages(self, keys: list[PageKey]) -> list[Page]:
        # Sibling patients nearly always request the same window, which takes one statement.
        patients = defaultdict[tuple[Window, EncounterFilter, bool], list[str]](list)
        for key in keys:
            patients[key.window, key.filters, key.for_feed].append(key.patient_id)
        pages: dict[PageKey, Page] = {}
        for (window, filters, for_feed), ids in patients.items():
            read = await list_encounters(self._context, ids, window, filters, for_feed=for_feed)
            for patient_id, page in zip(ids, read, strict=True):
                pages[PageKey(patient_id, window, filters, for_feed)] = page
        return [pages[key] for key in keys]

    async def _load_counts(self, keys: list[CountKey]) -> list[int]:
        patients = defaultdict[EncounterFilter, list[str]](list)
        for key in keys:
            patients[key.filters].append(key.patient_id)
        counts: dict[CountKey, int] = {}
        for filters, ids in patients.items():
            for patient_id, count in zip(ids, await count_encounters(self._context, ids, filters), strict=True):
                counts[CountKey(patient_id, filters)] = count
        return [counts[key] for key in keys]
