"""Labels of clouds and parts: what an answer holds, by the outputs of a model that are given here."""

from types import SimpleNamespace

import pytest
import torch

from hf_any3d.tasks.classification.pipeline import PointCloudClassificationPipeline
from hf_any3d.tasks.parts_by_name.pipeline import ZeroShotPointCloudSegmentationPipeline
from tests.errors import raises

NAMES = {0: "chair", 1: "lamp", 2: "sofa"}
LOGITS = torch.tensor([[0.0, 2.0, 1.0]])


def classifier(**config) -> PointCloudClassificationPipeline:
    pipe = object.__new__(PointCloudClassificationPipeline)
    usual = {"id2label": NAMES, "problem_type": None, "num_labels": 3, "unknown_share": 0.05}
    pipe.model = SimpleNamespace(config=SimpleNamespace(**usual | config))
    return pipe


def outputs(**further) -> dict:
    return {"logits": LOGITS, "stem": ["a"], **{name: torch.tensor([value]) for name, value in further.items()}}


@pytest.mark.parametrize(
    ("further", "settings", "labels", "more"),
    [
        ({}, {}, ["lamp"], {}),
        ({}, {"top_k": 2}, ["lamp", "sofa"], {}),
        ({}, {"top_k": None}, ["lamp", "sofa", "chair"], {}),
        ({}, {"top_k": 9}, ["lamp", "sofa", "chair"], {}),
        ({"unknown": 0.25}, {"top_k": 2}, ["lamp", "sofa"], {"unknown": 0.25}),
        ({"unknown": 0.5}, {}, ["lamp"], {"unknown": 0.5}),
        ({"unknown": 0.9375}, {"top_k": 2}, [None], {"unknown": 0.9375}),
        ({"unknown": 0.9375}, {"unknown": False, "top_k": 2}, ["lamp", "sofa"], {}),
        ({"one_sided": 0.75}, {}, ["lamp"], {}),
        ({"one_sided": 0.75}, {"one_sided": True, "top_k": 2}, ["lamp", "sofa"], {"one_sided": 0.75}),
        ({}, {"one_sided": True}, ["lamp"], {}),
        (
            {"one_sided": 0.75, "unknown": 0.9375},
            {"one_sided": True, "top_k": None},
            [None],
            {"one_sided": 0.75, "unknown": 0.9375},
        ),
    ],
)
def test_an_answer_has_the_best_labels_and_what_else_is_known_of_the_cloud(further, settings, labels, more):
    scores = dict(zip(NAMES.values(), LOGITS[0].softmax(0).tolist(), strict=True))
    expected = [{"label": label, "score": pytest.approx(scores[label or "lamp"])} | more for label in labels]
    assert classifier().postprocess(outputs(**further), **settings) == expected


def test_without_a_stated_share_every_cloud_gets_a_label():
    assert classifier(unknown_share=None).postprocess(outputs(unknown=1.0))[0]["label"] == "lamp"


def segmenter(**config) -> ZeroShotPointCloudSegmentationPipeline:
    pipe = object.__new__(ZeroShotPointCloudSegmentationPipeline)
    pipe.model, pipe.feature_extractor = SimpleNamespace(config=SimpleNamespace(**config)), SimpleNamespace()
    return pipe


def test_the_name_of_no_part_is_kept_for_points_without_one():
    pipe = segmenter(none_label=True)
    assert pipe.label_names(["a", "b"]) == ("a", "b", "none") and pipe.label_names("a", none_label=False) == ("a",)
    with raises(ValueError, naming="candidate_labels"):
        pipe.label_names(["a", "None!"])
    assert pipe.label_names(["a", "none"], none_label=False) == ("a", "none")
