"""Rows and parts of many files, without models: what steps are asked for, and what is written."""

import json
import os
import socket
from dataclasses import asdict

import numpy as np
import pyarrow.parquet as parquet
import pytest
from datasets import List, Value

from hf_any3d import many_files
from hf_any3d.data.boxes import answer_features
from hf_any3d.data.file_conversion import CloudColumns
from hf_any3d.data.fingerprints import model_fingerprint
from hf_any3d.many_files.files import InputFile
from hf_any3d.many_files.parts import Parts, PartWriter, Written
from hf_any3d.many_files.rows import CloudRows, Step
from hf_any3d.many_files.work import Shard
from hf_any3d.pipelines import default_model

CLASSES, FEATURES = "point-cloud-classification", "point-cloud-feature-extraction"
BOXES, CHAT = "point-cloud-object-detection", "point-cloud-text-to-text"
PLAIN = CloudRows(("a.ply",), CloudColumns(8, 9), "raise")


def test_a_step_knows_its_model_and_has_a_column_of_its_own():
    model, weights = default_model(), model_fingerprint(default_model())
    rows = many_files.embed(many_files.classify(PLAIN, batch_size=1), model, up_axis="z", keep_points=True)
    assert not many_files.classify(PLAIN).has_points and rows.keep_points
    assert many_files.classify(rows, column="third").keep_points, "kept from before"
    assert list(rows.features) == ["path", "points", "predictions", "features", "error"]
    label = {"label": Value("string"), "score": Value("float32"), "unknown": Value("float32")}
    assert rows.features["predictions"] == List(label) and rows.features["features"] == List(Value("float32"))
    assert many_files.caption(PLAIN, model).features["caption"] == Value("string")
    assert many_files.detect(PLAIN, model).features["boxes"] == answer_features()
    steps = [
        {"task": CLASSES, "column": "predictions", "arguments": {"top_k": 1}, "feature": ""},
        {"task": FEATURES, "column": "features", "arguments": {"up_axis": "z"}, "feature": "pooled"},
    ]
    steps = [{**step, "model": model, "identity": weights} for step in steps]
    points = asdict(CloudColumns(8, 9)) | {"columns": []}
    assert rows.settings == {"points": points, "on_invalid": "raise", "steps": steps}
    assert json.loads(json.dumps(rows.settings)) == rows.settings
    assert many_files.classify(PLAIN).settings["points"] is None
    for column, kept in (("points", True), ("path", False), ("error", False)):
        with pytest.raises(ValueError, match=f"column is '{column}'; expected a name that no other column has"):
            many_files.classify(PLAIN, column=column, keep_points=kept)
    assert list(many_files.classify(PLAIN, column="points").features) == ["path", "points", "error"]


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


def test_a_cloud_that_failed_in_one_step_is_left_out_of_the_next(tmp_path):
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", np.eye(3) + ord(name))
    (tmp_path / "d.ply").write_text("ply\n")
    (tmp_path / "e.xyz").write_text("0 0 0\n1 1 nan\n2 2 2\n3 3 3\n")
    asked = []

    class Named(Step):
        def open(self, device):
            def answer(clouds):
                names = [os.path.basename(cloud.name) for cloud in clouds]
                asked.append((self.column, device, names))
                bad = "b.npy" if self.column == "x" else None
                return [{"error": "b: bad"} if name == bad else {self.column: name} for name in names]

            return answer

    steps = (Named(CHAT, "m", "x", batch_size=2), Named(CHAT, "m", "y", batch_size=3))
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


def test_parts_follow_those_of_earlier_calls(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(5):
        np.save(tmp_path / "in" / f"{number}.npy", np.eye(3) + number)
    (tmp_path / "in" / "bad.ply").write_text("ply\n")
    told = []
    rows, out = many_files.read_point_clouds(tmp_path / "in"), tmp_path / "out"
    plain = {"engine": "local", "files_per_part": 4, "progress": told.append}
    here = (f"{socket.gethostname()}:{os.getpid()}",)
    assert many_files.to_parquet(rows, out, **plain) == Written(str(out), 6, 0, 1, here)
    assert [(one["part"], one["rows"], one["failed"]) for one in told] == [
        ("part-00000.parquet", 4, 0),
        ("part-00001.parquet", 2, 1),
    ]
    assert (out / "part-00001.parquet").is_file() and json.loads((out / ".manifest.json").read_text())["format"] == 2
    np.save(tmp_path / "in" / "5.npy", np.eye(3))
    more = many_files.read_point_clouds(tmp_path / "in")
    assert many_files.to_parquet(more, out, **plain) == Written(str(out), 7, 6, 1, here)
    assert many_files.to_parquet(more, out, retry=True, **plain).before == 6
    assert [(one["part"], one["rows"]) for one in told[2:]] == [("part-00002.parquet", 1), ("part-00003.parquet", 1)]
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
