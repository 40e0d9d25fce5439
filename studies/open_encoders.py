"""Do the layouts of published point encoders learn from scratch? Uni3D on captioned shapes, PTv3 on rooms.

    python -m studies.open_encoders --threads 1
    python -m studies.open_encoders --tasks rooms --seeds 0

Shapes: Uni3D's smallest layout (`recipes/shapes_uni3d.yaml`) is trained to embed clouds close to their captions,
without five of the 18 classes; these and the others are then given by their names. Each seed has other held-out
classes, those of the draws of `zero_shot.py`. Rooms: Point Transformer V3 (`recipes/rooms_ptv3.yaml`) is trained to
label points. Controls are the encoder before training, names that are exchanged among each other, the most frequent
class, and a network that sees each point alone. The test split selects nothing. Every run is stored when it ends and
is not repeated with the same settings; an interrupted run on rooms resumes from its last epoch.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from tqdm.auto import tqdm
from transformers.modeling_outputs import TokenClassifierOutput

from examples import run_zero_shot
from hf_any3d import load_point_dataset
from hf_any3d.modeling.layers.losses import point_loss
from hf_any3d.modeling.point_encoders.set_abstraction import PointNetLayer
from hf_any3d.utils.atomic_files import atomic_write
from studies import segmentation
from studies.runs import (
    kept_run,
    machine,
    over_seeds,
    percent,
    runs_parser,
    stopwatch,
    use_threads,
    write_arguments,
    write_results,
)
from studies.zero_shot import draw_classes

RECIPES = {"shapes": "shapes_uni3d", "rooms": "rooms_ptv3"}
TASKS: dict[str, dict[str, str]] = {
    "shapes": {"untrained": "Uni3D, untrained", "trained": "Uni3D, trained"},
    "rooms": {"alone": "each point alone", "trained": "PTv3, trained"},
}
"""Titles of the arms of each task."""
SPLITS = {"test": "test split", "held_out": "training rows of the held-out classes"}
SHAPE_FIGURES = {
    "unseen_accuracy": "unseen classes among themselves",
    "unseen_exchanged": "the same, names exchanged",
    "unseen_chance": "chance",
    "unseen_p_value": "share of names in another order that do as well",
    "unseen_among_all": "unseen classes among all",
    "seen_accuracy": "seen classes among themselves",
    "seen_exchanged": "the same, names exchanged",
    "seen_chance": "chance",
    "seen_among_all": "seen classes among all",
}
ROOM_FIGURES = ("mean_iou", "accuracy")


class PointsAlone(nn.Module):
    """Labels each point by its own coordinates: no neighbors, no cloud.

    `forward` has the arguments of this package's segmentation models, so that the same program trains it.

    Args:
        num_labels: Number of classes.
        width: Channels of the hidden layers.
    """

    def __init__(self, num_labels: int, width: int = 128):
        super().__init__()
        self.layers = nn.Sequential(PointNetLayer(3, width), PointNetLayer(width, width), nn.Linear(width, num_labels))

    def forward(self, points: torch.Tensor, labels: torch.Tensor | None = None) -> TokenClassifierOutput:
        """Classify points `(batch, points, 3)`; with labels `(batch, points)` the loss is returned too."""
        logits = self.layers(points.flatten(0, 1)).unflatten(0, points.shape[:2])  # (batch, points, labels)
        return TokenClassifierOutput(loss=point_loss(logits, labels), logits=logits)


def settings_of(task: str, arm: str, seed: int) -> dict[str, Any]:
    """Collect everything that affects a run, as arguments of its training program."""
    settings = segmentation.settings_of(RECIPES[task]) | {"seed": seed}
    if task == "shapes":
        settings |= {"held_out_classes": draw_classes(class_names(), seed), "judged_splits": list(SPLITS)}
        if arm == "untrained":
            settings["num_train_epochs"] = 0
    return settings


def class_names() -> list[str]:
    """Return the names of the classes of the embedded shapes."""
    return load_point_dataset("shapes", split="train").features["label"].names


def run_shapes(arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train and evaluate with one draw of held-out classes."""
    settings = settings_of("shapes", arm, seed)
    quiet = {"save_strategy": "no", "logging_strategy": "epoch", "dataloader_pin_memory": torch.cuda.is_available()}
    report = run_zero_shot.main([write_arguments(folder, settings | quiet)])
    counts = {"unseen": len(settings["held_out_classes"])}
    counts["seen"] = len(class_names()) - counts["unseen"]
    for found in report.metrics.values():
        for kind, count in counts.items():
            if f"{kind}_accuracy" in found:
                # The mean over all cyclic exchanges: in these and the true order together, each cloud is right once.
                found[f"{kind}_exchanged"] = (1 - found[f"{kind}_accuracy"]) / (count - 1)
                found[f"{kind}_chance"] = 1 / count
    return {
        "metrics": report.metrics,
        "class_accuracy": report.class_accuracy,
        "trained_parameters": report.trained_parameters,
    }


def run_rooms(arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train PTv3, or the network that sees each point alone, and evaluate it."""
    if arm == "trained":
        return segmentation.train_wrap(RECIPES["rooms"], seed, folder)
    return segmentation.train_network(lambda task: PointsAlone(len(task.names)), RECIPES["rooms"], seed, folder)


def run_once(task: str, arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """Do one run and measure it; of a resumed run only the last piece is measured."""
    with stopwatch() as spent:
        result = {"shapes": run_shapes, "rooms": run_rooms}[task](arm, seed, folder)
    return {"task": task, "arm": arm, "seed": seed, **result, **spent}


def run_all(task: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run every arm of a task with every seed."""
    runs = []
    for seed, arm in tqdm([(seed, arm) for seed in options.seeds for arm in TASKS[task]], desc=task):
        name = f"{task}-{arm}-{seed}"
        settings = json.loads(json.dumps(settings_of(task, arm, seed)))
        work = partial(run_once, task, arm, seed, options.output_dir / name)
        runs.append(kept_run(options.output_dir / "runs" / f"{name}.json", settings, work))
        tqdm.write(f"{name}: {runs[-1]['cpu_seconds']:.0f} CPU seconds")
    return runs


def summarize_shapes(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute mean and sample standard deviation of every figure of both arms on both splits."""
    rows = []
    for split in SPLITS:
        for arm, title in TASKS["shapes"].items():
            own = [run["metrics"][split] for run in runs if run["arm"] == arm]
            names = [name for name in SHAPE_FIGURES if name in own[0]]
            rows.append({"split": split, "arm": arm, "title": title, **over_seeds(own, names)})
    return {"rows": rows, "runs": runs}


def summarize_rooms(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute mean and sample standard deviation of every arm, next to the most frequent class."""
    rows = [{"arm": "majority", "title": "most frequent class", **segmentation.majority(RECIPES["rooms"])}]
    for arm, title in TASKS["rooms"].items():
        own = [run for run in runs if run["arm"] == arm]
        rows.append({"arm": arm, "title": title, **over_seeds(own, (*ROOM_FIGURES, "trained_parameters"))})
        rows[-1]["class_ious"] = over_seeds([run["class_ious"] for run in own], own[0]["class_ious"])
    return {"rows": rows, "runs": runs}


def shapes_table(rows: list[dict[str, Any]]) -> str:
    """Format the figures of the shapes as Markdown."""
    parts = []
    for split, about in SPLITS.items():
        own = [row for row in rows if row["split"] == split]
        lines = [f"| {about}, % | {' | '.join(row['title'] for row in own)} |", "|---" * (1 + len(own)) + "|"]
        for name, title in SHAPE_FIGURES.items():
            if name in own[0]:
                lines.append(f"| {title} | {' | '.join(percent(row, name) for row in own)} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def rooms_table(rows: list[dict[str, Any]]) -> str:
    """Format the figures of the rooms as Markdown."""
    lines = [f"| rooms, % | {' | '.join(row['title'] for row in rows)} |", "|---" * (1 + len(rows)) + "|"]
    for name in ROOM_FIGURES:
        cells = " | ".join(percent(row, name) for row in rows)
        lines.append(f"| {segmentation.METRICS[name]} | {cells} |")
    trained = [row["class_ious"] for row in rows if "class_ious" in row]
    for name in [name for name in trained[0] if not name.endswith("_std")]:
        lines.append(f"| IoU of {name} | – | {' | '.join(percent(row, name) for row in trained)} |")
    return "\n".join(lines) + "\n"


def plot(summary: dict[str, Any], path: Path) -> None:
    """Draw a panel of bars for each task, with error bars of one standard deviation and chance as lines."""
    from matplotlib.figure import Figure

    tasks = [task for task in TASKS if task in summary]
    figure = Figure(figsize=(5.5 * len(tasks), 4), dpi=120)
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        rows = summary[task]["rows"]
        if task == "rooms":
            bars = [(row["title"], row, "mean_iou", None) for row in rows]
        else:
            bars = [
                (f"{row['title'].split(', ')[1]},\n{kind}", row, f"{kind}_accuracy", row[f"{kind}_chance"])
                for kind in ("seen", "unseen")
                for row in rows
                if row["split"] == "test"
            ]
        for place, (_, row, name, chance) in enumerate(bars):
            axes.bar(place, 100 * row[name], 0.6, yerr=100 * row.get(f"{name}_std", 0.0), capsize=3, color="tab:blue")
            if chance is not None:
                axes.hlines(100 * chance, place - 0.4, place + 0.4, color="tab:red")
        axes.set_xticks(range(len(bars)), [title for title, *_ in bars])
        axes.set_ylabel("mIoU on test rooms, %" if task == "rooms" else "test shapes named right, % (red: chance)")
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, format="png", bbox_inches="tight")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = runs_parser(__doc__, "outputs/open_encoders")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the study; print, store and draw its results."""
    options = parse(arguments)
    use_threads(options.threads)
    transformers.logging.set_verbosity_error()
    summary: dict[str, Any] = {"date": date.today().isoformat(), "machine": machine()}
    text = ""
    for task in options.tasks:
        runs = run_all(task, options)
        summary[task] = {"shapes": summarize_shapes, "rooms": summarize_rooms}[task](runs)
        tables = {"shapes": shapes_table, "rooms": rooms_table}[task](summary[task]["rows"])
        seconds = [run["cpu_seconds"] for run in runs if run["arm"] == "trained"]
        text += f"## {task}\n\n{tables}\nA run took {min(seconds):.0f} to {max(seconds):.0f} CPU seconds.\n\n"
    plot(summary, options.output_dir / "open_encoders.png")
    write_results(options.output_dir, "open_encoders", summary, text)


if __name__ == "__main__":
    main()
