"""Options that have to be one of a few values, or a number that is not too small; optional packages."""

from collections.abc import Iterable
from importlib import import_module
from typing import Any, TypeVar

Value = TypeVar("Value")


def one_of(name: str, value: Value, allowed: Iterable) -> Value:
    """Return the value of an option; raise ValueError, which names both and what is allowed, for any other."""
    # Listed once, as it may be a generator, and is needed for the error, too
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(str, allowed))}")
    return value


def at_least(least: float, **options: float | None) -> None:
    """Raise ValueError, which names it, for an option below `least`; None is an option that is not given."""
    for name, value in options.items():
        if value is not None and not value >= least:
            raise ValueError(f"{name} is {value!r}; expected at least {least}")


def package(name: str, extra: str) -> Any:
    """Import an optional package, which an extra of this one installs."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"this needs {name.partition('.')[0]}: pip install 'hf-any3d[{extra}]'") from error
