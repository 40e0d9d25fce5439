"""`PointTransformerV3Processor`: voxels as the released programs make them, and the way back to all points."""

import numpy as np
import pytest
import torch

from hf_any3d import PointTransformerV3Processor
from hf_any3d.processing.voxels import VOXEL_PRESETS
from tests.errors import raises
from tests.modeling.ptv3_case import Ptv3Case


def rows(case) -> list[dict[str, np.ndarray]]:
    """The case's raw clouds as rows of a dataset, without what the case fills with zeros."""
    specs = case.manifest["input"]["clouds"]
    names = {"points": "coord", "colors": "color", "normals": "normal"}
    return [
        {
            ours: cloud[theirs] / (255 if theirs == "color" else 1)
            for ours, theirs in names.items()
            if theirs not in spec.get("zero", ())
        }
        for cloud, spec in zip(case.raw, specs, strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "preset"), [("sonata", "sonata"), ("concerto", "concerto_outdoor"), ("utonia", "utonia_indoor")]
)
def test_presets_make_the_released_cells(name, preset):
    case = Ptv3Case(f"ptv3_{name}")
    found = PointTransformerV3Processor(**VOXEL_PRESETS[preset])(rows(case))
    for number, (letter, raw) in enumerate(zip("ab", case.raw, strict=True)):
        own = found["inverse"][number][found["inverse"][number] >= 0]
        count = int(found["point_mask"][number].sum())
        assert len(own) == len(raw["coord"]) and int(own.max()) == count - 1
        stored = case.voxels["grid_coord"][number][case.expected[f"inverse.{letter}"].long()]
        assert torch.equal(found["grid_coord"][number][own], stored)
        # The same points where both programs keep them, up to the origin that depends on which are kept.
        channels = found["points"][number, :count]
        assert not found["points"][number, count:].any()
        kept = set(map(tuple, np.round(raw["color"], 2).tolist()))
        if "color" not in case.manifest["input"]["clouds"][number].get("zero", ()):
            assert set(map(tuple, np.round(channels[:, 3:6].numpy() * 255, 2).tolist())) <= kept
        else:
            assert not channels[:, 3:].any()


def test_clouds_of_too_many_cells_are_named():
    clouds = [np.random.default_rng(0).random((9, 3)), np.random.default_rng(1).random((9, 3)) * 1e6]
    with raises(ValueError, naming="grid_size"):
        PointTransformerV3Processor(features=["xyz"])(clouds)


def test_no_points_cannot_be_drawn():
    with raises(ValueError, naming="drawn_points is 0"):
        PointTransformerV3Processor(drawn_points=0)
