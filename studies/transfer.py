"""Does a frozen pretrained text encoder help with 3D shapes? Cross-validation with paired tests, on two sets.

    python -m studies.transfer
    python -m studies.transfer --report
    python -m studies.transfer --parts main-embedded --seeds 0 1

**The main comparison, fixed before its first run.** The same model, an Any2Point model around two transformer
layers, is trained for 30 epochs around MiniLM's pretrained layers and around the same layers with random weights, on
two sets:

- `embedded`: all 574 embedded shapes (training and test split together) in five folds. Near-duplicates (column
  `group`) are in one fold. Seeds 0 to 4.
- `generated`: 4,800 generated shapes (see `generated_shapes`), 100 of each of 48 classes, in five folds; training on
  20 shapes a class drawn from the other four folds by the seed and the fold. Seeds 0 to 2.

The effect on a set is the difference of accuracy, pretrained minus random, over all its shapes and seeds; each shape
is tested once per seed. Its 95 % interval comes from the variance between groups of shapes and between runs
(`transfer_report.interval`). Pretraining helps (or harms) on a set if the interval excludes zero. Second readings,
which decide nothing: a bootstrap of folds, seeds and groups, McNemar's exact test on the majority vote of the seeds,
the difference of the test cross-entropy. No interim result stops the study or changes a setting.

All arms have the data, augmentation, schedule and loss that `results/learning.md` describes; they were chosen there on
a validation part of 115 embedded shapes with the pretrained encoder. `SETTINGS` keeps them as they were. The
difficulty of the generated set was chosen with PointNet and a linear probe of random features (`results/transfer.md`).

Every run is stored when it ends and is not repeated, so the study can be stopped at any time; it continues where it
was. The main comparison comes first, seed by seed, fold by fold and all arms of a fold one after the other, so that an
unfinished study is balanced.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset, concatenate_datasets
from peft import get_peft_model
from torch import nn
from tqdm.auto import tqdm
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from hf_any3d import (
    ActConfig,
    ActForPointCloudClassification,
    Any2PointForPointCloudClassification,
    GuidedAdapterConfig,
    PointNet2Config,
    PointNet2ForPointCloudClassification,
    PointNetConfig,
    PointNetForPointCloudClassification,
    load_point_dataset,
)
from hf_any3d.data import AugmentedDataset, PointCloudCollator, build_transform
from hf_any3d.evaluation.classification import compute_classification_metrics
from hf_any3d.model_card.run_report import count_parameters
from hf_any3d.utils.atomic_files import claim
from studies import earlier_recipe, transfer_report
from studies.generated_shapes import DAMAGED, generate
from studies.learning import tokenizer_alone
from studies.runs import kept_run, runs_parser, stopwatch, use_threads
from studies.tables import read_table
from studies.transfer_report import Cell

_MODEL = dict(earlier_recipe.MODEL)
del _MODEL["num_layers"]  # that of the run
RANDOM = {"tokenizer_weights": _MODEL.pop("tokenizer_weights")}
"""Not among the settings, because stored runs are older than it."""

SETTINGS: dict[str, Any] = {
    "encoder": earlier_recipe.ENCODER,
    "model": _MODEL,
    "adapter": earlier_recipe.ADAPTER,
    "from_scratch": {
        "pointnet": {"hidden_sizes": [64, 128, 256], "head_widths": [128], "head_dropout": 0.3},
        "pointnet2": {
            "num_centers": [128, 32],
            "radii": [0.2, 0.4],
            "num_neighbors": [16, 16],
            "level_widths": [[32, 32, 64], [64, 64, 128]],
            "hidden_sizes": [128, 256],
            "head_widths": [128],
            "head_dropout": 0.3,
        },
        "transformer": {
            "hidden_size": 192,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_groups": 32,
            "group_size": 32,
        },
    },
    "augmentation": {
        "shuffle": {},
        "scale": {"low": 0.67, "high": 1.5, "per_axis": True},
        "shift": {"limit": 0.1},
        "jitter": {},
    },
    "training": {
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64,
        "learning_rate": 2e-3,
        "weight_decay": 0.05,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "max_grad_norm": 5.0,
        "dataloader_drop_last": True,
    },
    "label_smoothing": 0.1,
    "points": 1024,
    "folds": 5,
    "fold_seed": 0,
    "generated": {"per_class": 100, "seed": 0},
}
"""Everything that affects a result, apart from what a `Run` names."""


@dataclass(frozen=True)
class Run:
    """A model to train and to test on a fold.

    Args:
        data: Name of the set.
        arm: Name of the model.
        layers: Layers of the encoder; 0 for models without one.
        epochs: Training epochs; 0 for linear probes.
        shots: Training shapes of each class; None takes all.
        seed: Seed of initial weights, order of rows, augmentation, dropout and drawn training shapes.
        fold: Number of the fold that is tested.
    """

    data: str
    arm: str
    layers: int
    epochs: int
    shots: int | None
    seed: int
    fold: int

    @property
    def path(self) -> str:
        """Name of the run in the table, and of its file below the folder of runs."""
        shots = "all" if self.shots is None else self.shots
        return f"{self.data}/{self.arm}-{self.layers}-{self.epochs}-{shots}/{self.seed}-{self.fold}.json"


# Models. Each builder takes the seed, the names of the classes and the number of layers.


def labels_of(names: Sequence[str]) -> dict[str, dict]:
    """Return the settings of a config that name the classes."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def build_base(
    seed: int, names: Sequence[str], layers: int, weights: str = "pretrained"
) -> Any2PointForPointCloudClassification:
    """Build the model around the encoder with its pretrained or other weights, without adapters."""
    set_seed(seed)
    return Any2PointForPointCloudClassification.from_encoder_pretrained(
        SETTINGS["encoder"],
        **labels_of(names),
        **SETTINGS["model"],
        **RANDOM,
        num_layers=layers,
        encoder_weights=weights,
    )


def build_wrap(seed: int, names: Sequence[str], layers: int, weights: str = "pretrained") -> nn.Module:
    """Build the model of `build_base` with adapters."""
    model = build_base(seed, names, layers, weights)
    set_seed(seed)
    return get_peft_model(model, GuidedAdapterConfig(**SETTINGS["adapter"]))


def build_tokenizer(seed: int, names: Sequence[str], layers: int) -> nn.Module:
    """Build the model's tokenizer with a head of the same shape."""
    return tokenizer_alone(build_base(seed, names, 1))


def build_from_scratch(seed: int, names: Sequence[str], layers: int, name: str) -> nn.Module:
    """Build a model of points with random weights, by its name in the settings."""
    kinds = {
        "pointnet": (PointNetConfig, PointNetForPointCloudClassification),
        "pointnet2": (PointNet2Config, PointNet2ForPointCloudClassification),
        "transformer": (ActConfig, ActForPointCloudClassification),
    }
    config_class, model_class = kinds[name]
    set_seed(seed)
    return model_class(config_class(**SETTINGS["from_scratch"][name], **labels_of(names)))


ARMS: dict[str, tuple[str, Callable[[int, Sequence[str], int], nn.Module]]] = {
    "pretrained": ("wrap, pretrained encoder", build_wrap),
    "random": ("wrap, random encoder", partial(build_wrap, weights="random")),
    "shuffled": ("wrap, shuffled pretrained encoder", partial(build_wrap, weights="shuffled")),
    "tokenizer": ("tokenizer and head, no encoder", build_tokenizer),
    "transformer": ("point transformer from scratch", partial(build_from_scratch, name="transformer")),
    "pointnet2": ("PointNet++ from scratch", partial(build_from_scratch, name="pointnet2")),
    "pointnet": ("PointNet from scratch", partial(build_from_scratch, name="pointnet")),
}
"""Title and builder of each trained model."""
PROBES = {f"probe-{name}": f"linear probe, {ARMS[name][0]}" for name in ("pretrained", "random", "shuffled")}
"""Linear probes of the wraps before any training."""
TITLES = {name: title for name, (title, _) in ARMS.items()} | PROBES


# What is run, in this order.


def runs_of(
    data: str, arms: Sequence[str], layers: int = 2, epochs: int = 30, shots: int | None = None, seeds: int = 3
) -> list[Run]:
    """List runs seed by seed and fold by fold, the arms of a fold one after the other."""
    found = []
    for seed in range(seeds):
        for fold in range(SETTINGS["folds"]):
            for arm in arms:
                own_layers = layers if arm in ("pretrained", "random", "shuffled", *PROBES) else 0
                own_epochs = 0 if arm in PROBES else epochs
                found.append(Run(data, arm, own_layers, own_epochs, shots, seed, fold))
    return found


BOTH, OTHERS = ("pretrained", "random"), ("pointnet", "pointnet2", "tokenizer", "transformer", "shuffled", *PROBES)
PARTS: dict[str, list[Run]] = {
    "main-embedded": runs_of("embedded", BOTH, seeds=5),
    "main-generated": runs_of("generated", BOTH, shots=20),
    "others-embedded": runs_of("embedded", OTHERS),
    "others-generated": runs_of("generated", OTHERS, shots=20),
    "short-embedded": runs_of("embedded", ("pretrained", "random", "tokenizer", "pointnet", "shuffled"), epochs=8),
    "five-embedded": runs_of("embedded", ("pretrained", "random", "tokenizer", "pointnet"), shots=5),
    "twenty-embedded": runs_of("embedded", ("pretrained", "random", "tokenizer", "pointnet"), shots=20),
    "five-generated": runs_of("generated", ("pretrained", "random", "tokenizer", "pointnet", "shuffled"), shots=5),
    "short-generated": runs_of("generated", (*BOTH, "shuffled"), epochs=8, shots=20),
    "four-embedded": runs_of("embedded", BOTH, layers=4),
    "six-embedded": runs_of("embedded", BOTH, layers=6),
    "long-embedded": runs_of("embedded", ("pretrained", "random", "tokenizer", "pointnet", "pointnet2"), epochs=100),
    "four-generated": runs_of("generated", BOTH, layers=4, shots=20, seeds=1),
    "six-generated": runs_of("generated", BOTH, layers=6, shots=20, seeds=1),
    "all-generated": runs_of("generated", ("pretrained", "random", "tokenizer", "pointnet"), seeds=1),
    "long-generated": runs_of("generated", BOTH, epochs=100, shots=20, seeds=1),
}
"""Parts of the study -> their runs."""
MAIN = ("main-embedded", "main-generated")
"""Parts of the main comparison."""


# Data.


@cache
def load_set(name: str) -> Dataset:
    """Load the shapes of a set: columns `points`, `label` and `group`."""
    if name == "embedded":
        splits = load_point_dataset("shapes")
        return concatenate_datasets([splits[split].select_columns(["points", "label", "group"]) for split in splits])
    return generate(num_points=SETTINGS["points"], **SETTINGS["generated"])


def folds_of(labels: np.ndarray, groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Distribute shapes over folds, each class evenly and each group into one fold.

    Groups come in random order, large ones first; each goes to the fold that has the fewest shapes of its class so
    far, of several such to the smallest fold. A group of several classes counts as its first shape's.

    Args:
        labels: `(shapes,)` class numbers.
        groups: `(shapes,)` numbers of groups.
        count: Number of folds.
        seed: Seed of the order.

    Returns:
        `(shapes,)` numbers of folds.
    """
    _, first, member, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(first))
    order = order[np.argsort(-sizes[order], kind="stable")]
    filled, fold = np.zeros((labels.max() + 1, count), int), np.empty(len(first), int)
    for group in order:
        of_class = filled[labels[first[group]]]
        fold[group] = np.lexsort((filled.sum(axis=0), of_class))[0]
        of_class[fold[group]] += sizes[group]
    return fold[member]


def rows_of(run: Run, labels: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the training shapes and of the test shapes of a run."""
    test, train = np.flatnonzero(folds == run.fold), np.flatnonzero(folds != run.fold)
    if run.shots is None:
        return train, test
    # The same shapes for each arm.
    order = np.random.default_rng([run.seed, run.fold]).permutation(train)
    kept = [order[labels[order] == label][: run.shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(kept)), test


# Runs.


def smoothed_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Compute cross-entropy with label smoothing."""
    return nn.functional.cross_entropy(outputs.logits, labels, label_smoothing=SETTINGS["label_smoothing"])


def train(model: nn.Module, run: Run, rows: Dataset, folder: Path, **changes: Any) -> Trainer:
    """Train a model on rows with `points` and `label`."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        seed=run.seed,
        num_train_epochs=run.epochs,
        save_strategy="no",
        logging_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        label_names=["labels"],
        **{**SETTINGS["training"], **changes},
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=AugmentedDataset(rows, build_transform(SETTINGS["augmentation"])),
        data_collator=PointCloudCollator(),
        compute_metrics=compute_classification_metrics,
        compute_loss_func=smoothed_loss,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def score(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Compute what is stored of a test: the figures, and for each shape the answer and the loss.

    Args:
        logits: `(shapes, classes)`.
        labels: `(shapes,)`.
    """
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    answers = logits.argmax(axis=1)
    right = answers == labels
    return {
        "accuracy": float(right.mean()),
        "mean_class_accuracy": float(np.mean([right[labels == label].mean() for label in np.unique(labels)])),
        "loss": float(losses.mean()),
        "predictions": answers.tolist(),
        "losses": [round(loss, 4) for loss in losses.tolist()],
    }


@torch.no_grad()
def probe(run: Run, names: Sequence[str], train_rows: Dataset, test_rows: Dataset) -> np.ndarray:
    """Fit a logistic regression on features of an untrained wrap; returns test logits `(shapes, classes)`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = ARMS[run.arm.removeprefix("probe-")][1](run.seed, names, run.layers)
    body = model.get_base_model().any2point

    def features(rows: Dataset) -> np.ndarray:
        batches = torch.from_numpy(np.stack(rows["points"][:])).split(64)
        return torch.cat([body(batch).pooler_output for batch in batches]).numpy()

    # Statistics of the tokenizer's norms are those of the training shapes, not those it starts with.
    for norm in body.modules():
        if isinstance(norm, nn.BatchNorm1d):
            norm.momentum = None
    model.train()
    features(train_rows)
    model.eval()
    machine = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    machine.fit(features(train_rows), train_rows["label"][:])
    return machine.decision_function(features(test_rows))


def run_once(run: Run, folder: Path) -> dict[str, Any]:
    """Train a model and test it on its fold."""
    rows = load_set(run.data)
    labels, groups = np.asarray(rows["label"][:]), np.asarray(rows["group"][:])
    names = rows.features["label"].names
    folds = folds_of(labels, groups, SETTINGS["folds"], SETTINGS["fold_seed"])
    trained, tested = rows_of(run, labels, folds)
    plain = rows.select_columns(["points", "label"]).with_format("numpy")
    with stopwatch() as spent:
        if run.arm in PROBES:
            logits, losses, parameters = probe(run, names, plain.select(trained), plain.select(tested)), [], 0
        else:
            model = ARMS[run.arm][1](run.seed, names, run.layers)
            parameters = count_parameters(model)[0]
            trainer = train(model, run, plain.select(trained), folder / "trainer")
            losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
            # Training drops an incomplete last batch; here that would leave shapes out.
            trainer.args.dataloader_drop_last = False
            logits = trainer.predict(plain.select(tested)).predictions
    return {
        **score(logits, labels[tested]),
        "rows": tested.tolist(),
        "labels": labels[tested].tolist(),
        "groups": groups[tested].tolist(),
        "train_rows": len(trained),
        "train_losses": losses,
        "trained_parameters": parameters,
        **spent,
    }


def settings_of(run: Run) -> dict[str, Any]:
    """Collect everything that affects the result of a run, as JSON reads it back."""
    settings = {"run": asdict(run), **SETTINGS, "damage": asdict(DAMAGED)}
    if run.data != "generated":
        del settings["generated"], settings["damage"]
    settings["from_scratch"] = SETTINGS["from_scratch"].get(run.arm)
    return json.loads(json.dumps(settings))


def run_all(runs: Sequence[Run], folder: Path) -> None:
    """Do the runs that are not stored yet."""
    with claim(folder / ".lock", folder):
        stored_before = stored_runs(runs, folder)
        for run in (bar := tqdm([run for run in runs if run not in stored_before], desc="runs")):
            bar.set_postfix_str(run.path)
            stored = kept_run(folder / "runs" / run.path, settings_of(run), partial(run_once, run, folder))
            tqdm.write(f"{run.path}: {100 * stored['accuracy']:.1f} % in {stored['cpu_seconds']:.0f} CPU s")


def cell_of(run: Run) -> Cell:
    """Return the cell of the report that a run belongs to."""
    return Cell(run.data, run.arm, run.layers, run.epochs, run.shots)


def stored_runs(runs: Iterable[Run], folder: Path) -> dict[Run, dict[str, Any]]:
    """Read the results of runs that are stored with today's settings: in files of their own, or in the table."""
    table = folder / "transfer.parquet"
    in_table = {run["run"]: run for run in read_table(table)["runs"]} if table.is_file() else {}
    found = {}
    for run in runs:
        path = folder / "runs" / run.path
        stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else in_table.get(run.path, {})
        if stored.get("settings") == settings_of(run):
            found[run] = {"run": run.path, **stored}
    return found


def write_report(folder: Path) -> dict[str, Any]:
    """Write tables and plot of the stored runs of the full study."""
    planned: dict[Cell, set[tuple[int, int]]] = {}
    results: dict[Cell, dict[tuple[int, int], dict[str, Any]]] = {}
    runs = list(dict.fromkeys(run for part in PARTS.values() for run in part))
    stored = stored_runs(runs, folder)
    for run in runs:
        cell = cell_of(run)
        planned.setdefault(cell, set()).add((run.seed, run.fold))
        if run in stored:
            results.setdefault(cell, {})[run.seed, run.fold] = stored[run]
    main = list(dict.fromkeys(cell_of(run) for name in MAIN for run in PARTS[name]))
    return transfer_report.write(folder, {cell: len(runs) for cell, runs in planned.items()}, results, main, TITLES)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = runs_parser(__doc__ or "", "outputs/transfer", TITLES)
    parser.set_defaults(seeds=None)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="what to run")
    parser.add_argument("--report", action="store_true", help="run nothing; write the table of what is stored")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the study; write and print its report."""
    options = parse(arguments)
    use_threads(options.threads)
    transformers.logging.set_verbosity_error()
    runs = [run for part in options.parts for run in PARTS[part] if run.arm in options.arms]
    if options.seeds is not None:
        runs = [run for run in runs if run.seed in options.seeds]
    if not options.report:
        run_all(runs, options.output_dir)
    write_report(options.output_dir)


if __name__ == "__main__":
    main()
