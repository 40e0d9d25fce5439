"""Colors of labels, and the page that shows them."""

import base64
import json
import re

import numpy as np
import pytest

from hf_any3d.visualization.label_colors import label_colors
from hf_any3d.visualization.web_page import MOST_POINTS, write_clouds_page, write_point_cloud_page


def decoded(page, name, kind):
    return np.frombuffer(base64.b64decode(re.search(rf'{name} = new \w+\(decode\("(.*?)"\)', page)[1]), kind)


def test_colors_of_labels_differ_and_stay():
    colors = label_colors(50)
    assert colors.shape == (50, 3) and colors.dtype == np.float32 and colors.min() >= 0 and colors.max() <= 1
    apart = np.abs(colors[:, None] - colors[None]).max(axis=2) + np.eye(50)
    assert apart.min() > 0.02 and apart[:8, :8].min() > 0.2
    assert np.array_equal(label_colors(7), colors[:7])


@pytest.mark.parametrize(("up_axis", "up"), [("x", 0), ("y", 1), ("z", 2)])
def test_page_contains_points_and_labels_and_needs_no_network(tmp_path, up_axis, up):
    points = np.random.default_rng(0).normal(size=(30, 3)) * [1, 2, 3] + 100
    labels = np.arange(30) % 2
    names = ["<b>top", "legs", "never"]
    path = write_point_cloud_page(tmp_path / "a.html", points, labels, names, title="a & b", up_axis=up_axis)
    page = path.read_text(encoding="utf-8")
    assert np.array_equal(decoded(page, "labels", "<u2"), labels)
    shown = decoded(page, "points", "<f4").reshape(-1, 3)
    assert np.linalg.norm(shown, axis=1).max() == pytest.approx(1)
    assert np.array_equal(np.argsort(shown[:, 1]), np.argsort(points[:, up])), "the second axis is drawn upwards"
    assert "&lt;b&gt;top" in page and "<b>top" not in page and "never" not in page and "a &amp; b" in page
    assert "http" not in page and "src=" not in page
    assert [file.name for file in tmp_path.iterdir()] == ["a.html"]


def test_huge_clouds_are_thinned_out(tmp_path):
    count = MOST_POINTS + 1000
    path = write_point_cloud_page(tmp_path / "a.html", np.random.rand(count, 3), np.zeros(count, int), ["one"])
    assert len(decoded(path.read_text(), "labels", "<u2")) == MOST_POINTS


def test_inputs_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"points have shape \(3, 2\)"):
        write_point_cloud_page(tmp_path / "a.html", np.zeros((3, 2)), np.zeros(3, int), ["one"])
    with pytest.raises(ValueError, match="labels run from 0 to 1; there are 1 names"):
        write_point_cloud_page(tmp_path / "a.html", np.zeros((2, 3)), np.arange(2), ["one"])


def test_page_of_clouds_holds_all_of_them_in_one_frame_a_row(tmp_path):
    generator = np.random.default_rng(0)
    clouds = [generator.normal(size=(count, 3)) * size for count, size in ((30, 1.0), (20, 0.1), (10, 9.0))]
    titles = ["large", "small </script>", "alone"]
    path = write_clouds_page(tmp_path / "a" / "b.html", clouds, titles=titles, columns=2)
    page = path.read_text(encoding="utf-8")
    ranges = json.loads(re.search(r"const clouds = (\[.*?\]), columns = 2", page)[1])
    assert [(cloud["start"], cloud["count"]) for cloud in ranges] == [(0, 30), (30, 20), (50, 10)]
    assert [cloud["title"] for cloud in ranges] == titles and page.count("</script>") == 1
    shown = decoded(page, "points", "<f4").reshape(-1, 3)
    reach = [np.linalg.norm(shown[c["start"] : c["start"] + c["count"]], axis=1).max() for c in ranges]
    assert reach[0] == pytest.approx(1) and reach[1] < 0.5 and reach[2] == pytest.approx(1)


def test_page_of_clouds_keeps_colors_and_otherwise_shows_height(tmp_path):
    cloud = np.random.default_rng(0).uniform(size=(40, 3))
    red = np.concatenate([cloud, np.tile([1.0, 0.0, 0.0], (40, 1))], axis=1)
    page = write_clouds_page(tmp_path / "a.html", [cloud, red], up_axis="z").read_text(encoding="utf-8")
    colors = json.loads(re.search(r"const colors = (\[.*?\])", page)[1])
    drawn = [colors[number] for number in decoded(page, "labels", "<u2")]
    assert set(drawn[40:]) == {"#ff0000"} and "#ff0000" not in drawn[:40]
    low, high = drawn[np.argmin(cloud[:, 2])], drawn[np.argmax(cloud[:, 2])]
    assert low == "#420052" and high == "#ffe621", "dark below, bright above"


def test_clouds_that_cannot_be_shown_are_refused(tmp_path):
    with pytest.raises(ValueError, match="clouds is empty"):
        write_clouds_page(tmp_path / "a.html", [])
    with pytest.raises(ValueError, match=r"cloud 1 has shape \(3, 4\)"):
        write_clouds_page(tmp_path / "a.html", [np.zeros((3, 3)), np.zeros((3, 4))])
    with pytest.raises(ValueError, match="titles: 1 for 2 clouds"):
        write_clouds_page(tmp_path / "a.html", [np.zeros((3, 3))] * 2, titles=["a"])
