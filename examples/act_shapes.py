"""The stages of ACT on the embedded shapes: each runs its program by its recipe and says what came out."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import run_act_autoencoder
import run_act_pretraining
import run_few_shot
import run_point_cloud_classification
import torch
from datasets import DatasetDict
from torch import nn
from training_runs import kept_run
from transformers import set_seed

from hf_any3d import PointCloudProcessor, load_point_dataset
from hf_any3d.atomic_files import write_text
from hf_any3d.data import validation_split
from hf_any3d.model_card.run_report import RunReport, peak_memory
from hf_any3d.modeling.act import ActAutoencoder, ActForPreTraining
from hf_any3d.modeling.point_ops import reconstruction_scores
from hf_any3d.training.arguments import merge, parse_arguments, read_settings
from hf_any3d.training.linear_probe import LinearProbe
from hf_any3d.training.pretraining import (
    PretrainingDataArguments,
    StudentArguments,
    TeacherArguments,
    UnlabelledRows,
    build_autoencoder,
    build_processor,
    load_splits,
)

RECIPES = Path(__file__).resolve().parent / "recipes"
ARMS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "scratch": ("from scratch", None),
    "none": ("no teacher", {"teacher": "none", "teacher_layers": None}),
    "random": ("random teacher", {"random_teacher": True}),
    "pretrained": ("pretrained teacher", {}),
}
"""What a student starts from: title, and what of the first stage's recipe is changed; None without pretraining."""
WAYS = {"few_5": 5, "few_10": 10, "few_5_frozen": 5, "few_10_frozen": 10}
"""Few-shot stages: the number of classes."""
FROZEN = dict.fromkeys(("few_5_frozen", "few_10_frozen"), {"tuning": "mlp-3", "learning_rate": 3e-3})
"""What those change in the recipe that leave the student as it is and train the head alone (the paper's MLP-3)."""
MEAN_OF = ("few_5", "few_10")
"""Those whose mean stands for few-shot."""
SHOT = 10
PRETRAINING = ("autoencoder", "pretraining")
TARGETS = "targets"
"""Not a stage of training: what an autoencoder's inner features know."""
PARTS = ("codes", "teacher", "targets")
"""Whose features: the chosen codes, what the teacher makes of them, what the student guesses."""
TUNING = ("few_5", "few_10", "full", *FROZEN)
Changes = Mapping[str, Mapping[str, Any]]
"""What is changed in the recipes: of a stage by its name, of all fine-tuning as "tuning", of every stage as "data"."""
NO_CHANGES: Changes = {}


def recipe_of(stage: str, changes: Changes = NO_CHANGES) -> dict[str, Any]:
    """Read the settings of a stage, but for the teacher and what an earlier stage left."""
    settings = read_settings(RECIPES / f"shapes_act_{'few_shot' if stage in WAYS else stage}.yaml")
    settings |= FROZEN.get(stage, {}) | changes.get("data", {})
    return settings | changes.get("tuning" if stage in TUNING else stage, {})


def write_validation_cut(folder: Path) -> dict[str, Any]:
    """Carve a validation part from the training shapes, by whole groups of near-duplicates.

    Its shapes take the place of the test split in the files that are written, so that every program reports on them,
    and nothing learns from them. The test split is left out.

    Returns:
        Settings that make a program read these files.
    """
    splits = validation_split(load_point_dataset("shapes", split="train"), 0.25, seed=0, group_column="group")
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", splits["train"]), ("test", splits["validation"])):
        rows.with_format(None).to_parquet(folder / f"{name}.parquet")
    return {"dataset_name": "parquet", "data_dir": str(folder)}


def stages_of(arm: str) -> tuple[str, ...]:
    """What an arm goes through, in order."""
    if ARMS[arm][1] is not None:
        return (*PRETRAINING, TARGETS, *TUNING)
    # There is nothing in an untrained student that could be frozen.
    return tuple(stage for stage in TUNING if stage not in FROZEN)


def deciding_settings(arm: str, stage: str, folds: int, changes: Changes = NO_CHANGES) -> dict[str, Any]:
    """Collect all that decides a stage's result beside the seed, as JSON would give it back."""
    earlier = [name for name in stages_of(arm) if name in PRETRAINING and name != stage]
    earlier = earlier[: PRETRAINING.index(stage)] if stage in PRETRAINING else earlier
    # Asked of the trained autoencoder, and trains nothing.
    trained = PRETRAINING[:1] if stage == TARGETS else (*earlier, stage)
    settings: dict[str, Any] = {name: recipe_of(name, changes) for name in trained} | {"changes": ARMS[arm][1]}
    if stage in WAYS:
        settings |= {"way": WAYS[stage], "shot": SHOT, "folds": folds}
    return json.loads(json.dumps(settings))


def run_stage(
    arm: str, stage: str, seed: int, folder: Path, folds: int, changes: Changes = NO_CHANGES, name: str = ""
) -> dict[str, Any]:
    """Run one stage, kept as `folder/runs/<arm>-<seed>-<stage><name>.json`; stages before it must have been run.

    Args:
        arm: One of `ARMS`.
        stage: One of `stages_of(arm)`.
        seed: Of weights, order of the rows, augmentation and few-shot folds.
        folder: Holds the runs of all arms and seeds.
        folds: Few-shot folds.
        changes: What is changed in the recipes.
        name: Tells runs of one stage with other changes apart.

    Returns:
        What came out, and `seconds`, `cpu_seconds` and `peak_memory` (bytes that the process held at most so far).
    """
    settings, place = deciding_settings(arm, stage, folds, changes), folder / f"{arm}-{seed}"

    def run() -> dict[str, Any]:
        _forget_other(place / stage, settings)
        start, cpu_start = time.perf_counter(), time.process_time()
        result = _RUN.get(stage, few_shot)(arm, stage, seed, place, folds, changes)
        took = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
        about = {"arm": arm, "stage": stage, "seed": seed}
        return {**about, **result, **took, "peak_memory": peak_memory().get("process")}

    return kept_run(folder / "runs" / f"{arm}-{seed}-{stage}{name}.json", settings, run)


def autoencoder(
    arm: str, stage: str, seed: int, place: Path, folds: int, changes: Changes = NO_CHANGES
) -> dict[str, Any]:
    """The first stage: how test clouds are rebuilt before and behind it."""
    file = _arguments_file(place / stage, recipe_of(stage, changes) | {"seed": seed} | ARMS[arm][1])
    teacher, data = parse_arguments((TeacherArguments, PretrainingDataArguments), [file], others_in_file=True)
    processor = build_processor(data)
    rows = UnlabelledRows(load_splits(data)[0]["test"], processor)
    set_seed(seed)
    before = rebuilding(build_autoencoder(teacher), rows)
    report = run_act_autoencoder.main([file])
    after = rebuilding(ActAutoencoder.from_pretrained(place / stage), rows)
    return {"before": before, "after": after, **_facts(report)}


def pretraining(
    arm: str, stage: str, seed: int, place: Path, folds: int, changes: Changes = NO_CHANGES
) -> dict[str, Any]:
    """The second stage: what a linear machine learns from the student's features before and behind it."""
    own = {"seed": seed, "autoencoder": str(place / "autoencoder")}
    file = _arguments_file(place / stage, recipe_of(stage, changes) | own)
    student, data = parse_arguments((StudentArguments, PretrainingDataArguments), [file], others_in_file=True)
    splits, processor = load_splits(data)[0], build_processor(data)
    probe = LinearProbe(DatasetDict(train=splits["train"], test=splits["test"]), processor, batch_size=64)
    set_seed(seed)
    fresh = ActForPreTraining.from_autoencoder_pretrained(student.autoencoder, **student.model_config)
    before = probe.accuracies(fresh)["test"]
    report = run_act_pretraining.main([file])
    after = probe.accuracies(ActForPreTraining.from_pretrained(place / stage))["test"]
    return {"probe_before": before, "probe": after, "loss": report.metrics["test"]["loss"], **_facts(report)}


def targets(arm: str, stage: str, seed: int, place: Path, folds: int, changes: Changes = NO_CHANGES) -> dict[str, Any]:
    """What a linear machine learns from an autoencoder's inner features of whole clouds; how alike targets are."""
    model = ActAutoencoder.from_pretrained(place / "autoencoder").eval()
    splits, processor = _read_data(place / "autoencoder")
    probe = LinearProbe(DatasetDict(train=splits["train"], test=splits["test"]), processor, batch_size=64)
    found = {part: probe.accuracies(InnerFeatures(model, part))["test"] for part in PARTS}
    rows = UnlabelledRows(splits["test"], processor)
    points = torch.from_numpy(np.stack([row["points"] for row in rows.__getitems__(list(range(len(rows))))]))
    made = model.teacher_features(points).flatten(0, 1)  # (clouds * groups, hidden)
    constant = 1 - torch.cosine_similarity(made, made.mean(dim=0, keepdim=True)).mean()
    return {**found, "constant": constant.item()}


class InnerFeatures(nn.Module):
    """For a probe: largest and mean features of an autoencoder's tokens.

    Args:
        model: The autoencoder.
        part: One of `PARTS`.
    """

    def __init__(self, model: ActAutoencoder, part: str):
        super().__init__()
        self.model, self.part = model, part

    @torch.no_grad()
    def probe_features(self, points: torch.Tensor) -> torch.Tensor:
        """`(batch, features)` of clouds `(batch, points, 3)`."""
        if self.part == "codes":
            patches = self.model.patch(points)
            tokens, _ = self.model.codebook(self.model.score_codes(patches), hard=True)  # (batch, groups, hidden)
        else:
            tokens = self.model.teacher_features(points, through_graph=self.part == "targets")
        return torch.cat([tokens.amax(dim=1), tokens.mean(dim=1)], dim=-1)


def few_shot(
    arm: str, stage: str, seed: int, place: Path, folds: int, changes: Changes = NO_CHANGES
) -> dict[str, Any]:
    """Fine-tuning on few rows of few classes, fold by fold; models are not kept."""
    # Other folds under another seed.
    own = merge(_start(arm, place), {"seed": seed, "few_shot": {"seed": seed}, "save_strategy": "no"})
    settings = merge(recipe_of(stage, changes), own)
    words = ["--draw", "--way", str(WAYS[stage]), "--shot", str(SHOT), "--folds", str(folds)]
    # The folds' folders stay beside the file, so that a series that was cut goes on.
    runs = place / stage / "folds"
    result = run_few_shot.main([_arguments_file(place / stage, settings), *words, "--output_dir", str(runs)])
    shutil.rmtree(runs)
    accuracies = [fold["test"]["accuracy"] for fold in result["folds"]]
    return {"accuracy": float(np.mean(accuracies)), "folds": accuracies}


def full(arm: str, stage: str, seed: int, place: Path, folds: int, changes: Changes = NO_CHANGES) -> dict[str, Any]:
    """Fine-tuning on all classes and all training rows."""
    file = _arguments_file(place / stage, merge(recipe_of(stage, changes), _start(arm, place) | {"seed": seed}))
    report = run_point_cloud_classification.main([file])
    return {name: report.metrics["test"][name] for name in ("accuracy", "mean_class_accuracy")} | _facts(report)


_RUN: dict[str, Callable[..., dict[str, Any]]] = {
    "autoencoder": autoencoder,
    "pretraining": pretraining,
    TARGETS: targets,
    "full": full,
}


@torch.no_grad()
def rebuilding(model: ActAutoencoder, rows: UnlabelledRows) -> dict[str, float]:
    """How clouds are rebuilt from one code a patch.

    Returns:
        `patches`: Chamfer distance (L1) of patches, coarse and fine points together, which is what is trained;
        `chamfer_l1`: of whole clouds; `codes`: how many different ones are used.
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
    """Test clouds beside what an autoencoder of `run_stage` makes of them."""
    splits, processor = _read_data(place)
    run_act_autoencoder.draw(ActAutoencoder.from_pretrained(place), splits["test"], processor, clouds, path)
    return path


def _read_data(place: Path) -> tuple[DatasetDict, PointCloudProcessor]:
    data = parse_arguments((PretrainingDataArguments,), [str(place / "arguments.json")], others_in_file=True)[0]
    return load_splits(data)[0], build_processor(data)


def _start(arm: str, place: Path) -> dict[str, Any]:
    start = None if ARMS[arm][1] is None else str(place / "pretraining")
    return {"model_name_or_path": start}


def _facts(report: RunReport) -> dict[str, Any]:
    resumed = report.training["resumed_from"] is not None
    return {"trained_parameters": report.trained_parameters, "resumed": resumed}


def _arguments_file(folder: Path, settings: dict[str, Any]) -> str:
    quiet = {"disable_tqdm": True, "report_to": "none", "output_dir": str(folder)}
    write_text(folder / "arguments.json", json.dumps(settings | quiet, indent=1))
    return str(folder / "arguments.json")


def _forget_other(folder: Path, settings: dict[str, Any]) -> None:
    """Begin anew what was begun by other settings."""
    path = folder / "settings.json"
    if folder.exists() and (not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != settings):
        shutil.rmtree(folder)
    write_text(path, json.dumps(settings))
