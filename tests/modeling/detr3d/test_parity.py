"""3DETR against stored runs of the released program, tensor by tensor."""

import math

import pytest
import torch

from hf_any3d.modeling.detr3d.modeling_detr3d import cloud_extent
from hf_any3d.modeling.layers.boxes import box_corners, wrap_heading
from tests.modeling.detr3d.reference_case import DetectionCase, camera_corners, clockwise

CASES = ("detr3d_scannet_vanilla", "detr3d_scannet_masked", "detr3d_sunrgbd", "detr3d_scannet_color")


def tolerance(key: str, bins: int) -> float:
    if key.startswith(("decoder", "pred.")):
        return 5e-3 if key == "pred.angle_residual" and bins == 1 else 2e-3
    if key.startswith(("encoder_layer", "interim_features", "memory", "query_embedding")) and "position" not in key:
        return 1e-3
    return 5e-5


def sampled(case: DetectionCase, key: str, ours: torch.Tensor) -> torch.Tensor:
    """The entries that the case stores, with channels where it has them."""
    every = {"group": 8, "pre_features": 8, "interim_features": 4, "memory_position": 8, "memory": 4}
    step = 4 if key.startswith("encoder_layer") else every.get(key, 1)
    ours = ours[:, ::step]
    channels_first = {"group", "pre_features", "interim_features", "memory_position", "query_position"}
    if key in channels_first | {"query_embedding"}:
        ours = ours.movedim(-1, 1)
    assert ours.shape == case.expected[key].shape, f"{key}: {tuple(ours.shape)}"
    return ours


@pytest.fixture(scope="module", params=CASES)
def run(request):
    case = DetectionCase(request.param)
    model = case.model()
    base, encoder = model.detr3d, model.detr3d.encoder
    seen: dict[str, torch.Tensor] = {}
    grouped, positions = [], []
    hooks = [
        base.group_encoder.register_forward_hook(lambda module, args, out: seen.update(pre=out)),
        base.positions.register_forward_hook(lambda module, args, out: positions.append(out)),
        base.positions.projection.register_forward_hook(lambda module, args, out: seen.update(query_embedding=out)),
        base.memory_projection[-1].register_forward_hook(lambda module, args, out: seen.update(memory=out)),
    ]
    if encoder.downsampling is not None:
        hooks.append(encoder.downsampling.register_forward_hook(lambda module, args, out: seen.update(interim=out)))
    inputs = base.group_encoder._inputs
    base.group_encoder._inputs = lambda *args: grouped.append(inputs(*args)) or grouped[-1]
    with torch.no_grad():
        output = base(case.points, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    pre, interim = seen.pop("pre"), seen.pop("interim", None)
    found = {
        "pre_xyz": pre.centers,
        "pre_index": pre.index,
        "pre_features": pre.features,
        "encoder_xyz": output.encoder_centers,
        "encoder_index": output.encoder_index,
        "query_xyz": output.centers,
        "memory_position": positions[0],
        "query_position": positions[1],
        **seen,
    }
    found["group"] = torch.cat(grouped, dim=1).view(*pre.index.shape, *grouped[0].shape[2:])
    for number in range(len(encoder.layers)):
        found[f"encoder_layer{number}"] = output.hidden_states[number + 1]
        if interim is not None:
            centers = pre.centers if number == 0 else interim.centers
            found[f"visible{number}"] = encoder.visible(number, centers, None).sum(dim=2)
    if interim is not None:
        found |= {"interim_features": interim.features, "interim_index": interim.index}
    return case, model, found, output


@pytest.mark.slow
def test_every_stage_agrees(run):
    case, model, found, _ = run
    stored = {key for key in case.expected if not key.startswith(("pred.", "buffer.", "decoder"))}
    assert stored == set(found)
    for key, ours in found.items():
        ours, expected = sampled(case, key, ours), case.expected[key]
        if expected.is_floating_point():
            error = float((ours.double() - expected.double()).abs().max())
            assert error <= tolerance(key, model.config.num_heading_bins), f"{key}: {error}"
        else:
            assert torch.equal(ours.long(), expected.long()), key


def predicted(case: DetectionCase, model, output) -> dict[str, torch.Tensor]:
    """Everything that a case stores of the predictions, in the original's terms."""
    low, extent = cloud_extent(case.points, None, 0.1)
    with torch.no_grad():
        made = model.predict(output.intermediate_hidden_states, output.centers, low, extent)
    bins = model.config.num_heading_bins
    probabilities = made.logits.softmax(dim=-1)
    residuals = -clockwise(made.heading_residuals)
    return {
        "decoder": output.intermediate_hidden_states,
        "pred.sem_cls_logits": made.logits,
        "pred.center_normalized": made.centers,
        "pred.center_unnormalized": made.boxes[..., :3],
        "pred.size_normalized": made.sizes,
        "pred.size_unnormalized": made.boxes[..., 3:6],
        "pred.angle_logits": clockwise(made.heading_logits),
        "pred.angle_residual": residuals * math.pi / bins,
        "pred.angle_residual_normalized": residuals,
        "pred.angle_continuous": wrap_heading(-made.boxes[..., 6]),
        "pred.objectness_prob": 1 - probabilities[..., -1],
        "pred.sem_cls_prob": probabilities[..., :-1],
        "pred.box_corners": camera_corners(box_corners(made.boxes)),
    }


@pytest.mark.slow
def test_every_prediction_of_every_layer_agrees(run):
    case, model, _, output = run
    found = predicted(case, model, output)
    assert {key for key in case.expected if key.startswith(("pred.", "decoder"))} == set(found)
    for key, ours in found.items():
        error = float((ours - case.expected[key]).abs().max())
        assert error <= tolerance(key, model.config.num_heading_bins), f"{key}: {error}"


@pytest.mark.slow
def test_the_answer_is_that_of_the_last_layer(run):
    case, model, _, _ = run
    with torch.no_grad():
        output = model(case.points)
    assert float((output.logits - case.expected["pred.sem_cls_logits"][-1]).abs().max()) <= 2e-3
    corners = camera_corners(box_corners(output.pred_boxes))
    assert float((corners - case.expected["pred.box_corners"][-1]).abs().max()) <= 2e-3
    assert output.auxiliary_outputs is None


@pytest.mark.slow
def test_the_order_of_a_clouds_points_matters_only_as_released():
    case = DetectionCase("detr3d_scannet_masked")
    flipped = torch.cat([case.points[:, :1], case.points[:, 1:].flip(1)], dim=1)
    answers = {}
    for order in ("first", "nearest"):
        model = case.model(neighbor_order=order)
        with torch.no_grad():
            answers[order] = [model(cloud).logits for cloud in (case.points, flipped)]
    assert (answers["first"][0] - answers["first"][1]).abs().max() > 0.1
    torch.testing.assert_close(*answers["nearest"], atol=1e-4, rtol=0)
