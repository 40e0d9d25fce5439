"""Drawing points on triangles, and cutting polygons into triangles."""

import numpy as np

from hf_any3d.data.files.errors import PointCloudError


def draw_on_surface(
    vertices: np.ndarray, faces: np.ndarray, n: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw `n` points on triangles, each triangle with a probability proportional to its area.

    Args:
        vertices: (vertices, 3).
        faces: (faces, 3) indices into `vertices`.
        n: how many points to draw.
        generator: numpy's random generator.

    Returns:
        The face of each sample (n,) int64, the weights of its three corners (n, 3), the points (n, 3) and the unit
        normals of their faces (n, 3).

    Raises:
        PointCloudError: if no triangle has an area.

    Source: Osada et al., "Shape distributions", Sec. 3.1.
    """
    a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))  # (faces, 3) each
    doubled = np.cross(b - a, c - a)
    until = np.linalg.norm(doubled, axis=1).cumsum()
    if not until[-1] > 0:
        raise PointCloudError(f"none of the {len(faces)} triangles has an area; there is no surface to sample")
    # A draw of exactly the total would fall behind the last triangle; side="right" steps over those without area.
    draws = np.minimum(generator.random(n) * until[-1], np.nextafter(until[-1], 0))
    face = until.searchsorted(draws, side="right")
    root, share = np.sqrt(generator.random(n)), generator.random(n)
    weights = np.stack([1 - root, root * (1 - share), root * share], axis=1)  # (n, 3)
    points = weights[:, :1] * a[face] + weights[:, 1:2] * b[face] + weights[:, 2:] * c[face]
    normals = doubled[face]
    return face, weights, points, normals / np.linalg.norm(normals, axis=1, keepdims=True)


def fan_triangles(counts: np.ndarray, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut polygons into triangles that all start at the polygon's first corner.

    Args:
        counts: (polygons,) how many corners each polygon has; fewer than three give no triangle.
        corners: (sum of counts,) the corners of all polygons, one after the other.

    Returns:
        Triangles (triangles, 3) int64 and the polygon each was cut from (triangles,) int64.
    """
    counts = np.asarray(counts)
    corners = np.asarray(corners, np.int64)
    kept = np.flatnonzero(counts > 2)  # there may be millions without a triangle
    start = counts.cumsum(dtype=np.int64)[kept]
    counts = counts[kept].astype(np.int64)
    start -= counts
    triangles = counts - 2
    of_kept = np.repeat(np.arange(len(kept)), triangles)
    # Column by column, since one huge polygon makes as many triangles as it has corners.
    faces = np.empty((len(of_kept), 3), np.int64)
    place = start[of_kept]
    faces[:, 0] = corners[place]
    place += np.arange(1, len(of_kept) + 1)
    place -= (triangles.cumsum() - triangles)[of_kept]
    faces[:, 1] = corners[place]
    place += 1
    faces[:, 2] = corners[place]
    return faces, kept[of_kept]


def count_triangles(counts: np.ndarray) -> int:
    """Count the triangles into which `fan_triangles` cuts polygons of so many corners."""
    counts = np.asarray(counts)
    counts = counts[counts > 2]
    return int(counts.sum(dtype=np.int64)) - 2 * len(counts)
