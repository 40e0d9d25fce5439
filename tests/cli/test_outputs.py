"""Endings and formats of what commands write, checked before any work."""

import importlib.util
from pathlib import Path

import pytest

from hf_any3d.cli.outputs import CLOUDS, DATA, VIEWS, check_output


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
