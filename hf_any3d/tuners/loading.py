"""Loading a stored adapter of any PEFT method into a model, with every tensor accounted for."""

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
from hf_any3d.tuners.layers_config import check_patterns
from hf_any3d.tuners.targets import encoder_owner, trainable_module_names


def left_out_modules(model: PeftModel, adapter_name: str) -> list[str]:
    """Names of the modules beside what is pretrained that are not saved with an adapter.

    With none left out, what is pretrained and the adapter together make the model. Otherwise the adapter is worth
    nothing without the very base model that it was trained on.
    """
    base = model.get_base_model()
    owner = encoder_owner(base)
    modules = {**dict(base.named_children()), **dict(owner.named_children())}
    # PEFT's wrapper around a module that is trained in full keeps one copy for each adapter.
    return [
        name
        for name in trainable_module_names(base)
        if adapter_name not in getattr(modules[name], "modules_to_save", ())
    ]


def check_base(model: PreTrainedModel, recorded: dict[str, Any], adapter: str) -> None:
    """Compare a base model with the one that an adapter was trained on.

    Args:
        model: The base model at hand.
        recorded: The config.json beside the adapter.
        adapter: Name of the adapter's repository, for messages.

    Raises:
        EncoderMismatchError: If what is pretrained has different weights. Other differences give a warning.
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


# Ranks and the like, by the names that PEFT's methods have for them.
_WIDTHS = ("r", "num_virtual_tokens", "num_prompts", "oft_block_size", "boft_block_size", "n_frequency", "adapter_len")
_WIDEST = 16_384


def load_adapter_into(
    model: PreTrainedModel, name: str, hub: dict[str, Any], ignore_mismatched_sizes: bool = False
) -> dict[str, list[Any]]:
    """Load the adapter of a directory or hub repository into a model, in place, for inference.

    Not by `model.load_adapter`: transformers' own way in knows fewer methods than PEFT (neither VeRA nor the vectors
    of DoRA).

    Args:
        model: The model to adapt; its layers are wrapped.
        name: Directory or repository with `adapter_config.json`.
        hub: `revision`, `token`, `cache_dir` and the like.
        ignore_mismatched_sizes: Leave tensors of another size, such as a head for other labels, as they start.

    Returns:
        `missing_keys`, `unexpected_keys` and `mismatched_keys` (name, stored size, size in the model), as transformers
        gives them; the last alone may have any.

    Raises:
        ValueError: If its settings are none that an adapter can have, or it lacks tensors of the model or has others.
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
        raise ValueError(f"{name}: the adapter has {listed(unexpected)}, for which the model has no place")
    mismatched = sorted((key, shape, expected[key]) for key, shape in stored.items() if shape != expected[key])
    if mismatched and not ignore_mismatched_sizes:
        sizes = [f"{key} has shape {tuple(theirs)}, expected {tuple(ours)}" for key, theirs, ours in mismatched]
        raise RuntimeError(f"{name}: {listed(sizes)}; ignore_mismatched_sizes=True starts them fresh")
    adapted.load_adapter(name, "default", ignore_mismatched_sizes=ignore_mismatched_sizes, **hub)
    return {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": mismatched}


def check_adapter_config(config: PeftConfig) -> None:
    """Make sure that the settings of a stored adapter, of any method of PEFT, are none that take for ever.

    Raises:
        ValueError: A number is NaN, infinite or larger than any adapter has it, a regular expression is one that could
            be matched for hours, or the settings are those of Megatron.
    """
    if getattr(config, "megatron_config", None) is not None:
        # PEFT would import Megatron, which is seldom there; other modules than that it refuses by itself.
        raise ValueError("megatron_config is set; expected None, as layers of Megatron are not in our models")
    check_sizes(vars(config))
    widths = {name: getattr(config, name, None) for name in _WIDTHS}
    ranks = getattr(config, "rank_pattern", None)
    widths |= {f"rank_pattern[{name!r}]": rank for name, rank in ranks.items()} if isinstance(ranks, Mapping) else {}
    for name, width in widths.items():
        if width is not None and not (isinstance(width, int) and 0 <= width <= _WIDEST):
            raise ValueError(f"{name}={width!r}; expected a whole number from 0 to {_WIDEST:,}")
    check_patterns(config)
