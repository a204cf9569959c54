"""Errors of the arguments of a field."""

from dataclasses import replace

from strawberry.utils.str_converters import to_camel_case

from resolvers import errors


def in_argument(name: str, error: errors.InvalidInput) -> errors.InvalidInput:
    """Return a resolver's error with pointers as in GraphQL: prefixed with the argument's name, and in camelCase."""
    return errors.InvalidInput(
        [replace(each, pointer=f"/{name}{to_camel_case(each.pointer)}") for each in error.violations]
    )
