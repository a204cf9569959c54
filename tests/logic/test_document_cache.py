"""The document cache: bounded by the weight of its entries."""

import gc
import tracemalloc

import pytest
from graphql import OperationDefinitionNode

from resolvers.paging import PageLimits
from schema import build_schema
from schema.documents.cache import KeptDocuments
from schema.documents.parse import DocumentRules, Documents
from schema.plans.query_plan import Plan, plan_of
from tests.doors import LIST

SCHEMA = build_schema()._schema


class Entry:
    """An entry of the given weight."""

    def __init__(self, weight: int) -> None:
        self.own = weight

    def weight(self, _text: str) -> int:
        """Return the given weight."""
        return self.own


def test_the_least_recently_used_document_is_evicted_first() -> None:
    cache = KeptDocuments[Entry](10)
    for name in "abc":
        cache.keep(name, Entry(3))

    cache.find("a")
    cache.keep("d", Entry(4))

    assert [name for name in "abcd" if name in cache] == ["a", "c", "d"]
    assert cache.weight == 10


def test_a_grown_document_is_weighed_again() -> None:
    cache, growing = KeptDocuments[Entry](10), Entry(3)
    cache.keep("a", Entry(3))
    cache.keep("b", growing)

    growing.own = 9
    cache.find("b")

    assert ("a" in cache, cache.weight) == (False, 9)


def test_an_entry_heavier_than_the_cache_is_not_stored() -> None:
    cache = KeptDocuments[Entry](10)

    cache.keep("a", Entry(11))

    assert (len(cache), cache.weight) == (0, 0)


def test_unique_documents_of_any_size_stay_within_the_bound() -> None:
    documents = Documents(SCHEMA, DocumentRules())
    documents._kept = KeptDocuments(4 * 1024 * 1024)
    wide = f'{{ patient(id: "x") {{ {"id " * 900} }} }}'

    for number in range(12):
        document = documents.read(f"{wide} # {number}")
        document.operation(None).costing.cost({}, PageLimits())

    assert len(documents._kept) == 4
    assert documents._kept.weight <= 4 * 1024 * 1024
    assert documents.knows(f"{wide} # 11")
    assert not documents.knows(f"{wide} # 0")


@pytest.mark.parametrize(
    "text",
    [
        LIST,
        f'{{ patient(id: "x") {{ {"id " * 900} }} }}',
        "{ "
        + " ".join(f'p{n}: patient(id: "x") {{ encounters {{ nodes {{ id notes }} }} }}' for n in range(49))
        + " }",
        " ".join(f"query Q{number} {{ __typename }}" for number in range(300)),
    ],
    ids=["a list", "fields", "pages", "operations"],
)
def test_a_documents_weight_is_at_least_its_memory(text: str) -> None:
    documents = Documents(SCHEMA, DocumentRules())
    documents.read(text + " ")  # the objects that all documents share
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()

    document = documents.read(text)
    assert document.ast is not None
    for each in document.ast.definitions:
        assert isinstance(each, OperationDefinitionNode)
        prepared = document.operation(each.name.value if each.name else None)
        prepared.plan = plan_of(document.ast, each)
        if isinstance(prepared.plan, Plan):
            prepared.plan._settled({"id": "x"})
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert after - before <= document.weight(text)
