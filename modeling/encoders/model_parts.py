"""Whole pretrained models as parts of other models: opened without their heads, and restored in saved models."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.encoders.frozen_encoder import FrozenEncoderMixin
from hf_any3d.modeling.encoders.loading import load_encoder
from hf_any3d.modeling.hooks import hooks
from hf_any3d.modeling.pretrained_parts.adapter_tasks import SWITCH
from hf_any3d.modeling.pretrained_parts.loading import unused_weights_expected
from hf_any3d.modeling.pretrained_parts.record import PretrainedPart
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError, opened_source
from hf_any3d.modeling.pretrained_parts.tensors import (
    own_modules,
    own_state,
    own_tensors,
    remember_weights,
    tensors_checksum,
)

_ADAPTER = "default"


def open_pretrained_part(
    part: PretrainedPart,
    config: PreTrainedConfig | None = None,
    hub: Mapping[str, Any] | None = None,
    with_adapter: bool = False,
) -> tuple[PreTrainedModel, PretrainedPart]:
    """Open a pretrained model without its head, as a part of another one; return it, and its record with a checksum.

    Args:
        part: Its record; another checksum than the recorded one raises an EncoderMismatchError.
        config: Its config in a saved model; None for that of the checkpoint, of which the vision tower is taken if it
            has several.
        hub: `token`, `cache_dir` and the like.
        with_adapter: Whether it may have an adapter, which `settle_adapter` then takes over.
    """
    name = part.name_or_path
    loading = dict(hub or {}) | ({} if part.revision is None else {"revision": part.revision})
    # Auto classes ask the hub for whatever they are given, and their errors need not name it.
    hooks().check_name(name, loading)
    if config is None:
        config = AutoConfig.from_pretrained(name, **loading)
        config = getattr(config, "vision_config", None) or config
    with unused_weights_expected():  # heads and other towers
        model, report = AutoModel.from_pretrained(
            name, config=config, dtype=torch.float32, output_loading_info=True, **loading
        )
    if not with_adapter:
        refuse_adapter(model, name)
    # Poolers are not read, and heads of classifiers have none.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(f"{name} lacks weights of a {type(model).__name__}: {', '.join(missing[:8])}")
    checksum = tensors_checksum(own_state(model))
    if part.checksum not in (None, checksum):
        raise EncoderMismatchError(
            f"{name}: the weights have checksum {checksum}; expected {part.checksum}, that of the weights that the "
            "model around them was made with"
        )
    commit = part.revision if os.path.isdir(name) else opened_source(name, model.config, part.revision).revision
    remember_weights(model)
    return model, replace(part, revision=commit, checksum=checksum)


def refuse_adapter(model: PreTrainedModel, name: str) -> None:
    """Refuse a model with an adapter, whose weights the model around it would store and not find a place for again."""
    if has_adapter(model):
        raise ValueError(f"{name}: a {type(model).__name__} with an adapter; expected one after merge_and_unload()")


def has_adapter(model: PreTrainedModel) -> bool:
    """Return whether PEFT or transformers has added an adapter to a model."""
    return getattr(model, "_hf_peft_config_loaded", False) or hasattr(model, "peft_config")


def settle_adapter(model: PreTrainedModel, name: str) -> dict[str, Any]:
    """Make the adapter of a model a part of it, in place, and return what `build_adapter` needs to add it again."""
    # Here, since models without adapters open without PEFT.
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    adapters = model.peft_config
    if list(adapters) != [_ADAPTER]:
        raise ValueError(f"{name} has the adapters {', '.join(adapters)}; expected one, {_ADAPTER!r}")
    config = adapters[_ADAPTER]
    model._modules.pop(SWITCH, None)
    # PEFT keeps the original beside the trained copy: only the copy is used.
    for path, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, module.modules_to_save[_ADAPTER])
    layers = sorted(path for path, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    settings = {key: value for key, value in config.to_dict().items() if not isinstance(value, set)}
    # Names of layers, as patterns may have been meant for the model with its head; nothing is trained any more.
    settings |= {"target_modules": layers, "inference_mode": True, "modules_to_save": []}
    without = ("task_type", "base_model_name_or_path", "revision")
    settings = {key: value for key, value in settings.items() if value is not None and key not in without}
    settings["peft_type"] = str(getattr(config.peft_type, "value", config.peft_type))
    _forget_adapter(model)
    for module in model.modules():
        # The model around it initializes what is not marked.
        module._is_hf_initialized = True
    # Without memory: only names and shapes are compared, to find out now whether the part can be built again.
    with torch.device("meta"):
        twin = AutoModel.from_config(model.config)
        build_adapter(twin, settings)
    if {key: value.shape for key, value in twin.state_dict().items()} != {
        key: value.shape for key, value in model.state_dict().items()
    }:
        raise ValueError(
            f"{name}: an adapter of the method {settings['peft_type']}, whose layers cannot be added again to a part "
            "of a model; expected merge_and_unload() of PEFT, or another method"
        )
    return settings


def build_adapter(model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
    """Add the adapter that `settle_adapter` has described to a model, in place; its weights are untrained."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, inject_adapter_in_model

    config = PEFT_TYPE_TO_CONFIG_MAPPING[settings["peft_type"]](**settings)
    inject_adapter_in_model(config, model, _ADAPTER)
    _forget_adapter(model)


def _forget_adapter(model: PreTrainedModel) -> None:
    """Let the layers of an adapter be like any others, which are saved and loaded with the model."""
    model._hf_peft_config_loaded = False
    if hasattr(model, "peft_config"):
        del model.peft_config


def restore_part(model: PreTrainedModel, part: PretrainedPart) -> None:
    """Load the weights of a part that are kept elsewhere, and those of frozen encoders inside it."""
    if part.is_elsewhere:
        _take_weights(model, open_pretrained_part(part, model.config)[0])
    for inner in model.modules():
        if isinstance(inner, FrozenEncoderMixin) and inner.owns_part("encoder"):
            inner._encoder_is_random = False
            if inner.config.part("encoder").is_elsewhere:
                _take_weights(inner.encoder, load_encoder(inner.config, dtype=inner.encoder.dtype))


@torch.no_grad()
def _take_weights(model: PreTrainedModel, source: PreTrainedModel) -> None:
    """Copy the weights of a model that was opened elsewhere, without those of adapters, and mark them as complete."""
    # Weights in adapted layers have another path than in the model that was opened.
    paths = {own.name: own.path for own in own_tensors(model)}
    state = {paths[name]: tensor for name, tensor in source.state_dict().items()}
    # Without memory, the tensors of the source are taken; otherwise they are copied, to keep device and dtype.
    is_meta = any(weight.is_meta for weight in model.parameters())
    model.load_state_dict(state, strict=len(paths) == len(model.state_dict()), assign=is_meta)
    for (*_, module), (*_, other) in zip(own_modules(model), own_modules(source), strict=True):
        # Buffers outside the state dict (rotary frequencies) are uninitialized memory at this point.
        for buffer, loaded in zip(module.buffers(False), other.buffers(False), strict=True):
            buffer.data = loaded.data if buffer.is_meta else loaded.data.to(buffer)
        module._is_hf_initialized = True
        for tensor in (*module.parameters(False), *module.buffers(False)):
            tensor._is_hf_initialized = True
    remember_weights(model)
