"""Train a frozen text transformer on real 3D shapes in minutes, then classify mesh files.

    make quickstart

That shows the answers of the model that comes with the package, then runs this program. It trains an Any2Point model
around a pretrained, frozen sentence encoder on the shapes in examples/data, and shows from time to time what the model
says about a chair by then. After the training it tries the test split, draws predictions, and classifies the six mesh
files in that folder. These files and their near-duplicates are left out of training; the folding stool, a chair
without a back, is the hard one. `--compare` first trains a small PointNet from scratch on the same shapes.

The settings were chosen on validation parts of the training split, never on the test split, see
studies/results/recipe.md. The recipe has 60 epochs with all tokens; this program takes EPOCHS with FEW_TOKENS.
"""

from __future__ import annotations

import os

# torch reads this when it is loaded: idle threads sleep, and leave processors to the programs beside this one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset, DatasetDict
from peft import PeftModel, get_peft_model
from torch import nn
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments, pipeline, set_seed
from transformers.modeling_outputs import SequenceClassifierOutput

import hf_any3d
from hf_any3d import (
    Any2PointForPointCloudClassification,
    GuidedAdapterConfig,
    PointCloudProcessor,
    PointNetConfig,
    PointNetForPointCloudClassification,
    load_point_dataset,
)
from hf_any3d.data import AugmentedDataset, PointCloudCollator
from hf_any3d.data.inputs import ATTRIBUTES, count_channels
from hf_any3d.data.point_arrays import stack_channels
from hf_any3d.evaluation.classification import compute_classification_metrics
from hf_any3d.model_card.run_report import count_parameters
from hf_any3d.modeling.any2point.small_data_defaults import LIGHT_ADAPTER
from hf_any3d.training.recipes import read_settings
from hf_any3d.training.rows import training_transform
from hf_any3d.training.schedules import FewTokensFirst
from hf_any3d.visualization.figures import plot_point_clouds

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
FILES = {
    "chair.ply": ("blendswap-cc-0/chair2", "chair"),
    "table.ply": ("blendswap-cc-0/table", "table"),
    "sofa.ply": ("blendswap-cc-0/couch2", "sofa"),
    "shelves.ply": ("blendswap-cc-0/shelves", "storage"),
    "lamp.ply": ("blendswap-cc-0/desklamp", "lamp"),
    "stool.ply": ("blendswap-cc-0/foldingChair", "chair"),
}
"""Files to classify: their rows in the embedded shapes, and their classes. The folding stool is the hard one."""

RECIPE = read_settings(HERE / "recipes" / "quickstart.yaml")
"""The settings of this program, as arguments of `run_point_cloud_classification.py`."""

ENCODER: str = RECIPE["encoder_name_or_path"]


FEATURES: list[str] = RECIPE.get("features", ["xyz"])
"""Channels of a point, as `PointCloudProcessor` takes them."""

MODEL: dict[str, Any] = {"num_layers": RECIPE["num_layers"]}
"""For `from_encoder_pretrained`, which fills in the other settings (`small_data_defaults.LIGHT`)."""

POINTS_ALONE = ("xyz",)

POINTNET: dict[str, Any] = {"hidden_sizes": [64, 128, 256], "head_widths": [128], "head_dropout": 0.3}
"""For `PointNetConfig`."""

ADAPTER: dict[str, Any] = dict(LIGHT_ADAPTER)
"""For `GuidedAdapterConfig`, as `GuidedAdapterConfig.light` fills them in."""

EPOCHS = 27
"""Epochs by default, for a training of minutes; the recipe has more."""

FEW_TOKENS: dict[int, float] = {32: 1}
"""Tokens of a cloud in training and their share of the steps, for `FewTokensFirst`; answers are of all tokens."""

AUGMENTATION: list[str] = RECIPE["augment"]
"""For `build_transform`."""

TRAINING: dict[str, Any] = {
    name: RECIPE[name]
    for name in (
        "num_train_epochs",
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "learning_rate",
        "weight_decay",
        "lr_scheduler_type",
        "warmup_steps",
        "max_grad_norm",
        "dataloader_drop_last",
    )
}
"""For `TrainingArguments`, the same for every model."""

LABEL_SMOOTHING: float = RECIPE["label_smoothing_factor"]

VOTES: int = RECIPE["voting"]
"""Copies of each test shape whose logits are averaged."""

VOTE_AUGMENTATION: list[str] = RECIPE["vote_augment"]
"""Transforms of these copies."""


def build_model(seed: int, names: list[str]) -> PeftModel:
    """Build a frozen pretrained encoder with a new tokenizer, guided adapters and head around it.

    Args:
        seed: Seed of all random weights.
        names: Names of the classes, in the order of their numbers.
    """
    return add_adapter(build_wrapper(seed, names, features=FEATURES), seed)


def build_wrapper(
    seed: int,
    names: list[str],
    encoder: str | os.PathLike | None = None,
    features: Sequence[str] = POINTS_ALONE,
    **changes: Any,
) -> Any2PointForPointCloudClassification:
    """Build the model of `build_model` without its adapters.

    Args:
        seed: See `build_model`.
        names: See `build_model`.
        encoder: Hub name or directory of another encoder than `ENCODER`.
        features: Channels of a point, see `FEATURES`.
        **changes: Changes of `MODEL`, or further settings of `Any2PointConfig`.
    """
    set_seed(seed)
    settings = {**MODEL, "in_channels": count_channels(features), **changes}
    return Any2PointForPointCloudClassification.from_encoder_pretrained(
        encoder or ENCODER, **label_names(names), **settings
    )


def label_names(names: list[str]) -> dict[str, dict]:
    """Return the settings of a configuration that name the classes."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def add_adapter(model: Any2PointForPointCloudClassification, seed: int, **changes: Any) -> PeftModel:
    """Add guided adapters with the settings of `ADAPTER`, some of them changed."""
    set_seed(seed)
    return get_peft_model(model, GuidedAdapterConfig(**{**ADAPTER, **changes}))


def build_pointnet(
    seed: int, names: list[str], features: Sequence[str] = POINTS_ALONE
) -> PointNetForPointCloudClassification:
    """Build the baseline with weights drawn by `seed`, a small PointNet.

    Args:
        seed: Seed of all random weights.
        names: See `build_model`.
        features: Channels of a point, see `FEATURES`.
    """
    set_seed(seed)
    sizes = {"in_channels": count_channels(features), **POINTNET}
    return PointNetForPointCloudClassification(PointNetConfig(**label_names(names), **sizes))


def training_arguments(output_dir: str | os.PathLike, seed: int, **changes: Any) -> TrainingArguments:
    """Build the arguments of a run that saves and reports nothing on the way.

    Args:
        output_dir: Where `Trainer` may write.
        seed: Seed of row order, augmentation and dropout.
        **changes: Changed settings, by their names in `TrainingArguments`.
    """
    quiet = {
        "save_strategy": "no",
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_strategy": "epoch",
        "report_to": "none",
        "remove_unused_columns": False,
    }
    settings = {**TRAINING, **quiet, "label_names": ["labels"], **changes}
    return TrainingArguments(output_dir=os.fspath(output_dir), seed=seed, **settings)


def build_trainer(
    model: nn.Module,
    arguments: TrainingArguments,
    train: Dataset,
    augmentation: Sequence[str] = AUGMENTATION,
    features: Sequence[str] = POINTS_ALONE,
) -> Trainer:
    """Build a stock `Trainer` that augments the training rows and computes accuracy and mean class accuracy.

    Args:
        model: Any point cloud classifier.
        arguments: See `training_arguments`.
        train: Training rows with `points`, the columns of the features, and `label`.
        augmentation: Transforms of the training rows, as `build_transform` takes them.
        features: Channels of a point, see `FEATURES`.
    """
    return Trainer(
        model,
        arguments,
        train_dataset=augmented_rows(train, augmentation, features),
        data_collator=PointCloudCollator(extra_columns=columns_of(features)),
        compute_metrics=compute_classification_metrics,
        compute_loss_func=smoothed_loss,
    )


def columns_of(features: Sequence[str]) -> list[str]:
    """Return the dataset's columns of the features other than the points."""
    return [ATTRIBUTES[name] for name in features[1:]]


def augmented_rows(rows: Dataset, augmentation: Sequence[str], features: Sequence[str]) -> AugmentedDataset:
    """Augment rows; normals among the features are scaled and turned with the points."""
    transform = training_transform(PointCloudProcessor(features=features), augmentation)
    assert transform is not None
    return AugmentedDataset(rows, transform, columns_of(features))


def smoothed_loss(
    outputs: SequenceClassifierOutput,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    smoothing: float = LABEL_SMOOTHING,
) -> torch.Tensor:
    """Compute cross-entropy with label smoothing; `Trainer`'s own smoothing needs a model with a config.

    Args:
        outputs: Outputs of a classifier.
        labels: `(batch,)` class numbers.
        num_items_in_batch: Rows of the complete optimization step, where it has several batches.
        smoothing: Share of the target that all classes get equally.
    """
    total = nn.functional.cross_entropy(outputs.logits, labels, label_smoothing=smoothing, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


class TimeEstimate(TrainerCallback):
    """Say after the first steps how long a training will take."""

    first, last = 2, 7
    """Steps between which is measured; the first ones also load libraries."""

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure; print once."""
        if state.global_step == self.first:
            self.start = time.perf_counter()
        elif state.global_step == self.last:
            seconds = (time.perf_counter() - self.start) / (self.last - self.first)
            rest = (state.max_steps - self.last) * seconds
            about = f"{rest / 60:.0f} minutes" if rest >= 90 else f"{max(1, rest):.0f} seconds"
            tqdm.write(f"{state.max_steps} steps of {seconds:.2f} s: about {about} to go")


class Answers(TrainerCallback):
    """Print the answers of a model about one of `FILES` during training.

    Args:
        model: The model in training, whose weights each answer uses.
        file: One of `FILES`.
        times: How many answers there are, evenly spaced.
    """

    def __init__(self, model: nn.Module, file: str = "chair.ply", times: int = 6):
        self.file, self.times = file, times
        processor = PointCloudProcessor(features=FEATURES)
        self.classify = pipeline("point-cloud-classification", model=model, feature_extractor=processor)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Answer if another part of the training is done."""
        if state.global_step % max(1, state.max_steps // self.times):
            return
        self.classify.model.eval()  # the next step trains again
        ((best, second),) = self.classify([str(DATA / self.file)], top_k=2)
        texts = [f"{answer['label']} {100 * answer['score']:.0f} %" for answer in (best, second)]
        tqdm.write(f"epoch {state.epoch:.0f}: {self.file} is a {texts[0]}, then {texts[1]}")


def evaluate(trainer: Trainer, rows: Dataset, features: Sequence[str] = POINTS_ALONE) -> dict[str, float]:
    """Compute accuracy, mean class accuracy and loss on all rows of a split."""
    # Training drops an incomplete last batch; here that would leave rows out of the metrics.
    trainer.args.dataloader_drop_last = False
    return trainer.predict(plain_rows(rows, features), metric_key_prefix="eval").metrics


def vote(
    trainer: Trainer, rows: Dataset, seed: int, votes: int | None = None, features: Sequence[str] = POINTS_ALONE
) -> np.ndarray:
    """Compute the mean logits `(rows, classes)` of augmented copies of all rows of a split.

    Args:
        trainer: Holds the model.
        rows: Rows with `points`, the columns of the features, and `label`.
        seed: Seed of the copies.
        votes: Number of copies; None for `VOTES`.
        features: Channels of a point, see `FEATURES`.
    """
    trainer.args.dataloader_drop_last = False
    copies = augmented_rows(rows, VOTE_AUGMENTATION, features)
    torch.manual_seed(seed)
    return np.mean([trainer.predict(copies).predictions for _ in range(votes or VOTES)], axis=0)


def plain_rows(rows: Dataset, features: Sequence[str] = POINTS_ALONE) -> Dataset:
    """Return rows for evaluation: points, the columns of the features, and label, without augmentation."""
    return rows.select_columns(["points", *columns_of(features), "label"]).with_format("numpy")


def majority(splits: DatasetDict, split: str = "test") -> dict[str, float]:
    """Compute the metrics of always answering the most frequent class of the training split."""
    labels = np.asarray(splits[split]["label"])
    answer = np.bincount(splits["train"]["label"]).argmax()
    return {
        "accuracy": float(np.mean(labels == answer)),
        "mean_class_accuracy": 1 / len(np.unique(labels)),
        "voted_accuracy": float(np.mean(labels == answer)),
        "trained_parameters": 0,
        "seconds": 0.0,
    }


def train(
    title: str, model: nn.Module, splits: DatasetDict, options: argparse.Namespace
) -> tuple[dict[str, Any], Trainer]:
    """Train one model and evaluate it on the test split; returns its table row and its trainer."""
    parameters = count_parameters(model)[0]
    print(f"\n{title}: {parameters:,} trained parameters")
    arguments = training_arguments(
        options.output_dir / "trainer",
        options.seed,
        num_train_epochs=options.epochs,
        max_steps=options.max_steps,
        logging_strategy="no",
        disable_tqdm=False,
    )
    trainer = build_trainer(model, arguments, splits["train"], features=FEATURES)
    if isinstance(model, PeftModel):  # PointNet has no tokens
        trainer.add_callback(FewTokensFirst(FEW_TOKENS))
    trainer.add_callback(TimeEstimate())
    trainer.add_callback(Answers(model))
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    metrics = evaluate(trainer, splits["test"], FEATURES)
    voted = vote(trainer, splits["test"], options.seed, features=FEATURES).argmax(axis=-1)
    row = {
        "title": title,
        "trained_parameters": parameters,
        "seconds": seconds,
        "accuracy": metrics["eval_accuracy"],
        "mean_class_accuracy": metrics["eval_mean_class_accuracy"],
        "voted_accuracy": float(np.mean(voted == np.asarray(splits["test"]["label"]))),
    }
    return row, trainer


def without_files(rows: Dataset) -> Dataset:
    """Leave the shapes of `FILES` and their near-duplicates out of the training split."""
    names = {name for name, _ in FILES.values()}
    groups = {group for name, group in zip(rows["name"], rows["group"], strict=True) if name in names}
    return rows.filter(lambda group: group not in groups, input_columns="group")


def classify_files(classify: Any) -> str:
    """Classify the files as they are on disk; returns a table of right and wrong answers."""
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


def table(rows: list[dict[str, Any]]) -> str:
    """Format the results of this run."""
    lines = [
        f"{'model':28s} {'trained':>10s} {'seconds':>8s} {'accuracy':>9s} {'class acc.':>10s} {f'{VOTES} votes':>9s}",
        "-" * 79,
    ]
    for row in rows:
        shares = (100 * row[name] for name in ("accuracy", "mean_class_accuracy", "voted_accuracy"))
        cells = [f"{share:.1f}%".rjust(width) for share, width in zip(shares, (9, 10, 9), strict=True)]
        lines.append(f"{row['title']:28s} {row['trained_parameters']:>10,d} {row['seconds']:>8.0f} {' '.join(cells)}")
    return "\n".join(lines)


def draw(test: Dataset, classify: Any, names: list[str], path: Path, count: int = 12) -> Path:
    """Draw test shapes with their predicted classes; green is right, red is wrong."""
    shown = [test[int(number)] for number in np.linspace(0, len(test) - 1, count)]
    inputs = [{name: row[name] for name in ("points", *columns_of(FEATURES))} for row in shown]
    answers = classify(inputs, batch_size=count)
    titles, colors = [], []
    for row, (best, *_) in zip(shown, answers, strict=True):
        right = names[row["label"]] == best["label"]
        titles.append(best["label"] if right else f"{best['label']} (is {names[row['label']]})")
        colors.append("#1a7f37" if right else "#cf222e")
    clouds = [stack_channels(row, ["colors"]) for row in shown]
    heading = "Unseen test shapes, classified by a frozen sentence encoder with adapters"
    # Small cells, so that titles can be read at the width of a page.
    return plot_point_clouds(clouds, path, titles=titles, title_colors=colors, heading=heading, cell=1.3)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/quickstart"), help="for model and picture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--compare", action="store_true", help="train a PointNet from scratch first")
    parser.add_argument("--max-steps", type=int, default=-1, help="stop each training early, to try the program out")
    parser.add_argument("--threads", type=int, help="threads of torch; torch's own choice by default")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Train, evaluate, draw, classify."""
    options = parse(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)  # raised by peft about transformers
    # Without a network, peft cannot look up whether the encoder's vocabulary has changed; here it never does.
    warnings.filterwarnings("ignore", message="Unable to fetch remote file|Could not find a config file")
    print(f"hf_any3d {hf_any3d.__version__}: a frozen text transformer learns 3D shapes")
    splits = load_point_dataset("shapes")
    splits["train"] = without_files(splits["train"])
    names = splits["train"].features["label"].names
    print(f"{len(splits['train'])} training and {len(splits['test'])} test shapes in {len(names)} classes")

    rows = [{"title": "majority class", **majority(splits)}]
    if options.compare:
        row, _ = train("PointNet from scratch", build_pointnet(options.seed, names, FEATURES), splits, options)
        rows.append(row)
    row, trainer = train("wrap, pretrained encoder", build_model(options.seed, names), splits, options)
    rows.append(row)
    print(f"\n{table(rows)}\n")

    model_dir = options.output_dir / "model"
    trainer.save_model(model_dir)
    num_points = splits["test"].features["points"].shape[0]
    PointCloudProcessor(num_points=num_points, features=FEATURES).save_pretrained(model_dir)
    stored = sum(file.stat().st_size for file in model_dir.iterdir())
    classify = pipeline("point-cloud-classification", model=str(model_dir))
    picture = draw(splits["test"], classify, names, options.output_dir / "shapes.png")
    print(f'Files in {DATA.relative_to(HERE.parent)}, by pipeline("point-cloud-classification"):')
    print(classify_files(classify))
    print(
        f"\nMade: a point cloud classifier of {stored / 1e6:.1f} MB in {model_dir} (its encoder is not stored again) "
        f"and a picture in {picture}. Try next: hf-any3d predict examples/data/chair.ply --model {model_dir}, a "
        "mesh of your own, or examples/run_point_cloud_classification.py with another encoder."
    )


if __name__ == "__main__":
    main()
