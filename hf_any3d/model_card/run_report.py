"""What a training run was, cost and gave: one JSON file, from which its model card is written."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_any3d.atomic_files import write_json

TEST_CHOOSES = "the test split itself"
"""What a report says of the validation split where the weights were chosen by the test split."""
_PACKAGES = ("hf-any3d", "torch", "transformers", "peft", "datasets", "accelerate", "numpy")


@dataclass
class RunReport:
    """Everything of a run that a reader needs to judge or to repeat it.

    Args:
        data: Name of the dataset, rows of each split, points of a cloud, augmentation, where validation comes from.
        encoder: Name, revision, checksum, tower and layers of the frozen encoder; empty without one.
        adapter: PEFT method and its settings; empty when only what surrounds the encoder was trained.
        trained_parameters: Parameters with a gradient.
        total_parameters: All parameters, the frozen encoder's among them.
        seconds: Wall-clock seconds of parts of the run, evaluation during training included in `training`.
        peak_memory: Bytes, see `peak_memory`.
        metrics: For each split judged, its metrics.
        class_accuracy: For each split judged, the accuracy of each class; its IoU for segmentation.
        selection: What the final weights were chosen by: metric, its value, step.
        training: Seed, steps, batch sizes, learning rate and the like.
        versions: Versions of the packages used.
        start: What a model without a frozen encoder started from, and which of it was trained.
    """

    data: dict[str, Any]
    encoder: dict[str, Any]
    adapter: dict[str, Any]
    trained_parameters: int
    total_parameters: int
    seconds: dict[str, float]
    peak_memory: dict[str, int]
    metrics: dict[str, dict[str, float]]
    class_accuracy: dict[str, dict[str, float]]
    selection: dict[str, Any]
    training: dict[str, Any]
    versions: dict[str, str] = field(default_factory=lambda: package_versions())
    start: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | os.PathLike) -> Path:
        """Write the report as JSON; the file is complete or not there."""
        return write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | os.PathLike) -> RunReport:
        """Read a report that `save` wrote.

        Raises:
            ValueError: A file that is no report.
        """
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a run report ({error})") from error


class Stopwatch:
    """Wall-clock seconds of the named parts of a run: `with stopwatch.part("training"): …`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun = time.perf_counter()

    def part(self, name: str) -> _Part:
        """A context whose seconds are added to those of `name`."""
        return _Part(self.seconds, name)

    def stop(self) -> dict[str, float]:
        """Seconds of all parts, and of everything since the stopwatch was made as `total`."""
        return {**self.seconds, "total": time.perf_counter() - self._begun}


class _Part:
    def __init__(self, seconds: dict[str, float], name: str):
        self.seconds, self.name = seconds, name

    def __enter__(self) -> None:
        self.begun = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self.seconds[self.name] = self.seconds.get(self.name, 0.0) + time.perf_counter() - self.begun


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Parameters with a gradient, and all parameters; weights that modules share count once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def peak_memory() -> dict[str, int]:
    """Most memory that this process ever held, in bytes.

    Returns:
        `process`: resident memory since the process began, without its worker processes; missing where the system
        does not tell. `cuda`: memory of tensors on the current GPU; missing without one.
    """
    peaks = {}
    if (resident := _peak_resident()) is not None:
        peaks["process"] = resident
    if torch.cuda.is_available():
        peaks["cuda"] = torch.cuda.max_memory_allocated()
    return peaks


def _peak_resident() -> int | None:
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage would also tell what the process was that started this one.
        found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return 1024 * int(found[1])
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape a result."""
    installed = {name: _version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **{name: version for name, version in installed.items() if version}}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
