"""What a batch opens for each task, the rows and tables that it writes, and what it refuses."""

import json
from importlib import import_module

import numpy as np
import pyarrow.parquet
import pytest

from hf_any3d import read_point_cloud
from hf_any3d.many_files.executors import EXECUTORS, LocalExecutor
from tests.cli.conftest import run

module = import_module("hf_any3d.cli.batch")
pytestmark = pytest.mark.usefixtures("libraries_as_they_were")

BOX = {"center": [1.0, 2.0, 3.0], "size": [4.0, 5.0, 6.0], "heading": 0.5, "corners": [[0.5, 1.0, 2.0]] * 8}
ROWS = {
    "predict": [
        {"file": "ä", "predictions": [{"label": "a", "score": 0.5, "unknown": 0.25}, {"label": None, "score": 0.25}]},
        {"file": "b", "error": "b: bad"},
    ],
    "embed": [{"file": "ä", "features": [0.5, 2.0]}, {"file": "b", "error": "b: bad"}],
    "detect": [
        {"file": "ä", "boxes": [{"label": "a", "score": 0.5, "box": BOX}]},
        {"file": "c", "boxes": []},
        {"file": "b", "error": "b: bad"},
    ],
}
TABLES = {
    "predict": "file,label,score,unknown,label_2,score_2,error\nä,a,0.500000,0.250000,,0.250000,\nb,,,,,,b: bad\n",
    "embed": "file,feature_0,feature_1,error\nä,0.5,2.0,\nb,,,b: bad\n",
    "detect": "file,label,score,x,y,z,length,width,height,heading,error\nä,a,0.5,1.0,2.0,3.0,4.0,5.0,6.0,0.5,\n"
    "c,,,,,,,,,,\nb,,,,,,,,,,b: bad\n",
}


@pytest.mark.parametrize("task", ROWS)
def test_rows_are_tables_of_three_types(task, tmp_path):
    rows, path = ROWS[task], tmp_path / "table"
    module._write_table(task, ".json", path, iter(rows))
    assert path.read_text(encoding="utf-8") == json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
    module._write_table(task, ".csv", path, iter(rows))
    assert path.read_text(encoding="utf-8") == TABLES[task]
    module._write_table(task, ".parquet", path, iter(rows))
    table = pyarrow.parquet.read_table(path)
    column = {"predict": "predictions", "embed": "features", "detect": "boxes"}[task]
    assert table.column_names == ["file", column, "error"]
    found = table.to_pylist()
    expected = [{"file": row["file"], column: row.get(column), "error": row.get("error")} for row in rows]
    if task == "predict":
        expected[0][column][1] = expected[0][column][1] | {"unknown": None}
    if task == "detect":
        assert found[0][column][0]["box"]["corners"] == BOX["corners"]
        found[0][column][0]["box"] = {name: found[0][column][0]["box"][name] for name in BOX}
    assert found == expected


@pytest.mark.parametrize(
    ("task", "settings", "made"),
    [
        (
            "predict",
            {"model": "m", "top_k": 2, "up_axis": "z"},
            [("answerer", "pipe", "m", {"top_k": 2, "up_axis": "z"}), ("prediction_answerer", "answerer", {})],
        ),
        (
            "embed",
            {"model": "m", "feature": "tokens", "up_axis": "z"},
            [("feature_answerer", "pipe", "m", "tokens", "z", {})],
        ),
        (
            "detect",
            {"model": "m", "threshold": 0.1, "nms_iou": 0.2, "top_k": 3, "up_axis": "z", "task": "all", "align": True},
            [
                ("check_layout_settings", "pipe", "m", {"task": "all", "align": True}, {}),
                ("box_answerer", "pipe", {"model": "m", "threshold": 0.1, "nms_iou": 0.2, "top_k": 3, "up_axis": "z"})
                + ({"task": "all", "align": True},),
            ],
        ),
    ],
)
def test_a_job_opens_its_pipeline_with_its_settings(task, settings, made, monkeypatch):
    asked, pipelines = [], {"predict": "classification", "embed": "feature-extraction", "detect": "object-detection"}
    for name in ("answerer", "prediction_answerer", "feature_answerer", "box_answerer", "check_layout_settings"):
        monkeypatch.setattr(module, name, lambda *given, name=name, **more: asked.append((name, *given, more)) or name)
    monkeypatch.setattr(module, "open_pipeline", lambda *given: asked.append(given) or "pipe")
    monkeypatch.setattr(module, "usual_batch_size", lambda pipe: f"usual of {pipe}")
    job = module.Job(task, settings, "cuda")
    answer = made[-1][0]
    assert module._open(job) == (answer, "usual of pipe")
    assert module._open(module.Job(task, settings, "cuda", 5)) == (answer, 5)
    if task == "detect":
        made = [made[0], (*made[1][:2], made[1][2] | made[1][3])]
    assert asked == [(f"point-cloud-{pipelines[task]}", "m", "cuda"), *made] * 2


def test_converted_files_are_rows_with_their_points(scans, tmp_path):
    code, out, err = run("batch", "convert", scans, "--to", "npz", "--output", tmp_path / "out", "--points", 200)
    table = tmp_path / "out" / "results.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert code == 2 and out == f"{table}: 4 files, 1 failed\n"
    assert err.splitlines()[-1] == (f"error: 1 of 4 files could not be used; column error of {table} has the reasons")
    for row in rows:
        assert row.pop("stamp")
    names = {"chair.ply": 200, "holes.npy": 98, "inner/lamp.STL": 200}
    assert [row for row in rows if "output" in row and "warnings" not in row] == [
        {"file": str(scans / name), "output": str(tmp_path / "out" / f"{name}.npz"), "points": count}
        for name, count in names.items()
        if name != "holes.npy"
    ]
    (holes,) = [row for row in rows if "warnings" in row]
    assert (holes["output"], holes["points"]) == (str(tmp_path / "out" / "holes.npy.npz"), 98)
    assert sum("error" in row for row in rows) == 1 and len(rows) == 4
    # A mesh keeps its corners without a number of points; a file that is given alone is in the folder itself.
    code, out, err = run("batch", "convert", scans / "inner" / "lamp.STL", "--output", tmp_path / "one")
    assert code == 0 and out == f"{tmp_path / 'one' / 'results.jsonl'}: 1 file, 0 failed\n", err
    whole, mesh = read_point_cloud(tmp_path / "one" / "lamp.STL.ply"), read_point_cloud(scans / "inner" / "lamp.STL")
    assert len(whole) == len(mesh) and whole.is_mesh


def test_standard_input_is_read_in_one_process_alone(tmp_path):
    cloud = b"1 2 3\n4 5 6\n7 8 10\n"
    for name, more in (("a", ()), ("b", ("--workers", 1))):
        code, out, err = run("batch", "convert", "-", "--output", tmp_path / name, *more, stdin=cloud)
        assert code == 0 and out.endswith("results.jsonl: 1 file, 0 failed\n"), err
        assert len(read_point_cloud(tmp_path / name / "<stdin>.ply")) == 3
    refused = run("batch", "convert", "-", "--output", tmp_path / "c", "--engine", "ray", stdin=cloud)
    error = "error: --engine ray reads files, not standard input; expected files or folders\n"
    assert (refused.code, refused.err) == (1, error)


@pytest.mark.parametrize("command", ["predict", "embed", "detect"])
def test_a_table_has_one_of_four_endings_in_any_case(command, scans, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(module, "_run", lambda *one: given.append(one))
    for name in ("check_model", "classifier_or_default"):
        monkeypatch.setattr(module, name, lambda model, *_: f"found {model}")
    for ending in ("jsonl", "csv", "json", "parquet", "CSV"):
        assert run("batch", command, scans, "--model", "m", "--output", tmp_path / f"a.{ending}").code == 0
    code, out, err = run("batch", command, scans, "--model", "m", "--output", tmp_path / "a.xlsx")
    known = "expected one of .jsonl, .csv, .json, .parquet"
    assert (code, out, err) == (1, "", f"error: --output: {tmp_path / 'a.xlsx'} has type '.xlsx'; {known}\n")
    assert len(given) == 5 and all(one[1] == [str(scans)] and len(one[2]) == 4 for one in given)
    # The model may come before the files, and a classifier need not be named.
    found = run("batch", command, "m", scans, "--output", tmp_path / "a.csv")
    if command == "predict":
        assert found.code == 0 and given[-1][0].settings["model"] == "found m" and given[-1][1] == [str(scans)]
        assert run("batch", command, scans, "--output", tmp_path / "a.csv").code == 0
        assert given[-1][0].settings["model"] == "found None"
    else:
        assert found.code == 2 and "Missing option '--model'" in found.err


def test_options_of_layouts_are_settings_where_they_are_given(scans, tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setattr(module, "_run", lambda job, *_: jobs.append(job))
    monkeypatch.setattr(module, "check_model", lambda model, *commands: f"{model} for {commands}")
    words = ("--threshold", 0.25, "--nms-iou", 0.75, "--task", "all", "--labels", "a,b", "--align", "--grammar")
    run(
        "batch", "detect", scans, "--model", "m", "--output", tmp_path / "a.csv", *words, "--align-parts", "unit,floor"
    )
    run("batch", "detect", scans, "--model", "m", "--output", tmp_path / "a.csv", "--no-align", "--no-grammar")
    model = {"model": "m for ('detect',)", "top_k": None, "up_axis": None}
    assert [job.settings for job in jobs] == [
        model
        | {"threshold": 0.25, "nms_iou": 0.75, "task": "all", "candidate_labels": "a,b"}
        | {"align": ["unit", "floor"], "grammar": True},
        model | {"threshold": 0.5, "nms_iou": 0.25, "align": False, "grammar": False},
    ]


@pytest.mark.parametrize("count", [1, 2])
def test_a_bar_counts_several_files(count, scans, tmp_path, monkeypatch):
    bars = []

    class Bar:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self):
            bars.append("one more")

    monkeypatch.setattr(module, "progress", lambda *given, show: bars.append((given, show)) or Bar())
    names = [scans / "chair.ply", scans / "holes.npy"][:count]
    assert run("batch", "convert", *names, "--output", tmp_path / "out").code == 0
    assert bars == [((count, "file"), count > 1), *["one more"] * count]


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_cluster_is_started_once_its_processes_are_counted(engine, scans, tmp_path, monkeypatch):
    done = []

    class Counting(LocalExecutor):
        def count(self, shards=None):
            done.append(shards)
            return super().count(shards)

    class Status:
        def __init__(self, text):
            self.text = text

        def __enter__(self):
            done.append(self.text)

        def __exit__(self, *_):
            done.append("started")

    monkeypatch.setitem(EXECUTORS, engine, Counting)
    monkeypatch.setattr(module, "status", Status)
    np.save(scans / "more.npy", np.eye(3))
    assert run("batch", "convert", scans, "--output", tmp_path / "out", "--engine", engine).code == 2
    begin = [entry for entry in done if entry is not None]
    # Once more, for the sizes of the shards.
    assert begin == (["starting Ray", 5, "started", 5] if engine == "ray" else [5, 5])
