"""Numbers of the viewer's page: colors, frames of rows, boxes, and levels of values."""

import colorsys

import numpy as np

from hf_any3d.visualization import viewer
from hf_any3d.visualization.viewer import CloudView, label_colors, viewer_page
from tests.visualization.test_viewer import coloring, content, decoded

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


def test_a_palette_takes_the_place_of_the_usual_colors():
    palette = np.array([[1, 0, 0], [0, 0.5, 1]])
    labels = np.array([1, 0, 0, 1])
    page = viewer_page([CloudView(POINTS, labels=labels)], names=["a", "b"], label_name="class", palette=palette)
    found = coloring(content(page)[0], "class")
    assert found["colors"] == ["#ff0000", "#0080ff"] and decoded(found["values"], "<u2").tolist() == [1, 0, 0, 1]


def test_values_are_levels_between_the_lowest_and_the_highest():
    views = [CloudView(POINTS, values=np.array([np.nan, -4, 1, 6.0])), CloudView(POINTS[:1], values=np.array([2]))]
    found = coloring(content(viewer_page(views))[0], "value")
    assert (found["low"], found["high"], found["kind"]) == (-4, 6, "values")
    assert decoded(found["values"], "<u1").tolist() == [102, 0, 128, 255, 153]
    alike = coloring(content(viewer_page([CloudView(POINTS, values=np.full(4, 3))]))[0], "value")
    assert decoded(alike["values"], "<u1").tolist() == [0] * 4 and (alike["low"], alike["high"]) == (3, 3)


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
