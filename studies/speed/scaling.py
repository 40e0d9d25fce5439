"""Measure how time and memory grow: with points, tokens, clouds of a batch, views, layers, rows, files and users.

    python -m studies.speed.scaling
    python -m studies.speed.scaling --only tokens files --output scaling.json --plot scaling.png

Each curve runs one operation at growing sizes and fits `time = a * size ** exponent` to the larger half of them, where
fixed costs weigh little. Its exponent is compared with the known complexity of the operation; the program ends with
exit code 1 if one is clearly above it. Times are processor times of one thread, the fastest of several runs; memory is
the peak of the process above what it held before (Linux only). Those of users are the server's, without clients.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import itertools
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import httpx
import numpy as np
import psutil
import torch
import transformers
from datasets import Array2D, ClassLabel, Dataset, Features
from peft import get_peft_model
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel, pipeline

import hf_any3d  # noqa: F401  registers the pipelines
from hf_any3d import (
    ActConfig,
    ActForSemanticSegmentation,
    Any2PointConfig,
    Any2PointForPointCloudClassification,
    GuidedAdapterConfig,
    PointCloudProcessor,
    PointTransformerV3Config,
    PointTransformerV3Model,
)
from hf_any3d.data import PointCloudCollator, load_point_dataset
from hf_any3d.modeling.point_ops import farthest_point_sample, knn
from hf_any3d.training.rows import training_rows
from hf_any3d.utils.atomic_files import write_json
from studies.speed.serving import classify_request, start_server

TOLERANCE = 0.15
"""By how much a fitted exponent may exceed the known one: noise, and caches that larger sizes no longer fit into."""


@dataclass(frozen=True)
class Curve:
    """An operation whose cost is measured at growing sizes.

    Attributes:
        text: What is measured.
        sizes: Sizes, growing.
        complexity: Known exponent of the time; logarithms do not count.
        prepare: Takes a size and an empty folder; returns the operation.
    """

    text: str
    sizes: Sequence[int]
    complexity: float
    prepare: Callable[[int, Path], Callable[[], Any]]


def cloud_of(points: int, batch: int = 1) -> torch.Tensor:
    """Return random clouds, `(batch, points, 3)`."""
    return torch.rand(batch, points, 3, generator=torch.Generator().manual_seed(0)) - 0.5


def adapted_model(layers: int = 4, tokens: int = 64, views: int = 6) -> torch.nn.Module:
    """Build a small frozen BERT under a guided adapter."""
    torch.manual_seed(0)
    bert = BertConfig(
        vocab_size=8, hidden_size=192, num_hidden_layers=layers, num_attention_heads=3, intermediate_size=768
    )
    config = Any2PointConfig(
        encoder_config=bert, num_labels=18, num_tokens=tokens, num_views=views, tokenizer_neighbors=8
    )
    model = Any2PointForPointCloudClassification(config, BertModel(bert).requires_grad_(False))
    return get_peft_model(model, GuidedAdapterConfig()).train()


def training_step(model: torch.nn.Module, points: torch.Tensor) -> Callable[[], Any]:
    """Return a forward and backward pass."""
    labels = torch.arange(len(points)) % 18

    def step() -> float:
        model.zero_grad(set_to_none=True)
        loss = model(points=points, labels=labels).loss
        loss.backward()
        return loss.item()

    return step


def sampling(points: int, folder: Path) -> Callable[[], Any]:
    """Sample 128 centers and find their 32 nearest points."""
    cloud = cloud_of(points)

    def sample() -> Any:
        centers = cloud[:, farthest_point_sample(cloud, 128)[0]]  # (1, 128, 3)
        return knn(centers, cloud, 32)

    return sample


def classification(points: int, folder: Path) -> Callable[[], Any]:
    """Classify a cloud with the model that comes with the package."""
    classify, cloud = pipeline("point-cloud-classification"), cloud_of(points)[0].numpy()
    return lambda: classify(cloud, top_k=1)


def segmentation(points: int, folder: Path) -> Callable[[], Any]:
    """Label every point of a scene that grows in area, as dense everywhere."""
    torch.manual_seed(0)
    small = {"num_groups": 32, "group_size": 16, "patch_widths": (16, 16, 32), "hidden_size": 24, "head_widths": (16,)}
    heads = {"propagation_widths": (32, 20), "segmentation_head_widths": (16, 12), "segmentation_layers": (0, 1)}
    config = ActConfig(**small, **heads, num_hidden_layers=2, num_attention_heads=4, num_labels=13)
    processor = PointCloudProcessor(num_points=4096, scale=None, sampling="first", up_axis="z")
    segment = pipeline(
        "point-cloud-segmentation", model=ActForSemanticSegmentation(config), feature_extractor=processor
    )
    edge = math.sqrt(points / 4096)
    scene = cloud_of(points)[0].numpy() * np.float32([edge, edge, 1])
    return lambda: segment(scene)


def voxels(count: int, folder: Path) -> Callable[[], Any]:
    """Encode the voxels of a wall with a small Point Transformer V3."""
    torch.manual_seed(0)
    config = PointTransformerV3Config(
        depths=(1, 1),
        hidden_sizes=(16, 32),
        num_attention_heads=(1, 2),
        pooling_strides=(2,),
        patch_sizes=(256, 256),
        use_decoder=False,
    )
    model = PointTransformerV3Model(config).eval()
    edge = math.ceil(math.sqrt(count))
    number = torch.arange(count)
    grid = torch.stack([number // edge, number % edge, torch.zeros_like(number)], dim=-1)[None]  # (1, voxels, 3)
    rest = torch.rand(1, count, config.in_channels - 3, generator=torch.Generator().manual_seed(0))
    points = torch.cat([grid * config.grid_size, rest], dim=-1)
    return torch.no_grad()(lambda: model(points, grid_coord=grid))


def tokens(count: int, folder: Path) -> Callable[[], Any]:
    """Train on a cloud with growing numbers of tokens."""
    return training_step(adapted_model(tokens=count), cloud_of(8192))


def batch(clouds: int, folder: Path) -> Callable[[], Any]:
    """Train on batches of clouds."""
    return training_step(adapted_model(), cloud_of(512, clouds))


def views(count: int, folder: Path) -> Callable[[], Any]:
    """Train with growing numbers of virtual views."""
    return training_step(adapted_model(views=count), cloud_of(512, 4))


def layers(count: int, folder: Path) -> Callable[[], Any]:
    """Train with growing numbers of frozen layers."""
    return training_step(adapted_model(layers=count), cloud_of(512, 4))


def rows(clouds: int, folder: Path) -> Callable[[], Any]:
    """Read every row of a dataset once, as training does."""
    points = np.random.default_rng(0).standard_normal((clouds, 256, 3)).astype(np.float32)
    columns = {"points": list(points), "label": [number % 18 for number in range(clouds)]}
    features = Features({"points": Array2D((None, 3), "float32"), "label": ClassLabel(num_classes=18)})
    Dataset.from_dict(columns, features=features).to_parquet(folder / "train-00000-of-00001.parquet")
    cache = str(folder / "cache")
    dataset = load_point_dataset("parquet", data_dir=folder, split="train", cache_dir=cache)
    training = training_rows(dataset, PointCloudProcessor(num_points=128), ["scale", "rotate", "jitter"])

    def read() -> int:
        loader = DataLoader(training, 32, shuffle=True, collate_fn=PointCloudCollator())
        return sum(len(batch["points"]) for batch in loader)

    return read


def files(count: int, folder: Path) -> Callable[[], Any]:
    """Turn a folder of files into a dataset of points."""
    for number in range(count):
        scans = folder / "scans" / f"class_{number % 4}"
        scans.mkdir(parents=True, exist_ok=True)
        np.save(scans / f"{number}.npy", np.random.default_rng(number).random((256, 3), dtype=np.float32))
    attempts = itertools.count()

    def convert() -> int:
        cache = str(folder / f"cache_{next(attempts)}")
        return len(load_point_dataset("folder", data_dir=folder / "scans", split="train", cache_dir=cache))

    return convert


class Users:
    """Users of a server who ask at the same time, each several questions one after the other.

    Args:
        count: Number of users.
        address: Address of the server.
        server: Its process, which is measured instead of this one, and ended by `close`.
    """

    questions = 4

    def __init__(self, count: int, address: str, server: subprocess.Popen | None = None):
        self.count, self.address, self.server = count, address, server
        self.content, self.headers = classify_request(1024)

    def __call__(self) -> int:
        """Return the number of answers."""
        return asyncio.run(self._ask_all())

    def close(self) -> None:
        """End the server."""
        if self.server is not None:
            self.server.terminate()
            self.server.wait(60)

    async def _ask_all(self) -> int:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self.address, limits=limits, timeout=300, trust_env=False) as client:

            async def ask() -> int:
                for _ in range(self.questions):
                    answer = await client.post("/v1/classify", content=self.content, headers=self.headers)
                    answer.raise_for_status()
                return self.questions

            return sum(await asyncio.gather(*(ask() for _ in range(self.count))))


def users(count: int, folder: Path) -> Callable[[], Any]:
    """Let users ask `hf-any3d serve`, which has answered one before."""
    server, address = start_server()
    operation = Users(1, address, server)
    operation()
    operation.count = count
    return operation


CURVES = {
    "points, sampled": Curve(
        "points: 128 centers and their neighbors", (512, 4096, 32768, 262144, 1000000), 1, sampling
    ),
    "points, classified": Curve(
        "points: a cloud through the pipeline of classes", (1024, 8192, 65536, 262144, 1000000), 1, classification
    ),
    "points, segmented": Curve(
        "points: a scene through the pipeline of labels", (4096, 16384, 65536, 262144, 1000000), 1, segmentation
    ),
    "voxels": Curve("voxels: a small Point Transformer V3", (512, 4096, 32768, 131072, 524288), 1, voxels),
    "tokens": Curve("tokens: a training step of an adapted encoder", (64, 128, 256, 512, 1024), 2, tokens),
    "batch": Curve("clouds of a batch: a training step", (1, 2, 4, 8, 16, 32), 1, batch),
    "views": Curve("virtual views: a training step", (1, 2, 3, 4, 5, 6), 1, views),
    "layers": Curve("frozen layers: a training step", (1, 2, 4, 8, 16), 1, layers),
    "rows": Curve("clouds of a dataset: one epoch of rows", (512, 2048, 8192, 32768, 131072), 1, rows),
    "files": Curve("files of a folder: to a dataset of points", (128, 512, 2048, 8192), 1, files),
    "users": Curve("users of a server: 4 answers for each, asked at once", (1, 2, 4, 8, 16, 32, 64), 1, users),
}


def measured_process(operation: Callable[[], Any]) -> int:
    """Return the process that does the work of an operation."""
    server = operation.server if isinstance(operation, Users) else None
    return os.getpid() if server is None else server.pid


def processor_seconds(process: int) -> float:
    """Return the processor time of a process."""
    if process == os.getpid():
        return time.process_time()
    times = psutil.Process(process).cpu_times()
    return times.user + times.system


def resident(field: str, process: int) -> int | None:
    """Return "VmRSS", the resident bytes of a process, or "VmHWM", their peak; None where Linux does not tell."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    kilobytes = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    return 1024 * int(kilobytes[field]) if field in kilobytes else None


def peak_above(operation: Callable[[], Any]) -> int | None:
    """Run an operation; returns the peak of resident bytes above those before it, None where it cannot be measured."""
    process = measured_process(operation)
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # memory that was freed is returned, so that it counts when taken again
    try:
        Path(f"/proc/{process}/clear_refs").write_text("5")  # sets the peak to what is resident now
    except OSError:
        operation()
        return None
    before = resident("VmRSS", process)
    operation()
    peak = resident("VmHWM", process)
    return None if before is None or peak is None else max(0, peak - before)


def fitted_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Fit `value = a * size ** exponent` to the larger half of the sizes, at least two of them."""
    half = min(len(sizes) // 2, len(sizes) - 2)
    return float(np.polyfit(np.log(sizes[half:]), np.log(values[half:]), 1)[0])


@contextmanager
def prepared(curve: Curve, size: int) -> Iterator[Callable[[], Any]]:
    """Yield an operation of a size; its files and its server are removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        operation = curve.prepare(size, Path(folder))
        try:
            yield operation
        finally:
            if isinstance(operation, Users):
                operation.close()


def measure(curve: Curve, repeats: int, first: int | None = None) -> dict[str, Any]:
    """Measure a curve at its sizes, or the first of them; returns sizes, seconds, bytes and the fitted exponent."""
    sizes = curve.sizes[:first]
    seconds, peaks = [], []
    with prepared(curve, sizes[0]) as operation:
        operation()  # what is loaded and cached once does not count
    for size in sizes:
        with prepared(curve, size) as operation:
            peaks.append(peak_above(operation))
            process, spent = measured_process(operation), []
            for _ in range(repeats):
                start = processor_seconds(process)
                operation()
                spent.append(processor_seconds(process) - start)
            seconds.append(min(spent))
    return {
        "text": curve.text,
        "sizes": sizes,
        "seconds": seconds,
        "peak_bytes": peaks,
        "exponent": fitted_exponent(sizes, seconds),
        "complexity": curve.complexity,
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Format the results as a Markdown table."""
    lines = ["| grows | sizes | CPU s | peak MB | exponent | known |", "|---|---|---|---|---|---|"]
    for result in results.values():
        sizes = " · ".join(f"{size:,}" for size in result["sizes"])
        seconds = " · ".join(f"{value:.3g}" for value in result["seconds"])
        peaks = " · ".join("–" if peak is None else f"{peak / 1e6:.0f}" for peak in result["peak_bytes"])
        exponents = f"{result['exponent']:.2f} | at most {result['complexity']:g}"
        lines.append(f"| {result['text']} | {sizes} | {seconds} | {peaks} | {exponents} |")
    return "\n".join(lines)


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Plot time and memory against size, all logarithmic, one panel a curve; dashed is the known complexity."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    columns = min(4, len(results))
    height = math.ceil(len(results) / columns)
    figure = Figure(figsize=(3.4 * columns, 2.6 * height), layout="constrained")
    for number, (name, result) in enumerate(results.items()):
        sizes, seconds = np.array(result["sizes"]), np.array(result["seconds"])
        axes = figure.add_subplot(height, columns, number + 1)
        axes.loglog(sizes, seconds, marker="o", color="tab:blue")
        known = seconds[-1] * (sizes / sizes[-1]) ** result["complexity"]
        axes.loglog(sizes, known, linestyle="--", linewidth=0.8, color="gray")
        # Two decades at least, so that what hardly grows looks flat.
        axes.set_ylim(min(seconds.min(), seconds.max() / 100) / 2, seconds.max() * 2)
        axes.set_title(f"{name}: time ~ size$^{{{result['exponent']:.2f}}}$", fontsize=10)
        panels = [axes]
        if None not in result["peak_bytes"]:
            panels.append(axes.twinx())
            peaks = np.array(result["peak_bytes"]) / 1e6
            panels[1].loglog(sizes, peaks.clip(min=0.1), marker=".", color="tab:orange")
            panels[1].set_ylim(0.05, 2000)
        for panel, label, color in zip(panels, ("CPU s", "peak MB"), ("tab:blue", "tab:orange"), strict=False):
            panel.set_ylabel(label, color=color, fontsize=8)
            panel.tick_params(labelsize=7)
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.yaxis.set_minor_formatter(NullFormatter())
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main(arguments: list[str] | None = None) -> None:
    """Measure the curves, print a table, and end with exit code 1 if one grows faster than it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CURVES), default=list(CURVES), help="curves; all by default")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each size")
    parser.add_argument("--first", type=int, help="measure only the first sizes of each curve, at least 2")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--plot", type=Path, help="draw the curves, a .png, .svg or .pdf file; needs matplotlib")
    options = parser.parse_args(arguments)
    if options.first is not None and options.first < 2:
        parser.error(f"--first {options.first}: expected at least 2, to fit an exponent")
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    results = {}
    for name in options.only:
        results[name] = measure(CURVES[name], options.repeats, options.first)
        print(f"{name}: exponent {results[name]['exponent']:.2f}", file=sys.stderr, flush=True)
    print(table(results))
    if options.output is not None:
        machine = {"processors": os.cpu_count(), "torch": torch.__version__, "python": platform.python_version()}
        write_json(options.output, {"machine": machine, "repeats": options.repeats, "curves": results})
    if options.plot is not None:
        draw(results, options.plot)
    above = [name for name, result in results.items() if result["exponent"] > result["complexity"] + TOLERANCE]
    if above:
        sys.exit(f"above the known complexity: {', '.join(above)}")


if __name__ == "__main__":
    main()
