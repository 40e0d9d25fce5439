"""ModelNet40: CAD models of 40 classes, in the four layouts in which the field passes it around."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from datasets import Array2D, DatasetDict, Features

from hf_any3d.data.catalog import modelnet40_layouts
from hf_any3d.data.conversion import Benchmark, Licence, load_benchmark

LAYOUTS = ("txt", "h5", "pickle", "off")
PLACES = {
    "txt": ("modelnet40_normal_resampled", "ModelNet/modelnet40_normal_resampled"),
    "h5": ("modelnet40_ply_hdf5_2048",),
    "pickle": ("modelnet40_normal_resampled", "ModelNet/modelnet40_normal_resampled"),
    "off": ("ModelNet40",),
}
"""Layout -> folders, below the one given, where it is looked for; the one given itself is looked at too."""

CLASS_NAMES = tuple(
    "airplane bathtub bed bench bookshelf bottle bowl car chair cone cup curtain desk door dresser flower_pot "
    "glass_box guitar keyboard lamp laptop mantel monitor night_stand person piano plant radio range_hood sink sofa "
    "stairs stool table tent toilet tv_stand vase wardrobe xbox".split()
)

LICENCE = Licence(
    "other",
    "for academic research; the models belong to their authors",
    "https://modelnet.cs.princeton.edu/",
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

BENCHMARK = Benchmark(
    name="modelnet40",
    description="ModelNet40: 12,311 CAD models of 40 classes, as points on their surfaces.",
    homepage="https://modelnet.cs.princeton.edu/",
    licence=LICENCE,
    citation=CITATION,
    expected_counts={
        "txt": {"train": 9843, "test": 2468},
        "pickle": {"train": 9843, "test": 2468},
        "off": {"train": 9843, "test": 2468},
        "h5": {"train": 9840, "test": 2468},  # three training models never got into these files
    },
    origin=(
        "Get modelnet40_normal_resampled.zip or modelnet40_ply_hdf5_2048.zip from "
        "https://shapenet.cs.stanford.edu/media/ (where that is down, copies are on the hub as "
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
    **conversion,
) -> DatasetDict:
    """Read ModelNet40.

    Rows have `points` (num_points, 3) in the units of the files, neither centred nor scaled, and `label`; for "txt"
    and "off" also `file`, the model's name. Which points a model is trained on is decided later, by farthest point
    sampling for instance.

    Args:
        data_dir: the folder above one of those in `TREE`, or that folder itself.
        layout: "txt" (10,000 points with normals), "h5" (2,048 points; needs the package h5py), "pickle" (the cache of
            points by farthest point sampling that other programs write; read without Python's unpickler) or "off"
            (meshes). None takes the first of these that is there.
        normals: read the column `normals` (num_points, 3) too.
        num_points: for "off", points to draw on each surface, 10,000 by default; for "pickle", which cache to take,
            8192 by default. Other layouts have their number.
        seed: for "off", draws the points, for each model on its own.
        conversion: `cache_dir`, `verify`, `on_error` and `streaming` of `hf_any3d.data.conversion.load_benchmark`.

    Raises:
        ValueError: an unknown layout, a number of points that it does not have, another number of clouds than
            published, or class names other than the published ones.
        FileNotFoundError: files are missing; says where they are to be had.

    Source: Wu et al., "3D ShapeNets"; points with normals by Qi et al., "PointNet++".
    """
    if layout not in (None, *LAYOUTS):
        raise ValueError(f"layout is {layout!r}; expected one of {', '.join(LAYOUTS)} or None")
    root = BENCHMARK.root(data_dir)
    layout, folder = find_layout(root, LAYOUTS if layout is None else (layout,))
    if num_points is not None and (layout in ("txt", "h5") or num_points < 1):
        raise ValueError(
            f"num_points is {num_points} in layout {layout!r}; expected None, or at least 1 for off or pickle"
        )
    options = {"normals": normals}
    if layout in ("off", "pickle"):
        options["num_points"] = num_points or {"off": 10_000, "pickle": 8192}[layout]
    if layout == "off":
        options["seed"] = seed
    sources = modelnet40_layouts.SOURCES[layout](BENCHMARK, folder, **options)
    points = {"txt": None, "h5": 2048}.get(layout, num_points or options.get("num_points"))
    names = ("points", "normals") if normals else ("points",)
    features = Features({name: Array2D((points, 3), "float32") for name in names})
    features["label"] = BENCHMARK.class_label()
    if layout in ("txt", "off"):
        features["file"] = modelnet40_layouts.FILE
    return load_benchmark(BENCHMARK, folder, sources, features, variant=layout, options=options, **conversion)


def find_layout(root: Path, layouts: Iterable[str], places: Mapping[str, Iterable[str]] = PLACES) -> tuple[str, Path]:
    """Find which layout lies in a folder, and where.

    Args:
        root: the folder given.
        layouts: what to look for, in this order.
        places: folders below `root` to look into, by layout.

    Raises:
        FileNotFoundError: none of them; says where the files are to be had.
    """
    for layout in layouts:
        for folder in (root, *(root / place for place in places[layout])):
            if modelnet40_layouts.is_there(layout, folder):
                return layout, folder
    raise BENCHMARK.not_found(f"{root}: no ModelNet40 in layout {' or '.join(layouts)}")
