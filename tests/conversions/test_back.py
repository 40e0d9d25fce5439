"""Models that go back into files of their authors' programs: facts, and what those programs cannot compute."""

import re

import pytest
import torch

from hf_any3d.conversions import convert_detr3d_back
from hf_any3d.conversions.detr3d.names import SCANNET_MEAN_COLOR, scale_colors
from hf_any3d.modeling.detr3d import Detr3DForPointCloudObjectDetection
from hf_any3d.modeling.detr3d.configuration_detr3d import RELEASED, RELEASED_RADII
from tests.errors import raises
from tests.tiny_detr3d import tiny_detr3d

MASKED = {"encoder_layers": 3, "attention_radii": RELEASED_RADII, **RELEASED}


def test_detectors_that_the_original_cannot_compute_stay(tmp_path):
    model = tiny_detr3d(Detr3DForPointCloudObjectDetection, **MASKED)
    for settings, message in (
        ({"attention_radii": (0.4, 0.8, 1.2)}, "attention_radii=(0.4, 0.8, 1.2); the original program computes (0.16"),
        ({"sampling_min_squared_norm": None}, "sampling_min_squared_norm=None; the original program computes 0.001"),
        ({"neighbor_order": "nearest"}, "neighbor_order='nearest'; the original program computes 'first'"),
    ):
        for name, value in settings.items():
            setattr(model.config, name, value)
        model.save_pretrained(tmp_path / "ours")
        for name in settings:
            setattr(model.config, name, MASKED[name])
        with pytest.raises(ValueError, match=re.escape(f"ours: {message}")):
            convert_detr3d_back(tmp_path / "ours", tmp_path / "back.pth")
    five = tiny_detr3d(Detr3DForPointCloudObjectDetection, **MASKED, in_channels=5)
    five.save_pretrained(tmp_path / "five")
    with raises(ValueError, naming="in_channels"):
        convert_detr3d_back(tmp_path / "five", tmp_path / "back.pth")
    assert not (tmp_path / "back.pth").exists()


def test_the_scale_of_colors_moves_into_the_first_layer_and_its_norm():
    layer, norm = "detr3d.group_encoder.layers.0.linear.weight", "detr3d.group_encoder.layers.0.norm.running_mean"
    generator = torch.Generator().manual_seed(0)
    # Offsets of a neighbor, then its colors.
    state = {
        layer: torch.randn(4, 6, generator=generator),
        norm: torch.randn(4, generator=generator),
        "x": torch.ones(1),
    }
    scaled = scale_colors(state)
    rows = torch.rand(5, 6, generator=generator)
    theirs = rows.clone()
    theirs[:, 3:] = (255 * rows[:, 3:] - torch.tensor(SCANNET_MEAN_COLOR)) / 256
    torch.testing.assert_close(rows @ scaled[layer].T - scaled[norm], theirs @ state[layer].T - state[norm])
    back = scale_colors(scaled, back=True)
    assert back.keys() == state.keys() and all(tensor.dtype == torch.float32 for tensor in back.values())
    for name, tensor in state.items():
        torch.testing.assert_close(back[name], tensor, atol=1e-6, rtol=1e-6)
