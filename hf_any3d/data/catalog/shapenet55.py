"""ShapeNet55: clouds of 55 categories to pretrain on, and its division into 34 seen and 21 unseen categories."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import Array2D, DatasetDict, Features, IterableDatasetDict, Value

from hf_any3d.data.options import one_of
from hf_any3d.data.parquet import License, PublishedDataset, SplitSource, load_published
from hf_any3d.data.parquet.reading import read_lines, read_npy
from hf_any3d.utils.messages import cut

_TAXONOMY = """
02691156 airplane, 02747177 trash bin, 02773838 bag, 02801938 basket, 02808440 bathtub, 02818832 bed,
02828884 bench, 02843684 birdhouse, 02871439 bookshelf, 02876657 bottle, 02880940 bowl, 02924116 bus,
02933112 cabinet, 02942699 camera, 02946921 can, 02954340 cap, 02958343 car, 02992529 cellphone, 03001627 chair,
03046257 clock, 03085013 keyboard, 03207941 dishwasher, 03211117 display, 03261776 earphone, 03325088 faucet,
03337140 file cabinet, 03467517 guitar, 03513137 helmet, 03593526 jar, 03624134 knife, 03636649 lamp,
03642806 laptop, 03691459 loudspeaker, 03710193 mailbox, 03759954 microphone, 03761084 microwave,
03790512 motorbike, 03797390 mug, 03928116 piano, 03938244 pillow, 03948459 pistol, 03991062 flowerpot,
04004475 printer, 04074963 remote, 04090263 rifle, 04099429 rocket, 04225987 skateboard, 04256520 sofa,
04330267 stove, 04379243 table, 04401088 telephone, 04460130 tower, 04468005 train, 04530566 watercraft,
04554684 washer
"""
TAXONOMY = {entry[:8]: entry[9:] for entry in " ".join(_TAXONOMY.split()).split(", ")}
"""WordNet number of the category, which file names start with -> its name, in the order of the labels."""

LISTS = {
    "55": {"train": "ShapeNet-55/train.txt", "test": "ShapeNet-55/test.txt"},
    "34": {"train": "ShapeNet-34/train.txt", "test": "ShapeNet-34/test.txt"},
    "21": {"test": "ShapeNet-Unseen21/test.txt"},
}
"""Set of splits -> split -> list of its files."""

CLOUDS = "shapenet_pc"
PLACES = ("", "ShapeNet55-34", "ShapeNet55")
NUM_POINTS = 8192
# Neither slashes nor further dots, so that a line names a file of the folder of clouds
_LINE = re.compile(r"(\d{8})-[\w-]+\.npy")

LICENSE = License(
    "other",
    "for non-commercial research and education, after agreeing to ShapeNet's terms of use",
    "https://shapenet.org/terms",
)

DATASET = PublishedDataset(
    name="shapenet55",
    description=(
        "ShapeNet55: 52,470 models of the 55 categories of ShapeNetCore, as clouds of 8,192 points on their surfaces. "
        "The sets 34 and 21 divide the categories into those that a model is trained on and unseen ones."
    ),
    homepage="https://shapenet.org/",
    license=LICENSE,
    citation="""@article{chang2015shapenet,
  title = {ShapeNet: An Information-Rich 3D Model Repository},
  author = {Chang, Angel X. and Funkhouser, Thomas and Guibas, Leonidas and Hanrahan, Pat and Huang, Qixing and
            Li, Zimo and Savarese, Silvio and Savva, Manolis and Song, Shuran and Su, Hao and Xiao, Jianxiong and
            Yi, Li and Yu, Fisher},
  journal = {arXiv preprint arXiv:1512.03012},
  year = {2015}
}
@inproceedings{yu2021pointr,
  title = {PoinTr: Diverse Point Cloud Completion with Geometry-Aware Transformers},
  author = {Yu, Xumin and Rao, Yongming and Wang, Ziyi and Liu, Zuyan and Lu, Jiwen and Zhou, Jie},
  booktitle = {International Conference on Computer Vision (ICCV)},
  year = {2021}
}""",
    expected_counts={
        "55": {"train": 41_952, "test": 10_518},
        "34": {"train": 46_765, "test": 3_400},
        "21": {"test": 2_305},
    },
    origin=(
        "Agree to ShapeNet's terms at https://shapenet.org/terms, get ShapeNet55-34 by the link in the data notes of "
        "PoinTr, https://github.com/yuxumin/PoinTr/blob/master/DATASET.md, or of Point-BERT, "
        "https://github.com/Julie-tang00/Point-BERT/blob/master/DATASET.md, unpack it and pass the folder above "
        "ShapeNet55-34 as data_dir; the lists are in the folder data of PoinTr's repository too"
    ),
    layout="""  ShapeNet55-34/ShapeNet-55/train.txt, test.txt       split_set "55"
  ShapeNet55-34/ShapeNet-34/train.txt, test.txt       split_set "34"
  ShapeNet55-34/ShapeNet-Unseen21/test.txt            split_set "21"
  ShapeNet55-34/shapenet_pc/02691156-1a04e3eab45ca15dd86060f189eb133.npy, ...   (8192, 3), as the lists name them""",
    class_names=tuple(TAXONOMY.values()),
)


def load(
    data_dir: str | os.PathLike | None = None, *, split_set: str = "55", **conversion: Any
) -> DatasetDict | IterableDatasetDict:
    """Read ShapeNet55.

    Rows have `points` (8192, 3) in the units of the files, neither centered nor scaled; `label`, one of all 55
    categories in every set; and `file`, the number of the category and the model's name.

    Args:
        data_dir: the folder with `shapenet_pc` and the folders of lists, or the one above `ShapeNet55-34`.
        split_set: "55", all categories in both splits; "34", the same 34 categories in both; or "21", a test split of
            the other categories.
        conversion: `cache_dir`, `verify`, `on_error` and `streaming` of `hf_any3d.data.parquet.load_published`.

    Source: Chang et al., "ShapeNet"; points and splits by Yu et al., "PoinTr", Sec. 4.1.
    """
    one_of("split_set", split_set, LISTS)
    root = DATASET.root(data_dir)
    # Errors name the given folder if the clouds are in none of these places.
    folder = next((root / place for place in PLACES if (root / place / CLOUDS).is_dir()), root)
    # Splits of the three sets are told by lists; the clouds of all lie in one folder.
    lists = {split: folder / name for split, name in LISTS[split_set].items()}
    DATASET.require(lists.values(), folder)
    features = Features(
        {"points": Array2D((NUM_POINTS, 3), "float32"), "label": DATASET.class_label(), "file": Value("string")}
    )

    def read(path: Path) -> Iterator[Mapping[str, object]]:
        # File names begin with the eight digits of the category.
        yield {"points": read_npy(path), "label": TAXONOMY[path.name[:8]], "file": path.stem}

    sources = {}
    for split, file in lists.items():
        names = read_lines(file)
        # A damaged list is an error of its own, before its files are looked for.
        for number, name in enumerate(names, 1):
            match = _LINE.fullmatch(name)
            if not match or match[1] not in TAXONOMY:
                raise ValueError(f"{file}: line {number} is {cut(name, 60)!r}; expected CATEGORY-MODEL.npy")
        # The list decides what the rows are, so it is part of the cache key.
        sources[split] = SplitSource.from_paths([folder / CLOUDS / name for name in names], read, [file])
    return load_published(DATASET, folder, sources, features, variant=split_set, **conversion)
