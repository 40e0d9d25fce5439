"""The main job in minutes: a frozen text transformer learns real 3D shapes, then classifies mesh files.

    make quickstart

Trains a small PointNet from scratch and an Any2Point wrap of a pretrained, frozen sentence encoder on the shapes in
examples/data, compares them on the test split, draws predictions, and classifies the six mesh files in that folder.
The files and their near-duplicates are left out of training. Nothing here is chosen on the test split; the recipe is
in shapes_recipe.py.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import shapes_recipe as recipe
import transformers
from datasets import Dataset, DatasetDict
from torch import nn
from transformers import pipeline

import hf_any3d  # registers the models and the pipeline
from hf_any3d import PointCloudProcessor, load_point_dataset
from hf_any3d.visualization.figures import plot_point_clouds

HERE = Path(__file__).resolve().parent
FIGURES = HERE / "benchmarks" / "results" / "learning.json"
DATA = HERE / "data"
FILES = {
    "chair.ply": ("blendswap-cc-0/chair2", "chair"),
    "table.ply": ("blendswap-cc-0/table", "table"),
    "sofa.ply": ("blendswap-cc-0/couch2", "sofa"),
    "shelves.ply": ("blendswap-cc-0/shelves", "storage"),
    "lamp.ply": ("blendswap-cc-0/desklamp", "lamp"),
    "stool.ply": ("blendswap-cc-0/foldingChair", "chair"),
}
"""Files to classify: their rows in the embedded shapes, and their classes. The stool, which folds, is the hard one."""


def train(
    title: str, model: nn.Module, splits: DatasetDict, options: argparse.Namespace
) -> tuple[dict[str, Any], Any]:
    """Train one model by the recipe and measure it on the test split; its table row and its trainer."""
    print(f"\n{title}: {recipe.trained_parameters(model):,} trained parameters")
    arguments = recipe.training_arguments(
        options.output_dir / "trainer",
        options.seed,
        max_steps=options.max_steps,
        logging_strategy="no",
        disable_tqdm=False,
    )
    trainer = recipe.build_trainer(model, arguments, splits["train"])
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    metrics = recipe.evaluate(trainer, splits["test"])
    row = {
        "title": title,
        "trained_parameters": recipe.trained_parameters(model),
        "seconds": seconds,
        "accuracy": metrics["eval_accuracy"],
        "mean_class_accuracy": metrics["eval_mean_class_accuracy"],
    }
    return row, trainer


def without_files(train: Dataset) -> Dataset:
    """Leave the shapes of `FILES` and their near-duplicates out of the training split: nothing is just remembered."""
    names = {name for name, _ in FILES.values()}
    groups = {group for name, group in zip(train["name"], train["group"], strict=True) if name in names}
    return train.filter(lambda group: group not in groups, input_columns="group")


def classify_files(classify: Any) -> str:
    """Classify the files as they are on disk; a table of right and wrong answers."""
    answers = classify([str(DATA / file) for file in FILES], top_k=2)
    lines, right = [], 0
    for (file, (_, label)), (best, second) in zip(FILES.items(), answers, strict=True):
        is_right = best["label"] == label
        right += is_right
        lines.append(
            f"    {file:12s} {best['label']:10s} {100 * best['score']:5.1f} %   {'right' if is_right else 'WRONG':5s} "
            f"(then {second['label']} {100 * second['score']:.1f} %{'' if is_right else f'; it is a {label}'})"
        )
    return "\n".join([*lines, f"    {right} of {len(FILES)} right; none of these shapes was in the training data."])


def majority(splits: DatasetDict) -> dict[str, Any]:
    """Always the most frequent class of the training split."""
    labels = np.asarray(splits["test"]["label"])
    answer = np.bincount(splits["train"]["label"]).argmax()
    return {
        "title": "majority class",
        "trained_parameters": 0,
        "seconds": 0.0,
        "accuracy": float(np.mean(labels == answer)),
        "mean_class_accuracy": 1 / len(np.unique(labels)),
    }


def committed_figures() -> dict[str, str]:
    """Mean ± std over three seeds of `make bench-learn`, by the title of the row."""
    if not FIGURES.is_file():
        return {}
    rows = json.loads(FIGURES.read_text(encoding="utf-8"))["rows"]
    return {row["title"]: f"{100 * row['accuracy']:.1f} ± {100 * row.get('accuracy_std', 0):.1f}" for row in rows}


def table(rows: list[dict[str, Any]]) -> str:
    """This run beside the committed figures."""
    committed = committed_figures()
    lines = [
        f"{'model':38s} {'trained':>10s} {'seconds':>8s} {'accuracy':>9s} {'class acc.':>10s}   3 seeds (bench-learn)",
        "-" * 104,
    ]
    for row in rows:
        accuracy, class_accuracy = 100 * row["accuracy"], 100 * row["mean_class_accuracy"]
        lines.append(
            f"{row['title']:38s} {row['trained_parameters']:>10,d} {row['seconds']:>8.0f} {accuracy:>8.1f}% "
            f"{class_accuracy:>9.1f}%   {committed.get(row['title'], '')}"
        )
    return "\n".join(lines)


def draw(test: Dataset, classify: Any, names: list[str], path: Path, count: int = 18) -> Path:
    """Draw test shapes with their predicted classes; green is right, red is wrong."""
    shown = [test[int(number)] for number in np.linspace(0, len(test) - 1, count)]
    answers = classify([row["points"] for row in shown], batch_size=count)
    titles, colors = [], []
    for row, ((best, *_),) in zip(shown, ([answer] for answer in answers), strict=True):
        right = names[row["label"]] == best["label"]
        titles.append(best["label"] if right else f"{best['label']} (is {names[row['label']]})")
        colors.append("#1a7f37" if right else "#cf222e")
    clouds = [np.concatenate([row["points"], np.asarray(row["colors"]) / 255], axis=1) for row in shown]
    heading = "Unseen test shapes, classified by a frozen sentence encoder with adapters"
    return plot_point_clouds(clouds, path, titles=titles, title_colors=colors, heading=heading)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output-dir", type=Path, default=Path("outputs/quickstart"), help="model and picture go here"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, default=-1, help="stop each training early, to try the program out")
    parser.add_argument("--threads", type=int, help="threads of torch; its own choice by default")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Train, compare, draw, classify."""
    options = parse(arguments)
    recipe.use_threads(options.threads)
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)  # between peft and transformers, not for our readers
    print(f"hf_any3d {hf_any3d.__version__}: a frozen text transformer learns 3D shapes")
    splits = load_point_dataset("shapes")
    splits["train"] = without_files(splits["train"])
    names = splits["train"].features["label"].names
    print(f"{len(splits['train'])} training and {len(splits['test'])} test shapes in {len(names)} classes")

    rows = [majority(splits)]
    row, _ = train("PointNet from scratch", recipe.build_pointnet(options.seed, len(names)), splits, options)
    rows.append(row)
    row, trainer = train("wrap, pretrained encoder", recipe.build_model(options.seed, names), splits, options)
    rows.append(row)
    print(f"\n{table(rows)}\n")

    model_dir = options.output_dir / "model"
    trainer.save_model(model_dir)
    PointCloudProcessor(num_points=splits["test"].features["points"].shape[0]).save_pretrained(model_dir)
    stored = sum(file.stat().st_size for file in model_dir.iterdir())
    classify = pipeline("point-cloud-classification", model=str(model_dir))
    picture = draw(splits["test"], classify, names, options.output_dir / "shapes.png")
    print(f'Files in {DATA.relative_to(HERE.parent)}, by pipeline("point-cloud-classification"):')
    print(classify_files(classify))
    print(
        f"\nMade: a point cloud classifier of {stored / 1e6:.1f} MB in {model_dir} (its encoder stays where it came "
        f"from) and a picture in {picture}. Try next: hf-any3d predict examples/data/chair.ply --model {model_dir}, a "
        "mesh of your own, or examples/run_point_cloud_classification.py with another encoder."
    )


if __name__ == "__main__":
    main()
