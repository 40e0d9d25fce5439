"""The gradients of our model against those of the released CLIP program for ScanObjectNN."""

import re

import pytest
import torch

from hf_any3d.conversions.any2point import names_of
from hf_any3d.conversions.renaming import rename_tensors
from tests.modeling.any2point.reference_case import ReferenceCase


@pytest.fixture(scope="module")
def gradient_run():
    """One training step without dropout: loss, logits and the model with its gradients."""
    case = ReferenceCase("any2point_clip_scan_grad")
    model = case.build().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    output = model(points=case.points, labels=torch.tensor(case.manifest["labels"]))
    output.loss.backward()
    return case, model, output


@pytest.mark.slow
def test_training_loss_and_logits_agree(gradient_run):
    case, _, output = gradient_run
    assert abs(output.loss.item() - case.manifest["loss_value"]) < case.manifest["tolerance"]["loss"]
    assert (output.logits - case.expected["logits"]).abs().max() < case.manifest["tolerance"]["logits"]


def named_tensors(case, names, tensors):
    """Return the tensor for each original name, unstacked if necessary."""
    for name in names:
        (ours,) = rename_tensors({name: torch.zeros(1)}, names_of(case.variant))
        stacked = re.fullmatch(r"(.+)\[(\d+)\]", ours)
        yield name, tensors[ours] if stacked is None else tensors[stacked[1]][int(stacked[2])]


def plain_names(model, tensors):
    """Tensors of a PEFT model under the names of the base model and of stored adapters."""
    renamed = {}
    for name, tensor in tensors:
        name = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "").replace(".default", "")
        renamed[name] = tensor
    return renamed


@pytest.mark.slow
def test_exactly_the_published_parameters_train(gradient_run):
    case, model, _ = gradient_run
    trained = plain_names(model, ((n, p) for n, p in model.named_parameters() if p.requires_grad))
    assert sum(parameter.numel() for parameter in trained.values()) == case.manifest["trainable_count"]
    matched = [tensor.numel() for _, tensor in named_tensors(case, case.manifest["trainable"], trained)]
    assert sum(matched) == case.manifest["trainable_count"]


@pytest.mark.slow
def test_gradient_norms_agree_to_one_percent(gradient_run):
    case, model, _ = gradient_run
    gradients = plain_names(model, ((n, p.grad) for n, p in model.named_parameters() if p.requires_grad))
    floor = 1e-4 * case.manifest["total_gradient_norm"]
    compared = 0
    pairs = named_tensors(case, case.manifest["trainable"], gradients)
    for (name, gradient), expected in zip(pairs, case.expected["gradient_norm"].tolist(), strict=True):
        if expected > floor:
            assert gradient.norm().item() == pytest.approx(expected, rel=1e-2), name
            compared += 1
    assert compared > 70


@pytest.mark.slow
def test_running_statistics_are_updated_as_published(gradient_run):
    case, model, _ = gradient_run
    buffers = plain_names(model, model.named_buffers())
    pairs = named_tensors(case, case.manifest["buffers"], buffers)
    for (name, buffer), expected in zip(pairs, case.expected["buffer_norm"].tolist(), strict=True):
        assert buffer.norm().item() == pytest.approx(expected, rel=1e-4), name
