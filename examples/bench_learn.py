"""Does a frozen pretrained text encoder help to learn 3D shapes? Trains every arm with several seeds and tables them.

    make bench-learn
    make bench-learn BENCH_ARGS="--shots 10 --output-dir outputs/learning_few"

All arms train on the whole training split by one recipe, `shapes_recipe.py`, and report the last epoch's model on the
test split, which chooses nothing. With `--validation` they leave a part of the training split out, by whole groups of
near-duplicates, and report on that: so the recipe was chosen. Every run is stored when it ends, and a run that is
there already, made by the same recipe, is not repeated; so the program can be stopped and started again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import shapes_recipe as recipe
import torch
import transformers
from datasets import DatasetDict
from torch import nn
from training_runs import every_run, fit, leave_results, machine, over_seeds, percent, recipe_settings, runs_parser
from transformers import AutoModel, PreTrainedModel, set_seed
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_any3d.data import load_point_dataset, validation_split
from hf_any3d.modeling.any2point import Any2PointConfig, Any2PointForPointCloudClassification
from hf_any3d.modeling.layers.heads import ClassificationHead


class TokenizerAlone(nn.Module):
    """Tokenizer, maximum and mean over the tokens, head: the wrap without its encoder, adapters and positions."""

    def __init__(self, tokenizer: nn.Module, config: Any2PointConfig):
        super().__init__()
        self.tokenizer = tokenizer
        self.head = ClassificationHead(
            2 * config.encoder_config.hidden_size,
            config.num_labels,
            config.head_widths,
            bias=config.head_bias,
            dropout=config.head_dropout,
        )

    def forward(self, points: torch.Tensor, labels: torch.Tensor | None = None) -> SequenceClassifierOutput:
        """Classify point clouds `(batch, points, 3)`."""
        tokens = self.tokenizer(points).tokens  # (batch, tokens, hidden)
        logits = self.head(torch.cat([tokens.amax(dim=1), tokens.mean(dim=1)], dim=-1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def tokenizer_alone(seed: int, names: list[str]) -> nn.Module:
    """The wrap's own tokenizer and a head of the same shape."""
    wrapper = recipe.build_wrapper(seed, names)
    return TokenizerAlone(wrapper.any2point.point_tokenizer, wrapper.config)


def random_encoder(pretrained: PreTrainedModel) -> PreTrainedModel:
    """An encoder of the same shape as its own initialisation leaves it."""
    return AutoModel.from_config(pretrained.config)


@torch.no_grad()
def shuffled_encoder(pretrained: PreTrainedModel) -> PreTrainedModel:
    """The pretrained encoder with the numbers of each tensor in random order: its statistics without its knowledge."""
    for parameter in pretrained.parameters():
        order = torch.randperm(parameter.numel())
        parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return pretrained


def replace_encoder(
    wrapper: Any2PointForPointCloudClassification, change: Callable[[PreTrainedModel], PreTrainedModel], seed: int
) -> Any2PointForPointCloudClassification:
    """The wrap anew, around an encoder made from its pretrained one.

    Args:
        wrapper: what `recipe.build_wrapper` gives.
        change: makes the other encoder.
        seed: governs everything that starts at random.
    """
    config = wrapper.config
    # Weights of no repository: this model would be stored whole.
    config.encoder_name_or_path = config.encoder_revision = config.encoder_checksum = None
    set_seed(1000 + seed)
    encoder = change(wrapper.any2point.encoder)
    set_seed(seed)
    return Any2PointForPointCloudClassification(config, encoder=encoder)


def wrap_around(change: Callable[[PreTrainedModel], PreTrainedModel]) -> Callable[[int, list[str]], nn.Module]:
    """A builder of the recipe's model around an encoder made from the pretrained one."""

    def build(seed: int, names: list[str]) -> nn.Module:
        return recipe.add_adapter(replace_encoder(recipe.build_wrapper(seed, names), change, seed), seed)

    return build


ARMS: dict[str, tuple[str, Callable[[int, list[str]], nn.Module]]] = {
    "pointnet": ("PointNet from scratch", lambda seed, names: recipe.build_pointnet(seed, len(names))),
    "tokenizer": ("tokenizer and head, no encoder", tokenizer_alone),
    "random": ("wrap, random encoder", wrap_around(random_encoder)),
    "shuffled": ("wrap, shuffled pretrained encoder", wrap_around(shuffled_encoder)),
    "pretrained": ("wrap, pretrained encoder", recipe.build_model),
}
"""What is trained: title and builder."""


def train_once(arm: str, seed: int, splits: DatasetDict, report_on: str, output_dir: Path) -> dict[str, Any]:
    """Train one arm with one seed and measure it."""
    model = ARMS[arm][1](seed, splits["train"].features["label"].names)
    trainer, cost = fit(model, seed, splits["train"], output_dir / "trainer")
    metrics = recipe.evaluate(trainer, splits[report_on])
    return {
        "accuracy": metrics["eval_accuracy"],
        "mean_class_accuracy": metrics["eval_mean_class_accuracy"],
        "loss": metrics["eval_loss"],
        **cost,
        "rows": len(splits[report_on]),
    }


def majority(splits: DatasetDict, report_on: str) -> dict[str, float]:
    """Always the most frequent class of the training rows."""
    labels = np.asarray(splits[report_on]["label"])
    answer = np.bincount(splits["train"]["label"]).argmax()
    return {
        "accuracy": float(np.mean(labels == answer)),
        "mean_class_accuracy": 1 / len(np.unique(labels)),
        "trained_parameters": 0,
        "seconds": 0.0,
        "cpu_seconds": 0.0,
    }


def settings_of(arm: str, options: argparse.Namespace) -> dict[str, Any]:
    """What decides the result of a run beside its seed, as JSON would give it back."""
    settings: dict[str, Any] = {"shots": options.shots, "validation": options.validation}
    if arm != "pointnet":
        settings["model"] = recipe.MODEL
    if arm not in ("pointnet", "tokenizer"):
        settings["adapter"] = recipe.ADAPTER
    return recipe_settings(**settings)


def prepare(options: argparse.Namespace, seed: int) -> tuple[DatasetDict, str]:
    """The splits of a run, and the name of the split that it reports on."""
    splits, report_on = load_point_dataset("shapes"), "test"
    if options.validation:
        splits, report_on = validation_split(splits, options.validation, seed, group_column="group"), "validation"
    if options.shots:
        splits = recipe.few_shapes(splits, options.shots, seed)
    return splits, report_on


def run_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every arm and seed, those that are stored already read back."""

    def run(arm: str, seed: int) -> dict[str, Any]:
        return train_once(arm, seed, *prepare(options, seed), options.output_dir)

    folder = options.output_dir / "runs"
    return every_run(options.arms, options.seeds, folder, lambda arm: settings_of(arm, options), run)


def summarise(runs: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Mean and sample standard deviation of every arm over its seeds."""
    splits, report_on = prepare(options, options.seeds[0])
    rows = [{"arm": "majority", "title": "majority class", "runs": 1, **majority(splits, report_on)}]
    for arm in options.arms:
        own = [run for run in runs if run["arm"] == arm]
        figures = ("accuracy", "mean_class_accuracy", "seconds", "cpu_seconds", "trained_parameters")
        rows.append({"arm": arm, "title": ARMS[arm][0], "runs": len(own), **over_seeds(own, figures)})
    about = {"split": report_on, "seeds": options.seeds, "shots": options.shots, "date": date.today().isoformat()}
    return {**about, "machine": machine(), "settings": settings_of("pretrained", options), "rows": rows, "runs": runs}


def table(summary: dict[str, Any]) -> str:
    """The summary as a Markdown table."""
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
    parser.add_argument("--shots", type=int, help="train on so many shapes of each class; all by default")
    parser.add_argument("--validation", type=float, help="share of the training split to leave out and report on")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for, print and store the table."""
    options = parse(arguments)
    recipe.use_threads(options.threads)
    transformers.logging.set_verbosity_error()
    summary = summarise(run_all(options), options)
    leave_results(options.output_dir, "learning", summary, table(summary))


if __name__ == "__main__":
    main()
