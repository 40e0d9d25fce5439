"""Eigenvalues and directions of many symmetric 3 × 3 matrices at once, in closed form.

Source: Smith, "Eigenvalues of a symmetric 3 × 3 matrix" (1961).
"""

from __future__ import annotations

import numpy as np

_SMALLEST = 1e-30


def eigenvalues(matrices: np.ndarray) -> np.ndarray:
    """Return the eigenvalues of covariances (count, 6), xx xy xz yy yz zz, as (count, 3), the largest first.

    Those of rounding below 0 become 0.
    """
    xx, xy, xz, yy, yz, zz = matrices.T
    mean = (xx + yy + zz) / 3
    # The matrix less its mean eigenvalue, whose eigenvalues have the sum 0: then a cosine gives all three.
    a = xx - mean
    b = yy - mean
    c = zz - mean
    spread = np.sqrt((a * a + b * b + c * c + 2 * (xy * xy + xz * xz + yz * yz)) / 6)
    determinant = a * (b * c - yz * yz) - xy * (xy * c - yz * xz) + xz * (xy * yz - b * xz)
    # Rounding may leave [-1, 1], and matrices without any spread would divide by 0.
    cosine = determinant / np.maximum(2 * spread**3, _SMALLEST)
    angle = np.arccos(cosine.clip(-1, 1)) / 3
    # The third follows from the trace, the sum of all three.
    largest = mean + 2 * spread * np.cos(angle)
    smallest = mean + 2 * spread * np.cos(angle + 2 * np.pi / 3)
    return np.stack([largest, 3 * mean - largest - smallest, smallest], axis=1).clip(min=0)


def eigenvectors(matrices: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return unit eigenvectors (count, 3) of covariances (count, 6) for one eigenvalue of each, (count,).

    All rows of the matrix less the eigenvalue are perpendicular to it, so that it is the cross product of two of them:
    the longest one, as the others may be parallel. Where all are 0, any direction is one, and up is returned.
    """
    xx, xy, xz, yy, yz, zz = matrices.T
    rows = ((xx - values, xy, xz), (xy, yy - values, yz), (xz, yz, zz - values))
    best = np.zeros((len(matrices), 3))
    length = np.zeros(len(matrices))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        (a, b, c), (d, e, f) = rows[one], rows[other]
        cross = np.stack([b * f - c * e, c * d - a * f, a * e - b * d], axis=1)
        squared = np.einsum("ij,ij->i", cross, cross)
        is_longer = squared > length
        best[is_longer], length[is_longer] = cross[is_longer], squared[is_longer]
    is_flat = length < _SMALLEST
    best[is_flat] = (0, 0, 1)
    length[is_flat] = 1
    return best / np.sqrt(length)[:, None]
