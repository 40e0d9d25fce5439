"""What Any2Point models return, compared with their parts run by hand."""

import re

import pytest
import torch
from torch import nn

from hf_any3d.modeling.any2point import (
    Any2PointConfig,
    Any2PointModel,
    PointIndexer,
)
from hf_any3d.modeling.any2point.point_tokenizer import normalize_offsets
from hf_any3d.modeling.any2point.virtual_projection import line_positions, plane_positions
from hf_any3d.modeling.point_ops import farthest_point_sample, gather_points, three_nearest_interpolate
from tests.tiny_encoders import (
    SMALL,
    clouds,
    saved_encoder,
    tiny_part_model,
)

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


@pytest.mark.parametrize("tokenizer", ["point_pn", "patch"])
def test_an_index_has_centers_and_neighbors_of_every_stage(tokenizer):
    config = Any2PointConfig(**(SMALL | {"tokenizer": tokenizer, "sampling_min_squared_norm": 0.2, "in_channels": 4}))
    points = clouds(2, channels=4)
    points[:, 5, :3] = 0.01  # near the origin
    index = PointIndexer(config)(points)
    stages = 3 if tokenizer == "point_pn" else 1
    count = 8 * 2 ** (stages - 1)
    xyz = points[..., :3].contiguous()
    centers = farthest_point_sample(xyz, count, min_squared_norm=0.2)
    assert list(index) == ["centers", "center_positions", "neighbors"]
    assert torch.equal(index["centers"].long(), centers) and index["centers"].dtype == torch.int32
    assert torch.equal(index["center_positions"], gather_points(xyz, centers)) and 5 not in centers
    assert isinstance(index["neighbors"], tuple) and len(index["neighbors"]) == stages
    places = xyz
    for neighbors in index["neighbors"]:
        here = index["center_positions"][:, :count]
        nearest = torch.cdist(here, places).argsort(dim=-1)[..., :4]
        assert torch.equal(neighbors.long().sort(dim=-1).values, nearest.sort(dim=-1).values)
        assert neighbors.dtype == torch.int32 and neighbors.shape == (2, count, 4)
        places, count = here, count // 2
    half = PointIndexer(config)(points.half())
    assert half["center_positions"].dtype == torch.float32


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


def test_offsets_are_divided_by_their_scale():
    offsets = torch.randn(2, 3, 4, 3, generator=torch.Generator().manual_seed(0))
    for how in ("group_max", "cloud_std", "batch_std"):
        found = normalize_offsets(offsets, how, 0.5)
        for cloud in range(2):
            for center in range(3):
                own = offsets[cloud, center]
                scale = {
                    "group_max": own.abs().amax(dim=0),
                    "cloud_std": offsets[cloud].std(),
                    "batch_std": offsets.std(),
                }
                torch.testing.assert_close(found[cloud, center], own / (scale[how] + 0.5))


def test_released_places_wrap_around():
    rotated = torch.tensor([[[[0.0, 0, 0], [1.0, 0.5, 0], [4.0, -1, 0]]]])
    line = line_positions(rotated, (2.0, 0.0, 0.0), 10, "wrap").flatten()
    # A quarter of the way, and half a pixel less.
    assert line.tolist() == pytest.approx([9.5, 2.0, 9.5])
    stretched = line_positions(rotated, (2.0, 0.0, 0.0), 10, "stretch").flatten()
    assert stretched.tolist() == pytest.approx([0, 2.25, 9])
    x, y = plane_positions(torch.tensor([[[[0.5, -0.25, 0.6]]]]), 1.4, (80.0, 48.0), "wrap").flatten().tolist()
    assert x == pytest.approx((0.5 / 2 + 1) * 40 - 0.5) and y == pytest.approx((-0.25 / 2 * 0.6 + 1) * 24 - 0.5)
    beyond = plane_positions(torch.tensor([[[[-3.0, 9.0, 0.6]]]]), 1.4, (80.0, 48.0), "wrap").flatten().tolist()
    assert beyond == pytest.approx([(-0.5 * 40 - 0.5) % 80, ((4.5 * 0.6 + 1) * 24 - 0.5) % 48], abs=1e-4)
    near = plane_positions(torch.tensor([[[[1.0, -1.0, -2.0]]]]), 1.4, (80.0, 48.0), "clamp").flatten().tolist()
    assert near == [79, 0]  # behind the camera
