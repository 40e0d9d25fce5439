"""Endings and formats of what commands write, checked before any work."""

import numpy as np
import pytest

from hf_any3d.cli import outputs
from hf_any3d.cli.outputs import (
    Gallery,
    counted,
    csv_lines,
)
from hf_any3d.data.files import PointCloudData
from hf_any3d.visualization.viewer import label_colors


def test_numbers_have_nouns_and_tables_their_errors_last():
    assert [counted(number, "file") for number in (0, 1, 2, 1234)] == ["0 files", "1 file", "2 files", "1,234 files"]
    rows = [{"file": "a", "error": "bad"}, {"file": "b", "x": 1}]
    assert csv_lines(rows) == ["file,x,error", "a,,bad", "b,1,"]


def test_many_clouds_of_a_page_are_thinned_and_more_are_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(outputs, "_MOST_POINTS", 40)
    monkeypatch.setattr(outputs, "_MOST_CLOUDS", 2)
    written = []
    monkeypatch.setattr(
        "hf_any3d.visualization.viewer.write_clouds_page", lambda *one, **more: written.append((one, more))
    )
    gallery = Gallery(tmp_path / "a.html", 9, "z")
    numbers = np.arange(30.0)[:, None] * [1, 1, 1]
    gallery.add(numbers, numbers / 30, "colored")
    gallery.add(numbers[:20], None, "whole")
    gallery.add(numbers, None, "left out")
    first, second = gallery.clouds
    assert first.shape == (20, 6) and np.array_equal(second, numbers[:20]) and gallery.left_out == 1
    np.testing.assert_allclose(first[:, 3:], first[:, :3] / 30, rtol=1e-6)
    assert len(set(first[:, 0])) == 20
    gallery.write("title", {"a": (1, 0, 0)})
    (path, clouds), settings = written[0]
    assert path == tmp_path / "a.html" and len(clouds) == 2 and settings == {
        "titles": ["colored", "whole"], "columns": 4, "title": "title", "legend": {"a": (1, 0, 0)}, "up_axis": "z",
        "boxes": None, "rows_share_frame": False,
    }  # fmt: skip
    assert capsys.readouterr().err == f"{tmp_path / 'a.html'}: 2 clouds, without 1 more\n"
    gallery.write("title", box_names=["chair"])
    assert written[1][1]["boxes"] == [(), ()] and written[1][1]["box_names"] == ["chair"]


def test_files_are_shown_in_their_colors_and_meshes_by_points_of_their_surface(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "_MOST_POINTS", 50)
    gallery = Gallery(tmp_path / "a.html", 1)
    gallery.add_file(PointCloudData(np.eye(3), labels=np.array([0, 1, 1])), "labels")
    gallery.add_file(PointCloudData(np.eye(3), faces=np.array([[0, 1, 2]])), "mesh")
    np.testing.assert_allclose(gallery.clouds[0][:, 3:], label_colors(2)[[0, 1, 1]], rtol=1e-6)
    assert gallery.clouds[1].shape == (50, 3) and gallery.titles == ["labels", "mesh"]


@pytest.mark.parametrize(("count", "kept"), [(0, 60), (1, 60), (2, 30), (3, 20), (9, 20)])
def test_points_of_a_page_are_shared_by_its_clouds(count, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "_MOST_POINTS", 60)
    monkeypatch.setattr(outputs, "_MOST_CLOUDS", 3)
    gallery = Gallery(tmp_path / "a.html", count)
    for _ in range(5):
        gallery.add(np.random.default_rng(0).normal(size=(100, 3)), None, "a", ("a box",))
    assert [len(cloud) for cloud in gallery.clouds] == [kept] * 3 and gallery.left_out == 2
    assert gallery.boxes == [("a box",)] * 3 and all(cloud.dtype == np.float32 for cloud in gallery.clouds)
    assert len(np.unique(gallery.clouds[0], axis=0)) == kept, "none is drawn twice"
    assert np.array_equal(gallery.clouds[0], gallery.clouds[1]), "the same in every run"
