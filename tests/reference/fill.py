"""Weights and clouds of the reference cases, rebuilt from their names.

A case is a JSON manifest (names, shapes, inputs) and a safetensors file of expected outputs. No weight is stored: a
name seeds a generator, so that any program can make the same numbers.
"""

import os
from collections.abc import Sequence
from math import prod
from pathlib import Path
from zlib import crc32

import numpy as np


def fill(name: str, shape: Sequence[int], dtype: str = "float32") -> np.ndarray:
    """Values of the parameter or buffer called `name`.

    Args:
        name: its name in the state dict.
        shape: its shape.
        dtype: its dtype; integers are filled with 0.

    Returns:
        float32 array of `shape`: near 1 for norm weights and running variances, near 0 for everything else; or zeros
        of an integer or boolean dtype.
    """
    shape = tuple(shape)
    if not dtype.startswith(("float", "bfloat")):
        return np.zeros(shape, dtype)
    if prod(shape) < _LARGE:
        return _values(name, shape)
    # Cases of a model have most weights in common, which take seconds to draw.
    folder = Path(os.environ.get("HF_ANY3D_DRAWN") or Path(os.environ["HF_HOME"], "drawn"))
    file = folder / f"{name}-{'x'.join(map(str, shape))}.npy"
    if not file.is_file():
        folder.mkdir(exist_ok=True)
        own = file.with_name(f"{os.getpid()}-{file.name}")
        np.save(own, _values(name, shape))
        own.replace(file)  # whole, for other processes that read it
    return np.load(file)


_LARGE = 100_000  # values that are worth a file


def _values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = _generator(name).standard_normal(shape)
    if name.endswith("running_var"):
        values = 1 + np.abs(noise) / 10
    elif name.endswith(".weight") and len(shape) == 1:
        values = 1 + noise / 10
    else:
        values = noise * 0.05
    return values.astype(np.float32)


def points(name: str, batch: int, count: int, channels: int = 3) -> np.ndarray:
    """Clouds called `name`, evenly spread in the unit ball.

    Args:
        name: name of the input.
        batch: number of clouds.
        count: points in a cloud.
        channels: 3 coordinates, then channels that are uniform in [0, 1].

    Returns:
        (batch, count, channels) float32 array.
    """
    generator = _generator(name)
    # The order of the three draws is part of the cases.
    direction = generator.standard_normal((batch, count, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    xyz = direction * generator.random((batch, count, 1)) ** (1 / 3)
    extra = generator.random((batch, count, channels - 3))
    return np.concatenate([xyz, extra], axis=-1).astype(np.float32)


def _generator(name: str) -> np.random.Generator:
    return np.random.default_rng(crc32(name.encode()))
