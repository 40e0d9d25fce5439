"""Schedules of the temperature and the KL weight for training a discrete autoencoder."""

from __future__ import annotations

import math


def gumbel_temperature(iteration: int, steps: int = 100_000, start: float = 1.0, end: float = 0.0625) -> float:
    """Return the temperature of the Gumbel softmax: half a cosine from `start` to `end`, then `end`.

    Args:
        iteration: Optimiser steps so far.
        steps: Length of the descent in optimiser steps; 0 for `end` from the start.
        start: First value.
        end: Last value.

    Raises:
        ValueError: If a number is negative, or `end` is 0.

    Source: ACT (arXiv 2212.08320), Sec. 3, with the lengths of its released program.
    """
    _not_negative(iteration=iteration, steps=steps)
    if not (start > 0 and end > 0):
        raise ValueError(f"start={start}, end={end}; expected temperatures above 0")
    return _half_cosine(iteration, steps, start, end)


def kl_weight(iteration: int, delay: int = 10_000, steps: int = 100_000, end: float = 0.1) -> float:
    """Return the weight of the KL term: 0 during `delay`, half a cosine up to `end`, then `end`.

    Args:
        iteration: Optimiser steps so far.
        delay: Optimiser steps at 0.
        steps: Length of the ascent in optimiser steps; 0 for `end` right after the delay.
        end: Last value.

    Raises:
        ValueError: If a number is negative.

    Source: the released program of ACT (arXiv 2212.08320).
    """
    _not_negative(iteration=iteration, delay=delay, steps=steps, end=end)
    return 0.0 if iteration < delay else _half_cosine(iteration - delay, steps, 0.0, end)


def _half_cosine(iteration: int, steps: int, start: float, end: float) -> float:
    if iteration >= steps:
        return end
    return end + (start - end) * (1 + math.cos(math.pi * iteration / steps)) / 2


def _not_negative(**numbers: float) -> None:
    for name, value in numbers.items():
        if not value >= 0:
            raise ValueError(f"{name}={value}; expected at least 0")
