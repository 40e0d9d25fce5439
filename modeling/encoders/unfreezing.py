"""Full fine-tuning: the encoder inside a model trains as well, and belongs to the model from then on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from hf_any3d.modeling.encoders.frozen_encoder import FrozenEncoderMixin


def unfreeze(model: PreTrainedModel, probe: Callable[[], torch.Tensor]) -> list[str]:
    """Let the encoder's parameters train that `probe` depends on, and have them stored with the model.

    A pretrained checkpoint holds more than a model reads of it, such as the embeddings of words. To count that as
    trained would be wrong, and training in several processes refuses parameters that never get a gradient.

    Args:
        model: A model with a frozen encoder, with or without a head.
        probe: Runs the model on any input and gives its output.

    Returns:
        Names of those parameters in the encoder.

    Raises:
        ValueError: If there are adapters in the encoder, or its weights are quantized.
    """
    owner = getattr(model, model.base_model_prefix, model)
    encoder = owner.encoder
    if strangers := sorted({type(m).__name__ for m in encoder.modules() if "base_layer" in m._modules}):
        raise ValueError(f"the encoder holds adapters ({', '.join(strangers)}); merge or unload them first")
    named = dict(encoder.named_parameters())
    if quantized := [name for name, parameter in named.items() if not parameter.is_floating_point()]:
        raise ValueError(f"the encoder's {quantized[0]} is {named[quantized[0]].dtype}; expected floating point")
    mode = model.training
    model.eval()
    encoder.requires_grad_(True)
    with torch.enable_grad():
        reached = torch.autograd.grad(probe().sum(), list(named.values()), allow_unused=True)
    trained = [name for name, gradient in zip(named, reached, strict=True) if gradient is not None]
    for name in named.keys() - set(trained):
        named[name].requires_grad_(False)
    owner._encoder_trains = True
    for module in model.modules():
        if isinstance(module, FrozenEncoderMixin):
            module.config.change_part("encoder", stored=True, checksum=None, subfolder=None)
    model.train(mode)
    return trained
