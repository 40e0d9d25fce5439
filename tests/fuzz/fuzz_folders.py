"""Damaged folders of clouds: their metadata, and the official layouts of datasets."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hf_any3d.data.catalog import (
    folder as folders,
    modelnet40,
    modelnet40_fewshot,
    modelnet40_generative,
    nuscenes,
    objaverse_captions,
    s3dis,
    scannet_detection,
    semantickitti,
    shapenet55,
    shapenetpart,
    sunrgbd,
)
from hf_any3d.data.parquet import loading
from tests.data.catalog import (
    modelnet_trees,
    pointllm_trees,
    s3dis_trees,
    shapenet_trees,
    street_trees,
    test_detection_datasets,
    test_modelnet40_generative,
)
from tests.data.catalog.test_folder_metadata import ROWS, write as write_metadata
from tests.data.clouds import points
from tests.fuzz.damage import mutate
from tests.fuzz.target import Target


class DamagedTree(Target):
    """One file of a small tree is damaged; a refusal names a file of the tree."""

    refusals = (ValueError, FileNotFoundError)
    inputs = 25

    def __init__(self, name: str, write: Callable[[Path], object], load: Callable[[Path, dict], object]):
        self.name = f"tree {name}"
        self.write, self.load = write, load

    def prepare(self, folder: Path) -> None:  # noqa: D102
        self.root = folder / "tree"
        self.root.mkdir()
        self.write(self.root)
        self.files = sorted(path for path in self.root.rglob("*") if path.is_file())
        self.whole = [path.read_bytes() for path in self.files]
        self.endings = sorted({path.suffix for path in self.files})
        (folder / "warm").mkdir()
        self._load(self.root, folder / "warm", "raise")

    def make(self, generator: np.random.Generator, folder: Path) -> tuple[str, bytes, str]:  # noqa: D102
        # A list or fold is damaged as often as the many clouds next to it.
        ending = generator.choice(self.endings)
        chosen = int(generator.choice([at for at, path in enumerate(self.files) if path.suffix == ending]))
        other = int(generator.integers(len(self.files)))
        damaged = mutate(self.whole[chosen], generator, self.whole[other])
        return str(self.files[chosen].relative_to(self.root)), damaged, str(generator.choice(["raise", "skip"]))

    def attempt(self, case: tuple[str, bytes, str], folder: Path) -> None:  # noqa: D102
        name, damaged, on_error = case
        shutil.copytree(self.root, folder / "tree")
        (folder / "tree" / name).write_bytes(damaged)
        self._load(folder / "tree", folder, on_error)

    def _load(self, root: Path, folder: Path, on_error: str) -> None:
        # Reading and checking are tried ten thousand times, writing what has been checked is not.
        with patch.object(loading, "generated_dataset", _without_writing):
            self.load(root, {"cache_dir": folder / "cache", "verify": False, "on_error": on_error})

    def check_refusal(self, error: BaseException, case: tuple[str, bytes, str], folder: Path) -> None:  # noqa: D102
        assert str(folder / "tree") in str(error)


def _without_writing(generator, features, *, gen_kwargs, **options):
    """In place of a conversion: reads and counts the rows."""
    return Dataset.from_dict({"row": [0 for _ in generator(**gen_kwargs)]})


class DamagedMetadata(DamagedTree):
    """Damaged metadata in a folder results in its rows or in one error that names the folder."""

    inputs = 40

    def __init__(self, kind: str):
        self.kind = kind
        super().__init__(f"folder {kind}", self._write, self._read)

    def _write(self, root: Path) -> None:
        for row in ROWS:
            path = root / row["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, points())
        self.chosen = self.kind.split()[-1]
        if self.kind.startswith("described"):
            features = Features({"file_name": Value("string"), "label": ClassLabel(names=["cup", "mug"])})
            rows = {"file_name": [row["file_name"] for row in ROWS], "label": [1, 0]}
            Dataset.from_dict(rows, features=features).to_parquet(root / self.chosen)
        else:
            write_metadata(root / self.chosen, ROWS)

    def make(self, generator: np.random.Generator, folder: Path) -> tuple[str, bytes, str]:  # noqa: D102
        return self.chosen, mutate((self.root / self.chosen).read_bytes(), generator), "raise"

    @staticmethod
    def _read(root: Path, options: dict) -> None:
        assert 1 <= len(list(folders.load(root, streaming=True)["train"])) <= 2


def fold_tree(root: Path, as_parquet: bool = False) -> None:
    """One fold of few shots, as a pickle or Parquet."""
    folder = root / "2way_1shot"
    folder.mkdir(parents=True)
    cloud = np.arange(24, dtype=np.float32).reshape(4, 6)
    fold = {split: [(cloud, 0, 8), (cloud, 1, 30)] for split in ("train", "test")}
    (folder / "0.pkl").write_bytes(pickle.dumps(fold))
    if as_parquet:
        for split, rows in load_fold(root, {"cache_dir": root.parent / "seed"}).items():
            rows.to_parquet(folder / f"0-{split}.parquet")
        (folder / "0.pkl").unlink()


def named_fold_tree(root: Path) -> None:
    """One fold that names clouds of ModelNet40."""
    modelnet_trees.write_text(root)
    folder = root / "2way_1shot"
    folder.mkdir()
    named = [["airplane_0001", 0], ["xbox_0004", 1]]
    (folder / "0.json").write_text(json.dumps({"train": named, "test": named}))


def load_fold(root: Path, options: dict) -> DatasetDict:
    """Load the fold of the trees above."""
    return modelnet40_fewshot.load(root, way=2, shot=1, **options)


TREES: dict[str, tuple[Callable[[Path], object], Callable[[Path, dict], object]]] = {
    "modelnet40 txt": (modelnet_trees.write_text, lambda root, options: modelnet40.load(root, **options)),
    "modelnet40 off": (
        modelnet_trees.write_meshes,
        lambda root, options: modelnet40.load(root, num_points=16, **options),
    ),
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
    "semantickitti": (street_trees.write_semantickitti, lambda root, options: semantickitti.load(root, **options)),
    "nuscenes": (
        street_trees.write_nuscenes,
        lambda root, options: nuscenes.load(root, version="v1.0-mini", **options),
    ),
    "s3dis annotations": (s3dis_trees.write_annotations, lambda root, options: s3dis.load(root, **options)),
    "s3dis npy": (s3dis_trees.write_arrays, lambda root, options: s3dis.load(root, **options)),
    "s3dis blocks": (
        s3dis_trees.write_arrays,
        lambda root, options: s3dis.load(root, block_size=1.0, block_points=32, **options),
    ),
    "shapenet55": (shapenet_trees.write_shapenet55, lambda root, options: shapenet55.load(root, **options)),
    "shapenetpart": (shapenet_trees.write_shapenetpart, lambda root, options: shapenetpart.load(root, **options)),
    "scannet_detection": (
        test_detection_datasets.write_scannet,
        lambda root, options: scannet_detection.load(root, **options),
    ),
    "sunrgbd": (test_detection_datasets.write_sunrgbd, lambda root, options: sunrgbd.load(root, **options)),
}
"""Layout -> how to write a small tree of it, and how to load one."""

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "described metadata.parquet")

TARGETS = [*(DamagedTree(name, *tree) for name, tree in TREES.items()), *(DamagedMetadata(kind) for kind in METADATA)]
