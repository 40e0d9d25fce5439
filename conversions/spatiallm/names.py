"""The tensors of released SpatialLM 1.1 models under our names, and their config as ours."""

import copy
from collections.abc import Mapping
from typing import Any

import torch

from hf_any3d.conversions.point_transformer_v3.names import convert_ptv3_state_dict, ptv3_fields
from hf_any3d.conversions.renaming import Names, rename_tensors
from hf_any3d.conversions.tensor_checks import check_finite
from hf_any3d.data.options import one_of
from hf_any3d.modeling.layers.layouts import EXTENT
from hf_any3d.modeling.spatiallm import SpatialLMConfig

LANGUAGE_MODELS = {"spatiallm_qwen": "qwen2", "spatiallm_llama": "llama"}
"""Model type of a released config -> that of its language model."""
_BODY = "spatiallm."
NAMES: Names = {
    r"model\.": f"{_BODY}language_model.model.",
    r"lm_head\.": f"{_BODY}language_model.lm_head.",
    r"point_backbone\.input_proj\.": f"{_BODY}input_projection.",
    r"point_proj\.(?P<layer>\d+)\.": f"{_BODY}projector.{{layer}}.",
    r"point_proj\.": f"{_BODY}projector.0.",
}
_ENCODER = "point_backbone."
# Fields of a released config that are not its language model's.
_OWN = (
    "point_backbone",
    "point_config",
    "projector",
    "point_start_token_id",
    "point_end_token_id",
    "point_token_id",
    "model_type",
    "architectures",
    "auto_map",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "_name_or_path",
)
_SPECIAL = ("point_start_token_id", "point_end_token_id", "point_token_id")


def spatiallm_config(published: Mapping[str, Any]) -> SpatialLMConfig:
    """Return the config for a released one, with sound behavior: curves are not shuffled at inference."""
    published = copy.deepcopy(dict(published))  # configs of transformers change what they are given
    kind = one_of("model_type", published["model_type"], LANGUAGE_MODELS)
    # That of version 1.1; version 1.0, with "scenescript", is not supported.
    one_of("point_backbone", published.get("point_backbone"), ["sonata"])
    arguments = dict(published["point_config"])
    # The released program has it among the encoder's arguments, though the language uses it too.
    num_bins = arguments.pop("num_bins")
    fields = ptv3_fields({"enc_mode": True} | arguments)
    # The released program has the argument, but no such tensor.
    fields["use_mask_token"] = False
    point = {"model_type": "point_transformer_v3", "grid_size": EXTENT / num_bins} | fields
    text = {name: value for name, value in published.items() if name not in _OWN}
    further: dict[str, Any] = {name: published[name] for name in _SPECIAL}
    # transformers looks for it in the config of the model, not in that of the language model.
    further["tie_word_embeddings"] = bool(published.get("tie_word_embeddings", False))
    return SpatialLMConfig(
        point_config=point,
        text_config=text | {"model_type": LANGUAGE_MODELS[kind]},
        num_bins=num_bins,
        projector=published.get("projector") or "linear",
        **further,
    )


def convert_spatiallm_state_dict(
    original: Mapping[str, torch.Tensor], config: SpatialLMConfig
) -> dict[str, torch.Tensor]:
    """Rename the tensors of a released model to those of a `SpatialLMForConditionalGeneration`.

    `lm_head.weight` may be missing where embeddings are tied.
    """
    check_finite(original)  # under its own names
    encoder = {}
    others = {}
    for name, tensor in original.items():
        if name.startswith(_ENCODER) and not name.startswith(f"{_ENCODER}input_proj."):
            encoder[name.removeprefix(_ENCODER)] = tensor
        else:
            others[name] = tensor
    state = rename_tensors(others, NAMES)
    point: Any = config.point_config
    text: Any = config.text_config
    fields = point.to_dict()
    # The point encoder is Sonata's, so its tensors have the same names.
    for name, tensor in convert_ptv3_state_dict(encoder, fields).items():
        state[f"{_BODY}point_encoder.{name}"] = tensor
    head = f"{_BODY}language_model.lm_head.weight"
    table = f"{_BODY}language_model.model.embed_tokens.weight"
    if text.tie_word_embeddings and table in state:
        # Released files lack the head, or hold the embeddings twice; another one would be lost.
        if head in state and not torch.equal(state[head], state[table]):
            raise ValueError("lm_head.weight differs from model.embed_tokens.weight; expected equal ones, as tied")
        state[head] = state[table]
    return state
