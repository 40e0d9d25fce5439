"""Gradients of every registered model class, with and without activation checkpointing."""

import re

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from tests.common.built import (
    built,
    forget_models as forget_models,
    fresh,
    gradients_of,
    one_of_each,
    over_cases,
    over_one_of_each,
    plain_gradients,
)
from tests.common.models import CASES, Case, first_of_configs
from tests.common.refusals import check_refusal, refusal_of
from tests.turns import some

_CHECKPOINTED = [case for case in CASES if refusal_of("activation checkpointing", case.name) is None]
# Heads have no layers of their own.
over_checkpointed = pytest.mark.parametrize("case", first_of_configs(_CHECKPOINTED), ids=lambda case: case.name)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def assert_gradients_alike(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Check that gradients differ by less than 1e-4 of the largest of their tensor, or are negligible."""
    assert ours.keys() == theirs.keys()
    scale = max(gradient.abs().max() for gradient in theirs.values())
    assert scale > 1e-2
    for name, gradient in theirs.items():
        difference = (ours[name] - gradient).abs().max()
        assert difference <= 1e-4 * gradient.abs().max() + 1e-6 * scale, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "reentrant"),
    # Reentrant checkpoints are those of the next test too.
    [(case, reentrant) for case in one_of_each(1) for reentrant in some([False, True], left_out=[True])],
    ids=lambda value: getattr(value, "name", value),
)
def test_checkpointing_changes_no_gradient(case, reentrant):
    saving = fresh(case)
    with check_refusal("activation checkpointing", case.name) as is_supported:
        saving.activation_checkpointing_enable({"use_reentrant": reentrant})
    if not is_supported:
        return
    assert saving.is_activation_checkpointing
    assert_gradients_alike(gradients_of(case, saving), plain_gradients(case.name))
    saving.activation_checkpointing_disable()
    assert not saving.is_activation_checkpointing


@pytest.mark.slow
@over_checkpointed
def test_an_adapter_in_the_first_layer_trains_with_reentrant_checkpoints(case):
    found = []
    for saves in (False, True):
        model = fresh(case).requires_grad_(False)
        _layers(model)[0].requires_grad_(True)
        if saves:
            model.activation_checkpointing_enable({"use_reentrant": True})
        found.append(gradients_of(case, model))
    assert found[0]
    assert_gradients_alike(found[1], found[0])


@pytest.mark.slow
@over_checkpointed
def test_checkpointing_recomputes_layers_and_can_leave_some(case):
    counts = []
    for settings in (None, {"every_n_layers": 1}, {"every_n_layers": 2}):
        model = fresh(case)
        inner = [_norm_in(layer) for layer in _layers(model)]
        calls = []
        for norm in inner:
            norm.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        if settings is not None:
            model.activation_checkpointing_enable(**settings)
        gradients_of(case, model)
        counts.append(len(calls))
    layers = len(inner)
    assert counts[0] == layers and counts[1] == 2 * layers
    assert layers < counts[2] < 2 * layers


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers that support checkpointing."""
    core = getattr(model, model.base_model_prefix, model) if model.base_model_prefix else model
    if hasattr(model, "language_model"):
        return list(model.language_model.get_submodule("model.layers"))
    stack = getattr(core, "layer_stack", None)
    if stack is not None and len(stack.layers):
        return list(stack.layers)
    if hasattr(model, "autoencoder"):
        return list(model.act.blocks.layers)
    return list(core.layers)


def _norm_in(layer: nn.Module) -> nn.Module:
    # The last one: teachers compute keys and values of prompts with the first modules of a layer. And its input: a
    # layer is recomputed only up to the last tensor that is needed.
    # By name, since language models have root mean square norms of their own.
    return [module for module in layer.modules() if type(module).__name__.endswith(("LayerNorm", "RMSNorm"))][-1]


# The queries of a detector are zeros before its first layer, whose norm has nothing to scale.
_OF_ZEROS = {f"{prefix}layers.0.self_attn_layer_norm.weight" for prefix in ("", "detr3d.")}


@pytest.mark.slow
@over_one_of_each(3)
def test_seeded_training_steps_are_deterministic(case):
    with check_refusal("gradients", case.name):
        first, second = plain_gradients(case.name), gradients_of(case, fresh(case))
        assert all(torch.equal(gradient, second[name]) for name, gradient in first.items())


@pytest.mark.slow
@over_cases
def test_every_trained_tensor_gets_a_gradient(case):
    model = built(case.name)[0]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with check_refusal("gradients", case.name) as is_supported:
        found = plain_gradients(case.name)
    if not is_supported:
        assert not trained
        return
    assert found.keys() == trained - unused_of(case)
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    still = {name for name, gradient in found.items() if not gradient.any()}
    still -= {name for name in found if name.endswith("bias") or name in unused_of(case) | _OF_ZEROS}
    if case.name == "ReconForZeroShotPointCloudClassification":
        # Texts are compared with two queries, which read the patches before these pass the last block.
        still = {name for name in still if not re.search(r"class_token|\.2\.(attention|mlp|norm2)\.", name)}
    assert not still


def unused_of(case: Case) -> set[str]:
    """Return the names of tensors that the loss of the case does not depend on."""
    names = {name for name, _ in built(case.name)[0].named_parameters()}
    if case.name == "SpatialLMModel":  # no scores of tokens
        return {name for name in names if "lm_head" in name}
    if case.name.startswith("MiniGPT3D"):
        # The stage of the tiny model uses only the first query set and no router; its body gives no scores of tokens.
        unused = ("experts.router", "lm_head") if case.labels is None else ("experts.router",)
        return {
            name
            for name in names
            if any(part in name for part in unused) or ("experts.queries" in name and ".0" not in name)
        }
    return set()
