"""Points on the surface of a triangle mesh."""

import numpy as np


def sample_surface(
    vertices: np.ndarray, faces: np.ndarray, num_points: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw points evenly over the surface of a mesh, each face in proportion to its area.

    Args:
        vertices: (num_vertices, 3) in any unit.
        faces: (num_faces, 3) indices of vertices.
        num_points: how many points to draw.
        generator: source of randomness.

    Returns:
        Points (num_points, 3) float32; the face of each (num_points,) int64; and the weights (num_points, 3) float32
        of that face's corners, with which colours or normals of vertices can be interpolated.

    Raises:
        ValueError: no face with an area, so that there is no surface to draw from.
    """
    corners = np.asarray(vertices, dtype=np.float64)[faces]  # (num_faces, 3, 3)
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    total = areas.sum()
    if not total > 0:
        raise ValueError(f"the mesh has {len(corners)} faces of total area {total}; expected a positive area")
    face = generator.choice(len(areas), num_points, p=areas / total)
    first, second = generator.random((2, num_points))
    # Folding the unit square along its diagonal spreads points evenly over a triangle.
    outside = first + second > 1
    first[outside], second[outside] = 1 - first[outside], 1 - second[outside]
    weights = np.stack([1 - first - second, first, second], axis=1)  # (num_points, 3)
    points = (corners[face] * weights[:, :, None]).sum(axis=1)  # (num_points, 3)
    return points.astype(np.float32), face, weights.astype(np.float32)
