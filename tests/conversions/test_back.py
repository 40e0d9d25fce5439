"""Models that go back into files of their authors' programs: facts, and what those programs cannot compute."""

import re

import pytest
import torch

from hf_any3d.conversions import convert_detr3d, convert_detr3d_back, convert_ptv3_back
from hf_any3d.conversions.detr3d.names import (
    SCANNET_MEAN_COLOR,
    convert_detr3d_state_dict,
    revert_detr3d_state_dict,
    scale_colors,
)
from hf_any3d.modeling.detr3d import Detr3DConfig, Detr3DForPointCloudObjectDetection
from hf_any3d.modeling.detr3d.configuration_detr3d import RELEASED, RELEASED_RADII
from hf_any3d.modeling.point_transformer_v3 import PointTransformerV3ForPointCloudSegmentation
from tests.errors import raises
from tests.modeling.detr3d.reference_case import DetectionCase
from tests.tiny_detr3d import tiny_detr3d
from tests.tiny_ptv3 import tiny_ptv3

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


def test_bins_of_headings_turn_the_other_way():
    rows = torch.arange(8.0).view(4, 2)
    original = {
        "mlp_heads.angle_cls_head.layers.8.weight": rows.unsqueeze(2),
        "mlp_heads.angle_residual_head.layers.8.bias": torch.arange(4.0),
        "mlp_heads.size_head.layers.8.bias": torch.arange(3.0),
    }
    found = convert_detr3d_state_dict(original)
    assert torch.equal(found["heading_class_head.out.weight"], rows[[0, 3, 2, 1]])
    assert found["heading_residual_head.out.bias"].tolist() == [0, -3, -2, -1]
    assert found["size_head.out.bias"].tolist() == [0, 1, 2]
    back = revert_detr3d_state_dict(found)
    assert back.keys() == original.keys() and all(torch.equal(back[name], own) for name, own in original.items())


@pytest.mark.parametrize("masked", [True, False])
def test_published_training_of_a_detector_for_sunrgbd(masked, tmp_path):
    name = "detr3d_sunrgbd" if masked else "detr3d_scannet_vanilla"
    state = dict(DetectionCase(name).original)
    if not masked:  # with as many classes as SUN RGB-D has
        for part in ("weight", "bias"):
            state[f"mlp_heads.sem_cls_head.layers.8.{part}"] = state[f"mlp_heads.sem_cls_head.layers.8.{part}"][:11]
    torch.save({"model": state}, tmp_path / "detector.pth")
    facts = convert_detr3d(tmp_path / "detector.pth", tmp_path / "out")
    config = Detr3DConfig.from_pretrained(tmp_path / "out")
    costs = {"giou_cost": 3.0, "center_cost": 5.0, "objectness_cost": 5.0, "class_cost": 1.0}
    weights = {"giou_loss_weight": 0.0, "no_object_weight": 0.1, "class_loss_weight": 0.8 if masked else 1.0}
    expected = {**costs, **weights, "num_queries": 128, **RELEASED, "encoder_attention_heads": 4}
    assert {field: getattr(config, field) for field in expected} == expected
    assert config.attention_radii == (list(RELEASED_RADII) if masked else None)
    names = ["bed", "table", "sofa", "chair", "toilet", "desk", "dresser", "night_stand", "bookshelf", "bathtub"]
    assert config.id2label == dict(enumerate(names)) and config.label2id["bathtub"] == 9
    assert facts["parameters"] == Detr3DForPointCloudObjectDetection(config).num_parameters()


def test_other_models_of_voxels_do_not_go_back(tmp_path):
    tiny_ptv3(PointTransformerV3ForPointCloudSegmentation).save_pretrained(tmp_path / "ours")
    message = "ours: not of the supervised layout, which alone is converted back"
    with pytest.raises(ValueError, match=message):
        convert_ptv3_back(tmp_path / "ours", tmp_path / "back.pth")
    (tmp_path / "there.pth").write_text("mine")
    with raises(FileExistsError, naming="there.pth"):
        convert_ptv3_back(tmp_path / "ours", tmp_path / "there.pth")
