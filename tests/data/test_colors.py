"""One scale of colors, whatever the door: files, rows, arrays, the collator, the processor, questions."""

import numpy as np
import pytest
import torch

from hf_any3d import PointCloudProcessor
from hf_any3d.data import PointCloudCollator
from hf_any3d.data.files.attributes import unit_colors
from hf_any3d.evaluation.question_answering import colored_cloud
from tests.errors import raises

POINTS = np.random.default_rng(0).normal(size=(3, 3)).astype("float32")
UNIT = np.array([[0, 0.2, 1.0], [0.4, 0.6, 0.8], [1.0, 0, 0.2]])
STORED = {
    "uint8": (255 * UNIT).astype(np.uint8),
    "uint16": (65535 * UNIT).astype(np.uint16),
    "uint16 with 8 bits": (255 * UNIT).astype(np.uint16),
    "int64": (255 * UNIT).astype(np.int64),
    "float32 to 255": (255 * UNIT).astype(np.float32),
    "float32 to 1": UNIT.astype(np.float32),
    "float64 to 1": UNIT,
}


@pytest.mark.parametrize("kind", STORED)
def test_every_door_gives_colors_from_0_to_1(kind):
    colors = STORED[kind]
    processor = PointCloudProcessor(features=("xyz", "rgb"), center=False, scale=None)
    prepared = processor({"points": POINTS, "colors": colors}, num_points=3)["points"][0, :, 3:]
    row = {"points": POINTS, "colors": colors, "label": 0}
    collated = PointCloudCollator(extra_columns=("colors",))([row])["points"][0, :, 3:]
    loaded = unit_colors(colors)
    asked = colored_cloud(row)[:, 3:]
    for found in (prepared, collated, torch.from_numpy(loaded), torch.from_numpy(asked)):
        torch.testing.assert_close(found.float(), torch.from_numpy(UNIT).float(), atol=2e-5, rtol=0)


def test_colors_of_16_bits_are_known_by_one_that_8_bits_cannot_hold():
    dark = np.array([[300, 0, 12]], np.uint16)
    np.testing.assert_allclose(unit_colors(dark), dark / 65535)
    as_bytes = np.array([[255, 0, 12]], np.uint16)
    np.testing.assert_allclose(unit_colors(as_bytes), as_bytes / 255)


@pytest.mark.parametrize("colors", [np.full((3, 3), -1.0), np.full((3, 3), 300.0), np.full((3, 3), np.nan)])
def test_numbers_that_are_no_colors_are_refused_by_rows_as_by_files(colors):
    with raises(ValueError, naming="colors"):
        PointCloudCollator(extra_columns=("colors",))([{"points": POINTS, "colors": colors, "label": 0}])
