"""A released DGCNN labels a whole room."""

import numpy as np
import pytest
from transformers import pipeline

from hf_any3d.cli.convert import convert
from hf_any3d.data.catalog import s3dis
from hf_any3d.data.files import PointCloudData, write_point_cloud
from tests.conversions.test_dgcnn_pointnet import WEIGHTS


def room(size: float = 1.5, height: float = 2.6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points on floor, ceiling and walls of an empty room far from the origin, their gray, and names of surfaces."""
    generator, sides = np.random.default_rng(0), []
    for axis, high in ((2, 0), (2, 1), (0, 0), (0, 1), (1, 0), (1, 1)):
        side = generator.uniform(0, (size, size, height), (650, 3))
        side[:, axis] = high * (size, size, height)[axis]
        sides.append(side + (20, -30, 7))
    names = np.repeat(["floor", "ceiling", *["wall"] * 4], 650)
    return np.concatenate(sides).astype(np.float32), np.full((3900, 3), 0.6, np.float32), names


@pytest.mark.skipif(WEIGHTS is None, reason="the released weights are not here")
def test_a_file_with_a_whole_room_is_labeled(tmp_path):
    convert([str(WEIGHTS / "dgcnn_s3dis_area5.t7")], tmp_path / "ours")
    xyz, colors, names = room()
    write_point_cloud(tmp_path / "room.ply", PointCloudData(xyz, colors))
    segment = pipeline("point-cloud-segmentation", model=str(tmp_path / "ours"))
    segment.feature_extractor.block_overlap = 0.0  # a quarter of the time
    answer = segment(str(tmp_path / "room.ply"))
    found = np.array(s3dis.CLASS_NAMES)[answer["labels"]]
    for name in ("floor", "wall", "ceiling"):
        assert (found[names == name] == name).mean() > 0.9, name
