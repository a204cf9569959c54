"""Running a query field by field, and quickly where a field is a plain member of an object that is here already.

graphql-core makes a path, an info and an error's place for each field of each object, also where the field is an
attribute and its type a scalar. Those are completed at once here. What does not go smoothly is left to graphql-core,
which knows what to say of it.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, cast

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

from schema.types import Operation

Fields = Mapping[str, Any]
"""What is asked for of an object, by response key."""


class _Plain(NamedTuple):
    """A field that is an attribute, of a scalar or an enum."""

    attribute: str
    complete: Callable[[Any], Any]
    nullable: bool


class QuickExecutor(Executor[Operation]):
    """graphql-core's executor, with plain fields completed at once."""

    def execute_fields(
        self, parent_type: GraphQLObjectType, source_value: Any, path: Any, grouped_field_set: Fields, *context: Any
    ) -> Any:
        """Give the fields of an object, or what can be awaited for them."""
        ready: dict[str, Any] = {}
        for key, plain in self._plain_of(parent_type, grouped_field_set).items():
            try:
                value = getattr(source_value, plain.attribute)
                completed = None if value is None else plain.complete(value)
            except Exception:  # noqa: BLE001, S112 - whatever it is, graphql-core meets it again and tells it
                continue
            if (value is None and plain.nullable) or (completed is not None and completed is not Undefined):
                ready[key] = completed
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
        """Give the items of a list: at once where nothing is asked of them but plain fields."""
        object_type = item_type.of_type if is_non_null_type(item_type) else item_type
        if isinstance(items, list) and is_object_type(object_type) and object_type.is_type_of is None:
            fields = self.collect_subfields(object_type, field_details_list).grouped_field_set
            plain = self._plain_of(object_type, fields)
            if plain and len(plain) == len(fields):
                try:
                    return [_completed(item, plain) for item in items]
                except Exception:  # noqa: BLE001, S110 - whatever it is, graphql-core meets it again and tells it
                    pass
        return super().complete_iterable_value(item_type, field_details_list, info, path, items, *context)

    def build_per_event_executor(self, payload: Any) -> "QuickExecutor":
        """Give the executor of one event, which keeps nothing of it for the next."""
        executor = cast("QuickExecutor", super().build_per_event_executor(payload))
        # A copy shares what was collected by the ids of lists that each event has anew: it would only ever grow.
        executor._relevant_sub_fields = {}  # noqa: SLF001 - our own, and another's only by its variable
        return executor

    def _plain_of(self, parent_type: GraphQLObjectType, fields: Fields) -> dict[str, _Plain]:
        """Say which fields are plain: worked out once for all objects of a list, whose fields are the same mapping."""
        known = self.__dict__.setdefault("_plain", {})
        key = (parent_type, id(fields))
        if key not in known:
            found = {each: _plain(self.schema, parent_type, of[0].node.name.value) for each, of in fields.items()}
            # With the mapping, which as long as it is kept shares its id with no other.
            known[key] = (fields, {each: plain for each, plain in found.items() if plain is not None})
        return cast("dict[str, _Plain]", known[key][1])


@lru_cache(4096)
def _plain(schema: GraphQLSchema, parent_type: GraphQLObjectType, name: str) -> _Plain | None:
    field: Any = schema.get_field(parent_type, name)
    if field is None or not is_default_resolver(field.resolve):
        return None
    nullable = not is_non_null_type(field.type)
    type_ = field.type if nullable else field.type.of_type
    if not is_leaf_type(type_):
        return None
    return _Plain(field.extensions["strawberry-definition"].python_name, type_.coerce_output_value, nullable)


def _completed(source_value: object, fields: Mapping[str, _Plain]) -> dict[str, Any]:
    """Give the fields of an object. Raises whatever keeps one of them from being completed."""
    completed: dict[str, Any] = {}
    for key, (attribute, complete, nullable) in fields.items():
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
