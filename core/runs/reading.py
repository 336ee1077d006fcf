"""Files of a run read as typed records; whatever is wrong with a file names it, and the way out."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from splitlab.core.contract.errors import ConfigError

__all__ = ["DAMAGE", "VERSION", "check_version", "naming", "typed", "words"]

VERSION = 3
"""Of the records that are written; earlier ones are read as well."""

T = TypeVar("T")

DAMAGE = (ValueError, KeyError, TypeError, AttributeError)
"""What reading raises where a file does not hold what was written."""


class _LaterVersionError(Exception):
    """The records are of a later version."""


def typed(kind: type[T], values: dict[str, Any]) -> T:
    """Return the record of these values, each of which must be of its field's type."""
    for name, allowed in _types(typing.cast(Any, kind)).items():
        value = values.get(name)
        if name in values and (
            not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)
        ):
            raise TypeError(f"{name} is {value!r}")
    return kind(**values)


@cache
def _types(kind: type) -> dict[str, tuple[type, ...]]:
    """Return what a value read from JSON may be, by field."""
    found = {}
    for name, hint in typing.get_type_hints(kind).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        plain = {typing.get_origin(option) or option for option in options}
        found[name] = tuple(plain | ({int} if float in plain else set()))
    return found


def words(items: Any) -> tuple[str, ...]:
    """Return a list of words as a tuple; `TypeError` if it is none."""
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise TypeError(f"{items!r} is no list of words")
    return tuple(items)


def check_version(version: object) -> None:
    """Refuse what is no version, or a later one; `naming` tells it."""
    if type(version) is not int or version < 1:
        raise ValueError(f"its version is {version!r}")
    if version > VERSION:
        raise _LaterVersionError(version)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file names the file, and the way out."""
    try:
        yield
    except _LaterVersionError as error:
        raise ConfigError(
            f"{path} is of version {error}; this splitlab reads 1 to {VERSION}: use a newer one"
        ) from None
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist; name the folder of a run, or if the run is not finished go on "
            f"with it: splitlab run --resume {path.parent}"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except DAMAGE as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{path} is damaged ({reason}); delete the run to run it again") from None
