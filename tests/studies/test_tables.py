"""Tables of studies: what is written comes back, and the committed ones can be read."""

import pyarrow.parquet as pq
import pytest

from studies.tables import read_table, write_table
from tests.studies import RESULTS

SUMMARY = {
    "date": "2026-11-20",
    "rows": [{"arm": "a", "accuracy": 0.5}],
    "runs": [
        {"arm": "a", "seed": 0, "accuracy": 0.5, "losses": [0.25, 1.0], "settings": {"widths": [2, 3], "note": None}},
        {"arm": "b", "seed": 1, "mixed": 1, "figures": {"iou": 0.1}},
        {"arm": "b", "seed": 2, "mixed": 0.5, "rows": [3, 4], "names": ["x"]},
    ],
}


def test_a_table_gives_back_every_run_and_what_they_have_in_common(tmp_path):
    write_table(tmp_path / "study.parquet", SUMMARY)
    back = read_table(tmp_path / "study.parquet")
    assert back == SUMMARY
    assert [type(run["mixed"]) for run in back["runs"][1:]] == [int, float]


def test_runs_of_several_parts_are_rows_that_name_their_place(tmp_path):
    summary = {"parts": {"runs": [{"seed": 0}], "mean": 1.5}, "rooms": {"runs": [{"seed": 1}]}, "date": "today"}
    write_table(tmp_path / "study.parquet", summary)
    assert read_table(tmp_path / "study.parquet") == summary
    assert pq.read_table(tmp_path / "study.parquet")["place"].to_pylist() == ["parts.runs", "rooms.runs"]


def test_a_number_of_runs_is_no_list_of_runs(tmp_path):
    summary = {"runs": 1, "all_runs": [{"seed": 0}]}
    write_table(tmp_path / "study.parquet", summary)
    assert read_table(tmp_path / "study.parquet") == summary


@pytest.mark.parametrize("table", sorted(RESULTS.glob("*.parquet")), ids=lambda table: table.stem)
def test_committed_tables_have_their_runs_and_belong_to_a_page(table):
    assert pq.read_table(table).num_rows
    assert read_table(table)
    assert any(table.stem.startswith(page.stem) for page in RESULTS.glob("*.md"))
