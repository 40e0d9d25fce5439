"""Damaged files in the official layouts give rows or one named error.

A layout is one entry of `TREES`. ANY3D_MUTATIONS says how many trees of each are tried; the default keeps the suite
quick.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from datasets import DatasetDict

from hf_any3d.data.benchmarks import conversion, loading
from hf_any3d.data.benchmarks.statistics import SplitStatistics
from hf_any3d.data.catalog import modelnet40, modelnet40_fewshot, scanobjectnn
from tests.data.catalog import modelnet_trees

MUTATIONS = int(os.environ.get("ANY3D_MUTATIONS", "25"))
SECONDS = 5.0  # of CPU, for one tree of a few small clouds


def scan_tree(root: Path) -> None:
    folder = root / "h5_files" / "main_split"
    folder.mkdir(parents=True)
    for split in ("training", "test"):
        with h5py.File(folder / f"{split}_objectdataset.h5", "w") as file:
            file["data"] = np.zeros((2, 2048, 3), np.float32)
            file["label"] = np.array([3, 14])
            file["mask"] = np.zeros((2, 2048), np.int8)


def fold_tree(root: Path, as_parquet: bool = False) -> None:
    import pickle

    folder = root / "2way_1shot"
    folder.mkdir(parents=True)
    cloud = np.arange(24, dtype=np.float32).reshape(4, 6)
    fold = {split: [(cloud, 0, 8), (cloud, 1, 30)] for split in ("train", "test")}
    (folder / "0.pkl").write_bytes(pickle.dumps(fold))
    if as_parquet:
        splits = load_fold(root, {"cache_dir": root.parent / "seed"})
        for split, rows in splits.items():
            rows.to_parquet(folder / f"0-{split}.parquet")
        (folder / "0.pkl").unlink()


def load_fold(root: Path, options: dict) -> DatasetDict:
    return modelnet40_fewshot.load(root, way=2, shot=1, **options)


Tree = tuple[Callable[[Path], object], Callable[[Path, dict], DatasetDict]]
TREES: dict[str, Tree] = {
    "modelnet40 txt": (modelnet_trees.write_text, lambda root, options: modelnet40.load(root, **options)),
    "modelnet40 h5": (modelnet_trees.write_hdf5, lambda root, options: modelnet40.load(root, **options)),
    "modelnet40 off": (
        modelnet_trees.write_meshes,
        lambda root, options: modelnet40.load(root, num_points=16, **options),
    ),
    "modelnet40 pickle": (
        lambda root: modelnet_trees.write_pickle(root, num_points=40),
        lambda root, options: modelnet40.load(root, num_points=40, **options),
    ),
    "modelnet40_fewshot pickle": (fold_tree, load_fold),
    "modelnet40_fewshot parquet": (lambda root: fold_tree(root, as_parquet=True), load_fold),
    "scanobjectnn": (
        scan_tree,
        lambda root, options: scanobjectnn.load(root, variant="obj_bg", masks=True, **options),
    ),
}
"""Layout -> how to write a small tree of it, and how to load one."""


def mutate(data: bytes, generator: np.random.Generator) -> bytes:
    """Change, insert and remove bytes, mostly near the start where headers are, and sometimes cut the end off."""
    changed = bytearray(data)
    reach = len(changed) if generator.random() < 0.5 else min(len(changed), 512)
    for place in generator.integers(0, max(reach, 1), generator.integers(1, 8)).tolist():
        kind = generator.integers(3)
        some = generator.integers(0, 256, generator.integers(1, 5), dtype=np.uint8).tobytes()
        changed[place : place + (0 if kind == 1 else len(some))] = b"" if kind == 2 else some
    return bytes(changed[: generator.integers(len(changed) + 1)] if generator.random() < 0.2 else changed)


class Counted:
    """In place of a shard: counts the rows and writes nothing."""

    def __init__(self, path, features):
        self.path, self.features = path, features
        self.statistics, self.num_bytes = SplitStatistics(), 0

    def add(self, row):
        self.statistics.add(row, self.features)

    def finish(self):
        return 0

    def discard(self):
        pass


@pytest.mark.parametrize("name", TREES)
def test_mutated_files_give_rows_or_one_named_error(name, tmp_path, monkeypatch):
    write, load = TREES[name]
    root, cache = tmp_path / "tree", tmp_path / "cache"
    write(root)
    # Reading and checking are tried ten thousand times, writing what has been checked is not.
    monkeypatch.setattr(conversion, "ShardWriter", Counted)
    for module in (conversion, loading):
        monkeypatch.setattr(module, "write_json", lambda path, value: None)
    monkeypatch.setattr(loading, "_open", lambda *_: DatasetDict())
    files = sorted(path for path in root.rglob("*") if path.is_file())
    whole = [path.read_bytes() for path in files]
    generator = np.random.default_rng(0)
    refused = 0
    for number in range(MUTATIONS):
        chosen = int(generator.integers(len(files)))
        files[chosen].write_bytes(mutate(whole[chosen], generator))
        # Mutations may leave size and time alone, so each has a cache of its own.
        options = {"cache_dir": cache / str(number), "verify": False, "on_error": ("raise", "skip")[number % 2]}
        start = time.process_time()
        try:
            load(root, options)
        except (ValueError, FileNotFoundError) as error:
            refused += 1
            assert str(root) in str(error), f"mutation {number}: no file named in {error!r}"
        assert time.process_time() - start < SECONDS, f"mutation {number}"
        files[chosen].write_bytes(whole[chosen])
    assert refused, "nothing was damaged"
