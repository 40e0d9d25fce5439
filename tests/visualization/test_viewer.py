"""Colors of labels, and the page that shows them."""

import base64
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_any3d.modeling.layers.boxes import box_corners
from hf_any3d.visualization import viewer
from hf_any3d.visualization.figures import plot_views
from hf_any3d.visualization.viewer import MOST_POINTS, BoxView, CloudView, label_colors, viewer_page, write_clouds_page
from tests.errors import raises
from tests.golden import assert_stored


def content(page):
    """Return what the page's script reads, and its points (points, 3)."""
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    return data, decoded(data["points"], "<i2").reshape(-1, 3) / 32767


def decoded(text, kind):
    return np.frombuffer(base64.b64decode(text), kind)


def coloring(data, name):
    return next(one for one in data["colorings"] if one["name"] == name)


def test_colors_of_labels_differ_and_stay():
    colors = label_colors(50)
    assert colors.shape == (50, 3) and colors.dtype == np.float32 and colors.min() >= 0 and colors.max() <= 1
    apart = np.abs(colors[:, None] - colors[None]).max(axis=2) + np.eye(50)
    assert apart.min() > 0.02 and apart[:8, :8].min() > 0.2
    assert np.array_equal(label_colors(7), colors[:7]) and len(np.unique(label_colors(200), axis=0)) == 200
    red, green, blue = colors[:24].T
    lightness = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    assert 0.13 < lightness.min() and lightness.max() < 0.8, "readable on white and on dark gray"


@pytest.mark.parametrize(("up_axis", "up"), [("x", 0), ("y", 1), ("z", 2)])
def test_page_contains_points_and_labels_and_needs_no_network(up_axis, up):
    points = np.random.default_rng(0).normal(size=(30, 3)) * [1, 2, 3] + 100
    labels = np.arange(30) % 2
    names = ["<b>top", "legs", "never"]
    settings = {"names": names, "label_name": "class", "title": "a & b", "up_axis": up_axis}
    page = viewer_page([CloudView(points, labels=labels)], **settings)
    data, shown = content(page)
    assert np.array_equal(decoded(coloring(data, "class")["values"], "<u2"), labels)
    assert np.linalg.norm(shown, axis=1).max() == pytest.approx(1, abs=1e-4)
    # Equal after rounding to 16 bits.
    assert (np.diff(shown[np.argsort(points[:, up]), 1]) >= 0).all(), "the second axis is drawn upwards"
    assert coloring(data, "class")["names"] == names and data["title"] == "a & b"
    assert "<b>top" not in page and "<title>a &amp; b</title>" in page
    assert "http:" not in page and "https:" not in page and "src=" not in page and "default-src 'none'" in page


def test_huge_clouds_are_thinned_out_and_the_page_states_it():
    data, shown = content(viewer_page([CloudView(np.random.rand(MOST_POINTS + 1000, 3))]))
    assert len(shown) == MOST_POINTS and data["note"] == "200,000 of 201,000 points, drawn at random"


def test_page_of_clouds_holds_all_of_them_in_one_frame_a_row(tmp_path):
    generator = np.random.default_rng(0)
    clouds = [generator.normal(size=(count, 3)) * size for count, size in ((30, 1.0), (20, 0.1), (10, 9.0))]
    titles = ["large", "small </script>", "alone"]
    path = write_clouds_page(tmp_path / "a" / "b.html", clouds, titles=titles, columns=2)
    page = path.read_text(encoding="utf-8")
    data, shown = content(page)
    ranges = data["panels"]
    assert [(cloud["start"], cloud["count"]) for cloud in ranges] == [(0, 30), (30, 20), (50, 10)]
    assert [cloud["title"] for cloud in ranges] == titles and page.count("</script>") == 2
    assert data["columns"] == 2 and data["rows"]
    reach = [np.linalg.norm(shown[c["start"] : c["start"] + c["count"]], axis=1).max() for c in ranges]
    assert reach[0] == pytest.approx(1, abs=1e-4) and reach[1] < 0.5 and reach[2] == pytest.approx(1, abs=1e-4)


def test_page_of_clouds_keeps_colors_and_otherwise_shows_height(tmp_path):
    cloud = np.random.default_rng(0).uniform(size=(40, 3))
    red = np.concatenate([cloud, np.tile([1.0, 0.0, 0.0], (40, 1))], axis=1)
    page = write_clouds_page(tmp_path / "a.html", [cloud, red], up_axis="z").read_text(encoding="utf-8")
    drawn = decoded(coloring(content(page)[0], "own colors")["values"], "<u1").reshape(-1, 3)
    assert (drawn[40:] == [255, 0, 0]).all() and not (drawn[:40] == [255, 0, 0]).all(axis=1).any()
    low, high = drawn[np.argmin(cloud[:, 2])], drawn[np.argmax(cloud[:, 2])]
    assert low.tolist() == [68, 1, 84] and high.tolist() == [253, 231, 37], "dark below, bright above"


def turned_box(label="chair", score=None, heading=0.5, center=(0.2, 0.1, 0.3), size=(0.6, 0.4, 0.2)):
    """A box of a detector, with its heading about z."""
    box = torch.tensor([*center, *size, heading], dtype=torch.float64)
    return BoxView(box_corners(box).numpy(), label, score)


@pytest.mark.parametrize("up_axis", ["y", "z"])
def test_boxes_are_in_the_frame_of_the_points_with_their_scores_and_colors(up_axis):
    points = np.random.default_rng(0).uniform(-1, 1, size=(50, 3)) + [0, 0, 500_000]
    boxes = [turned_box(score=0.75, center=(0.2, 0.1, 500_000)), turned_box("<b>lamp", center=(3, 0, 500_000))]
    page = viewer_page(
        [CloudView(points, boxes=boxes), CloudView(points, boxes=[])],
        up_axis=up_axis,
        box_names=["sofa", "chair", "<b>lamp"],
        threshold=0.3,
    )
    data, shown = content(page)
    assert data["boxes"]["names"] == ["sofa", "chair", "<b>lamp"] and "<b>lamp" not in page
    assert data["boxes"]["threshold"] == 0.3 and data["boxes"]["colors"][1] == "#e8862a"
    first, second = data["panels"][0]["boxes"]
    assert first[:2] == [1, 0.75] and second[:2] == [2, None] and data["panels"][1]["boxes"] == []
    # The same shift, turn and scale as those of the points.
    drawn = np.concatenate([shown[:50], np.reshape(first[2], (8, 3))])
    given = np.concatenate([points, boxes[0].corners])
    apart = [np.linalg.norm(each[:, None] - each[None], axis=2) for each in (drawn, given)]
    np.testing.assert_allclose(apart[0] / apart[0].max(), apart[1] / apart[1].max(), atol=1e-3)
    corners = np.reshape(first[2], (8, 3))
    edges = [corners[start] - corners[end] for start, end in data["boxes"]["edges"]]
    scale = np.linalg.norm(edges, axis=1) / np.linalg.norm(corners[0] - corners[6])
    diagonal = np.linalg.norm((0.6, 0.4, 0.2))
    assert len(edges) == 12 == len({frozenset(edge) for edge in data["boxes"]["edges"]})
    np.testing.assert_allclose(np.sort(scale), np.repeat([0.2, 0.4, 0.6], 4) / diagonal, atol=1e-3)
    assert "boxes" not in content(viewer_page([CloudView(points)]))[0]


@pytest.mark.slow
def test_the_script_draws_boxes_above_the_score_and_of_the_classes_that_are_chosen(tmp_path):
    if (program := shutil.which("node")) is None:
        pytest.skip("no node, which runs the script of the page")
    points = np.random.default_rng(0).uniform(-1, 1, size=(40, 3))
    boxes = [
        turned_box(score=0.95),
        turned_box("lamp", 0.6, center=(-0.5, 0, 0)),
        turned_box("lamp", 0.2, center=(0, 0, -0.5)),
    ]
    page = viewer_page([CloudView(points, boxes=boxes)], box_names=["chair", "lamp"], threshold=0.5)
    (tmp_path / "page.json").write_text(json.dumps(content(page)[0]))
    script = Path(viewer.__file__).with_name("templates") / "viewer.js"
    command = [program, Path(__file__).with_name("without_browser.js"), script, tmp_path / "page.json"]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    seen = json.loads(made.stdout)
    assert seen["slider"] is False, "shown"
    assert [seen[name]["summary"] for name in ("first", "few", "all")] == ["2 boxes", "1 box", "3 boxes"]
    assert 0 < seen["few"]["boxes"] < seen["first"]["boxes"] < seen["all"]["boxes"]
    assert 0 < seen["classless"]["boxes"] < seen["all"]["boxes"] and seen["first"]["points"] > 0
    before, after = seen["turned"]
    assert after == [before[1], before[2], before[0]]


def test_clouds_that_cannot_be_shown_are_refused():
    with pytest.raises(ValueError, match="zip"):
        viewer.clouds_page([np.zeros((3, 3))] * 2, titles=["a"])
    with raises(ValueError, naming="a cloud has boxes, which pages draw"):
        plot_views([CloudView(np.zeros((3, 3)), boxes=[turned_box()])], "picture.png")


def test_few_high_points_do_not_make_all_others_one_color():
    heights = np.linspace(0, 10, 1001)
    # A mast, and a bird below the ground
    heights[[0, -1]] = -500, 500
    points = np.stack([np.zeros(1001), heights, np.zeros(1001)], axis=1)
    data, _ = content(viewer_page([CloudView(points)]))
    (panel,) = data["panels"]
    # 1000 units high; one hundredth of it holds all others.
    assert panel["high"] - panel["low"] == pytest.approx(2 * 9.8 / 1000, rel=0.02)


def test_page_holds_all_that_its_script_reads():
    points = np.array([[0, 0, 0], [2, 0, 0], [0, 4, 0], [0, 0, 1]])
    views = [
        CloudView(points, labels=np.array([0, 1, 1, 2]), values=np.arange(4.0), title="a", note="n", status="right"),
        CloudView(points / 2, labels=np.zeros(4, int), values=-np.arange(4.0), title="b", up_axis="z", category=1),
        CloudView(points * 3, labels=np.ones(4, int), values=np.ones(4), texts=list("wxyz"), category=0),
    ]
    page = viewer_page(
        views, title="t", note="below", names=["u", "v", "w"], categories=["c", "d"], columns=2, rows_share_frame=True
    )
    data, shown = content(page)
    colorings, panels = data.pop("colorings"), data.pop("panels")
    assert data.pop("points") and data == {
        "title": "t",
        "note": "below",
        "columns": 2,
        "rows": True,
        "order": "as listed",
        "classes": {"names": ["c", "d"], "colors": ["#2f6fde", "#e8862a"]},
    }
    shared = {"count": 4, "low": -0.8729, "high": 0.8729, "fit": [0.488, 0.8729], "flat": False, "score": None}
    first = {"start": 0, "title": "a", "note": "n", "up": "y", "status": "right", "class": None, "texts": None}
    second = {"start": 4, "title": "b", "note": "", "up": "z", "status": "", "class": 1, "texts": None}
    third = {"start": 8, "title": "", "note": "", "up": "y", "status": "", "class": 0, "texts": list("wxyz")}
    assert panels == [shared | own for own in (first, second, third)]
    assert [{key: value for key, value in one.items() if key != "values"} for one in colorings] == [
        {"name": "label", "kind": "labels", "names": ["u", "v", "w"], "colors": ["#2f6fde", "#e8862a", "#2c9a4b"]},
        {"name": "value", "kind": "values", "low": -3.0, "high": 3.0},
        {"name": "height", "kind": "height"},
    ]
    levels = decoded(coloring({"colorings": colorings}, "value")["values"], "<u1").reshape(3, 4)
    assert levels.tolist() == [[128, 170, 212, 255], [128, 85, 42, 0], [170] * 4]
    assert_stored(list(shown.reshape(3, 4, 3)), [0.540277, 0.366238, 0.540277], 1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"colors": np.zeros((3, 4))}, "colors have shape (3, 4)"),
        ({"labels": np.zeros(2, int)}, "labels have shape (2,)"),
        ({"values": np.zeros((3, 1))}, "values have shape (3, 1)"),
        ({"labels": np.array([0, -1, 0])}, "labels run from -1 to 0; there are 1 names"),
        ({"points": np.zeros((3, 4))}, "points have shape (3, 4)"),
    ],
)
def test_parts_of_a_cloud_that_do_not_fit_are_named(changed, message):
    view = replace(CloudView(np.eye(3), labels=np.zeros(3, int)), **changed)
    with raises(ValueError, naming=message):
        viewer_page([view], names=["one"])
