import numpy as np
import pytest
import torch
from transformers import pipeline

from hf_any3d import PointCloudProcessor
from hf_any3d.pipelines import ZeroShotPointCloudClassificationPipeline
from tests.tiny_encoders import clouds
from tests.tiny_text_towers import LABELS, adapted_zero_shot_model

POINTS = 48
TASK = "zero-shot-point-cloud-classification"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved adapter with its processor, whose answers differ between clouds."""
    directory = tmp_path_factory.mktemp("zero-shot")
    model = adapted_zero_shot_model(hypothesis_templates=["a {}.", "the {}"])
    projection = model.base_model.model.alignment.modules_to_save["default"].projection
    torch.nn.init.normal_(projection.weight)
    with torch.no_grad():
        # Without the mean feature, which would favor the same label for all clouds.
        pooled = model.any2point(PointCloudProcessor(num_points=POINTS)(clouds(5))["points"]).pooler_output
        projection.bias.copy_(-projection.weight @ pooled.mean(dim=0))
    model.save_pretrained(directory)
    PointCloudProcessor(num_points=POINTS).save_pretrained(directory)
    return str(directory), model


@pytest.fixture(scope="module")
def classify(saved):
    return pipeline(TASK, model=saved[0])


def expected_of(model, labels=LABELS, templates=None, count=5):
    """Return (label, score) of the model for each cloud, sorted by score."""
    points = PointCloudProcessor(num_points=POINTS)(clouds(count))["points"]
    with torch.no_grad():
        texts = model.encode_labels(labels, templates)
        shares = model(points=points, text_embeds=texts).logits_per_point_cloud.softmax(dim=-1)
    return [sorted(zip(labels, row.tolist(), strict=True), key=lambda pair: -pair[1]) for row in shares]


def agrees(answers, expected):
    for one, other in zip(answers, expected, strict=True):
        assert [answer["label"] for answer in one] == [label for label, _ in other]
        assert [answer["score"] for answer in one] == pytest.approx([score for _, score in other], abs=1e-5)
    return True


@pytest.mark.slow
def test_all_labels_are_returned_sorted_by_score(classify, saved):
    assert isinstance(classify, ZeroShotPointCloudClassificationPipeline)
    answer = classify(clouds(5)[0], candidate_labels=LABELS)
    assert agrees([answer], expected_of(saved[1])[:1])
    assert set(answer[0]) == {"label", "score"}
    assert sum(entry["score"] for entry in answer) == pytest.approx(1)
    winners = {own[0][0] for own in expected_of(saved[1])}
    assert len(winners) > 1, "else the order of answers proves nothing"
    assert len(classify(clouds(5)[0], candidate_labels=LABELS, top_k=2)) == 2


@pytest.mark.slow
def test_labels_may_be_one_text_with_commas(classify):
    listed = classify(clouds(1)[0], candidate_labels=LABELS)
    assert classify(clouds(1)[0], candidate_labels="chair, lamp,table ") == listed


@pytest.mark.slow
def test_one_template_or_several_may_be_given(classify, saved):
    many = ["a {}", "{} of wood"]
    assert agrees(classify(list(clouds(5)), LABELS, hypothesis_template=many), expected_of(saved[1], templates=many))
    assert agrees(classify(list(clouds(5)), LABELS, hypothesis_template="{}"), expected_of(saved[1], templates=["{}"]))
    one, other = (classify(clouds(1)[0], LABELS, hypothesis_template=t) for t in ("{}", many))
    assert one != other


@pytest.mark.slow
def test_labels_and_templates_may_be_set_once(saved):
    classify = pipeline(TASK, model=saved[0], candidate_labels=LABELS, hypothesis_template="{}", top_k=1)
    answers = classify(list(clouds(5)))
    assert agrees(answers, [own[:1] for own in expected_of(saved[1], templates=["{}"])])
    assert len(classify(clouds(5)[0], top_k=None)) == len(LABELS)


def test_texts_of_a_set_of_labels_are_embedded_once_until_the_tower_changes(saved):
    classify = pipeline(TASK, model=saved[0])
    embedded, tower = [], classify.model.text_tower.model
    tower.register_forward_hook(lambda *_: embedded.append(1))
    for _ in range(2):
        classify(list(clouds(5)), LABELS, batch_size=2)
    assert len(embedded) == 1
    classify(clouds(1)[0], LABELS[:2])
    classify(clouds(1)[0], LABELS, hypothesis_template="{}")
    assert len(embedded) == 3
    with torch.no_grad():
        next(tower.parameters()).mul_(2)
    classify(clouds(1)[0], LABELS)
    assert len(embedded) == 4


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({}, ValueError, "candidate_labels is missing"),
        ({"candidate_labels": []}, ValueError, "candidate_labels is"),
        ({"candidate_labels": ["chair", " "]}, ValueError, "'chair', ' '"),
        ({"candidate_labels": "chair,,lamp"}, ValueError, "'chair', '', 'lamp'"),
        ({"candidate_labels": ["chair", 3]}, TypeError, "int"),
        ({"candidate_labels": ["chair", "sof\ud800"]}, ValueError, "expected words of whole characters"),
        ({"candidate_labels": ["chair", "chair"]}, ValueError, "'chair', 'chair'"),
        ({"candidate_labels": LABELS, "hypothesis_template": "a chair"}, ValueError, "'a chair',"),
        ({"candidate_labels": LABELS, "hypothesis_template": []}, ValueError, "at least one template"),
        ({"candidate_labels": LABELS, "top_k": 0}, ValueError, "top_k is 0"),
        (
            {"candidate_labels": LABELS, "text_embeds": np.ones((2, 4))},
            ValueError,
            r"expected floats \(3, text_width\)",
        ),
        ({"candidate_labels": LABELS, "text_embeds": np.ones(3)}, ValueError, r"float64 \(3,\); expected floats"),
        ({"candidate_labels": LABELS, "text_embeds": np.ones((3, 4), int)}, ValueError, r"int64 \(3, 4\); expected"),
        ({"candidate_labels": LABELS, "labels": 3}, TypeError, "unknown arguments: labels; expected candidate_labels"),
    ],
)
def test_errors_name_invalid_arguments(classify, arguments, error, text):
    with pytest.raises(error, match=text):
        classify(clouds(1)[0], **arguments)
