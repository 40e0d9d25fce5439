"""Parts of MiniGPT-3D that were converted before: read again, and named instead of stored a second time."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from transformers import Blip2Config, PreTrainedConfig, PreTrainedModel

from hf_any3d.conversions.checkpoints import check_finite
from hf_any3d.converting.minigpt3d_parts import Part, accounted, told_of
from hf_any3d.converting.weight_files import read_json, read_weights
from hf_any3d.modeling.act import ActConfig, ActModel
from hf_any3d.modeling.encoders.sources import record_source, resolve_encoder
from hf_any3d.modeling.minigpt3d import NormedPhiConfig, NormedPhiForCausalLM
from hf_any3d.modeling.minigpt3d.opening import QueriesAndQFormer

_KINDS: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "point_encoder": (ActConfig, ActModel),
    "qformer": (Blip2Config, QueriesAndQFormer),
    "language_model": (NormedPhiConfig, NormedPhiForCausalLM),
}


def read_converted(part: str, source: str | os.PathLike) -> Part | None:
    """Read a directory that `convert_minigpt3d_parts` made, or one of a model of the same kind.

    Args:
        part: "point_encoder", "qformer" or "language_model".
        source: What was given for it.

    Returns:
        The part; None where `source` is something else, such as a file of the authors.

    Raises:
        ValueError: A file cannot be read, or tensors are missing, left over or of another shape.
        FileNotFoundError: A file is missing.
    """
    directory, (config_class, kind) = Path(source), _KINDS[part]
    file = directory / "config.json"
    if not file.is_file() or read_json(file).get("model_type") != config_class.model_type:
        return None
    with told_of(directory):
        config = config_class.from_pretrained(directory)
    state, files = read_weights(directory)
    others = kind._keys_to_ignore_on_load_unexpected or []
    state = {name: t for name, t in state.items() if not any(re.search(pattern, name) for pattern in others)}
    with told_of(directory):
        check_finite(state)
    found = accounted(directory, files, kind, config, state)
    found.is_converted = True
    return found


def whereabouts(part: Part) -> dict[str, Any]:
    """Where a converted part lies, as `MiniGPT3DConfig.parts` has it."""
    source = resolve_encoder(part.source.absolute())
    return record_source(source.name, source).to_dict()
