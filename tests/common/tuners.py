"""Configs of PEFT methods, of this package and stock, for every registered model class."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import (
    BOFTConfig,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from torch import nn
from transformers import PreTrainedModel

from hf_any3d import (
    APPTConfig,
    DAPTConfig,
    GuidedAdapterConfig,
    IDPTConfig,
    PointGSTConfig,
    PPTConfig,
    PromptTokensConfig,
    SideTuningConfig,
    trainable_module_names,
)
from hf_any3d.modeling.act import ActForPreTraining
from hf_any3d.tuners.targets import layer_stack
from tests.common.models import CASES, Case, relative_difference
from tests.copies import Copies
from tests.tiny_detr3d import ON_ENCODER as DETECTOR

ALL = (*CASES, DETECTOR)
ADAPTED = [case for case in ALL if case.is_adapted]
# Initial weights have an effect, training is deterministic, and tensors are small.
_TINY: dict[str, Callable[..., PeftConfig]] = {
    "GUIDED_ADAPTER": functools.partial(
        GuidedAdapterConfig, r=4, init_weights=False, bottleneck_dropout=0.0, gate=0.8
    ),
    "PROMPT_TOKENS": functools.partial(PromptTokensConfig, num_prompts=3),
    "SIDE_TUNING": functools.partial(SideTuningConfig, r=8, init_weights=False),
    "POINTGST": functools.partial(PointGSTConfig, r=4, local_size=8, init_weights=False),
    "IDPT": functools.partial(IDPTConfig, prompt_layers=0, neighbors=3),
    "DAPT": functools.partial(DAPTConfig, r=4, init_weights=False),
    "PPT": functools.partial(PPTConfig, num_groups=4, group_size=6, r=8),
    "APPT": functools.partial(APPTConfig, order_table=True),
}


def registered_here() -> dict[str, type[PeftConfig]]:
    """Names of the PEFT methods that this package registers, with their configurations."""
    return {
        str(name.value): PEFT_TYPE_TO_CONFIG_MAPPING[name]
        for name, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()
        if tuner.__module__.startswith("hf_any3d.") and name in PEFT_TYPE_TO_CONFIG_MAPPING
    }


OWN: dict[str, Callable[..., PeftConfig]] = registered_here() | _TINY
"""By PEFT's name of the method: every registered one, with its defaults where there are no tiny settings."""


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in _in_layers(model) if isinstance(module, nn.Linear)}


def _in_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Iterate over the modules in the layers for point tokens, or in those of the language model if there is one."""
    language_model = getattr(model, "language_model", None)
    try:
        inside = layer_stack(model).layers if language_model is None else language_model
    except ValueError:  # a model without point tokens
        inside = getattr(model, "base_model", model).layers
    own = {id(module) for module in inside.modules()}
    return ((name, module) for name, module in model.named_modules() if id(module) in own)


def _with_saved(model: PreTrainedModel, settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings of a stock method, by default with modules_to_save."""
    try:
        return {"modules_to_save": trainable_module_names(model)} | settings
    except ValueError:  # a model whose parts are all pretrained
        return settings


def _lora(model: PreTrainedModel, **settings: Any) -> LoraConfig:
    return LoraConfig(r=2, target_modules=list(_linears(model)), **_with_saved(model, settings))


def _ia3(model: PreTrainedModel, **settings: Any) -> IA3Config:
    names = list(_linears(model))
    return IA3Config(target_modules=names, feedforward_modules=[], **_with_saved(model, settings))


def _vera(model: PreTrainedModel, **settings: Any) -> VeraConfig:
    # Shared matrices require layers of equal shape.
    square = [name for name, linear in _linears(model).items() if linear.in_features == linear.out_features]
    return VeraConfig(r=4, target_modules=square, d_initial=0.5, **_with_saved(model, settings))


def _boft(model: PreTrainedModel, **settings: Any) -> BOFTConfig:
    return BOFTConfig(boft_block_size=4, target_modules=list(_linears(model)), **_with_saved(model, settings))


def _oft(model: PreTrainedModel, **settings: Any) -> OFTConfig:
    return OFTConfig(oft_block_size=4, target_modules=list(_linears(model)), **_with_saved(model, settings))


def _ln_tuning(model: PreTrainedModel, **settings: Any) -> LNTuningConfig:
    norms = [name for name, module in _in_layers(model) if type(module).__name__.endswith(("LayerNorm", "RMSNorm"))]
    return LNTuningConfig(target_modules=norms, **_with_saved(model, settings))


STOCK: dict[str, Callable[..., PeftConfig]] = {
    "LORA": _lora,
    "DORA": functools.partial(_lora, use_dora=True),
    "IA3": _ia3,
    "VERA": _vera,
    "BOFT": _boft,
    "OFT": _oft,
    "LN_TUNING": _ln_tuning,
}
METHODS = (*OWN, *STOCK)


def assert_same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Check that outputs differ by less than a tolerance, in standard deviations of the expected ones."""
    assert relative_difference(found, expected) < tolerance


def assert_apart(found: torch.Tensor, expected: torch.Tensor, least: float = 5e-3) -> None:
    """Check that outputs differ by more than that."""
    assert relative_difference(found, expected) > least


def name_of(value: Case | str) -> str:
    """Return the name of a model, or a method or task as it is, for the names of tests."""
    return value if isinstance(value, str) else value.name


def config_of(method: str, model: PreTrainedModel, **settings: Any) -> PeftConfig:
    """Return a config of a method for a model."""
    if method == "APPT" and isinstance(model, ActForPreTraining):
        # Refused: the table has a row for each token, and some of these are hidden.
        settings = {"order_table": False} | settings
    return OWN[method](**settings) if method in OWN else STOCK[method](model, **settings)


_BUILT: dict[str, Copies[PreTrainedModel]] = {}


def base_of(case: Case) -> PreTrainedModel:
    """Return a tiny model of a class, always equal and deterministic in training."""
    if case.name not in _BUILT:
        _BUILT[case.name] = Copies(case.still())
    return _BUILT[case.name].another()


def adapted(case: Case, method: str, seed: int = 1, **settings: Any) -> PeftModel:
    """Return a tiny model with an untrained adapter, in eval mode."""
    base = base_of(case)
    torch.manual_seed(seed)
    return get_peft_model(base, config_of(method, base, **settings)).eval()


_TRAINED: dict[tuple[str, str, int], Copies[PeftModel]] = {}


def trained(case: Case, method: str, seed: int = 1, **settings: Any) -> PeftModel:
    """Return the same after one large training step, in eval mode."""
    known = (case.name, method, seed)
    if not settings and known in _TRAINED:
        return _TRAINED[known].another()
    model = adapted(case, method, seed, **settings)
    step(case, model, seed)
    if not settings:
        _TRAINED[known] = Copies(model)
        return _TRAINED[known].another()
    return model


def step(case: Case, model: nn.Module, seed: int = 1) -> None:
    """Take a step that changes every trained parameter by 0.005, in the direction of its gradient's sign."""
    model.train()
    model.zero_grad()
    case.loss_of(model, seed=seed).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.grad is not None:
                parameter.sub_(parameter.grad.sign() * 0.005)
    model.zero_grad()
    model.eval()


@torch.no_grad()
def answer_of(case: Case, model: nn.Module) -> torch.Tensor:
    """Return the model's output for the case's batch, in float32."""
    return case.answer_of(model.eval()(**case.batch())).float()
