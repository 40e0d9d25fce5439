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
from hf_any3d.pipelines.point_cloud_classification import PointCloudClassificationPipeline, stretched
from hf_any3d.pipelines.zero_shot_point_cloud_classification import ZeroShotPointCloudClassificationPipeline
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


def test_votes_average_what_the_model_says_of_each_copy():
    pipe, seen = classifier(), []

    class Model:
        config = pipe.model.config

        def __call__(self, points):
            seen.append(points)
            sums = points.sum(dim=(1, 2))
            values = {"unknown": sums / 100, "one_sided": None}
            return SimpleNamespace(logits=torch.stack([sums, -sums], dim=1), get=values.get)

    pipe.model = Model()
    points = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(0))
    found = pipe._forward({"points": points.clone(), "stem": ["a", "b"]}, votes=2)
    copies = stretched(points, 2)
    torch.testing.assert_close(seen[0], copies.reshape(4, 5, 4))
    sums = copies.sum(dim=(2, 3)).mean(dim=1)
    torch.testing.assert_close(found["logits"], torch.stack([sums, -sums], dim=1))
    torch.testing.assert_close(found["unknown"], sums / 100)
    assert found["stem"] == ["a", "b"] and set(found) == {"logits", "unknown", "stem"}
    plain = pipe._forward({"points": points.clone(), "stem": ["a", "b"]})
    torch.testing.assert_close(plain["logits"][:, 0], points.sum(dim=(1, 2)))
    with raises(ValueError, naming="votes=2 for a model that"):
        pipe._forward({"points": points, "mask": points, "stem": ["a", "b"]}, votes=2)


@pytest.fixture
def tower(monkeypatch):
    """A model that notes which texts it embeds, and the state of its weights."""
    made = SimpleNamespace(embedded=[], state=("weights", 0))

    def encode_labels(*given):
        made.embedded.append(given)
        return torch.full((1,), len(made.embedded))

    for module in (words, parts):
        monkeypatch.setattr(module, "weights_state", lambda model: made.state if model == "tower" else None)
        monkeypatch.setattr(module, "CACHE_SIZE", 2)
    made.config = SimpleNamespace(hypothesis_templates=["a {}"], category_templates=["a {} of a {}"])
    made.model = SimpleNamespace(
        config=made.config, text_tower=SimpleNamespace(model="tower"), encode_labels=encode_labels, device="cpu"
    )
    return made


def test_parts_are_embedded_anew_when_anything_changes_that_their_texts_depend_on(tower):
    pipe = SimpleNamespace(model=tower.model, _embeddings=OrderedDict())

    def embed(*given, **more):
        return int(ZeroShotPointCloudSegmentationPipeline.label_embeddings(pipe, *given, **more))

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


def test_words_are_embedded_anew_when_labels_templates_or_weights_change(tower):
    pipe = SimpleNamespace(model=tower.model, _embeddings=OrderedDict())

    def embed(*given):
        return int(ZeroShotPointCloudClassificationPipeline.label_embeddings(pipe, *given))

    assert [embed(("a",)), embed(("a",), ("a {}",)), embed(("a",), ("{}",)), embed(("b",))] == [1, 1, 2, 3]
    assert tower.embedded == [(("a",), ("a {}",)), (("a",), ("{}",)), (("b",), ("a {}",))]
    tower.state = ("weights", 1)
    assert [embed(("b",)), embed(("a",)), embed(("b",)), embed(("c",)), embed(("b",)), embed(("a",))] == [
        4,
        5,
        4,
        6,
        4,
        7,
    ]


def segmenter(**config) -> ZeroShotPointCloudSegmentationPipeline:
    pipe = object.__new__(ZeroShotPointCloudSegmentationPipeline)
    pipe.model, pipe.feature_extractor = SimpleNamespace(config=SimpleNamespace(**config)), SimpleNamespace()
    return pipe


@pytest.mark.parametrize(
    ("config", "held", "given", "within", "names"),
    [
        ({}, {}, {"candidate_labels": "a, b"}, {"labels": ("a", "b")}, ("a", "b")),
        ({}, {}, {}, {}, None),
        ({}, {"labels": ("x",)}, {"category": "cup"}, {"category": "cup"}, ("x",)),
        ({"none_label": True}, {}, {"candidate_labels": ["a"]}, {"labels": ("a",)}, ("a", "none")),
        (
            {"none_label": True},
            {},
            {"candidate_labels": ["a"], "none_label": False},
            {"labels": ("a",), "none_label": False},
            ("a",),
        ),
        ({"none_label": False}, {"labels": ("a",)}, {"none_label": True}, {"none_label": True}, ("a", "none")),
        ({"none_label": True}, {"none_label": False}, {"candidate_labels": "a"}, {"labels": ("a",)}, ("a",)),
        ({"patch_to_point": "nearest"}, {}, {"patch_to_point": "membership"}, {"patch_to_point": "membership"}, None),
        ({}, {}, {"templates": ("{}",)}, {"templates": ("{}",)}, None),
    ],
)
def test_labels_and_choices_of_a_call_join_those_of_the_pipeline(config, held, given, within, names):
    pipe = segmenter(**config)
    pipe._forward_params = held
    settings = {"up_axis": "x", "max_points": 9, "output_dir": "out", "formats": "ply"}
    before, during, after = pipe._sanitize_parameters(**given, **settings)
    assert before == {"up_axis": "x", "max_points": 9} and during == within
    assert after == {"output_dir": "out", "formats": ["ply"]} | ({} if names is None else {"names": names})


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
