"""Tiles that code makes: rolling ground, trees and houses, with classes of LAS."""

import numpy as np

GROUND, TREE, ROOF, UNCLASSIFIED = 2, 5, 6, 1


def draw_tile(seed: int, size: float = 40.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw points (points, 3), z up, in meters, with their classes and numbers of returns (points,)."""
    generator = np.random.default_rng(seed)

    def heights(flat: np.ndarray) -> np.ndarray:
        return 100 + np.sin(flat[:, 0] / 15 + seed) + 0.03 * flat[:, 1]

    ground = generator.uniform(0, size, (4000, 2))
    corners = generator.uniform(4, size - 12, (3, 2))
    trees = generator.uniform(3, size - 3, (6, 2))
    for corner in corners:
        ground = ground[~((ground > corner) & (ground < corner + 8)).all(axis=1)]
    parts = [(np.column_stack([ground, heights(ground)]), GROUND, 1)]
    for corner in corners:
        roof = corner + generator.uniform(0, 8, (700, 2))
        parts.append((np.column_stack([roof, 105 + 0.4 * np.abs(roof[:, 0] - corner[0] - 4)]), ROOF, 1))
    for place in trees:
        crown = generator.normal(size=(500, 3)) * (1.5, 1.5, 1.8)
        parts.append((crown + (*place, 106), TREE, 2))
    points = np.concatenate([part for part, _, _ in parts])
    labels = np.concatenate([np.full(len(part), code) for part, code, _ in parts])
    returns = np.concatenate([np.full(len(part), count) for part, _, count in parts])
    labels[generator.random(len(labels)) < 0.02] = UNCLASSIFIED
    return points + generator.normal(0, 0.02, points.shape), labels, returns.astype(np.float32)


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
