"""What settings of a 3DETR build, and what a detector returns of its parts."""

import pytest
import torch
from torch import nn

from hf_any3d.modeling.act import ActModel
from hf_any3d.modeling.detr3d import Detr3DConfig, Detr3DForPointCloudObjectDetection
from hf_any3d.modeling.detr3d.modeling_detr3d import (
    cloud_extent,
)
from tests.common.case import spread_weights, varied_clouds
from tests.tiny_act import tiny_act
from tests.tiny_detr3d import SIZES, tiny_detr3d

# None of these changes the shape of a weight.
CHANGES = {
    "num_tokens": 28,
    "group_radius": 0.3,
    "num_neighbors": 5,
    "neighbor_order": "first",
    "sampling_min_squared_norm": 0.3,
    "encoder_attention_heads": 2,
    "encoder_activation": "gelu",
    "attention_radii": (0.5, 1.2),
    "downsampling_radius": 0.5,
    "downsampling_neighbors": 4,
    "decoder_attention_heads": 2,
    "layer_norm_eps": 0.1,
    "min_extent": 1.9,
    "max_center_offset": 0.8,
}


@pytest.fixture(scope="module")
def state():
    model = tiny_detr3d(Detr3DForPointCloudObjectDetection)
    spread_weights(model)
    return model.state_dict()


@torch.no_grad()
def answers(state, **settings) -> tuple[torch.Tensor, torch.Tensor]:
    model = Detr3DForPointCloudObjectDetection(Detr3DConfig(**(SIZES | settings))).eval()
    model.load_state_dict(state)
    output = model(varied_clouds(2, 120))
    return output.logits, output.pred_boxes


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_without_weights_changes_the_answer(name, state):
    logits, boxes = answers(state)
    other_logits, other_boxes = answers(state, **{name: CHANGES[name]})
    if name == "max_center_offset":
        assert torch.equal(logits, other_logits) and torch.equal(boxes[..., 3:], other_boxes[..., 3:])
    else:
        assert (logits - other_logits).abs().max() > 1e-3
    assert (boxes - other_boxes).abs().max() > 1e-3


def test_the_extent_of_a_cloud_leaves_out_padding():
    points = torch.tensor(
        [[[1.0, 5, 2, 9], [3, 4, 2, -9], [-7, 99, 8, 0]], [[0.0, 0, 0, 0], [1, 2, 3, 0], [4, 1, 1, 0]]]
    )
    mask = torch.tensor([[True, True, False], [True, True, True]])
    low, extent = cloud_extent(points, mask, 0.25)
    assert low.tolist() == [[[1, 4, 2]], [[0, 0, 0]]] and extent.tolist() == [[[2, 1, 0.25]], [[4, 2, 3]]]
    low, extent = cloud_extent(points.half(), None, 0.25)
    assert low.dtype == extent.dtype == torch.float32
    assert low.tolist() == [[[-7, 4, 2]], [[0, 0, 0]]] and extent.tolist() == [[[10, 95, 6]], [[4, 2, 3]]]
    assert cloud_extent(points.double(), None, 0.25)[1].dtype == torch.float64


ON_ENCODER = {"hidden_size": 32, "decoder_layers": 2, "decoder_ffn_dim": 32, "num_queries": 8, "num_labels": 3}


def _of_kind(model: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kind)]


def test_norms_beside_an_adapter_measure_nothing(tmp_path):
    from peft import LoraConfig, get_peft_model

    from hf_any3d import encoder_linear_pattern

    tiny_act(ActModel).save_pretrained(tmp_path)
    base = Detr3DForPointCloudObjectDetection.from_point_encoder_pretrained(tmp_path, **ON_ENCODER)
    norms = [module for name, module in base.named_modules() if isinstance(module, nn.BatchNorm1d)]
    assert all(norm.training for norm in norms if norm in _of_kind(base.train().class_head, nn.BatchNorm1d))
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=encoder_linear_pattern(base))).train()
    assert not any(norm.training for norm in norms)
    assert all(drop.training for drop in _of_kind(adapted, nn.Dropout) if drop.p == 0.3)
    copies = adapted.base_model.model.class_head.modules_to_save["default"]
    assert [norm.training for norm in _of_kind(copies, nn.BatchNorm1d)] == [True, True]
