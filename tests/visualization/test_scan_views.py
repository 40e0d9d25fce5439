"""How files, meshes, rows of datasets and scenes are shown: what is taken, in which order, with which words."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_any3d.data.files import PointCloudData
from hf_any3d.visualization import show
from tests.visualization.test_show import Server

POINTS = np.array([[0, 0, 0], [4, 0, 0], [0, 2.0, 1]])


def test_a_mesh_is_sampled_and_keeps_the_extent_of_its_corners(monkeypatch):
    monkeypatch.setattr(show, "MESH_POINTS", 50)
    colors = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
    cloud = PointCloudData(POINTS, colors, faces=np.array([[0, 1, 2]]), up_axis="x")
    view, names = show.view_of_cloud(cloud, title="mesh")
    expected = cloud.sample_surface(50, np.random.default_rng(0))
    np.testing.assert_array_equal(view.points, expected.points)
    np.testing.assert_array_equal(view.colors, expected.colors)
    assert (view.note, view.title, view.up_axis, names) == (
        "3 points, 1 faces · extent 4 × 2 × 1",
        "mesh",
        "x",
        [],
    )


@pytest.mark.parametrize(
    ("labels", "names", "shown", "found", "note"),
    [
        ([-1, -1, 0], None, [0, 0, 1], ["no label", "0"], ""),
        ([0, -1, 1], ["a", "b", "c"], [1, 0, 2], ["no label", "a", "b", "c"], ""),
        ([-1, -1, -1], ["a"], None, [], " · all with label -1"),
        ([0, 0, 0], ["a", "b"], None, [], " · all with label a"),
    ],
)
def test_points_without_a_label_have_a_name_of_their_own(labels, names, shown, found, note):
    view, own = show.view_of_cloud(PointCloudData(POINTS, labels=np.array(labels)), names=names)
    assert (None if view.labels is None else view.labels.tolist(), own) == (shown, found)
    assert view.note == f"3 points · extent 4 × 2 × 1{note}"


def rows(count: int = 5, **columns) -> Dataset:
    kinds = {
        "points": List(List(Value("float32"))),
        "colors": List(List(Value("float32"))),
        "label": ClassLabel(names=["chair", "lamp", "sofa"]),
        "labels": List(ClassLabel(names=["top", "legs"])),
        "name": Value("string"),
    }
    columns = {"points": [(POINTS + number).tolist() for number in range(count)], **columns}
    return Dataset.from_dict(columns, features=Features({name: kinds[name] for name in columns}))


def test_a_grid_shows_points_colors_labels_and_names_of_evenly_spread_rows():
    given = rows(
        5,
        colors=[[[0, number / 4, 1]] * 3 for number in range(5)],
        label=[0, 1, 2, 1, 0],
        labels=[[0, 1, number % 2] for number in range(5)],
        name=["a", "", None, "d", "e"],
    )
    views, settings = show.views_of_rows(given, most=4, predictions=["chair", "sofa", "sofa", "chair", "lamp"])
    assert settings == {"categories": ["chair", "lamp", "sofa"], "names": ["top", "legs"], "note": "4 of 5 clouds"}
    chosen = [0, 1, 3, 4]
    assert [view.title for view in views] == ["a", "row 1", "d", "e"]
    assert [view.category for view in views] == [0, 1, 1, 0]
    assert [view.status for view in views] == ["right", "wrong", "wrong", "wrong"]
    assert [view.note for view in views] == ["chair", "lamp → sofa", "lamp → chair", "chair → lamp"]
    for number, view in zip(chosen, views, strict=True):
        np.testing.assert_allclose(view.points, POINTS + number)
        np.testing.assert_allclose(view.colors, [[0, number / 4, 1]] * 3)
        assert view.labels.tolist() == [0, 1, number % 2]
    (one,), settings = show.views_of_rows(given, most=1)
    assert one.title == "a" and one.note == "chair" and one.status == "" and settings["note"] == "1 of 5 clouds"


def test_rows_without_classes_have_neither_category_nor_note():
    views, settings = show.views_of_rows(rows(2))
    assert [(view.category, view.note, view.labels, view.title) for view in views] == [
        (None, "", None, "row 0"),
        (None, "", None, "row 1"),
    ]
    assert settings == {"categories": [], "names": [], "note": "2 clouds"}
    numbers = [
        {"points": POINTS, "labels": [2, 0, 1], "label": 7},
        {"points": POINTS, "labels": [0, 0, 4], "label": 7},
    ]
    views, settings = show.views_of_rows(numbers)
    assert settings["names"] == ["0", "1", "2", "3", "4"] and views[0].category is None


def test_a_picture_or_a_page_gets_all_settings(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(show, "viewer_page", lambda clouds, **settings: made.append((clouds, settings)) or "page")
    from hf_any3d.visualization import figures

    monkeypatch.setattr(figures, "plot_views", lambda clouds, path, **more: made.append((clouds, path, more)) or path)
    settings = {"title": "t", "columns": 2}
    page = show.write_views(tmp_path / "a.HTML", ["cloud"], **settings)
    assert page.read_text() == "page" and made.pop() == (["cloud"], settings)
    picture = show.write_views(str(tmp_path / "a.PNG"), ["cloud"], **settings)
    assert picture == tmp_path / "a.PNG" and made == [(["cloud"], tmp_path / "a.PNG", settings)]


def test_a_map_hands_its_arguments_to_the_page_or_the_picture(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(show, "feature_map_page", lambda *given: made.append(given) or "page")
    monkeypatch.setattr(show, "_plot", lambda *given: made.append(given) or given[0])
    places, labels, names = [[0, 1], [2, 3]], [1, 0], ["a", "b"]
    page = show.write_feature_map(tmp_path / "a.html", places, labels, names, texts=["x", "y"], heading="h")
    assert page.read_text() == "page" and made[0][0].dtype == np.float64
    found = [value.tolist() if isinstance(value, np.ndarray) else value for value in made[0]]
    assert found == [places, labels, names, ["x", "y"], "h"]
    show.write_feature_map(tmp_path / "a.html", places, labels, names)
    assert made[1][3:] == ((), "")
    assert show.write_feature_map(tmp_path / "a.PNG", places, labels, names, heading="h") == tmp_path / "a.PNG"
    assert made[2][0] == tmp_path / "a.PNG" and made[2][3:] == (names, "h")


@pytest.fixture
def viser(monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", SimpleNamespace(ViserServer=Server))


def test_a_scene_offers_color_label_and_height_and_hides_several_labels(viser):
    generator = np.random.default_rng(0)
    points, labels = generator.uniform(-1, 1, (60, 3)) * [1, 2, 4], np.arange(60) % 3
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
    assert len(server.cloud.points) == 60


def test_a_scene_of_one_label_or_one_place_has_nothing_to_hide(viser):
    server = show.serve_scene(PointCloudData(POINTS[[0, 0, 0]], labels=np.array([0, 0, 0])))
    assert list(server.controls) == ["Color", "Point size"] and server.text == "3 points"
    # A scene without an extent has a radius all the same, from which it can be seen.
    assert server.initial_camera.position == pytest.approx((1.2e-6, 1.2e-6, 0.9e-6))
    assert server.cloud.point_size == pytest.approx(1e-8)
