"""What a page says about the answers of a pipeline, which are given here."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_any3d.data.files import PointCloudData
from hf_any3d.demo.task_pages import FEATURES, TaskAnswers, thinned

CLASSES, BOXES = "point-cloud-classification", "point-cloud-object-detection"


class Given:
    """A pipeline with one answer; it keeps what it was asked."""

    def __init__(self, answer, config=None, **attributes):
        self.model, self.answer, self.asked = torch.nn.Identity(), answer, []
        self.model.config = SimpleNamespace(**{"problem_type": None} | (config or {}))
        vars(self).update(attributes)

    def __call__(self, cloud, **settings):
        self.asked.append((cloud, settings))
        return self.answer(cloud) if callable(self.answer) else self.answer


def cloud(count=4, **fields):
    return PointCloudData(np.random.default_rng(0).normal(size=(count, 3)), **fields)


def mesh(**fields):
    return cloud(faces=np.array([[0, 1, 2], [0, 1, 3]]), **fields)


def box(label, score=None):
    return {"label": label, "score": score, "box": {"corners": np.zeros((8, 3)).tolist()}}


def ask(task, pipe, shape, *words, examples=(), **settings):
    shapes = SimpleNamespace(names=list(examples), get=dict(examples).get if examples else None)
    return TaskAnswers(task, pipe, shapes).ask(shape, *words, **settings)


def test_a_cloud_of_no_class_is_told():
    pipe = Given([{"label": None, "score": 0.5, "unknown": 0.75}, {"label": "chair", "score": 0.25}])
    found = ask(CLASSES, pipe, cloud(labels=np.arange(4), colors=np.full((4, 3), 0.5)), up_axis="z")
    assert found.rows == [("none of these", 0.5), ("chair", 0.25)] and found.note == "4 points"
    assert pipe.asked[0][1] == {"top_k": 8, "up_axis": "z"} and found.settings == {}
    (view,) = found.clouds
    assert view.labels is None and view.note == "" and view.colors is not None, "labels of the file are no answer"


def test_meshes_are_never_thinned_but_sampled_to_draw_boxes():
    pipe = Given([{"label": "chair", "score": 1.0}])
    faces = mesh()
    faces.points = np.concatenate([faces.points, np.ones((100_000, 3), np.float32)])
    assert ask(CLASSES, pipe, faces).note == "a mesh of 2 faces, sampled on its surface"
    assert pipe.asked[0][0] is faces
    boxes = Given([], labels=["chair"], has_scores=True)
    (view,) = ask(BOXES, boxes, faces).clouds
    assert len(view.points) == len(boxes.asked[0][0]) == 10_000, "a tenth of the points of a cloud"
    exact = cloud(100_000)
    ask(CLASSES, pipe, exact)
    assert pipe.asked[-1][0] is exact


def test_thinned_clouds_keep_the_order_and_all_that_belongs_to_a_point():
    numbers = np.arange(50)
    each = {"colors": np.repeat(numbers[:, None], 3, axis=1) / 50, "labels": numbers}
    each["normals"] = np.repeat(numbers[:, None], 3, axis=1)
    each["intensity"] = numbers
    found = thinned(PointCloudData(np.eye(3)[numbers % 3], **each, offset=np.array([1, 2, 3]), up_axis="z"), 20)
    assert found.up_axis == "z"
    assert len(found) == 20 == len(set(found.labels)) and list(found.labels) == sorted(found.labels)
    for name, values in each.items():
        np.testing.assert_array_equal(
            getattr(found, name), np.asarray(values, getattr(found, name).dtype)[found.labels]
        )
    assert found.offset.tolist() == [1, 2, 3] and thinned(cloud(50), 20).labels is None
    np.testing.assert_array_equal(thinned(cloud(50), 20).points, thinned(cloud(50), 20).points)


def test_boxes_below_the_threshold_are_drawn_for_the_slider_and_not_listed():
    pipe = Given([box("chair", 0.9), box("lamp", 0.5), box("lamp", 0.499)], labels=["lamp", "chair"], has_scores=True)
    found = ask(BOXES, pipe, cloud(colors=np.full((4, 3), 0.5), offset=np.array([5, 0, 0])))
    assert found.rows == [("chair", 0.9), ("lamp", 0.5)] and found.note == "4 points"
    assert pipe.asked[0][1] == {"threshold": 0.05}
    assert found.settings == {"box_names": ["lamp", "chair"], "threshold": 0.5} and list(found.colors) == [
        "lamp",
        "chair",
    ]
    (view,) = found.clouds
    assert [(one.label, one.score) for one in view.boxes] == [("chair", 0.9), ("lamp", 0.5), ("lamp", 0.499)]
    np.testing.assert_allclose(view.points, cloud().points + [5, 0, 0], rtol=1e-6)
    assert view.colors is not None


def test_boxes_without_scores_are_counted():
    pipe = Given([box("bed"), box("lamp"), box("bed")], labels=["lamp"], has_scores=False)
    found = ask(BOXES, pipe, cloud())
    assert found.rows == [] and found.note == "4 points; bed 2, lamp 1" and pipe.asked[0][1] == {}
    assert found.settings["box_names"] == ["lamp", "bed"] == list(found.colors), "also what it was not trained on"


def test_parts_keep_the_colors_of_clouds_but_not_of_meshes():
    segments = [{"label": "leg", "mask": np.array([1, 1, 1, 0], bool)}, {"label": "top", "mask": np.arange(4) > 2}]
    answer = {"points": cloud().points, "labels": np.array([1, 1, 1, 0]), "segments": segments}
    pipe = Given(answer, {"id2label": {0: "top", 1: "leg"}, "num_labels": 2, "num_categories": 0})
    colors = np.random.default_rng(1).random((4, 3))
    found = ask("point-cloud-segmentation", pipe, cloud(colors=colors))
    assert found.rows == [("leg", 0.75), ("top", 0.25)] and found.settings == {
        "names": ["top", "leg"],
        "label_name": "part",
    }
    np.testing.assert_allclose(found.clouds[0].colors, colors, rtol=1e-6)
    assert pipe.asked[0][1] == {} and list(found.colors) == ["top", "leg"]
    sampled = ask("point-cloud-segmentation", pipe, cloud(9, colors=np.zeros((9, 3))))
    assert sampled.clouds[0].colors is None and np.array_equal(sampled.clouds[0].labels, answer["labels"])


def test_models_of_parts_get_the_kind_of_the_object():
    segments = {"points": np.eye(3), "labels": np.zeros(3, int), "segments": []}
    config = {"num_categories": 2, "category_names": ["ship", "car"], "id2label": {0: "a"}, "num_labels": 1}
    pipe = Given(segments, config)
    ask("point-cloud-segmentation", pipe, cloud(), category="car")
    assert pipe.asked[0][1] == {"category": "car"}


def test_examples_are_compared_by_cosines_once_and_in_their_own_frame():
    examples = {
        str(number): np.array([np.cos(number / 50), np.sin(number / 50)]) * (number + 1) for number in range(45)
    }
    pipe = Given(lambda shape: {"pooled": np.array([2.0, 0.0]) if isinstance(shape, PointCloudData) else shape})
    answers = TaskAnswers(FEATURES, pipe, SimpleNamespace(names=list(examples), get=examples.get))
    first = answers.ask(cloud(), up_axis="x")
    assert [name for name, _ in first.rows] == list("01234567")
    assert [score for _, score in first.rows] == pytest.approx([np.cos(number / 50) for number in range(8)])
    assert [settings for _, settings in pipe.asked] == [{"up_axis": "x"}] + 40 * [{}]
    assert answers.ask(cloud()).rows == first.rows and len(pipe.asked) == 42, "features of examples are kept"
    zero = TaskAnswers(FEATURES, Given({"pooled": np.zeros(2)}), SimpleNamespace(names=["a"], get={"a": 0}.get))
    assert zero.ask(cloud()).rows == [("a", 0.0)]
