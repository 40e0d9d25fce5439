"""The report of a training run: data, settings, cost and results in one JSON file; model cards are built from it."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_any3d.utils.atomic_files import write_json

if TYPE_CHECKING:
    from transformers import Trainer

TEST_CHOOSES = "the test split itself"
"""Value of `data["validation"]` in a report if the weights were selected on the test split."""
_PACKAGES = ("hf-any3d", "torch", "transformers", "peft", "datasets", "accelerate", "numpy")


@dataclass
class RunReport:
    """Everything about a run that is needed to judge or repeat it."""

    data: dict[str, Any]  # dataset, rows of each split, points per cloud, augmentation, source of the validation split
    encoder: dict[str, Any]  # name, revision, checksum, tower and layers of the frozen encoder; empty without one
    adapter: dict[str, Any]  # PEFT method and its settings; empty without one
    trained_parameters: int  # with a gradient
    total_parameters: int  # including the frozen encoder's
    seconds: dict[str, float]  # of parts of the run; `training` includes evaluation during training
    peak_memory: dict[str, int]  # bytes, see `peak_memory`
    metrics: dict[str, dict[str, float]]  # of each evaluated split
    class_accuracy: dict[str, dict[str, float]]  # in segmentation the IoU, of each class of each evaluated split
    selection: dict[str, Any]  # metric that selected the final weights, its value, and the step
    training: dict[str, Any]  # seed, steps, batch sizes, learning rate and the like
    # Called through a lambda, since the function is defined below the class.
    versions: dict[str, str] = field(default_factory=lambda: package_versions())
    start: dict[str, Any] = field(default_factory=dict)  # of a model without a frozen encoder, and what was trained

    def save(self, path: str | os.PathLike) -> Path:
        """Write the report as JSON, atomically."""
        return write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | os.PathLike) -> RunReport:
        """Read a report that `save` wrote."""
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            # A TypeError is that of other fields, as another version may have had them.
            raise ValueError(f"{path}: not a run report ({error})") from error


class Stopwatch:
    """Measure wall-clock seconds of named parts of a run: `with stopwatch.part("training"): …`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the seconds of a `with` block to those of `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            # Time that was spent until an error counts, too.
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def stop(self) -> dict[str, float]:
        """Return the seconds of all parts, and those since the stopwatch was made as `total`."""
        return {**self.seconds, "total": time.perf_counter() - self._start}


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Count parameters with a gradient and all parameters; shared weights count once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def peak_memory() -> dict[str, int]:
    """Return the peak memory in bytes of this process alone, and of the tensors on its GPU, where they are known."""
    peaks = {}
    status = Path("/proc/self/status")
    # getrusage would include the parent process before the fork.
    if status.is_file() and (peak := re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)):
        peaks["process"] = 1024 * int(peak[1])
    elif sys.platform != "win32":
        import resource

        # ru_maxrss is in bytes on macOS and in kilobytes elsewhere.
        unit = 1 if sys.platform == "darwin" else 1024
        peaks["process"] = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if torch.cuda.is_available():
        peaks["cuda"] = torch.cuda.max_memory_allocated()
    return peaks


def best_step(trainer: Trainer) -> dict[str, Any]:
    """Return metric, value and step that selected a trainer's final weights; empty if they are those of the last."""
    arguments = trainer.args
    state = trainer.state
    # Without an evaluation no step was chosen, whatever the settings say.
    if not arguments.load_best_model_at_end or state.best_metric is None:
        return {}
    metric = arguments.metric_for_best_model
    assert metric is not None  # load_best_model_at_end sets it
    return {"metric": metric.removeprefix("eval_"), "value": state.best_metric, "step": state.best_global_step}


def training_facts(trainer: Trainer) -> dict[str, Any]:
    """Return the settings of a trainer's run that a report lists."""
    arguments = trainer.args
    state = trainer.state
    # Only one of both can be on.
    half = "bfloat16" if arguments.bf16 else "float16"
    return {
        "seed": arguments.seed,
        "steps": state.global_step,
        "epochs": state.epoch,
        # Clouds that one step of the optimizer sees, on all devices.
        "batch_size": arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size,
        "learning_rate": float(arguments.learning_rate),
        # A text or a value of an enum, as it was set.
        "lr_scheduler": str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type)),
        "weight_decay": arguments.weight_decay,
        "label_smoothing": arguments.label_smoothing_factor,
        "precision": half if arguments.bf16 or arguments.fp16 else "float32",
    }


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results."""
    # Packages that are not installed have no version, and are left out.
    installed = {name: _version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **{name: version for name, version in installed.items() if version}}


@functools.cache  # a search of the installed packages, for every card
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
