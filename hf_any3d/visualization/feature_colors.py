"""Colors of points by their features: similar features get similar colors."""

import numpy as np

# Points from which the principal components are computed.
_SAMPLE = 20_000
# Points that are projected at a time, so that features may be mapped from a file.
_PIECE = 200_000


def feature_colors(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """Turn features into colors: their first three principal components as red, green and blue.

    `features (points, channels)` may be mapped from a file; `seed` is for the points from which the components are
    computed, if there are many.

    Returns:
        `(points, 3)` float32 from 0 to 1; each component is scaled so that one percent of the points is cut off at
        either end.
    """
    rows = np.arange(len(features))
    if len(rows) > _SAMPLE:
        # Sorted, since features that are mapped from a file are then read in order.
        rows = np.sort(np.random.default_rng(seed).choice(len(rows), _SAMPLE, replace=False))
    sample = np.asarray(features[rows], dtype=np.float64)
    if sample.shape[1] < 3 or not sample.size or not np.isfinite(sample).all():
        raise ValueError(f"features have shape {features.shape}; expected finite numbers (points, 3 channels or more)")
    mean = sample.mean(axis=0)
    # Eigenvectors of the (channels, channels) matrix: far smaller than a decomposition of all points.
    _, axes = np.linalg.eigh((sample - mean).T @ (sample - mean))  # ascending
    axes = axes[:, :-4:-1]  # (channels, 3), the largest component first
    # The sign of a component is arbitrary: here its largest coefficient is positive.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), range(3)])
    # A few outliers would leave all other points in shades of one color.
    low, high = np.percentile((sample - mean) @ axes, (1, 99), axis=0)
    colors = np.empty((len(features), 3), dtype=np.float32)
    for start in range(0, len(features), _PIECE):
        piece = np.asarray(features[start : start + _PIECE], dtype=np.float64)
        colors[start : start + _PIECE] = ((piece - mean) @ axes - low) / np.maximum(high - low, 1e-12)
    return colors.clip(0, 1, out=colors)
