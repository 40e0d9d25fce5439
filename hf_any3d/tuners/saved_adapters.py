"""Check whether a saved adapter is complete, and whether a base model is the one that it was trained on."""

from __future__ import annotations

import dataclasses
import json
import warnings
from typing import Any

from peft import PeftModel
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.tuners.targets import encoder_owner, trainable_module_names


def left_out_modules(model: PeftModel, adapter_name: str) -> list[str]:
    """Return the names of modules that are neither pretrained nor saved with an adapter.

    If there are none, pretrained weights and adapter together are the complete model. Otherwise the adapter works only
    with the exact base model that it was trained on.
    """
    base = model.get_base_model()
    owner = encoder_owner(base)
    modules = {**dict(base.named_children()), **dict(owner.named_children())}
    # PEFT wraps modules that are trained in full and keeps one copy for each adapter.
    return [
        name
        for name in trainable_module_names(base)
        if adapter_name not in getattr(modules[name], "modules_to_save", ())
    ]


def check_base(model: PreTrainedModel, recorded: dict[str, Any], adapter: str) -> None:
    """Compare a base model with the one that an adapter was trained on.

    Args:
        model: The base model.
        recorded: The adapter's config.json.
        adapter: Name of the adapter's repository, for messages.

    Raises:
        EncoderMismatchError: If pretrained weights differ. Other differences give a warning.
    """
    model.check_adapter_base(recorded, adapter)
    config = model.config
    own = {field.name for field in dataclasses.fields(type(config))}
    own -= {field.name for field in dataclasses.fields(PreTrainedConfig)}
    different = [
        f"{name}={getattr(config, name)!r}, the adapter was trained with {recorded[name]!r}"
        for name in sorted(own & recorded.keys())
        if not name.startswith(model._settings_without_effect_on_adapters)
        and _plain(getattr(config, name)) != recorded[name]
    ]
    if different:
        warnings.warn(f"{adapter}: the base model differs: {'; '.join(different)}", UserWarning, stacklevel=4)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
