"""Does a frozen pretrained text encoder help to learn 3D shapes? Trains every arm with several seeds.

    make bench-learn
    make bench-learn BENCH_ARGS="--shots 10 --output-dir outputs/learning_few"

All arms train on the whole training split with the quickstart's settings. The last epoch's model is evaluated on the
test split, which selects nothing. With `--validation` part of the training split, whole groups of near-duplicates, is
held out and evaluated on instead; this is how the settings were chosen. Every run is stored when it ends and is not
repeated with the same settings, so the study can be stopped and restarted.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from datasets import DatasetDict
from torch import nn

from examples import quickstart
from hf_any3d.data import load_point_dataset, validation_split
from hf_any3d.modeling.any2point import (
    Any2PointForPointCloudClassification,
    PointTokenizerConfig,
    PointTokenizerForPointCloudClassification,
)
from hf_any3d.modeling.layers.heads import ClassificationHead
from studies import earlier_recipe
from studies.runs import (
    arm_rows,
    evaluate,
    every_run,
    fit,
    machine,
    percent,
    runs_parser,
    training_settings,
    use_threads,
    write_results,
)


def tokenizer_alone(wrapper: Any2PointForPointCloudClassification) -> PointTokenizerForPointCloudClassification:
    """Return the model's own tokenizer, as it is initialized there, with a new head and without the encoder."""
    config = PointTokenizerConfig.without_encoder(wrapper.config)
    features = len(config.pooling) * config.hidden_size
    # With torch's initial weights, and drawn before those of the model, which are replaced.
    head = ClassificationHead(
        features, config.num_labels, config.head_widths, bias=config.head_bias, dropout=config.head_dropout
    )
    model = PointTokenizerForPointCloudClassification(config)
    model.point_tokenizer_model.point_tokenizer, model.classifier = wrapper.any2point.point_tokenizer, head
    return model


def wrap_with(weights: str) -> Callable[[int, list[str]], nn.Module]:
    """Return a builder of the quickstart's model around a control of its encoder: "random" or "shuffled" weights."""

    def build(seed: int, names: list[str]) -> nn.Module:
        return earlier_recipe.add_adapter(earlier_recipe.build_wrapper(seed, names, encoder_weights=weights), seed)

    return build


ARMS: dict[str, tuple[str, Callable[[int, list[str]], nn.Module]]] = {
    "pointnet": ("PointNet from scratch", quickstart.build_pointnet),
    "tokenizer": (
        "tokenizer and head, no encoder",
        lambda seed, names: tokenizer_alone(earlier_recipe.build_wrapper(seed, names)),
    ),
    "random": ("wrap, random encoder", wrap_with("random")),
    "shuffled": ("wrap, shuffled pretrained encoder", wrap_with("shuffled")),
    "pretrained": ("wrap, pretrained encoder", earlier_recipe.build_model),
}
"""Title and builder of each trained model."""


def train_once(arm: str, seed: int, splits: DatasetDict, split: str, output_dir: Path) -> dict[str, Any]:
    """Train one arm with one seed and evaluate it on a split."""
    model = ARMS[arm][1](seed, splits["train"].features["label"].names)
    trainer, cost = fit(model, seed, splits["train"], output_dir / "trainer")
    return {**evaluate(trainer, splits[split]), **cost, "rows": len(splits[split])}


def few_shapes(dataset: DatasetDict, shots: int, seed: int) -> DatasetDict:
    """Keep at most `shots` training rows of each class, drawn by `seed`; other splits stay."""
    labels = np.asarray(dataset["train"]["label"])
    order = np.random.default_rng(seed).permutation(len(labels))
    kept = [order[labels[order] == label][:shots] for label in np.unique(labels)]
    return DatasetDict({**dataset, "train": dataset["train"].select(np.sort(np.concatenate(kept)))})


def settings_of(arm: str, options: argparse.Namespace) -> dict[str, Any]:
    """Collect everything but the seed that affects the result of an arm."""
    settings: dict[str, Any] = {"shots": options.shots, "validation": options.validation}
    settings["model"] = quickstart.POINTNET if arm == "pointnet" else earlier_recipe.MODEL
    if arm not in ("pointnet", "tokenizer"):
        settings["adapter"] = earlier_recipe.ADAPTER
    return training_settings(**settings)


def prepare(options: argparse.Namespace, seed: int) -> tuple[DatasetDict, str]:
    """Load the splits of a run; returns them with the name of the split to evaluate on."""
    splits, split = load_point_dataset("shapes"), "test"
    if options.validation:
        splits, split = validation_split(splits, options.validation, seed, group_column="group"), "validation"
    if options.shots:
        splits = few_shapes(splits, options.shots, seed)
    return splits, split


def run_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run every arm with every seed."""

    def run(arm: str, seed: int) -> dict[str, Any]:
        return train_once(arm, seed, *prepare(options, seed), options.output_dir)

    folder = options.output_dir / "runs"
    return every_run(options.arms, options.seeds, folder, lambda arm: settings_of(arm, options), run)


def summarize(runs: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Compute mean and sample standard deviation of every arm over its seeds."""
    splits, split = prepare(options, options.seeds[0])
    baseline = quickstart.majority(splits, split) | {"cpu_seconds": 0.0}
    rows = [{"arm": "majority", "title": "majority class", "runs": 1, **baseline}]
    figures = ("accuracy", "mean_class_accuracy", "seconds", "cpu_seconds", "trained_parameters")
    rows += arm_rows(runs, {arm: ARMS[arm][0] for arm in options.arms}, figures)
    about = {"split": split, "seeds": options.seeds, "shots": options.shots, "date": date.today().isoformat()}
    return {**about, "machine": machine(), "settings": settings_of("pretrained", options), "rows": rows, "runs": runs}


def table(summary: dict[str, Any]) -> str:
    """Format the summary as a Markdown table."""
    lines = [
        f"| model | parameters trained | seconds | CPU seconds | {summary['split']} accuracy, % | class accuracy, % |",
        "|---|---|---|---|---|---|",
    ]
    for row in summary["rows"]:
        cells = [percent(row, name) for name in ("accuracy", "mean_class_accuracy")]
        cost = f"{row['trained_parameters']:,.0f} | {row['seconds']:.0f} | {row['cpu_seconds']:.0f}"
        lines.append(f"| {row['title']} | {cost} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = runs_parser(__doc__, "outputs/learning", ARMS)
    parser.add_argument("--shots", type=int, help="training shapes of each class; all by default")
    parser.add_argument("--validation", type=float, help="share of the training split to hold out and evaluate on")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the study; print and store its table."""
    options = parse(arguments)
    use_threads(options.threads)
    transformers.logging.set_verbosity_error()
    summary = summarize(run_all(options), options)
    write_results(options.output_dir, "learning", summary, table(summary))


if __name__ == "__main__":
    main()
