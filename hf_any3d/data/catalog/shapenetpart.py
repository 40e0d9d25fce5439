"""ShapeNetPart: objects of 16 categories, each point with its part."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import Array2D, ClassLabel, DatasetDict, Features, IterableDatasetDict, List, Value

from hf_any3d.data.catalog import shapenet55
from hf_any3d.data.files import PointCloudError, PointCloudFileError, file_errors
from hf_any3d.data.files.text_numbers import integers
from hf_any3d.data.parquet import PublishedDataset, SplitSource, load_published
from hf_any3d.data.parquet.reading import check_names, read_table

PARTS: dict[str, tuple[str, ...]] = {
    "Airplane": ("body", "wing", "tail", "engine"),
    "Bag": ("handle", "body"),
    "Cap": ("crown", "peak"),
    "Car": ("roof", "hood", "wheel", "body"),
    "Chair": ("back", "seat", "leg", "arm"),
    "Earphone": ("earcup", "headband", "wire"),
    "Guitar": ("head", "neck", "body"),
    "Knife": ("blade", "handle"),
    "Lamp": ("base", "shade", "canopy", "pole"),
    "Laptop": ("keyboard", "screen"),
    "Motorbike": ("gas tank", "seat", "wheel", "handlebar", "light", "frame"),
    "Mug": ("handle", "cup"),
    "Pistol": ("barrel", "handle", "trigger"),
    "Rocket": ("body", "fin", "nose"),
    "Skateboard": ("wheel", "deck", "belt"),
    "Table": ("top", "leg", "drawer"),
}
"""Category -> its parts, in the order of the labels 0 to 49. The files number parts; these are the usual names."""

PART_NAMES = tuple(f"{category} {part}" for category, parts in PARTS.items() for part in parts)
"""Names of the 50 parts in the order of their labels, such as "Chair back"."""

# The dataset's own list writes the names with capitals.
SYNSETS = {number: name.capitalize() for number, name in shapenet55.TAXONOMY.items() if name.capitalize() in PARTS}
"""WordNet number of the category, which names its folder -> its name, in the order of the labels."""

CATEGORY_PARTS: dict[str, tuple[int, ...]] = {
    category: tuple(PART_NAMES.index(f"{category} {part}") for part in parts) for category, parts in PARTS.items()
}
"""Category -> the labels of its parts: what `Any2PointConfig.category_parts` lists."""

FOLDER = "shapenetcore_partanno_segmentation_benchmark_v0_normal"
SPLITS = {"train": "train", "validation": "val", "test": "test"}
# Names of models have neither slashes nor dots, so that none leads out of the folder.
_NAME = re.compile(r"shape_data/(\d{8})/([\w-]+)")

DATASET = PublishedDataset(
    name="shapenetpart",
    description=(
        "ShapeNetPart: 16,881 objects of 16 categories as clouds with normals, each point with one of 50 parts; a "
        "category has 2 to 6 of them."
    ),
    homepage="https://cs.stanford.edu/~ericyi/project_page/part_annotation/",
    license=shapenet55.LICENSE,
    citation="""@article{yi2016scalable,
  title = {A Scalable Active Framework for Region Annotation in 3D Shape Collections},
  author = {Yi, Li and Kim, Vladimir G. and Ceylan, Duygu and Shen, I-Chao and Yan, Mengyan and Su, Hao and
            Lu, Cewu and Huang, Qixing and Sheffer, Alla and Guibas, Leonidas},
  journal = {ACM Transactions on Graphics (SIGGRAPH Asia)},
  volume = {35},
  number = {6},
  year = {2016}
}""",
    expected_counts={"default": {"train": 12_137, "validation": 1_870, "test": 2_874}},
    origin=(
        "Agree to ShapeNet's terms at https://shapenet.org/terms, get "
        f"{FOLDER}.zip from https://shapenet.cs.stanford.edu/media/ (where that is down, a copy is on the Hub as "
        "cminst/ShapeNet), unpack it and pass the folder above it as data_dir"
    ),
    layout=f"""  {FOLDER}/
    synsetoffset2category.txt                                      Airplane 02691156, ...
    train_test_split/shuffled_{{train,val,test}}_file_list.json      ["shape_data/02691156/1a04e3...", ...]
    02691156/1a04e3eab45ca15dd86060f189eb133.txt, ...              x y z nx ny nz part in each line""",
    class_names=tuple(SYNSETS.values()),
)


def load(
    data_dir: str | os.PathLike | None = None, *, normals: bool = True, **conversion: Any
) -> DatasetDict | IterableDatasetDict:
    """Read ShapeNetPart.

    Rows have `points` (num_points, 3), about 2,600 in the units of the files, neither centered nor scaled; `normals`
    (num_points, 3); `labels` (num_points,), a point's part, 0 to 49 over all categories; `label`, the category; and
    `file`, number of the category and name of the model.

    Args:
        data_dir: the folder named in the layout, or the one above it.
        normals: read the column `normals`.
        conversion: `cache_dir`, `verify`, `on_error`, `streaming` and `partial` of
            `hf_any3d.data.parquet.load_published`.

    Source: Yi et al., "A Scalable Active Framework for Region Annotation"; normals by Qi et al., "PointNet++".
    """
    root = DATASET.root(data_dir)
    folder = root / FOLDER if (root / FOLDER).is_dir() else root
    names = folder / "synsetoffset2category.txt"
    lists = {split: folder / "train_test_split" / f"shuffled_{name}_file_list.json" for split, name in SPLITS.items()}
    if conversion.get("partial"):
        lists = {split: file for split, file in lists.items() if file.is_file()} or lists
    DATASET.require([names, *lists.values()], folder)
    # A changed list of categories would give other numbers to labels.
    check_names(names, [f"{name} {synset}" for synset, name in SYNSETS.items()], "category")
    # True counts as 1, and adds the second name.
    features = Features({name: Array2D((None, 3), "float32") for name in ("points", "normals")[: 1 + normals]})
    features["labels"] = List(ClassLabel(names=list(PART_NAMES)))
    features["label"] = DATASET.class_label()
    features["file"] = Value("string")
    sources = {}
    for split, file in lists.items():
        with file_errors(file, "list"):
            # The lists name a folder `shape_data`, which the archive does not have.
            clouds = [_NAME.fullmatch(entry) for entry in json.loads(file.read_bytes())]
            for number, cloud in enumerate(clouds):
                if cloud is None or cloud[1] not in SYNSETS:
                    raise PointCloudError(
                        f"entry {number} is not as in shape_data/02691156/1a04e3eab45ca15dd86060f189eb133"
                    )
        paths = [folder / cloud[1] / f"{cloud[2]}.txt" for cloud in clouds if cloud]
        # Both lists decide what the rows are, so they are part of the cache key.
        sources[split] = SplitSource.from_paths(paths, _read, [file, names])
    return load_published(DATASET, folder, sources, features, options={"normals": normals}, **conversion)


def _read(path: Path) -> Iterator[Mapping[str, object]]:
    table = read_table(path, columns=7)
    category = SYNSETS[path.parent.name]
    # A part is a floating point number in the table, and has to be whole.
    with file_errors(path):
        parts = integers(table[:, 6], "part")
    # Parts of a category have consecutive numbers.
    first = CATEGORY_PARTS[category][0]
    last = CATEGORY_PARTS[category][-1]
    wrong = (parts < first) | (parts > last)
    if wrong.any():
        raise PointCloudFileError(f"{path}: part {parts[wrong][0]} of category {category}; expected {first} to {last}")
    yield {
        "points": table[:, :3],
        "normals": table[:, 3:6],
        "labels": parts,
        "label": category,
        "file": f"{path.parent.name}-{path.stem}",
    }
