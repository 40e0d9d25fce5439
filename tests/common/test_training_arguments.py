"""Documented arguments of the stock Trainer with our models, and of ours: each has an effect or is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_pt_utils import LengthGroupedSampler

from hf_any3d import PointCloudProcessor
from hf_any3d.modeling.act import ActForPointCloudClassification
from hf_any3d.modeling.minigpt3d import MiniGPT3DForConditionalGeneration
from hf_any3d.modeling.patchalign3d import PatchAlign3DForPreTraining
from hf_any3d.training.arguments import PointTrainingArguments
from hf_any3d.training.trainer import PointTrainer
from tests.common.built import forget_models as forget_models, fresh
from tests.common.models import CASES, Case, case_of, first_of_configs
from tests.common.refusals import check_refusal, feature
from tests.turns import ALL_PAIRS, by_turns

WITH_LOSS = [case for case in CASES if case.labels is not None]
ROWS, BATCH = 6, 4
SHARED = ("text_embeds", "text_labels", "noise")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack rows; what a batch has only once is the same in each of them."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        name: values[0] if name in SHARED else torch.stack(values) if torch.is_tensor(values[0]) else values
        for name, values in columns.items()
    }


def trainer_of(
    case: Case, folder: Path, kind: type[Trainer] = Trainer, metrics: Any = None, model: Any = None, **settings: Any
) -> Trainer:
    """Return a trainer of a tiny model on six rows."""
    batch = case.labeled(ROWS)
    rows = [{name: value if name in SHARED else value[row] for name, value in batch.items()} for row in range(ROWS)]
    given: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": BATCH,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "load_best_model_at_end": False,
        "metric_for_best_model": "eval_loss",
    }
    arguments = (PointTrainingArguments if kind is PointTrainer else TrainingArguments)(**(given | settings))
    set_seed(0)
    return kind(fresh(case) if model is None else model, arguments, collate, rows, rows, compute_metrics=metrics)


def losses(trainer: Trainer, name: str = "loss") -> list[float]:
    """Return the logged losses."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def plain_loss(case: Case, folder: Path, kind: type[Trainer]) -> float:
    """Return the first loss without further arguments."""
    trainer = trainer_of(case, folder, kind)
    trainer.train()
    return losses(trainer)[0]


def accumulates(case: Case, folder: Path, kind: type[Trainer]) -> None:
    settings = {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 2, "max_steps": -1}
    trainer = trainer_of(case, folder, kind, num_train_epochs=2, **settings)
    trainer.train()
    assert trainer.state.global_step == 2 and all(map(math.isfinite, losses(trainer)))


def recomputes(case: Case, folder: Path, kind: type[Trainer]) -> None:
    trainer = trainer_of(case, folder, kind, activation_checkpointing=True)
    trainer.train()
    assert trainer.model.is_activation_checkpointing
    assert losses(trainer)[0] == pytest.approx(plain_loss(case, folder, kind), rel=1e-4)


def runs_in_bfloat16(case: Case, folder: Path, kind: type[Trainer]) -> None:
    trainer = trainer_of(case, folder, kind, bf16=True)
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(plain_loss(case, folder, kind), rel=0.1)
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


def evaluates_in_bfloat16(case: Case, folder: Path, kind: type[Trainer]) -> None:
    expected = trainer_of(case, folder, kind).evaluate()["eval_loss"]
    assert trainer_of(case, folder, kind, bf16_full_eval=True).evaluate()["eval_loss"] == pytest.approx(
        expected, rel=0.1
    )


def finds_labels(case: Case, folder: Path, kind: type[Trainer]) -> None:
    found = trainer_of(case, folder, kind, label_names=None).predict(trainer_of(case, folder, kind).eval_dataset)
    assert math.isfinite(found.metrics["test_loss"])


def keeps_columns(case: Case, folder: Path, kind: type[Trainer]) -> None:
    trainer = trainer_of(case, folder, kind, remove_unused_columns=True)
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(plain_loss(case, folder, kind), rel=1e-4)


def counts_inputs(case: Case, folder: Path, kind: type[Trainer]) -> None:
    trainer = trainer_of(case, folder, kind, include_num_input_tokens_seen="all")
    trainer.train()
    assert trainer.state.num_input_tokens_seen > 0


def groups_by_length(case: Case, folder: Path, kind: type[Trainer]) -> None:
    trainer = trainer_of(case, folder, kind, train_sampling_strategy="group_by_length")
    if "input_ids" not in case.batch():  # lengths are those of the processor's first input
        trainer.processing_class = PointCloudProcessor()
    trainer.train()
    assert isinstance(trainer.get_train_dataloader().batch_sampler.sampler, LengthGroupedSampler)


def adds_noise(case: Case, folder: Path, kind: type[Trainer]) -> None:
    trainer = trainer_of(case, folder, kind, neftune_noise_alpha=5.0)
    trainer.train()
    assert losses(trainer)[0] != pytest.approx(plain_loss(case, folder, kind), rel=1e-4)


def saves_the_best(case: Case, folder: Path, kind: type[Trainer]) -> None:
    settings = {"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}
    trainer = trainer_of(case, folder, kind, load_best_model_at_end=True, greater_is_better=False, **settings)
    trainer.train()
    assert Path(trainer.state.best_model_checkpoint).parent == folder
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses(trainer, "eval_loss")), rel=1e-4)


def measures_by_batch(case: Case, folder: Path, kind: type[Trainer]) -> None:
    seen: list[int] = []

    def metrics(prediction: Any, compute_result: bool) -> dict[str, float]:
        seen.append(len(tree_leaves(prediction.predictions)[0]))
        return {"clouds": float(sum(seen))} if compute_result else {}

    found = trainer_of(case, folder, kind, metrics, batch_eval_metrics=True).evaluate()
    assert found["eval_clouds"] == ROWS and len(seen) == 2


def accumulates_predictions(case: Case, folder: Path, kind: type[Trainer]) -> None:
    rows = trainer_of(case, folder, kind).eval_dataset
    whole, parts = (trainer_of(case, folder, kind, eval_accumulation_steps=n).predict(rows) for n in (None, 1))
    for ours, theirs in zip(tree_leaves(whole.predictions), tree_leaves(parts.predictions), strict=True):
        assert (ours == theirs).all()


def smooths_labels(case: Case, folder: Path, kind: type[Trainer]) -> None:
    trainer = trainer_of(case, folder, kind, label_smoothing_factor=0.5)
    trainer.train()
    assert losses(trainer)[0] != pytest.approx(plain_loss(case, folder, kind), rel=1e-4)


def passes_inputs_to_metrics(case: Case, folder: Path, kind: type[Trainer]) -> None:
    seen = []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction)
        return {}

    trainer_of(case, folder, kind, metrics, include_for_metrics=["inputs", "loss"]).evaluate()
    assert len(seen[0].inputs) == ROWS and seen[0].losses is not None


SETTINGS: dict[str, Callable[[Case, Path, type[Trainer]], None]] = {
    "gradient_accumulation_steps": accumulates,
    "activation_checkpointing": recomputes,
    "bf16": runs_in_bfloat16,
    "bf16_full_eval": evaluates_in_bfloat16,
    "label_names": finds_labels,
    "remove_unused_columns": keeps_columns,
    "include_num_input_tokens_seen": counts_inputs,
    "train_sampling_strategy": groups_by_length,
    "neftune_noise_alpha": adds_noise,
    "save_strategy": saves_the_best,
    "batch_eval_metrics": measures_by_batch,
    "eval_accumulation_steps": accumulates_predictions,
    "label_smoothing_factor": smooths_labels,
    "include_for_metrics": passes_inputs_to_metrics,
}
FEATURE_OF = {"activation_checkpointing": "activation checkpointing", "label_smoothing_factor": "label smoothing"}
"""Features that some classes refuse, by argument; all others are supported."""
feature("label smoothing", "losses of the Trainer with smoothed labels")
ACT = case_of(ActForPointCloudClassification)
CHAT, PRETRAINED = case_of(MiniGPT3DForConditionalGeneration), case_of(PatchAlign3DForPreTraining)
# All arguments for points, of our Trainer or the stock one, and every other one for words; one by turns for
# pretraining and for a class of every other config.
SOME = WITH_LOSS if ALL_PAIRS else [PRETRAINED, *first_of_configs(WITH_LOSS)[::2]]
TRIED = [(case, Trainer, name) for case, name in by_turns(WITH_LOSS, list(SETTINGS), (ACT, CHAT)) if ALL_PAIRS]
if not ALL_PAIRS:
    TRIED = [(case, Trainer, name) for case, name in by_turns(SOME, list(SETTINGS)) if case not in (ACT, CHAT)]
    TRIED += [(CHAT, Trainer, name) for name in list(SETTINGS)[::2]]
TRIED += [(ACT, kind, name) for name, kind in by_turns(SETTINGS, (PointTrainer, Trainer))]
TRIED = list(dict.fromkeys(TRIED))
# The Trainer ignores the argument for models that have no labels.
TRIED = [each for each in TRIED if each[2] != "label_smoothing_factor" or "labels" in each[0].labeled(1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "kind", "name"), TRIED, ids=[f"{name}-{kind.__name__}-{case.name}" for case, kind, name in TRIED]
)
def test_an_argument_has_its_effect(case, kind, name, tmp_path):
    if name in FEATURE_OF:
        with check_refusal(FEATURE_OF[name], case.name):
            SETTINGS[name](case, tmp_path, kind)
    else:
        SETTINGS[name](case, tmp_path, kind)
