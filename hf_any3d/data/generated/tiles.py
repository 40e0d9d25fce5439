"""Tiles of an airborne scan, drawn by code: rolling ground, houses and trees, with their classes as LAS numbers them.

They stand for tiles of a reader's own in examples, so that these run anywhere. A model that learns them knows nothing
about real scans.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

GROUND, LOW_VEGETATION, HIGH_VEGETATION, BUILDING = 2, 3, 5, 6  # codes of ASPRS


class Tile(NamedTuple):
    """The points of a tile.

    Attributes:
        points: (points, 3) float64, in meters, z up.
        classes: (points,) codes of ASPRS.
        return_numbers: (points,) which return of its pulse a point is, from 1.
        return_counts: (points,) how many returns its pulse has.
        intensities: (points,) from 0 to 65535.
    """

    points: np.ndarray
    classes: np.ndarray
    return_numbers: np.ndarray
    return_counts: np.ndarray
    intensities: np.ndarray


_PER_SQUARE_METER = 4
_NOISE = 0.03  # meters, of the scanner


def draw_tile(seed: int, size: float = 36.0, houses: int = 3, trees: int = 6, bushes: int = 8) -> Tile:
    """Draw a square tile, a kilometer away from that of another seed; the same arguments give the same one.

    Args:
        seed: Of ground, houses and plants, and of the place.
        size: Length of its sides in meters.
        houses: How many; two may stand in each other.
        trees: How many.
        bushes: How many; from above they return a pulse once, as roofs do.
    """
    generator = np.random.default_rng(seed)
    phases = generator.uniform(0, 2 * np.pi, 2)

    def heights(flat: np.ndarray) -> np.ndarray:
        """Return the height of the ground (points,) at places (points, 2)."""
        # Rolling ground with waves of about 95 and 130 m, which rises by 3 % along y
        waves = np.sin(flat[:, 0] / 15 + phases[0]) + np.sin(flat[:, 1] / 21 + phases[1])
        return 100 + waves + 0.03 * flat[:, 1]

    # (points, 2), evenly over the tile
    flat = generator.uniform(0, size, (int(_PER_SQUARE_METER * size**2), 2))
    parts = []
    # Houses are up to 12 m long and stay within the tile.
    for corner in generator.uniform(2, size - 14, (houses, 2)):
        sides = generator.uniform(8, 12, 2)
        # From above, no ground is seen below a roof.
        flat = flat[~((flat > corner) & (flat < corner + sides)).all(axis=1)]
        eaves = heights(corner[None])[0] + generator.uniform(3, 6)
        roof = corner + generator.uniform(0, 1, (int(_PER_SQUARE_METER * sides.prod()), 2)) * sides
        slope = generator.choice([0, 0.7])
        from_ridge = np.abs(roof[:, 0] - corner[0] - sides[0] / 2)
        house = np.column_stack([roof, eaves + slope * (sides[0] / 2 - from_ridge)])
        parts.append((house, BUILDING, 1))
    # A pulse that meets a crown has two returns.
    for foot in generator.uniform(3, size - 3, (trees, 2)):
        radius = generator.uniform(1.5, 3)
        crown = _crown(generator, np.append(foot, heights(foot[None]) + 2 + 1.3 * radius), radius)
        parts.append((crown, HIGH_VEGETATION, 2))
    for foot in generator.uniform(1, size - 1, (bushes, 2)):
        parts.append((_crown(generator, np.append(foot, heights(foot[None])), 1.2), LOW_VEGETATION, 1))
    # A tenth of the open ground is grass.
    is_grass = generator.random(len(flat)) < 0.1
    ground = np.column_stack([flat, heights(flat)])
    ground[is_grass, 2] += generator.uniform(0.2, 0.6, is_grass.sum())
    parts.append((ground[~is_grass], GROUND, 1))
    parts.append((ground[is_grass], LOW_VEGETATION, 1))

    points = np.concatenate([part for part, _, _ in parts])
    classes = np.concatenate([np.full(len(part), code) for part, code, _ in parts])
    counts = np.concatenate([np.full(len(part), count) for part, _, count in parts])
    # Of two returns, a point is either one.
    numbers = np.where(counts == 1, 1, generator.integers(1, 3, len(points)))
    brightness = np.select([classes == BUILDING, classes == GROUND], [22_000, 20_000], 16_000)
    place = (1000 * seed, 0, 0)
    return Tile(
        points=points + place + generator.normal(0, _NOISE, points.shape),
        classes=classes,
        return_numbers=numbers,
        return_counts=counts,
        intensities=brightness + generator.integers(0, 12_000, len(points)),
    )


def _crown(generator: np.random.Generator, center: np.ndarray, radius: float) -> np.ndarray:
    """Return points (points, 3) of the upper half of a bush or crown, most of them near its surface."""
    directions = generator.normal(size=(int(30 * radius**2), 3))
    directions[:, 2] = np.abs(directions[:, 2])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    depths = 1 - 0.4 * generator.random(len(directions)) ** 2
    return center + directions * depths[:, None] * (radius, radius, 1.3 * radius)


_HEADER = "<4sHHIHH8sBB32s32sHHHIIBHI5I12d"  # LAS 1.2, section 2.3
_POINT = np.dtype(
    [
        ("xyz", "<i4", 3),
        ("intensity", "<u2"),
        ("returns", "u1"),
        ("classification", "u1"),
        ("angle", "i1"),
        ("user", "u1"),
        ("source", "<u2"),
        ("time", "<f8"),
    ]
)  # point format 1
_SCALE = 0.001  # meters
# Keys of GeoTIFF: a projected system of its own (1024, 3072) in meters (3076)
_KEYS = struct.pack("<16H", 1, 1, 0, 3, 1024, 0, 1, 1, 3072, 0, 1, 32767, 3076, 0, 1, 9001)
_RECORD = struct.pack("<2x16sHH32x", b"LASF_Projection", 34735, len(_KEYS)) + _KEYS


def las_bytes(tile: Tile, *, labeled: bool = True) -> bytes:
    """Return a tile as a file: LAS 1.2, point format 1, with or without its classes (0, never classified)."""
    # The offset of the coordinates, in whole meters
    least = np.floor(tile.points.min(axis=0))
    rows = np.zeros(len(tile.points), _POINT)
    rows["xyz"] = np.rint((tile.points - least) / _SCALE)
    rows["intensity"] = tile.intensities
    # The number of the return in the lowest three bits, in the next three how many its pulse has
    rows["returns"] = tile.return_numbers | tile.return_counts << 3
    rows["classification"] = tile.classes if labeled else 0
    rows["time"] = np.arange(len(rows)) * 1e-5
    by_return = [int((tile.return_numbers == number).sum()) for number in range(1, 6)]
    # Bounds come as largest and least x, then y, then z.
    stored = rows["xyz"] * _SCALE + least
    bounds = np.column_stack([stored.max(axis=0), stored.min(axis=0)]).ravel()
    header_size = struct.calcsize(_HEADER)
    header = struct.pack(
        _HEADER,
        *(b"LASF", 0, 0, 0, 0, 0, bytes(8), 1, 2, b"generated", b"hf_any3d", 1, 2026),
        *(header_size, header_size + len(_RECORD), 1, 1, _POINT.itemsize, len(rows), *by_return),
        *(_SCALE, _SCALE, _SCALE, *least, *bounds),
    )
    return header + _RECORD + rows.tobytes()
