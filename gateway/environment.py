"""Settings from environment variables, and secrets from files."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import orjson
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from resolvers.spelling import nearest

# Variables that Kubernetes adds to each container of a namespace for a Service whose name starts with the prefix.
# Source: https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_OF_A_SERVICE = re.compile(
    r"(.+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_PORT_OF_A_SERVICE = re.compile(r"(.+_)?PORT")
_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


def read(prefix: str, fields: Mapping[str, FieldInfo]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of these fields from the environment, and a message for each unusable variable.

    An empty variable is unset, and so is a variable whose file is empty. A field whose default is a dict or tuple is
    parsed as JSON. No message quotes a value: it may be a secret in the wrong variable.
    """
    known = {(prefix + name).upper(): name for name in fields}
    files = {f"{prefix}{name}_FILE".upper(): name for name, field in fields.items() if _is_secret(field)}
    given = _given(prefix)
    unknown = sorted(given.keys() - known.keys() - files.keys())
    problems = [f"{name}: no such setting; the nearest is {nearest(name, known)}" for name in unknown]
    values: dict[str, Any] = {name: given[variable] for variable, name in known.items() if variable in given}
    for variable, name in files.items():
        if variable in given:
            try:
                text = Path(given[variable]).read_text(encoding="utf-8").strip()
            except OSError as error:
                problems.append(f"{variable}: the file cannot be read ({error.strerror})")
            except UnicodeDecodeError:
                problems.append(f"{variable}: the file cannot be read (it is not UTF-8)")
            else:
                values |= {name: text} if text else {}
    for variable, name in known.items():
        if name in values and isinstance(fields[name].default, dict | tuple):
            try:
                values[name] = orjson.loads(values[name])
            except orjson.JSONDecodeError:
                problems.append(f"{variable}: must be JSON")
                del values[name]
    return values, problems


def of_kubernetes(prefix: str) -> list[str]:
    """Return the names of variables that Kubernetes added for a Service, which are not settings."""
    return sorted(name for name, value in os.environ.items() if _is_of_kubernetes(prefix, name, value))


def _given(prefix: str) -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(prefix) and value.strip() and not _is_of_kubernetes(prefix, name, value)
    }


def _is_of_kubernetes(prefix: str, name: str, value: str) -> bool:
    if not name.startswith(prefix):
        return False
    rest = name.removeprefix(prefix)
    # Kubernetes sets `…_PORT` to a URL. A port that is a number is a setting.
    return bool(_OF_A_SERVICE.fullmatch(rest) or (_PORT_OF_A_SERVICE.fullmatch(rest) and _ADDRESS.match(value)))


def _is_secret(field: FieldInfo) -> bool:
    return SecretStr in (field.annotation, *get_args(field.annotation))
