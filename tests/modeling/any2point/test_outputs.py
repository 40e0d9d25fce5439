"""What Any2Point models return, compared with their parts run by hand."""

import re

import pytest
import torch
from torch import nn

from hf_any3d.modeling.any2point import Any2PointConfig, Any2PointModel, PointIndexer
from hf_any3d.modeling.point_ops import three_nearest_interpolate
from tests.tiny_encoders import SMALL, clouds, saved_encoder, tiny_part_model

ASKED = {"output_hidden_states": True, "output_attentions": True}


def eager(model):
    """Return a model with attention weights, in eval mode."""
    (model.any2point if hasattr(model, "any2point") else model).encoder.set_attn_implementation("eager")
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("levels", [False, True])
def test_segmenters_add_up_what_points_tokens_cloud_and_levels_say(levels):
    model = eager(tiny_part_model(propagate_levels=levels, in_channels=4, restrict_to_category_parts=True))
    for norm in (model.propagation.norm, *model.segmenter.norms):
        norm.running_mean.normal_(std=0.2)
        norm.running_var.uniform_(0.5, 2)
    points, category = clouds(channels=4), torch.tensor([1, 0, 1])
    labels = torch.tensor([[2, 3, 4], [0, 1, -100], [4, 4, 2]]).repeat(1, 16)
    output = model(points, category=category, labels=labels, **ASKED)
    core = model.any2point(points, output_levels=levels, **ASKED)
    head, tokens = model.propagation, model.propagation.from_tokens(core.last_hidden_state[:, 1:])
    near = three_nearest_interpolate(points, core.centers, core.centers)
    rows = head.from_point(torch.cat([points, points[..., :3] - near], dim=-1))
    rows = rows + three_nearest_interpolate(points, core.centers, tokens)
    whole = head.from_cloud(core.pooler_output) + model.category_embedding(category)
    rows = rows + whole.unsqueeze(1)
    assert len(head.from_levels) == (3 if levels else 0)
    for linear, (features, places) in zip(head.from_levels, core.levels or (), strict=True):
        own = linear(features)
        rows = rows + (own if places is None else three_nearest_interpolate(points, places, own))
    logits = model.segmenter(head.norm(rows.flatten(0, 1)).relu()).view(3, 48, 5)
    parts = {0: [2, 3, 4], 1: [0, 1]}  # those of the other category
    for row, kind in enumerate(category.tolist()):
        logits[row][:, parts[kind]] = torch.finfo(torch.float32).min
    torch.testing.assert_close(output.logits, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    assert set(model(points, category=category)) == {"logits"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"centers": torch.zeros(2, 31, dtype=torch.int32)}, "centers has shape (2, 31); expected (2, 32)"),
        ({"center_positions": torch.zeros(2, 32, 2)}, "center_positions has shape (2, 32, 2); expected (2, 32, 3)"),
        ({1: torch.zeros(2, 16, 5, dtype=torch.int32)}, "neighbors[1] has shape (2, 16, 5); expected (2, 16, 4)"),
        ({2: torch.zeros(2, 16, 4, dtype=torch.int32)}, "neighbors[2] has shape (2, 16, 4); expected (2, 8, 4)"),
    ],
)
def test_an_index_of_another_form_is_named(change, message):
    config = Any2PointConfig(**SMALL)
    index = PointIndexer(config)(clouds(2))
    stages = list(index["neighbors"])
    for key, value in change.items():
        if isinstance(key, int):
            stages[key] = value
    index |= {"neighbors": tuple(stages)} | {key: value for key, value in change.items() if isinstance(key, str)}
    model = Any2PointModel.from_encoder_pretrained(saved_encoder("bert"), **SMALL)
    with pytest.raises(ValueError, match=f"^{re.escape('point_index: ' + message)}"):
        model(clouds(2), point_index=index)
