"""Search for a better recipe of the quickstart on validation parts of the training shapes.

    python -m examples.studies.recipe --threads 1
    python -m examples.studies.recipe --arms recipe more_epochs --seeds 3 4

Each arm is the recipe with one or a few changes. A seed draws the validation part, a quarter of the training shapes in
whole groups of near-duplicates, as well as weights, row order and augmentation; so arms are compared seed by seed. The
same run is evaluated in three ways: the last weights, an exponential moving average of the weights, and ten votes of
scaled clouds. The test shapes are never read. Every run is stored when it ends and is not repeated with the same
settings.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import PeftModel
from torch import nn
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from examples import quickstart
from examples.studies.runs import every_run, machine, percent, runs_parser, stopwatch, use_threads, write_results
from hf_any3d.data import AugmentedDataset, PointCloudCollator, build_transform, load_point_dataset, validation_split
from hf_any3d.evaluation.classification import compute_classification_metrics
from hf_any3d.modeling.any2point import Any2PointForPointCloudClassification

FRACTION = 0.25
DECAY = 0.99
"""Of the moving average, for each step."""
VOTES = 10
VOTING = ["shuffle", "scale:low=0.8,high=1.25,per_axis=true"]
"""Transforms of the copies that vote."""
WAYS = {"last": "last weights", "averaged": "averaged weights", "votes": "ten votes", "both": "averaged, ten votes"}
FIGURES = ("accuracy", "mean_class_accuracy", "loss")

_MILD = ["shuffle", "scale:low=0.8,high=1.25,per_axis=true", "shift:limit=0.1", "jitter"]
_TURNED = [*quickstart.AUGMENTATION, "rotate:axis=y,limit=0.26"]
_DROPPED = [*quickstart.AUGMENTATION, "dropout:max_ratio=0.5"]

ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "recipe": ("the recipe", {}),
    "epochs_60": ("60 epochs", {"training": {"num_train_epochs": 60}}),
    "epochs_100": ("100 epochs", {"training": {"num_train_epochs": 100}}),
    "tokens_64": ("64 tokens", {"model": {"num_tokens": 64}}),
    "neighbors_64": ("64 neighbors", {"model": {"tokenizer_neighbors": 64}}),
    "layers_1": ("one encoder layer", {"model": {"num_layers": 1}}),
    "layers_4": ("four encoder layers", {"model": {"num_layers": 4}}),
    "gate_0.1": ("gates from 0.1", {"adapter": {"gate": 0.1}}),
    "gate_0.5": ("gates from 0.5", {"adapter": {"gate": 0.5}}),
    "width_64": ("lighter tokenizer, width 64", {"model": {"tokenizer_width": 64}}),
    "rate_1e-3": ("learning rate 1e-3", {"training": {"learning_rate": 1e-3}}),
    "rate_4e-3": ("learning rate 4e-3", {"training": {"learning_rate": 4e-3}}),
    "mild": ("milder scaling, 0.8 to 1.25", {"augmentation": _MILD}),
    "turned": ("turned by up to 15 degrees", {"augmentation": _TURNED}),
    "dropped": ("up to half of the points dropped", {"augmentation": _DROPPED}),
    "smoothing_0.2": ("label smoothing 0.2", {"smoothing": 0.2}),
}
"""Title and changes of each arm; mappings are merged with the recipe's, other values replace them."""


def settings_of(arm: str) -> dict[str, Any]:
    """Collect everything but the seed that affects the result of an arm, as JSON reads it back."""
    base: dict[str, Any] = {
        "model": quickstart.MODEL,
        "adapter": quickstart.ADAPTER,
        "augmentation": quickstart.AUGMENTATION,
        "training": quickstart.TRAINING,
        "smoothing": quickstart.LABEL_SMOOTHING,
        "evaluation": {"fraction": FRACTION, "decay": DECAY, "votes": VOTES, "voting": VOTING},
    }
    for name, change in ARMS[arm][1].items():
        base[name] = {**base[name], **change} if isinstance(change, dict) else change
    return json.loads(json.dumps(base))


def build_model(settings: Mapping[str, Any], seed: int, names: list[str]) -> PeftModel:
    """Build the quickstart's model with changed settings."""
    wrapper: Any2PointForPointCloudClassification = quickstart.build_wrapper(seed, names, **settings["model"])
    return quickstart.add_adapter(wrapper, seed, **settings["adapter"])


class MovingAverage(TrainerCallback):
    """Average the trained weights of a model over the steps, the last ones most.

    Buffers are those of the last step: running variances of small numbers start a thousand times too large, and an
    average would remember that. `torch.optim.swa_utils.AveragedModel` with buffers averages integers too, and rounds
    them down: a text encoder's positions would change.

    Args:
        decay: Share of the average that remains at each step.
    """

    def __init__(self, decay: float):
        self.decay = decay
        self.weights: dict[str, torch.Tensor] = {}
        """Averaged weights, and all other tensors of the last step, as `load_state_dict` takes them."""

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the weights of this step."""
        assert model is not None
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        for name, value in model.state_dict().items():
            if name in self.weights and name in trained:
                self.weights[name].lerp_(value, 1 - self.decay)
            else:
                self.weights[name] = value.clone()


def train_once(arm: str, seed: int, output_dir: Path) -> dict[str, Any]:
    """Train one arm with one seed, and evaluate it in each of `WAYS`."""
    settings = settings_of(arm)
    rows = load_point_dataset("shapes")["train"]
    parts = validation_split(rows, FRACTION, seed, group_column="group")
    model = build_model(settings, seed, rows.features["label"].names)

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        return quickstart.smoothed_loss(outputs, labels, num_items_in_batch, smoothing=settings["smoothing"])

    average = MovingAverage(DECAY)
    trainer = Trainer(
        model,
        quickstart.training_arguments(output_dir / "trainer", seed, **settings["training"]),
        train_dataset=AugmentedDataset(parts["train"], build_transform(settings["augmentation"])),
        data_collator=PointCloudCollator(),
        compute_loss_func=loss,
        callbacks=[average],
    )
    trainer.remove_callback(PrinterCallback)
    with stopwatch() as spent:
        train_loss = trainer.train().training_loss
    trainer.args.dataloader_drop_last = False
    figures: dict[str, Any] = {}
    for one, many in (("last", "votes"), ("averaged", "both")):
        if one == "averaged":
            model.load_state_dict(average.weights)
        plain = trainer.predict(quickstart.plain_rows(parts["validation"]))
        figures[one] = scores(plain.predictions, plain.label_ids)
        copies = AugmentedDataset(parts["validation"], build_transform(VOTING))
        torch.manual_seed(seed)  # of the copies, which are the same for both weights
        votes = [trainer.predict(copies).predictions for _ in range(VOTES)]
        figures[many] = scores(np.mean(votes, axis=0), plain.label_ids)
    shapes = {split: len(part) for split, part in parts.items()}
    return {**figures, "accuracy": figures["last"]["accuracy"], "train_loss": train_loss, "shapes": shapes, **spent}


def scores(logits: Any, labels: Any) -> dict[str, float]:
    """Compute `FIGURES` of logits `(shapes, classes)`."""
    found = compute_classification_metrics(EvalPrediction(logits, labels))
    loss = nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels))
    return {**found, "loss": float(loss)}


def summarize(runs: list[dict[str, Any]], arms: list[str], seeds: list[int]) -> dict[str, Any]:
    """Compute means over the seeds for each arm and way, and differences from the recipe's last weights by seed."""
    by_run = {(run["arm"], run["seed"]): run for run in runs}
    rows = []
    for arm in arms:
        row: dict[str, Any] = {"arm": arm, "title": ARMS[arm][0]}
        row["cpu_seconds"] = float(np.mean([by_run[arm, seed]["cpu_seconds"] for seed in seeds]))
        for way in WAYS:
            row[way] = {name: float(np.mean([by_run[arm, seed][way][name] for seed in seeds])) for name in FIGURES}
            for name in FIGURES:
                gains = [
                    by_run[arm, seed][way][name] - by_run["recipe", seed]["last"][name]
                    for seed in seeds
                    if ("recipe", seed) in by_run
                ]
                row[way] |= {f"{name}_gain": float(np.mean(gains))} if gains else {}
                row[way] |= {f"{name}_gain_std": float(np.std(gains, ddof=1))} if len(gains) > 1 else {}
        rows.append(row)
    looks = len(runs) * len(WAYS)
    return {"date": date.today().isoformat(), "machine": machine(), "seeds": seeds, "looks": looks, "rows": rows}


def table(summary: Mapping[str, Any]) -> str:
    """Format the summary as Markdown: accuracy and cross-entropy of each way, and the gain of the best of them."""
    head = ["change", *(f"{title}, % (cross-entropy)" for title in WAYS.values()), "gain, points", "CPU seconds"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in summary["rows"]:
        cells = [f"{percent(row[way], 'accuracy')} ({row[way]['loss']:.3f})" for way in WAYS]
        last = row["last"]
        gain = f"{100 * last['accuracy_gain']:+.1f}" if "accuracy_gain" in last else "–"
        gain += f" ± {100 * last['accuracy_gain_std']:.1f}" if "accuracy_gain_std" in last else ""
        lines.append(f"| {' | '.join([row['title'], *cells, gain, format(row['cpu_seconds'], '.0f')])} |")
    seeds = ", ".join(map(str, summary["seeds"]))
    lines += ["", f"Seeds {seeds}. Validation parts were looked at {summary['looks']} times."]
    return "\n".join(lines) + "\n"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    return runs_parser(__doc__, "outputs/recipe", ARMS).parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the search; print and store its table."""
    options = parse(arguments)
    use_threads(options.threads)
    transformers.logging.set_verbosity_error()
    runs = every_run(
        options.arms,
        options.seeds,
        options.output_dir / "runs",
        settings_of,
        lambda arm, seed: train_once(arm, seed, options.output_dir),
    )
    summary = summarize(runs, options.arms, options.seeds)
    write_results(options.output_dir, "recipe", summary | {"runs": runs}, table(summary))


if __name__ == "__main__":
    main()
