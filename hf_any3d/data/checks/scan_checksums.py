"""Checksums of the scans that a model of few scans has learned, by which they are known again."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np

STORE = "_features.safetensors"
"""File beside a model with the features of its scans; it is not pushed, as all files that start with an underscore."""


def checksum_of_points(points: np.ndarray) -> str:
    """Return the checksum of points (points, 3) in single precision."""
    return hashlib.sha256(np.ascontiguousarray(points, dtype=np.float32).tobytes()).hexdigest()[:32]


def learned_checksums(model: str | os.PathLike) -> frozenset[str]:
    """Return the checksums of the scans that a model has learned, none if its directory does not have them."""
    store = Path(model) / STORE
    if not store.is_file():
        return frozenset()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(store, framework="numpy") as file:
            return frozenset(json.loads(file.metadata()["digests"]))
    except (SafetensorError, ValueError, KeyError, TypeError):
        # The answers need no such file; adding scans to the model says what is wrong with it.
        return frozenset()
