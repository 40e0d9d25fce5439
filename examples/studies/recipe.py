"""Search for a better recipe of the quickstart on validation parts of the training shapes.

    python -m examples.studies.recipe --threads 1
    python -m examples.studies.recipe --runs 0 5 10 15

Eight changes of the recipe are tried together in 16 runs, a fractional factorial design of resolution IV: each change
is made in one half of the runs, and each pair of changes in a quarter of them. So the effect of a change is a
difference of means over eight runs, which as many runs of one change at a time would estimate with four to five times
the variance; what it does not show is which pairs of changes help or hinder each other.

A seed draws the validation part, a quarter of the training shapes in whole groups of near-duplicates, as well as
weights, row order and augmentation. Four runs share a seed, and no effect depends on the differences between seeds.
Each run is evaluated in four ways: the last weights or an exponential moving average of the weights, once or as ten
votes of scaled clouds. The test shapes are never read. Every run is stored when it ends and is not repeated with the
same settings.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import PeftModel
from torch import nn
from tqdm.auto import tqdm
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from examples import quickstart
from examples.studies.runs import kept_run, machine, percent, stopwatch, use_threads, write_results
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

FACTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "epochs": ("60 epochs instead of 30", {"training": {"num_train_epochs": 60}}),
    "tokens": ("64 tokens instead of 32", {"model": {"num_tokens": 64}}),
    "layers": ("four encoder layers instead of two", {"model": {"num_layers": 4}}),
    "gate": ("gates from 0.5 instead of 0.2", {"adapter": {"gate": 0.5}}),
    "rate": ("learning rate 1e-3 instead of 2e-3", {"training": {"learning_rate": 1e-3}}),
    "mild": (
        "milder scaling, 0.8 to 1.25 instead of 0.67 to 1.5",
        {"augmentation": ["shuffle", "scale:low=0.8,high=1.25,per_axis=true", "shift:limit=0.1", "jitter"]},
    ),
    "width": ("tokenizer of width 64 instead of 96", {"model": {"tokenizer_width": 64}}),
    "smoothing": ("label smoothing 0.2 instead of 0.1", {"smoothing": 0.2}),
}
"""Title and settings of each change; mappings are merged with the recipe's, other values replace them."""

_BITS = ((0,), (1,), (2,), (3,), (0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3))
"""Bits of a run's number whose parity decides about each change: odd sets, so that no effect is that of a pair."""


def design(replicates: int = 1) -> list[tuple[tuple[str, ...], int]]:
    """List the changes and the seed of each run.

    Args:
        replicates: How often all 16 runs are done, each time with four other seeds.
    """

    def parity(number: int, bits: tuple[int, ...]) -> int:
        return sum(number >> bit & 1 for bit in bits) % 2

    runs = []
    for replicate in range(replicates):
        for number in range(16):
            changes = tuple(name for name, bits in zip(FACTORS, _BITS, strict=True) if parity(number, bits))
            runs.append((changes, 4 * replicate + 2 * parity(number, (0, 1)) + parity(number, (2, 3))))
    return runs


def settings_of(changes: Iterable[str]) -> dict[str, Any]:
    """Collect everything but the seed that affects the result of a run with some of `FACTORS`, as JSON reads it."""
    base: dict[str, Any] = {
        "model": quickstart.MODEL,
        "adapter": quickstart.ADAPTER,
        "augmentation": quickstart.AUGMENTATION,
        "training": quickstart.TRAINING,
        "smoothing": quickstart.LABEL_SMOOTHING,
        "evaluation": {"fraction": FRACTION, "decay": DECAY, "votes": VOTES, "voting": VOTING},
    }
    for factor in changes:
        for name, change in FACTORS[factor][1].items():
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


def train_once(changes: Iterable[str], seed: int, output_dir: Path) -> dict[str, Any]:
    """Train with some of `FACTORS`, and evaluate in each of `WAYS`."""
    settings = settings_of(changes)
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


def named(changes: tuple[str, ...]) -> str:
    """Name a run by its changes."""
    return "+".join(changes) or "recipe"


def effects(values: np.ndarray, runs: list[tuple[tuple[str, ...], int]]) -> dict[str, tuple[float, float]]:
    """Estimate the effect of each change, by least squares next to a mean for each seed.

    Args:
        values: `(runs,)` a figure of each run.
        runs: Changes and seed of each run, as in `design`.

    Returns:
        Effect and its standard error by name; the error is NaN where there are no more runs than unknowns.
    """
    seeds = sorted({seed for _, seed in runs})
    columns = [[seed == own for own in seeds] + [name in changes for name in FACTORS] for changes, seed in runs]
    matrix = np.array(columns, dtype=float)  # (runs, seeds + factors)
    unknowns = np.linalg.matrix_rank(matrix)
    if unknowns < matrix.shape[1]:
        raise ValueError(f"{len(runs)} runs do not separate {matrix.shape[1]} unknowns; all 16 of a replicate do")
    found = np.linalg.lstsq(matrix, values, rcond=None)[0]
    free = len(runs) - unknowns
    variance = np.sum((values - matrix @ found) ** 2) / free if free else np.nan
    errors = np.sqrt(variance * np.diag(np.linalg.inv(matrix.T @ matrix)))
    return {name: (float(found[i]), float(errors[i])) for i, name in enumerate(FACTORS, start=len(seeds))}


def summarize(stored: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute effects of all changes on the figures of each way, and of the ways over all runs."""
    runs = [(tuple(run["changes"]), run["seed"]) for run in stored]
    figures = {way: {name: np.array([run[way][name] for run in stored]) for name in FIGURES} for way in WAYS}
    costs = np.array([run["cpu_seconds"] for run in stored])
    ways = []
    for way, title in WAYS.items():
        row: dict[str, Any] = {"way": way, "title": title}
        for name in FIGURES:
            gains = figures[way][name] - figures["last"][name]
            row |= {name: float(figures[way][name].mean()), f"{name}_gain": float(gains.mean())}
            row[f"{name}_gain_error"] = float(gains.std(ddof=1) / len(gains) ** 0.5)
        ways.append(row)
    found = {way: {name: effects(figures[way][name], runs) for name in FIGURES} for way in WAYS}
    spent = effects(costs, runs)
    rows = [
        {
            "change": change,
            "title": FACTORS[change][0],
            "cpu_seconds": spent[change][0],
            **{way: {name: found[way][name][change] for name in FIGURES} for way in WAYS},
        }
        for change in FACTORS
    ]
    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "runs": len(stored),
        "looks": len(stored) * len(WAYS),
        "mean_cpu_seconds": float(costs.mean()),
        "ways": ways,
        "rows": rows,
    }


def table(summary: Mapping[str, Any]) -> str:
    """Format the summary as Markdown: effects of the changes, then of the ways, each ± its standard error."""

    def cell(found: tuple[float, float], unit: float, digits: int) -> str:
        return f"{unit * found[0]:+.{digits}f} ± {unit * found[1]:.{digits}f}"

    titles = [f"{WAYS[way]}: {text}" for way in ("last", "both") for text in ("accuracy, points", "cross-entropy")]
    head = ["change", *titles, "CPU seconds of a run"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in summary["rows"]:
        cells = [
            cell(row[way][name], *style)
            for way in ("last", "both")
            for name, style in (("accuracy", (100, 1)), ("loss", (1, 3)))
        ]
        lines.append(f"| {' | '.join([row['title'], *cells, format(row['cpu_seconds'], '+.0f')])} |")
    head = ["way", "accuracy, %", "gain, points", "cross-entropy", "gain"]
    lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in summary["ways"]:
        gains = [(row[f"{name}_gain"], row[f"{name}_gain_error"]) for name in ("accuracy", "loss")]
        cells = [percent(row, "accuracy"), cell(gains[0], 100, 1), f"{row['loss']:.3f}", cell(gains[1], 1, 3)]
        lines.append(f"| {' | '.join([row['title'], *cells])} |")
    lines += ["", f"{summary['runs']} runs; validation parts were looked at {summary['looks']} times."]
    return "\n".join(lines) + "\n"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/recipe"), help="folder for all results")
    parser.add_argument(
        "--replicates", type=int, default=1, choices=(1, 2, 3, 4), help="times 16 runs, with new seeds"
    )
    parser.add_argument("--runs", nargs="+", type=int, help="only do these runs, by number from 0, without a table")
    parser.add_argument("--threads", type=int, help="threads of torch; torch's own choice by default")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the search; print and store its table."""
    options = parse(arguments)
    use_threads(options.threads)
    transformers.logging.set_verbosity_error()
    runs, stored = design(options.replicates), []
    for number in tqdm(range(len(runs)) if options.runs is None else options.runs, desc="runs"):
        changes, seed = runs[number]

        def run(changes: tuple[str, ...] = changes, seed: int = seed) -> dict[str, Any]:
            return {"changes": changes, "seed": seed, **train_once(changes, seed, options.output_dir)}

        path = options.output_dir / "runs" / f"{named(changes)}-{seed}.json"
        stored.append(kept_run(path, settings_of(changes), run))
        last = stored[-1]["last"]
        tqdm.write(
            f"{named(changes)}, seed {seed}: {percent(last, 'accuracy')} %, {stored[-1]['cpu_seconds']:.0f} CPU s"
        )
    if options.runs is None:
        summary = summarize(stored)
        write_results(options.output_dir, "recipe", summary | {"all_runs": stored}, table(summary))


if __name__ == "__main__":
    main()
