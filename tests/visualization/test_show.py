"""Files, rows of datasets and the views of a model, shown on pages and pictures."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_any3d.data.files import PointCloudData, write_point_cloud
from hf_any3d.visualization import show
from hf_any3d.visualization.viewer import CloudView, in_space
from tests.errors import raises
from tests.visualization.test_viewer import content


def dataset(count=8, **columns):
    generator = np.random.default_rng(0)
    rows = {"points": [generator.normal(size=(40, 3)).tolist() for _ in range(count)]}
    rows |= {"label": [number % 2 for number in range(count)], "name": [f"<shape {n}>" for n in range(count)]}
    features = Features({"points": List(List(Value("float32"))), "label": ClassLabel(names=["chair", "lamp"])})
    features["name"] = Value("string")
    return Dataset.from_dict(rows, features=features)


def test_page_and_picture_of_a_file_show_its_colors_and_labels(tmp_path):
    points = np.random.default_rng(0).normal(size=(50, 3))
    points[:2] = [[-8, -4, -4], [8, 4, 4.25]]
    cloud = PointCloudData(points, np.full((50, 3), 0.5), labels=np.arange(50) % 3)
    write_point_cloud(tmp_path / "scan.ply", cloud)
    view, names = show.view_of_cloud(tmp_path / "scan.ply")
    assert view.title == "scan.ply" and view.note == "50 points · extent 16 × 8 × 8.25" and names == ["0", "1", "2"]
    page = show.write_views(tmp_path / "a.html", [view], names=names, title="scan")
    assert [one["name"] for one in content(page.read_text())[0]["colorings"]] == ["label", "color", "height"]
    assert show.write_views(tmp_path / "a.png", [view], names=names).read_bytes().startswith(b"\x89PNG")
    with raises(ValueError, naming="'.gif'"):
        show.write_views(tmp_path / "a.gif", [view], names=names)


def test_a_scan_of_one_class_is_shown_by_height_with_its_up_axis(tmp_path):
    points = np.random.default_rng(0).uniform(size=(50, 3)) * [40, 30, 5]
    view, names = show.view_of_cloud(PointCloudData(points, labels=np.full(50, 2), up_axis="z"))
    assert view.labels is None and names == [] and view.note.endswith(" · all with label 2")
    data, _ = content(show.write_views(tmp_path / "a.html", [view]).read_text())
    assert [one["name"] for one in data["colorings"]] == ["height"] and data["panels"][0]["up"] == "z"
    unlabeled, _ = show.view_of_cloud(PointCloudData(points, labels=np.full(50, -1)), names=["tree"])
    assert unlabeled.note.endswith(" · all with label -1")


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_an_axis_that_is_up_is_drawn_upwards_and_mirrors_nothing(axis):
    right, up, near = in_space(CloudView(np.eye(3), up_axis=axis), "y").T
    assert up.tolist() == np.eye(3)["xyz".index(axis)].tolist()
    assert np.linalg.det([right, up, near]) == pytest.approx(1)


def test_rows_of_a_dataset_are_a_grid_with_their_classes():
    views, settings = show.views_of_rows(dataset(), most=3)
    assert [view.title for view in views] == ["<shape 0>", "<shape 4>", "<shape 7>"]
    assert [view.category for view in views] == [0, 0, 1] and settings["categories"] == ["chair", "lamp"]
    assert settings["note"] == "3 of 8 clouds"
    predicted, _ = show.views_of_rows(dataset(), predictions=["chair"] * 8)
    assert [view.status for view in predicted[:2]] == ["right", "wrong"] and predicted[1].note == "lamp → chair"
    with raises(ValueError, naming="predictions: 1 for 8 rows"):
        show.views_of_rows(dataset(), predictions=["chair"])


def test_large_scenes_name_the_extra_that_serves_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    with raises(ImportError, naming="'hf-any3d[scenes]'"):
        show.serve_scene(np.zeros((3, 3)))


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


def test_scenes_are_served_with_all_points_and_their_labels_are_hidden(monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", SimpleNamespace(ViserServer=Server))
    points = np.random.default_rng(0).normal(size=(1000, 3)) + 1e6  # far from the origin
    scene = PointCloudData(points, colors=np.full((1000, 3), 0.5), labels=np.arange(1000) % 4 // 3)
    server = show.serve_scene(scene, names=["wall", "floor"], port=18080)
    assert server.settings["port"] == 18080 and server.settings["host"] == "127.0.0.1"
    assert server.cloud.points.shape == (1000, 3) and np.abs(server.cloud.points).max() < 6
    assert (server.cloud.colors == 128).all() and server.text == "1,000 points"
    server.controls["Color"].choose("label")
    assert len(np.unique(server.cloud.colors, axis=0)) == 2
    server.controls["wall"].choose(False)
    assert len(server.cloud.points) == len(server.cloud.colors) == 250
    size = server.cloud.point_size
    server.controls["Point size"].choose(2.0)
    assert server.cloud.point_size == pytest.approx(2 * size)
