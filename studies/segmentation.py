"""Do Any2Point models learn to segment? Trains every arm on parts and on rooms with several seeds.

    python -m studies.segmentation
    python -m studies.segmentation --tasks rooms --arms pretrained --seeds 0

The settings are those of `recipes/parts.yaml` and `recipes/rooms.yaml`; the arms differ in the model alone. Validation
objects and rooms choose the epoch; the test split is evaluated once. Every run is stored when it ends and is not
repeated with the same settings; an interrupted run resumes from its last epoch.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml
from datasets import Dataset, DatasetDict
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, pipeline, set_seed
from transformers.modeling_outputs import TokenClassifierOutput

from hf_any3d.evaluation import segmentation as scores
from hf_any3d.evaluation.confusion import overall_accuracy
from hf_any3d.model_card.run_report import count_parameters
from hf_any3d.modeling.layers.losses import point_loss
from hf_any3d.modeling.point_encoders.set_abstraction import PointNetLayer
from hf_any3d.modeling.pretrained_parts.sources import resolve_encoder
from hf_any3d.training import program, tasks as segmentation
from hf_any3d.training.arguments import ModelArguments
from hf_any3d.training.splits import load_splits
from hf_any3d.visualization.figures import plot_point_clouds
from hf_any3d.visualization.viewer import label_colors
from studies.runs import (
    RECIPES,
    kept_run,
    machine,
    over_seeds,
    percent,
    runs_parser,
    stopwatch,
    write_arguments,
    write_results,
)

TASKS = {"parts": ("instance_miou", "category_miou", "accuracy"), "rooms": ("mean_iou", "accuracy")}
"""Metrics of each task, the main one first."""
ARMS = {
    "pointnet": "PointNet from scratch",
    "random": "wrap, random encoder",
    "pretrained": "wrap, pretrained encoder",
}
"""Titles of the trained models."""
METRICS = {
    "instance_miou": "instance mIoU",
    "category_miou": "category mIoU",
    "mean_iou": "mIoU",
    "accuracy": "points",
}


class PointNetSegmenter(nn.Module):
    """PointNet for segmentation: combines each point's own features with the maximum over all points and the category.

    `forward` has the arguments of this package's segmentation models, so that the same program trains it.

    Args:
        num_labels: Number of classes or parts.
        num_categories: Number of object categories in the input; 0 for scenes.
        widths: Channels of the layers before the maximum; the output of the first is each point's own features.
        head_width: Channels of the hidden layer of the head.
        dropout: Dropout before the last layer.
    """

    def __init__(
        self,
        num_labels: int,
        num_categories: int = 0,
        widths: tuple[int, ...] = (64, 128, 256),
        head_width: int = 128,
        dropout: float = 0.2,
    ):
        super().__init__()
        self.first = PointNetLayer(3, widths[0])
        pairs = zip(widths, widths[1:], strict=False)
        self.further = nn.Sequential(*(PointNetLayer(inner, outer) for inner, outer in pairs))
        self.from_point = nn.Linear(widths[0], head_width, bias=False)
        self.from_cloud = nn.Linear(widths[-1], head_width, bias=False)
        self.from_category = nn.Embedding(max(num_categories, 1), head_width)
        self.head = nn.Sequential(nn.BatchNorm1d(head_width), nn.ReLU(), PointNetLayer(head_width, head_width))
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(head_width, num_labels)

    def forward(
        self, points: torch.Tensor, category: torch.Tensor | None = None, labels: torch.Tensor | None = None
    ) -> TokenClassifierOutput:
        """Classify every point.

        Args:
            points: `(batch, points, 3)`.
            category: `(batch,)` category numbers of objects.
            labels: `(batch, points)` class numbers; with them the mean cross-entropy is returned as `loss`.
        """
        shape = points.shape[:2]
        own = self.first(points.flatten(0, 1))  # (batch * points, width)
        pooled = self.from_cloud(self.further(own).unflatten(0, shape).amax(dim=1))  # (batch, width)
        numbers = torch.zeros(shape[0], dtype=torch.long, device=points.device) if category is None else category
        pooled = (pooled + self.from_category(numbers)).repeat_interleave(shape[1], dim=0)
        logits = self.out(self.dropout(self.head(self.from_point(own) + pooled))).unflatten(0, shape)
        return TokenClassifierOutput(loss=point_loss(logits, labels), logits=logits)


def settings_of(task: str) -> dict[str, Any]:
    """Read the recipe of a task."""
    return yaml.safe_load((RECIPES / f"{task}.yaml").read_text(encoding="utf-8"))


def arguments_file(task: str, seed: int, folder: Path, **changes: Any) -> str:
    """Write the arguments of one run."""
    return write_arguments(folder, settings_of(task) | {"save_total_limit": 1, "seed": seed} | changes)


def train_wrap(task: str, seed: int, folder: Path, **changes: Any) -> dict[str, Any]:
    """Train by the training program."""
    report = segmentation.train_segmenter([arguments_file(task, seed, folder, **changes)])
    return {
        **report.metrics["test"],
        "class_ious": report.class_accuracy["test"],
        "trained_parameters": report.trained_parameters,
        "chosen": report.selection,
        "resumed": report.training["resumed_from"] is not None,
    }


def train_random(task: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train the same model around an encoder with random weights, stored for resumed runs."""
    place = folder / "encoder"
    if not place.exists():
        set_seed(1000 + seed)
        name = settings_of(task).get("encoder_name_or_path", ModelArguments.encoder_name_or_path)
        AutoModel.from_config(AutoConfig.from_pretrained(resolve_encoder(name).path)).save_pretrained(place)
    return train_wrap(task, seed, folder, encoder_name_or_path=str(place), encoder_revision=None)


def train_pointnet(task: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train a PointNet with the same data, augmentation, schedule and evaluation."""
    return train_network(
        lambda learned: PointNetSegmenter(len(learned.names), len(learned.categories or ())), task, seed, folder
    )


def train_network(
    build: Callable[[segmentation.PointLabels], nn.Module], task: str, seed: int, folder: Path
) -> dict[str, Any]:
    """Train any network by a recipe, apart from the recipe's own model."""
    request = segmentation.Segmentation.parse([arguments_file(task, seed, folder)])
    checkpoint = program.start_run(request.training, logging.getLogger(__name__))
    splits, _ = load_splits(request.data)
    request.labels = segmentation.find_point_labels(splits["train"])
    processor, model = request.build_processor(), build(request.labels)
    trainer = request.build_trainer(model, splits, processor)
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics, class_ious = request.evaluate(trainer, splits, processor)
    return {
        **metrics["test"],
        "class_ious": class_ious["test"],
        "trained_parameters": count_parameters(model)[0],
        "chosen": {"value": trainer.state.best_metric, "step": trainer.state.best_global_step},
        "resumed": checkpoint is not None,
    }


TRAIN = {"pointnet": train_pointnet, "random": train_random, "pretrained": train_wrap}


def run_once(task: str, arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """Do one run and measure it; of a resumed run only the last piece is measured."""
    with stopwatch() as spent:
        result = TRAIN[arm](task, seed, folder)
    return {"task": task, "arm": arm, "seed": seed, **result, **spent}


def load_task(task: str) -> tuple[DatasetDict, segmentation.PointLabels]:
    """Load the data of a recipe; returns them with the task that they define."""
    kinds = (segmentation.SegmentationDataArguments,)
    own = {name: value for name, value in settings_of(task).items() if name in kinds[0].__dataclass_fields__}
    splits, _ = load_splits(kinds[0](**own))
    return splits, segmentation.find_point_labels(splits["train"])


def majority(task: str) -> dict[str, float]:
    """Compute the metrics of always answering the most frequent class, for parts that of the category."""
    splits, learned = load_task(task)
    counts: dict[int, np.ndarray] = {}
    for row in splits["train"]:
        counted = np.bincount(row["labels"], minlength=len(learned.names))
        counts[row.get("label", 0)] = counts.get(row.get("label", 0), 0) + counted
    truth = [np.asarray(row["labels"]) for row in splits["test"]]
    categories = splits["test"]["label"] if learned.has_parts else [0] * len(truth)
    answers = [np.full(len(labels), counts[c].argmax()) for labels, c in zip(truth, categories, strict=True)]
    matrix = scores.point_confusion(np.concatenate(answers), np.concatenate(truth), len(learned.names))
    found = {"accuracy": overall_accuracy(matrix), "seconds": 0.0, "cpu_seconds": 0.0, "trained_parameters": 0}
    if not learned.has_parts:
        return {**found, "mean_iou": scores.mean_iou(matrix)}
    ious = scores.part_ious(answers, truth, categories, learned.category_parts)
    return {**found, "instance_miou": scores.instance_miou(ious), "category_miou": scores.category_miou(ious)}


def figures_of(runs: list[dict[str, Any]], names: Iterable[str]) -> dict[str, float]:
    """Return `over_seeds` without deviations where there is a single run."""
    figures = over_seeds(runs, names)
    return figures if len(runs) > 1 else {name: value for name, value in figures.items() if not name.endswith("_std")}


def summarize(task: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute mean and sample standard deviation of every arm over its seeds, also of the IoU of classes."""
    rows = [{"arm": "majority", "title": "majority", "runs": 1, **majority(task)}]
    for arm in dict.fromkeys(run["arm"] for run in runs):
        own = [run for run in runs if run["arm"] == arm]
        # Resumed runs have the time of their last piece only.
        complete = [run for run in own if not run["resumed"]] or own
        figures = figures_of(own, (*TASKS[task], "trained_parameters"))
        figures |= figures_of(complete, ("seconds", "cpu_seconds"))
        classes = [run["class_ious"] for run in own]
        rows.append({"arm": arm, "title": ARMS[arm], "runs": len(own), **figures})
        rows[-1]["class_ious"] = figures_of(classes, classes[0])
    return {"settings": settings_of(task), "rows": rows, "runs": runs}


def table(task: str, rows: list[Mapping[str, Any]]) -> str:
    """Format figures and the IoU of each class as Markdown."""
    names = TASKS[task]
    lines = [
        f"| model | parameters trained | CPU seconds | {', % | '.join(METRICS[name] for name in names)}, % |",
        "|---" * (3 + len(names)) + "|",
    ]
    for row in rows:
        cells = " | ".join(percent(row, name) for name in names)
        lines.append(f"| {row['title']} | {row['trained_parameters']:,.0f} | {row['cpu_seconds']:.0f} | {cells} |")
    trained = [row for row in rows if "class_ious" in row]
    lines += ["", f"| IoU, % | {' | '.join(row['title'] for row in trained)} |", "|---" * (1 + len(trained)) + "|"]
    for name in [name for name in trained[0]["class_ious"] if not name.endswith("_std")] if trained else []:
        lines.append(f"| {name} | {' | '.join(percent(row['class_ious'], name) for row in trained)} |")
    return "\n".join(lines) + "\n"


def draw(task: str, model: Path, path: Path) -> Path:
    """Draw test rooms, or an object of each category, with true labels and with those of a trained model."""
    splits, learned = load_task(task)
    rows: Dataset = splits["test"]
    count = len(learned.categories) if learned.has_parts else 4
    shown = list(rows.select(range(min(count, len(rows)))))
    answers = pipeline("point-cloud-segmentation", model=str(model))(shown)
    palette = label_colors(len(learned.names))
    clouds, titles = [], []
    for row, answer in zip(shown, answers, strict=True):
        for what, labels in (("truth", np.asarray(row["labels"])), ("model", answer["labels"])):
            # Parts use the colors of the first few labels: only those of one object must differ.
            first = min(learned.category_parts[row["label"]]) if learned.has_parts else 0
            clouds.append(np.column_stack([row["points"], palette[labels - first]]))
            name = learned.categories[row["label"]] if learned.has_parts else f"room {len(titles) // 2 + 1}"
            right = 100 * np.mean(labels == np.asarray(row["labels"]))
            titles.append(f"{name}, truth" if what == "truth" else f"{name}, {right:.0f} % right")
    legend = None if learned.has_parts else dict(zip(learned.names, palette, strict=True))
    heading = f"Unseen {task}: truth beside the labels of a wrapped sentence encoder"
    view = {"columns": 6} if learned.has_parts else {"columns": 4, "elevation": 40.0, "zoom": 1.05, "cell": 2.8}
    return plot_point_clouds(clouds, path, titles=titles, heading=heading, legend=legend, **view)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = runs_parser(__doc__, "outputs/segmentation", ARMS, with_threads=False)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the study; print, store and draw its results."""
    options = parse(arguments)
    transformers.logging.set_verbosity_error()
    folder: Path = options.output_dir
    summary: dict[str, Any] = {"date": date.today().isoformat(), "machine": machine()}
    text = ""
    for task in options.tasks:
        runs = []
        for seed, arm in tqdm([(seed, arm) for seed in options.seeds for arm in options.arms], desc=task):
            name = f"{task}-{arm}-{seed}"
            run = partial(run_once, task, arm, seed, folder / name)
            runs.append(kept_run(folder / "runs" / f"{name}.json", settings_of(task), run))
            tqdm.write(f"{name}: {percent(runs[-1], TASKS[task][0])} % in {runs[-1]['cpu_seconds']:.0f} CPU seconds")
        summary[task] = summarize(task, runs)
        text += f"## {task}\n\n{table(task, summary[task]['rows'])}\n"
        if "pretrained" in options.arms:
            draw(task, folder / f"{task}-pretrained-{options.seeds[0]}", folder / f"segmentation_{task}.png")
    write_results(folder, "segmentation", summary, text)


if __name__ == "__main__":
    main()
