"""The tensors of released SpatialLM 1.1 models under our names and back, and their config as ours."""

import copy
import re
from collections.abc import Mapping, Sequence
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
_ARCHITECTURES = {"qwen2": "SpatialLMQwenForCausalLM", "llama": "SpatialLMLlamaForCausalLM"}
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
_POINT_FIELDS = {
    "in_channels": "in_channels",
    "order": "curves",
    "stride": "pooling_strides",
    "enc_depths": "depths",
    "enc_channels": "hidden_sizes",
    "enc_num_head": "num_attention_heads",
    "enc_patch_size": "patch_sizes",
    "mlp_ratio": "mlp_ratio",
}
# Fields of a point encoder's config that change nothing of what it computes at inference, or can be chosen at will.
_NOT_COMPUTED = {
    "shuffle_curves",
    "drop_path_rate",
    "initializer_range",
    "dtype",
    "architectures",
    "transformers_version",
    "head_widths",
    "head_dropout",
    "segmentation_head_widths",
    "segmentation_head_dropout",
    "id2label",
    "label2id",
    "problem_type",
    "_name_or_path",
    "parts",
    "upcast_attention",
}
# Parts under our names -> under the authors'.
_STEM = {"embeddings.projection": "embedding.stem.linear", "embeddings.norm": "embedding.stem.norm"}
_BLOCK = {
    "positions.convolution": "cpe.0",
    "positions.linear": "cpe.1",
    "positions.norm": "cpe.2",
    "norm1": "norm1.0",
    "norm2": "norm2.0",
    "attention.qkv": "attn.qkv",
    "attention.proj": "attn.proj",
    "mlp.fc1": "mlp.0.fc1",
    "mlp.fc2": "mlp.0.fc2",
}


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


def published_config(config: SpatialLMConfig) -> dict[str, Any]:
    """Return the content of `config.json` of a released model, the inverse of `spatiallm_config`."""
    point: Any = config.point_config
    language_model: Any = config.text_config
    text = language_model.to_dict()
    kinds = {ours: theirs for theirs, ours in LANGUAGE_MODELS.items()}
    kind = one_of("model_type of text_config", text.pop("model_type"), kinds)
    # The program is of a time before `rope_parameters`.
    rope = dict(text.pop("rope_parameters", None) or {})
    if "rope_theta" in rope:
        text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = rope if rope.get("rope_type", "default") != "default" else None
    arguments = {theirs: _plain(getattr(point, ours)) for theirs, ours in _POINT_FIELDS.items()}
    published = {name: value for name, value in text.items() if name not in _OWN}
    published |= {
        "model_type": kinds[kind],
        "architectures": [_ARCHITECTURES[kind]],
        "point_backbone": "sonata",
        "point_config": {**arguments, "mask_token": True, "enc_mode": True, "num_bins": config.num_bins},
        "projector": config.projector,
    }
    for name in _SPECIAL:
        published[name] = getattr(config, name)
    # There and back again: what differs is something that the released program cannot compute.
    back: Any = spatiallm_config(published).point_config
    ours = point.to_dict()
    theirs = back.to_dict()
    for name in sorted(theirs.keys() - _NOT_COMPUTED):
        if ours.get(name) != theirs[name]:
            raise ValueError(
                f"point_config has {name}={ours.get(name)!r}; the released program computes {theirs[name]!r}"
            )
    return published


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


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


def published_names(state: Mapping[str, torch.Tensor], config: SpatialLMConfig) -> dict[str, torch.Tensor]:
    """Rename the tensors of our model to those of a released one, for the released program."""
    return {_published(name, config): tensor for name, tensor in state.items()}


def _published(name: str, config: SpatialLMConfig) -> str:
    part, _, rest = name.removeprefix(_BODY).partition(".")
    if part == "language_model":
        return rest
    if part == "input_projection":
        return f"{_ENCODER}input_proj.{rest}"
    if part == "projector":
        if config.projector != "mlp":
            rest = rest.partition(".")[2]  # a single layer, without a number
        return f"point_proj.{rest}"
    point: Any = config.point_config
    return _ENCODER + _published_in_encoder(rest, point.depths)


def _published_in_encoder(name: str, depths: Sequence[int]) -> str:
    """Return the name of a tensor of the point encoder, whose stages have so many blocks, in a released one."""
    module, _, kind = name.rpartition(".")
    if module in _STEM:
        return f"{_STEM[module]}.{kind}"
    pooling = re.fullmatch(r"poolings\.(\d+)\.(projection|norm)", module)
    if pooling is not None:
        stage = int(pooling[1]) + 1
        layer = "proj" if pooling[2] == "projection" else "norm.0"
        return f"enc.enc{stage}.down.{layer}.{kind}"
    _, number, layer = module.split(".", 2)
    # Blocks are numbered through all stages here, and within each there.
    stage = 0
    block = int(number)
    while block >= depths[stage]:
        block -= depths[stage]
        stage += 1
    return f"enc.enc{stage}.block{block}.{_BLOCK[layer]}.{kind}"
