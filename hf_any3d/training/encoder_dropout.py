"""Dropout inside the frozen attention while what surrounds it learns."""

from __future__ import annotations

from torch import nn

from hf_any3d.modeling.encoders.frozen_encoder import FROZEN
from hf_any3d.tuners.targets import encoder_owner

# Where transformers' attention modules keep the share, as a number or as a module.
_NAMES = ("attention_dropout", "dropout")


def drop_attention(model: nn.Module, share: float) -> int:
    """Let the frozen layers drop attention weights in training; frozen weights stay frozen, and evaluation as it was.

    A frozen encoder otherwise stays in eval mode. Nothing of this is saved with the model.

    Args:
        model: Has a frozen encoder, adapted or not.
        share: Share of the weights to drop, from 0 to less than 1.

    Returns:
        The number of attention modules.

    Raises:
        ValueError: A share out of range, or an encoder in which no such attention is found.

    Source: the released Any2Point programs for ScanObjectNN with DINOv2 and ImageBind (0.1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"share is {share}; expected at least 0 and less than 1")
    owner = encoder_owner(model)
    found = 0
    for layer in owner.layer_stack.layers:
        for module in layer.modules():
            name = _dropout_name(module)
            if name is None:
                continue
            if isinstance(getattr(module, name), nn.Dropout):
                getattr(module, name).p = share
            else:
                setattr(module, name, share)
            # The attention alone follows train() again; the linear layers in it have no mode.
            vars(module).pop(FROZEN, None)
            found += 1
    if not found:
        kind = type(getattr(owner, "encoder", owner)).__name__
        raise ValueError(
            f"{kind} has no attention with dropout under {' or '.join(_NAMES)}; expected "
            "another encoder or no such dropout"
        )
    return found


def _dropout_name(module: nn.Module) -> str | None:
    if "attention" not in type(module).__name__.lower():
        return None
    if not any(isinstance(child, nn.Linear) for child in module.children()):
        return None
    return next((name for name in _NAMES if isinstance(getattr(module, name, None), (float, int, nn.Dropout))), None)
