"""Streamed rows, and how processes and workers split them."""

import functools
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features
from datasets.distributed import split_dataset_by_node
from transformers import Trainer, TrainingArguments

from hf_any3d import PointCloudProcessor
from hf_any3d.data import PointCloudCollator, load_point_dataset
from hf_any3d.training.arguments import PointTrainingArguments
from hf_any3d.training.rows import StreamedRows, streamed_training_rows
from hf_any3d.training.trainer import PointTrainer
from tests.forks import results_of
from tests.tiny_encoders import tiny_model

NUM_CLOUDS = 70


def read_by(rank: int, cases: list[tuple[str, int, bool]], store: str) -> list:
    """Read streams in one of two processes; return for each of them what both have read."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.FileStore(store, 2), rank=rank, world_size=2)
    found = []
    for folder, epoch, shuffled in cases:
        rows = streamed(folder)
        if shuffled:
            rows = rows.shuffle(seed=3, buffer_size=8)
        rows = split_dataset_by_node(rows, rank, 2)
        rows = streamed_training_rows(rows, PointCloudProcessor(num_points=40), ["jitter"], seed=1)
        rows.set_epoch(epoch)
        loader = torch.utils.data.DataLoader(rows, batch_size=4, num_workers=2, collate_fn=PointCloudCollator())
        read = []
        for batch in loader:
            read += zip(batch["labels"].tolist(), batch["points"].sum(dim=(1, 2)).tolist(), strict=True)
        gathered = [None, None]
        torch.distributed.all_gather_object(gathered, read)
        found.append(gathered)
    torch.distributed.destroy_process_group()
    return found


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    """Skip the seconds that `datasets` sleeps after each shuffled pass over Parquet files."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def write_shards(folder: Path, num_shards: int) -> Path:
    """Clouds of 40 to 49 points, each with its own label, in as many files."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    clouds = [generator.standard_normal((40 + i % 10, 3)).astype(np.float32) for i in range(NUM_CLOUDS)]
    names = [f"cloud {i}" for i in range(NUM_CLOUDS)]
    features = Features({"points": Array2D((None, 3), "float32"), "label": ClassLabel(names=names)})
    dataset = Dataset.from_dict({"points": clouds, "label": list(range(NUM_CLOUDS))}, features=features)
    for shard in range(num_shards):
        dataset.shard(num_shards, shard).to_parquet(folder / f"train-{shard:05d}-of-{num_shards:05d}.parquet")
    return folder


def streamed(folder: Path | str):
    return load_point_dataset("parquet", data_dir=folder, split="train", streaming=True)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), 2)


@pytest.mark.slow
def test_two_processes_with_two_workers_read_every_cloud_once(tmp_path):
    # One file for four readers; three, which two processes cannot share evenly, shuffled; one for each reader.
    cases = [(1, 0, False), (3, 1, True), (4, 0, False)]
    folders = [str(write_shards(tmp_path / str(num_shards), num_shards)) for num_shards, _, _ in cases]
    asked = [(folder, *case[1:]) for folder, case in zip(folders, cases, strict=True)]
    readers = [functools.partial(read_by, rank, asked, str(tmp_path / "store")) for rank in range(2)]
    found, other = results_of(*readers)
    assert found == other
    assert len(found) == len(cases)
    for folder, (_, epoch, _), parts in zip(folders, cases, found, strict=True):
        assert sorted(label for part in parts for label, _ in part) == list(range(NUM_CLOUDS))
        assert [len(part) for part in parts] == pytest.approx([NUM_CLOUDS / 2] * 2, abs=2)
        # Clouds are the same for any number of processes.
        alone = streamed_training_rows(streamed(folder), PointCloudProcessor(num_points=40), ["jitter"], seed=1)
        alone.set_epoch(epoch)
        expected = {int(row["label"]): float(row["points"].sum()) for row in alone}
        assert {label: value for part in parts for label, value in part} == pytest.approx(expected, abs=1e-4)


def test_clouds_depend_only_on_seed_epoch_and_points(shards):
    processor = PointCloudProcessor(num_points=40)

    def read(dataset, seed=1, epoch=0):
        rows = streamed_training_rows(dataset, processor, ["scale", "jitter"], seed=seed)
        rows.set_epoch(epoch)
        return {int(row["label"]): row["points"] for row in rows}

    first, shuffled = read(streamed(shards)), read(streamed(shards).shuffle(seed=0, buffer_size=20))
    assert list(shuffled) != list(first) and sorted(shuffled) == sorted(first) == list(range(NUM_CLOUDS))
    assert all(np.array_equal(first[label], shuffled[label]) for label in first)
    for other in (read(streamed(shards), seed=2), read(streamed(shards), epoch=1)):
        assert not any(np.allclose(first[label], other[label]) for label in first)


def test_the_trainer_of_several_processes_reads_parts(shards, tmp_path, monkeypatch):
    rows = streamed_training_rows(streamed(shards), PointCloudProcessor(num_points=40), seed=1)
    arguments = PointTrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, report_to="none", eval_strategy="no")
    trainer = PointTrainer(tiny_model(), arguments, train_dataset=rows, data_collator=PointCloudCollator())
    monkeypatch.setattr(PointTrainingArguments, "world_size", 2)
    monkeypatch.setattr(PointTrainingArguments, "process_index", 1)
    batches = islice(trainer.get_train_dataloader(), 4)
    labels = [label for batch in batches for label in batch["labels"].tolist()]
    assert len(labels) == 64 and len({*labels}) == NUM_CLOUDS // 2


def test_without_a_seed_rows_equal_evaluation_rows(shards, tmp_path):
    processor = PointCloudProcessor(num_points=40)
    rows = list(StreamedRows(streamed(shards), processor))
    mapped = load_point_dataset("parquet", data_dir=shards, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == len(mapped) == NUM_CLOUDS
    for row, stored in zip(rows, mapped, strict=True):
        assert row["label"] == stored["label"]
        np.testing.assert_array_equal(row["points"], processor(stored["points"], return_tensors="np")["points"][0])


@pytest.mark.slow
def test_trainer_trains_on_a_stream_for_a_number_of_steps(shards, tmp_path):
    dataset = streamed(shards).shuffle(seed=0, buffer_size=20)
    dataset = dataset.map(lambda row: {"label": int(row["label"]) % 3}, features=dataset.features)
    rows = streamed_training_rows(dataset, PointCloudProcessor(num_points=40), ["scale"], seed=5)
    epochs = []
    set_epoch = rows.set_epoch
    rows.set_epoch = lambda epoch: (epochs.append(epoch), set_epoch(epoch))
    arguments = TrainingArguments(
        str(tmp_path / "out"),
        max_steps=5,
        per_device_train_batch_size=32,
        remove_unused_columns=False,
        label_names=["labels"],
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(tiny_model(), arguments, train_dataset=rows, data_collator=PointCloudCollator())
    result = trainer.train()
    assert result.global_step == 5 and np.isfinite(result.training_loss)
    assert sorted(set(epochs)) == [0, 1]  # three batches per epoch
