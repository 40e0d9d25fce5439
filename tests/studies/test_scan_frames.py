"""The count of frames that are found: right ones are right, wrong ones are not."""

import csv
import dataclasses
import math

import numpy as np
import pytest

from hf_any3d.data import load_point_dataset
from hf_any3d.data.scan_frames import find_frame
from studies import scan_frames


@pytest.fixture(scope="module")
def room():
    rows = load_point_dataset("rooms_with_layouts", train_rooms=0, validation_rooms=0, test_rooms=1, seed=5)["test"]
    return np.asarray(rows[0]["points"], dtype=np.float64)


def test_rows_say_what_was_found(tmp_path, capsys):
    scan_frames.main(["--rooms", "2", "--tilts", "0", "6", "--output", str(tmp_path / "frames.csv")])
    table = capsys.readouterr().out
    assert "| 6° (12) |" in table and "| all (24) |" in table
    with (tmp_path / "frames.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["tilt"] for row in rows] == ["0.0"] * 12 + ["6.0"] * 12
    assert all(row["up_axis"] == row["unit"] == "True" for row in rows)
    assert all(row["is_leveled"] == "True" and float(row["tilt_left"]) < 1.5 for row in rows[12:])


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"angle": 0.1}, "turn"),
        ({"floor": 0.2}, "floor"),
        ({"unit": 0.1}, "unit"),
        ({"up_axis": "-z"}, "up_axis"),
        ({"up": (0.05, 0.0, math.sqrt(1 - 0.05**2))}, "level"),
    ],
)
def test_a_wrong_part_is_counted_as_wrong(room, change, part):
    truth = find_frame(room)
    assert scan_frames.judge(room, truth)["right"]
    found = scan_frames.judge(room, dataclasses.replace(truth, **change))
    assert not found[part] and not found["right"]
