"""Terrain that is added to tiles, so that a model sees hills though its tiles are of a plain."""

from __future__ import annotations

import numpy as np

STEEPEST = 45.0
"""Degrees of the steepest slope that is added."""
_GENTLEST = 10.0
_WAVES, _SHORTEST, _LONGEST = 4, 40.0, 250.0  # meters of the waves of hills
_SAMPLED = 10_000
_STEP = 1.0
_TERRACED, _STEPS, _RISER = 0.2, (1.5, 4.0), 0.25  # share of terraces, heights of their steps, share that is steep


def relief(places: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw the heights (points,) of a terrain at places (points, 2), all in meters.

    It is a hillside with waves, at most 10 to 45° steep at its steepest place, or such a hillside in terraces. Things
    on it keep their heights above it.
    """
    steepest = np.tan(np.radians(generator.uniform(_GENTLEST, STEEPEST)))
    lengths = np.exp(generator.uniform(np.log(_SHORTEST), np.log(_LONGEST), _WAVES))
    directions = generator.uniform(0, 2 * np.pi, _WAVES)
    phases = generator.uniform(0, 2 * np.pi, _WAVES)
    # (waves, 2) radians a meter
    turns = 2 * np.pi / lengths[:, None] * np.stack([np.cos(directions), np.sin(directions)], axis=1)
    # As steep as each other; the tilt stands for a hill wider than the tile.
    heights = lengths * generator.uniform(0.3, 1, _WAVES)
    tilt = generator.uniform(0, 1.5) * np.array([np.cos(directions[0]), np.sin(directions[0])])
    middle = places - places.mean(axis=0)

    def hills(flat: np.ndarray) -> np.ndarray:
        return np.sin(flat @ turns.T + phases) @ heights / (2 * np.pi) + flat @ tilt

    some = middle[:: max(1, len(middle) // _SAMPLED)]
    along = [(hills(some + step) - hills(some)) / _STEP for step in (np.array([_STEP, 0]), np.array([0, _STEP]))]
    found = hills(middle) * (steepest / max(np.hypot(*along).max(), 1e-6))
    if generator.random() < _TERRACED:
        step = generator.uniform(*_STEPS)
        floor, rest = np.divmod(found, step)
        # Flat, then steep up to the next one
        found = step * (floor + np.clip((rest / step - 1 + _RISER) / _RISER, 0, 1))
    return found
