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
    cosine = determinant / np.maximum(2 * spread * spread * spread, _SMALLEST)
    angle = np.arccos(cosine.clip(-1, 1)) / 3
    # The third follows from the trace, the sum of all three.
    largest = mean + 2 * spread * np.cos(angle)
    smallest = mean + 2 * spread * np.cos(angle + 2 * np.pi / 3)
    # Columns stay whole in memory, as all that follows is computed by column.
    return np.stack([largest, 3 * mean - largest - smallest, smallest]).clip(min=0).T


def eigenvectors(matrices: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return unit eigenvectors (count, 3) of covariances (count, 6) for one eigenvalue of each, (count,).

    All rows of the matrix less the eigenvalue are perpendicular to it, so that it is the cross product of two of them:
    the longest one, as the others may be parallel. Where all are 0, any direction is one, and up is returned.
    """
    xx, xy, xz, yy, yz, zz = matrices.T
    a = xx - values
    b = yy - values
    c = zz - values
    # The three cross products of rows share their entries, as the matrix is symmetric.
    one = b * c - yz * yz
    two = a * c - xz * xz
    three = a * b - xy * xy
    four = xz * yz - xy * c
    five = xy * yz - xz * b
    six = xy * xz - yz * a
    best = [five, six, three]
    length = five * five + six * six + three * three
    for cross in ([four, two, six], [one, four, five]):
        squared = cross[0] * cross[0] + cross[1] * cross[1] + cross[2] * cross[2]
        is_longer = squared > length
        length = np.where(is_longer, squared, length)
        best = [np.where(is_longer, new, old) for new, old in zip(cross, best, strict=True)]
    is_flat = length < _SMALLEST
    length[is_flat] = 1
    found = np.stack(best) / np.sqrt(length)
    found[:, is_flat] = [[0], [0], [1]]
    return found.T
