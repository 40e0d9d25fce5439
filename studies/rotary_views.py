"""Ways to combine the views of a rotary encoder, each trained on the embedded shapes.

    python -m studies.rotary_views

This project has no weights of a rotary encoder, so a small one is pretrained first, on text that every machine has
(see `rotary_pretraining.py`), and stored. A model is built around it, frozen, with each rule of
`Any2PointConfig.rotary_views`, next to two controls: without rotation, and with random weights. All of this twice:
with the quickstart's tokenizer, which uses the centers of its tokens, and with a blind one, which does not, so that
places reach the model through rotations alone. Every run is stored when it ends and is not repeated.
`recovered_offsets` compares the rules without any training.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset, DatasetDict
from torch import nn
from transformers import AutoModel, PreTrainedModel

from hf_any3d.data import load_point_dataset
from hf_any3d.modeling.any2point import Any2PointConfig
from hf_any3d.modeling.any2point.virtual_projection import project
from hf_any3d.modeling.encoders import LayerPass, find_family
from hf_any3d.modeling.encoders.rotary import combine_views, rotary_line_inputs
from hf_any3d.modeling.point_ops import farthest_point_sample, gather_points
from hf_any3d.modeling.point_ops.geometry import normalize_centers
from studies import earlier_recipe
from studies.rotary_pretraining import PRETRAINING, pretrained_encoder
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

# Gates would hide most of the frozen layers at the start, which are what is compared.
NO_GATE = {"gate": None}
# There are no learned positions whose spread could scale the tokens. Fewer neighbors are for speed.
MODEL: dict[str, Any] = {"token_scale": None, "tokenizer_neighbors": 16}


# Pairs of tokens in each cloud.
PAIRS = 400


@dataclasses.dataclass(frozen=True)
class Arm:
    """A trained model.

    Args:
        title: Name in the table.
        rule: How views are combined.
        turned: Whether queries and keys are rotated at all.
        pretrained: Whether the encoder is pretrained.
        blind: Whether tokenizer and adapters work without the centers of the tokens.
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


class NoPlace(nn.Module):
    """Replaces a tokenizer's embedding of centers by zeros."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.hidden_size = hidden_size

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map `(..., width)` to zeros `(..., hidden)`."""
        return hidden.new_zeros(*hidden.shape[:-1], self.hidden_size)


def at_one_place(call: LayerPass) -> Iterator[dict[str, Any]]:
    """Compute the inputs of rotary layers with all tokens at one place, so that nothing is rotated."""
    places = dataclasses.replace(call.places, entry=torch.zeros_like(call.places.entry))
    return rotary_line_inputs(dataclasses.replace(call, places=places))


def build(arm: Arm, seed: int, names: list[str], encoder: Path) -> nn.Module:
    """Build the quickstart's model around the small rotary encoder, changed by the arm."""
    weights = "pretrained" if arm.pretrained else "random"
    wrapper = earlier_recipe.build_wrapper(
        seed, names, encoder, **MODEL, rotary_views=arm.rule, encoder_weights=weights
    )
    model = wrapper.any2point
    if not arm.turned:
        model.family = dataclasses.replace(model.family, layer_inputs=at_one_place)
    if arm.blind:
        model.point_tokenizer.place[-1] = NoPlace(model.config.encoder_config.hidden_size)
    return earlier_recipe.add_adapter(wrapper, seed, **adapter_of(arm))


def adapter_of(arm: Arm) -> dict[str, Any]:
    """Return changed settings of the adapter: no gates, and no guidance for blind arms."""
    return {**NO_GATE, "aggregation_scale": 0.0} if arm.blind else NO_GATE


@torch.no_grad()
def recovered_offsets(encoder: PreTrainedModel, rule: str, rows: Dataset, num_tokens: int) -> float:
    """Compute the share of the variance of offsets between tokens that a linear map recovers from rotations.

    Attention of a rotary encoder depends on two tokens' places through the cosines and sines of the angles between
    them, in each head and frequency. A least squares map from these to the offset `(x, y, z)` is fitted on every other
    cloud and evaluated on the rest. 1 means that all of the offset is recovered; 1/3, one direction of three.

    Args:
        encoder: A ModernBERT; only its frequencies matter.
        rule: One of `Any2PointConfig.rotary_views`.
        rows: Clouds.
        num_tokens: Tokens of a cloud.
    """
    config = Any2PointConfig(encoder_config=encoder.config, num_tokens=num_tokens, rotary_views=rule)
    points = torch.as_tensor(np.asarray(rows["points"]), dtype=torch.float32)
    centers = normalize_centers(gather_points(points, farthest_point_sample(points, num_tokens)))
    places = project(centers, find_family(encoder.config).positions(encoder), config).places.entry[:, :, 1:]
    angles = places.unsqueeze(-1) * encoder.rotary_emb.full_attention_inv_freq
    angles = combine_views(angles, rule, encoder.config.num_attention_heads)[..., 0, :]  # (clouds, heads, tokens, f)
    first, second = torch.randint(num_tokens, (2, PAIRS), generator=torch.Generator().manual_seed(0))
    turned = (angles[:, :, first] - angles[:, :, second]).transpose(1, 2).flatten(2)  # (clouds, pairs, heads * f)
    seen = torch.cat([turned.cos(), turned.sin(), torch.ones_like(turned[..., :1])], dim=-1).double()
    offsets = (centers[:, first] - centers[:, second]).double()  # (clouds, pairs, 3)
    fit = torch.linalg.lstsq(seen[::2].flatten(0, 1), offsets[::2].flatten(0, 1), driver="gelsd").solution
    left = offsets[1::2].flatten(0, 1) - seen[1::2].flatten(0, 1) @ fit
    return float(1 - left.square().sum() / offsets[1::2].square().sum())


def train_once(name: str, seed: int, splits: DatasetDict, options: argparse.Namespace) -> dict[str, Any]:
    """Train one arm with one seed and evaluate it on the test split."""
    model = build(ARMS[name], seed, splits["train"].features["label"].names, options.output_dir / "encoder")
    trainer, cost = fit(model, seed, splits["train"], options.output_dir / "trainer", num_train_epochs=options.epochs)
    return {**evaluate(trainer, splits["test"]), **cost, "rows": len(splits["test"])}


def settings_of(name: str, options: argparse.Namespace, stamp: dict[str, Any]) -> dict[str, Any]:
    """Collect everything but the seed that affects the result of an arm."""
    arm = ARMS[name]
    return training_settings(
        {"num_train_epochs": options.epochs},
        model={**earlier_recipe.MODEL, **MODEL},
        adapter={**earlier_recipe.ADAPTER, **adapter_of(arm)},
        arm=dataclasses.asdict(arm),
        encoder=stamp,
    )


def table(rows: list[dict[str, Any]], blind: bool) -> str:
    """Format the results with one of the tokenizers as a Markdown table."""
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


def offsets_table(shares: dict[str, float]) -> str:
    """Format the recovered offsets of each rule as a Markdown table."""
    lines = ["| views combined by | offsets between tokens recovered from rotations, % of variance |", "|---|---|"]
    return "\n".join(lines + [f"| `{rule}` | {100 * share:.0f} |" for rule, share in shares.items()]) + "\n"


def report(summary: dict[str, Any]) -> str:
    """Format all results as Markdown."""
    pretraining, rows = summary["pretraining"], summary["rows"]
    losses = (
        "before {loss_before:.2f}, after {loss_after:.2f}, with all bytes at one place {loss_after_at_one_place:.2f}"
    )
    return "\n".join(
        [
            f"Pretraining: {pretraining['stamp']['text']}, {pretraining['bytes']:,} bytes, "
            f"{pretraining['cpu_seconds']:.0f} CPU seconds. Loss of masked bytes of held-out modules in nats: "
            f"{losses.format(**pretraining)}, by frequencies alone {pretraining['loss_of_frequencies']:.2f}.\n",
            offsets_table(summary["recovered_offsets"]),
            "Tokenizer with centers:\n",
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
    """Run the study; print and store its tables."""
    options = parse(arguments)
    use_threads(options.threads)
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
    figures = ("accuracy", "mean_class_accuracy", "loss", "seconds", "cpu_seconds")
    rows = arm_rows(runs, {name: ARMS[name].title for name in options.arms}, figures)
    about = {"seeds": options.seeds, "date": date.today().isoformat(), "machine": machine(), "pretraining": made}
    encoder = AutoModel.from_pretrained(options.output_dir / "encoder")
    rules = dict.fromkeys(arm.rule for arm in ARMS.values())
    tokens = earlier_recipe.MODEL["num_tokens"]
    about["recovered_offsets"] = {rule: recovered_offsets(encoder, rule, splits["test"], tokens) for rule in rules}
    summary = {**about, "rows": rows, "runs": runs}
    write_results(options.output_dir, "rotary_views", summary, report(summary))


if __name__ == "__main__":
    main()
