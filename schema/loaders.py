"""Data loaders: they batch the reads of sibling fields into one statement. Each operation has its own loaders."""

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple
from uuid import UUID

from strawberry.dataloader import DataLoader

from models import Encounter, EncounterOrder, Patient
from resolvers.context import Context
from resolvers.encounters.duplicates import possible_duplicates_of
from resolvers.encounters.history import Version, histories_of
from resolvers.encounters.read import count_encounters, encounters_by_ids, encounters_of_patients, list_encounters
from resolvers.encounters.worklists import Listing, count_worklist, list_worklists
from resolvers.paging import ListOf, Page, Window
from resolvers.patients import patients_by_ids


class PageKey(NamedTuple):
    """One page of a list of encounters."""

    of: ListOf
    window: Window
    for_feed: bool = False
    """Whether the query selects the feed position, which must be read before the page."""


class EncounterKey(NamedTuple):
    """An encounter by its id, and by its patient if the caller names one."""

    id: UUID
    patient_id: str | None = None


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
    def shown_patients(self) -> DataLoader[tuple[str, str], None]:
        """Audits patients, by brand and id, whose external ids are shown: one record for sibling fields."""
        return DataLoader(self._note_patients)

    @cached_property
    def encounters(self) -> DataLoader[EncounterKey, Encounter | None]:
        """Encounters by their ids; None for an encounter of another patient than the key's."""
        return DataLoader(self._load_encounters)

    @cached_property
    def pages(self) -> DataLoader[PageKey, Page]:
        """Pages of lists of encounters."""
        return DataLoader(self._load_pages)

    @cached_property
    def counts(self) -> DataLoader[ListOf, int]:
        """Numbers of encounters in lists; at most one more than `MOST_COUNTED` in a worklist."""
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

    async def _note_patients(self, patients: list[tuple[str, str]]) -> list[None]:
        self._context.note_patients(patients)
        return [None] * len(patients)

    def add_patients(self, patients: Sequence[Patient]) -> None:
        """Add patients that another statement has read and audited, so that neither is done again."""
        self.patients.prime_many({patient.id: patient for patient in patients})
        self.shown_patients.prime_many({(patient.brand_id, patient.id): None for patient in patients})

    async def _load_encounters(self, keys: list[EncounterKey]) -> list[Encounter | None]:
        by_id = [key for key in keys if key.patient_id is None]
        of_patients = [(key.patient_id, key.id) for key in keys if key.patient_id is not None]
        found: dict[EncounterKey, Encounter | None] = {}
        if by_id:
            found |= zip(by_id, await encounters_by_ids(self._context, [key.id for key in by_id]), strict=True)
        if of_patients:
            read = await encounters_of_patients(self._context, of_patients)
            found |= {EncounterKey(id_, of): each for (of, id_), each in zip(of_patients, read, strict=True)}
        return [found[key] for key in keys]

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
        together = defaultdict[tuple[Any, ...], list[PageKey]](list)
        of_brand = [key for key in keys if key.of.patient_id is None]
        for key in keys:
            if key.of.patient_id is not None:
                together[key.of._replace(patient_id=""), key.window, key.for_feed].append(key)
        pages: dict[PageKey, Page] = {}
        if of_brand:
            listings = [Listing(window, of.filters, of.order, for_feed) for of, window, for_feed in of_brand]
            pages |= zip(of_brand, await list_worklists(self._context, listings), strict=True)
        for (of, window, for_feed), alike in together.items():
            listed = (window, of.filters, of.order)
            ids = [key.of.patient_id or "" for key in alike]
            read = await list_encounters(self._context, ids, *listed, for_feed=for_feed)
            pages |= dict(zip(alike, read, strict=True))
        return [pages[key] for key in keys]

    async def _load_counts(self, lists: list[ListOf]) -> list[int]:
        together = defaultdict[ListOf, list[ListOf]](list)
        for of in lists:
            together[of._replace(patient_id=of.patient_id and "", order=EncounterOrder.CREATED_AT_DESC)].append(of)
        counts: dict[ListOf, int] = {}
        for shared, alike in together.items():
            if shared.patient_id is None:
                counts |= dict.fromkeys(alike, await count_worklist(self._context, shared.filters))
                continue
            read = await count_encounters(self._context, [of.patient_id or "" for of in alike], shared.filters)
            counts |= dict(zip(alike, read, strict=True))
        return [counts[of] for of in lists]
