"""Segmentation of scans whose points have intensities and rings: rows, training by the command, a sweep of a car."""

import json

import numpy as np
import pytest
from datasets import Array2D, ClassLabel, Dataset, Features, List, Value
from transformers import pipeline

import hf_any3d
from hf_any3d import PointCloudProcessor
from hf_any3d.data import AugmentedDataset, PointCloudCollator
from hf_any3d.data.inputs import count_channels, first_channel
from hf_any3d.training.rows import training_transform, whole_cloud
from tests.cli.conftest import run
from tests.tiny_ptv3 import SMALL

NAMES = ["road", "sign"]
COUNT = 96


def sweep(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (COUNT, 5) that only their intensity and their ring tell apart, and their classes."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(2, size=COUNT)
    intensity = 0.2 + 0.6 * labels + generator.uniform(-0.1, 0.1, COUNT)
    xyz = generator.uniform([-4, -4, 0], [4, 4, 2], (COUNT, 3))
    return np.column_stack([xyz, intensity, np.arange(COUNT) % 4 + 4 * labels]).astype(np.float32), labels


def rows(count: int = 12) -> Dataset:
    sweeps = [sweep(seed) for seed in range(count)]
    columns = {
        "points": [points[:, :3] for points, _ in sweeps],
        "intensity": [points[:, 3] for points, _ in sweeps],
        "ring": [points[:, 4] for points, _ in sweeps],
        "labels": [labels for _, labels in sweeps],
    }
    measured = {"intensity": List(Value("float32")), "ring": List(Value("float32"))}
    features = {"points": Array2D((None, 3), "float32"), **measured}
    return Dataset.from_dict(columns, Features({**features, "labels": List(ClassLabel(names=NAMES))}))


def test_features_have_one_channel_for_the_intensity_and_one_for_the_ring():
    assert count_channels(["xyz", "intensity", "ring", "rgb"]) == 8
    assert first_channel(["xyz", "intensity", "normals"], "normals") == 4
    processor = PointCloudProcessor(features=["xyz", "intensity", "normals"], up_axis="z")
    transform = training_transform(processor, ["rotate", "flip", "rot_scale_trans"])
    assert all(part.normals_columns == (4, 5, 6) for part in transform.transforms)
    assert {getattr(part, "up_axis", "z") for part in transform.transforms} == {"z"}


def test_rows_with_intensities_become_batches_and_complete_clouds():
    row = rows(1).with_format("numpy")[0]
    columns = ["intensity", "ring"]
    np.testing.assert_array_equal(whole_cloud(row, ["xyz", *columns]), sweep(0)[0])
    batch = PointCloudCollator(extra_columns=columns)([{name: row[name] for name in ("points", *columns)}])
    np.testing.assert_array_equal(batch["points"][0], sweep(0)[0])
    scaled = AugmentedDataset(rows(1), lambda cloud: cloud * 2, ["intensity"])[0]
    np.testing.assert_array_equal(scaled["intensity"], sweep(0)[0][:, 3] * 2)


@pytest.mark.usefixtures("libraries_as_they_were")
@pytest.mark.parametrize("feature", ["intensity", "ring"])
def test_a_point_transformer_learns_from_intensities_or_rings_and_segments_a_sweep(feature, tmp_path):
    rows().to_parquet(tmp_path / "sweeps.parquet")
    size = {name: value for name, value in SMALL.items() if name != "in_channels"} | {"grid_size": 0.5}
    words = ("--task", "segmentation", "--model_type", "point_transformer_v3", "--model_config", json.dumps(size))
    words += ("--features", "xyz", feature, "--up_axis", "z", "--points", COUNT, "--epochs", 8, "--batch-size", 4)
    words += ("--learning-rate", 0.01, "--augment", "flip rotate", "--use_cpu", "--output", tmp_path / "model")
    code, out, err = run("train", tmp_path / "sweeps.parquet", *words)
    assert code == 0, err
    model = hf_any3d.AutoModelForPointCloudSegmentation.from_pretrained(tmp_path / "model")
    assert model.config.in_channels == 4
    points, labels = sweep(99)
    (tmp_path / "new.pcd.bin").write_bytes(points.tobytes())
    answer = pipeline("point-cloud-segmentation", model=str(tmp_path / "model"))(tmp_path / "new.pcd.bin")
    assert (np.asarray(answer["labels"]) == labels).mean() > 0.9
    column = {feature: points[:, 3 if feature == "intensity" else 4]}
    found = hf_any3d.segment(points[:, :3], model=str(tmp_path / "model"), **column)
    np.testing.assert_array_equal(found.labels, answer["labels"])
    np.save(tmp_path / "plain.npy", points[:, :3])
    code, _, err = run("segment", tmp_path / "plain.npy", "--model", tmp_path / "model")
    assert code == 1 and f"no {feature}; the processor needs them" in err
