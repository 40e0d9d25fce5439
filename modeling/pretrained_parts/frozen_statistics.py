"""What training changes without gradients, such as running statistics of norms, stands still below adapters.

An adapter is stored without the model below it. What a pass in training changes there would be lost, and the stored
adapter would answer otherwise than the trained one. So modules below an adapter that change themselves stay in
evaluation mode, as those of a frozen encoder do, whatever the method and whoever added it: norms take the statistics
that they were pretrained with. Modules that an adapter trains in full (`modules_to_save`, norms of LN tuning) are
copies, which follow `train()` and are stored with what changes in them.

A model without adapters trains as ever: all of it is stored.
"""

from torch import nn

from hf_any3d.modeling.pretrained_parts.tensors import own_modules


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
