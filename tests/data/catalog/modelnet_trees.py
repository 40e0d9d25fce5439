"""Tiny trees in the layouts of ModelNet40, with the delimiters, types and quirks of the published ones."""

import pickle
from pathlib import Path

import h5py
import numpy as np

from hf_any3d.data.catalog.modelnet40 import CLASS_NAMES

MODELS = {
    "train": ["airplane_0001", "flower_pot_0002", "flower_pot_0003", "xbox_0004", "tv_stand_0005"],
    "test": ["airplane_0627", "night_stand_0201", "xbox_0104"],
}
MESH = "4 2 0\n0 0 0\n2 0 0\n2 2 0\n0 2 0\n3 0 1 2\n3 0 2 3\n"


def table(model: str, num_points: int = 40) -> np.ndarray:
    """Points and unit normals of a model, (num_points, 6), rounded to the six decimals of the text."""
    generator = np.random.default_rng(sum(map(ord, model)))
    normals = generator.normal(size=(num_points, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return np.concatenate([generator.uniform(-1, 1, (num_points, 3)), normals], axis=1).round(6)


def label(model: str) -> int:
    return CLASS_NAMES.index(model.rpartition("_")[0])


def write_text(root: Path) -> Path:
    folder = root / "modelnet40_normal_resampled"
    folder.mkdir(parents=True)
    (folder / "modelnet40_shape_names.txt").write_text("".join(f"{name}\n" for name in CLASS_NAMES))
    for split, models in MODELS.items():
        (folder / f"modelnet40_{split}.txt").write_text("".join(f"{model}\n" for model in models))
        for model in models:
            path = folder / model.rpartition("_")[0] / f"{model}.txt"
            path.parent.mkdir(exist_ok=True)
            np.savetxt(path, table(model), "%.6f", delimiter=",")
    return folder


def write_pickle(root: Path, num_points: int = 8192) -> Path:
    folder = root / "modelnet40_normal_resampled"
    folder.mkdir(parents=True, exist_ok=True)
    for split, models in MODELS.items():
        clouds = [table(model).astype(np.float32) for model in models]
        labels = [np.array([label(model)]).astype(np.int32) for model in models]
        with open(folder / f"modelnet40_{split}_{num_points}pts_fps.dat", "wb") as file:
            pickle.dump([clouds, labels], file)
    return folder


def write_hdf5(root: Path) -> Path:
    folder = root / "modelnet40_ply_hdf5_2048"
    folder.mkdir(parents=True)
    for split, parts in {"train": [3, 2], "test": [2, 1]}.items():
        models = iter(MODELS[split])
        for number, count in enumerate(parts):
            some = [next(models) for _ in range(count)]
            tables = np.stack([table(model, 2048) for model in some]).astype(np.float32)
            with h5py.File(folder / f"ply_data_{split}{number}.h5", "w") as file:
                file.create_dataset("data", data=tables[..., :3], compression="gzip")
                file.create_dataset("normal", data=tables[..., 3:], compression="gzip")
                file["label"] = np.array([[label(model)] for model in some], np.uint8)
                file["faceId"] = np.zeros((count, 2048), np.int32)
    return folder


def write_meshes(root: Path) -> Path:
    folder = root / "ModelNet40"
    for split, models in MODELS.items():
        for number, model in enumerate(models):
            path = folder / model.rpartition("_")[0] / split / f"{model}.off"
            path.parent.mkdir(parents=True, exist_ok=True)
            # Part of the published files have the counts glued to the keyword.
            path.write_text(("OFF" if number % 2 else "OFF\n") + MESH)
    return folder
