"""Damaged files in the official layouts give rows or one named error, in bounded time and memory.

A layout is one entry of `TREES`. `make fuzz` tries ten thousand trees of each.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from datasets import DatasetDict

from hf_any3d.data.benchmarks import conversion, loading
from hf_any3d.data.benchmarks.statistics import SplitStatistics
from hf_any3d.data.catalog import (
    modelnet40,
    modelnet40_fewshot,
    modelnet40_generative,
    objaverse_captions,
    s3dis,
    scanobjectnn,
    shapenet55,
    shapenetpart,
)
from tests.data.catalog import modelnet_trees, pointllm_trees, s3dis_trees, shapenet_trees, test_modelnet40_generative
from tests.mutations import TooLong, bounded, mutate, mutations

MUTATIONS = mutations(25)
MEGABYTES = 512  # of address space, of which Arrow takes more than it uses


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


def named_fold_tree(root: Path) -> None:
    modelnet_trees.write_text(root)
    folder = root / "2way_1shot"
    folder.mkdir()
    named = [["airplane_0001", 0], ["xbox_0004", 1]]
    (folder / "0.json").write_text(json.dumps({"train": named, "test": named}))


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
    "modelnet40_fewshot json": (
        named_fold_tree,
        lambda root, options: load_fold(root, {"modelnet_dir": root, **options}),
    ),
    "modelnet40_fewshot parquet": (lambda root: fold_tree(root, as_parquet=True), load_fold),
    "modelnet40_generative": (
        test_modelnet40_generative.write,
        lambda root, options: modelnet40_generative.load(root, **options),
    ),
    "objaverse_captions": (
        pointllm_trees.write_pointllm,
        lambda root, options: objaverse_captions.load(root, **options),
    ),
    "objaverse_captions annotations": (
        pointllm_trees.write_texts,
        lambda root, options: objaverse_captions.load(root, which="complex", streaming=True, **options),
    ),
    "s3dis annotations": (s3dis_trees.write_annotations, lambda root, options: s3dis.load(root, **options)),
    "s3dis npy": (s3dis_trees.write_arrays, lambda root, options: s3dis.load(root, **options)),
    "s3dis blocks": (
        s3dis_trees.write_arrays,
        lambda root, options: s3dis.load(root, block_size=1.0, block_points=32, **options),
    ),
    "shapenet55": (shapenet_trees.write_shapenet55, lambda root, options: shapenet55.load(root, **options)),
    "shapenetpart": (shapenet_trees.write_shapenetpart, lambda root, options: shapenetpart.load(root, **options)),
    "scanobjectnn": (
        scan_tree,
        lambda root, options: scanobjectnn.load(root, variant="obj_bg", masks=True, **options),
    ),
}
"""Layout -> how to write a small tree of it, and how to load one."""


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
    endings = sorted({path.suffix for path in files})
    generator = np.random.default_rng(0)
    refused, start = 0, time.process_time()
    with bounded(megabytes=MEGABYTES) as begin:
        for number in range(MUTATIONS):
            # A list or fold is damaged as often as the many clouds beside it.
            ending = generator.choice(endings)
            chosen = int(generator.choice([at for at, path in enumerate(files) if path.suffix == ending]))
            other = int(generator.integers(len(files)))
            damaged = mutate(whole[chosen], generator, whole[other])
            files[chosen].write_bytes(damaged)
            # Mutations may leave size and time alone, so each has a cache of its own.
            options = {"cache_dir": cache / str(number), "verify": False, "on_error": ("raise", "skip")[number % 2]}
            begin()
            try:
                load(root, options)
            except (ValueError, FileNotFoundError) as error:
                refused += 1
                assert str(root) in str(error), f"mutation {number}: no file named in {error!r}"
            except (Exception, TooLong) as error:
                text = f"mutation {number}: {files[chosen]} is {damaged[:2000]!r}"
                raise AssertionError(text) from error
            files[chosen].write_bytes(whole[chosen])
    seconds = time.process_time() - start
    print(f"{name}: {MUTATIONS} trees, {refused} refused, {seconds:.1f} s of CPU")
    assert refused, "nothing was damaged"
