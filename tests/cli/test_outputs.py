"""Endings and formats of what commands write, checked before any work."""

import numpy as np

from hf_any3d.cli.outputs import counted, csv_lines, write_gallery
from hf_any3d.data.files import PointCloudData
from hf_any3d.visualization.gallery import Gallery
from hf_any3d.visualization.viewer import label_colors


def test_numbers_have_nouns_and_tables_their_errors_last():
    assert [counted(number, "file") for number in (0, 1, 2, 1234)] == ["0 files", "1 file", "2 files", "1,234 files"]
    rows = [{"file": "a", "error": "bad"}, {"file": "b", "x": 1}]
    assert csv_lines(rows) == ["file,x,error", "a,,bad", "b,1,"]


def test_many_clouds_of_a_page_are_thinned_and_more_are_counted(tmp_path, capsys):
    gallery = Gallery(tmp_path / "a.html", 100, "z")
    numbers = np.arange(4000.0)[:, None] * [1, 1, 1]
    gallery.add(numbers, numbers / 4000, "colored", ("a box",))
    for _ in range(61):
        gallery.add(numbers, None, "plain")
    kept = 200_000 // 60
    assert [len(cloud) for cloud in gallery.clouds] == [kept] * 60 and gallery.left_out == 2
    first, second = gallery.clouds[:2]
    np.testing.assert_allclose(first[:, 3:], first[:, :3] / 4000, rtol=1e-6)
    assert len(set(first[:, 0])) == kept, "none is drawn twice"
    assert np.array_equal(first[:, :3], second) and second.dtype == np.float32, "the same in every run"
    assert gallery.boxes[0] == ("a box",) and gallery.titles[:2] == ["colored", "plain"]
    write_gallery(gallery, "title")
    assert capsys.readouterr().err == f"{tmp_path / 'a.html'}: 60 point clouds, without 2 more\n"


def test_files_are_shown_in_their_colors_and_meshes_by_points_of_their_surface(tmp_path):
    gallery = Gallery(tmp_path / "a.html", 60)
    gallery.add_file(PointCloudData(np.eye(3), labels=np.array([0, 1, 1])), "labels")
    gallery.add_file(PointCloudData(np.eye(3), faces=np.array([[0, 1, 2]])), "mesh")
    np.testing.assert_allclose(gallery.clouds[0][:, 3:], label_colors(2)[[0, 1, 1]], rtol=1e-6)
    assert gallery.clouds[1].shape == (200_000 // 60, 3) and gallery.titles == ["labels", "mesh"]
