"""The ways to learn from labeled files, and the one place that chooses between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hf_any3d_survey.tiles.arguments import TilesArguments
from hf_any3d_survey.tiles.reading import tile_files

FEATURES, TRAINED = "features", "trained"
MOST_BYTES = 4 << 30
"""Size of all files above which a network is trained: looking at a million points takes seconds, so that these would
take more than ten minutes, and features of surroundings gain little from further tiles."""
OF_TILES = {setting.name for setting in fields(TilesArguments)}
"""Names of the options of the way of features."""


def choose_way(paths: Sequence[str | Path], settings: Mapping[str, Any], way: str | None = None) -> str:
    """Return how labeled files are learned.

    Args:
        paths: Files, and folders of them.
        settings: The settings that are given, by their names.
        way: "features" of surroundings with a small network, or "trained" for a network that sees the points; None for
            what the settings ask for, or else the size of the files.
    """
    foreign = sorted({*settings} - OF_TILES)
    # A network that sees the points has features that begin with their places, and no columns by name.
    if "xyz" in settings.get("features", ()):
        foreign.append("features xyz")
    if way == FEATURES and foreign:
        raise ValueError(f"--{foreign[0]} has no effect with --way features; use it with --way trained")
    if way is None:
        # Bytes stand for points, which would take reading all files.
        size = sum(path.stat().st_size for path in tile_files(paths))
        way = TRAINED if foreign or size > MOST_BYTES else FEATURES
    if way == TRAINED and (len(paths) > 1 or not Path(paths[0]).is_dir()):
        raise ValueError(f"--way trained with {Path(paths[0]).name}; pass a folder of labeled files")
    return way
