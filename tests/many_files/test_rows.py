"""Rows and parts of many files, without models: what steps are asked for, and what is written."""

import os

import numpy as np
import pyarrow.parquet as parquet

from hf_any3d import many_files
from hf_any3d.data.files.input_files import InputFile
from hf_any3d.data.tables.file_conversion import CloudColumns
from hf_any3d.many_files.parts import Parts, PartWriter
from hf_any3d.many_files.rows import CloudRows, Step
from hf_any3d.many_files.work import Shard

BOXES, CHAT = "point-cloud-object-detection", "point-cloud-text-to-text"


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
    # Nothing is known about the file itself, so that the next call does it again, also without `retry`.
    assert parts.resume(stamps, retry=False) == set(rows.files[1:-1])
