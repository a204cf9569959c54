"""Values of settings as an operator gives them: in variables of the environment, and secrets in files too."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import orjson
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from resolvers.spelling import nearest


def read(prefix: str, fields: Mapping[str, FieldInfo]) -> tuple[dict[str, Any], list[str]]:
    """Give what the environment says of these fields, and a sentence for each variable that says nothing good.

    What has a default of several values is JSON. No sentence quotes a value: it may be a secret in the wrong variable.
    """
    known = {(prefix + name).upper(): name for name in fields}
    files = {f"{prefix}{name}_FILE".upper(): name for name, field in fields.items() if _is_secret(field)}
    unknown = [name for name in os.environ if name.startswith(prefix) and name not in known | files.keys()]
    problems = [_unknown(name, known) for name in sorted(unknown)]
    values: dict[str, Any] = {name: os.environ[variable] for variable, name in known.items() if variable in os.environ}
    for variable, name in files.items():
        if variable in os.environ:
            try:
                values[name] = Path(os.environ[variable]).read_text().strip()
            except OSError as error:
                problems.append(f"{variable}: the file cannot be read ({error.strerror})")
    for variable, name in known.items():
        if name in values and isinstance(fields[name].default, dict | tuple):
            try:
                values[name] = orjson.loads(values[name])
            except orjson.JSONDecodeError:
                problems.append(f"{variable}: must be JSON")
                del values[name]
    return values, problems


def _is_secret(field: FieldInfo) -> bool:
    return SecretStr in (field.annotation, *get_args(field.annotation))


def _unknown(name: str, known: Iterable[str]) -> str:
    return f"{name}: no such setting; the nearest is {nearest(name, known)}"
