"""State that training changes without gradients, such as running statistics of norms: still below adapters.

An adapter is stored without the model below it. What a pass in training changes there would be lost, and the stored
adapter would answer otherwise than the trained one. So modules below an adapter that change themselves stay in
evaluation mode, as those of a frozen encoder do, whatever the method and whoever added it: norms take the statistics
that they were pretrained with. Modules that an adapter trains in full (`modules_to_save`, norms of LN tuning) are
copies, which follow `train()` and are stored with what changes in them.

A model without adapters trains as ever: all of it is stored.

Adapters of earlier versions were trained while these statistics moved, but where the base model held them itself. What
an adapter was trained with is in its file, so that the others are told apart.
"""

import warnings
from collections.abc import Collection

from torch import nn

from hf_any3d.modeling.pretrained_parts.tensors import own_modules

FROZEN = "_belongs_to_frozen_encoder"
"""Attribute that marks modules that no training changes, such as those of a frozen encoder."""
STATISTICS_OF_BASE = {"norm_statistics": "base"}
"""In `auto_mapping` of adapter_config.json: the adapter was trained with the statistics that its base model has."""


def has_adapters(model: nn.Module) -> bool:
    """Return whether modules of a model are inside adapters of PEFT, active or not."""
    return any("base_layer" in module._modules or "original_module" in module._modules for module in model.modules())


def changes_itself(module: nn.Module) -> bool:
    """Return whether a module, without those inside it, has state that it changes in passes in training mode.

    Such are norms with running statistics, of any library, and modules whose class has `changes_itself = True`.
    """
    return module._buffers.get("running_mean") is not None or getattr(type(module), "changes_itself", False)


def hold_statistics(model: nn.Module, is_frozen: bool = False) -> None:
    """Put modules below adapters that change themselves into evaluation mode; without adapters, nothing is done.

    Args:
        model: The model.
        is_frozen: Whether the model is frozen though no adapter is inside it, as below a learned prompt.
    """
    if not is_frozen and not has_adapters(model):
        return
    for own in own_modules(model):
        if own.module.training and changes_itself(own.module):
            own.module.training = False


def warn_of_moved_statistics(model: nn.Module, adapter: str, trained: Collection[str]) -> None:
    """Warn that an adapter of an earlier version was trained with statistics of norms that its file lacks.

    Args:
        model: The base model, with or without other adapters.
        adapter: What the adapter is called.
        trained: Its `modules_to_save`, whose statistics it holds.
    """
    endings = tuple(f".{name}." for name in trained)
    held = tuple(
        f"{own.name}." if own.name else ""
        for own in own_modules(model)
        # Point transformers and detectors held theirs.
        if getattr(type(own.module), "holds_statistics_below_adapters", False)
    )
    moved = [
        own.name
        for own in own_modules(model)
        if changes_itself(own.module)
        and FROZEN not in vars(own.module)
        and not own.name.startswith(held)
        and not any(ending in f".{own.name}." for ending in endings)
    ]
    if moved:
        warnings.warn(
            f"{adapter}: the adapter lacks the statistics of {len(moved)} norms, such as {moved[0]}, that it was "
            f"trained with by an earlier version, and this {type(model).__name__} has those from before: answers "
            "differ from the trained ones; train the adapter again",
            stacklevel=4,
        )
