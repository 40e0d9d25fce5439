"""Group tiles into places: which belong together, and which share points with others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hf_any3d_survey.tiles.reading import TileFacts

NEAR = 100.0
"""Meters between tiles up to which they are of one place: also neighbors with a gap show the same houses and trees."""
_LEAST_SHARED = 0.05


def places_of(tiles: Sequence[TileFacts]) -> np.ndarray:
    """Return the number of the place of each tile, (tiles,): those that overlap or touch are of one place.

    So are copies, wherever they lie.
    """
    place = np.arange(len(tiles))
    for one, other in _pairs(tiles):
        # Boxes (2, 2), in meters, are seen from above.
        first = tiles[one].box
        second = tiles[other].box
        # Along x and y; negative where the boxes overlap
        gaps = np.maximum(first[0] - second[1], second[0] - first[1])
        if np.linalg.norm(gaps.clip(min=0)) <= NEAR or _are_copies(tiles[one], tiles[other]):
            # Joins the places of both, so that a chain of neighbors is one place.
            place[place == place[one]] = place[other]
    return np.unique(place, return_inverse=True)[1]


def twins_of(tiles: Sequence[TileFacts], are_places: bool) -> np.ndarray:
    """Return the number of the group of each tile, (tiles,): copies, and tiles that share ground, are one group.

    Tiles of a group must not judge each other. Objects, which all lie around the origin, share none.
    """
    group = np.arange(len(tiles))
    for one, other in _pairs(tiles):
        if _are_copies(tiles[one], tiles[other]) or (are_places and _share_ground(tiles[one], tiles[other])):
            group[group == group[one]] = group[other]
    return np.unique(group, return_inverse=True)[1]


def remarks_on_copies(tiles: Sequence[TileFacts]) -> list[str]:
    """Return a remark on each pair of copies."""
    return [
        f"duplicates: {tiles[other].path.name} and {tiles[one].path.name} have the same points; remove one"
        for one, other in _pairs(tiles)
        if _are_copies(tiles[one], tiles[other])
    ]


def remarks_on_overlaps(tiles: Sequence[TileFacts]) -> list[str]:
    """Return a remark on each pair of tiles that share ground."""
    return [
        f"overlap: {tiles[other].path.name} and {tiles[one].path.name}; shared points count twice in training, and "
        "the two are held out together"
        for one, other in _pairs(tiles)
        if _share_ground(tiles[one], tiles[other])
    ]


def _pairs(tiles: Sequence[TileFacts]) -> Iterator[tuple[int, int]]:
    # Few tiles, so that all pairs can be looked at
    for one in range(len(tiles)):
        for other in range(one):
            yield one, other


def _are_copies(one: TileFacts, other: TileFacts) -> bool:
    return one.digest != "" and one.digest == other.digest


def _share_ground(one: TileFacts, other: TileFacts) -> bool:
    """Return whether the smaller box of two tiles, seen from above, lies in the other one by more than a little."""
    sides = np.minimum(one.box[1], other.box[1]) - np.maximum(one.box[0], other.box[0])
    smaller = min(np.prod(np.ptp(tile.box, axis=0)) for tile in (one, other))
    return float(np.prod(sides.clip(0)) / max(smaller, 1e-12)) > _LEAST_SHARED
