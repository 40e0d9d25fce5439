"""Train the classifier that comes with the package: what `pipeline("point-cloud-classification")` opens without a name.

    python -m examples.train_default_model                      # train, save, evaluate once on the test shapes
    python -m examples.train_default_model --choose act_small   # train on three quarters, evaluate on the fourth

Settings are compared on a validation part of the training shapes with --choose. The example files and their
near-duplicates are in neither part.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from torch import nn
from transformers import Trainer, set_seed

from examples import quickstart
from hf_any3d import (
    ActConfig,
    ActForPointCloudClassification,
    Any2PointForPointCloudClassification,
    load_point_dataset,
)
from hf_any3d.data import AugmentedDataset, PointCloudCollator, build_transform, validation_split
from hf_any3d.evaluation.classification import compute_classification_metrics
from hf_any3d.model_card.run_report import count_parameters

ACT: dict[str, Any] = {
    "num_groups": 64,
    "group_size": 32,
    "patch_widths": [32, 64, 128],
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "pooling": ["cls", "max"],
    "head_widths": [128],
    "head_dropout": 0.3,
    "drop_path_rate": 0.1,
}
ANY_HEADING = {**quickstart.AUGMENTATION, "rotate": {"axis": "y"}}
SOME_HEADING = {**quickstart.AUGMENTATION, "rotate": {"axis": "y", "limit": 0.5}}
CANDIDATES: dict[str, dict[str, Any]] = {
    "wrap": {"wrap": {"num_layers": 1}, "training": {"num_train_epochs": 40}},
    "act_small": {"act": {}, "training": {"num_train_epochs": 80, "learning_rate": 1e-3}},
    "act_any_heading": {
        "act": {},
        "augmentation": ANY_HEADING,
        "training": {"num_train_epochs": 80, "learning_rate": 1e-3},
    },
    "wrap_some_heading": {
        "wrap": {"num_layers": 1},
        "augmentation": SOME_HEADING,
        "training": {"num_train_epochs": 40},
    },
}


def build_model(candidate: dict[str, Any], names: list[str], seed: int) -> nn.Module:
    """Build an untrained model with its adapter, if it has one."""
    if "act" in candidate:
        set_seed(seed)
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        return ActForPointCloudClassification(ActConfig(**{**ACT, **candidate["act"]}, **labels))
    model = quickstart.build_wrapper(seed, names, **candidate["wrap"])
    assert isinstance(model, Any2PointForPointCloudClassification)
    return quickstart.add_adapter(model, seed)


def train(candidate: dict[str, Any], model: nn.Module, rows: Dataset, options: argparse.Namespace) -> Trainer:
    arguments = quickstart.training_arguments(
        options.output_dir / "trainer", options.seed, max_steps=options.max_steps, **candidate["training"]
    )
    transform = build_transform(candidate.get("augmentation", quickstart.AUGMENTATION))
    trainer = Trainer(
        model,
        arguments,
        train_dataset=AugmentedDataset(rows, transform),
        data_collator=PointCloudCollator(),
        compute_metrics=compute_classification_metrics,
        compute_loss_func=quickstart.smoothed_loss,
    )
    trainer.train()
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--choose", choices=CANDIDATES)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/default_model"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, default=-1)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    splits = load_point_dataset("shapes")
    rows = quickstart.without_files(splits["train"])
    names = rows.features["label"].names
    parts = validation_split(rows, 0.25, seed=0, group_column="group")
    candidate = CANDIDATES[options.choose]
    model = build_model(candidate, names, options.seed)
    start = time.process_time()
    wall = time.perf_counter()
    trainer = train(candidate, model, parts["train"], options)
    metrics = quickstart.evaluate(trainer, parts["validation"])
    generator = np.random.default_rng(0)
    turn = build_transform({"rotate": {"axis": "y"}})
    points = np.stack([turn(row["points"], generator) for row in quickstart.plain_rows(parts["validation"])])
    labels = np.asarray(parts["validation"]["label"])
    with torch.no_grad():
        logits = trainer.model.eval()(points=torch.from_numpy(points)).logits
    print(
        options.choose, len(parts["train"]), len(labels), count_parameters(model), metrics,
        "turned", float((logits.argmax(-1).numpy() == labels).mean()),
        "cpu", time.process_time() - start, "wall", time.perf_counter() - wall, flush=True,
    )
    torch.save(trainer.model.state_dict(), options.output_dir / f"{options.choose}.pt")


if __name__ == "__main__":
    main()
