"""Rows for training and evaluation."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features, List, Value, load_dataset
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerState, TrainingArguments, default_data_collator

from hf_any3d import PointCloudProcessor
from hf_any3d.data import PointCloudCollator
from hf_any3d.data.transforms import TRANSFORMS
from hf_any3d.training.rows import EpochCallback, evaluation_rows, streamed_training_rows, training_rows
from hf_any3d.training.segmentation_rows import CropRows
from hf_any3d.training.text_rows import CaptionedDataset
from tests.errors import raises
from tests.tiny_encoders import tiny_model
from tests.turns import some


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    generator = np.random.default_rng(0)
    rows = {
        "points": list(generator.standard_normal((6, 50, 3)).astype(np.float32) + 5),
        "normals": list(np.tile(np.float32([1, 0, 0]), (6, 50, 1))),
        "label": [0, 1, 2, 0, 1, 2],
    }
    array = Array2D((50, 3), "float32")
    features = Features({"points": array, "normals": array, "label": ClassLabel(names=["a", "b", "c"])})
    return Dataset.from_dict(rows, features=features)


def test_evaluation_rows_equal_the_output_of_the_processor(dataset):
    processor = PointCloudProcessor(num_points=32)
    rows = evaluation_rows(dataset, processor)
    expected = processor(dataset.with_format("numpy")[4]["points"], return_tensors="np")["points"][0]
    assert len(rows) == 6 and rows[4]["label"] == 1
    np.testing.assert_array_equal(rows[4]["points"], expected)
    np.testing.assert_array_equal(rows.__getitems__([0, 4])[1]["points"], expected)


def test_training_rows_depend_only_on_seed_epoch_and_number(dataset):
    processor = PointCloudProcessor(num_points=32)
    rows = training_rows(dataset, processor, ["scale", "jitter"], seed=1)
    first = rows[2]["points"]
    torch.rand(3)  # the global generator has no effect
    np.testing.assert_array_equal(rows[2]["points"], first)
    np.testing.assert_array_equal(rows.__getitems__([0, 2])[1]["points"], first)
    others = [rows[3]["points"], training_rows(dataset, processor, ["scale", "jitter"], seed=2)[2]["points"]]
    rows.epoch = 1
    others.append(rows[2]["points"])
    assert all(not np.allclose(other, first) for other in others)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_batch_equals_rows_read_one_by_one(dataset, name):
    keeps = {"subsample": "subsample:num_points=32", "farthest": "farthest:num_points=32"}
    rows = training_rows(dataset, PointCloudProcessor(num_points=32), [keeps.get(name, name), "jitter"], seed=4)
    for row, number in zip(rows.__getitems__([5, 0, 2, 2]), [5, 0, 2, 2], strict=True):
        assert row["points"].dtype == np.float32 and row["label"] == rows[number]["label"]
        np.testing.assert_array_equal(row["points"], rows[number]["points"])


def test_transforms_of_complete_clouds_replace_the_processor(dataset):
    chain = ["scale:low=2,high=2", "center:scale=False", "farthest:num_points=40", "subsample:num_points=32"]
    processor = PointCloudProcessor(num_points=32, features=("xyz", "normals"))
    rows = training_rows(dataset, processor, chain, seed=1, whole=True)
    stored = dataset.with_format("numpy")[3]
    expected = 2 * stored["points"]
    expected = expected - expected.mean(axis=0)
    points = rows[3]["points"]
    assert points.shape == (32, 6) and points.dtype == np.float32
    distance = np.abs(points[:, None, :3] - expected[None]).max(-1).min(1)  # (32,)
    assert distance.max() < 1e-5
    np.testing.assert_array_equal(points[:, 3:], stored["normals"][:32])
    np.testing.assert_array_equal(rows.__getitems__([1, 3])[1]["points"], points)
    rows.epoch = 1
    assert not np.allclose(rows[3]["points"], points)


def test_invalid_transforms_of_complete_clouds_are_refused(dataset):
    processor = PointCloudProcessor(num_points=32)
    rows = training_rows(dataset, processor, ["shuffle"], whole=True)
    with raises(ValueError, naming="num_points"):
        rows[0]
    colors = PointCloudProcessor(num_points=32, features=("xyz", "rgb"))
    with pytest.raises(ValueError, match="no colors, which features xyz, rgb require"):
        training_rows(dataset, colors, ["subsample:num_points=32"], whole=True)[0]


@pytest.mark.parametrize("axis", ["y", "z"])
def test_rotations_are_about_the_up_axis_and_rotate_normals(dataset, axis):
    processor = PointCloudProcessor(num_points=50, features=["xyz", "normals"], up_axis=axis)
    plain = evaluation_rows(dataset, processor)[0]["points"]
    turned = training_rows(dataset, processor, ["rotate:limit=1.0"], seed=3)[0]["points"]
    up = "xyz".index(axis)
    np.testing.assert_allclose(turned[:, up], plain[:, up], atol=1e-6)
    assert not np.allclose(turned[:, :3], plain[:, :3], atol=0.01)
    assert not np.allclose(turned[:, 3:], plain[:, 3:], atol=0.01)
    # Both are rotated equally: the angle between a point and its normal is unchanged.
    along = [(cloud[:, :3] * cloud[:, 3:]).sum(axis=1) for cloud in (plain, turned)]
    np.testing.assert_allclose(along[0], along[1], atol=1e-5)


def test_given_rotation_axis_is_kept(dataset):
    processor = PointCloudProcessor(num_points=50, up_axis="z")
    turned = training_rows(dataset, processor, ["rotate:axis=x"], seed=3)[0]["points"]
    np.testing.assert_allclose(turned[:, 0], evaluation_rows(dataset, processor)[0]["points"][:, 0], atol=1e-6)


@pytest.mark.parametrize("axis", ["y", "z"])
def test_other_up_axes_start_from_that_of_the_processor(dataset, axis):
    processor = PointCloudProcessor(num_points=50, features=["xyz", "normals"], up_axis=axis)
    plain, up = evaluation_rows(dataset, processor)[0]["points"], "xyz".index(axis)
    turned = training_rows(dataset, processor, ["up:axes=x"], seed=3)[0]["points"]
    np.testing.assert_allclose(turned[:, [0, 3]], plain[:, [up, 3 + up]], atol=1e-6)
    turned = training_rows(dataset, processor, ["up:axes=x,up_axis=x"], seed=3)[0]["points"]
    np.testing.assert_allclose(turned, plain, atol=1e-6)


def test_evaluation_needs_a_processor_with_a_seed(dataset):
    with pytest.raises(ValueError, match="seed is None; expected a number"):
        evaluation_rows(dataset, PointCloudProcessor(seed=None))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_trainer_sets_the_epoch_of_rows_in_all_processes(dataset, tmp_path, workers):
    seen = []

    class Noted(EpochCallback):
        def on_step_begin(self, args, state: TrainerState, control, **kwargs):
            seen.append((state.global_step, self.rows.epoch))

    rows = training_rows(dataset, PointCloudProcessor(num_points=40), ["scale"], seed=5)
    arguments = TrainingArguments(
        str(tmp_path),
        num_train_epochs=3,
        per_device_train_batch_size=3,
        dataloader_num_workers=workers,
        remove_unused_columns=False,
        label_names=["labels"],
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    batches = []
    model = tiny_model()
    forward = model.forward
    model.forward = lambda points, labels=None: (batches.append(points.clone()), forward(points, labels))[1]
    trainer = Trainer(
        model, arguments, train_dataset=rows, data_collator=PointCloudCollator(), callbacks=[Noted(rows)]
    )
    trainer.train()
    assert seen == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2)]
    # Every cloud of every epoch depends only on seed, epoch and number.
    for number, batch in enumerate(batches):
        rows.epoch = number // 2
        possible = [torch.from_numpy(rows[index]["points"]) for index in range(len(rows))]
        assert all(any(torch.equal(cloud, one) for one in possible) for cloud in batch)


def crops(tmp_path):
    labels = Features({"points": Array2D((None, 3), "float32"), "labels": List(ClassLabel(names=["left", "right"]))})
    points = np.random.default_rng(1).uniform(-2, 2, (6, 90, 3)).astype(np.float32)
    dataset = Dataset.from_dict({"points": list(points), "labels": list((points[..., 0] > 0).astype(int))}, labels)
    return CropRows(dataset, PointCloudProcessor(num_points=64, center=False, scale=None), seed=3)


def captions(tmp_path):
    class Tower:
        def embed(self, texts):
            return torch.eye(4)[[int(text) for text in texts]]

    points = np.random.default_rng(3).standard_normal((6, 32, 3)).astype(np.float32)
    dataset = Dataset.from_dict({"points": list(points), "label": [0, 1, 2, 0, 1, 2]})
    return CaptionedDataset(dataset, PointCloudProcessor(num_points=32), [list("0123")] * 6, Tower(), seed=1)


def stream(tmp_path):
    points = np.random.default_rng(2).standard_normal((6, 40, 3)).astype(np.float32)
    features = Features({"points": Array2D((40, 3), "float32"), "label": Value("int64")})
    Dataset.from_dict({"points": list(points), "label": range(6)}, features).to_parquet(tmp_path / "train.parquet")
    dataset = load_dataset("parquet", data_files=str(tmp_path / "train.parquet"), split="train", streaming=True)
    return streamed_training_rows(dataset, PointCloudProcessor(num_points=32), ["jitter"], seed=4)


def fingerprints(rows, persistent):
    """Return what a DataLoader with a worker reads in each of three epochs."""
    loader = DataLoader(
        rows, batch_size=3, num_workers=1, persistent_workers=persistent, collate_fn=default_data_collator
    )
    read = []
    for epoch in range(3):
        (rows.set_epoch if hasattr(rows, "set_epoch") else partial(setattr, rows, "epoch"))(epoch)
        batches = list(loader)
        names = [name for name in ("points", "text_embeds", "labels") if name in batches[0]]
        read.append({name: torch.cat([batch[name].flatten() for batch in batches]) for name in names})
    return read


@pytest.mark.slow
@pytest.mark.parametrize("make", some([None, crops, captions, stream], left_out=[crops, captions]))
def test_persistent_workers_see_the_next_epoch(dataset, make, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    rows = training_rows(dataset, PointCloudProcessor(num_points=32), ["jitter"], seed=1)
    rows = rows if make is None else make(tmp_path)
    renewed, kept = fingerprints(rows, False), fingerprints(rows, True)
    for one, other in zip(renewed, kept, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    changing = "text_embeds" if "text_embeds" in kept[0] else "points"
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert not torch.equal(kept[one][changing], kept[other][changing])


def test_copy_of_the_rows_has_its_own_epoch(dataset):
    rows = training_rows(dataset, PointCloudProcessor(num_points=32), ["jitter"], seed=1)
    again = pickle.loads(pickle.dumps(rows))
    rows.epoch, again.epoch = 2, 1
    assert (rows.epoch, again.epoch) == (2, 1)
    assert not np.array_equal(rows[0]["points"], again[0]["points"])
