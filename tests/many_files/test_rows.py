"""Rows and parts of many files, without models: what steps are asked for, and what is written."""

import json
import os
from dataclasses import asdict

import numpy as np
import pyarrow.parquet as parquet
import pytest
from datasets import List, Value

from hf_any3d import many_files
from hf_any3d.data.boxes import answer_features
from hf_any3d.data.file_conversion import CloudColumns
from hf_any3d.many_files import parts as parts_module, rows as rows_module
from hf_any3d.many_files.executors import Workers
from hf_any3d.many_files.files import InputFile
from hf_any3d.many_files.parts import Parts, PartWriter, Written
from hf_any3d.many_files.rows import CloudRows, Step
from hf_any3d.many_files.work import Shard

CLASSES, FEATURES = "point-cloud-classification", "point-cloud-feature-extraction"
BOXES, CHAT = "point-cloud-object-detection", "point-cloud-text-to-text"
PLAIN = CloudRows(("a.ply",), CloudColumns(8, 9), "raise")


def test_a_step_knows_its_model_and_has_a_column_of_its_own(monkeypatch):
    opened = []
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", opened.append)
    monkeypatch.setattr(rows_module, "model_fingerprint", lambda model: f"weights of {model}")
    rows = many_files.embed(many_files.classify(PLAIN, "m", batch_size=1), "n", up_axis="z", keep_points=True)
    assert opened == ["m", "n"] and not many_files.classify(PLAIN, "m").has_points
    assert [step.identity for step in rows.steps] == ["weights of m", "weights of n"] and rows.keep_points
    assert many_files.classify(rows, "m", column="third").keep_points, "kept from before"
    assert list(rows.features) == ["path", "points", "predictions", "features", "error"]
    label = {"label": Value("string"), "score": Value("float32"), "unknown": Value("float32")}
    assert rows.features["predictions"] == List(label) and rows.features["features"] == List(Value("float32"))
    assert many_files.caption(PLAIN, "m").features["caption"] == Value("string")
    assert many_files.detect(PLAIN, "m").features["boxes"] == answer_features()
    steps = [
        {"task": CLASSES, "model": "m", "column": "predictions", "arguments": {"top_k": 1}, "feature": ""}
        | {"identity": "weights of m"},
        {"task": FEATURES, "model": "n", "column": "features", "arguments": {"up_axis": "z"}, "feature": "pooled"}
        | {"identity": "weights of n"},
    ]
    points = asdict(CloudColumns(8, 9)) | {"columns": []}
    assert rows.settings == {"points": points, "on_invalid": "raise", "steps": steps}
    assert json.loads(json.dumps(rows.settings)) == rows.settings
    assert many_files.classify(PLAIN, "m").settings["points"] is None
    for column, kept in (("points", True), ("path", False), ("error", False)):
        with pytest.raises(ValueError, match=f"column is '{column}'; expected a name that no other column has"):
            many_files.classify(PLAIN, "m", column=column, keep_points=kept)
    assert list(many_files.classify(PLAIN, "m", column="points").features) == ["path", "points", "error"]


def test_rows_have_the_columns_and_the_seed_of_their_arguments(tmp_path):
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.eye(3))
    rows = many_files.read_point_clouds(tmp_path)
    assert rows == CloudRows(
        (str(tmp_path / "a.npy"), str(tmp_path / "b.npy")), CloudColumns(None, 2048, (), 0), "drop", (), False
    )
    rows = many_files.read_point_clouds(
        tmp_path / "b.npy", num_points=4, mesh_points=5, columns=["normals"], seed=6, on_invalid="raise"
    )
    assert rows == CloudRows((str(tmp_path / "b.npy"),), CloudColumns(4, 5, ("normals",), 6), "raise")


def test_a_cloud_that_failed_in_one_step_is_left_out_of_the_next(tmp_path, monkeypatch):
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", np.eye(3) + ord(name))
    (tmp_path / "d.ply").write_text("ply\n")
    (tmp_path / "e.xyz").write_text("0 0 0\n1 1 nan\n2 2 2\n3 3 3\n")
    asked = []

    def opened(step, device):
        def answer(clouds):
            names = [os.path.basename(cloud.name) for cloud in clouds]
            asked.append((step.column, device, names))
            return [{"error": "b: bad"} if step.column == "x" and n == "b.npy" else {step.column: n} for n in names]

        return answer

    monkeypatch.setattr(Step, "open", opened)
    steps = (Step(CHAT, "m", "x", batch_size=2), Step(CHAT, "m", "y", batch_size=3))
    converter = CloudColumns(None, 9)
    for on_invalid, last in (("drop", "e.xyz"), ("raise", None)):
        rows = CloudRows(tuple(map(str, sorted(tmp_path.iterdir()))), converter, on_invalid, steps, keep_points=True)
        found = list(rows.open("cuda")(rows.files))
        assert all(list(row) == ["path", "points", "x", "y", "error"] for row in found)
        assert [row["path"] for row in found] == list(rows.files)
        assert [row["x"] for row in found] == [row["y"] for row in found] == ["a.npy", None, "c.npy", None, last]
        assert found[1]["error"] == "b: bad" and "d.ply" in found[3]["error"] and found[0]["error"] is None
        np.testing.assert_array_equal(found[2]["points"], np.eye(3) + ord("c"))
        assert found[1]["points"] is None and (last is None) is (found[4]["error"] is not None)
    assert asked[:4] == [
        ("x", "cuda", ["a.npy", "b.npy", "c.npy"]),
        ("y", "cuda", ["a.npy", "c.npy"]),
        ("x", "cuda", ["e.xyz"]),
        ("y", "cuda", ["e.xyz"]),
    ]
    alone = CloudRows((str(tmp_path / "a.npy"),), CloudColumns(None, 9, ("colors",)), "drop")
    (row,) = alone.open()(alone.files)
    assert row["points"] is None and row["error"].startswith(f"{tmp_path / 'a.npy'}: ") and asked[4:] == asked[:2]


class Engine:
    """Stands in for an executor, and writes the parts here."""

    def __init__(self, engine, workers):
        self.given = (engine, workers)

    def run(self, writer, shards):
        self.writer, self.shards = writer, list(shards)
        for number, shard in enumerate(shards):
            for part in writer.open()(shard):
                yield part | {"process": f"host:{9 - number}"}


@pytest.mark.parametrize(
    ("options", "workers", "device"), [({}, Workers(), "cpu"), ({"gpus": 1}, Workers(gpus=1), "cuda")]
)
def test_parts_follow_those_of_earlier_calls(options, workers, device, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for number in range(5):
        np.save(tmp_path / "in" / f"{number}.npy", np.eye(3) + number)
    (tmp_path / "in" / "bad.ply").write_text("ply\n")
    engines, told, opened = [], [], []
    monkeypatch.setattr(parts_module, "executor_of", lambda *given: engines.append(Engine(*given)) or engines[-1])
    compute = CloudRows.open
    monkeypatch.setattr(CloudRows, "open", lambda rows, device: opened.append(device) or compute(rows))
    rows, out = many_files.read_point_clouds(tmp_path / "in"), tmp_path / "out"
    plain = {"engine": "odd", "files_per_part": 4, "progress": told.append, **options}
    written = many_files.to_parquet(rows, out, **plain)
    assert written == Written(str(out), 6, 0, 1, ("host:8", "host:9"))
    assert engines[0].given == ("odd", workers) and opened == [device] * 2
    assert engines[0].writer == PartWriter(CloudRows((), rows.converter, "drop"), str(out), device)
    assert engines[0].shards == [("00000", rows.files[:4]), ("00001", rows.files[4:])]
    assert [(one["part"], one["rows"], one["failed"]) for one in told] == [
        ("part-00000.parquet", 4, 0),
        ("part-00001.parquet", 2, 1),
    ]
    assert (out / "part-00001.parquet").is_file() and json.loads((out / ".manifest.json").read_text())["format"] == 2
    np.save(tmp_path / "in" / "5.npy", np.eye(3))
    more = many_files.read_point_clouds(tmp_path / "in")
    assert many_files.to_parquet(more, out, workers=3, cpus=2, **plain) == Written(str(out), 7, 6, 1, ("host:9",))
    assert engines[1].shards == [("00002", (str(tmp_path / "in" / "5.npy"),))]
    assert engines[1].given == ("odd", Workers(3, 2, options.get("gpus", 0)))
    assert many_files.to_parquet(more, out, retry=True, **plain).before == 6
    assert engines[2].shards == [("00003", (str(tmp_path / "in" / "bad.ply"),))]
    assert Parts(out, more.settings).numbers() == [0, 1, 2, 3]
    assert many_files.to_parquet(more, out, **plain | {"files_per_part": 1}).processes == ()


def test_rows_of_some_files_and_failed_ones_are_dropped_from_their_parts_alone(tmp_path):
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.eye(3) + number)
    (tmp_path / "bad.ply").write_text("ply\n")
    rows, out = many_files.read_point_clouds(tmp_path), tmp_path / "out"
    parts = Parts(out, rows.settings)
    with parts.opened():
        write = PartWriter(rows, str(out)).open()
        for number, files in enumerate((rows.files[:2], rows.files[2:4], rows.files[4:])):
            write(Shard(f"0000{number}", files))
    assert [name.rpartition("/")[2] for name in parts.names()] == [f"part-0000{number}.parquet" for number in range(3)]
    before = {name: os.stat(name).st_ino for name in parts.names()}
    stamps = {name: InputFile(name).stamp() for name in rows.files}
    assert parts.resume(stamps, retry=False) == set(rows.files)
    # A row of a file that has changed since is dropped, one of a file that is not asked for is kept.
    assert parts.resume({rows.files[0]: "other"}, retry=False) == set(rows.files[1:])
    changed = [name for name, number in before.items() if os.stat(name).st_ino != number]
    assert [name.rpartition("/")[2] for name in changed] == ["part-00000.parquet"]
    (kept,) = parquet.read_table(out / "part-00000.parquet").to_pylist()
    assert kept["path"] == rows.files[1] and np.shape(kept["points"]) == (3, 3)
    assert parts.finish(rows.files[1:]) == (4, 1)
    assert parts.resume(stamps, retry=True) == {name for name in rows.files[1:] if not name.endswith(".ply")}
    # A file that ends processes has a part of its own.
    PartWriter(rows, str(out)).given_up(Shard("00001-001", rows.files[:1]), "a.npy: no")
    PartWriter(rows, str(out)).given_up(Shard("00001-002", rows.files[-1:]), "bad.ply: no")
    assert parts.finish(rows.files) == (5, 2) and parts.numbers() == [0, 1, 1, 1, 2]
