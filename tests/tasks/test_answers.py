"""What doors say of answers: why one may be wrong, and with which setting it may be better."""

from types import SimpleNamespace

import numpy as np
import pytest

from hf_any3d.cli.task_options import doubt_in_words
from hf_any3d.data.files import PointCloudData
from hf_any3d.data.frames.floors import find_floor
from hf_any3d.modeling.layers.unknown_score import UnknownSettings
from hf_any3d.registry import TASKS

CLOUD = PointCloudData(np.random.default_rng(0).random((64, 3)))


def answers(up_axis, door="service", **settings):
    config = SimpleNamespace(problem_type=None, id2label={0: "chair", 1: "lamp"}, unknown=UnknownSettings(width=1))
    pipe = SimpleNamespace(model=SimpleNamespace(config=config), up_axis="y")
    task = TASKS["point-cloud-classification"]
    values = {"top_k": 5, "votes": None, "unknown": None, "up_axis": up_axis} | settings
    return task.answers_class()(pipe, task.settings, values, door)


def test_the_most_familiar_of_the_other_axes_is_proposed_if_it_is_clearly_so():
    turned = {"x": None, "y": [{"label": "chair", "unknown": 0.029}], "z": [{"label": "lamp", "unknown": 0.02}]}

    def doubt(up_axis, score, **settings):
        result = [{"label": "bed", "unknown": score}]
        return answers(up_axis, **settings).doubt(CLOUD, result, lambda _, axis: turned.get(axis))

    found = doubt("x", 0.4)
    assert str(found) == "if z points up it looks like lamp: try up_axis='z'"
    assert doubt_in_words(found) == "if z points up it looks like lamp: try --up-axis z"
    assert "y points up" in doubt("z", 0.12).text and doubt("z", 0.11) is None
    assert doubt("x", 0.4, unknown=False) is None, "whoever wants no unknown score wants no doubts"
    turned["y"][0]["label"] = None
    assert doubt("z", 1.0) is None


def test_an_axis_is_doubtful_too_if_a_turned_cloud_is_as_sure_of_another_class():
    def doubt(label, score, unknown=0.03):
        again = {"z": [{"label": "lamp", "score": 0.9, "unknown": 0.02}]}
        own = [{"label": label, "score": score, "unknown": unknown}]
        return answers("y").doubt(CLOUD, own, lambda _, axis: again.get(axis))

    assert "z points up" in doubt("chair", 0.9).text and "z points up" in doubt("chair", 0.6).text
    assert doubt("chair", 0.95) is None and doubt("lamp", 0.9) is None and doubt("chair", 0.9, unknown=0.015) is None


@pytest.mark.parametrize("up_axis", "xyz")
def test_a_floor_below_a_cloud_is_told_rather_than_a_turn(up_axis):
    up = "xyz".index(up_axis)
    generator = np.random.default_rng(0)
    chair = generator.random((500, 3)) * 0.4 + 0.3
    floor = generator.random((300, 3))
    floor[:, up] = 0.3 + 0.01 * generator.random(300)
    asked = []

    def again(cloud, axis):
        asked.append((len(cloud), axis))
        return [{"label": "chair", "score": 0.9, "unknown": 0.01 if len(cloud) < 600 else 0.4}]

    cloud = PointCloudData(np.concatenate([chair, floor]))
    found = answers("y").doubt(cloud, [{"label": "lamp", "score": 0.9, "unknown": 0.4}], again)
    assert 400 < asked[0][0] < 500 and asked[0][1] == up_axis
    assert "floor" in found.text and found.advice == (None if up_axis == "y" else ("up_axis", up_axis))
    assert find_floor(chair, up_axis) is None

    # Neither helps, and what stands on a floor is not to be turned.
    alike = [{"label": "chair", "score": 0.9, "unknown": 0.01}]

    def turned(cloud, axis):
        return alike if len(cloud) == 800 else [{"label": None, "unknown": 0.9}]

    found = answers("y").doubt(cloud, [{"label": "lamp", "score": 0.9, "unknown": 0.4}], turned)
    assert (found is None) == (up_axis == "y")


def test_a_scan_from_one_side_is_doubtful_and_rows_do_not_have_the_score():
    result = [{"label": "bed", "score": 0.9, "one_sided": 0.8}]
    made = answers("y")
    assert "from one side" in made.doubt(CLOUD, result, lambda *_: None).text
    assert made.row(result) == {"predictions": [{"label": "bed", "score": 0.9}]}


@pytest.mark.parametrize("up_axis", ["x", None])
def test_the_service_tells_doubts(up_axis):
    tasks = pytest.importorskip("hf_any3d.serving.tasks")

    class Pipe:
        model = answers(None).pipe.model
        up_axis = "y"

        def __call__(self, clouds, *, batch_size, progress, up_axis=None, one_sided=False, **_):
            # Familiar if z points up, strange otherwise
            unknown = 0.001 if up_axis == "z" else 0.4
            return [[{"label": "lamp", "score": 1.0, "unknown": unknown}] for _ in clouds]

    route = tasks.Route("/v1/classify", "point-cloud-classification", Pipe(), tasks.SETTINGS_OF["/v1/classify"])
    (shown,) = route.run(route.settings(up_axis=up_axis), [CLOUD], 1)
    assert shown["doubt"] == "if z points up it looks like lamp: try up_axis='z'"
    (quiet,) = route.run(route.settings(up_axis="z"), [CLOUD], 1)
    assert quiet == {"labels": [{"label": "lamp", "score": 1.0, "unknown": 0.001}]}
