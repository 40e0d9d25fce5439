import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from hf_any3d import PointCloudProcessor
from hf_any3d.pipelines import PointCloudClassificationPipeline
from hf_any3d.tasks.classification.steps import stretched
from tests.closeness import assert_nearly_equal
from tests.errors import raises
from tests.golden import assert_stored
from tests.tiny_encoders import adapted_model, clouds, train_step

NAMES = ["chair", "lamp", "table"]
POINTS = 48


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved adapter with its processor; head and adapter trained until answers differ."""
    directory = tmp_path_factory.mktemp("classifier")
    model = adapted_model(num_labels=3, id2label=dict(enumerate(NAMES)), label2id={n: k for k, n in enumerate(NAMES)})
    for _ in range(3):
        train_step(model)
        model.zero_grad()
    torch.nn.init.normal_(model.base_model.model.classifier.modules_to_save["default"].out.weight, std=3.0)
    model.eval().save_pretrained(directory)
    PointCloudProcessor(num_points=POINTS).save_pretrained(directory)
    return str(directory), model


@pytest.fixture(scope="module")
def classify(saved):
    return pipeline("point-cloud-classification", model=saved[0])


@pytest.fixture(scope="module")
def expected(saved):
    """Return (label, score) of the model for five clouds, sorted by score."""
    processor = PointCloudProcessor(num_points=POINTS)
    with torch.no_grad():
        shares = saved[1](points=processor(clouds(5))["points"]).logits.softmax(dim=-1)
    answers = [sorted(zip(NAMES, row.tolist(), strict=True), key=lambda pair: -pair[1]) for row in shares]
    # Otherwise equal answers would prove nothing.
    assert len({one[0][1] for one in answers}) == 5 and len({one[0][0] for one in answers}) > 1
    return answers


def agrees(answers, expected, count=1):
    """Return whether answers have equal labels and scores."""
    found = [[(answer["label"], answer["score"]) for answer in answer_of_cloud] for answer_of_cloud in answers]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert [label for label, _ in one] == [label for label, _ in other[:count]]
        assert [score for _, score in one] == pytest.approx([score for _, score in other[:count]], abs=1e-5)
    return True


def written(directory):
    """Write the five clouds to files; return their paths and precisions."""
    paths = []
    for number, cloud in enumerate(clouds(5).numpy()):
        paths.append(directory / f"cloud{number}.npy")
        np.save(paths[-1], cloud)
    return paths


def test_list_of_paths_returns_a_list_of_answers(classify, expected, tmp_path):
    paths = written(tmp_path)
    assert agrees(classify(paths), expected)
    assert agrees(classify([str(paths[0])]), expected[:1])
    assert agrees(classify(tuple(map(str, paths))), expected)


@pytest.fixture(scope="module")
def dataset():
    features = Features({"points": Array2D((None, 3), "float32"), "label": ClassLabel(names=NAMES)})
    return Dataset.from_dict({"points": list(clouds(5).numpy()), "label": [0, 1, 2, 0, 1]}, features=features)


def test_key_dataset_and_generator_return_iterators(classify, expected, dataset):
    answers = classify(KeyDataset(dataset, "points"), batch_size=2)
    assert not isinstance(answers, list)
    assert agrees(list(answers), expected)
    answers = classify(cloud.numpy() for cloud in clouds(5))
    assert not isinstance(answers, list)
    assert agrees(list(answers), expected)


def test_clouds_with_another_up_axis_are_turned(classify):
    cloud = clouds(5)[0].numpy()
    lying = cloud[:, [0, 2, 1]] * np.float32([1, -1, 1])  # Z up
    expected = classify(cloud, top_k=3)
    assert classify(lying, top_k=3) != expected
    for turned, answer in zip(classify(lying, top_k=3, up_axis="z"), expected, strict=True):
        assert turned["label"] == answer["label"] and turned["score"] == pytest.approx(answer["score"], rel=1e-5)
    with raises(ValueError, naming="up_axis"):
        classify(cloud, up_axis="up")


@pytest.mark.slow
@pytest.mark.parametrize(("top_k", "count"), [(None, 3), (1, 1), (2, 2), (3, 3), (50, 3)])
def test_top_k_labels_are_sorted_by_score(classify, expected, top_k, count):
    assert agrees(classify(list(clouds(5)), top_k=top_k), expected, count)
    scores = [answer["score"] for answer in classify(clouds(5)[0], top_k=50)]
    assert sum(scores) == pytest.approx(1) and scores == sorted(scores, reverse=True)


def test_call_overrides_arguments_of_the_pipeline(saved, expected):
    classify = pipeline("point-cloud-classification", model=saved[0], top_k=2)
    assert agrees(classify(list(clouds(5))), expected, 2)
    assert agrees(classify(list(clouds(5)), top_k=None), expected, 3)


FUNCTIONS = {"softmax": lambda x: x.softmax(-1), "sigmoid": torch.sigmoid, "none": lambda x: x}


@pytest.mark.parametrize(
    ("given", "problem", "taken"),
    [(name, None, name) for name in FUNCTIONS]
    + [
        (None, "single_label_classification", "softmax"),
        (None, "multi_label_classification", "sigmoid"),
        (None, "regression", "none"),
        ("softmax", "multi_label_classification", "softmax"),
    ],
)
def test_scores_follow_function_to_apply_or_problem_type(saved, given, problem, taken):
    classify = pipeline("point-cloud-classification", model=saved[0])
    classify.model.config.problem_type = problem
    with torch.no_grad():
        logits = saved[1](points=PointCloudProcessor(num_points=POINTS)(clouds(5))["points"]).logits
    assert (logits.sigmoid() - logits.softmax(-1)).abs().max() > 0.1
    scores = FUNCTIONS[taken](logits)[0]
    found = classify(clouds(5)[0], top_k=None, function_to_apply=given)
    wanted = dict(zip(NAMES, scores.tolist(), strict=True))
    assert {a["label"]: a["score"] for a in found} == pytest.approx(wanted, rel=1e-5)
    if problem == "regression":  # all numbers, in the order of the labels
        assert [one["label"] for one in found] == NAMES and classify(clouds(5)[0]) == found
    else:
        assert found == sorted(found, key=lambda answer: -answer["score"])


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_batch_size_does_not_change_answers(classify, expected, batch_size):
    assert agrees(classify(list(clouds(5)), batch_size=batch_size, top_k=3), expected, 3)


@pytest.mark.slow
def test_workers_read_in_order(classify, expected, tmp_path):
    assert agrees(classify(written(tmp_path), num_workers=2, batch_size=2), expected)


@pytest.mark.parametrize("nothing", [[], (), np.zeros((0, 48, 3), np.float32)])
def test_empty_list_returns_an_empty_list(classify, nothing):
    assert classify(nothing) == []


@pytest.mark.parametrize("in_terminal", [False, True])
def test_progress_is_shown_on_request_or_for_many_clouds(in_terminal, classify, capsys, monkeypatch):
    monkeypatch.setattr("hf_any3d.utils.progress._is_terminal", lambda stream: in_terminal)
    few, many = list(clouds(3)), list(clouds(2)) * 50
    # In a file, a bar would stand between answers; who asks for one gets it.
    cases = ((few, None, False), (few, True, True), (many, None, in_terminal), (many, False, False))
    for inputs, progress, shown in cases:
        capsys.readouterr()
        assert len(classify(inputs, progress=progress, batch_size=50)) == len(inputs)
        assert ("cloud/s" in capsys.readouterr().err) == shown


def test_unknown_argument_is_refused_and_known_ones_listed(classify):
    known = "top_k, function_to_apply, up_axis, votes, unknown, one_sided, other_axis, keep_labels, estimate_normals"
    with pytest.raises(TypeError, match=f"arguments: topk; expected {known}"):
        classify(clouds(5)[0], topk=3)
    with raises(ValueError, naming="top_k"):
        classify(clouds(5)[0], top_k=0)
    with raises(ValueError, naming="function_to_apply"):
        classify(clouds(5)[0], function_to_apply="tanh")


def test_errors_name_bad_files(classify, tmp_path):
    broken = tmp_path / "broken.ply"
    broken.write_bytes(b"ply\nformat ascii 1.0\nelement vertex 5\n")
    good = written(tmp_path)[0]
    for inputs in (broken, [good, broken]):
        with raises(ValueError, naming="broken.ply"):
            classify(inputs)
    with raises((ValueError, OSError), naming="absent.ply"):
        classify(tmp_path / "absent.ply")
    with raises(ValueError, naming="notes.docx"):
        (tmp_path / "notes.docx").write_text("no points")
        classify(tmp_path / "notes.docx")


def test_invalid_clouds_are_refused(classify):
    with raises(ValueError, naming="shape (48, 2)"):
        classify(np.zeros((48, 2), np.float32))
    with pytest.raises(ValueError, match="NaN|finite"):
        classify(np.full((48, 3), np.nan, np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), -1])
def test_device_may_be_chosen(saved, expected, device):
    classify = pipeline("point-cloud-classification", model=saved[0], device=device)
    assert classify.device == torch.device("cpu")
    assert agrees([classify(clouds(5)[0])], expected[:1])


def test_bfloat16_gives_nearly_the_same_scores(saved, expected):
    classify = pipeline("point-cloud-classification", model=saved[0], dtype=torch.bfloat16)
    assert classify.model.any2point.encoder.dtype == torch.bfloat16
    found = [{answer["label"]: answer["score"] for answer in answers} for answers in classify(clouds(5), top_k=3)]
    scores, reference = (
        torch.tensor([[dict(answers)[name] for name in NAMES] for answers in side]) for side in (found, expected)
    )
    assert_nearly_equal(scores, reference, 0.1)


def test_model_and_processor_may_be_given_as_objects(saved, expected):
    processor = PointCloudProcessor(num_points=POINTS)
    for model in (saved[1].get_base_model(), saved[1]):
        classify = pipeline("point-cloud-classification", model=model, feature_extractor=processor)
        assert type(classify) is PointCloudClassificationPipeline and not classify.model.training
        assert agrees(classify(list(clouds(5))), expected)


def test_votes_are_the_mean_logits_of_stretched_copies(saved, classify):
    processor = PointCloudProcessor(num_points=POINTS)
    points = processor(clouds(3))["points"]
    copies = stretched(points, 4)
    assert torch.equal(copies[:, 0], points) and copies.shape == (3, 4, *points.shape[1:])
    factors = (copies / points[:, None]).flatten(0, 2)
    assert 0.8 <= factors.min() and factors.max() <= 1.25 and len(factors[:, 0].round(decimals=4).unique()) == 4
    with torch.no_grad():
        logits = torch.stack([saved[1](points=copies[:, vote]).logits for vote in range(4)]).mean(0)
    expected = logits.softmax(-1)
    for batch_size in (1, 3):
        answers = classify(clouds(3), votes=4, top_k=None, batch_size=batch_size)
        for answer, row in zip(answers, expected, strict=True):
            found = {entry["label"]: entry["score"] for entry in answer}
            assert [found[name] for name in NAMES] == pytest.approx(row.tolist(), abs=1e-5)
    with raises(ValueError, naming="votes is 0"):
        classify(clouds(1), votes=0)


def test_stretched_copies_are_those_of_earlier_versions():
    copies = stretched(clouds(2).double(), 3)
    assert_stored(list(copies[:, 1:].flatten(0, 1).numpy()), [0.030277, 0.052651, 0.566305, 0.6245])
