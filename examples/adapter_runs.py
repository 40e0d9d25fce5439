"""One run of `compare_adapters.py`: train, measure, judge and store, in a fresh process, so that peaks are its own."""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import shapes_recipe as recipe
import torch
import transformers
from act_adapter_methods import build_act
from adapter_methods import build
from benchmarks._saved_bytes import saved_bytes, storages
from datasets import DatasetDict, disable_progress_bars
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from hf_any3d.data import PointCloudCollator, load_point_dataset, validation_split
from hf_any3d.model_card.run_report import count_parameters, peak_memory

WARM_UP = 5
"""Steps that are not timed."""


@dataclass(frozen=True)
class Run:
    """Everything that decides the result of a run.

    Args:
        method: Name of a method or an ablation.
        seed: Of the run.
        encoder_learning_rate: Of what trains inside the encoder; for "linear", of the linear layer.
        on_validation: Leave a part of the training rows out and report on it, instead of on the test split.
        dataset: Name for `load_point_dataset`.
        encoder: Name or directory of the pretrained encoder.
        model: Changes of the recipe's model, for all methods.
        training: Changes of the recipe's training, for all methods.
        threads: Of torch.
        base: Name or directory of a pretrained point transformer, in the place of a wrapped encoder.
    """

    method: str
    seed: int
    encoder_learning_rate: float
    on_validation: bool
    dataset: str
    encoder: str
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    threads: int = 1
    base: str | None = None


class StepClock(TrainerCallback):
    """Seconds of each optimisation step on its batch, which is loaded already."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start."""
        self._began = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop."""
        self.wall.append(time.perf_counter() - self._began[0])
        self.cpu.append(time.process_time() - self._began[1])

    def medians(self) -> dict[str, float]:
        """Median seconds of the steps after the first ones."""
        first = min(WARM_UP, len(self.wall) - 1)
        return {
            "step_seconds": statistics.median(self.wall[first:]),
            "step_cpu_seconds": statistics.median(self.cpu[first:]),
        }


def in_fresh_process(run: Run) -> dict[str, Any]:
    """Do a run in a process of its own and return what it found."""
    fork = "forkserver" in get_all_start_methods()
    context = get_context("forkserver" if fork else "spawn")
    if fork:
        # Imported once, in a process that does nothing else; every run is a fresh copy of it.
        context.set_forkserver_preload(["datasets", "peft", "transformers", "hf_any3d.training.program"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(train_and_measure, run).result()


def train_and_measure(run: Run) -> dict[str, Any]:
    """Do a run in this process."""
    torch.set_num_threads(run.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disable_progress_bars()
    splits, report_on = prepare(run)
    names = splits["train"].features["label"].names
    before = peak_memory()
    model = build_model(run, names)
    with tempfile.TemporaryDirectory() as directory:
        clock, trainer = StepClock(), make_trainer(run, model, splits, Path(directory) / "trainer")
        trainer.add_callback(clock)
        start = time.perf_counter(), time.process_time()
        training = trainer.train()
        seconds = time.perf_counter() - start[0], time.process_time() - start[1]
        peak = peak_memory()
        metrics = recipe.evaluate(trainer, splits[report_on])
        stored = stored_bytes(model, Path(directory) / "model")
    return {
        "accuracy": metrics["eval_accuracy"],
        "mean_class_accuracy": metrics["eval_mean_class_accuracy"],
        "loss": metrics["eval_loss"],
        "train_loss": training.training_loss,
        "trained_parameters": count_parameters(model)[0],
        "encoder_parameters": sum(p.numel() for _, p in own_parameters(model)),
        **clock.medians(),
        "seconds": seconds[0],
        "cpu_seconds": seconds[1],
        "peak_memory": peak.get("process"),
        "training_memory": peak["process"] - before["process"] if "process" in peak else None,
        "saved_activations": activation_bytes(model, splits, trainer.args.train_batch_size),
        "stored_bytes": stored,
        "train_rows": len(splits["train"]),
        "rows": len(splits[report_on]),
    }


def prepare(run: Run) -> tuple[DatasetDict, str]:
    """The splits of a run, and the name of the one that it reports on."""
    splits = load_point_dataset(run.dataset)
    if not run.on_validation:
        return splits, "test"
    columns = splits["train"].column_names
    return validation_split(splits, 0.25, seed=0, group_column="group" if "group" in columns else None), "validation"


def build_model(run: Run, names: list[str]) -> nn.Module:
    """The model that a run trains."""
    if run.base is not None:
        return build_act(run.method, run.seed, names, run.base, run.model)
    return build(run.method, run.seed, names, run.encoder, run.model)


def own_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What trains inside the encoder or the point transformer, by name."""
    inside = re.compile(r"\.encoder\.|(^|\.)act\.")
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad and inside.search(name)]


def make_trainer(run: Run, model: nn.Module, splits: DatasetDict, directory: Path) -> Trainer:
    """The recipe's `Trainer`, with a learning rate of its own for what trains inside the encoder."""
    arguments = recipe.training_arguments(directory, run.seed, disable_tqdm=True, **run.training)
    trainer = recipe.build_trainer(model, arguments, splits["train"])
    trainer.remove_callback(PrinterCallback)
    own = {name for name, _ in own_parameters(model)}
    if run.method == "linear":
        own = {name for name, p in model.named_parameters() if p.requires_grad}
    decayed = set(trainer.get_decay_parameter_names(model))
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name in own, name in decayed), []).append(parameter)
    trainer.optimizer = torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": run.encoder_learning_rate if is_own else arguments.learning_rate,
                "weight_decay": arguments.weight_decay if is_decayed else 0.0,
            }
            for (is_own, is_decayed), parameters in groups.items()
        ]
    )
    return trainer


def stored_bytes(model: nn.Module, directory: Path) -> int:
    """Bytes of all that `save_pretrained` writes."""
    model.save_pretrained(directory)
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def activation_bytes(model: nn.Module, splits: DatasetDict, batch_size: int) -> int:
    """What one training step on a batch keeps for its backward pass, parameters left out."""
    rows = recipe.plain_rows(splits["train"])
    batch = PointCloudCollator()([rows[number] for number in range(min(batch_size, len(rows)))])
    model.train()
    return saved_bytes(lambda: model(**batch).loss, storages(model))
