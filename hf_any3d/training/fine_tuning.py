"""Which parameters of a pretrained point transformer fine-tuning changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Tuning:
    """A protocol of fine-tuning.

    Args:
        trains: Whether a parameter of the base model is trained, by its name in there; the head always is.
        config: Settings of the model's config that belong to it.
    """

    trains: Callable[[str], bool]
    config: Mapping[str, Any] = field(default_factory=dict)


def _is_class_token(name: str) -> bool:
    return name.startswith("class_token.")


TUNINGS: dict[str, Tuning] = {
    "full": Tuning(lambda name: True),
    "linear": Tuning(_is_class_token, {"head_widths": []}),
    "mlp-3": Tuning(_is_class_token),
    "bitfit": Tuning(lambda name: _is_class_token(name) or "bias" in name),
    "side": Tuning(lambda name: _is_class_token(name) or name.startswith("side"), {"side_network": True}),
}
"""By name: all; a linear head; a head of three layers; biases; a small network beside the frozen one. All but the
first also train class token and head (ACT, arXiv 2212.08320, Sec. 4.1, with the details of its released program)."""


def apply_tuning(model: PreTrainedModel, name: str, *, frozen_in_training_mode: bool = False) -> None:
    """Let train what a protocol trains, and nothing else.

    Modules of which nothing is trained stay in eval mode, whatever `train()` says: their batch norms keep the
    statistics that they have, and no branch is left out.

    Args:
        model: A model with a head, around a base model.
        name: One of `TUNINGS`.
        frozen_in_training_mode: Let them follow `train()`, as the released programs do; statistics then drift.

    Raises:
        ValueError: An unknown protocol.
    """
    if name not in TUNINGS:
        raise ValueError(f"tuning {name!r} is unknown; expected one of {', '.join(TUNINGS)}")
    base = getattr(model, model.base_model_prefix)
    for path, parameter in base.named_parameters():
        parameter.requires_grad_(TUNINGS[name].trains(path))
    if not frozen_in_training_mode:
        model.register_forward_pre_hook(_keep_frozen_still)


def _keep_frozen_still(module: nn.Module, inputs: tuple) -> None:
    for child in module.children() if module.training else ():
        if (parameters := list(child.parameters())) and not any(p.requires_grad for p in parameters):
            child.eval()
        else:
            _keep_frozen_still(child, inputs)
