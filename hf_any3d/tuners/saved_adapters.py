"""Check saved adapters of any PEFT method and load them into models, with every tensor accounted for."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping
from typing import Any

from peft import PeftConfig, PeftModel
from peft.utils import get_peft_model_state_dict, load_peft_weights
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.config_checks import check_sizes
from hf_any3d.modeling.pretrained_parts.loading_checks import listed
from hf_any3d.tuners.config import check_patterns
from hf_any3d.tuners.targets import encoder_owner, trainable_module_names

# Sizes of adapters, by their names in PEFT's configs.
_SIZES = ("r", "num_virtual_tokens", "num_prompts", "oft_block_size", "boft_block_size", "n_frequency", "adapter_len")
_MAX_SIZE = 16_384


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


def load_adapter_into(
    model: PreTrainedModel, name: str, hub: dict[str, Any], ignore_mismatched_sizes: bool = False
) -> dict[str, list[Any]]:
    """Load the adapter of a directory or hub repository into a model, in place, for inference.

    `model.load_adapter` of transformers supports fewer methods than PEFT (neither VeRA nor the vectors of DoRA).

    Args:
        model: The model to adapt; its layers are wrapped.
        name: Directory or repository with `adapter_config.json`.
        hub: `revision`, `token`, `cache_dir` and the like.
        ignore_mismatched_sizes: Keep the initial values of tensors of another size, such as a head for other labels.

    Returns:
        `missing_keys`, `unexpected_keys` and `mismatched_keys` (name, stored size, size in the model), as transformers
        returns them; only the last may be non-empty.

    Raises:
        ValueError: If its settings are invalid, or tensors are missing or unexpected.
        RuntimeError: If sizes differ and `ignore_mismatched_sizes` is False.
    """
    config = PeftConfig.from_pretrained(name, **hub)
    check_adapter_config(config)
    config.inference_mode = True
    adapted = PeftModel(model, config)
    stored = {key: tensor.shape for key, tensor in load_peft_weights(name, device="cpu", **hub).items()}
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    expected = {key: tensor.shape for key, tensor in state.items()}
    if missing := sorted(expected.keys() - stored.keys()):
        raise ValueError(f"{name}: the adapter lacks {listed(missing)}")
    if unexpected := sorted(stored.keys() - expected.keys()):
        raise ValueError(f"{name}: the adapter has {listed(unexpected)}, which the model does not have")
    mismatched = sorted((key, shape, expected[key]) for key, shape in stored.items() if shape != expected[key])
    if mismatched and not ignore_mismatched_sizes:
        sizes = [f"{key} has shape {tuple(theirs)}, expected {tuple(ours)}" for key, theirs, ours in mismatched]
        raise RuntimeError(f"{name}: {listed(sizes)}; ignore_mismatched_sizes=True initialises them")
    adapted.load_adapter(name, "default", ignore_mismatched_sizes=ignore_mismatched_sizes, **hub)
    return {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": mismatched}


def check_adapter_config(config: PeftConfig) -> None:
    """Check that the settings of an untrusted adapter, of any PEFT method, cannot exhaust memory or time.

    Raises:
        ValueError: If a number is NaN, infinite or too large, a regular expression could take hours to match, or
            `megatron_config` is set.
    """
    if getattr(config, "megatron_config", None) is not None:
        # PEFT would import the module named there if it is Megatron, and refuse any other.
        raise ValueError("megatron_config is set; expected None, as these models have no Megatron layers")
    check_sizes(vars(config))
    sizes = {name: getattr(config, name, None) for name in _SIZES}
    ranks = getattr(config, "rank_pattern", None)
    sizes |= {f"rank_pattern[{name!r}]": rank for name, rank in ranks.items()} if isinstance(ranks, Mapping) else {}
    for name, size in sizes.items():
        if size is not None and not (isinstance(size, int) and 0 <= size <= _MAX_SIZE):
            raise ValueError(f"{name}={size!r}; expected a whole number from 0 to {_MAX_SIZE:,}")
    check_patterns(config)
