"""An executor with a fast path for plain fields: scalar attributes of objects that are already loaded.

graphql-core builds a path, a resolve info and an error location for each field of each object, even for a scalar
attribute. This executor completes plain fields directly. On an exception or an unexpected null it falls back to
graphql-core, which reports the error.

Measured alone on W7 (2026-11-30, docs/performance.md): without it, a list that no plan serves takes 1.88 times the
CPU of server and PostgreSQL.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, cast

import orjson
from graphql import (
    Executor,
    GraphQLObjectType,
    GraphQLSchema,
    Undefined,
    is_leaf_type,
    is_non_null_type,
    is_object_type,
)
from strawberry.resolvers import is_default_resolver

from schema.types import OperationContext

Fields = Mapping[str, Any]
"""The grouped field set of an object, by response key."""


USUAL_BYTES = 40
"""Estimated bytes of a value that is not measured, such as a UUID or a date-time with its quotation marks."""

MEASURED = frozenset({"ID", "JSON", "String"})
"""Scalars whose values may be long."""


class _Plain(NamedTuple):
    """A field that is an attribute, of a scalar or an enum."""

    attribute: str
    complete: Callable[[Any], Any]
    nullable: bool
    measured: bool
    """Whether its values may be long, so that their size is measured."""


class _Repetition(NamedTuple):
    """A list item that is the same object as an earlier item."""

    place: int
    """The index of the earlier item."""


class QuickExecutor(Executor[OperationContext]):
    """graphql-core's executor with a fast path for plain fields. It counts the bytes of the response."""

    def execute_fields(
        self, parent_type: GraphQLObjectType, source_value: Any, path: Any, grouped_field_set: Fields, *context: Any
    ) -> Any:
        """Return the completed fields of an object, or an awaitable of them."""
        plain_fields, count = self._plain_of(parent_type, grouped_field_set)
        ready: dict[str, Any] = {}
        for key, plain in plain_fields.items():
            try:
                value = getattr(source_value, plain.attribute)
                completed = None if value is None else plain.complete(value)
            except Exception:  # noqa: BLE001, S112 - graphql-core completes the field again and reports the error
                continue
            if (value is None and plain.nullable) or (completed is not None and completed is not Undefined):
                ready[key] = completed
                if plain.measured:
                    count += _bytes_of(completed)
        self._count(count)
        if len(ready) == len(grouped_field_set):
            return ready
        others = {key: details for key, details in grouped_field_set.items() if key not in ready}
        given = super().execute_fields(parent_type, source_value, path, others, *context)
        if self.is_awaitable(given):
            return _joined_later(grouped_field_set, ready, given)
        return _joined(grouped_field_set, ready, cast("dict[str, Any]", given))

    def complete_iterable_value(
        self, item_type: Any, field_details_list: list[Any], info: Any, path: Any, items: Iterable[Any], *context: Any
    ) -> Any:
        """Return the completed items of a list. Lists whose items have only plain fields take the fast path."""
        object_type = item_type.of_type if is_non_null_type(item_type) else item_type
        if isinstance(items, list) and is_object_type(object_type) and object_type.is_type_of is None:
            fields = self.collect_subfields(object_type, field_details_list).grouped_field_set
            plain, count = self._plain_of(object_type, fields)
            if plain and len(plain) == len(fields):
                try:
                    completed = [_completed(item, plain) for item in items]
                except Exception:  # noqa: BLE001, S110 - graphql-core completes the list again and reports the error
                    pass
                else:
                    measured = [key for key, each in plain.items() if each.measured]
                    count *= len(completed)
                    self._count(count + sum(_bytes_of(each[key]) for each in completed for key in measured))
                    return completed
        if path.prev is None and isinstance(items, list) and len(set(map(id, items))) < len(items):
            return self._complete_once(item_type, field_details_list, info, path, items, *context)
        return super().complete_iterable_value(item_type, field_details_list, info, path, items, *context)

    def _complete_once(
        self, item_type: Any, field_details_list: list[Any], info: Any, path: Any, items: list[Any], *context: Any
    ) -> Any:
        """Complete a list that contains some objects repeatedly. Each distinct object is completed once."""
        places: dict[int, int] = {}
        marked: list[Any] = []
        for place, item in enumerate(items):
            first = places.setdefault(id(item), place)
            marked.append(item if first == place else _Repetition(first))
        given = super().complete_iterable_value(item_type, field_details_list, info, path, marked, *context)
        if self.is_awaitable(given):
            return self._repeated_later(marked, given)
        return self._repeated(marked, cast("list[Any]", given))

    async def _repeated_later(self, items: list[Any], given: Awaitable[list[Any]]) -> list[Any]:
        return self._repeated(items, await given)

    def _repeated(self, items: list[Any], given: list[Any]) -> list[Any]:
        """Copy the completed value of each object to its repetitions, and count its bytes each time."""
        sizes: dict[int, int] = {}
        for item in items:
            if isinstance(item, _Repetition):
                if item.place not in sizes:
                    sizes[item.place] = _bytes_of(given[item.place])
                self._count(sizes[item.place])
        places = (item.place if isinstance(item, _Repetition) else place for place, item in enumerate(items))
        return [given[place] for place in places]

    def complete_list_item_value(self, item: Any, complete_results: list[Any], *context: Any) -> bool:
        """Complete an item of a list. Return whether the result must be awaited."""
        if isinstance(item, _Repetition):
            complete_results.append(None)
            return False
        return super().complete_list_item_value(item, complete_results, *context)

    def complete_leaf_value(self, return_type: Any, result: Any) -> Any:  # type: ignore[override]
        """Complete a scalar or an enum."""
        completed = super().complete_leaf_value(return_type, result)
        self._count(_bytes_of(completed))
        return completed

    def _count(self, count: int) -> None:
        """Count bytes of the response as they are produced. Raise what `AnswerBytes.add` raises."""
        if self.context_value is not None:
            self.context_value.context.answer.add(count)

    def build_per_event_executor(self, payload: Any) -> "QuickExecutor":
        """Return the executor of one subscription event, with a subfield cache of its own."""
        executor = cast("QuickExecutor", super().build_per_event_executor(payload))
        # graphql-core shares this cache between events. Its keys contain ids of lists that are new for each event, so
        # it would grow without bound.
        executor._relevant_sub_fields = {}  # noqa: SLF001 - an attribute of this class, on another instance
        return executor

    def _plain_of(self, parent_type: GraphQLObjectType, fields: Fields) -> tuple[dict[str, _Plain], int]:
        """Return the plain fields, and the estimated bytes of an object without its measured values.

        The result is cached for all objects of a list, because they share one field set.
        """
        known = self.__dict__.setdefault("_plain", {})
        key = (parent_type, id(fields))
        if key not in known:
            found = {each: _plain(self.schema, parent_type, of[0].node.name.value) for each, of in fields.items()}
            # The cache entry references the mapping, so that its id is not reused while the entry exists.
            plain = {each: of for each, of in found.items() if of is not None}
            usual = sum(USUAL_BYTES for each in plain.values() if not each.measured)
            # 4 bytes for the quotation marks, colon and comma of each name.
            names = sum(map(len, fields)) + 4 * len(fields)
            known[key] = (fields, (plain, usual + names))
        return cast("tuple[dict[str, _Plain], int]", known[key][1])


@lru_cache(4096)
def _plain(schema: GraphQLSchema, parent_type: GraphQLObjectType, name: str) -> _Plain | None:
    field: Any = schema.get_field(parent_type, name)
    if field is None or not is_default_resolver(field.resolve):
        return None
    nullable = not is_non_null_type(field.type)
    type_ = field.type if nullable else field.type.of_type
    if not is_leaf_type(type_):
        return None
    return _Plain(
        field.extensions["strawberry-definition"].python_name,
        type_.coerce_output_value,
        nullable,
        type_.name in MEASURED,
    )


def _bytes_of(value: Any) -> int:
    try:
        return len(orjson.dumps(value, default=str))
    except orjson.JSONEncodeError:
        # Serialization of the response raises the same error and reports it.
        return USUAL_BYTES


def _completed(source_value: object, fields: Mapping[str, _Plain]) -> dict[str, Any]:
    """Return the completed plain fields of an object. Raise the error of the first field that cannot be completed."""
    completed: dict[str, Any] = {}
    for key, (attribute, complete, nullable, _) in fields.items():
        value = getattr(source_value, attribute)
        if value is not None:
            value = complete(value)
            if value is None or value is Undefined:
                raise ValueError("a value that its type does not have")
        elif not nullable:
            raise ValueError("no value where there must be one")
        completed[key] = value
    return completed


def _joined(fields: Fields, ready: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    both = ready | others
    return {key: both[key] for key in fields if key in both}


async def _joined_later(fields: Fields, ready: dict[str, Any], others: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    return _joined(fields, ready, await others)
