"""Which way to combine the views of a rotary encoder is best? Each is trained on the embedded shapes.

    python examples/benchmarks/rotary_views.py

No weights of a rotary encoder come with this project, so a small one is pretrained here first, on text that every
machine has (see `_rotary_pretraining.py`), and kept. Then it is wrapped, frozen, with each of the rules of
`Any2PointConfig.rotary_views`, beside two controls: without any turning, and with random weights. All of that twice:
with the recipe's tokenizer, which knows where its tokens are, and with a blind one, which does not, so that places
reach the model through rotations alone. Every run is kept when it ends and not repeated. Beside this stands what can
be said of each rule without training (see `_rotary_geometry.py`).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import DatasetDict
from torch import nn
from transformers import AutoModel

from examples import quickstart
from examples.studies.learning import random_encoder, replace_encoder
from examples.studies.rotary_pretraining import PRETRAINING, pretrained_encoder
from examples.studies.rotary_views import offsets_told
from examples.studies.runs import (
    every_run,
    fit,
    leave_results,
    machine,
    over_seeds,
    percent,
    recipe_settings,
    runs_parser,
)
from hf_any3d.data import load_point_dataset
from hf_any3d.modeling.encoders import LayerPass
from hf_any3d.modeling.encoders.rotary import rotary_line_inputs

# Gates would let little of the frozen layers in at the start, and it is they that are compared.
NO_GATE = {"gate": None}
# Norming tokens to the spread of learned positions means nothing here: there are none. Fewer neighbours are for speed.
MODEL: dict[str, Any] = {"token_scale": None, "tokenizer_neighbors": 16}


@dataclasses.dataclass(frozen=True)
class Arm:
    """What is trained.

    Args:
        title: name in the table.
        rule: how views are combined.
        turned: whether queries and keys are turned at all.
        pretrained: whether the encoder has learned from text.
        blind: keep the tokenizer from knowing the centres of its tokens, and the adapters from guidance by them.
    """

    title: str
    rule: str = "split_frequencies"
    turned: bool = True
    pretrained: bool = True
    blind: bool = False


_ARMS = {
    "split_frequencies": Arm("`split_frequencies` (default)"),
    "split_heads": Arm("`split_heads`", "split_heads"),
    "mean_angle": Arm("`mean_angle`", "mean_angle"),
    "first_view": Arm("`first_view`", "first_view"),
    "unturned": Arm("no rotation", turned=False),
    "random": Arm("random encoder, `split_frequencies`", pretrained=False),
}
ARMS = {
    **_ARMS,
    **{f"blind_{name}": dataclasses.replace(arm, blind=True) for name, arm in _ARMS.items() if arm.pretrained},
}


class Nowhere(nn.Module):
    """Zeros in place of what a tokenizer says about the place of a token."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.hidden_size = hidden_size

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`(..., width)` to zeros `(..., hidden)`."""
        return hidden.new_zeros(*hidden.shape[:-1], self.hidden_size)


def at_one_place(call: LayerPass) -> Iterator[dict[str, Any]]:
    """Inputs of rotary layers when all tokens stand at one place: nothing is turned against anything else."""
    places = dataclasses.replace(call.places, entry=torch.zeros_like(call.places.entry))
    return rotary_line_inputs(dataclasses.replace(call, places=places))


def build(arm: Arm, seed: int, names: list[str], encoder: Path) -> nn.Module:
    """The recipe's wrap around the small rotary encoder, as the arm wants it."""
    wrapper = quickstart.build_wrapper(seed, names, encoder, **MODEL, rotary_views=arm.rule)
    if not arm.pretrained:
        wrapper = replace_encoder(wrapper, random_encoder, seed)
    model = wrapper.any2point
    if not arm.turned:
        model.family = dataclasses.replace(model.family, layer_inputs=at_one_place)
    if arm.blind:
        model.point_tokenizer.place[-1] = Nowhere(model.config.encoder_config.hidden_size)
    return quickstart.add_adapter(wrapper, seed, **adapter_of(arm))


def adapter_of(arm: Arm) -> dict[str, Any]:
    """Changed settings of the adapter: no gates, and no guidance for a blind wrap."""
    return {**NO_GATE, "aggregation_scale": 0.0} if arm.blind else NO_GATE


def train_once(name: str, seed: int, splits: DatasetDict, options: argparse.Namespace) -> dict[str, Any]:
    """Train one arm with one seed and measure it on the test split."""
    model = build(ARMS[name], seed, splits["train"].features["label"].names, options.output_dir / "encoder")
    trainer, cost = fit(model, seed, splits["train"], options.output_dir / "trainer", num_train_epochs=options.epochs)
    metrics = quickstart.evaluate(trainer, splits["test"])
    figures = {"accuracy": "eval_accuracy", "mean_class_accuracy": "eval_mean_class_accuracy", "loss": "eval_loss"}
    return {**{ours: metrics[theirs] for ours, theirs in figures.items()}, **cost, "rows": len(splits["test"])}


def settings_of(name: str, options: argparse.Namespace, stamp: dict[str, Any]) -> dict[str, Any]:
    """What decides the result of a run beside its seed."""
    arm = ARMS[name]
    return recipe_settings(
        {"num_train_epochs": options.epochs},
        model={**quickstart.MODEL, **MODEL},
        adapter={**quickstart.ADAPTER, **adapter_of(arm)},
        arm=dataclasses.asdict(arm),
        encoder=stamp,
    )


def table(rows: list[dict[str, Any]], blind: bool) -> str:
    """Results with one of the tokenizers as a Markdown table."""
    lines = [
        "| views combined by | CPU seconds | test accuracy, % | class accuracy, % | test loss |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if ARMS[row["arm"]].blind == blind:
            loss = f"{row['loss']:.3f} ± {row['loss_std']:.3f}"
            cells = [f"{row['cpu_seconds']:.0f}", percent(row, "accuracy"), percent(row, "mean_class_accuracy"), loss]
            lines.append(f"| {row['title']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def told_table(told: dict[str, float]) -> str:
    """What rotations tell of offsets, by rule, as a Markdown table."""
    lines = ["| views combined by | offsets between tokens that rotations tell, % of variance |", "|---|---|"]
    return "\n".join(lines + [f"| `{rule}` | {100 * share:.0f} |" for rule, share in told.items()]) + "\n"


def report(summary: dict[str, Any]) -> str:
    """Everything measured as Markdown."""
    pretraining, rows = summary["pretraining"], summary["rows"]
    losses = (
        "before {loss_before:.2f}, after {loss_after:.2f}, with all bytes at one place {loss_after_at_one_place:.2f}"
    )
    return "\n".join(
        [
            f"Pretraining: {pretraining['stamp']['text']}, {pretraining['bytes']:,} bytes, "
            f"{pretraining['cpu_seconds']:.0f} CPU seconds. Loss of masked bytes of held-out modules in nats: "
            f"{losses.format(**pretraining)}, by frequencies alone {pretraining['loss_of_frequencies']:.2f}.\n",
            told_table(summary["offsets_told"]),
            "Tokenizer that knows where its tokens are:\n",
            table(rows, blind=False),
            "Blind tokenizer and no guidance:\n",
            table(rows, blind=True),
        ]
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = runs_parser(__doc__, "outputs/rotary_views", ARMS)
    parser.add_argument("--epochs", type=float, default=5.0)
    parser.add_argument("--pretraining-steps", type=int, default=PRETRAINING["steps"])
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Pretrain, train and test what the command line asks for, print and store the tables."""
    options = parse(arguments)
    quickstart.use_threads(options.threads)
    transformers.logging.set_verbosity_error()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    made = pretrained_encoder(options.output_dir / "encoder", {**PRETRAINING, "steps": options.pretraining_steps})
    splits = load_point_dataset("shapes")
    runs = every_run(
        options.arms,
        options.seeds,
        options.output_dir / "runs",
        lambda name: settings_of(name, options, made["stamp"]),
        lambda name, seed: train_once(name, seed, splits, options),
    )
    rows = []
    for name in options.arms:
        own = [run for run in runs if run["arm"] == name]
        figures = over_seeds(own, ("accuracy", "mean_class_accuracy", "loss", "seconds", "cpu_seconds"))
        rows.append({"arm": name, "title": ARMS[name].title, "runs": len(own), **figures})
    about = {"seeds": options.seeds, "date": date.today().isoformat(), "machine": machine(), "pretraining": made}
    encoder = AutoModel.from_pretrained(options.output_dir / "encoder")
    rules = dict.fromkeys(arm.rule for arm in ARMS.values())
    tokens = quickstart.MODEL["num_tokens"]
    about["offsets_told"] = {rule: offsets_told(encoder, rule, splits["test"], tokens) for rule in rules}
    summary = {**about, "rows": rows, "runs": runs}
    leave_results(options.output_dir, "rotary_views", summary, report(summary))


if __name__ == "__main__":
    main()
