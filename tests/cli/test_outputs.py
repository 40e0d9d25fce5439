"""Endings and formats of what commands write, checked before any work."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from hf_any3d.cli import outputs
from hf_any3d.cli.outputs import (
    CLOUDS,
    DATA,
    VIEWS,
    Gallery,
    check_output,
    colors_of,
    counted,
    csv_lines,
    print_rows,
    write_data,
)
from hf_any3d.data.files import PointCloudData
from hf_any3d.visualization.viewer import label_colors


@pytest.mark.parametrize(
    ("output", "types", "options", "ending"),
    [
        (None, DATA, {}, ""),
        (None, DATA, {"as_json": True}, ""),
        (None, DATA, {"as_csv": True}, ""),
        ("table.JSON", DATA, {}, ".json"),
        ("shape.ply", CLOUDS, {}, ".ply"),
        ("shapes.html", VIEWS + CLOUDS, {"num_files": 9}, ".html"),
        ("shapes.png", VIEWS, {}, ".png"),
        ("folder", CLOUDS, {"folders": True, "num_files": 9}, ""),
        ("folder.ply", CLOUDS, {"folders": True, "num_files": 9}, ""),  # which exists
    ],
)
def test_the_ending_is_returned_in_lower_case(output, types, options, ending, tmp_path):
    (tmp_path / "folder.ply").mkdir()
    assert check_output(None if output is None else tmp_path / output, types, **options) == ending


@pytest.mark.parametrize(
    ("output", "types", "options", "message"),
    [
        (None, DATA, {"as_json": True, "as_csv": True}, "--json and --csv; expected one of them"),
        ("table.xlsx", DATA, {}, "table.xlsx has type '.xlsx'; expected one of .json, .csv$"),
        ("folder", DATA, {}, "folder has type ''; expected one of .json, .csv$"),
        ("folder.x", DATA, {"folders": True}, "type '.x'; expected one of .json, .csv, or a folder"),
        ("shape.ply", CLOUDS, {"num_files": 2}, "shape.ply for 2 files; expected a folder, .html or .png"),
    ],
)
def test_other_endings_and_two_formats_are_refused(output, types, options, message):
    with pytest.raises(ValueError, match=message):
        check_output(output and Path(output), types, **options)


def test_a_picture_needs_matplotlib(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="a .png needs matplotlib: pip install"):
        check_output(Path("a.png"), VIEWS)


def test_numbers_have_nouns_and_tables_their_errors_last():
    assert [counted(number, "file") for number in (0, 1, 2, 1234)] == ["0 files", "1 file", "2 files", "1,234 files"]
    rows = [{"file": "a", "error": "bad"}, {"file": "b", "x": 1}]
    assert csv_lines(rows) == ["file,x,error", "a,,bad", "b,1,"]


def test_results_are_printed_as_lines_json_or_csv(capsys):
    rows = [
        {"file": "a", "x": np.float32(0.5), "own": 1},
        {"file": "b", "error": "bad"},
        {"file": "c", "x": np.ones(2)},
    ]
    line, flat = lambda row: None if row["file"] == "c" else f"line {row['file']}", lambda row: [{"file": row["file"]}]
    assert print_rows(iter(rows), line, flat) == rows and capsys.readouterr().out == "line a\n"
    print_rows(rows, line, flat, as_csv=True)
    assert capsys.readouterr().out == "file\na\nb\nc\n"
    print_rows(rows, line, flat, as_json=True, hidden=("own",))
    assert json.loads(capsys.readouterr().out) == [{"file": "a", "x": 0.5}, rows[1], {"file": "c", "x": [1, 1]}]


def test_tables_are_written_as_json_or_csv(tmp_path, capsys):
    rows = [{"file": "a", "x": Path("p"), "own": 1}]
    write_data(tmp_path / "a.JSON", rows, None, hidden=("own",))
    write_data(tmp_path / "a.csv", rows, lambda row: [{"file": row["file"]}] * 2)
    assert json.loads((tmp_path / "a.JSON").read_text()) == [{"file": "a", "x": "p"}]
    assert (tmp_path / "a.csv").read_text() == "file\na\na\n"
    assert capsys.readouterr() == ("", f"{tmp_path / 'a.JSON'}: 1 file\n{tmp_path / 'a.csv'}: 1 file\n")


def test_points_have_the_colors_of_their_labels_and_gray_without_one():
    colors = np.zeros((3, 3))
    assert colors_of(None, colors) is colors and colors_of(np.zeros((3, 1)), colors) is colors
    found = colors_of([2, -1, 0], colors)
    np.testing.assert_allclose(found, [label_colors(3)[2], [0.6] * 3, label_colors(3)[0]], rtol=1e-6)
    np.testing.assert_allclose(colors_of([-1], None), [[0.6] * 3], rtol=1e-6)


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
    gallery.write("title", {"a": (1, 0, 0)}, columns=3)
    (path, clouds), settings = written[0]
    assert path == tmp_path / "a.html" and len(clouds) == 2 and settings == {
        "titles": ["colored", "whole"], "columns": 3, "title": "title", "legend": {"a": (1, 0, 0)}, "up_axis": "z",
        "boxes": None, "rows_share_frame": False,
    }  # fmt: skip
    assert capsys.readouterr().err == f"{tmp_path / 'a.html'}: 2 clouds, without 1 more\n"
    gallery.write("title", box_names=["chair"])
    assert written[1][1]["boxes"] == [(), ()] and written[1][1]["box_names"] == ["chair"]


def test_without_an_output_or_clouds_nothing_is_shown(tmp_path, capsys):
    nothing = Gallery(None, 3)
    nothing.add(np.eye(3), None, "a")
    nothing.add_file(PointCloudData(np.eye(3)), "a")
    nothing.write("title")
    assert nothing.clouds == [] and nothing.left_out == 0 and not nothing.is_page and nothing.up_axis == "y"
    empty = Gallery(tmp_path / "a.png", 3)
    empty.write("title")
    assert not empty.is_page and not (tmp_path / "a.png").exists() and capsys.readouterr().err == ""


def test_files_are_shown_in_their_colors_and_meshes_by_points_of_their_surface(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "_MOST_POINTS", 50)
    gallery = Gallery(tmp_path / "a.html", 1)
    gallery.add_file(PointCloudData(np.eye(3), labels=np.array([0, 1, 1])), "labels")
    gallery.add_file(PointCloudData(np.eye(3), faces=np.array([[0, 1, 2]])), "mesh")
    np.testing.assert_allclose(gallery.clouds[0][:, 3:], label_colors(2)[[0, 1, 1]], rtol=1e-6)
    assert gallery.clouds[1].shape == (50, 3) and gallery.titles == ["labels", "mesh"]


def test_a_picture_has_all_that_a_page_has_but_boxes(tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(
        "hf_any3d.visualization.figures.plot_point_clouds", lambda *one, **more: drawn.append((one, more))
    )
    gallery = Gallery(tmp_path / "a.PNG", 2, "x")
    gallery.add(np.eye(3), None, "first")
    gallery.add(2 * np.eye(3), np.full((3, 3), 0.5), "second")
    gallery.write("title", {"a": (1, 0, 0)}, 3)
    ((clouds, path), settings), = drawn  # fmt: skip
    assert path == tmp_path / "a.PNG" and [cloud.shape for cloud in clouds] == [(3, 3), (3, 6)]
    assert settings.pop("cell") and settings == {
        "titles": ["first", "second"], "heading": "title", "legend": {"a": (1, 0, 0)}, "columns": 3, "up_axis": "x",
    }  # fmt: skip
    assert capsys.readouterr().err == f"{tmp_path / 'a.PNG'}: 2 clouds\n"


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
