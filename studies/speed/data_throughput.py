"""Compare reading training batches from Parquet through `hf_any3d` with plain npy files and nested lists.

    python -m studies.speed.data_throughput --clouds 2048 --output data_throughput.json

In all of them clouds are cut to 1,024 points, centered, scaled, augmented and stacked. They take turns, pass by pass,
so that other work on the machine affects all alike. CPU time includes worker processes.
"""

import argparse
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets import Array2D, Dataset, Features, List, Value
from torch.utils.data import DataLoader

from hf_any3d import PointCloudProcessor
from hf_any3d.data import AugmentedDataset, Compose, PointCloudCollator, build_transform, load_point_dataset
from hf_any3d.training.rows import streamed_training_rows, training_rows
from hf_any3d.utils.atomic_files import write_json

CUT = ["subsample:num_points=1024", "center"]
AUGMENTATION = ["scale", "rotate", "jitter"]
NUM_SHARDS = 4


class NpyFiles(torch.utils.data.Dataset):
    """The dataset that is usually written by hand: one file per cloud."""

    def __init__(self, folder: Path, transform: Compose):
        self.files = sorted(folder.glob("*.npy"))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        return {"points": self.transform(np.load(self.files[index])), "label": index % 40}


class NestedLists(torch.utils.data.Dataset):
    """A column of nested lists, which `datasets` makes of arrays without a declared type."""

    def __init__(self, dataset: Dataset, transform: Compose):
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        row = self.dataset[index]
        return {**row, "points": self.transform(np.array(row["points"], dtype=np.float32))}


def build(folder: Path, num_clouds: int, num_points: int) -> dict[str, Callable[[], Iterable]]:
    """Write the clouds in each form; returns what reads them, by name."""
    generator = np.random.default_rng(0)
    clouds = [generator.standard_normal((num_points, 3)).astype(np.float32) for _ in range(num_clouds)]
    for kind in ("npy", "parquet", "lists"):
        (folder / kind).mkdir()
    for number, cloud in enumerate(clouds):
        np.save(folder / "npy" / f"{number:06d}.npy", cloud)
    rows = {"points": clouds, "label": [number % 40 for number in range(num_clouds)]}
    features = Features({"points": Array2D((None, 3), "float32"), "label": Value("int64")})
    dataset = Dataset.from_dict(rows, features=features)
    for shard in range(NUM_SHARDS):
        name = f"train-{shard:05d}-of-{NUM_SHARDS:05d}.parquet"
        dataset.shard(NUM_SHARDS, shard).to_parquet(folder / "parquet" / name)
    few = min(num_clouds, 128)  # lists are so slow that a part is enough
    features = Features({"points": List(List(Value("float32"))), "label": Value("int64")})
    lists = Dataset.from_dict({name: values[:few] for name, values in rows.items()}, features=features)

    transform = build_transform([*CUT, *AUGMENTATION])
    processor = PointCloudProcessor(num_points=1024)
    mapped = load_point_dataset("parquet", data_dir=folder / "parquet", split="train", cache_dir=str(folder / "cache"))
    streamed = load_point_dataset("parquet", data_dir=folder / "parquet", split="train", streaming=True)
    return {
        "npy files, hand-written Dataset": NpyFiles(folder / "npy", transform),
        "Parquet, AugmentedDataset": AugmentedDataset(mapped, transform),
        "Parquet, training_rows": training_rows(mapped, processor, AUGMENTATION),
        "Parquet streamed, streamed_training_rows": streamed_training_rows(streamed, processor, AUGMENTATION),
        "nested lists in Arrow": NestedLists(lists, transform),
    }


def read_all(rows: torch.utils.data.Dataset, workers: int, batch_size: int) -> tuple[int, float, float]:
    """Read all rows once; returns clouds, wall seconds, and CPU seconds of this process and its workers."""
    shuffle = not isinstance(rows, torch.utils.data.IterableDataset)
    loader = DataLoader(rows, batch_size, shuffle=shuffle, num_workers=workers, collate_fn=PointCloudCollator())
    begin, before = time.perf_counter(), cpu_seconds()
    clouds = 0
    for batch in loader:
        assert batch["points"].shape[1:] == (1024, 3) and batch["points"].dtype == torch.float32
        clouds += len(batch["points"])
    return clouds, time.perf_counter() - begin, cpu_seconds() - before


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of the workers that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def main() -> None:
    """Measure; print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clouds", type=int, default=2048)
    parser.add_argument("--points", type=int, default=2048, help="stored points per cloud, at least 1024")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--output", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()

    measured = []
    with tempfile.TemporaryDirectory() as folder:
        ways = build(Path(folder), arguments.clouds, arguments.points)
        for rows in ways.values():
            read_all(rows, 0, arguments.batch_size)  # fills the file cache
        for workers in arguments.workers:
            passes = {name: [] for name in ways}
            for _ in range(arguments.passes):
                for name, rows in ways.items():
                    passes[name].append(read_all(rows, workers, arguments.batch_size))
            for name, results in passes.items():
                speed = statistics.median(clouds / wall for clouds, wall, _ in results)
                cpu = statistics.median(1000 * cpu / clouds for clouds, _, cpu in results)
                measured.append({"rows": name, "workers": workers, "clouds_per_second": speed, "cpu_per_1000": cpu})
                print(f"{name:42} {workers} workers {speed:7,.0f} clouds/s {cpu:7.3f} CPU s / 1,000", flush=True)
    report = {
        "clouds": arguments.clouds,
        "points": f"{arguments.points} stored, 1024 read",
        "batch_size": arguments.batch_size,
        "load_average": os.getloadavg()[0],
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "datasets": datasets.__version__,
        "measured": measured,
    }
    if arguments.output:
        write_json(arguments.output, report)


if __name__ == "__main__":
    main()
