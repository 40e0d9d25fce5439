"""What published checkpoints are asked, and how many right answers are enough: one fewer is not."""

import functools
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features, List
from torch import nn

from hf_any3d import PointCloudProcessor, load_point_dataset
from hf_any3d.evaluation import published_checks
from hf_any3d.hub.published_table import PUBLISHED

NAME = "stand-in/model"


@pytest.fixture(scope="module")
def shapes():
    """`_shapes`, which reads all packaged shapes, once for each of its arguments."""
    return functools.cache(published_checks._shapes)


@pytest.fixture
def data(monkeypatch):
    """A function that takes rows in the place of generated ones; returns what was asked for."""

    def set_up(rows):
        asked = []
        monkeypatch.setattr(
            published_checks, "load_point_dataset", lambda name, **given: asked.append((name, given)) or rows
        )
        return asked

    return set_up


def labeled(points: int, names: list[str], labels: list[list[int]], **columns) -> Dataset:
    """Clouds whose points have labels in turn."""
    generator = np.random.default_rng(0)
    features = {"points": Array2D((points, 3), "float32"), "labels": List(ClassLabel(names=names))}
    features |= {name: ClassLabel(names=["cup", "lamp"]) for name in columns}
    rows = {"points": list(generator.random((len(labels), points, 3), np.float32))}
    rows["labels"] = [[own[number % len(own)] for number in range(points)] for own in labels]
    return Dataset.from_dict(rows | columns, features=Features(features))


@pytest.fixture
def answering(monkeypatch):
    """A function that lets pipelines answer as another function does; returns tasks and arguments of the calls."""

    def set_up(answer, model=None):
        asked = []

        def pipeline(task, name, **settings):
            def call(cloud, **given):
                asked.append((task, cloud, given))
                return answer(cloud, **given)

            call.model = model
            return call

        monkeypatch.setattr(published_checks, "_pipeline", pipeline)
        return asked

    return set_up


@pytest.mark.parametrize(
    ("right", "total", "chance", "passed"),
    [
        (20, 40, 0.25, True),  # twice chance
        (19, 40, 0.25, False),
        (5, 5, 0.25, True),  # by chance in one of 1024 cases
        (4, 4, 0.25, False),
        (27, 50, 0.25, True),
        (15, 27, 0.25, True),  # by chance in less than one of 1000 cases, if as few right ones are not counted too
        (40, 40, 0.6, False),
    ],
)
def test_answers_have_to_be_twice_as_good_as_chance_and_hardly_ever_by_chance(right, total, chance, passed):
    check = published_checks._against_chance("answers", right, total, chance)
    assert check.passed is passed
    assert check.seen == f"{right} of {total} right; chance is {100 * chance:.1f}%"


@pytest.mark.parametrize(
    ("classes", "right", "passed"),
    [
        (4, [1, 1, 0, 0], True),  # twice chance
        (4, [1, 0.9, 0, 0], False),
        (10, [1, 1, 1], True),  # of those that occur
        (8, [1, 1, 0.75, *[0] * 5], True),  # 20 points above chance
        (8, [1, 1, 0.5, *[0] * 5], False),
    ],
)
def test_classes_of_points_count_the_same_whatever_their_size(classes, right, passed):
    truth, answers = [], []
    for label, share in enumerate(right):
        count = 10 * (label + 1)
        truth += [label] * count
        answers += [label] * round(share * count) + [-1] * (count - round(share * count))
    check = published_checks._balanced("labels", np.array(answers), np.array(truth), range(classes))
    assert check.passed is passed
    mean = np.mean([round(share * 10 * (label + 1)) / (10 * (label + 1)) for label, share in enumerate(right)])
    assert check.seen == f"mean accuracy of {len(right)} classes {mean:.1%}; chance is {1 / classes:.1%}"


@pytest.mark.parametrize(
    ("wrong", "passed"), [((), True), (("sofa", "stool"), True), (("sofa", "stool", "lamp"), False)]
)
def test_four_of_the_example_files_have_to_be_named(wrong, passed):
    def answer(file):
        stem = file.rpartition("/")[2].removesuffix(".ply")
        return "horse" if stem in wrong else published_checks.EXAMPLES[stem][-1].title()

    check = published_checks._examples(answer)
    assert check.passed is passed
    assert check.seen.startswith(f"{6 - len(wrong)} of 6 right, at least 4 expected; ")
    assert all(f"{stem}: horse" in check.seen for stem in wrong)
    assert not published_checks._examples(lambda file: "chair").passed


def test_shapes_are_equally_many_of_each_class():
    rows = load_point_dataset("shapes", split="test")
    names = rows.features["label"].names
    points, labels = published_checks._shapes("test", 2 * len(names) + 1)
    assert set(Counter(labels).values()) == {2} and set(labels) == set(names)
    assert len(points) == len(labels) and all(cloud.shape[1] == 3 for cloud in points)
    first = next(row for row in rows if names[row["label"]] == labels[0])
    np.testing.assert_array_equal(points[0], np.asarray(first["points"])[:, :3])
    assert len(published_checks._shapes("test", 1)[1]) == len(names)


def test_classes_by_name_are_those_of_the_shapes_and_the_names_of_the_example_files(answering, shapes, monkeypatch):
    monkeypatch.setattr(published_checks, "_shapes", shapes)
    clouds, labels = shapes("test", 20)
    asked = answering(
        lambda cloud, **_: (
            [[{"label": label}] for label in labels]
            if isinstance(cloud, list)
            else [{"label": cloud.rpartition("/")[2].removesuffix(".ply")}]
        )
    )
    shapes, examples = published_checks._zero_shot(NAME, 20)
    assert shapes.passed and examples.passed and shapes.seen.startswith(f"{len(labels)} of {len(labels)} right")
    task, cloud, given = asked[0]
    assert task == "zero-shot-point-cloud-classification" and all(map(np.array_equal, cloud, clouds))
    assert given == {"candidate_labels": sorted(set(labels)), "up_axis": "y", "top_k": 1}
    assert asked[1][2] == {"candidate_labels": list(published_checks.EXAMPLES), "up_axis": "y", "top_k": 1}


def test_a_classifier_is_asked_for_its_first_label(answering):
    asked = answering(lambda file, **_: [{"label": "chair"}])
    assert published_checks._classifier(NAME, None)("chair.ply") == "chair"
    assert asked == [("point-cloud-classification", "chair.ply", {"top_k": 1})]


ROOM_NAMES = {0: "Chair", 1: "floor", 2: "table", 3: "sofa"}


def test_points_of_rooms_are_labeled(answering, data):
    names = ["floor", "table", "chair", "lamp"]
    rows = labeled(30, names, [[0, 1, 3], [0, 2]])
    asked_for, model = data(rows), SimpleNamespace(config=SimpleNamespace(id2label=ROOM_NAMES))
    for knows, share in ((4, 1), (1, 1 / 3)):
        numbers = {name.lower(): number for number, name in ROOM_NAMES.items() if number < knows}
        answers = ({"labels": [numbers.get(names[label], 0) for label in own]} for own in rows["labels"])
        asked = answering(lambda cloud, answers=[*answers], **_: answers.pop(0))
        check = published_checks._room(NAME, model)
        assert check.passed is (share == 1) and len(asked) == 2
        assert check.seen == f"mean accuracy of 3 classes {share:.1%}; chance is 25.0%"
    task, cloud, given = asked[0]
    assert task == "point-cloud-segmentation" and given == {"up_axis": "y"}
    np.testing.assert_array_equal(cloud["points"], np.asarray(rows[0]["points"]))
    assert (cloud["colors"] == 0.5).all() and cloud["normals"].shape == cloud["points"].shape
    assert asked_for[0] == ("rooms", {"split": "test", "train_rooms": 1, "validation_rooms": 1, "test_rooms": 4})


def test_labels_of_streets_are_not_judged_by_rooms():
    model = SimpleNamespace(config=SimpleNamespace(id2label={0: "floor", 1: "Chair", 2: "car"}))
    check = published_checks._room(NAME, model)
    assert check.passed is None and "no other scene comes with the package" in check.seen


def test_normals_are_unit_vectors_across_the_surface():
    points = np.random.default_rng(0).random((200, 3)) * (1, 1, 1e-3) + 5
    normals = published_checks._normals(points)
    assert normals.dtype == np.float32 and normals.shape == (200, 3)
    np.testing.assert_allclose(np.abs(normals), np.tile([0, 0, 1], (200, 1)), atol=0.05)


@pytest.mark.parametrize(("settings", "knows"), [({}, True), ({"none_label": True}, False)])
def test_parts_of_objects_are_asked_for_by_name(answering, data, settings, knows):
    names, categories = ["cup bowl", "cup handle", "lamp base", "lamp pole", "lamp shade"], ["cup", "lamp"]
    rows = labeled(24, names, [[0, 1], [2, 3, 4], [0, 1]], label=[0, 1, 0])
    asked_for, told = data(rows), iter(rows)

    def answer(cloud, candidate_labels, category, **_):
        row = next(told)
        assert category == categories[row["label"]]
        own = [names[label].removeprefix(f"{category} ") for label in row["labels"]]
        assert set(own) == set(candidate_labels)
        return {"labels": [candidate_labels.index(name) if knows else 0 for name in own]}

    asked = answering(answer, SimpleNamespace(config=SimpleNamespace(**settings)))
    check = published_checks._parts(NAME)
    assert check.passed is knows and len(asked) == 3
    # One part of each of three objects is right by chance.
    assert check.seen == f"mean accuracy of 7 parts {1 if knows else 3 / 7:.1%}; chance is {4 / 9:.1%}"
    task, cloud, given = asked[0]
    assert task == "zero-shot-point-cloud-segmentation" and given["up_axis"] == "y"
    assert given.get("none_label") is (False if settings else None)
    assert (cloud["colors"] == 0.5).all() and cloud["normals"].shape == cloud["points"].shape
    sizes = {"train_objects": 1, "validation_objects": 0, "test_objects": 12}
    assert asked_for == [("parts", {"split": "test", **sizes})]


@pytest.mark.parametrize(("right", "passed"), [(16, True), (15, False)])
def test_parts_have_to_be_half_as_often_right_again_as_by_chance(answering, data, right, passed):
    rows = labeled(24, ["cup bowl", "cup handle"], [[0, 1]], label=[0])
    data(rows)
    # The bowl is known, of the handle 5 or 6 in 12.
    labels = [*[0, 1] * (right - 10), *[0] * 2 * (22 - right)][:24]
    answering(lambda cloud, **_: {"labels": labels}, SimpleNamespace(config=SimpleNamespace()))
    check = published_checks._parts(NAME)
    assert check.seen.startswith(f"mean accuracy of 2 parts {(12 + right - 10) / 24:.1%}; chance is 50.0%")
    assert check.passed is passed


@pytest.mark.parametrize(
    ("chair", "lamp", "passed"),
    [
        ("A wooden Chair.", "a desk lamp", True),
        ("something with a seat", "the lamp", True),
        ("a table", "a lamp", False),
        ("a chair", "a seat", False),
    ],
)
def test_a_chat_names_chair_and_lamp(answering, chair, lamp, passed):
    asked = answering(lambda file, **_: [{"generated_text": chair if file.endswith("chair.ply") else lamp}])
    check = published_checks._chat(NAME)
    assert check.passed is passed and check.seen == f"chair: {chair.lower()!r}; lamp: {lamp.lower()!r}"
    task, _, given = asked[0]
    assert task == "point-cloud-text-to-text"
    assert given == {"text": "What is this?", "max_new_tokens": 48, "do_sample": False}


def test_a_quarter_of_the_objects_of_a_room_have_to_be_found(answering, data):
    true = np.array([[3.0 * number, 0, 0, 1, 2, 1, 0.3] for number in range(5)])
    asked_for, needed = data([{"points": np.zeros((9, 3)), "boxes": true}]), 2
    # A box that covers half of an object is enough, one that covers a fifth of it is not.
    for count, shares, passed in ((needed, 0.5, True), (needed, 0.2, False), (needed - 1, 1, False)):
        found = [
            {"box": {"center": box[:3], "size": box[3:6] * (1, 1, shares), "heading": box[6]}} for box in true[:count]
        ]
        asked = answering(lambda cloud, found=found, **_: found * 2)
        check = published_checks._boxes(NAME)
        hit = count if shares > 0.25 else 0
        assert check.passed is passed
        assert check.seen == f"{hit} of {len(true)} objects found among {2 * count} boxes, 25% expected"
    answering(lambda cloud, **_: [])
    check = published_checks._boxes(NAME)
    assert check.passed is False and check.seen.startswith(f"0 of {len(true)} objects found among 0 boxes")
    task, cloud, given = asked[0]
    assert task == "point-cloud-object-detection"
    assert given == {"up_axis": "z", "max_new_tokens": 1024, "do_sample": False}
    assert (cloud["colors"] == 0.5).all() and cloud["colors"].shape == cloud["points"].shape
    rooms = {"train_rooms": 1, "validation_rooms": 1, "test_rooms": 1}
    assert asked_for[0] == ("rooms_with_layouts", {"split": "test", **rooms, "num_points": 32_768})


class Remembers(nn.Module):
    """Knows as many classes as a weight says."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.known = nn.Parameter(torch.randint(3, (1,)).float())


def test_features_have_to_be_better_than_those_of_random_weights(monkeypatch, tmp_path, shapes):
    PointCloudProcessor().save_pretrained(tmp_path)
    monkeypatch.setattr(published_checks, "_shapes", shapes)
    pairs = (pair for split in ("train", "test") for pair in zip(*shapes(split, 20), strict=True))
    classes = {points.tobytes(): label for points, label in pairs}
    names, asked = sorted(set(classes.values())), []

    def pipeline(task, model, feature_extractor):
        def extract(clouds, up_axis):
            asked.append((task, model, type(feature_extractor), up_axis))
            numbers = [names.index(classes[cloud.tobytes()]) for cloud in clouds]
            # All classes that it does not know look alike.
            return [{"pooled": np.eye(20)[min(number, int(model.known))]} for number in numbers]

        return extract

    monkeypatch.setattr(published_checks, "_pipeline", pipeline)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        few = int(Remembers("config").known) + 2
    # Two more than random weights know are more than 10 points more, and may be chance.
    for known, passed in ((18, True), (few, False), (0, False)):
        model = Remembers("config")
        model.known.data.fill_(known)
        torch.manual_seed(7)
        expected = torch.rand(1)
        torch.manual_seed(7)
        check = published_checks._features(str(tmp_path), model, 20)
        assert torch.equal(torch.rand(1), expected)  # random weights are drawn apart
        share = 1 if passed else (known + 1) / len(names)
        assert check.passed is passed
        assert check.seen.startswith(f"class means are right for {share:.1%} of {len(names)} shapes")
    assert {one[::2] for one in asked} == {("point-cloud-feature-extraction", PointCloudProcessor)}
    assert {up for *_, up in asked} == {"y"}
    (control,) = {other for _, other, _, _ in asked[-4:]} - {model}
    assert control.config == "config" and not control.training and int(control.known) < 3


def test_a_judge_that_fails_is_a_failed_check_with_the_first_line_of_its_error(monkeypatch, tmp_path):
    model = nn.Linear(2, 2)
    model.config = SimpleNamespace(published={"file": "a.pt", "revision": "1", "sha256": "2", "more": 3})

    def judge(*given):
        assert given == (NAME, model, 9)
        raise ValueError("no such cloud" + "!" * 300 + "\nand more")

    monkeypatch.setattr(published_checks, "open_published", lambda name, accept_license: accept_license and model)
    monkeypatch.setattr(published_checks, "published_directory", lambda name: tmp_path)
    monkeypatch.setattr(published_checks, "_tensors", lambda *_: published_checks.Check("tensors", None, ""))
    monkeypatch.setattr(published_checks, "_judge", judge)
    record = published_checks.check_published(NAME, accept_license=True, clouds=9)
    assert record["passed"] is False and record["class"] == "Linear" and record["parameters"] == 6
    assert [check["name"] for check in record["checks"]] == ["tensors", "numbers", "answers"]
    seen = record["checks"][2]["seen"]
    assert seen.startswith("ValueError: no such cloud!") and len(seen) == 212 and "more" not in seen
    assert {name: record.get(name) for name in ("file", "revision", "sha256")} == {
        "file": "a.pt", "revision": "1", "sha256": "2"
    }  # fmt: skip
    assert record["weights_license"] is None and "more" not in record
    monkeypatch.setattr(published_checks, "_judge", lambda *_: [published_checks.Check("answers", None, "")])
    assert published_checks.check_published(NAME, accept_license=True)["passed"] is True  # nothing is wrong


def test_weights_that_are_zero_are_told_and_not_wrong():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert published_checks._numbers(model) == published_checks.Check("numbers", True, "finite")
    nn.init.zeros_(model[0].weight), nn.init.zeros_(model[0].bias)
    assert published_checks._numbers(model).seen == "finite; 1 weights are all zero"
    nn.init.constant_(model[1].bias, torch.inf)
    check = published_checks._numbers(model)
    assert check.passed is False and check.seen == "NaN or infinity in 1 tensors, such as 1.bias"


def test_names_have_their_size_where_there_are_several():
    names = published_checks.published_names()
    assert len(names) == sum(len(one.files) for one in PUBLISHED.values()) == len(set(names))
    assert "facebook/sonata:base" in names or "facebook/sonata" in names
    assert not any(name.endswith(":None") for name in names)
