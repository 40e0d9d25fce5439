"""LoRA of MiniGPT-3D's language model and Q-Former: merge it, and find tensors beside it."""

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from hf_any3d.modeling.pretrained_parts.loading import is_quantized


def merge_lora(model: PreTrainedModel) -> PreTrainedModel:
    """Merge LoRA into the weights of its layers, in place: the same outputs, computed faster.

    The model's config has no LoRA afterwards, and it is saved with all weights, which are no longer those of its
    pretrained parts.
    """
    from peft.tuners.lora import LoraLayer  # takes a second

    if is_quantized(model):
        raise ValueError("the model was loaded quantized; expected full weights to merge LoRA into")
    # A list, since layers are replaced while they are visited.
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            # An error for weights with NaN, instead of a model that has them everywhere.
            layer.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
    model.store_parts()
    model.config.text_lora = model.config.qformer_lora = None
    return model


def names_in(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Map names of tensors, with or without LoRA, to those in a model with LoRA; unknown names are unchanged."""
    own = {*dict(model.named_parameters()), *dict(model.named_buffers())}

    prefix = f"{getattr(model, 'base_model_prefix', '')}."

    def find(name: str) -> str:
        for candidate in (name, prefix + name):  # a name in the body
            layer, _, kind = candidate.rpartition(".")
            # PEFT moves the weights of a layer with LoRA below `base_layer`.
            for path in (candidate, f"{layer}.base_layer.{kind}"):
                if path in own:
                    return path
        return name

    return {name: find(name) for name in names}
