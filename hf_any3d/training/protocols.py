"""Which parameters of a point transformer are fine-tuned: the protocols that papers compare."""

from __future__ import annotations

import re

from torch import nn
from transformers import PreTrainedModel

from hf_any3d.modeling.encoders.frozen_encoder import FROZEN

# What trains within the base model, by regular expression; all around it, the head, trains anyway.
_IN_BASE = {
    "full": r"",
    "head": r"^class_token\.",
    "linear": r"^class_token\.",
    "mlp-3": r"^class_token\.",
    "side": r"^class_token\.|^side(\.|_)",
    "bitfit": r"^class_token\.|\.bias$",
}
PROTOCOLS = tuple(_IN_BASE)


def set_trainable(model: PreTrainedModel, protocol: str, *, drifting_statistics: bool = False) -> list[str]:
    """Let some parameters train and freeze the others, as a protocol of fine-tuning says.

    - "full": all.
    - "head": the head, whatever it is, and class token and position; "linear" and "mlp-3" are the same for models
      whose head is just that, and refuse others.
    - "side": those, and the side network.
    - "bitfit": those, and all biases.

    Args:
        model: A point transformer with a head, such as `ActForPointCloudClassification`.
        protocol: One of `PROTOCOLS`.
        drifting_statistics: Let parts without any trained parameter follow `train()`: their batch norms then go on
            measuring and drop path acts, as in the released programs. By default such parts stay in eval mode.

    Returns:
        Names of the parameters that train.

    Raises:
        ValueError: An unknown protocol, or a model that has not the head or the side network that it is about.

    Source: ACT, Sec. 4 (full, MLP-Linear, MLP-3); its released programs (side, bit-fit).
    """
    if protocol not in _IN_BASE:
        raise ValueError(f"protocol={protocol!r}; expected one of {', '.join(PROTOCOLS)}")
    _check(model, protocol)
    prefix = f"{model.base_model_prefix}."
    names = []
    for name, parameter in model.named_parameters():
        inner = name.removeprefix(prefix)
        trains = inner == name or re.search(_IN_BASE[protocol], inner) is not None
        parameter.requires_grad_(trains)
        if trains:
            names.append(name)
    for module in model.modules():
        vars(module).pop(FROZEN, None)
    if not drifting_statistics:
        _freeze_whole_parts(model)
    model.train(model.training)
    return names


def _check(model: PreTrainedModel, protocol: str) -> None:
    if getattr(model, model.base_model_prefix, None) is None:
        raise ValueError(f"{type(model).__name__} has no head; expected a model with one, to be fine-tuned")
    widths = tuple(getattr(model.config, "head_widths", ()))
    if protocol == "linear" and widths:
        raise ValueError(f"protocol='linear': the head has hidden layers, head_widths={widths}; expected ()")
    if protocol == "mlp-3" and len(widths) != 2:
        raise ValueError(f"protocol='mlp-3': head_widths={widths}; expected two hidden layers")
    if protocol == "side" and not getattr(model.config, "side_network", False):
        raise ValueError("protocol='side': the model has no side network; expected side_network=True in its config")


def _freeze_whole_parts(module: nn.Module) -> None:
    """Mark the largest parts that hold parameters of which none trains; their modules stay in eval mode."""
    for child in module.children():
        parameters = list(child.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            for inner in child.modules():
                setattr(inner, FROZEN, True)
        else:
            _freeze_whole_parts(child)
