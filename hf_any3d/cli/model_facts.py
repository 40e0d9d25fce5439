"""Facts about a model, read from its configuration files."""

import itertools
from typing import Any

import torch
from peft import PeftConfig, PeftType, get_peft_model
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from hf_any3d.integration.registration import MODELS, register
from hf_any3d.model_card.run_report import count_parameters
from hf_any3d.modeling.minigpt3d import MiniGPT3DConfig, MiniGPT3DPreTrainedModel, set_stage, trained_names
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.registry import check_model_type

# Config fields with the number of tokens of a cloud.
_TOKENS = ("num_query_tokens", "num_tokens", "num_groups")


def model_facts(name_or_path: str, revision: str | None = None) -> dict[str, Any]:
    """Describe a model of this package: encoder, adapter, parameters, labels or codes, inputs.

    Parameters are counted on the meta device, so no weights are loaded.

    Args:
        name_or_path: Directory or hub name.
        revision: Branch, tag or commit on the hub.

    Returns:
        Facts by name, all of plain types; `tokens` is None for a model without tokens, and `batch-dependent` lists
        flags that make predictions depend on the other clouds of a batch.

    Raises:
        ValueError: If it is not a model of this package.
        OSError: If it does not exist.
    """
    register()
    config = AutoConfig.from_pretrained(name_or_path, revision=revision)
    check_model_type(name_or_path, config.model_type)
    adapter = _adapter_config(name_or_path, revision)
    trained, total = _count(config, adapter)
    kind = (config.architectures or [type(config).__name__])[0]
    facts = {"model": name_or_path, "class": kind, **_encoder_facts(config), **_part_facts(config)}
    facts |= {
        "adapter": None if adapter is None else PeftType(adapter.peft_type).value.lower(),
        "trained parameters": trained,
        "total parameters": total,
    }
    if hasattr(config, "num_codes"):
        facts["codes"] = config.num_codes
    elif not isinstance(config, MiniGPT3DConfig):
        facts["labels"] = [label for _, label in sorted((config.id2label or {}).items())]
    return facts | {
        "points": _num_points(name_or_path, revision),
        "channels": config.in_channels,
        "tokens": next((getattr(config, name) for name in _TOKENS if hasattr(config, name)), None),
        "batch-dependent": getattr(config, "batch_dependent_flags", []),
    }


def _encoder_facts(config: PreTrainedConfig) -> dict[str, Any]:
    """Describe a pretrained encoder; empty for models without one."""
    encoder = getattr(config, "encoder_config", None)
    if encoder is None:
        return {}
    return {
        "encoder": config.encoder_name_or_path or "stored with the model",
        "encoder trained from": config.encoder_trained_from,
        "encoder type": encoder.model_type,
        "encoder tower": getattr(config, "encoder_tower", None),
        "encoder layers": encoder.num_hidden_layers,
        "encoder width": encoder.hidden_size,
        "encoder revision": config.encoder_revision,
        "encoder checksum": config.encoder_checksum,
    }


def _part_facts(config: PreTrainedConfig) -> dict[str, Any]:
    """Describe the pretrained parts of MiniGPT-3D; empty for other models."""
    if not isinstance(config, MiniGPT3DConfig):
        return {}
    kinds: dict[str, Any] = {
        "point_encoder": config.point_config,
        "qformer": config.qformer_config,
        "language_model": config.text_config,
    }
    facts: dict[str, Any] = {"stage of training": config.stage}
    for part, part_config in kinds.items():
        title, recorded = part.replace("_", " "), (config.parts or {}).get(part)
        facts[f"{title} type"] = part_config.model_type
        facts[title] = recorded["name_or_path"] if recorded else "stored with the model"
        if recorded:
            facts |= {f"{title} {key}": recorded.get(key) for key in ("revision", "checksum")}
    return facts


def _adapter_config(name: str, revision: str | None) -> PeftConfig | None:
    path = cached_file(name, ADAPTER_CONFIG_NAME, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if path is None else PeftConfig.from_pretrained(name, revision=revision)


def _num_points(name: str, revision: str | None) -> int | None:
    try:
        return PointCloudProcessor.from_pretrained(name, revision=revision or "main").num_points
    except OSError:  # saved without a processor
        return None


def _count(config: PreTrainedConfig, adapter: PeftConfig | None) -> tuple[int, int]:
    base, heads = MODELS[type(config)]
    named = {model.__name__: model for model in (base, *itertools.chain(*heads.values()))}
    # Parameters are counted without memory for them.
    with torch.device("meta"):
        model = named.get((config.architectures or [""])[0], base)(config)
        if isinstance(model, MiniGPT3DPreTrainedModel) and config.stage:
            set_stage(model, config.stage)
        if adapter is not None:
            # A saved adapter is set to inference, in which none of its parameters would count as trained.
            adapter.inference_mode = False
            model = get_peft_model(model, adapter)
    trained, total = count_parameters(model)
    if isinstance(model, MiniGPT3DPreTrainedModel):  # its stage defines the trained parameters
        trained = sum(model.base_model.get_parameter(name).numel() for name in trained_names(model))
    return trained, total
