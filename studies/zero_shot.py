"""Does a model name shapes of classes that it never saw? Three draws of held-out classes from the embedded shapes.

    python -m studies.zero_shot
    python -m studies.zero_shot --validation

Each draw holds out five of the 18 classes, no class twice, and trains with `run_zero_shot.py` on the others. It is
evaluated on the test split, and on the training rows of the held-out classes, which training never saw either. The
settings below were chosen with `--validation`: on other draws, on training rows alone. Every run is stored when it
ends and is not repeated with the same settings, so the study can be stopped and restarted.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from examples import run_zero_shot
from hf_any3d import load_point_dataset
from studies.earlier_recipe import ADAPTER, AUGMENTATION, ENCODER, MODEL
from studies.runs import kept_run, machine, stopwatch, use_threads, write_arguments, write_results

HELD_OUT = 5
# Seed of the order of the classes that draws are cut from.
ORDER_SEED = 0
VALIDATION_DRAWS = (
    ("sofa", "vehicle", "lamp", "vessel", "door"),
    ("bed", "plant", "appliance", "tool", "chair"),
    ("person", "storage", "window", "table", "clothing"),
)
"""Held-out classes of the draws that chose the settings, before the reported draws were evaluated."""

TRAINING: dict[str, Any] = {
    "num_train_epochs": 7,
    "per_device_train_batch_size": 32,
    "learning_rate": 2e-3,
    "warmup_steps": 0.1,
    "max_grad_norm": 5.0,
    "dataloader_drop_last": True,
    "caption_column": "title",
}
"""For `run_zero_shot.py`."""

MODEL_CHANGES: dict[str, Any] = {}
"""Changes of the quickstart's model."""

FIGURES = {
    "unseen_accuracy": "unseen among themselves",
    "unseen_chance": "chance",
    "unseen_p_value": "share of names in another order that do as well",
    "unseen_among_all": "unseen among all 18",
    "seen_accuracy": "seen among themselves",
    "seen_among_all": "seen among all 18",
    "harmonic_mean": "harmonic mean of both among all",
}


def draw_classes(names: list[str], number: int, validation: bool = False) -> list[str]:
    """Return the held-out classes of a draw: five in a random order of all, from where the previous draw ended.

    Raises:
        ValueError: There is no draw of that number.
    """
    draws = len(VALIDATION_DRAWS) if validation else len(names) // HELD_OUT
    if not 0 <= number < draws:
        raise ValueError(f"draw {number}; expected 0 to {draws - 1}")
    if validation:
        return list(VALIDATION_DRAWS[number])
    order = np.random.default_rng(ORDER_SEED).permutation(len(names))
    return [names[place] for place in order[HELD_OUT * number : HELD_OUT * (number + 1)]]


def settings_of(number: int, held_out: list[str], validation: bool) -> dict[str, Any]:
    """Collect everything that affects a run, as arguments of `run_zero_shot.py`."""
    model = {**MODEL, **MODEL_CHANGES}
    return {
        "encoder_name_or_path": ENCODER,
        "num_layers": model.pop("num_layers"),
        "model_config": model,
        "peft_config": ADAPTER,
        "augment": AUGMENTATION,
        "held_out_classes": held_out,
        "judged_splits": ["held_out"] if validation else ["test", "held_out"],
        "seed": number,
        **TRAINING,
    }


def run_draw(settings: dict[str, Any], output_dir: Path) -> dict[str, Any]:
    """Train and evaluate one draw."""
    quiet = {"save_strategy": "no", "logging_strategy": "epoch", "dataloader_pin_memory": torch.cuda.is_available()}
    with stopwatch() as spent:
        report = run_zero_shot.main([write_arguments(output_dir, settings | quiet)])
    return {
        "metrics": report.metrics,
        "class_accuracy": report.class_accuracy,
        "rows": report.data["rows"],
        "trained_parameters": report.trained_parameters,
        **spent,
    }


def run_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run every draw."""
    names = load_point_dataset("shapes", split="train").features["label"].names
    runs = []
    for number in options.draws:
        settings = settings_of(number, draw_classes(names, number, options.validation), options.validation)

        def run(number: int = number, settings: dict[str, Any] = settings) -> dict[str, Any]:
            print(f"draw {number}: {', '.join(settings['held_out_classes'])}")
            return {"draw": number, **run_draw(settings, options.output_dir / f"draw-{number}")}

        path = options.output_dir / "runs" / f"{number}.json"
        runs.append(kept_run(path, json.loads(json.dumps(settings)), run))
    return runs


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute mean and sample standard deviation over draws of every figure of every split."""
    figures: dict[str, Any] = {}
    for split in runs[0]["metrics"]:
        figures[split] = {}
        for name in runs[0]["metrics"][split]:
            values = [run["metrics"][split][name] for run in runs]
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            figures[split][name] = {"mean": float(np.mean(values)), "std": spread}
    return {"date": date.today().isoformat(), "machine": machine(), "figures": figures, "runs": runs}


def table(summary: dict[str, Any]) -> str:
    """Format the summary as Markdown: every draw, and mean ± standard deviation."""
    runs = summary["runs"]
    lines = []
    for split, figures in summary["figures"].items():
        lines += [f"### {split}", "", "| | " + " | ".join(f"draw {run['draw']}" for run in runs) + " | mean ± std |"]
        lines.append("|---" * (len(runs) + 2) + "|")
        for name, title in FIGURES.items():
            if name in figures:
                cells = [f"{100 * run['metrics'][split][name]:.1f}" for run in runs]
                mean, std = 100 * figures[name]["mean"], 100 * figures[name]["std"]
                lines.append(f"| {title}, % | {' | '.join(cells)} | {mean:.1f} ± {std:.1f} |")
        lines.append("")
    lines += ["Shapes of held-out classes named right among the five, in the order of the splits above:", ""]
    for run in runs:
        classes = []
        for name in run["settings"]["held_out_classes"]:
            shares = [f"{100 * own[name]:.0f} %" for own in run["class_accuracy"].values() if name in own]
            classes.append(f"{name} {' and '.join(shares)}")
        lines.append(f"- draw {run['draw']}: {', '.join(classes)}.")
    return "\n".join(lines) + "\n"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/zero_shot"), help="folder for all results")
    parser.add_argument("--draws", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--validation", action="store_true", help="other draws, evaluated on training rows alone")
    parser.add_argument("--threads", type=int, help="threads of torch; torch's own choice by default")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the study; print and store its table."""
    options = parse(arguments)
    use_threads(options.threads)
    transformers.logging.set_verbosity_error()
    summary = summarize(run_all(options))
    write_results(options.output_dir, "zero_shot", summary, table(summary))


if __name__ == "__main__":
    main()
