"""What a page says about the answers of a pipeline, which are given here."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_any3d.data.example_shapes import ExampleShapes, first_known
from hf_any3d.data.files import PointCloudData
from hf_any3d.data.frames.axes import turn_up_axis
from hf_any3d.modeling.records import FEATURES
from tests.demo import task_pages

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


def ask(task, pipe, shape, examples=(), **settings):
    shapes = SimpleNamespace(names=list(examples), get=dict(examples).get if examples else None)
    return task_pages.TaskAnswers(task, pipe, shapes).ask(shape, **settings)


def test_a_cloud_of_no_class_is_told():
    pipe = Given([{"label": None, "score": 0.5, "unknown": 0.75}, {"label": "chair", "score": 0.25}])
    found = ask(CLASSES, pipe, cloud(64, labels=np.arange(64), colors=np.full((64, 3), 0.5)), up_axis="z")
    assert found.rows == [("none of these", 0.75), ("chair", 0.25)] and found.note.startswith("64 points; unlike")
    assert pipe.asked[0][1] == {"top_k": 8, "keep_labels": True, "up_axis": "z", "one_sided": True, "other_axis": True}
    assert found.settings == {}
    (view,) = found.clouds
    assert view.labels is None and view.note == "" and view.colors is not None, "labels of the file are no answer"


def test_a_cloud_is_shown_as_the_model_has_seen_it():
    answer = [{"label": "chair", "score": 0.5, "up_axis": "-z", "up_source": "found"}]
    shape = cloud(64, up_axis="z")
    found = ask(CLASSES, Given(answer, up_axis="y"), shape)
    (view,) = found.clouds
    np.testing.assert_array_equal(view.points, turn_up_axis(shape.points, "-z", "y"))
    assert view.up_axis is None and "; -z is up by its shape" in found.note


def test_models_of_parts_get_the_kind_of_the_object():
    segments = {"points": np.eye(3), "labels": np.zeros(3, int), "segments": []}
    config = {"num_categories": 2, "category_names": ["ship", "car"], "id2label": {0: "a"}, "num_labels": 1}
    pipe = Given(segments, config, label_names=lambda: ("a",))
    ask("point-cloud-segmentation", pipe, cloud(), category="car")
    assert pipe.asked[0][1] == {"category": "car"}


def test_examples_are_compared_by_cosines_once_and_in_their_own_frame():
    examples = {
        str(number): np.array([np.cos(number / 50), np.sin(number / 50)]) * (number + 1) for number in range(45)
    }
    pipe = Given(lambda shape: {"pooled": np.array([2.0, 0.0]) if isinstance(shape, PointCloudData) else shape})
    answers = task_pages.TaskAnswers(FEATURES, pipe, SimpleNamespace(names=list(examples), get=examples.get))
    first = answers.ask(cloud(), up_axis="x")
    assert [name for name, _ in first.rows] == list("01234567")
    assert [score for _, score in first.rows] == pytest.approx([np.cos(number / 50) for number in range(8)])
    assert [settings for _, settings in pipe.asked] == [{"up_axis": "x"}] + 40 * [{}]
    assert answers.ask(cloud()).rows == first.rows and len(pipe.asked) == 42, "features of examples are kept"
    zero = task_pages.TaskAnswers(
        FEATURES, Given({"pooled": np.zeros(2)}), SimpleNamespace(names=["a"], get={"a": 0}.get)
    )
    assert zero.ask(cloud()).rows == [("a", 0.0)]


@pytest.mark.parametrize(
    ("labels", "first"),
    [(["lamp", "sofa"], "a desk_lamp.ply"), (["TABLE"], "table by me"), (["tab", "amp"], "chair"), ([], "chair")],
)
def test_the_first_shape_is_one_that_the_model_may_know(labels, first):
    assert first_known(["chair", "table by me", "a desk_lamp.ply"], labels) == first
    assert first_known([], labels) is None


def test_shapes_of_the_package_are_whole_and_not_doubted(tmp_path):
    pipe = Given([{"label": "chair", "score": 0.5, "one_sided": 0.9}], up_axis="y")
    assert "seen from one side" in ask(CLASSES, pipe, cloud(64)).note
    shapes = ExampleShapes()
    for name in shapes.names:
        assert shapes.is_shipped(shapes.get(name))
    (tmp_path / "chair.ply").write_bytes(b"")
    own = ExampleShapes(tmp_path)
    assert own.get("chair.ply") == tmp_path / "chair.ply" and not own.is_shipped(own.get("chair.ply"))
    assert not shapes.is_shipped(cloud(64)) and ask(CLASSES, pipe, cloud(64), is_doubted=False).note == "64 points"
