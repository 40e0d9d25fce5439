"""Options that have to be one of a few values, or a number that is not too small; optional packages."""

from collections.abc import Iterable
from importlib import import_module
from typing import Any, TypeVar

from hf_any3d.utils.messages import listed

Value = TypeVar("Value")

COLUMNS = {
    "points": tuple("points data pts xyz pc pcs pcd coords point_cloud point_clouds pointcloud pointclouds".split()),
    "label": ("label", "labels", "y", "class", "category", "cls", "target"),
    "labels": ("labels", "seg", "pid", "mask", "segmentation"),
    "normals": ("normals", "normal"),
    "colors": ("colors", "color", "rgb"),
}
"""Column of a dataset -> names that data of others have for it, in small letters; the first ones are the likeliest."""


def one_of(name: str, value: Value, allowed: Iterable) -> Value:
    """Return the value of an option; raise ValueError, which names both and what is allowed, for any other."""
    # Listed once, as it may be a generator, and is needed for the error, too
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(str, allowed))}")
    return value


def require_columns(wanted: Iterable[str], columns: Iterable[str], where: str = "") -> None:
    """Raise ValueError for a column that a dataset lacks; it names those that there are, and how to rename one.

    `where` stands before the text, such as a split.
    """
    columns = list(columns)
    for name in wanted:
        if name not in columns:
            found = listed(columns, 8) or "none"
            raise ValueError(f"{where}no column {name!r} among {found}{renaming(name, columns)}")


def renaming(wanted: str, columns: Iterable[str]) -> str:
    """Return how the column that is probably meant gets the name that is expected, as the end of a message."""
    if wanted not in COLUMNS:
        return ""
    by_name = {str(column).lower(): column for column in columns}
    found = next((by_name[name] for name in COLUMNS[wanted] if name in by_name), "…")
    return f'; use dataset.rename_column("{found}", "{wanted}")'


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
