"""The work on files in one process: rows and errors, batches, tables that resume, numbers of processes."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudData
from hf_any3d.data.files.input_files import Cloud, InputFile, is_readable, readable_types
from hf_any3d.many_files.runs import Table, run
from hf_any3d.many_files.work import RowsWork, Shard, answer_files
from tests.errors import raises

FILES = [InputFile(name) for name in "ABCDE"]


def read(file):
    if file.name == "B":
        raise ValueError("is damaged")
    return Cloud(file.name, PointCloudData(np.eye(3)), ["C: odd"] if file.name == "C" else [])


@pytest.mark.parametrize(
    ("name", "error", "kind", "text"),
    [("B", None, ValueError, "^is damaged$"), ("A", ValueError("bad"), ValueError, "^A: bad$")],
)
def test_the_error_of_a_single_file_may_be_raised(name, error, kind, text):
    def answer(clouds):
        raise error

    with pytest.raises(kind, match=text):
        list(answer_files([InputFile(name)], answer, read=read, raise_errors=True))


def test_a_full_disk_ends_the_work_and_is_no_error_of_a_file():
    def answer(clouds):
        raise OSError(errno.ENOSPC, "copy.laz could not be written (No space left on device)")

    with raises(OSError, naming="No space left"):
        list(answer_files(FILES, answer, 2, read=read))


@pytest.mark.parametrize(
    ("place", "readable"),
    [
        ("a.ply", True),
        ("in/A.PLY", True),
        (".a.ply", False),
        (".in/a.ply", False),
        ("in/metadata.csv", False),
        ("other.csv", True),
        ("a.md", False),
        ("ply", False),
    ],
)
def test_clouds_are_told_by_their_ending(place, readable):
    assert is_readable(place) is readable


def test_bytes_are_read_by_their_type_and_known_by_their_digest():
    text = InputFile("<stdin>", b"0 0 0\n1 0 nan\n0 1 0\n1 1 1\n", "txt")
    cloud = text.read()
    assert len(cloud.data) == 3 and cloud.name == "<stdin>" and "1 of 4 points" in cloud.warnings[0]
    with raises(ValueError, naming="NaN"):
        text.read("raise")
    assert text.stamp() != InputFile("<stdin>", b"0 0 0").stamp()
    assert cloud.row == {"points": cloud.data, "path": "<stdin>"}
    with raises(ValueError, naming="odd://a/b.ply: cannot be downloaded"):
        InputFile("odd://a/b.ply").read()
    assert readable_types()[0].startswith(".")


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def table(tmp_path):
    return lambda identity=1, write=None: Table(tmp_path / "new" / "a.jsonl", {"settings": {"x": identity}}, write)


def run_on(table, stamps, retry=False):
    done = []

    def execute(names):
        done.extend(names)
        return [{"file": name, **({"error": "bad"} if name == "b" else {"n": "ä"})} for name in names]

    return done, run(table, stamps, stamps.get, execute, retry=retry)


def test_a_table_continues_with_new_changed_and_retried_files(table, tmp_path):
    stamps = dict.fromkeys("abc", "1")
    assert run_on(table(), stamps) == (["a", "b", "c"], (0, (3, 1)))
    assert run_on(table(), stamps) == ([], (3, (3, 1)))
    assert run_on(table(), stamps | {"c": "2", "d": "1"}) == (["c", "d"], (2, (4, 1)))
    assert run_on(table(), stamps | {"c": "2"}, retry=True) == (["b"], (2, (3, 1))), "d is no file of this run"
    path = tmp_path / "new" / "a.jsonl"
    assert sorted((row["file"], row["stamp"]) for row in rows_of(path)) == [("a", "1"), ("b", "1"), ("c", "2")]
    assert '"ä"' in path.read_text(encoding="utf-8")
    with path.open("ab") as file:
        file.write(b'{"file": "a", "stamp": "1"}\n[1]\n\n{"file": "cut \xc3')
    assert run_on(table(), stamps | {"c": "2"})[1] == (3, (3, 1)), "twice, no row, and cut off"
    with pytest.raises(
        ValueError, match="was made by other settings or from other files .*give a new name, or repeat the same"
    ):
        run_on(table(2), stamps)


def test_a_file_that_ended_processes_is_done_again_by_the_next_call(table):
    stamps = dict.fromkeys("abc", "1")
    given_up = RowsWork(list).given_up(Shard("0", ("b",)), "b: processes ended while they had it")

    def execute(names):
        return [*given_up, *({"file": name, "n": 1} for name in names if name != "b")]

    assert run(table(), stamps, stamps.get, execute) == (0, (3, 1))
    assert run_on(table(), stamps) == (["b"], (2, (3, 1)))
    assert run_on(table(), stamps) == ([], (3, (3, 1))), "an error of the file itself is kept"


def test_a_table_of_another_type_is_written_of_the_lines(table, tmp_path):
    def write(path, rows):
        path.write_text(json.dumps(list(rows)))

    for _ in range(2):
        run_on(table(write=write), {"a": "1", "b": "1"})
        written = json.loads((tmp_path / "new" / "a.jsonl").read_text())
        assert written == [{"file": "a", "n": "ä"}, {"file": "b", "error": "bad"}]
    assert len(rows_of(tmp_path / "new" / ".a.jsonl.jsonl")) == 2


def test_a_table_that_nobody_knows_is_kept(table, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.jsonl").write_text("mine")
    with raises(ValueError, naming="a.jsonl"):
        run_on(table(), {"a": "1"})
    assert (tmp_path / "new" / "a.jsonl").read_text() == "mine"
