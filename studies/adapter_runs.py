"""One run of the study of adapters, in a fresh process, so that its peak memory is its own."""

from __future__ import annotations

import functools
import re
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Array2D, DatasetDict, disable_progress_bars
from peft import PeftModel
from torch import nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)
from transformers.trainer_callback import PrinterCallback

from examples import quickstart
from hf_any3d.data import PointCloudCollator, load_point_dataset, validation_split
from hf_any3d.model_card.run_report import count_parameters, peak_memory
from hf_any3d.modeling.any2point import Any2PointPreTrainedModel
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training.frozen_features import HeadOnFeatures, frozen_features
from studies import earlier_recipe
from studies.adapter_methods import build_adapted, build_adapted_point_encoder
from studies.generated_shapes import generate
from studies.runs import stopwatch
from studies.speed._measure import saved_bytes, storages

WARM_UP = 5
"""Steps that are not timed."""
GENERATED = "generated"
"""Name of the generated shapes that `generated_splits` draws."""
NEW_CLASSES = ("house", "tower", "bridge", "ladder", "fence", "rocket", "mushroom", "dog", "horse", "umbrella")
"""Classes of generated shapes that the embedded ones have not."""


@dataclass(frozen=True)
class Run:
    """Everything that affects the result of a run.

    Args:
        method: Name of a method or an ablation.
        seed: Seed of the run.
        encoder_learning_rate: Learning rate inside the encoder; for "linear", of the linear layer.
        on_validation: Hold out a part of the training rows and evaluate on it instead of the test split.
        dataset: Name for `load_point_dataset`, or `GENERATED`.
        encoder: Name or directory of the pretrained encoder.
        model: Changes of the quickstart's model, for all methods.
        training: Changes of the quickstart's training, for all methods.
        threads: Threads of torch.
        base: Name or directory of a pretrained point encoder to adapt instead.
        random_base: Draw the weights of that encoder instead.
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
    random_base: bool = False


class StepClock(TrainerCallback):
    """Measures the seconds of each optimization step, without loading its batch."""

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
        """Return median seconds of the steps after the first ones."""
        first = min(WARM_UP, len(self.wall) - 1)
        return {
            "step_seconds": statistics.median(self.wall[first:]),
            "step_cpu_seconds": statistics.median(self.cpu[first:]),
        }


def in_fresh_process(run: Run) -> dict[str, Any]:
    """Do a run in its own process and return its result."""
    fork = "forkserver" in get_all_start_methods()
    context = get_context("forkserver" if fork else "spawn")
    if fork:
        # Imported once, in a server process; every run is a fresh copy of it.
        context.set_forkserver_preload(["datasets", "peft", "transformers", "hf_any3d.training.program"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(train_and_measure, run).result()


def train_and_measure(run: Run) -> dict[str, Any]:
    """Do a run in this process."""
    torch.set_num_threads(run.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disable_progress_bars()
    splits, split = prepare(run)
    names = splits["train"].features["label"].names
    before = peak_memory()
    model = build_model(run, names)
    with tempfile.TemporaryDirectory() as directory:
        clock, trainer = StepClock(), make_trainer(run, model, splits, Path(directory) / "trainer")
        with stopwatch() as spent:
            runner = trainer if run.method != "probe" else probe_trainer(run, model, splits, trainer.args)
            runner.add_callback(clock)
            training = runner.train()
        peak = peak_memory()
        # Training drops an incomplete last batch.
        trainer.args.dataloader_drop_last = False
        found = trainer.predict(quickstart.plain_rows(splits[split]), metric_key_prefix="eval")
        stored = stored_bytes(model, Path(directory) / "model")
    return {
        **{name: found.metrics[f"eval_{name}"] for name in ("accuracy", "mean_class_accuracy", "loss")},
        "correct": (found.predictions.argmax(-1) == found.label_ids).astype(int).tolist(),
        "train_loss": training.training_loss,
        "trained_parameters": count_parameters(model)[0],
        "encoder_parameters": sum(p.numel() for _, p in own_parameters(model)),
        **clock.medians(),
        **spent,
        "peak_memory": peak.get("process"),
        "training_memory": peak["process"] - before["process"] if "process" in peak else None,
        "saved_activations": activation_bytes(runner, splits),
        "stored_bytes": stored,
        "train_rows": len(splits["train"]),
        "rows": len(splits[split]),
    }


def prepare(run: Run) -> tuple[DatasetDict, str]:
    """Load the splits of a run; returns them with the name of the split to evaluate on."""
    splits = generated_splits() if run.dataset == GENERATED else load_point_dataset(run.dataset)
    if run.base is not None:
        splits = with_channels(splits, run.base)
    if not run.on_validation:
        return splits, "test"
    columns = splits["train"].column_names
    return validation_split(splits, 0.25, seed=0, group_column="group" if "group" in columns else None), "validation"


@functools.cache  # all runs of a process have the same
def generated_splits() -> DatasetDict:
    """Draw 16 training and 40 test shapes of each of `NEW_CLASSES`, damaged, with 1,024 points."""
    return DatasetDict(
        train=generate(16, seed=0, classes=NEW_CLASSES).with_format(None),
        test=generate(40, seed=1, classes=NEW_CLASSES).with_format(None),
    )


def with_channels(splits: DatasetDict, base: str) -> DatasetDict:
    """Return splits whose points have the channels of an encoder, prepared by its processor; all points are kept.

    Encoders of coordinates alone read the points as they are stored. An encoder of voxels gets for each point the one
    that its processor keeps of the cell, and samples these again after augmentation.
    """
    config = AutoConfig.from_pretrained(base)
    if config.in_channels == 3:
        return splits
    try:
        processor = AutoFeatureExtractor.from_pretrained(base)
    except OSError:  # saved without one
        if config.in_channels != 6:
            raise ValueError(
                f"{base} has no processor, and in_channels={config.in_channels}; expected one, or 3 or 6 channels"
            ) from None
        processor = PointCloudProcessor(features=("xyz", "rgb"), default_rgb=(0.4, 0.4, 0.4))

    def prepare_row(row: dict[str, Any]) -> dict[str, Any]:
        made = processor(row, num_points=len(row["points"]), return_tensors="np")
        points = made["points"][0]
        return {"points": points[made["inverse"][0]] if "inverse" in made else points}

    prepared = DatasetDict()
    for name, rows in splits.items():
        features = rows.features.copy()
        features["points"] = Array2D((None, config.in_channels), "float32")
        prepared[name] = rows.with_format("numpy").map(prepare_row, features=features).with_format(None)
    return prepared


def build_model(run: Run, names: list[str]) -> nn.Module:
    """Build the model that a run trains."""
    if run.base is not None:
        return build_adapted_point_encoder(run.method, run.seed, names, run.base, run.model, run.random_base)
    return build_adapted(run.method, run.seed, names, run.encoder, run.model)


def own_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the trained parameters inside the encoder, of another modality or of points, with their names."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    encoder = "encoder" if isinstance(base, Any2PointPreTrainedModel) else base.base_model_prefix
    inside = re.compile(rf"(^|\.){encoder}\.")
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad and inside.search(name)]


def make_trainer(run: Run, model: nn.Module, splits: DatasetDict, directory: Path) -> Trainer:
    """Build the quickstart's `Trainer` with another learning rate inside the encoder."""
    arguments = earlier_recipe.training_arguments(directory, run.seed, disable_tqdm=True, **run.training)
    trainer = earlier_recipe.build_trainer(model, arguments, splits["train"])
    trainer.remove_callback(PrinterCallback)
    own = {name for name, _ in own_parameters(model)}
    if run.method in ("linear", "probe"):
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


def probe_trainer(run: Run, model: PreTrainedModel, splits: DatasetDict, arguments: TrainingArguments) -> Trainer:
    """Build a `Trainer` of the model's linear layer alone, on features that are computed once and cached."""
    head = HeadOnFeatures(model)
    rows = frozen_features(model, splits["train"]).select_columns(["features", "label"]).with_format("torch")
    parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
    trainer = Trainer(
        head,
        arguments,
        train_dataset=rows,
        compute_loss_func=quickstart.smoothed_loss,
        optimizers=(torch.optim.AdamW(parameters, lr=run.encoder_learning_rate), None),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def stored_bytes(model: nn.Module, directory: Path) -> int:
    """Return the size of everything that `save_pretrained` writes."""
    model.save_pretrained(directory)
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def activation_bytes(trainer: Trainer, splits: DatasetDict) -> int:
    """Measure what a training step on a batch saves for its backward pass, without parameters."""
    model = trainer.model
    is_probe = isinstance(model, HeadOnFeatures)
    rows = trainer.train_dataset if is_probe else quickstart.plain_rows(splits["train"])
    chosen = [rows[number] for number in range(min(trainer.args.train_batch_size, len(rows)))]
    batch = default_data_collator(chosen) if is_probe else PointCloudCollator()(chosen)
    model.train()
    return saved_bytes(lambda: model(**batch).loss, storages(model))
