"""Compare what a training step with each PEFT method costs, of one point transformer, and what it stores.

    python -m studies.speed.adapters --output adapters.json

ACT's classifier for ScanObjectNN: 22.1 million parameters, 128 patches of 2048 points; head and class token are
trained besides. Steps are taken in turns in one process; times are processor times, which depend little on other work
on the machine. What autograd saves for the backward pass counts without the model's own parameters. The table has a
line of Markdown for each method.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import nn

from hf_any3d import (
    ActConfig,
    ActForPointCloudClassification,
    APPTConfig,
    BitFitConfig,
    DAPTConfig,
    GuidedAdapterConfig,
    IDPTConfig,
    PointGSTConfig,
    PPTConfig,
    PromptTokensConfig,
    SideTuningConfig,
    encoder_linear_pattern,
)
from hf_any3d.utils.atomic_files import write_json
from studies.speed._measure import saved_bytes, storages, timed_in_turns

_SAVED = ["classifier", "class_token"]
_ALL_POOLED = ("cls", "prompt_mean", "max")


def _lora(model: nn.Module) -> PeftConfig:
    return LoraConfig(r=8, target_modules=encoder_linear_pattern(model), modules_to_save=_SAVED)


METHODS: dict[str, tuple[Callable[[nn.Module], PeftConfig] | None, dict[str, Any]]] = {
    "none: head and class token": (None, {}),
    "full fine-tuning": (None, {}),
    "`LoraConfig(r=8)` on all linear layers": (_lora, {}),
    "`PointGSTConfig()`": (lambda model: PointGSTConfig(modules_to_save=_SAVED), {}),
    "`PointGSTConfig.published()`": (lambda model: PointGSTConfig.published(modules_to_save=_SAVED), {}),
    "`APPTConfig()`": (lambda model: APPTConfig(modules_to_save=_SAVED), {"pooling": ("max_plus_mean",)}),
    "`IDPTConfig()`": (lambda model: IDPTConfig(modules_to_save=_SAVED), {"pooling": _ALL_POOLED}),
    "`DAPTConfig()`": (lambda model: DAPTConfig(modules_to_save=_SAVED), {"pooling": _ALL_POOLED}),
    "`PPTConfig.published(num_groups=128)`": (
        lambda model: PPTConfig.published(num_groups=128),
        {"pooling": ("cls", "mean", "prompt_mean"), "head_activation": "gelu"},
    ),
    "`PromptTokensConfig()`": (lambda model: PromptTokensConfig(modules_to_save=_SAVED), {}),
    "`PromptTokensConfig(positions=True)`": (
        lambda model: PromptTokensConfig(positions=True, modules_to_save=_SAVED),
        {},
    ),
    "`GuidedAdapterConfig()`": (lambda model: GuidedAdapterConfig(modules_to_save=_SAVED), {}),
    "`BitFitConfig()`": (lambda model: BitFitConfig(modules_to_save=_SAVED), {}),
    "`SideTuningConfig()`": (lambda model: SideTuningConfig(modules_to_save=_SAVED), {}),
}
"""Config of each method, and changes of the model's settings."""


def build(name: str, **settings: Any) -> nn.Module:
    """Return a classifier that a method trains, in training mode.

    Args:
        name: A key of `METHODS`.
        **settings: Further settings of the model.
    """
    torch.manual_seed(0)
    config_of, changes = METHODS[name]
    model = ActForPointCloudClassification(ActConfig(**{"num_groups": 128, "num_labels": 15, **changes, **settings}))
    if config_of is not None:
        return get_peft_model(model, config_of(model)).train()
    if name.startswith("none"):
        model.requires_grad_(False)
        for part in (model.classifier, model.act.class_token):
            part.requires_grad_(True)
    return model.train()


def stored_bytes_of(model: nn.Module) -> int:
    """Return the bytes of the weights that `save_pretrained` writes; of a bare model, only those that are trained."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    if not hasattr(model, "peft_config"):
        return sum(weight.nbytes for weight in trained)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)  # pyright: ignore[reportCallIssue] a PeftModel
        return (Path(folder) / "adapter_model.safetensors").stat().st_size


def measure(names: Collection[str], batch: int, points: int, rounds: int, **settings: Any) -> dict[str, Any]:
    """Measure steps with the methods in turns.

    Args:
        names: Keys of `METHODS`.
        batch: Clouds of a step.
        points: Points of a cloud.
        rounds: Steps of each method.
        **settings: Further settings of the model.
    """
    generator = torch.Generator().manual_seed(0)
    clouds = torch.rand(batch, points, 3, generator=generator) - 0.5  # (batch, points, 3)
    labels = torch.arange(batch) % 15
    models = {name: build(name, **settings) for name in names}

    def step(model: nn.Module) -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        return model(points=clouds, labels=labels).loss

    saved = {name: saved_bytes(lambda model=model: step(model), storages(model)) for name, model in models.items()}
    steps = {name: (lambda model=model: step(model).backward()) for name, model in models.items()}
    spent = timed_in_turns(steps, rounds)
    rows = {
        name: {
            "trained": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
            "CPU s a step": statistics.median(one.cpu for one in spent[name]),
            "saved bytes": saved[name],
            "stored bytes": stored_bytes_of(model),
        }
        for name, model in models.items()
    }
    about = {"batch": batch, "points": points, "rounds": rounds, "threads": torch.get_num_threads()}
    return {**about, "torch": torch.__version__, "rows": rows}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown."""
    lines = ["| method | trained | CPU s a step | saved, MB | stored, MB |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        sizes = f"{row['saved bytes'] / 1e6:.0f} | {row['stored bytes'] / 1e6:.2f}"
        lines.append(f"| {name} | {row['trained']:,} | {row['CPU s a step']:.2f} | {sizes} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the table and write the figures.

    Args:
        arguments: Words of the command line; None for those of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--points", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--methods", nargs="+", default=[""], help="beginnings of names; all by default")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    # Names are code in Markdown.
    names = [name for name in METHODS if name.strip("`").startswith(tuple(given.methods))]
    found = measure(names, given.batch, given.points, given.rounds)
    print(table(found["rows"]))
    if given.output is not None:
        write_json(given.output, found)
    return found


if __name__ == "__main__":
    main()
