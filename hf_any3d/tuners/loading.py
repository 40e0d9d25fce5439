"""Loading a stored adapter of any PEFT method into a model."""

from __future__ import annotations

from typing import Any

from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel


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
    """
    config = PeftConfig.from_pretrained(name, **hub)
    config.inference_mode = True
    loaded = PeftModel(model, config).load_adapter(name, "default", **hub)
    return {
        "missing_keys": sorted(loaded.missing_keys),
        "unexpected_keys": sorted(loaded.unexpected_keys),
        "mismatched_keys": [],
    }
