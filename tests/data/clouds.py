"""Clouds and a small mesh that tests of datasets share."""

from pathlib import Path

import numpy as np

from hf_any3d.data.files import PointCloudData
from hf_any3d.data.files.point_cloud import MEASURED

FILES = Path(__file__).parents[1] / "files"
FIELDS = ("points", "colors", "normals", "labels", "faces", "face_colors", "offset", *MEASURED, "face_labels")


def points(count: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 3)).astype(np.float32)


def full_cloud(count: int = 8) -> PointCloudData:
    """A cloud with all attributes of points; its colors are exact in eight bits."""
    colors = np.random.default_rng(1).integers(0, 256, (count, 3)) / 255
    normals = np.tile(np.float32([0, 0, 1]), (count, 1))
    measured = {"intensity": np.arange(count) / 7, "ring": np.arange(count) % 3}
    return PointCloudData(points(count), colors, normals, np.arange(count), **measured)


def triangle() -> PointCloudData:
    return PointCloudData(np.float32([[0, 0, 0], [2, 0, 0], [0, 2, 0]]), faces=[[0, 1, 2]])


def assert_same(found: dict, expected: PointCloudData) -> None:
    """Compare all fields of a decoded cloud with those of another."""
    assert tuple(found) == FIELDS
    for name in FIELDS:
        values = getattr(expected, name)
        if values is None:
            assert found[name] is None, name
        else:
            np.testing.assert_array_equal(np.asarray(found[name]), values, err_msg=name)
