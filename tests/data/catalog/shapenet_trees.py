"""Tiny trees in the layouts of ShapeNet55 and ShapeNetPart, as they were published."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

MODELS = {
    "train": ["02691156-1a04e3eab45ca15dd86060f189eb133", "04554684-1a53e51455e0812e44a7fc53aa1d411c"],
    "test": ["03001627-39de90c34ab1dd3f327289c00b6dc9ca"],
}
UNSEEN = ["04225987-5fba47ad66c45cd113314092564c13fd", "02942699-68f66f5ab594fd3cc2890daf3a9f7413"]

OBJECTS = {
    "train": ["02691156/1021a0914a7207aff927ed529ad90a11", "04379243/408c3db9b4ee6be2e9f3e9c758fef992"],
    "val": ["02691156/d39e04e50e2ae0ed8eae3c31e11b3d5c", "03636649/a5d68126dcf11a8ec2ac8a8ea6a07ba5"],
    "test": ["03790512/9d3b07f4475d501e8249f134aca4c817"],
}
CATEGORIES = (
    "Airplane\t02691156\nBag\t02773838\nCap\t02954340\nCar\t02958343\nChair\t03001627\nEarphone\t03261776\n"
    "Guitar\t03467517\nKnife\t03624134\nLamp\t03636649\nLaptop\t03642806\nMotorbike\t03790512\nMug\t03797390\n"
    "Pistol\t03948459\nRocket\t04099429\nSkateboard\t04225987\nTable\t04379243\n"
)
FIRST_PARTS = {"02691156": 0, "04379243": 47, "03636649": 24, "03790512": 30}
NUM_PARTS = {"02691156": 4, "04379243": 3, "03636649": 4, "03790512": 6}


def cloud(model: str) -> np.ndarray:
    """The points of a model of ShapeNet55, (8192, 3) float32."""
    return np.random.default_rng(sum(map(ord, model))).uniform(-0.5, 0.5, (8192, 3)).astype(np.float32)


def write_shapenet55(root: Path) -> Path:
    folder = root / "ShapeNet55-34"
    lists = {"ShapeNet-55": MODELS, "ShapeNet-34": MODELS, "ShapeNet-Unseen21": {"test": UNSEEN}}
    for name, splits in lists.items():
        (folder / name).mkdir(parents=True)
        for split, models in splits.items():
            (folder / name / f"{split}.txt").write_text("".join(f"{model}.npy\n" for model in models))
    (folder / "shapenet_pc").mkdir()
    for model in (*MODELS["train"], *MODELS["test"], *UNSEEN):
        np.save(folder / "shapenet_pc" / f"{model}.npy", cloud(model))
    return folder


def part_table(name: str, num_points: int = 60) -> np.ndarray:
    """Points, normals and parts of an object of ShapeNetPart, (num_points, 7), as in the text."""
    synset = name.partition("/")[0]
    generator = np.random.default_rng(sum(map(ord, name)))
    normals = generator.normal(size=(num_points, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    parts = FIRST_PARTS[synset] + np.arange(num_points) % NUM_PARTS[synset]
    xyz = generator.uniform(-0.5, 0.5, (num_points, 3)).round(5)
    return np.column_stack([xyz, normals.round(4), parts])


def write_shapenetpart(root: Path, objects: dict[str, Sequence[str]] | None = None, num_points: int = 60) -> Path:
    folder = root / "shapenetcore_partanno_segmentation_benchmark_v0_normal"
    (folder / "train_test_split").mkdir(parents=True)
    (folder / "synsetoffset2category.txt").write_text(CATEGORIES)
    for split, names in (objects or OBJECTS).items():
        listed = json.dumps([f"shape_data/{name}" for name in names])
        (folder / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(listed)
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            # Parts too are written as fractions: 12.000000.
            formats = ["%.5f"] * 3 + ["%.4f"] * 3 + ["%.6f"]
            np.savetxt(folder / f"{name}.txt", part_table(name, num_points), fmt=formats)
    return folder
