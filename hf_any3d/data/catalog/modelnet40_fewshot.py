"""ModelNet40 few-shot: episodes of 5 or 10 classes with 10 or 20 training shapes each, ten folds of each kind."""

import os
from pathlib import Path

from datasets import Array2D, ClassLabel, DatasetDict, Features

from hf_any3d.data.benchmarks import Benchmark, load_benchmark
from hf_any3d.data.catalog import modelnet40
from hf_any3d.data.catalog.fewshot_folds import (
    SPLITS,
    Shape,
    fold_sources,
    named_shapes,
    parquet_shapes,
    pickled_shapes,
)

WAYS, SHOTS, FOLDS = (5, 10), (10, 20), 10
TEST_SHAPES = 20  # of each class

BENCHMARK = Benchmark(
    name="modelnet40_fewshot",
    description="Few-shot episodes of ModelNet40: some of its classes, a few shapes of each to learn from.",
    homepage="https://github.com/charusharma1991/SSL_PointClouds",
    licence=modelnet40.LICENCE,
    citation="""@inproceedings{sharma2020self,
  title = {Self-Supervised Few-Shot Learning on Point Clouds},
  author = {Sharma, Charu and Kaul, Manohar},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year = {2020}
}
"""
    + modelnet40.CITATION,
    expected_counts={
        f"{way}way_{shot}shot": {"train": way * shot, "test": way * TEST_SHAPES} for way in WAYS for shot in SHOTS
    },
    origin=(
        "Get the folds (ModelNetFewshot) by the link in the data notes of Point-BERT, "
        "https://github.com/Julie-tang00/Point-BERT/blob/master/DATASET.md, and pass their folder as data_dir"
    ),
    layout="""  ModelNetFewshot/5way_10shot/0.pkl, ..., 9.pkl                      as published
  ModelNetFewshot/5way_10shot/0-train.parquet, 0-test.parquet, ...   the same rows as Parquet
  ModelNetFewshot/5way_10shot/0.json, ...   {"train": [["chair_0001", 0], ...], "test": [...]}
  and likewise 5way_20shot, 10way_10shot, 10way_20shot""",
    class_names=modelnet40.CLASS_NAMES,
)


def load(
    data_dir: str | os.PathLike | None = None,
    *,
    way: int = 5,
    shot: int = 10,
    fold: int = 0,
    normals: bool = False,
    modelnet_dir: str | os.PathLike | None = None,
    **conversion,
) -> DatasetDict:
    """Read one fold.

    Rows have `points` (num_points, 3) as in the files, neither centred nor scaled; `label`, 0 to `way` - 1 with the
    names of the fold's classes; and `original_label`, the class of ModelNet40.

    Args:
        data_dir: the folder with `{way}way_{shot}shot`, or the one above `ModelNetFewshot`. A fold is
            `{fold}-train.parquet` and `{fold}-test.parquet`, `{fold}.json` or the published `{fold}.pkl`, which is
            read without Python's unpickler; the first of these that is there is taken. A loaded fold is turned into
            the first kind by `splits[split].to_parquet(...)`.
        way: classes.
        shot: training shapes of each class; there are 20 test shapes of each.
        fold: which of them, 0 to 9.
        normals: read the column `normals` too.
        modelnet_dir: for JSON, which only names the shapes: the folder of ModelNet40 in layout "txt".
        conversion: `cache_dir`, `verify`, `on_error` and `streaming` of `hf_any3d.data.benchmarks.load_benchmark`.

    Raises:
        ValueError: an argument out of range; a fold of another content, or with another number of shapes.
        FileNotFoundError: the fold is missing; says where it is to be had.

    Source: Sharma and Kaul, "Self-Supervised Few-Shot Learning on Point Clouds".
    """
    for name, value, least in (("way", way, 2), ("shot", shot, 1), ("fold", fold, 0)):
        if type(value) is not int or value < least:
            raise ValueError(f"{name} is {value!r}; expected a whole number from {least}")
    root = BENCHMARK.root(data_dir)
    variant = f"{way}way_{shot}shot"
    folder = next((f for f in (root / variant, root / "ModelNetFewshot" / variant) if f.is_dir()), root / variant)
    files, shapes = _fold(folder, fold, modelnet_dir)
    sources, names = fold_sources(files, shapes, way, BENCHMARK.class_names)
    features = Features({name: Array2D((None, 3), "float32") for name in ("points", "normals")[: 1 + normals]})
    features["label"] = ClassLabel(names=names)
    features["original_label"] = BENCHMARK.class_label()
    options = {"fold": fold, "normals": normals}
    return load_benchmark(BENCHMARK, folder, sources, features, variant=variant, options=options, **conversion)


def _fold(
    folder: Path, fold: int, modelnet_dir: str | os.PathLike | None
) -> tuple[list[Path], dict[str, list[Shape]]]:
    """The files of a fold and its shapes."""
    parquet = {split: folder / f"{fold}-{split}.parquet" for split in SPLITS}
    if all(path.is_file() for path in parquet.values()):
        return list(parquet.values()), parquet_shapes(parquet)
    path = folder / f"{fold}.json"
    if path.is_file():
        if modelnet_dir is None:
            raise ValueError(f"modelnet_dir is None; expected ModelNet40 as text, of which {path} names shapes")
        _, clouds = modelnet40.find_layout(Path(modelnet_dir), ("txt",))
        return [path], named_shapes(path, clouds, BENCHMARK.class_names)
    path = folder / f"{fold}.pkl"
    if path.is_file():
        return [path], pickled_shapes(path)
    raise BENCHMARK.not_found(f"{folder}: no {fold}.pkl, {fold}.json or {fold}-train.parquet and {fold}-test.parquet")
