"""Compare answers of deterministic functions with those of earlier versions, by one number each."""

from __future__ import annotations

import numpy as np
import pytest


def projection(values: np.ndarray) -> float:
    """Return a number that depends on every entry of an array, on its place and on how many there are."""
    values = np.asarray(values, dtype=np.float64).ravel()
    return float(values @ np.random.default_rng(0).normal(size=len(values)) / np.sqrt(len(values)))


def assert_stored(found: list[np.ndarray], stored: list[float], tolerance: float = 1e-5) -> None:
    """Assert that arrays of order one are those whose projections were stored.

    After an intended change the message has the new numbers.
    """
    numbers = [projection(values) for values in found]
    assert numbers == pytest.approx(stored, rel=tolerance, abs=tolerance), [round(number, 6) for number in numbers]
