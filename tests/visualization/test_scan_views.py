"""How files, meshes, rows of datasets and scenes are shown: what is taken, in which order, with which words."""

import sys

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_any3d.data.files import PointCloudData
from hf_any3d.visualization import show

POINTS = np.array([[0, 0, 0], [4, 0, 0], [0, 2.0, 1]])


def test_files_with_unlabeled_points_and_without_share_their_legend():
    clouds = [PointCloudData(POINTS, labels=np.array(labels)) for labels in ([0, 1, 2], [-1, 0, 1], [1, 1, 1])]
    views, names = zip(*(show.view_of_cloud(cloud) for cloud in clouds), strict=True)
    assert show.share_legend(views, names) == ["no label", "0", "1", "2"]
    assert [view.labels.tolist() for view in views[:2]] == [[1, 2, 3], [0, 1, 2]] and views[2].labels is None
    assert show.share_legend(views[:1], [["a", "b"]]) == ["a", "b"]


def labeled_rows(labels, kind=None):
    columns = {"points": [POINTS.tolist()] * len(labels), "labels": labels}
    kinds = {"points": List(List(Value("float32"))), "labels": List(kind or Value("int64"))}
    return Dataset.from_dict(columns, features=Features(kinds))


def test_labels_of_points_are_shown_if_all_clouds_have_them():
    views, settings = show.views_of_rows(labeled_rows([[0, 1, 3], [0, 0, 2]]))
    assert settings == {"categories": [], "names": ["0", "1", "2", "3"], "note": "2 clouds"}
    assert [view.labels.tolist() for view in views] == [[0, 1, 3], [0, 0, 2]] and views[0].category is None
    assert [view.title for view in views] == ["row 0", "row 1"] and views[0].note == ""
    named = labeled_rows([[0, 1, 1], [0, 0, 1]], ClassLabel(names=["wall", "floor"]))
    assert show.views_of_rows(named)[1]["names"] == ["wall", "floor"]
    for missing in ([[0, 1, 1], None], [[0, 1, 1], [0, -1, 1]]):
        assert [view.labels for view in show.views_of_rows(labeled_rows(missing))[0]] == [None, None]
    assert [view.title for view in show.views_of_rows(labeled_rows([[0] * 3] * 5), most=2)[0]] == ["row 0", "row 4"]


class Control:
    """A control of viser's panel, or what it controls."""

    def __init__(self, value=None, **settings):
        self.value, self.react = value, None
        vars(self).update(settings)

    def on_update(self, react):
        self.react = react

    def choose(self, value):
        self.value = value
        self.react(None)


class Server:
    """The part of viser's server that `serve_scene` uses."""

    def __init__(self, **settings):
        self.settings, self.controls = settings, {}
        self.scene = self.gui = self
        self.initial_camera = Control()

    def add_point_cloud(self, name, points, colors, point_size):
        self.cloud = Control(points=points, colors=colors, point_size=point_size)
        return self.cloud

    def add_markdown(self, text):
        self.text = text

    def add_dropdown(self, name, options):
        return self.controls.setdefault(name, Control(options[0]))

    def add_slider(self, name, initial_value, **limits):
        return self.controls.setdefault(name, Control(initial_value))

    def add_checkbox(self, name, initial_value):
        return self.controls.setdefault(name, Control(initial_value))


def test_a_scene_offers_color_label_and_height_and_hides_several_labels(tmp_path, monkeypatch):
    (tmp_path / "viser.py").write_text(f"from {__name__} import Server as ViserServer")
    monkeypatch.syspath_prepend(tmp_path)
    generator = np.random.default_rng(0)
    points, labels = generator.uniform(-1, 1, (60, 3)) * [1, 2, 4] + 1e6, np.arange(60) % 3  # far from the origin
    colors = generator.random((60, 3))
    server = show.serve_scene(
        PointCloudData(points, colors, labels=labels), host="0.0.0.0", port=9, names=["a", "b", "c"]
    )
    assert server.settings == {"host": "0.0.0.0", "port": 9, "label": "scene", "verbose": False}
    shown = (points - (points.min(axis=0) + points.max(axis=0)) / 2).astype(np.float32)
    np.testing.assert_allclose(server.cloud.points, shown, atol=1e-6)
    assert server.cloud.points.dtype == np.float32 and server.cloud.points.flags["C_CONTIGUOUS"]
    assert list(server.controls) == ["Color", "Point size", "a", "b", "c"]
    expected = {
        "color": colors,
        "label": show.label_colors(3)[labels],
        "height": show.height_colors(shown[:, 2], shown[:, 2].min(), shown[:, 2].max()),
    }
    for name, values in expected.items():
        server.controls["Color"].choose(name)
        np.testing.assert_allclose(server.cloud.colors, np.rint(255 * values), atol=1)
        assert server.cloud.colors.dtype == np.uint8 and len(server.cloud.points) == 60
    server.controls["a"].choose(False)
    server.controls["c"].choose(False)
    np.testing.assert_allclose(server.cloud.points, shown[labels == 1], atol=1e-6)
    np.testing.assert_allclose(server.cloud.colors, np.rint(255 * expected["height"][labels == 1]), atol=1)
    server.controls["b"].choose(False)
    assert len(server.cloud.points) == len(server.cloud.colors) == 0
    for name in "abc":
        server.controls[name].choose(True)
    assert len(server.cloud.points) == 60 and server.text == "60 points"
    size = server.cloud.point_size
    server.controls["Point size"].choose(2.0)
    assert server.cloud.point_size == pytest.approx(2 * size)
    del sys.modules["viser"]
