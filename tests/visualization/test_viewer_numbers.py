"""Numbers of the viewer's page: colors, frames of rows, boxes, and levels of values."""

import colorsys

import numpy as np
import pytest

from hf_any3d.visualization import viewer
from hf_any3d.visualization.viewer import (
    CloudView,
    clouds_page,
    height_colors,
    label_colors,
    viewer_page,
    write_clouds_page,
    write_point_cloud_page,
)
from tests.visualization.test_viewer import coloring, content, decoded, turned_box

POINTS = np.array([[0, 0, 0], [2, 0, 0], [0, 4, 0], [0, 0, 1]])


def test_colors_beyond_the_listed_ones_are_steps_of_the_golden_ratio_around_the_circle_of_hues():
    listed = label_colors(64)
    assert (listed[0] * 255).round().tolist() == [47, 111, 222] and (listed[1] * 255).round().tolist() == [
        232,
        134,
        42,
    ]
    golden = (np.sqrt(5) - 1) / 2
    for number, color in enumerate(label_colors(70)[64:], 64):
        hue = (0.6 + golden * number) % 1
        expected = colorsys.hsv_to_rgb(hue, 0.75, 0.9 if number % 2 else 0.65)
        np.testing.assert_allclose(color, expected, atol=1e-5)
    assert label_colors(0).shape == (0, 3)


def test_heights_pass_through_the_colors_of_viridis():
    found = height_colors(np.array([10, 11, 12, 13, 14, 10.5]), 10, 14) * 255
    stops = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]
    np.testing.assert_allclose(found[:5], stops)
    np.testing.assert_allclose(found[5], np.mean(stops[:2], axis=0))


def test_boxes_reach_the_page_with_their_names_and_threshold(tmp_path):
    clouds = [POINTS + 1.0, POINTS * 2.0]
    boxes = [[turned_box("lamp", 0.123456)], [turned_box("chair", 1.0), turned_box("lamp", 0.0)]]
    settings = {"boxes": boxes, "box_names": ["chair", "lamp"], "threshold": 0.25}
    page = write_clouds_page(tmp_path / "a.html", clouds, **settings).read_text(encoding="utf-8")
    assert page == clouds_page(clouds, **settings)
    data, _ = content(page)
    first, second = (panel["boxes"] for panel in data["panels"])
    assert [one[:2] for one in (*first, *second)] == [[1, 0.1235], [0, 1.0], [1, 0.0]]
    assert {name: data["boxes"][name] for name in ("names", "colors", "threshold")} == {
        "names": ["chair", "lamp"],
        "colors": ["#2f6fde", "#e8862a"],
        "threshold": 0.25,
    }
    plain = content(clouds_page(clouds, boxes=boxes, box_names=["chair", "lamp"]))[0]
    assert plain["boxes"]["threshold"] == 0.5 and plain["columns"] == 2


def test_corners_of_a_box_are_in_the_units_of_the_points():
    """The points reach from -1 to 1 about their middle; y is up on the page, which the cloud calls z."""
    points = np.array([[-2, 0, 0], [2, 0, 0]]) + [10, 20, 30]
    corners = np.array([[x, y, z] for z in (0, 1) for x, y in ((0, 0), (2, 0), (2, 3), (0, 3))]) + [10, 20, 30.0]
    box = viewer.BoxView(corners, "a")
    (panel,) = content(viewer_page([CloudView(points, boxes=[box], up_axis="z")], box_names=["a"]))[0]["panels"]
    ((label, score, places),) = panel["boxes"]
    # Right, up and towards the viewer are y, z and x.
    expected = (corners - [10, 20, 30])[:, [1, 2, 0]] / 2
    assert (label, score, panel["up"]) == (0, None, "z")
    np.testing.assert_allclose(np.reshape(places, (8, 3)), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ({"label": "lamp"}, "cloud 1: a box is a 'lamp'; expected one of chair, sofa"),
        ({"score": -0.1}, "cloud 1: a box has score -0.1; expected 0 to 1, or None"),
    ],
)
def test_a_box_that_cannot_be_drawn_is_named_with_its_cloud(box, message):
    wrong = turned_box(**{"label": "sofa", **box})
    views = [CloudView(POINTS, boxes=[turned_box()]), CloudView(POINTS, boxes=[turned_box(), wrong])]
    with pytest.raises(ValueError, match=message):
        viewer_page(views, box_names=["chair", "sofa"])
    for threshold in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"threshold: {threshold}; expected 0 to 1"):
            viewer_page([CloudView(POINTS)], threshold=threshold)


def test_a_palette_takes_the_place_of_the_usual_colors(tmp_path):
    palette = np.array([[1, 0, 0], [0, 0.5, 1]])
    labels = np.array([1, 0, 0, 1])
    for page in (
        viewer_page([CloudView(POINTS, labels=labels)], names=["a", "b"], label_name="class", palette=palette),
        write_point_cloud_page(tmp_path / "a.html", POINTS, labels, ["a", "b"], palette=palette).read_text(),
    ):
        found = coloring(content(page)[0], "class")
        assert found["colors"] == ["#ff0000", "#0080ff"] and decoded(found["values"], "<u2").tolist() == [1, 0, 0, 1]


def test_values_are_levels_between_the_lowest_and_the_highest():
    views = [CloudView(POINTS, values=np.array([np.nan, -4, 1, 6.0])), CloudView(POINTS[:1], values=np.array([2]))]
    found = coloring(content(viewer_page(views))[0], "value")
    assert (found["low"], found["high"], found["kind"]) == (-4, 6, "values")
    assert decoded(found["values"], "<u1").tolist() == [102, 0, 128, 255, 153]
    alike = coloring(content(viewer_page([CloudView(POINTS, values=np.full(4, 3))]))[0], "value")
    assert decoded(alike["values"], "<u1").tolist() == [0] * 4 and (alike["low"], alike["high"]) == (3, 3)


def test_own_colors_are_cut_to_their_range_and_explained():
    colors = np.array([[0, 0.5, 1], [-1, 2, 0.25], [0, 0, 0], [1, 1, 1]])
    found = coloring(content(viewer_page([CloudView(POINTS, colors=colors)], legend={"x": (1, 0.5, 0)}))[0], "color")
    assert decoded(found["values"], "<u1").reshape(4, 3).tolist() == [
        [0, 128, 255],
        [0, 255, 64],
        [0, 0, 0],
        [255, 255, 255],
    ]
    assert found["legend"] == {"x": "#ff8000"} and found["kind"] == "colors"


def test_a_coloring_that_some_clouds_lack_is_not_offered():
    whole = {"labels": np.zeros(4, int), "colors": np.zeros((4, 3)), "values": np.zeros(4)}
    names = ["part", "color", "weight", "height"]
    for left_out in (None, *whole):
        others = {key: value for key, value in whole.items() if key != left_out}
        page = viewer_page(
            [CloudView(POINTS, **whole), CloudView(POINTS, **others)],
            names=["a"],
            label_name="part",
            value_name="weight",
        )
        kept = [name for name, key in zip(names, [*whole, "points"], strict=True) if key != left_out]
        assert [one["name"] for one in content(page)[0]["colorings"]] == kept


@pytest.mark.parametrize(("note", "whole"), [("", "6 of 9 points"), ("mine", "mine · 6 of 9 points")])
def test_the_note_of_a_thinned_page_has_both_numbers(note, whole, monkeypatch):
    monkeypatch.setattr(viewer, "MOST_POINTS", 10)
    views = [CloudView(np.random.rand(8, 3)), CloudView(np.random.rand(1, 3))]
    data, shown = content(viewer_page(views, note=note))
    assert data["note"] == f"{whole}, drawn at random" and len(shown) == 6 and data["columns"] == 2
    assert content(viewer_page(views[1:], note=note))[0]["note"] == note


def test_rows_are_framed_by_all_their_clouds_and_others_alone():
    """Two clouds on the axis upwards, and a wider one in the second row."""
    low, high, wide = (
        np.array([[0, 0, 0], [0, 2, 0]]),
        np.array([[0, 2, 0], [0, 8, 0]]),
        np.array([[3, 0, 4], [-3, 0, -4]]),
    )
    clouds = [CloudView(each) for each in (low, high, wide)]
    data, shown = content(viewer_page(clouds, columns=2, rows_share_frame=True))
    expected = [[0, -1, 0], [0, -0.5, 0], [0, -0.5, 0], [0, 1, 0], [0.6, 0, 0.8], [-0.6, 0, -0.8]]
    np.testing.assert_allclose(shown, expected, atol=1e-4)
    assert [panel["fit"] for panel in data["panels"]] == [[0, 1], [0, 1], [1, 0]]
    assert [(panel["low"], panel["high"]) for panel in data["panels"]] == [(-1, 1), (-1, 1), (0, 0)]
    data, shown = content(viewer_page(clouds, columns=2))
    np.testing.assert_allclose(shown[:4, 1], [-1, 1, -1, 1], atol=1e-4)
    assert data["columns"] == 2 and not data["rows"]


def test_flat_clouds_beside_others_are_framed_by_a_ball():
    flat, single = CloudView(np.array([[0, 0], [6, 8.0]])), CloudView(np.array([[5, 5, 5.0]]))
    data, shown = content(viewer_page([flat, single]))
    np.testing.assert_allclose(shown, [[-0.6, -0.8, 0], [0.6, 0.8, 0], [0, 0, 0]], atol=1e-4)
    assert [panel.get("flat", False) for panel in data["panels"]] == [True, False]
    assert [panel["fit"] for panel in data["panels"]] == [[0.6, 0.8], [0, 0]]
    assert [one["name"] for one in data["colorings"]] == ["height"]
    alone, shown = content(viewer_page([flat]))
    np.testing.assert_allclose(shown, [[-0.75, -1, 0], [0.75, 1, 0]], atol=1e-4)
    assert alone["panels"][0]["fit"] == [0.75, 1]


@pytest.mark.parametrize("shape", [(3,), (2, 4), (0, 3), (2, 2, 3)])
def test_arrays_that_are_no_points_are_named_with_their_cloud(shape):
    with pytest.raises(ValueError, match=r"cloud 1: points have shape \(.*\); expected \(points, 3\)"):
        viewer_page([CloudView(POINTS), CloudView(np.zeros(shape))])
    with pytest.raises(ValueError, match=r"cloud 1 has shape \(.*\); expected \(points, 3 or 6\)"):
        clouds_page([POINTS, np.zeros(shape)])


def test_lists_are_taken_for_arrays():
    view = CloudView(POINTS.tolist(), labels=[0, 1, 0, 1], values=[1, 2, 3, 4], colors=POINTS.tolist())
    (found,) = viewer.check_views([view], ["a", "b"])
    for name in ("points", "labels", "values", "colors"):
        assert isinstance(getattr(found, name), np.ndarray)
    assert found.points.dtype == np.float64 and found.labels.tolist() == [0, 1, 0, 1]
