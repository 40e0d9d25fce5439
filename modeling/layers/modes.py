"""Mode of models that answer, and settings by which the clouds of a batch change each other's answers."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode; afterwards each of its modules is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        # Not by `train`, which would also put modules into training mode that were not.
        for module in training:
            module.training = True


def batch_dependent_flags(model: nn.Module) -> list[str]:
    """Return the settings of a model and its adapters by which predictions depend on the other clouds of a batch."""
    # PEFT has a dictionary of configs by name; other libraries may use the attribute for something else.
    adapters = getattr(model, "peft_config", None)
    configs = [model.config, *(adapters.values() if isinstance(adapters, dict) else ())]
    return [flag for config in configs for flag in getattr(config, "batch_dependent_flags", None) or ()]
