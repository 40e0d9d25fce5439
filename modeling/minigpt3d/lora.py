"""LoRA of MiniGPT-3D's own, in its language model and Q-Former, which its training stages train and its files hold.

PEFT decides which layers get it and how it starts; what stays in the model are layers of its own, `LowRankLinear`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_any3d.modeling.layers.low_rank import EARLIER_NAMES, INNER, LowRankLinear
from hf_any3d.modeling.pretrained_parts.loading import is_quantized

EARLIER_PATTERNS: Mapping[str, str] = {
    rf"\.{re.escape(name)}": f".{present}" for name, present in EARLIER_NAMES.items()
}
"""Names of tensors in models of earlier versions to today's, as `key_mapping`."""


def add_low_rank(part: nn.Module, settings: Mapping[str, Any]) -> None:
    """Add LoRA of a model's own to a part of it, in place; everything else in the part is frozen.

    PEFT decides which layers get it, with which ranks, and how it starts.

    Args:
        part: The part.
        settings: Arguments of `peft.LoraConfig`.

    Raises:
        ValueError: They ask for more than two matrices beside a linear layer; names it.
    """
    # They take a second.
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    config = LoraConfig(**settings)
    inject_adapter_in_model(config, part)
    name = "default"
    for path, layer in list(part.named_modules()):
        if isinstance(layer, ModulesToSaveWrapper):
            raise ValueError(f"LoRA of {type(part).__name__}: modules_to_save={config.modules_to_save}; expected none")
        if not isinstance(layer, BaseTunerLayer):
            continue
        variant = getattr(layer, "lora_variant", {}).get(name)
        if variant is not None:
            raise ValueError(f"LoRA of {type(part).__name__}: a {type(variant).__name__}; expected plain LoRA")
        matrices = [getattr(layer, key, {}) for key in ("lora_A", "lora_B")]
        if not all(name in each and type(each[name]) is nn.Linear for each in matrices):
            kind = type(layer.get_base_layer()).__name__
            raise ValueError(f"LoRA of {type(part).__name__}: {path} is a {kind}; expected linear layers")
        own: Any = layer
        added = LowRankLinear(
            own.get_base_layer(),
            own.lora_A[name].weight,
            own.lora_B[name].weight,
            own.scaling[name],
            own.lora_dropout[name],
            own.lora_B[name].bias,
        )
        part.set_submodule(path, added.train(part.training))
    # By these, PEFT and transformers would take it for a model with an adapter.
    vars(part).pop("peft_config", None)
    if hasattr(part, "_hf_peft_config_loaded"):
        part._hf_peft_config_loaded = False  # pyright: ignore[reportAttributeAccessIssue]


def merge_lora(model: PreTrainedModel) -> PreTrainedModel:
    """Merge the model's own LoRA into the weights of its layers, in place: the same outputs, computed faster.

    The model's config has no LoRA afterwards, and it is saved with all weights, which are no longer those of its
    pretrained parts.
    """
    if is_quantized(model):
        raise ValueError("the model was loaded quantized; expected full weights to merge LoRA into")
    merge_low_rank(model)
    model.store_parts()
    model.config.text_lora = model.config.qformer_lora = None
    return model


def merge_low_rank(model: nn.Module) -> None:
    """Replace each `LowRankLinear` inside a model by its merged layer, in place."""
    # A list, since layers are replaced while they are visited.
    for path, layer in list(model.named_modules()):
        if isinstance(layer, LowRankLinear):
            model.set_submodule(path, layer.merged())


def names_in(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Map names of tensors, with or without LoRA, to those in a model with LoRA; unknown names are unchanged."""
    own = {*dict(model.named_parameters()), *dict(model.named_buffers())}

    prefix = f"{getattr(model, 'base_model_prefix', '')}."

    def find(name: str) -> str:
        for candidate in (name, prefix + name):  # a name in the body
            layer, _, kind = candidate.rpartition(".")
            for path in (candidate, name_of_today(candidate), f"{layer}.{INNER}.{kind}"):
                if path in own:
                    return path
        return name

    return {name: find(name) for name in names}


def name_of_today(name: str) -> str:
    """Return the present name of a tensor of an earlier version; see `EARLIER_NAMES`."""
    for earlier, present in EARLIER_NAMES.items():
        name = name.replace(f".{earlier}", f".{present}")
    return name
