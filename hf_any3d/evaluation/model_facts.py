"""Facts about a model, read from its configuration files."""

import contextlib
import itertools
from typing import Any

import torch
from peft import PeftConfig, PeftType, get_peft_model
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from hf_any3d.integration.registration import MODELS, register
from hf_any3d.model_card.run_report import count_parameters
from hf_any3d.modeling.pretrained_parts.record import PretrainedPart
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.registry import MODEL_TYPES, check_model_type

# Config fields with the number of tokens of a cloud.
_TOKENS = ("num_query_tokens", "num_tokens", "num_groups")


def model_facts(name_or_path: str, revision: str | None = None) -> dict[str, Any]:
    """Describe a model of this package: encoder, adapter, parameters, labels or codes, inputs.

    Parameters are counted on the meta device, so no weights are loaded.

    Facts are of plain types; `tokens` is None for a model without tokens, and `batch-dependent` lists flags that make
    predictions depend on the other clouds of a batch.
    """
    config, adapter = open_configs(name_or_path, revision)
    points = None
    with contextlib.suppress(OSError):  # saved without a processor
        points = PointCloudProcessor.from_pretrained(name_or_path, revision=revision or "main").num_points
    # Parameters are counted without memory for them.
    with torch.device("meta"):
        model = build_model(config, adapter)
    trained, total = count_parameters(model)
    # Also those of earlier stages. An adapter around such a model, which forwards attributes, trains its own alone.
    if hasattr(type(model), "trained_by_stages"):
        trained = sum(model.base_model.get_parameter(name).numel() for name in model.trained_by_stages())
    facts: dict[str, Any] = {
        "model": name_or_path,
        "class": (config.architectures or [type(config).__name__])[0],
    }
    # Only models around an encoder of another modality keep its config.
    if getattr(config, "encoder_config", None) is not None:
        facts |= {
            "encoder": config.encoder_name_or_path or "stored with the model",
            "encoder trained from": config.encoder_trained_from,
            "encoder type": config.encoder_config.model_type,
            "encoder tower": getattr(config, "encoder_tower", None),
            "encoder layers": config.encoder_config.num_hidden_layers,
            "encoder width": config.encoder_config.hidden_size,
            "encoder revision": config.encoder_revision,
            "encoder checksum": config.encoder_checksum,
        }
    is_chat = MODEL_TYPES[config.model_type].composition == "chat model"
    if is_chat:
        facts["stage of training"] = config.stage
        # Its parts, with the places that have their weights
        for part, prefix in (("point_encoder", "point"), ("qformer", "qformer"), ("language_model", "text")):
            title = part.replace("_", " ")
            facts[f"{title} type"] = getattr(config, f"{prefix}_config").model_type
            recorded = config.part(part)
            facts[title] = recorded.name_or_path if recorded.is_elsewhere else "stored with the model"
            if recorded != PretrainedPart():
                facts[f"{title} revision"] = recorded.revision
                facts[f"{title} checksum"] = recorded.checksum
    facts["adapter"] = None if adapter is None else PeftType(adapter.peft_type).value.lower()
    facts |= {"trained parameters": trained, "total parameters": total}
    # Models without classes have a config with the default labels of transformers.
    if hasattr(config, "num_codes"):
        facts["codes"] = config.num_codes
    elif not is_chat:
        facts["labels"] = [label for _, label in sorted((config.id2label or {}).items())]
    facts["points"] = points
    facts["channels"] = config.in_channels
    facts["tokens"] = next((getattr(config, name) for name in _TOKENS if hasattr(config, name)), None)
    facts["batch-dependent"] = getattr(config, "batch_dependent_flags", [])
    return facts


def open_configs(name_or_path: str, revision: str | None = None) -> tuple[Any, PeftConfig | None]:
    """Read the configurations of a model of this package and of its adapter."""
    register()
    config = AutoConfig.from_pretrained(name_or_path, revision=revision)
    check_model_type(name_or_path, config.model_type)
    if cached_file(name_or_path, ADAPTER_CONFIG_NAME, revision=revision, _raise_exceptions_for_missing_entries=False):
        return config, PeftConfig.from_pretrained(name_or_path, revision=revision)
    return config, None


def build_model(config: PreTrainedConfig, adapter: PeftConfig | None) -> Any:
    """Build a model with random weights, of which those require gradients that its training trains."""
    base, heads = MODELS[type(config)]
    named = {model.__name__: model for model in (base, *itertools.chain(*heads.values()))}
    # A config without a class is that of the model without a head.
    model = named.get((config.architectures or [""])[0], base)(config)
    # The stage decides which parameters require gradients.
    if stage := getattr(config, "stage", None):
        model.set_stage(stage)
    if adapter is None:
        return model
    # A saved adapter is set to inference, in which none of its parameters would count as trained.
    adapter.inference_mode = False
    return get_peft_model(model, adapter)
