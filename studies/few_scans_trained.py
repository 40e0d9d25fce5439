"""Trained models on draws of few scans, for `few_scans.py`: the searched recipe, and PointNet++ of either size."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Array2D, ClassLabel, Dataset, Features, Value
from peft import PeftModel
from torch import nn
from transformers import set_seed

from examples import quickstart
from hf_any3d import PointNet2Config, PointNet2ForPointCloudClassification
from studies.few_scans_draws import CLASSES_OF_A_DRAW, SETS, Shapes, draw
from studies.few_scans_report import calibration_error
from studies.runs import kept_run, stopwatch


def pointnet2(size: str) -> Callable[[list[str]], nn.Module]:
    """Return a builder of PointNet++, small or of the published size."""

    def build(names: list[str]) -> nn.Module:
        set_seed(0)
        settings = quickstart.label_names(names)
        config = PointNet2Config.published_sizes(**settings) if size == "published" else PointNet2Config(**settings)
        return PointNet2ForPointCloudClassification(config)

    return build


TRAINED: dict[str, Callable[[list[str]], nn.Module]] = {
    "recipe": lambda names: quickstart.add_adapter(quickstart.build_wrapper(0, names), 0),
    "pointnet2": pointnet2("small"),
    "pointnet2-published": pointnet2("published"),
}
"""Trained model -> its builder."""
EPOCHS = {"pointnet2-published": 30}
"""Epochs of a trained model that has not those of the recipe: as many as fit into the minutes of the plan."""


def train_one(name: str, shapes: Shapes, shots: int, number: int, folder: Path) -> dict[str, Any]:
    """Train on a draw with the quickstart's settings, and evaluate; a wrap is saved in `folder`."""
    division = draw(shapes, shots, number)
    train = rows_of(shapes, division.train, division.labels)
    test = rows_of(shapes, division.test, division.test_labels)
    model = TRAINED[name](train.features["label"].names)
    batch = min(16, len(train))
    changes = {"num_train_epochs": EPOCHS[name]} if name in EPOCHS else {}
    arguments = quickstart.training_arguments(
        folder, 0, disable_tqdm=True, per_device_train_batch_size=batch, logging_strategy="no", **changes
    )
    trainer = quickstart.build_trainer(model, arguments, train)
    with stopwatch() as spent:
        trainer.train()
    if isinstance(model, PeftModel):
        # `few_scans_together.py` opens it again.
        trainer.save_model(folder)
    trainer.args.dataloader_drop_last = False
    logits = trainer.predict(quickstart.plain_rows(test)).predictions
    probabilities = torch.from_numpy(logits).softmax(-1).numpy()
    return {
        "accuracy": float((probabilities.argmax(axis=1) == division.test_labels).mean()),
        "calibration_error": calibration_error(probabilities, division.test_labels),
        "train_rows": len(train),
        "test_rows": len(test),
        **spent,
    }


def rows_of(shapes: Shapes, index: np.ndarray, labels: np.ndarray) -> Dataset:
    """Return rows for training."""
    features = Features(
        points=Array2D(shapes.points.shape[1:], "float32"),
        label=ClassLabel(names=[f"class {number}" for number in range(CLASSES_OF_A_DRAW)]),
        group=Value("int32"),
    )
    columns = {"points": shapes.points[index], "label": labels.tolist(), "group": shapes.groups[index].tolist()}
    return Dataset.from_dict(columns, features=features).with_format("numpy")


def trained_run(name: str, set_name: str, shots: int, number: int, folder: Path) -> dict[str, Any]:
    """Train and evaluate a model on a draw; what was stored is not repeated."""
    about = {"set": set_name, "arm": name, "head": "trained", "copies": 1, "shots": shots, "draw": number}
    path = folder / "trained" / f"{set_name}-{name}-{shots}-{number}.json"
    path.parent.mkdir(parents=True, exist_ok=True)

    def train() -> dict[str, Any]:
        found = train_one(name, SETS[set_name](), shots, number, path.with_suffix(""))
        print(about, found, flush=True)
        return {**about, **found}

    return kept_run(path, about, train)


def trained_runs(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Train what is asked for, and yield all trained runs that are stored."""
    for name, set_name, number, shots in product(options.trained, options.sets, options.draws, options.shots):
        trained_run(name, set_name, shots, number, options.output_dir)
    for path in sorted((options.output_dir / "trained").glob("*.json")):
        if not path.name.startswith("choice"):
            yield {key: value for key, value in json.loads(path.read_text()).items() if key != "settings"}
