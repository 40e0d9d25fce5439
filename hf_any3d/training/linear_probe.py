"""Linear probe: evaluate the features of a model during pretraining by a linear classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, NamedSplit
from torch import nn
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_any3d.processing import PointCloudProcessor
from hf_any3d.training.rows import evaluation_rows
from hf_any3d.training.trainer import PointTrainer

ACCURACY = "probe_accuracy"


@dataclass
class LinearProbe:
    """Linear support vector machine on the features of a model.

    Features are standardized by mean and deviation of the training clouds. Neither the model nor torch's random state
    is changed, so probing does not affect training.

    Args:
        splits: Clouds with a ClassLabel: `train` to fit on, others to evaluate.
        processor: Processor with a seed.
        batch_size: Clouds per batch.
        cost: C of the support vector machine.

    Raises:
        ImportError: If scikit-learn is missing.
        ValueError: If a split has no classes.
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
        """Compute the accuracy on each split except for `train`.

        Args:
            model: Model with `probe_features(points)`, `(batch, points, channels)` to `(batch, features)`.
            quiet: Hide the progress bar.
        """
        standardize, machine = _import_sklearn()
        found = {str(split): self._features(model, rows, split, quiet) for split, rows in self.splits.items()}
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
    def _features(self, model: nn.Module, rows: Dataset, split: str | NamedSplit, quiet: bool) -> np.ndarray:
        was_training, device = model.training, next(model.parameters()).device
        prepared = evaluation_rows(rows, self.processor)
        starts = tqdm(
            range(0, len(prepared), self.batch_size), desc=f"features of {split}", disable=quiet, leave=False
        )
        model.eval()
        found = []
        with torch.random.fork_rng():
            for start in starts:
                batch = prepared.__getitems__(list(range(start, min(start + self.batch_size, len(prepared)))))
                points = torch.from_numpy(np.stack([row["points"] for row in batch])).to(device)
                features = model.probe_features(points)  # pyright: ignore[reportCallIssue] a method
                found.append(features.float().cpu().numpy())
        model.train(was_training)
        return np.concatenate(found)


class ProbeCallback(TrainerCallback):
    """Log the accuracy of a linear probe every few epochs, as `eval_probe_accuracy`.

    Args:
        trainer: Trainer to log with.
        probe: Probe with the splits `train` and `split`.
        every: Epochs between evaluations.
        split: Split to evaluate.
    """

    def __init__(self, trainer: Trainer, probe: LinearProbe, every: int, split: str = "validation"):
        if every < 1:
            raise ValueError(f"every is {every}; expected at least 1 epoch")
        kept = DatasetDict({name: probe.splits[name] for name in ("train", split)})
        self.probe = LinearProbe(kept, probe.processor, probe.batch_size, probe.cost)
        self.trainer, self.every, self.split = trainer, every, split

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Evaluate the probe every few epochs."""
        if state.is_world_process_zero and round(state.epoch) % self.every == 0:
            self.trainer.log({f"eval_{ACCURACY}": self.probe.accuracies(model)[self.split]})


def judge_pretraining(
    trainer: PointTrainer, splits: Mapping[str, Any], probe: LinearProbe | None
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Evaluate the trainer's model on splits, and print the results.

    Args:
        trainer: The trainer, after training.
        splits: Rows of each split.
        probe: Linear probe with its own splits, or None.

    Returns:
        `loss` and `probe_accuracy` of each split, where available; and no scores of classes.
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
