"""Loading a stored adapter of any PEFT method into a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel

from hf_any3d.modeling.config_checks import check_sizes
from hf_any3d.tuners.layers_config import check_patterns

# Ranks and the like, by the names that PEFT's methods have for them.
_WIDTHS = ("r", "num_virtual_tokens", "num_prompts", "oft_block_size", "boft_block_size", "n_frequency", "adapter_len")
_WIDEST = 16_384


def put_adapter_into(model: PreTrainedModel, name: str, hub: dict[str, Any]) -> dict[str, list[str]]:
    """Load the adapter of a directory or hub repository into a model, in place, for inference.

    Not by `model.load_adapter`: transformers' own way in knows fewer methods than PEFT (neither VeRA nor the vectors
    of DoRA).

    Args:
        model: The model to adapt; its layers are wrapped.
        name: Directory or repository with `adapter_config.json`.
        hub: `revision`, `token`, `cache_dir` and the like.

    Returns:
        `missing_keys`, `unexpected_keys` and `mismatched_keys` of the stored adapter against the model.

    Raises:
        ValueError: The stored settings are none that an adapter can have.
    """
    config = PeftConfig.from_pretrained(name, **hub)
    check_adapter_config(config)
    config.inference_mode = True
    loaded = PeftModel(model, config).load_adapter(name, "default", **hub)
    return {
        "missing_keys": sorted(loaded.missing_keys),
        "unexpected_keys": sorted(loaded.unexpected_keys),
        "mismatched_keys": [],
    }


def check_adapter_config(config: PeftConfig) -> None:
    """Make sure that the settings of a stored adapter, of any method of PEFT, are none that take for ever.

    Raises:
        ValueError: A number is NaN, infinite or larger than any adapter has it, or a regular expression is one that
            could be matched for hours.
    """
    check_sizes(vars(config))
    widths = {name: getattr(config, name, None) for name in _WIDTHS}
    ranks = getattr(config, "rank_pattern", None)
    widths |= {f"rank_pattern[{name!r}]": rank for name, rank in ranks.items()} if isinstance(ranks, Mapping) else {}
    for name, width in widths.items():
        if width is not None and not (isinstance(width, int) and 0 <= width <= _WIDEST):
            raise ValueError(f"{name}={width!r}; expected a whole number from 0 to {_WIDEST:,}")
    check_patterns(config)
