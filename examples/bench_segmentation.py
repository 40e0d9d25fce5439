"""Do the wraps learn to segment? Trains every arm on parts and on rooms with several seeds, tables and draws them.

    python examples/bench_segmentation.py
    python examples/bench_segmentation.py --tasks rooms --arms pretrained --seeds 0

The settings are those of `recipes/parts.yaml` and `recipes/rooms.yaml`; the arms differ in the model alone. Validation
objects and rooms choose the epoch, the test split is looked at once. Every run is stored when it ends, and a run that
is there already, made by the same recipe, is not repeated; one that was cut goes on from its last epoch.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterable, Mapping
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import run_point_cloud_segmentation as segmentation
import transformers
import yaml
from bench_learn import random_encoder
from datasets import Dataset, DatasetDict
from pointnet import PointNetSegmenter
from tqdm.auto import tqdm
from training_runs import kept_run, leave_results, machine, over_seeds, percent
from transformers import AutoModel, pipeline, set_seed

from hf_any3d.atomic_files import write_text
from hf_any3d.evaluation import segmentation as scores
from hf_any3d.evaluation.classification import overall_accuracy
from hf_any3d.model_card.run_report import count_parameters
from hf_any3d.modeling.pretrained_parts.sources import resolve_encoder
from hf_any3d.training import program
from hf_any3d.training.arguments import parse_arguments
from hf_any3d.training.settings import AdapterArguments, ModelArguments
from hf_any3d.visualization.figures import plot_point_clouds
from hf_any3d.visualization.label_colors import label_colors

RECIPES = Path(__file__).resolve().parent / "recipes"
TASKS = {"parts": ("instance_miou", "category_miou", "accuracy"), "rooms": ("mean_iou", "accuracy")}
"""What is learned: its metrics, the main one first."""
ARMS = {
    "pointnet": "PointNet from scratch",
    "random": "wrap, random encoder",
    "pretrained": "wrap, pretrained encoder",
}
"""What is trained: its title."""
METRICS = {
    "instance_miou": "instance mIoU",
    "category_miou": "category mIoU",
    "mean_iou": "mIoU",
    "accuracy": "points",
}


def settings_of(task: str) -> dict[str, Any]:
    """The recipe."""
    return yaml.safe_load((RECIPES / f"{task}.yaml").read_text(encoding="utf-8"))


def arguments_file(task: str, seed: int, folder: Path, **changes: Any) -> str:
    """A file with the recipe for one run."""
    quiet = {"disable_tqdm": True, "report_to": "none", "save_total_limit": 1}
    settings = {**settings_of(task), **quiet, "output_dir": str(folder), "seed": seed, **changes}
    write_text(folder / "arguments.json", json.dumps(settings))
    return str(folder / "arguments.json")


def train_wrap(task: str, seed: int, folder: Path, **changes: Any) -> dict[str, Any]:
    """The training program, as anybody would run it."""
    report = segmentation.main([arguments_file(task, seed, folder, **changes)])
    return {
        **report.metrics["test"],
        "class_ious": report.class_accuracy["test"],
        "trained_parameters": report.trained_parameters,
        "chosen": report.selection,
        "resumed": report.training["resumed_from"] is not None,
    }


def train_random(task: str, seed: int, folder: Path) -> dict[str, Any]:
    """The same around an encoder of random numbers, kept where a checkpoint can find it again."""
    place = folder / "encoder"
    if not place.exists():
        set_seed(1000 + seed)
        name = settings_of(task).get("encoder_name_or_path", ModelArguments.encoder_name_or_path)
        random_encoder(AutoModel.from_pretrained(resolve_encoder(name).path)).save_pretrained(place)
    return train_wrap(task, seed, folder, encoder_name_or_path=str(place), encoder_revision=None)


def train_pointnet(task: str, seed: int, folder: Path) -> dict[str, Any]:
    """A PointNet with the data, augmentation, schedule and judge of the wraps."""
    kinds = (
        ModelArguments,
        segmentation.SegmentationDataArguments,
        AdapterArguments,
        segmentation.SegmentationTrainingArguments,
    )
    _, data, _, arguments = parse_arguments(kinds, [arguments_file(task, seed, folder)])
    checkpoint = program.begin(arguments, logging.getLogger(__name__))
    splits, _ = program.load_splits(data)
    learned = segmentation.find_task(splits["train"])
    processor = segmentation.build_processor(data, learned)
    model = PointNetSegmenter(len(learned.names), len(learned.categories or ()))
    trainer = segmentation.build_trainer(model, arguments, data, splits, processor, learned)
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics, class_ious = segmentation.judge(trainer, splits, processor, learned)
    return {
        **metrics["test"],
        "class_ious": class_ious["test"],
        "trained_parameters": count_parameters(model)[0],
        "chosen": {"value": trainer.state.best_metric, "step": trainer.state.best_global_step},
        "resumed": checkpoint is not None,
    }


TRAIN = {"pointnet": train_pointnet, "random": train_random, "pretrained": train_wrap}


def run_once(task: str, arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """One run and what it took; of a run that was cut, its last piece."""
    start, cpu_start = time.perf_counter(), time.process_time()
    result = TRAIN[arm](task, seed, folder)
    took = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
    return {"task": task, "arm": arm, "seed": seed, **result, **took}


def load_task(task: str) -> tuple[DatasetDict, segmentation.Task]:
    """The recipe's data and what they teach."""
    kinds = (segmentation.SegmentationDataArguments,)
    own = {name: value for name, value in settings_of(task).items() if name in kinds[0].__dataclass_fields__}
    splits, _ = program.load_splits(kinds[0](**own))
    return splits, segmentation.find_task(splits["train"])


def majority(task: str) -> dict[str, float]:
    """Always the most frequent class of the training points, or of parts, that of the category."""
    splits, learned = load_task(task)
    counts: dict[int, np.ndarray] = {}
    for row in splits["train"]:
        counted = np.bincount(row["labels"], minlength=len(learned.names))
        counts[row.get("label", 0)] = counts.get(row.get("label", 0), 0) + counted
    truth = [np.asarray(row["labels"]) for row in splits["test"]]
    categories = splits["test"]["label"] if learned.has_parts else [0] * len(truth)
    said = [np.full(len(labels), counts[c].argmax()) for labels, c in zip(truth, categories, strict=True)]
    matrix = scores.point_confusion(np.concatenate(said), np.concatenate(truth), len(learned.names))
    found = {"accuracy": overall_accuracy(matrix), "seconds": 0.0, "cpu_seconds": 0.0, "trained_parameters": 0}
    if not learned.has_parts:
        return {**found, "mean_iou": scores.mean_iou(matrix)}
    ious = scores.part_ious(said, truth, categories, learned.category_parts)
    return {**found, "instance_miou": scores.instance_miou(ious), "category_miou": scores.category_miou(ious)}


def figures_of(runs: list[dict[str, Any]], names: Iterable[str]) -> dict[str, float]:
    """`over_seeds`, without the spread that a single run does not have."""
    figures = over_seeds(runs, names)
    return figures if len(runs) > 1 else {name: value for name, value in figures.items() if not name.endswith("_std")}


def summarise(task: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation of every arm over its seeds, and of every class's IoU."""
    rows = [{"arm": "majority", "title": "majority", "runs": 1, **majority(task)}]
    for arm in dict.fromkeys(run["arm"] for run in runs):
        own = [run for run in runs if run["arm"] == arm]
        # The time of a run that was cut is that of its last piece only.
        whole = [run for run in own if not run["resumed"]] or own
        figures = figures_of(own, (*TASKS[task], "trained_parameters"))
        figures |= figures_of(whole, ("seconds", "cpu_seconds"))
        classes = [run["class_ious"] for run in own]
        rows.append({"arm": arm, "title": ARMS[arm], "runs": len(own), **figures})
        rows[-1]["class_ious"] = figures_of(classes, classes[0])
    return {"settings": settings_of(task), "rows": rows, "runs": runs}


def table(task: str, rows: list[Mapping[str, Any]]) -> str:
    """Figures and class by class IoU as Markdown."""
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
    """Test rooms, or an object of each category, as they are and as a trained model sees them."""
    splits, learned = load_task(task)
    rows: Dataset = splits["test"]
    count = len(learned.categories) if learned.has_parts else 4
    shown = list(rows.select(range(min(count, len(rows)))))
    answers = pipeline("point-cloud-segmentation", model=str(model))(shown)
    palette = label_colors(len(learned.names))
    clouds, titles = [], []
    for row, answer in zip(shown, answers, strict=True):
        for what, labels in (("truth", np.asarray(row["labels"])), ("said", answer["labels"])):
            # Parts share the colours of the first few labels: only those of one object need to be told apart.
            first = min(learned.category_parts[row["label"]]) if learned.has_parts else 0
            clouds.append(np.column_stack([row["points"], palette[labels - first]]))
            name = learned.categories[row["label"]] if learned.has_parts else f"room {len(titles) // 2 + 1}"
            right = 100 * np.mean(labels == np.asarray(row["labels"]))
            titles.append(f"{name}, truth" if what == "truth" else f"{name}, {right:.0f} % right")
    legend = None if learned.has_parts else dict(zip(learned.names, palette, strict=True))
    heading = f"Unseen {task}: truth beside what a wrapped sentence encoder says"
    view = {"columns": 6} if learned.has_parts else {"columns": 4, "elevation": 40.0, "zoom": 1.05, "cell": 2.8}
    return plot_point_clouds(clouds, path, titles=titles, heading=heading, legend=legend, **view)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/segmentation"), help="all results go here")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), help="what to train")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for; print, store and draw what came out."""
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
        summary[task] = summarise(task, runs)
        text += f"## {task}\n\n{table(task, summary[task]['rows'])}\n"
        if "pretrained" in options.arms:
            draw(task, folder / f"{task}-pretrained-{options.seeds[0]}", folder / f"segmentation_{task}.png")
    leave_results(folder, "segmentation", summary, text)


if __name__ == "__main__":
    main()
