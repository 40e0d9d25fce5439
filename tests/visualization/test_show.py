"""Files, rows of datasets and the views of a model, shown on pages and pictures."""

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
    assert [one["name"] for one in content(page.read_text())[0]["colorings"]] == ["label", "own colors", "height"]
    assert show.write_views(tmp_path / "a.png", [view], names=names).read_bytes().startswith(b"\x89PNG")
    with raises(ValueError, naming="'.gif'"):
        show.write_views(tmp_path / "a.gif", [view], names=names)


def test_a_scan_of_one_class_is_shown_by_height_with_its_up_axis(tmp_path):
    points = np.random.default_rng(0).uniform(size=(50, 3)) * [40, 30, 5]
    view, names = show.view_of_cloud(PointCloudData(points, labels=np.full(50, 2), up_axis="z"))
    assert view.labels is None and names == [] and view.note.endswith(" · class of all points: 2")
    data, _ = content(show.write_views(tmp_path / "a.html", [view]).read_text())
    assert [one["name"] for one in data["colorings"]] == ["height"] and data["panels"][0]["up"] == "z"
    unlabeled, _ = show.view_of_cloud(PointCloudData(points, labels=np.full(50, -1)), names=["tree"])
    assert unlabeled.note.endswith(" · class of all points: -1")


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
