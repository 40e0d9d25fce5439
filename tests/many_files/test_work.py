"""The work on files in one process: rows and errors, batches, tables that resume, numbers of processes."""

import errno
import json
import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudData
from hf_any3d.many_files.files import Cloud, InputFile, is_readable, readable_types
from hf_any3d.many_files.runs import Table, run
from hf_any3d.many_files.work import RowsWork, Shard, answer_files, answerer, feature_of
from tests.errors import raises

FILES = [InputFile(name) for name in "ABCDE"]


def read(file):
    if file.name == "B":
        raise ValueError("is damaged")
    return Cloud(file.name, PointCloudData(np.eye(3)), ["C: odd"] if file.name == "C" else [])


@pytest.mark.parametrize(("size", "batches"), [(1, ["A", "C", "D", "E"]), (2, ["A", "CD", "E"]), (9, ["ACDE"])])
def test_each_file_has_a_row_in_its_order(size, batches):
    asked = []

    def answer(clouds):
        asked.append("".join(cloud.name for cloud in clouds))
        return [{"n": cloud.name} for cloud in clouds]

    rows = list(answer_files(FILES, answer, size, read=read))
    assert asked == batches and [row["file"] for row in rows] == list("ABCDE")
    assert rows[1] == {"file": "B", "error": "B: is damaged"}
    assert rows[2] == {"file": "C", "n": "C", "warnings": ["C: odd"]} and "warnings" not in rows[0]


def test_a_cloud_that_the_model_cannot_use_spoils_no_other():
    def answer(clouds):
        if any(cloud.name == "D" for cloud in clouds):
            raise ValueError("NaN")
        return [{"n": len(clouds)} for _ in clouds]

    rows = list(answer_files(FILES[2:], answer, 3, read=read))
    assert [row.get("n") for row in rows] == [1, None, 1] and rows[1]["error"] == "D: NaN"


@pytest.mark.parametrize(
    ("name", "error", "kind", "text"),
    [
        ("B", None, ValueError, "^is damaged$"),
        ("A", ValueError("bad"), ValueError, "^A: bad$"),
    ],
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


def test_warnings_of_a_model_belong_to_their_file():
    def answer(clouds):
        warnings.warn("repeated points", UserWarning, stacklevel=1)
        warnings.warn("old", FutureWarning, stacklevel=1)
        return [{} for _ in clouds]

    with pytest.warns(FutureWarning, match="old"):
        (row,) = answer_files(FILES[:1], answer, read=read)
    assert row["warnings"] == ["A: repeated points"]
    with pytest.warns(FutureWarning):
        first, second = answer_files(FILES[3:], answer, 2, read=read)
    assert first["warnings"] == ["one of D, E: repeated points"] and "warnings" not in second


def test_work_is_done_in_the_folder_where_it_was_begun(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.eye(3))
    opened = []
    given = {"-": InputFile("-", b"0 0 0\n1 0 0\n0 1 0\n", "txt")}
    rows = RowsWork(
        lambda: opened.append(os.getcwd()) or (lambda clouds: [{"n": len(clouds)} for _ in clouds], 2), given=given
    )
    assert rows.folder == str(tmp_path)
    monkeypatch.chdir("/")
    found = list(rows.open()(Shard("0", ("a.npy", "-"))))
    assert opened == [str(tmp_path)] and found == [{"file": "a.npy", "n": 2}, {"file": "-", "n": 2}]
    assert rows.given_up(Shard("0-1", ("a.npy",)), "a.npy: no") == [{"file": "a.npy", "error": "a.npy: no"}]


def test_a_pipeline_answers_batches_and_bad_outputs_are_rows():
    import torch

    def preprocess(row, up_axis="y"):
        if row["path"] == "a":
            warnings.warn("few points", UserWarning, stacklevel=1)
        return {"points": torch.full((1, 2, 3), ord(row["path"])), "stem": [row["path"]]}

    def postprocess(one, top_k=None):
        if one["stem"] == ["b"]:
            raise ValueError("NaN\nscores")
        return {"value": int(one["points"].max()), "top_k": top_k, "count": len(one["points"])}

    pipe = SimpleNamespace(
        _sanitize_parameters=lambda **given: ({"up_axis": given.pop("up_axis")}, {"votes": 3}, given),
        preprocess=preprocess,
        forward=lambda inputs, votes: inputs | {"votes": [votes] * len(inputs["stem"])},
        postprocess=postprocess,
    )
    clouds = [Cloud(name, PointCloudData(np.eye(3))) for name in "abc"]
    run_batch = answerer(pipe, "m", up_axis="z", top_k=2, nothing=None)
    first, bad, last = run_batch(clouds)
    assert first == {"value": ord("a"), "top_k": 2, "count": 1} and last["value"] == ord("c")
    assert bad == {"error": "NaN scores"} and clouds[0].warnings == ["a: few points"] and not clouds[1].warnings
    with raises(ValueError, naming="NaN"):
        run_batch(clouds[1:2])


def test_features_are_a_vector_and_of_tokens_their_mean():
    found = {"pooled": np.ones(2), "tokens": np.array([[0.0, 2], [2, 4]])}
    assert feature_of(found, "tokens").tolist() == [1, 3] and feature_of(found, "pooled").tolist() == [1, 1]
    with raises(ValueError, naming="--feature"):
        feature_of(found, "class_token", "--feature")


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
    with raises(ValueError, naming="odd://a/b.ply: cannot be fetched"):
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
        ValueError, match="was made by other settings or from other files .*expected a new name, or the same command"
    ):
        run_on(table(2), stamps)


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
