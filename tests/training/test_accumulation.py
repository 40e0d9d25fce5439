"""A step over several batches is that over all of their clouds or labels, also if the last batch is smaller."""

import pytest
import torch
from transformers import Trainer

from hf_any3d.modeling.act import ActForPreTraining, ActForSemanticSegmentation
from hf_any3d.modeling.minigpt3d import MiniGPT3DForConditionalGeneration
from hf_any3d.modeling.patchalign3d import PatchAlign3DForPreTraining
from hf_any3d.modeling.uni3d import Uni3DForPointCloudClassification
from hf_any3d.training.trainer import PointTrainer
from tests.common.models import case_of
from tests.common.test_training_arguments import trainer_of
from tests.training.one_step import hold_still
from tests.turns import by_turns

CLOUDS = 5


def step(kind, model_class, folder, batch, change=None):
    """Return the loss of a step over batches of the given size, and what it changes in the model."""
    case = case_of(model_class)
    model = case.still()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    hold_still(model)
    settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": -(-CLOUDS // batch)}
    settings |= {"optim": "sgd", "learning_rate": 1.0, "weight_decay": 0.0, "max_grad_norm": 0.0, "warmup_steps": 0}
    settings |= {"lr_scheduler_type": "constant", "train_sampling_strategy": "sequential"}
    trainer = trainer_of(case, folder, kind, model=model, **settings)
    trainer.train_dataset = trainer.train_dataset[:CLOUDS]
    for row, cloud in zip(trainer.train_dataset, range(CLOUDS), strict=True):
        if change is not None:
            row["labels"] = change(row["labels"], cloud)
    loss = trainer.train().training_loss
    changed = {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}
    return loss, changed


def assert_same(found, expected):
    (loss, changed), (whole, wanted) = found, expected
    assert loss == pytest.approx(whole, rel=1e-4)
    largest = max(float(change.abs().max()) for change in wanted.values())
    assert largest > 0
    for name, change in wanted.items():
        torch.testing.assert_close(changed[name], change, rtol=0, atol=2e-4 * largest)


# What makes labels of some clouds count less, or not at all.
CHANGES = {
    Uni3DForPointCloudClassification: lambda label, cloud: label if cloud % 2 else label * 0 - 100,
    ActForSemanticSegmentation: lambda labels, cloud: labels.where(torch.arange(len(labels)) > 9 * cloud, -100),
    MiniGPT3DForConditionalGeneration: None,
}


@pytest.mark.parametrize(("model_class", "kind"), by_turns(CHANGES, [Trainer, PointTrainer]))
def test_labels_count_alike_in_every_batch(kind, model_class, tmp_path):
    change = CHANGES[model_class]
    assert_same(step(kind, model_class, tmp_path, 4, change), step(kind, model_class, tmp_path, CLOUDS, change))


@pytest.mark.parametrize("model_class", [PatchAlign3DForPreTraining, ActForPreTraining])
def test_clouds_without_labels_count_alike_in_every_batch(model_class, tmp_path):
    parts, whole = (step(PointTrainer, model_class, tmp_path, batch) for batch in (4, CLOUDS))
    assert_same(parts, whole)
