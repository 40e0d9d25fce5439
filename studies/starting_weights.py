"""What do weights learned on generated shapes bring to the training on few real ones?

    python -m studies.starting_weights --threads 1
    python -m studies.starting_weights --package

The quickstart's model first learns the 48 classes of generated shapes (`generated_shapes`), a few or many of them. A
new model then learns the embedded shapes with the quickstart's recipe, and starts from a part of those weights
(`ARMS`). Arms with the same seed have the same validation part of the training shapes, row order and augmentation; the
test shapes are never read.

The rule, written before these runs: such weights become those of the quickstart's model if over four seeds they lower
the cross-entropy with ten votes by more than its standard error, and do not lower the accuracy.

First stages and runs are stored when they end and are not repeated with the same settings; a first stage that was
interrupted continues with the epoch in which it was. `--package` writes the tokenizer's weights of the short first
stage where `tokenizer_weights="generated_shapes"` reads them (`modeling/any2point/starting_weights.py`).
"""

from __future__ import annotations

import argparse
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from examples import quickstart
from hf_any3d.modeling.any2point.starting_weights import GENERATED_SHAPES
from hf_any3d.utils.atomic_files import atomic_write
from studies import recipe, recipe_report
from studies.generated_shapes import generate
from studies.runs import (
    evaluate,
    every_run,
    kept_run,
    machine,
    over_seeds,
    percent,
    reset_if_changed,
    runs_parser,
    stopwatch,
    use_threads,
    write_results,
)

FIRST_STAGES: dict[str, dict[str, Any]] = {
    "short": {"per_class": 100, "seed": 0, "epochs": 8, "points": 1024},
    "long": {"per_class": 400, "seed": 0, "epochs": 10, "points": 1024},
}
FRESH: dict[str, Any] = {"per_class": 10, "seed": 1}
"""Shapes on which a first stage is evaluated."""
PACKAGED = "short"
"""First stage whose tokenizer comes with the package."""
_TOKENIZER = r"\.point_tokenizer\.modules_to_save\.default\."
_ALL = r"^(?!.*\.classifier\.modules_to_save\.default\.out\.)"
ARMS: dict[str, tuple[str, str | None, str]] = {
    "random": ("random weights", None, ""),
    "inner": ("the tokenizer's layers before the encoder's width", "short", _TOKENIZER + r"local\.(lift|widen|join)"),
    "tokenizer": ("the tokenizer", "short", _TOKENIZER),
    "unadapted": ("all but the adapters and the last layer", "short", r"\.modules_to_save\.default\.(?!out\.)"),
    "all": ("all but the last layer", "short", _ALL),
    "tokenizer-long": ("the tokenizer, after the long first stage", "long", _TOKENIZER),
}
"""Title of each arm, its first stage, and which tensors it takes from there, by name in the model with its adapter."""
WAYS = ("last", "votes")
FIGURES = ("accuracy", "loss")


def first_settings(stage: str) -> dict[str, Any]:
    """Collect everything that affects the result of a first stage."""
    return {**recipe.settings_of(recipe.ADOPTED), "first_stage": FIRST_STAGES[stage], "fresh": FRESH}


def learn_generated(stage: str, folder: Path) -> dict[str, Any]:
    """Train the quickstart's model on generated shapes, and write what was trained to `STAGE.safetensors`.

    Returns:
        Figures on fresh generated shapes, `train_loss` and the time.
    """
    settings, first, output_dir = recipe.settings_of(recipe.ADOPTED), FIRST_STAGES[stage], folder / stage
    rows = generate(first["per_class"], first["seed"], first["points"])
    model = recipe.build_model(settings, first["seed"], rows.features["label"].names)
    arguments = quickstart.training_arguments(
        output_dir,
        first["seed"],
        **settings["training"] | {"num_train_epochs": first["epochs"]},
        save_strategy="epoch",
        save_total_limit=1,
    )
    trainer = quickstart.build_trainer(model, arguments, quickstart.plain_rows(rows), settings["augmentation"])
    trainer.remove_callback(PrinterCallback)
    # Checkpoints of other settings must not be continued.
    reset_if_changed(output_dir, first_settings(stage))
    with stopwatch() as spent:
        loss = trainer.train(get_last_checkpoint(output_dir)).training_loss
    fresh = evaluate(trainer, generate(FRESH["per_class"], FRESH["seed"], first["points"]))
    trained = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if ".modules_to_save." in name or ".guided_adapter_" in name
    }
    with atomic_write(folder / f"{stage}.safetensors") as unfinished:
        save_file(trained, unfinished)
    return {**fresh, "train_loss": loss, "shapes": len(rows), **spent}


def first_stage(stage: str, folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors that a first stage has learned; trains it if that has not been done."""
    report, tensors = folder / f"{stage}.json", folder / f"{stage}.safetensors"
    if not tensors.is_file():
        report.unlink(missing_ok=True)
    kept_run(report, first_settings(stage), partial(learn_generated, stage, folder))
    return load_file(tensors)


def package(folder: Path, path: Path) -> None:
    """Write the tokenizer's weights of a first stage as the library reads them, with how they were made.

    Args:
        folder: Of the first stages.
        path: File to write.
    """
    tensors = {
        re.split(_TOKENIZER, name)[1]: tensor
        for name, tensor in first_stage(PACKAGED, folder).items()
        if re.search(_TOKENIZER, name)
    }
    names = generate(1, 0, FIRST_STAGES[PACKAGED]["points"]).features["label"].names
    new = recipe.build_model(recipe.settings_of(recipe.ADOPTED), 0, names).state_dict()
    (gain,) = {float(tensor[0]) for name, tensor in new.items() if name.endswith("default.token_norm.weight")}
    for name in ("token_norm.weight", "token_norm.bias"):
        tensors[name] = tensors[name] / gain
    about = {
        "format": "pt",
        "command": "python -m studies.starting_weights --package",
        "first_stage": (folder / f"{PACKAGED}.json").read_text(encoding="utf-8"),
    }
    with atomic_write(path) as unfinished:
        save_file(tensors, unfinished, about)
    print(f"Written to {path}.")


def run_once(arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train on the embedded shapes from the weights of an arm, and evaluate on a validation part."""
    _, stage, pattern = ARMS[arm]
    learned = {} if stage is None else first_stage(stage, folder)
    start = {name: tensor for name, tensor in learned.items() if re.search(pattern, name)}
    return {**recipe.train_once(recipe.ADOPTED, seed, folder, start=start), "tensors": sorted(start)}


def run_settings(arm: str) -> dict[str, Any]:
    """Collect everything but the seed that affects the result of an arm."""
    _, stage, pattern = ARMS[arm]
    if stage is None:
        return recipe.settings_of(recipe.ADOPTED)
    return {**first_settings(stage), "tensors": pattern}


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute the figures of each arm over its seeds, and its gains over random weights, seed by seed."""
    control = {run["seed"]: run for run in runs if run["arm"] == "random"}
    rows = []
    for arm, (title, *_) in ARMS.items():
        own = [run for run in runs if run["arm"] == arm]
        if not own:
            continue
        row: dict[str, Any] = {"arm": arm, "title": title, "seeds": [run["seed"] for run in own]}
        for way in WAYS:
            row[way] = over_seeds([run[way] for run in own], FIGURES)
            for name in FIGURES:
                gains = [run[way][name] - control[run["seed"]][way][name] for run in own if run["seed"] in control]
                row[way][f"{name}_gains"] = gains
        row["cpu_seconds"] = float(np.mean([run["cpu_seconds"] for run in own]))
        rows.append(row)
    return {"machine": machine(), "looks": len(runs) * len(recipe_report.WAYS), "rows": rows}


def table(summary: dict[str, Any]) -> str:
    """Format the summary as Markdown; gains are means over the seeds ± their standard errors."""

    def gain(values: list[float], unit: float, digits: int) -> str:
        if len(values) < 2:
            return "–" if not values else f"{unit * values[0]:+.{digits}f}"
        error = np.std(values, ddof=1) / len(values) ** 0.5
        return f"{unit * np.mean(values):+.{digits}f} ± {unit * error:.{digits}f}"

    head = ["start", "seeds"]
    for way in WAYS:
        title = recipe_report.WAYS[way]
        head += [f"{title}: accuracy, %", "gain, points", f"{title}: cross-entropy", "gain"]
    lines = [f"| {' | '.join([*head, 'CPU s a run'])} |", "|---" * (len(head) + 1) + "|"]
    for row in summary["rows"]:
        cells = [row["title"], str(len(row["seeds"]))]
        for way in WAYS:
            own, is_control = row[way], row["arm"] == "random"
            cells += [percent(own, "accuracy"), "–" if is_control else gain(own["accuracy_gains"], 100, 1)]
            cells += [f"{own['loss']:.3f}", "–" if is_control else gain(own["loss_gains"], 1, 3)]
        lines.append(f"| {' | '.join([*cells, format(row['cpu_seconds'], '.0f')])} |")
    return "\n".join([*lines, "", f"Validation parts were looked at {summary['looks']} times."]) + "\n"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = runs_parser(__doc__ or "", "outputs/starting_weights", ARMS)
    parser.set_defaults(seeds=[8, 9, 10, 11])
    parser.add_argument(
        "--package",
        type=Path,
        nargs="?",
        const=GENERATED_SHAPES,
        help="only write the tokenizer's weights to this file, by default the package's",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the study; print and store its table."""
    options = parse(arguments)
    use_threads(options.threads)
    transformers.logging.set_verbosity_error()
    folder = options.output_dir
    if options.package is not None:
        package(folder, options.package)
        return
    runs = every_run(
        options.arms, options.seeds, folder / "runs", run_settings, lambda arm, seed: run_once(arm, seed, folder)
    )
    files = {stage: folder / f"{stage}.json" for stage in FIRST_STAGES}
    about = {stage: json.loads(file.read_text(encoding="utf-8")) for stage, file in files.items() if file.is_file()}
    summary = summarize(runs)
    write_results(folder, "starting_weights", {"first_stages": about, **summary, "runs": runs}, table(summary))


if __name__ == "__main__":
    main()
