"""The stages of ACT on the embedded shapes: each runs its program by its recipe and returns the results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict, concatenate_datasets
from sklearn.model_selection import StratifiedGroupKFold
from torch import nn
from transformers import set_seed

from examples import run_act_autoencoder, run_act_pretraining, run_few_shot, run_point_cloud_classification
from hf_any3d import PointCloudProcessor, load_point_dataset
from hf_any3d.model_card.run_report import RunReport, peak_memory
from hf_any3d.modeling.act import ActAutoencoder, ActForPreTraining
from hf_any3d.modeling.point_ops import reconstruction_scores
from hf_any3d.training.pretraining import (
    LinearProbe,
    PretrainingDataArguments,
    StudentArguments,
    TeacherArguments,
    UnlabeledRows,
    build_autoencoder,
    load_splits,
)
from hf_any3d.training.protocol import build_processor
from hf_any3d.training.recipes import merge, read_settings
from hf_any3d.training.requests import parse_arguments
from studies.generated_shapes import generate
from studies.runs import RECIPES, kept_run, reset_if_changed, stopwatch, write_arguments

Changes = Mapping[str, Mapping[str, Any]]
"""Changes of the recipes: of a stage by its name, of all fine-tuning as "tuning", of few-shot stages as "few_shot", of
every stage as "data"; mappings in them are merged. "more_shapes" has arguments of `generate`: both stages of
pretraining also learn from these shapes."""
NO_CHANGES: Changes = {}
ARGUMENTS = "arguments.json"
"""File of a run's settings, from `write_arguments`."""

_NO_TEACHER = {"teacher": "none", "teacher_layers": None}
ARMS: dict[str, tuple[str, Changes | None]] = {
    "scratch": ("from scratch", None),
    "none": ("no teacher", {"autoencoder": _NO_TEACHER}),
    "random": ("random teacher", {"autoencoder": {"random_teacher": True}}),
    "pretrained": ("pretrained teacher", {}),
    "output": (
        "pretrained teacher, its output as targets",
        {"pretraining": {"model_config": {"target_layer": "teacher"}}},
    ),
    "more": ("no teacher, 4,800 generated shapes", {"autoencoder": _NO_TEACHER, "more_shapes": {"per_class": 100}}),
}
"""Pretraining of a student: title, and changes of the recipes; None without pretraining."""
WAYS = {"few_5": 5, "few_10": 10, "few_5_frozen": 5, "few_10_frozen": 10}
"""Number of classes of the few-shot stages."""
FROZEN = dict.fromkeys(("few_5_frozen", "few_10_frozen"), {"tuning": "mlp-3", "learning_rate": 3e-3})
"""Changes of the recipe for stages that train the head alone and keep the student frozen (the paper's MLP-3)."""
MEAN_OF = ("few_5", "few_10")
"""The stages whose mean is reported as few-shot accuracy."""
SHOT = 10
FOLDS = 5
"""Folds of the training shapes, for validation."""
PRETRAINING = ("autoencoder", "pretraining")
TARGETS = "targets"
"""Not a training stage: probes of an autoencoder's inner features."""
PARTS = ("codes", "teacher", "targets")
"""Probed features: the chosen codes, the teacher's output for them, the targets of the student."""
TUNING = ("few_5", "few_10", "full", *FROZEN)


def recipe_of(stage: str, changes: Changes = NO_CHANGES) -> dict[str, Any]:
    """Read the settings of a stage, without the teacher and the results of earlier stages."""
    settings = read_settings(RECIPES / f"shapes_act_{'few_shot' if stage in WAYS else stage}.yaml")
    names = ["data", *(["few_shot"] if stage in WAYS else []), "tuning" if stage in TUNING else stage]
    for own in (FROZEN.get(stage, {}), *(changes.get(name, {}) for name in names)):
        settings = merge(settings, own)
    return settings


def changes_of(arm: str, changes: Changes) -> Changes:
    """Add the changes of an arm to others."""
    return merge(changes, ARMS[arm][1] or {})


def write_fold(folder: Path, fold: int) -> dict[str, str]:
    """Write the training shapes as files, with one of five folds in place of the test split.

    Folds have whole groups of near-duplicates and about equal shares of each class. Every program then evaluates on
    shapes of the training split; the test shapes are not read.

    Args:
        folder: Folder for `train.parquet` and `test.parquet`.
        fold: Number of the fold, from 0.

    Returns:
        Settings that make a program read these files.
    """
    rows = load_point_dataset("shapes", split="train")
    labels, groups = np.asarray(rows["label"]), np.asarray(rows["group"])
    cuts = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(labels, labels, groups))
    folder.mkdir(parents=True, exist_ok=True)
    for name, index in zip(("train", "test"), cuts[fold], strict=True):
        rows.select(index).with_format(None).to_parquet(folder / f"{name}.parquet")
    return {"dataset_name": "parquet", "data_dir": str(folder)}


def stages_of(arm: str) -> tuple[str, ...]:
    """Return the stages of an arm, in order."""
    if ARMS[arm][1] is not None:
        return (*PRETRAINING, TARGETS, *TUNING)
    # Freezing an untrained student makes no sense.
    return tuple(stage for stage in TUNING if stage not in FROZEN)


def settings_of(arm: str, stage: str, folds: int, changes: Changes = NO_CHANGES) -> dict[str, Any]:
    """Collect everything but the seed that affects a stage's result, as JSON reads it back."""
    earlier = [name for name in stages_of(arm) if name in PRETRAINING and name != stage]
    earlier = earlier[: PRETRAINING.index(stage)] if stage in PRETRAINING else earlier
    # Targets are probed in the trained autoencoder, without further training.
    trained = PRETRAINING[:1] if stage == TARGETS else (*earlier, stage)
    changes = changes_of(arm, changes)
    settings: dict[str, Any] = {name: recipe_of(name, changes) for name in trained}
    # Few-shot and full fine-tuning differ between arms by their start alone.
    settings["more_shapes"] = changes.get("more_shapes")
    if stage in WAYS:
        settings |= {"way": WAYS[stage], "shot": SHOT, "folds": folds}
    return json.loads(json.dumps(settings))


def first_stage_of(arm: str, folds: int, changes: Changes = NO_CHANGES) -> str:
    """Return the first arm whose autoencoder has the same settings as that of this arm; one serves both."""
    wanted = settings_of(arm, PRETRAINING[0], folds, changes)
    others = (other for other, (_, own) in ARMS.items() if own is not None)
    return next(other for other in others if settings_of(other, PRETRAINING[0], folds, changes) == wanted)


def run_stage(
    arm: str, stage: str, seed: int, folder: Path, folds: int, changes: Changes = NO_CHANGES, name: str = ""
) -> dict[str, Any]:
    """Run one stage, stored as `folder/runs/<arm>-<seed>-<stage><name>.json`, after the stages before it.

    Args:
        arm: One of `ARMS`.
        stage: One of `stages_of(arm)`.
        seed: Seed of weights, row order, augmentation and few-shot folds.
        folder: Folder for the runs of all arms and seeds.
        folds: Number of few-shot folds.
        changes: Changes of the recipes.
        name: Suffix for runs of the same stage with other changes.

    Returns:
        The results, with `seconds`, `cpu_seconds` and `peak_memory` (peak bytes of the process so far).
    """
    settings, place, own = settings_of(arm, stage, folds, changes), folder / f"{arm}-{seed}", changes_of(arm, changes)
    if ARMS[arm][1] is not None:
        first = folder / f"{first_stage_of(arm, folds, changes)}-{seed}"
        own = merge(own, {PRETRAINING[1]: {"autoencoder": str(first / PRETRAINING[0])}})
        place = first if stage in (PRETRAINING[0], TARGETS) else place

    def run() -> dict[str, Any]:
        reset_if_changed(place / stage, settings)
        with stopwatch() as spent:
            result = _RUN.get(stage, few_shot)(arm, stage, seed, place, folds, own)
        about = {"stage": stage, "seed": seed}
        return {**about, **result, **spent, "peak_memory": peak_memory().get("process")}

    return {"arm": arm, **kept_run(folder / "runs" / f"{place.name}-{stage}{name}.json", settings, run)}


def autoencoder(
    arm: str, stage: str, seed: int, place: Path, folds: int, changes: Changes = NO_CHANGES
) -> dict[str, Any]:
    """Run the first stage; measures how test clouds are reconstructed before and after it."""
    own = with_more_shapes(recipe_of(stage, changes), place / stage, changes)
    file = write_arguments(place / stage, own | {"seed": seed})
    (teacher,) = parse_arguments((TeacherArguments,), [file], others_in_file=True)
    splits, processor = _read_data(file)
    rows = UnlabeledRows(splits["test"], processor)
    set_seed(seed)
    before = reconstruction(build_autoencoder(teacher), rows)
    report = run_act_autoencoder.main([file])
    after = reconstruction(ActAutoencoder.from_pretrained(place / stage), rows)
    return {"before": before, "after": after, **_facts(report)}


def pretraining(
    arm: str, stage: str, seed: int, place: Path, folds: int, changes: Changes = NO_CHANGES
) -> dict[str, Any]:
    """Run the second stage; measures a linear probe of the student's features before and after it."""
    own = with_more_shapes(recipe_of(stage, changes), place / stage, changes)
    file = write_arguments(place / stage, own | {"seed": seed})
    (student,) = parse_arguments((StudentArguments,), [file], others_in_file=True)
    probe = probe_of(stage, place, changes)
    set_seed(seed)
    fresh = ActForPreTraining.from_autoencoder_pretrained(student.autoencoder, **student.model_config)
    before = probe.accuracies(fresh)["test"]
    report = run_act_pretraining.main([file])
    after = probe.accuracies(ActForPreTraining.from_pretrained(place / stage))["test"]
    return {"probe_before": before, "probe": after, "loss": report.metrics["test"]["loss"], **_facts(report)}


def targets(arm: str, stage: str, seed: int, place: Path, folds: int, changes: Changes = NO_CHANGES) -> dict[str, Any]:
    """Probe an autoencoder's inner features of whole clouds, and measure how similar its targets are."""
    model = ActAutoencoder.from_pretrained(place / "autoencoder").eval()
    probe = probe_of("autoencoder", place, changes)
    found = {part: probe.accuracies(InnerFeatures(model, part))["test"] for part in PARTS}
    return {**found, "constant": spread_of_targets(place / "autoencoder", "test")}


def with_more_shapes(settings: dict[str, Any], place: Path, changes: Changes) -> dict[str, Any]:
    """Add generated shapes to the training rows of a program, if the changes ask for some.

    Args:
        settings: Settings of the program.
        place: Folder of the stage; the rows are kept there, and removed with it when its settings change.
        changes: Changes of the recipes.
    """
    more = changes.get("more_shapes")
    if not more:
        return settings
    folder = place / "data"
    if not folder.is_dir():
        splits, _ = _read_data(write_arguments(place / "own_data", settings))
        own, test = (splits[name].select_columns("points").with_format(None) for name in ("train", "test"))
        others = generate(**more).select_columns("points").with_format(None).cast(own.features)
        part = folder.with_name("data.part")
        part.mkdir(parents=True, exist_ok=True)
        concatenate_datasets([own, others]).to_parquet(part / "train.parquet")
        test.to_parquet(part / "test.parquet")
        part.rename(folder)
    files = {f"{split}_file": str(folder / f"{split}.parquet") for split in ("train", "test")}
    return {name: value for name, value in settings.items() if name != "data_dir"} | files


def probe_of(stage: str, place: Path, changes: Changes) -> LinearProbe:
    """Build a probe on the labeled rows of a stage's recipe, without generated shapes."""
    splits, processor = _read_data(write_arguments(place / "probe", recipe_of(stage, changes)))
    return LinearProbe(DatasetDict(train=splits["train"], test=splits["test"]), processor, batch_size=64)


@torch.no_grad()
def spread_of_targets(folder: Path, split: str) -> float:
    """Compute the mean cosine distance of an autoencoder's targets from their mean, over all patches of a split."""
    splits, processor = _read_data(folder / ARGUMENTS)
    rows = UnlabeledRows(splits[split], processor)
    points = torch.from_numpy(np.stack([row["points"] for row in rows.__getitems__(list(range(len(rows))))]))
    made = ActAutoencoder.from_pretrained(folder).eval().teacher_features(points).flatten(0, 1)
    return (1 - torch.cosine_similarity(made, made.mean(dim=0, keepdim=True)).mean()).item()


class InnerFeatures(nn.Module):
    """Gives a probe the maximum and mean of an autoencoder's token features.

    Args:
        model: The autoencoder.
        part: One of `PARTS`.
    """

    def __init__(self, model: ActAutoencoder, part: str):
        super().__init__()
        self.model, self.part = model, part

    @torch.no_grad()
    def probe_features(self, points: torch.Tensor) -> torch.Tensor:
        """Compute features `(batch, features)` of clouds `(batch, points, 3)`."""
        if self.part == "codes":
            patches = self.model.patch(points)
            tokens, _ = self.model.codebook(self.model.score_codes(patches), hard=True)  # (batch, groups, hidden)
        else:
            tokens = self.model.teacher_features(points, through_graph=self.part == "targets")
        return torch.cat([tokens.amax(dim=1), tokens.mean(dim=1)], dim=-1)


def few_shot(
    arm: str, stage: str, seed: int, place: Path, folds: int, changes: Changes = NO_CHANGES
) -> dict[str, Any]:
    """Fine-tune on few rows of few classes, fold by fold; models are not stored."""
    # Another seed draws other folds.
    own = merge(_start(arm, place), {"seed": seed, "few_shot": {"seed": seed}, "save_strategy": "no"})
    settings = merge(recipe_of(stage, changes), own)
    words = ["--draw", "--way", str(WAYS[stage]), "--shot", str(SHOT), "--folds", str(folds)]
    # Kept until all folds are done, so that an interrupted series resumes.
    runs = place / stage / "folds"
    result = run_few_shot.main([write_arguments(place / stage, settings), *words, "--output_dir", str(runs)])
    shutil.rmtree(runs)
    accuracies = [fold["test"]["accuracy"] for fold in result["folds"]]
    return {"accuracy": float(np.mean(accuracies)), "folds": accuracies}


def full(arm: str, stage: str, seed: int, place: Path, folds: int, changes: Changes = NO_CHANGES) -> dict[str, Any]:
    """Fine-tune on all classes and all training rows."""
    file = write_arguments(place / stage, merge(recipe_of(stage, changes), _start(arm, place) | {"seed": seed}))
    report = run_point_cloud_classification.main([file])
    return {name: report.metrics["test"][name] for name in ("accuracy", "mean_class_accuracy")} | _facts(report)


_RUN: dict[str, Callable[..., dict[str, Any]]] = {
    "autoencoder": autoencoder,
    "pretraining": pretraining,
    TARGETS: targets,
    "full": full,
}


@torch.no_grad()
def reconstruction(model: ActAutoencoder, rows: UnlabeledRows) -> dict[str, float]:
    """Measure how well clouds are reconstructed from one code per patch.

    Returns:
        `patches`: the training loss, the Chamfer distance (L1) of patches, coarse and fine points together;
        `chamfer_l1`: the distance of whole clouds; `codes`: the number of different codes in use.
    """
    model.eval()
    totals, codes = np.zeros(2), set()
    for row in range(len(rows)):
        points = torch.from_numpy(rows[row]["points"]).unsqueeze(0)
        made = model(points)
        whole = reconstruction_scores(made.whole_fine, points, 0.01)["chamfer_l1"]
        totals += (made.reconstruction_loss.item(), whole.item())
        codes |= set(made.token_ids.flatten().tolist())
    patches, chamfer = totals / len(rows)
    return {"patches": float(patches), "chamfer_l1": float(chamfer), "codes": len(codes)}


def draw(place: Path, path: Path, clouds: int) -> Path:
    """Draw test clouds beside their reconstructions by an autoencoder of `run_stage`."""
    splits, processor = _read_data(place / ARGUMENTS)
    run_act_autoencoder.draw(ActAutoencoder.from_pretrained(place), splits["test"], processor, clouds, path)
    return path


def _read_data(arguments: str | Path) -> tuple[DatasetDict, PointCloudProcessor]:
    data = parse_arguments((PretrainingDataArguments,), [str(arguments)], others_in_file=True)[0]
    return load_splits(data)[0], build_processor(data, data.processor_config)


def _start(arm: str, place: Path) -> dict[str, Any]:
    start = None if ARMS[arm][1] is None else str(place / "pretraining")
    return {"model_name_or_path": start}


def _facts(report: RunReport) -> dict[str, Any]:
    resumed = report.training["resumed_from"] is not None
    return {"trained_parameters": report.trained_parameters, "resumed": resumed}
