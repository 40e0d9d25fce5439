"""A linear classifier on frozen features, to see during pretraining what a model has learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from torch import nn
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_any3d.processing import PointCloudProcessor
from hf_any3d.training.rows import evaluation_rows

ACCURACY = "probe_accuracy"


@dataclass
class LinearProbe:
    """A linear support vector machine that learns the classes of labelled clouds from a model's features.

    Features are standardised by the mean and deviation of the clouds that are learned from. Neither the model nor
    torch's source of randomness is changed, so that training goes on as if it had not been looked at.

    Args:
        splits: Clouds with a ClassLabel: `train` to learn from, others to judge.
        processor: Brings them to form; has a seed.
        batch_size: Clouds that go through the model together.
        cost: The machine's C: what an error costs beside a small margin.

    Raises:
        ImportError: If scikit-learn is missing.
        ValueError: Clouds without classes.
    """

    splits: DatasetDict
    processor: PointCloudProcessor
    batch_size: int = 32
    cost: float = 0.01

    def __post_init__(self):
        _import_sklearn()
        for split, rows in self.splits.items():
            if not isinstance(rows.features.get("label"), ClassLabel):
                raise ValueError(
                    f"the linear probe's split {split!r} has label {rows.features.get('label')}; expected a ClassLabel"
                )

    def accuracies(self, model: nn.Module, quiet: bool = True) -> dict[str, float]:
        """Accuracy on each split but `train`.

        Args:
            model: Has `probe_features(points)`, `(batch, points, channels)` to `(batch, features)`.
            quiet: Show no progress.
        """
        standardize, machine = _import_sklearn()
        found = {split: self._features(model, rows, split, quiet) for split, rows in self.splits.items()}
        scale = standardize().fit(found["train"])
        learned = machine(C=self.cost, random_state=0, max_iter=10_000)
        learned.fit(scale.transform(found["train"]), self._labels("train"))
        return {
            split: float(learned.score(scale.transform(features), self._labels(split)))
            for split, features in found.items()
            if split != "train"
        }

    def _labels(self, split: str) -> np.ndarray:
        return np.asarray(self.splits[split]["label"])

    @torch.no_grad()
    def _features(self, model: nn.Module, rows: Dataset, split: str, quiet: bool) -> np.ndarray:
        was_training, device = model.training, next(model.parameters()).device
        rows = evaluation_rows(rows, self.processor)
        starts = tqdm(range(0, len(rows), self.batch_size), desc=f"features of {split}", disable=quiet, leave=False)
        model.eval()
        found = []
        with torch.random.fork_rng():
            for start in starts:
                batch = rows.__getitems__(list(range(start, min(start + self.batch_size, len(rows)))))
                points = torch.from_numpy(np.stack([row["points"] for row in batch])).to(device)
                found.append(model.probe_features(points).float().cpu().numpy())
        model.train(was_training)
        return np.concatenate(found)


class ProbeCallback(TrainerCallback):
    """Logs what a linear probe finds, every few epochs, as `eval_probe_accuracy`.

    Args:
        trainer: Whose log it goes into.
        probe: Has a split of the name `split`.
        every: Epochs between two looks.
        split: Where it is judged; needs no other split but `train`.
    """

    def __init__(self, trainer: Trainer, probe: LinearProbe, every: int, split: str = "validation"):
        if every < 1:
            raise ValueError(f"every is {every}; expected at least 1 epoch")
        kept = {name: probe.splits[name] for name in ("train", split)}
        self.probe = LinearProbe(DatasetDict(kept), probe.processor, probe.batch_size, probe.cost)
        self.trainer, self.every, self.split = trainer, every, split

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Look, where it is time."""
        if state.is_world_process_zero and round(state.epoch) % self.every == 0:
            self.trainer.log({f"eval_{ACCURACY}": self.probe.accuracies(model)[self.split]})


def judge_pretraining(
    trainer: Trainer, splits: Mapping[str, Any], probe: LinearProbe | None
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Judge the trainer's model on splits, and print what comes out.

    Args:
        trainer: Has trained.
        splits: Rows of each split to judge on.
        probe: Judges on its own splits; None for none.

    Returns:
        For each split `loss` and `probe_accuracy`, as far as it has them; and nothing class by class.
    """
    metrics: dict[str, dict[str, float]] = {}
    for split, rows in splits.items():
        metrics[split] = {"loss": float(trainer.evaluate(rows, metric_key_prefix=split)[f"{split}_loss"])}
    for split, accuracy in (probe.accuracies(trainer.model, quiet=False) if probe else {}).items():
        metrics.setdefault(split, {})[ACCURACY] = accuracy
    for split, found in metrics.items():
        trainer.log_metrics(split, {f"{split}_{name}": value for name, value in found.items()})
    return metrics, {}


def _import_sklearn() -> tuple[type, type]:
    try:
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import LinearSVC
    except ImportError as error:
        raise ImportError("the linear probe needs scikit-learn: pip install scikit-learn") from error
    return StandardScaler, LinearSVC
