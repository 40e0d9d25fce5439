"""Generated tiles as tests take them, and jaws."""

import numpy as np

from hf_any3d.data.generated import tiles

UNCLASSIFIED = 1


def draw_tile(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw points (points, 3) of a tile, all tiles at one place, with their classes and numbers of returns (points,).

    Plants are one class, and some points have none.
    """
    tile = tiles.draw_tile(seed)
    labels = np.where(tile.classes == tiles.LOW_VEGETATION, tiles.HIGH_VEGETATION, tile.classes)
    labels[np.random.default_rng(seed).random(len(labels)) < 0.02] = UNCLASSIFIED
    place = (1000 * seed, 0, 0)
    return tile.points - place, labels, tile.return_counts.astype(np.float32)


def draw_jaw(seed: int, rows: int = 24) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw vertices (vertices, 3), faces (faces, 3) and a label of each face: teeth in a row (7) on gum (0)."""
    generator = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 60, 2 * rows), np.linspace(0, 30, rows), indexing="ij")  # millimeters
    height = np.sin(x / 20 + generator.uniform(0, 2))
    for middle in generator.uniform(8, 14) + np.array([0, 14, 28]):
        away = np.hypot(x - middle, y - 15 - generator.uniform(-3, 3))
        height += generator.uniform(7, 10) * np.clip(1 - (away / 6) ** 4, 0, None)
    vertices = np.stack([x, y, height], axis=-1).reshape(-1, 3)
    corner = (np.arange(2 * rows - 1)[:, None] * rows + np.arange(rows - 1)).reshape(-1)
    halves = (corner, corner + rows, corner + 1), (corner + rows, corner + rows + 1, corner + 1)
    faces = np.concatenate([np.stack(corners, axis=1) for corners in halves])
    return vertices, faces, np.where(vertices[faces][:, :, 2].mean(axis=1) > 4, 7, 0)
