"""ModelNet40: CAD models of 40 classes, in the four layouts in use."""

import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Array2D, DatasetDict, Features, IterableDatasetDict, Value

from hf_any3d.data.files import PointCloudError, file_errors, read_point_cloud
from hf_any3d.data.files.restricted_pickle import read_pickle
from hf_any3d.data.options import one_of
from hf_any3d.data.parquet import License, PublishedDataset, SplitSource, load_published
from hf_any3d.data.parquet.reading import check_names, find_folder, hdf5_source, read_lines, read_table
from hf_any3d.utils.messages import cut

SPLITS = ("train", "test")

CLASS_NAMES = tuple(
    "airplane bathtub bed bench bookshelf bottle bowl car chair cone cup curtain desk door dresser flower_pot "
    "glass_box guitar keyboard lamp laptop mantel monitor night_stand person piano plant radio range_hood sink sofa "
    "stairs stool table tent toilet tv_stand vase wardrobe xbox".split()
)

TRAIN_MODELS = tuple(
    map(
        int,
        "626 106 515 173 572 335 64 197 889 167 79 138 200 109 200 149 171 155 145 124 149 284 465 200 88 231 240 104 "
        "115 128 680 124 90 392 163 344 267 475 87 103".split(),
    )
)
"""Models of each class in the official training split; the numbers of its test models are greater."""

LICENSE = License(
    "other", "for academic research; the models belong to their authors", "https://modelnet.cs.princeton.edu/"
)
CITATION = """@inproceedings{wu2015modelnet,
  title = {3D ShapeNets: A Deep Representation for Volumetric Shapes},
  author = {Wu, Zhirong and Song, Shuran and Khosla, Aditya and Yu, Fisher and Zhang, Linguang and Tang, Xiaoou and
            Xiao, Jianxiong},
  booktitle = {Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2015}
}"""
TREE = """  modelnet40_normal_resampled/                                             layout "txt"
    modelnet40_shape_names.txt, modelnet40_train.txt, modelnet40_test.txt
    airplane/airplane_0001.txt, ...                                        x,y,z,nx,ny,nz in 10,000 lines
    modelnet40_train_8192pts_fps.dat, modelnet40_test_8192pts_fps.dat      layout "pickle", needs only these
  modelnet40_ply_hdf5_2048/ply_data_train0.h5, ..., ply_data_test1.h5      layout "h5"
  ModelNet40/airplane/train/airplane_0001.off, ...                         layout "off\""""

DATASET = PublishedDataset(
    name="modelnet40",
    description="ModelNet40: 12,311 CAD models of 40 classes, as points on their surfaces.",
    homepage="https://modelnet.cs.princeton.edu/",
    license=LICENSE,
    citation=CITATION,
    expected_counts={
        "txt": {"train": 9843, "test": 2468},
        "pickle": {"train": 9843, "test": 2468},
        "off": {"train": 9843, "test": 2468},
        "h5": {"train": 9840, "test": 2468},  # three training models are missing from these files
    },
    origin=(
        "Get modelnet40_normal_resampled.zip or modelnet40_ply_hdf5_2048.zip from "
        "https://shapenet.cs.stanford.edu/media/ (where that is down, copies are on the Hub as "
        "Pointcept/modelnet40_normal_resampled-compressed and Msun/modelnet40), or the meshes, ModelNet40.zip, from "
        "https://modelnet.cs.princeton.edu/; unpack one and pass the folder above it as data_dir"
    ),
    layout=TREE,
    class_names=CLASS_NAMES,
)


def load(
    data_dir: str | os.PathLike | None = None,
    *,
    layout: str | None = None,
    normals: bool = False,
    num_points: int | None = None,
    seed: int = 0,
    partial: bool = False,
    **conversion: Any,
) -> DatasetDict | IterableDatasetDict:
    """Read ModelNet40.

    Rows have `points` (num_points, 3) in the units of the files, neither centered nor scaled, and `label`; for "txt"
    and "off" also `file`, the model's name.

    Args:
        data_dir: the folder above one of those in `TREE`, or that folder itself.
        layout: "txt" (10,000 points with normals), "h5" (2,048 points; needs the package h5py), "pickle" (the cache of
            points by farthest point sampling that other programs write; read without Python's unpickler) or "off"
            (meshes). None takes the first of these that is there.
        normals: read the column `normals` (num_points, 3) too.
        num_points: for "off", points to draw on each surface, 10,000 by default; for "pickle", which cache to read,
            8192 by default. Other layouts have a fixed number.
        seed: for "off", seed of the points, which are drawn for each model separately.
        partial: read what is there of a part of the files, such as the test split or some models of it. Without the
            lists of "txt", the numbers in the names tell the official split.
        conversion: `cache_dir`, `verify`, `on_error` and `streaming` of `hf_any3d.data.parquet.load_published`.

    Source: Wu et al., "3D ShapeNets"; points with normals by Qi et al., "PointNet++".
    """
    one_of("layout", layout, (None, *LAYOUTS))
    root = DATASET.root(data_dir)
    layout, folder = find_layout(root, LAYOUTS if layout is None else (layout,))
    # Files of these two layouts have a fixed number of points.
    if num_points is not None and (layout in ("txt", "h5") or num_points < 1):
        raise ValueError(
            f"num_points is {num_points} in layout {layout!r}; expected None, or at least 1 for off or pickle"
        )
    # Options are part of the cache key: of each layout those that change its rows.
    options: dict[str, Any] = {"normals": normals}
    if layout == "txt":
        points = None  # all in the files, 10,000
        sources = _text_sources(folder, partial)
    elif layout == "h5":
        points = 2048
        arrays = {"data": "points", "label": "label"}
        if normals:
            arrays["normal"] = "normals"
        sources = {}
        for split in SPLITS:
            # By number, as 10 comes before 2 in the order of names.
            files = {int(re.sub(r"\D", "", path.stem) or 0): path for path in folder.glob(f"ply_data_{split}*.h5")}
            # A gap in the numbers is a missing file.
            numbers = sorted(files) if partial else range(max(files, default=0) + 1)
            DATASET.require([folder / f"ply_data_{split}{number}.h5" for number in numbers], folder)
            sources[split] = hdf5_source([files[number] for number in numbers], arrays)
    elif layout == "pickle":
        points = num_points or 8192
        options["num_points"] = points
        files = {split: folder / f"modelnet40_{split}_{points}pts_fps.dat" for split in SPLITS}
        if partial:
            files = {split: file for split, file in files.items() if file.is_file()}
        DATASET.require(files.values(), folder)
        sources = {split: pickle_source(file) for split, file in files.items()}
    else:
        points = num_points or 10_000
        options |= {"num_points": points, "seed": seed}
        sources = _mesh_sources(folder, partial, **options)
    features = Features({"points": Array2D((points, 3), "float32")})
    if normals:
        features["normals"] = Array2D((points, 3), "float32")
    features["label"] = DATASET.class_label()
    # The other layouts do not store the names of models.
    if layout in ("txt", "off"):
        features["file"] = Value("string")
    conversion["partial"] = partial
    return load_published(DATASET, folder, sources, features, variant=layout, options=options, **conversion)


def find_layout(root: Path, layouts: Iterable[str]) -> tuple[str, Path]:
    """Return the first of `layouts` that is in a folder, and its folder."""
    # The given folder itself counts before those in it.
    for name in layouts:
        pattern, places = LAYOUTS[name]
        folder = find_folder((root, *(root / place for place in places)), pattern)
        if folder:
            return name, folder
    raise DATASET.not_found(f"{root}: no ModelNet40 in layout {' or '.join(layouts)}")


def pickle_source(file: Path) -> SplitSource:
    """Return the clouds of a pickled cache: a list of arrays (points, 6) and a list of their labels."""
    with file_errors(file, "cache of points"):
        # The cache has one list of clouds and one of labels.
        rows = list(zip(*read_pickle(file), strict=True))

    def read(number: int) -> Iterator[Mapping[str, object]]:
        cloud, label = rows[number]
        with file_errors(describe(number), "row of the cache"):
            yield {**points_and_normals(cloud), "label": label}

    def describe(number: int) -> str:
        return f"{file}, cloud {number}"

    return SplitSource(range(len(rows)), read, [file], num_rows=len(rows), describe=describe)


def points_and_normals(table: np.ndarray) -> dict[str, np.ndarray]:
    """Split a table (points, 3 or 6) into xyz and normals."""
    if table.shape[1:] not in ((3,), (6,)):
        raise PointCloudError(f"a cloud of shape {table.shape}; expected (points, 6), xyz and normal")
    # Caches may hold xyz alone.
    if table.shape[1] == 3:
        return {"points": table}
    return {"points": table[:, :3], "normals": table[:, 3:]}


def _text_sources(folder: Path, partial: bool) -> dict[str, SplitSource]:
    """Return the sources of text, a file for each model, with 10,000 points and normals."""
    # The lists tell which models are of which split; folders are those of classes.
    lists = {split: folder / f"modelnet40_{split}.txt" for split in SPLITS}
    names_file = folder / "modelnet40_shape_names.txt"
    if not partial:
        DATASET.require([names_file, *lists.values()], folder)
    if names_file.is_file():
        check_names(names_file, CLASS_NAMES, "class")

    def read(path: Path) -> Iterator[Mapping[str, object]]:
        table = read_table(path, columns=6)
        yield {**points_and_normals(table), "label": path.parent.name, "file": path.stem}

    sources = {}
    for split, file in lists.items():
        is_listed = file.is_file()
        models = read_lines(file) if is_listed else _models_there(folder, split)
        for number, model in enumerate(models, 1):
            # The class is what precedes the last underscore: flower_pot_0001.
            if model.rpartition("_")[0] not in CLASS_NAMES or "/" in model:
                raise ValueError(
                    f"{file}: line {number} is {cut(model, 60)!r}; expected a class and a number, chair_0001"
                )
        paths = [folder / model.rpartition("_")[0] / f"{model}.txt" for model in models]
        sources[split] = SplitSource.from_paths(paths, read, [file] if is_listed else [])
    return sources


def _models_there(folder: Path, split: str) -> list[str]:
    """Return the models of a split that are in the folders of the classes, by their numbers."""
    models = []
    for name, count in zip(CLASS_NAMES, TRAIN_MODELS, strict=True):
        for path in sorted((folder / name).glob(f"{name}_*.txt")):
            number = path.stem.rpartition("_")[2]
            if number.isdigit() and (int(number) > count) == (split == "test"):
                models.append(path.stem)
    return models


def _mesh_sources(folder: Path, partial: bool, *, normals: bool, num_points: int, seed: int) -> dict[str, SplitSource]:
    """Return the sources of meshes, on whose surfaces points are drawn."""

    def read(path: Path) -> Iterator[Mapping[str, object]]:
        mesh = read_point_cloud(path)
        # Seeded by its own name, a model gives the same points whatever other files there are.
        generator = np.random.default_rng([seed, zlib.crc32(path.stem.encode())])
        with file_errors(path):
            cloud = mesh.sample_surface(num_points, generator)
        # airplane/train/airplane_0001.off: the class is the second folder above.
        row = {"points": cloud.points, "label": path.parents[1].name, "file": path.stem}
        yield {**row, "normals": cloud.normals} if normals else row

    sources = {}
    for split in SPLITS:
        # By class and name, in whichever order the file system lists them
        files = [path for name in CLASS_NAMES for path in sorted((folder / name / split).glob("*.off"))]
        if not files and not partial:
            raise DATASET.not_found(f"{folder}: no meshes in the folders {split} of the classes")
        sources[split] = SplitSource(files, read, files, num_rows=len(files))
    return sources


_RESAMPLED = ("modelnet40_normal_resampled", "ModelNet/modelnet40_normal_resampled")
LAYOUTS = {
    "txt": ("*/*_[0-9][0-9][0-9][0-9].txt", _RESAMPLED),
    "h5": ("ply_data_t*.h5", ("modelnet40_ply_hdf5_2048",)),
    "pickle": ("modelnet40_*pts_fps.dat", _RESAMPLED),
    "off": ("*/t*/*.off", ("ModelNet40",)),
}
"""Layout -> pattern of files that it alone has, and folders to search below the one given, which is searched first."""
