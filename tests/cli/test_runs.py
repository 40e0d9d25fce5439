"""Runs over many files: a row for each file, and the same command continues a run."""

import json

import numpy as np
import pyarrow.parquet
import pytest

from hf_any3d import read_point_cloud
from tests.cli.conftest import run

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def scores_of(rows):
    """The scores of all rows, by file and label."""
    entries = [(row["file"], entry) for row in rows for entry in row.get("predictions", ())]
    return {f"{file} {entry['label']}": entry["score"] for file, entry in entries}


@pytest.fixture
def predict(models, scans, tmp_path):
    """A function that runs predictions of many files with further options, and continues the run."""
    words = ("predict", scans, "--model", models("classifier"), "--output", tmp_path / "a.jsonl", "--resume")
    return lambda *more: run(*words, *more)


@pytest.mark.slow
def test_options_of_a_command_make_a_run_and_continue_it(models, scans, tmp_path):
    table = tmp_path / "a.jsonl"
    words = ("predict", scans, "--model", models("classifier"), "--output", table)
    first = run(*words, "--workers", 1)
    assert (first.code, first.out) == (2, f"{table}: 4 files, 1 failed\n")
    rows = lines_of(table)
    assert run(*words, "--resume").out == f"{table}: 4 files, 4 already done, 1 failed\n"
    assert lines_of(table) == rows
    assert "4 already done" not in run(*words, "--resume", "--top-k", 1).out, "other settings are another run"
    for more, error in (
        (("--no-unknown",), "--unknown in a run: a table has the column wherever the model has the score"),
        (("--json",), "--json and --csv cannot"),
    ):
        refused = run(*words, "--resume", *more)
        assert refused.code == 1 and error in refused.err
    assert "--output is missing" in run(*words[:-2], "--resume").err


@pytest.mark.slow
def test_models_of_ones_own_labels_make_runs_too(models, scans, tmp_path):
    words = ("zero-shot", scans / "chair.ply", "--model", models("zero-shot"), "--labels", "chair, lamp")
    (expected,) = json.loads(run(*words, "--json").out)
    done = run(*words, "--output", tmp_path / "a.csv", "--workers", 1)
    assert done.code == 0, done.err
    header, row = (tmp_path / "a.csv").read_text().splitlines()
    assert header.startswith("file,label,score") and expected["predictions"][0]["label"] in row


@pytest.mark.slow
def test_a_bad_file_is_a_row_with_its_error(predict, models, scans, tmp_path):
    code, out, err = predict()
    rows = {row["file"]: row for row in lines_of(tmp_path / "a.jsonl")}
    assert code == 2 and out == f"{tmp_path / 'a.jsonl'}: 4 files, 1 failed\n"
    assert "has 128 bytes" in rows[str(scans / "bad.ply")]["error"] and "1 of 4 files could not be used" in err
    expected = json.loads(run("predict", scans / "chair.ply", "--model", models("classifier"), "--json").out)[0]
    found = rows[str(scans / "chair.ply")]["predictions"]
    assert [entry["label"] for entry in found] == [entry["label"] for entry in expected["predictions"]]


def test_files_with_another_up_axis_are_turned_as_predict_turns_them(predict, models, scans, tmp_path):
    predict("--up-axis", "z")
    rows = {row["file"]: row for row in lines_of(tmp_path / "a.jsonl")}
    command = ("predict", scans / "chair.ply", "--model", models("classifier"), "--json")
    answers = [json.loads(run(*command, *more).out)[0]["predictions"] for more in ((), ("--up-axis", "z"))]
    answers.append(rows[str(scans / "chair.ply")]["predictions"])
    plain, turned, found = ({entry["label"]: entry["score"] for entry in answer} for answer in answers)
    assert found == pytest.approx(turned, abs=1e-5)
    assert found != pytest.approx(plain, abs=1e-5)


@pytest.mark.slow
def test_an_interrupted_run_continues_and_gives_the_same_table(predict, tmp_path):
    predict()
    expected = lines_of(tmp_path / "a.jsonl")
    lines = (tmp_path / "a.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_text("".join(lines[:2]) + '{"file": "cut o')
    assert "4 files, 2 already done, 1 failed" in predict().out
    found = lines_of(tmp_path / "a.jsonl")
    assert [row["file"] for row in found] == [row["file"] for row in expected]
    # Other clouds in a batch change the last digits.
    assert scores_of(found) == pytest.approx(scores_of(expected), rel=1e-5)


@pytest.mark.slow
def test_only_changed_new_and_retried_files_are_processed_again(predict, scans):
    predict()
    assert "4 files, 4 already done, 1 failed" in predict().out
    np.save(scans / "holes.npy", np.random.default_rng(1).normal(size=(90, 3)))
    np.save(scans / "new.npy", np.random.default_rng(2).normal(size=(90, 3)))
    assert "5 files, 3 already done, 1 failed" in predict().out
    assert "5 files, 4 already done, 1 failed" in predict("--retry").out


@pytest.mark.slow
def test_a_table_of_other_settings_is_kept(predict, tmp_path):
    predict()
    before = (tmp_path / "a.jsonl").read_bytes()
    code, _, err = predict("--top-k", 1)
    assert code == 1 and "was made by other settings" in err and (tmp_path / "a.jsonl").read_bytes() == before
    (tmp_path / "b.csv").write_text("mine")
    code, _, err = run("features", tmp_path, "--model", "me/x", "--output", tmp_path / "b.txt", "--resume")
    assert code == 1 and "b.txt has type '.txt'; expected one of .jsonl, .csv, .json, .parquet" in err


@pytest.mark.slow
def test_embeddings_are_written_as_parquet(models, scans, tmp_path):
    words = ("features", "--model", models("classifier"))
    code, _, _ = run(*words, scans, "--output", tmp_path / "a.parquet", "--resume")
    rows = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert code == 2 and [row["file"].rpartition("/")[2] for row in rows] == [
        "bad.ply",
        "chair.ply",
        "holes.npy",
        "lamp.STL",
    ]
    single = run(*words, scans / "chair.ply", "--json").out
    assert rows[1]["features"] == pytest.approx(json.loads(single)[0]["features"], abs=1e-5)
    assert rows[0]["features"] is None and "has 128 bytes" in rows[0]["error"]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_boxes_are_those_of_detect_in_every_table(ending, models, scans, tmp_path):
    output, options = tmp_path / f"boxes.{ending}", ("--model", models("detector"), "--threshold", 0.1, "--top-k", 3)
    code, out, _ = run("detect", scans, *options, "--up-axis", "y", "--output", output, "--resume")
    assert code == 2 and out == f"{output}: 4 files, 1 failed\n"
    expected = json.loads(run("detect", scans, *options, "--up-axis", "y", "--json").out)
    assert [len(row.get("boxes", ())) for row in expected] == [0, 3, 3, 3]
    if ending == "csv":
        single = run("detect", scans, *options, "--up-axis", "y", "--csv").out
        lines, others = ([line.split(",") for line in text.splitlines()] for text in (output.read_text(), single))
        assert len(lines) == len(others) == 1 + 1 + 9 and lines[:2] == others[:2]
        assert lines[1][:4] == [str(scans / "bad.ply"), "", "", ""]
        for line, other in zip(lines[2:], others[2:], strict=True):
            assert line[:2] == other[:2] and line[-1:] == other[-1:]
            # Other batches round differently.
            assert [float(value) for value in line[2:-1]] == pytest.approx(list(map(float, other[2:-1])), abs=1e-4)
        return
    rows = {
        "jsonl": lambda: lines_of(output),
        "json": lambda: json.loads(output.read_text()),
        "parquet": lambda: pyarrow.parquet.read_table(output).to_pylist(),
    }[ending]()
    assert [row["file"] for row in rows] == [row["file"] for row in expected]
    for row, own in zip(rows, expected, strict=True):
        assert row.get("error") == own.get("error") and len(row.get("boxes") or ()) == len(own.get("boxes", ()))
        for found, box in zip(row.get("boxes") or (), own.get("boxes", ()), strict=True):
            assert found["label"] == box["label"] and found["score"] == pytest.approx(box["score"], abs=1e-5)
            assert found["box"]["heading"] == pytest.approx(box["box"]["heading"], abs=1e-4)
            for name in ("center", "size", "corners"):
                np.testing.assert_allclose(found["box"][name], box["box"][name], atol=1e-4)


@pytest.mark.slow
def test_only_detectors_find_boxes_in_many_files(models, scans, tmp_path):
    table = tmp_path / "boxes.csv"
    made = run("detect", scans, "--model", models("classifier"), "--output", table, "--resume")
    assert made.code == 1 and "is a classifier; use hf-any3d predict" in made.err


def test_files_are_converted_below_their_folders(scans, tmp_path):
    code, _, _ = run("data", "convert", scans, "--to", "npz", "--output", tmp_path / "out", "--points", 200)
    names = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.npz"))
    assert code == 2 and names == ["chair.ply.npz", "holes.npy.npz", "inner/lamp.STL.npz"]
    assert len(read_point_cloud(tmp_path / "out" / "holes.npy.npz")) == 98
    assert len(read_point_cloud(tmp_path / "out" / "inner" / "lamp.STL.npz")) == 200
    deep = tmp_path / "deep" / "one" / "two" / "cloud.xyz"
    deep.parent.mkdir(parents=True)
    for file in (deep, tmp_path / "deep" / "root.xyz"):
        file.write_text("0 0 0\n1 1 1\n")
    assert run("data", "convert", tmp_path / "deep", "--to", "ply", "--output", tmp_path / "made").code == 0
    assert (tmp_path / "made" / "one" / "two" / "cloud.xyz.ply").is_file()
