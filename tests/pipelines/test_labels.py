"""Labels of clouds and parts: what an answer holds, which texts are embedded anew, which arguments fit together."""

from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_any3d.data.text_bank import TextBank
from hf_any3d.pipelines import (
    zero_shot_point_cloud_classification as words,
    zero_shot_point_cloud_segmentation as parts,
)
from hf_any3d.pipelines.point_cloud_classification import PointCloudClassificationPipeline
from hf_any3d.pipelines.zero_shot_point_cloud_segmentation import ZeroShotPointCloudSegmentationPipeline
from tests.errors import raises

NAMES = {0: "chair", 1: "lamp", 2: "sofa"}
LOGITS = torch.tensor([[0.0, 2.0, 1.0]])


def classifier(**config) -> PointCloudClassificationPipeline:
    pipe = object.__new__(PointCloudClassificationPipeline)
    usual = {"id2label": NAMES, "problem_type": None, "num_labels": 3, "unknown_share": 0.05}
    pipe.model = SimpleNamespace(config=SimpleNamespace(**usual | config))
    return pipe


def outputs(**signs) -> dict:
    return {"logits": LOGITS, "stem": ["a"], **{name: torch.tensor([value]) for name, value in signs.items()}}


@pytest.mark.parametrize(
    ("signs", "settings", "labels", "more"),
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
def test_an_answer_has_the_best_labels_and_what_else_is_known_of_the_cloud(signs, settings, labels, more):
    scores = dict(zip(NAMES.values(), LOGITS[0].softmax(0).tolist(), strict=True))
    expected = [{"label": label, "score": pytest.approx(scores[label or "lamp"])} | more for label in labels]
    assert classifier().postprocess(outputs(**signs), **settings) == expected


def test_without_a_stated_share_every_cloud_gets_a_label():
    assert classifier(unknown_share=None).postprocess(outputs(unknown=1.0))[0]["label"] == "lamp"


@pytest.mark.parametrize(
    ("config", "given", "scores"),
    [
        ({}, None, LOGITS[0].softmax(0)),
        ({"problem_type": "regression"}, None, LOGITS[0]),
        ({"problem_type": "multi_label_classification"}, None, LOGITS[0].sigmoid()),
        ({"num_labels": 1}, None, LOGITS[0].sigmoid()),
        ({"problem_type": "regression"}, "softmax", LOGITS[0].softmax(0)),
    ],
)
def test_scores_follow_the_kind_of_the_problem(config, given, scores):
    found = classifier(**config).postprocess(outputs(), top_k=None, function_to_apply=given)
    assert {one["label"]: one["score"] for one in found} == pytest.approx(
        dict(zip(NAMES.values(), scores.tolist(), strict=True))
    )


@pytest.fixture
def tower(monkeypatch):
    """A model that notes which texts it embeds, and the state of its weights."""
    made = SimpleNamespace(embedded=[], state=("weights", 0))

    def encode_labels(*given):
        made.embedded.append(given)
        return torch.full((1,), len(made.embedded))

    monkeypatch.setattr(words, "weights_state", lambda model: made.state if model == "tower" else None)
    monkeypatch.setattr(words, "CACHE_SIZE", 2)
    made.config = SimpleNamespace(hypothesis_templates=["a {}"], category_templates=["a {} of a {}"])
    made.model = SimpleNamespace(
        config=made.config, text_tower=SimpleNamespace(model="tower"), encode_labels=encode_labels, device="cpu"
    )
    return made


def test_parts_are_embedded_anew_when_anything_changes_that_their_texts_depend_on(tower):
    pipe = segmenter()
    pipe.model, pipe._embeddings = tower.model, OrderedDict()

    def embed(*given, **more):
        return int(pipe.label_embeddings(*given, **more))

    asked = [
        (("leg",), None, None),
        (("leg", "seat"), None, None),
        (("leg",), "chair", None),
        (("leg",), None, "part_only"),
        (("leg",), None, ("{}",)),
    ]
    for number, given in enumerate(asked, 1):
        assert embed(*given) == number == embed(*given)
    assert tower.embedded == [(labels, templates, category) for labels, category, templates in asked]
    for number, (name, value) in enumerate((("hypothesis_templates", ["{}"]), ("category_templates", ["{} {}"])), 6):
        setattr(tower.config, name, value)
        assert embed(("leg",)) == number
    tower.state = ("weights", 1)
    assert embed(("leg",)) == 8 == embed(("leg",))
    # The two used last are kept.
    assert embed(("seat",)) == 9 and embed(("leg",)) == 8
    assert embed(("back",)) == 10 and embed(("leg",)) == 8 and embed(("seat",)) == 11


def segmenter(**config) -> ZeroShotPointCloudSegmentationPipeline:
    pipe = object.__new__(ZeroShotPointCloudSegmentationPipeline)
    pipe.model, pipe.feature_extractor = SimpleNamespace(config=SimpleNamespace(**config)), SimpleNamespace()
    return pipe


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text_features": 1, "category": "cup"}, "category and templates make texts; expected neither, as text_f"),
        ({"text_features": 1, "templates": ("{}",)}, "expected neither, as text_features is given"),
        ({"none_label": False}, "none_label=False; expected None, as this model has no such choice"),
        ({"patch_to_point": "nearest"}, "patch_to_point='nearest'; expected None"),
        ({"candidate_labels": "Leg, leg."}, "has 'Leg' and 'leg.', which are the same text; expected one"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        segmenter()._sanitize_parameters(**given)


def test_the_name_of_no_part_is_kept_for_points_without_one():
    pipe = segmenter(none_label=True)
    assert pipe.label_names(["a", "b"]) == ("a", "b", "none") and pipe.label_names("a", none_label=False) == ("a",)
    with raises(ValueError, naming="candidate_labels"):
        pipe.label_names(["a", "None!"])
    assert pipe.label_names(["a", "none"], none_label=False) == ("a", "none")


def test_vectors_of_labels_are_a_bank_a_mapping_or_rows(tmp_path):
    vectors = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0, 2.0])}
    expected = TextBank(vectors).encode(("b", "a"))
    TextBank(vectors).save(tmp_path / "words.safetensors")
    for given in (TextBank(vectors), vectors, tmp_path / "words.safetensors", str(tmp_path / "words.safetensors")):
        torch.testing.assert_close(parts._given_features(("b", "a"), given), expected)
    rows = parts._given_features(("b", "a"), np.array([[1, 2], [3, 4]]))
    assert rows.dtype == torch.float32 and rows.tolist() == [[1, 2], [3, 4]]
    for wrong, shape in ((np.ones((3, 2)), r"\(3, 2\)"), (np.ones(2), r"\(2,\)")):
        with pytest.raises(ValueError, match=rf"text_features has shape {shape}; expected \(2, width\)"):
            parts._given_features(("b", "a"), wrong)
