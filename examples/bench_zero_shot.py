"""Does a model name shapes of classes that it never saw? Three draws of held-out classes from the embedded shapes.

    python examples/bench_zero_shot.py
    python examples/bench_zero_shot.py --validation

Each draw holds five of the 18 classes out, no class twice, and trains with `run_zero_shot.py` on the others. It is
judged on the test split, and on the training rows of the held-out classes, which training never saw either. The recipe
below was chosen with `--validation`: on other draws, on training rows alone. Every run is stored when it ends, and one
that is there already, made by the same recipe, is not repeated; so the program can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import run_zero_shot
import torch
import transformers
from shapes_recipe import ADAPTER, AUGMENTATION, ENCODER, MODEL, use_threads
from training_runs import leave_results

from hf_any3d import load_point_dataset
from hf_any3d.atomic_files import write_text

HELD_OUT = 5
# Decides the order of the classes that draws are cut from.
ORDER_SEED = 0
VALIDATION_DRAWS = (
    ("sofa", "vehicle", "lamp", "vessel", "door"),
    ("bed", "plant", "appliance", "tool", "chair"),
    ("person", "storage", "window", "table", "clothing"),
)
"""What is held out to choose the recipe by, before the draws that are reported were looked at."""

RECIPE: dict[str, Any] = {
    "num_train_epochs": 7,
    "per_device_train_batch_size": 32,
    "learning_rate": 2e-3,
    "warmup_steps": 0.1,
    "max_grad_norm": 5.0,
    "dataloader_drop_last": True,
    "caption_column": "title",
}
"""For `run_zero_shot.py`, beside the model of `shapes_recipe.py`."""

MODEL_CHANGES: dict[str, Any] = {}
"""Where the model differs from that of `shapes_recipe.py`."""

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
    """The held-out classes of a draw: five in a random order of all, from where the draw before ended.

    Raises:
        ValueError: If there are not so many draws.
    """
    draws = len(VALIDATION_DRAWS) if validation else len(names) // HELD_OUT
    if not 0 <= number < draws:
        raise ValueError(f"draw {number}; expected 0 to {draws - 1}")
    if validation:
        return list(VALIDATION_DRAWS[number])
    order = np.random.default_rng(ORDER_SEED).permutation(len(names))
    return [names[place] for place in order[HELD_OUT * number : HELD_OUT * (number + 1)]]


def settings_of(number: int, held_out: list[str], validation: bool) -> dict[str, Any]:
    """Everything that decides a run, as `run_zero_shot.py` takes it."""
    model = {**MODEL, **MODEL_CHANGES}
    augment = [
        f"{name}:{','.join(f'{key}={value}' for key, value in settings.items())}" if settings else name
        for name, settings in AUGMENTATION.items()
    ]
    return {
        "encoder_name_or_path": ENCODER,
        "num_layers": model.pop("num_layers"),
        "model_config": model,
        "peft_config": ADAPTER,
        "augment": augment,
        "held_out_classes": held_out,
        "judged_splits": ["held_out"] if validation else ["test", "held_out"],
        "seed": number,
        **RECIPE,
    }


def run_draw(settings: dict[str, Any], output_dir: Path) -> dict[str, Any]:
    """Train and judge one draw."""
    quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_strategy": "epoch"}
    quiet["dataloader_pin_memory"] = torch.cuda.is_available()
    recipe = output_dir / "recipe.json"
    write_text(recipe, json.dumps({**settings, **quiet, "output_dir": str(output_dir)}, indent=1))
    cpu_start, start = time.process_time(), time.perf_counter()
    report = run_zero_shot.main([str(recipe)])
    return {
        "metrics": report.metrics,
        "class_accuracy": report.class_accuracy,
        "rows": report.data["rows"],
        "trained_parameters": report.trained_parameters,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
        "threads": torch.get_num_threads(),
    }


def run_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every draw, those that are stored already read back."""
    names = load_point_dataset("shapes", split="train").features["label"].names
    runs = []
    for number in options.draws:
        settings = settings_of(number, draw_classes(names, number, options.validation), options.validation)
        path = options.output_dir / "runs" / f"{number}.json"
        stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if stored.get("settings") != json.loads(json.dumps(settings)):
            print(f"draw {number}: {', '.join(settings['held_out_classes'])}")
            stored = {
                "draw": number,
                **run_draw(settings, options.output_dir / f"draw-{number}"),
                "settings": settings,
            }
            write_text(path, json.dumps(stored, indent=1))
        runs.append(stored)
    return runs


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation over draws of every figure of every split."""
    figures: dict[str, Any] = {}
    for split in runs[0]["metrics"]:
        figures[split] = {}
        for name in runs[0]["metrics"][split]:
            values = [run["metrics"][split][name] for run in runs]
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            figures[split][name] = {"mean": float(np.mean(values)), "std": spread}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    return {"date": date.today().isoformat(), "machine": machine, "figures": figures, "runs": runs}


def table(summary: dict[str, Any]) -> str:
    """The summary in Markdown: every draw, and mean ± standard deviation."""
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
        told = []
        for name in run["settings"]["held_out_classes"]:
            shares = [f"{100 * own[name]:.0f} %" for own in run["class_accuracy"].values() if name in own]
            told.append(f"{name} {' and '.join(shares)}")
        lines.append(f"- draw {run['draw']}: {', '.join(told)}.")
    return "\n".join(lines) + "\n"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/zero_shot"), help="runs and tables go here")
    parser.add_argument("--draws", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--validation", action="store_true", help="other draws, judged on training rows alone")
    parser.add_argument("--threads", type=int, help="threads of torch; its own choice by default")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for, print and store the table."""
    options = parse(arguments)
    use_threads(options.threads)
    transformers.logging.set_verbosity_error()
    summary = summarise(run_all(options))
    leave_results(options.output_dir, "zero_shot", summary, table(summary))


if __name__ == "__main__":
    main()
