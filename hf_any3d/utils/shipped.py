"""Folders of files that come with the package."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# A wheel has them inside the package.
_IN_A_CHECKOUT = {"assets": "examples/data", "recipes": "examples/recipes"}


def _folder(name: str) -> Path:
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / _IN_A_CHECKOUT[name]


ASSETS = _folder("assets")
"""Shapes as Parquet files, and three as .ply."""
RECIPES = _folder("recipes")
"""Settings of trainings."""
