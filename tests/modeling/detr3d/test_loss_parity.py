"""Matching, losses and gradients against stored training steps of the released program."""

import math
from typing import Any

import pytest
import torch

from hf_any3d.conversions.detr3d.names import convert_detr3d_state_dict
from hf_any3d.modeling.detr3d.losses import BoxPredictions, BoxTargets, detection_loss, match_boxes
from hf_any3d.modeling.detr3d.modeling_detr3d import cloud_extent
from hf_any3d.modeling.layers.boxes import published_giou, wrap_heading
from tests.conversions.undone import as_theirs
from tests.modeling.detr3d.reference_case import DetectionCase, clockwise
from tests.turns import some

WEIGHTS = {
    "matcher_giou_cost": "giou_cost",
    "matcher_cls_cost": "class_cost",
    "matcher_center_cost": "center_cost",
    "matcher_objectness_cost": "objectness_cost",
    "loss_giou_weight": "giou_loss_weight",
    "loss_sem_cls_weight": "class_loss_weight",
    "loss_no_object_weight": "no_object_weight",
    "loss_angle_cls_weight": "heading_class_loss_weight",
    "loss_angle_reg_weight": "heading_residual_loss_weight",
    "loss_center_weight": "center_loss_weight",
    "loss_size_weight": "size_loss_weight",
}
TERMS = {"sem_cls": "class", "angle_cls": "heading_class", "angle_reg": "heading_residual"}
STILL = {"dropout": 0.0, "encoder_dropout": 0.0, "head_dropout": 0.0}
RUNS = [
    ("detr3d_loss_scannet", "main"),
    ("detr3d_loss_scannet", "empty"),
    ("detr3d_loss_sunrgbd", "main"),
    ("detr3d_loss_sunrgbd", "giou_loss"),
    ("detr3d_loss_sunrgbd", "negative"),
    ("detr3d_loss_sunrgbd", "empty"),
]
# The run with a loss of overlaps has all terms of the main one.
RUNS = some(RUNS, left_out=[("detr3d_loss_sunrgbd", "main"), ("detr3d_loss_scannet", "empty")])
over_runs = pytest.mark.parametrize("made", RUNS, indirect=True, ids="-".join, scope="module")
WITH_GRADIENTS = [(name, run) for name, run in RUNS if run in ("main", "giou_loss")]
with_gradients = pytest.mark.parametrize("made", WITH_GRADIENTS, indirect=True, ids="-".join, scope="module")


class Step:
    """A training step of the converted model, in double precision, with stated objects."""

    def __init__(self, name: str, run: str):
        self.name, self.run = name, run
        self.case = DetectionCase(name)
        weights: dict[str, Any] = {ours: float(self.case.manifest["criterion"][w]) for w, ours in WEIGHTS.items()}
        if run == "giou_loss":
            weights["giou_loss_weight"] = 1.0
        self.model = self.case.model(**weights, **STILL).double().train()
        stored = self.case.expected
        angles = stored["target.gt_box_angles"]
        angles = -angles.abs() if run == "negative" else angles
        boxes = [stored["target.gt_box_centers"], stored["target.gt_box_sizes"], -angles.unsqueeze(2)]
        present = stored["target.gt_box_present"].bool() & (run != "empty")
        self.labels = [
            {"class_labels": stored["target.gt_box_sem_cls_label"][cloud][own].long(), "boxes": each[own].double()}
            for cloud, (each, own) in enumerate(zip(torch.cat(boxes, dim=2), present, strict=True))
        ]
        self.points = self.case.points.double()
        self.low, self.extent = cloud_extent(self.points, None, 0.1)
        self.output = self.model(self.points, labels=self.labels)

    @property
    def targets(self) -> BoxTargets:
        return BoxTargets.checked(self.labels, len(self.labels), self.model.config)

    def predictions(self) -> BoxPredictions:
        """The stored predictions, each as an input of its own."""
        stored = {name: self.case.expected[f"pred.{name}"].double() for name in PREDICTED}
        logits, residuals = clockwise(stored["angle_logits"]), -clockwise(stored["angle_residual_normalized"])
        bins = logits.shape[-1]
        best = logits.argmax(dim=-1, keepdim=True)
        heading = best * (2 * math.pi / bins) + residuals.gather(-1, best) * (math.pi / bins)
        center = stored["center_normalized"] * self.extent + self.low
        boxes = [center, stored["size_normalized"] * self.extent, wrap_heading(heading) * (bins > 1)]
        parts = (stored["sem_cls_logits"], stored["center_normalized"], stored["size_normalized"], logits, residuals)
        return BoxPredictions(*(part.clone().requires_grad_() for part in (*parts, torch.cat(boxes, dim=-1))))


PREDICTED = ("sem_cls_logits", "center_normalized", "size_normalized", "angle_logits", "angle_residual_normalized")


# Tests are ordered by their runs, so that one graph at a time is in memory.
@pytest.fixture(scope="module")
def made(request):
    return Step(*request.param)


@pytest.mark.slow
@over_runs
def test_terms_of_all_layers_agree(made):
    run = made.run
    expected = made.case.expected
    names = made.case.manifest["term_names"][run]
    found = {key.removeprefix("loss_"): float(value) for key, value in made.output.loss_dict.items()}
    ours = []
    for key in names:
        kind, _, layer = key.removeprefix("loss_").rpartition("_")
        kind, layer = (kind, f"_{layer}") if layer.isdecimal() else (key.removeprefix("loss_"), "")
        ours.append(found.pop(TERMS.get(kind, kind) + layer))
    assert found == {}
    theirs = expected[f"{run}.terms"].tolist()
    if run == "negative":  # whose bins of angles are still those of the boxes before
        ours, theirs = (
            [v for v, key in zip(all_, names, strict=True) if "angle" not in key] for all_ in (ours, theirs)
        )
    else:
        assert float(made.output.loss.detach()) == pytest.approx(float(expected[f"{run}.loss"]), rel=1e-4)
    assert ours == pytest.approx(theirs, abs=5e-4)
    summed = sum(value for key, value in made.output.loss_dict.items() if "cardinality" not in key)
    assert float(summed) == pytest.approx(float(made.output.loss.detach()), rel=1e-6)


@pytest.mark.slow
@over_runs
def test_matches_and_overlaps_agree(made):
    name, run = made.name, made.run
    targets, predictions = made.targets, made.predictions()
    is_turned = run in ("main", "giou_loss") and name == "detr3d_loss_sunrgbd"
    with torch.no_grad():
        overlaps = published_giou(predictions.boxes.unsqueeze(3), targets.boxes.unsqueeze(1), is_turned)
    centers = (targets.boxes[..., :3] - made.low) / made.extent
    matches = match_boxes(predictions, targets, overlaps, centers, made.model.config)
    found = torch.full(predictions.logits.shape[:3], -1)
    for layer, clouds in enumerate(matches):
        for cloud, (queries, objects) in enumerate(clouds):
            found[layer, cloud, queries] = torch.as_tensor(objects)
    assert torch.equal(found, made.case.expected[f"{run}.matched"].long())
    if run != "empty":
        expected = made.case.expected[f"{run}.giou"].double()
        assert expected.shape == overlaps.shape
        for cloud, count in enumerate(targets.counts):
            torch.testing.assert_close(
                overlaps[:, cloud, :, :count], expected[:, cloud, :, :count], atol=2e-3, rtol=2e-3
            )


@pytest.mark.slow
@with_gradients
def test_gradients_of_predictions_agree(made):
    run = made.run
    predictions = made.predictions()
    loss, _ = detection_loss(predictions, made.targets, made.low, made.extent, made.model.config)
    loss.backward()
    found = {
        "pred.sem_cls_logits": predictions.logits.grad,
        "pred.center_normalized": predictions.centers.grad,
        "pred.size_normalized": predictions.sizes.grad,
        "pred.angle_logits": clockwise(predictions.heading_logits.grad),
        "pred.angle_residual_normalized": -clockwise(predictions.heading_residuals.grad),
    }
    if f"{run}.grad.box.center" in made.case.expected:
        gradient = predictions.boxes.grad
        found |= {"box.center": gradient[..., :3], "box.size": gradient[..., 3:6], "box.angle": -gradient[..., 6]}
        if f"{run}.grad.box.angle" not in made.case.expected:
            del found["box.angle"]
    else:
        assert predictions.boxes.grad is None
    for key, gradient in found.items():
        expected = made.case.expected[f"{run}.grad.{key}"].double()
        allowed = 0.02 * float(expected.abs().max())
        assert float((gradient - expected).abs().max()) <= allowed, key


@pytest.mark.slow
@with_gradients
def test_gradients_of_parameters_agree(made):
    run = made.run
    made.model.zero_grad()
    made.output.loss.backward(retain_graph=True)
    gradients = {
        key: torch.zeros_like(weight) if weight.grad is None else weight.grad
        for key, weight in made.model.named_parameters()
    }
    theirs = as_theirs(convert_detr3d_state_dict, made.case.original, gradients)
    norms = made.case.manifest[f"{run}.gradient_norms"]
    assert theirs.keys() == norms.keys()
    total = made.case.manifest["gradient_noise"][f"{run}.gradient_norms.total"]
    compared = {key: norm for key, norm in norms.items() if norm > 1e-4 * total}
    assert len(compared) > 60
    for key, norm in compared.items():
        assert float(theirs[key].norm()) == pytest.approx(norm, rel=0.01), key
    stored = [key for key in made.case.expected if key.startswith(f"{run}.grad.") and key[len(run) + 6 :] in theirs]
    assert len(stored) >= 12
    for key in stored:
        expected = made.case.expected[key].double()
        own = theirs[key[len(run) + 6 :]].flatten()[: len(expected)]
        if norms[key[len(run) + 6 :]] > 1e-4 * total:
            assert float((own - expected).abs().max()) <= 0.02 * float(expected.abs().max()), key
