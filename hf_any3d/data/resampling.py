"""Which points of a cloud to keep when a model asks for another number than there are."""

import numpy as np
import torch


def new_generator(seed: int | None = None) -> np.random.Generator:
    """A numpy generator that is governed by torch's seed unless a seed is given.

    Trainer and `torch.utils.data.DataLoader` seed torch, in every worker differently and anew each epoch, but not
    always numpy. Drawing the seed from torch makes augmentation repeatable and gives no two workers the same stream.

    Args:
        seed: a fixed seed; None draws one from torch's global generator.
    """
    return np.random.default_rng(int(torch.randint(2**63 - 1, ())) if seed is None else seed)


def resample_index(num_available: int, num_points: int, generator: np.random.Generator | None = None) -> np.ndarray:
    """Indices of `num_points` points out of `num_available`, each used as evenly as possible.

    No point is repeated before all have been taken once.

    Args:
        num_available: points in the cloud, at least 1.
        num_points: points wanted, at least 1.
        generator: draws which points; None takes the first ones in their order, from the start again when they run
            out.

    Returns:
        (num_points,) int64.

    Raises:
        ValueError: a cloud without points, or fewer than one point wanted.
    """
    if num_available < 1:
        raise ValueError("a cloud without points cannot be resampled; expected at least 1 point")
    if num_points < 1:
        raise ValueError(f"num_points is {num_points}; expected at least 1")
    if generator is None:
        return np.arange(num_points, dtype=np.int64) % num_available
    rounds, rest = divmod(num_points, num_available)
    whole = np.tile(np.arange(num_available, dtype=np.int64), rounds)
    return np.concatenate([whole, generator.choice(num_available, rest, replace=False)])  # (num_points,)
