"""What is shown of a cloud, of rows of a dataset and of reconstructions, and in which words."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_any3d.data.files import PointCloudData
from hf_any3d.visualization import figures, reconstruction, show
from hf_any3d.visualization.figures import _below, _legend, plot_point_clouds
from hf_any3d.visualization.reconstruction import (
    MaskedReconstruction,
    write_masked_reconstructions,
    write_reconstructions,
)
from hf_any3d.visualization.viewer import CloudView, label_colors
from tests.errors import raises
from tests.visualization.test_show import Server

POINTS = np.array([[0, 0, 0], [4, 0, 0], [0, 2.0, 1]])


@pytest.mark.parametrize(
    ("labels", "names", "shown", "found", "note"),
    [
        (None, None, None, [], ""),
        ([0, 2, 1], None, [0, 2, 1], ["0", "1", "2"], ""),
        ([0, 1, 1], ["a", "b", "c"], [0, 1, 1], ["a", "b", "c"], ""),
        ([1, 1, 1], ["a", "b"], None, [], " · all with label b"),
        ([1, 1, 1], None, None, [], " · all with label 1"),
        ([-1, 1, 1], None, [0, 2, 2], ["no label", "0", "1"], ""),
    ],
)
def test_a_cloud_is_shown_with_its_size_and_the_names_of_its_labels(labels, names, shown, found, note):
    cloud = PointCloudData(POINTS, labels=None if labels is None else np.array(labels), up_axis="z")
    view, own = show.view_of_cloud(cloud, title="scan", names=names)
    assert view.note == f"3 points · extent 4 × 2 × 1{note}" and own == found and view.title == "scan"
    assert (None if view.labels is None else view.labels.tolist()) == shown and view.up_axis == "z"
    again, _ = show.view_of_cloud(PointCloudData(POINTS, faces=np.array([[0, 1, 2]])))
    other, _ = show.view_of_cloud(PointCloudData(POINTS, faces=np.array([[0, 1, 2]])))
    assert np.array_equal(again.points, other.points), "the same file gives the same page"


def rows(labels, kind=None):
    columns = {"points": [POINTS.tolist()] * len(labels), "labels": labels}
    kinds = {"points": List(List(Value("float32"))), "labels": List(kind or Value("int64"))}
    return Dataset.from_dict(columns, features=Features(kinds))


def test_labels_of_points_are_shown_if_all_clouds_have_them():
    views, settings = show.views_of_rows(rows([[0, 1, 3], [0, 0, 2]]))
    assert settings == {"categories": [], "names": ["0", "1", "2", "3"], "note": "2 clouds"}
    assert [view.labels.tolist() for view in views] == [[0, 1, 3], [0, 0, 2]] and views[0].category is None
    assert [view.title for view in views] == ["row 0", "row 1"] and views[0].note == ""
    named = rows([[0, 1, 1], [0, 0, 1]], ClassLabel(names=["wall", "floor"]))
    assert show.views_of_rows(named)[1]["names"] == ["wall", "floor"]
    for missing in ([[0, 1, 1], None], [[0, 1, 1], [0, -1, 1]]):
        assert [view.labels for view in show.views_of_rows(rows(missing))[0]] == [None, None]
    assert [view.title for view in show.views_of_rows(rows([[0] * 3] * 5), most=2)[0]] == ["row 0", "row 4"]
    for wrong, most in ((rows([[0] * 3]), 0), (rows([]), 1)):
        with pytest.raises(ValueError, match=f"there are {len(wrong)} rows, of which {most} are to be shown"):
            show.views_of_rows(wrong, most)


@pytest.mark.parametrize("perplexity", [0, -1, 5])
def test_a_map_needs_more_clouds_than_neighbors(perplexity):
    with pytest.raises(
        ValueError, match=f"perplexity: {perplexity}; expected more than 0 and less than 5, the clouds"
    ):
        show.project_features(np.eye(5), perplexity=perplexity)


def test_a_map_is_laid_out_by_the_settings(monkeypatch):
    seen = []

    class TSNE:
        def __init__(self, **settings):
            seen.append(settings)

        def fit_transform(self, features):
            return features[:, :2].astype(np.float64)

    monkeypatch.setitem(sys.modules, "sklearn.manifold", SimpleNamespace(TSNE=TSNE))
    found = show.project_features(np.eye(5), perplexity=4, metric="euclidean", seed=1, method="scikit-learn")
    assert found.dtype == np.float32 and np.array_equal(found, np.eye(5)[:, :2])
    assert seen == [{"init": "pca", "perplexity": 4, "metric": "euclidean", "random_state": 1}]


@pytest.mark.parametrize(
    ("labels", "message"), [([0, -1], "labels run from -1 to 0"), ([0], r"labels \(1,\); expected")]
)
def test_a_map_needs_a_class_of_each_cloud(labels, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        show.write_feature_map(tmp_path / "a.html", np.zeros((2, 2)), np.array(labels), ["a"])
    with raises(ValueError, naming="places have shape"):
        show.write_feature_map(tmp_path / "a.html", np.zeros((0, 2)), np.zeros(0, int), ["a"])


def test_a_page_of_a_map_names_its_classes(monkeypatch):
    made = []
    monkeypatch.setattr(show, "viewer_page", lambda views, **settings: made.append((views, settings)) or "page")
    show.feature_map_page(np.zeros((2, 2)), np.array([0, 1]), ["a", "b"], (), "")
    show.feature_map_page(np.zeros((2, 2)), np.array([0, 1]), ["a", "b"], ["x", "y"], "own")
    ((view,), plain), ((other,), named) = made
    assert plain == {"names": ["a", "b"], "label_name": "class", "title": "features"} and view.texts is None
    assert named["title"] == "own" and other.texts == ["x", "y"]


def test_a_scene_is_seen_from_a_corner_with_points_that_nearly_touch(monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", SimpleNamespace(ViserServer=Server))
    cloud = PointCloudData(np.random.default_rng(0).uniform(-1, 1, (1000, 3)) * [3, 2, 1])
    server = show.serve_scene(cloud)
    points = server.cloud.points
    radius = np.linalg.norm(np.ptp(points, axis=0)) / 2
    np.testing.assert_allclose(points.min(axis=0), -points.max(axis=0), atol=1e-6)
    np.testing.assert_allclose(server.initial_camera.position, np.array([1.2, 1.2, 0.9]) * radius, rtol=1e-5)
    assert server.initial_camera.look_at == (0, 0, 0) and server.settings["label"] == "scene"
    assert server.cloud.point_size == pytest.approx(radius / 100), "not too large for few points"
    assert server.settings["port"] == 8080 and list(server.controls) == ["Color", "Point size"]
    top, bottom = points[:, 2].argmax(), points[:, 2].argmin()
    assert server.cloud.colors[top].tolist() == [253, 231, 37] and server.cloud.colors[bottom].tolist() == [68, 1, 84]
    one = show.serve_scene(PointCloudData(POINTS, labels=np.array([0, 1, 1])), names=["a", "b"])
    assert {"a", "b"} <= set(one.controls) and one.cloud.colors[1].tolist() == np.rint(
        255 * label_colors(2)[1]
    ).tolist()
    many = show.serve_scene(PointCloudData(np.repeat(cloud.points, 100, axis=0)))
    assert many.cloud.point_size == pytest.approx(1.2 * radius / np.sqrt(100_000), rel=1e-5)


def test_reconstructions_are_rows_of_input_coarse_and_fine(monkeypatch):
    made = []
    monkeypatch.setattr(reconstruction, "write_rows", lambda *one, **more: made.append((one, more)))
    answer = {"points": "p", "coarse": [1, 2], "reconstruction": "r", "chamfer_l1": 0.01234, "f_score": 0.5}
    write_reconstructions("a.html", [answer, answer], ["x", "y"], up_axis="z")
    (((path, clouds, titles), settings),) = made
    assert path == "a.html" and clouds == ["p", [1, 2], "r"] * 2
    assert titles[:3] == ["x", "coarse: 2 points", "fine: CD-L1 0.0123, F 0.50"] and titles[3] == "y"
    assert settings == {"columns": 3, "title": "reconstructions", "up_axis": "z"}


def test_masked_reconstructions_show_what_was_seen_in_gray(monkeypatch):
    made = []
    monkeypatch.setattr(reconstruction, "write_rows", lambda *one, **more: made.append((one, more)))
    patches = [np.full((count, 2, 3), float(count)) for count in (3, 1, 1, 1)]
    one = MaskedReconstruction(*patches, guessed_chamfer=0.25, taught_chamfer=0.125)
    write_masked_reconstructions("a.png", [one], ["x"])
    (((_, clouds, titles), settings),) = made
    assert titles == ["x: 3 of 4 patches", "guessed: CD-L1 0.2500", "from the teacher: CD-L1 0.1250", "truth"]
    assert [len(cloud) for cloud in clouds] == [6, 8, 8, 8] and settings["columns"] == 4 and settings["up_axis"] == "y"
    legend = settings["legend"]
    assert list(legend) == ["seen", "guessed, decoded", "teacher's features, decoded", "hidden"]
    np.testing.assert_allclose([cloud[0, 3:] for cloud in clouds], [legend["seen"]] * 4, rtol=1e-6)
    np.testing.assert_allclose([cloud[-1, 3:] for cloud in clouds], list(legend.values()), rtol=1e-6)


@pytest.mark.parametrize("ending", ["HTML", "PNG"])
def test_rows_of_clouds_are_a_page_or_a_picture(ending, monkeypatch):
    made = []
    for name in ("write_clouds_page", "plot_point_clouds"):
        monkeypatch.setattr(reconstruction, name, lambda *one, name=name, **more: made.append((name, one, more)))
    reconstruction.write_rows(f"a.{ending}", ["c"], ["t"], columns=2, title="all", up_axis="z", legend={"l": 1})
    ((name, (path, clouds), settings),) = [(n, sorted(map(str, o)), s) for n, o, s in made]
    shared = {"titles": ["t"], "columns": 2, "up_axis": "z", "legend": {"l": 1}}
    assert {path, clouds} == {f"a.{ending}", "['c']"}
    if ending == "HTML":
        assert name == "write_clouds_page" and settings == shared | {"title": "all"}
    else:
        assert name == "plot_point_clouds" and settings == shared | {
            "rows_share_frame": True,
            "cell": 3.0,
            "zoom": 0.95,
        }


def test_a_legend_lists_the_labels_that_occur():
    first, second = CloudView(POINTS, labels=np.array([0, 2, 2])), CloudView(POINTS, labels=np.array([0, 0, 0]))
    found = _legend([first, second], ["a", "b", "c"], {"own": (1, 0, 0)})
    assert list(found) == ["a", "c"] and found["c"] == label_colors(3)[2].tolist()
    assert _legend([first, CloudView(POINTS)], ["a"], {"own": (1, 0, 0)}) == {"own": (1, 0, 0)}
    assert _legend([CloudView(POINTS)], [], None) == {}


def test_a_note_or_the_category_stands_below_a_cloud():
    assert _below(CloudView(POINTS, note="n", category=1), ["a", "b"]) == "n"
    assert _below(CloudView(POINTS, category=1), ["a", "b"]) == "b" and _below(CloudView(POINTS), ["a"]) == ""


def test_clouds_of_a_picture_have_their_colors_and_titles(monkeypatch):
    made = []
    monkeypatch.setattr(figures, "plot_views", lambda views, path, **settings: made.append((views, path, settings)))
    colored = np.concatenate([POINTS, POINTS / 4, POINTS], axis=1)
    plot_point_clouds([POINTS, colored, colored[:, :5]], "a.png", titles=["x", "y", "z"], heading="all", columns=2)
    ((views, path, settings),) = made
    assert [view.title for view in views] == ["x", "y", "z"] and path == "a.png"
    assert views[0].colors is None and np.array_equal(views[1].colors, POINTS / 4) and views[2].colors is None
    assert all(np.array_equal(view.points, POINTS) for view in views)
    assert settings["title"] == "all" and settings["columns"] == 2
    for wrong in (np.zeros(3), np.zeros((3, 2))):
        with pytest.raises(ValueError, match=r"cloud 1 has shape \(3.*; expected \(points, 3 or more\)"):
            plot_point_clouds([POINTS, wrong], "a.png")
