"""Choice of detections and average precision, against the stored evaluation of the released program."""

import dataclasses

import numpy as np
import pytest
import torch

from hf_any3d.evaluation.detection import detection_metrics, score_detections
from hf_any3d.modeling.layers.boxes import PUBLISHED_RULE, DetectionRule, select_detections
from tests.modeling.aligned_case import AlignedCase

# What the options of the original are here.
RUNS = {
    "default": {},
    "approximate": {"min_points": 0},
    "no_nms": {"nms": None},
    "nms_2d": {"nms": "base"},
    "class_agnostic": {"nms_per_class": False},
    "old_overlap": {"nms_share": True, "nms_per_class": False},
    "best_class": {"scores": "best_class"},
    "objectness": {"scores": "objectness"},
    "confidence_half": {"min_objectness": 0.5, "nms_iou": 0.1},
}


class Stored:
    """A stored evaluation: boxes, probabilities and objects of three clouds."""

    def __init__(self, name: str):
        self.case = AlignedCase(name)
        stored = self.case.expected
        headings = -stored["box_angle"].unsqueeze(2)
        self.boxes = torch.cat([stored["box_center"], stored["box_size"], headings], dim=2)
        corners = stored["gt_box_corners"]
        # Back from corners in the camera's frame, whose y points down.
        center = corners.mean(dim=2)[..., [0, 2, 1]] * torch.tensor([1.0, 1, -1])
        sides = [(corners[..., 0, :] - corners[..., number, :]) for number in (3, 1, 4)]
        size = torch.stack([side.norm(dim=-1) for side in sides], dim=-1)
        heading = torch.atan2(sides[0][..., 2], sides[0][..., 0])
        truth = torch.cat([center, size, heading.unsqueeze(-1)], dim=-1)
        present = stored["gt_box_present"].bool()
        labels = stored["gt_box_sem_cls_label"].long()
        self.references = [
            {"boxes": truth[cloud][own].numpy(), "labels": labels[cloud][own].numpy()}
            for cloud, own in enumerate(present)
        ]

    def answers(self, rule: DetectionRule) -> list[tuple[torch.Tensor, ...]]:
        stored = self.case.expected
        return [
            select_detections(
                self.boxes[cloud],
                stored["sem_cls_prob"][cloud],
                stored["objectness_prob"][cloud],
                rule,
                stored["point_clouds"][cloud],
            )
            for cloud in range(3)
        ]

    def predictions(self, rule: DetectionRule) -> list[dict[str, np.ndarray]]:
        return [
            {"boxes": self.boxes[cloud][number].numpy(), "labels": labels.numpy(), "scores": scores.numpy()}
            for cloud, (number, labels, scores) in enumerate(self.answers(rule))
        ]


@pytest.fixture(scope="module", params=["detr3d_post_scannet", "detr3d_post_sunrgbd"])
def stored(request):
    return Stored(request.param)


@pytest.mark.parametrize("run", RUNS)
def test_answers_are_those_of_the_released_program(stored, run):
    rule = dataclasses.replace(PUBLISHED_RULE, **RUNS[run])
    rows, scores = [], []
    for cloud, (number, labels, own) in enumerate(stored.answers(rule)):
        rows += [[cloud, *pair] for pair in zip(labels.tolist(), number.tolist(), strict=True)]
        scores.append(own)
    assert rows == stored.case.expected[f"{run}.detections"].tolist()
    torch.testing.assert_close(torch.cat(scores), stored.case.expected[f"{run}.scores"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("run", RUNS)
def test_average_precision_is_that_of_the_released_program(stored, run):
    expected = stored.case.manifest["metrics"][run]
    rule = dataclasses.replace(PUBLISHED_RULE, **RUNS[run])
    found = detection_metrics(stored.predictions(rule), stored.references)
    for threshold in (0.25, 0.5):
        own, ending = expected[str(threshold)], f"{100 * threshold:g}"
        assert found[f"published_map_{ending}"] == pytest.approx(own["mAP"], abs=1e-5)
        assert found[f"published_recall_{ending}"] == pytest.approx(own["AR"], abs=1e-5)
        with_objects = [value for name, value in own.items() if name.endswith("Average Precision") and value]
        assert sorted(value for value in found[f"class_ap_{ending}"].values() if value) == pytest.approx(
            sorted(with_objects), abs=1e-5
        )
        assert found[f"map_{ending}"] >= found[f"published_map_{ending}"]


BOX = [0.0, 0, 0, 1, 1, 1, 0]


def test_no_answers_and_no_objects_are_scored():
    empty = {"boxes": [], "labels": [], "scores": []}
    assert detection_metrics([empty], [{"boxes": [BOX], "labels": [2]}])["map_25"] == 0.0
    assert np.isnan(detection_metrics([empty], [{"boxes": [], "labels": []}])["map_25"])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"labels": [0]}, r"predictions\[0\]: boxes \(2, 7\) with labels \[0\]; expected finite"),
        ({"boxes": [BOX, [np.nan] * 7]}, r"predictions\[0\]: boxes \(2, 7\) with .*; expected finite boxes"),
        ({"scores": [0.5]}, r"predictions\[0\]: scores \(1,\); expected \(2,\), finite numbers"),
        ({"scores": [0.5, np.inf]}, r"predictions\[0\]: scores \(2,\); expected \(2,\), finite numbers"),
        ({"references": [{"boxes": [BOX], "labels": []}]}, r"references\[0\]: boxes \(1, 7\) with labels \[\]"),
    ],
)
def test_wrong_answers_and_objects_are_named(change, match):
    answer = {"boxes": [BOX, BOX], "labels": [0, 1], "scores": [0.5, 0.4]}
    answer |= {name: value for name, value in change.items() if name in answer}
    given = {"predictions": [answer], "references": [{"boxes": [BOX], "labels": [0]}]}
    with pytest.raises(ValueError, match=match):
        score_detections(**given | {name: value for name, value in change.items() if name not in answer})


@pytest.mark.parametrize(
    ("prediction", "reference", "match"),
    [
        ({"boxes": np.ones((7, 6)), "labels": [0] * 6, "scores": [1.0] * 6}, {}, r"boxes \(7, 6\) with"),
        ({"labels": [0.5]}, {}, r"predictions\[0\]: .*labels \[0.5\]; expected .*whole"),
        ({}, {"boxes": [BOX], "labels": [2]}, "found class 2; expected 0 to 1, those of the names"),
    ],
)
def test_answers_and_objects_that_cannot_be_compared_are_named(prediction, reference, match):
    answer = {"boxes": [BOX], "labels": [0], "scores": [1.0]} | prediction
    answer = {name: value for name, value in answer.items() if value is not None}
    with pytest.raises(ValueError, match=match):
        detection_metrics([answer], [reference or {"boxes": [BOX], "labels": [0]}], names=["chair", "table"])


def test_turned_boxes_beside_each_other_are_both_kept():
    # Their bounds overlap, they do not.
    boxes = torch.tensor([[0.0, 0, 0, 4, 0.2, 1, 0.785], [1.0, -1, 0, 4, 0.2, 1, 0.785]])
    scores, objectness = torch.tensor([[0.9], [0.8]]), torch.tensor([0.9, 0.8])
    turned = select_detections(boxes, scores, objectness, DetectionRule())
    bounds = select_detections(boxes, scores, objectness, DetectionRule(nms="bounds"))
    assert turned[0].tolist() == [0, 1] and bounds[0].tolist() == [0]
    best = select_detections(boxes, scores, objectness, DetectionRule(top_k=1))
    assert best[0].tolist() == [0] and best[2].tolist() == pytest.approx([0.9])
