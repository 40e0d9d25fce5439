"""Read the pretrained parts of MiniGPT-3D, each from its own file: config and tensors under our names."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import Blip2Config, Blip2QFormerConfig, PreTrainedConfig, PreTrainedModel

from hf_any3d.conversions.checkpoints import errors_about, read_checkpoint, read_json, read_weights
from hf_any3d.conversions.common_layers import student_sizes
from hf_any3d.conversions.minigpt3d.names import BLIP2, convert_minigpt3d_state_dict, convert_phi_state_dict
from hf_any3d.conversions.renaming import count_left_out, count_of, heads_of, numbers_in, rename_tensors
from hf_any3d.conversions.saving import save_weights
from hf_any3d.conversions.tensor_checks import account, check_finite
from hf_any3d.data.options import one_of
from hf_any3d.modeling.act import ActConfig, ActModel
from hf_any3d.modeling.minigpt3d import MiniGPT3DConfig, NormedPhiConfig, NormedPhiForCausalLM
from hf_any3d.modeling.minigpt3d.modeling_minigpt3d import QueriesAndQFormer

_State = Mapping[str, torch.Tensor]
_ENCODER = "point_encoder."


def lora_rank(state: _State, part: str) -> int | None:
    """Return the rank of the LoRA below a prefix; None if there is none."""
    for name, tensor in state.items():
        # The first factor of LoRA has as many rows as its rank.
        if name.startswith(part) and name.endswith(".low_rank_a"):
            return tensor.shape[0]
    return None


_FIELDS = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act "
    "max_position_embeddings initializer_range layer_norm_eps post_norm_eps resid_pdrop embd_pdrop attention_dropout "
    "partial_rotary_factor rope_theta rope_parameters rope_scaling bos_token_id eos_token_id pad_token_id"
).split()
# Names in Microsoft's first configs.
_OLD_NAMES = {
    "n_embd": "hidden_size",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_head_kv": "num_key_value_heads",
    "n_positions": "max_position_embeddings",
    "activation_function": "hidden_act",
    "layer_norm_epsilon": "layer_norm_eps",
    "attn_pdrop": "attention_dropout",
}
_KNOWN = ("phi", "phi-msft", "normed_phi")
_KINDS: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "point_encoder": (ActConfig, ActModel),
    "qformer": (Blip2Config, QueriesAndQFormer),
    "language_model": (NormedPhiConfig, NormedPhiForCausalLM),
}


@dataclass
class Part:
    """A pretrained part that has been read but not built.

    Args:
        source: The file or directory that it came from.
        files: All files that its weights came from.
        architecture: Name of its class.
        config: Its configuration.
        state: Its tensors, memory-mapped where possible.
        left_out: Tensors of the files that have no place in the part, by the first word of their names.
    """

    source: Path
    files: list[Path]
    architecture: str
    config: PreTrainedConfig
    state: dict[str, torch.Tensor]
    left_out: dict[str, int] = field(default_factory=dict)

    def save(self, directory: Path, dtype: torch.dtype) -> None:
        """Write a directory that `from_pretrained` opens."""
        directory.mkdir(parents=True, exist_ok=True)
        save_weights(directory, self.architecture, self.config, self.state, dtype)


def read_point_encoder(file: str | os.PathLike, num_groups: int | None = None, group_size: int | None = None) -> Part:
    """Read the point encoder's own file, `point_model.pth`, for `AutoModel`."""
    with errors_about(file):
        original = read_checkpoint(file, ("base_model",))
        # Under the prefix that it has in a complete checkpoint, whose table of names then serves both.
        prefixed = {_ENCODER + name: tensor for name, tensor in original.items()}
        named = convert_minigpt3d_state_dict(prefixed)
        state = {name.removeprefix(_ENCODER): tensor for name, tensor in named.items()}
        config_kwargs = student_sizes(state)
        layers = ("lift", "widen", "join")
        config_kwargs["patch_widths"] = [state[f"patch_encoder.{layer}.weight"].shape[0] for layer in layers]
        config_kwargs["patch_pooled_width"] = state["patch_encoder.out.weight"].shape[0]
        config_kwargs["num_attention_heads"] = heads_of(config_kwargs["hidden_size"])
        if num_groups:
            config_kwargs["num_groups"] = num_groups
        if group_size:
            config_kwargs["group_size"] = group_size
        # Settings that no tensor shows, such as the number of patches, are the published ones.
        published = MiniGPT3DConfig().to_dict()["point_config"]
        config = ActConfig(**published | config_kwargs)
    return _make_part(file, [Path(file)], ActModel, config, state)


def read_qformer(file: str | os.PathLike) -> Part:
    """Read Q-Former and queries of a BLIP-2 file such as `blip2_pretrained_flant5xxl.pth`, for `build_from_parts`."""
    with errors_about(file):
        # Vision and language models of the file are left out by the table.
        original = read_checkpoint(file, ("model",))
        state = rename_tensors(original, BLIP2)
        layer = "qformer.encoder.layer."
        width = state["qformer.layernorm.weight"].shape[0]
        crossed = sorted(numbers_in(state, rf"{re.escape(layer)}(\d+)\.crossattention\."))
        depth = count_of(state, rf"{re.escape(layer)}(\d+)\.")
        qformer_config = Blip2QFormerConfig(
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads_of(width),
            intermediate_size=state[f"{layer}0.intermediate_query.dense.weight"].shape[0],
            encoder_hidden_size=state[f"{layer}0.crossattention.attention.key.weight"].shape[1],
            # Layer 0 attends to the encoder, and so does every n-th; the second number is n.
            cross_attention_frequency=crossed[1] if len(crossed) > 1 else depth,
        )
        count = Blip2Config().num_query_tokens
        if "query_tokens" in state:
            count = state["query_tokens"].shape[1]
        # BLIP-2's config has the width that the Q-Former attends to under the vision encoder, which is left out.
        vision = {"hidden_size": qformer_config.encoder_hidden_size}
        config = Blip2Config(vision_config=vision, qformer_config=qformer_config.to_dict(), num_query_tokens=count)
    part = _make_part(file, [Path(file)], QueriesAndQFormer, config, state)
    return replace(part, left_out=count_left_out(original, BLIP2))


def read_language_model(directory: str | os.PathLike) -> Part:
    """Read Phi-2 in any of its three layouts, for `AutoModelForCausalLM`."""
    directory = Path(directory)
    file = directory / "config.json"
    stored = read_json(file)
    with errors_about(file):
        one_of("model_type", stored.get("model_type"), _KNOWN)
        config_kwargs = {_OLD_NAMES.get(name, name): value for name, value in stored.items() if value is not None}
        if "n_embd" in stored:
            # What Microsoft's program computes where its config has no `n_inner`.
            config_kwargs.setdefault("intermediate_size", 4 * config_kwargs["hidden_size"])
            if "rotary_dim" in config_kwargs:
                width = config_kwargs["hidden_size"] // config_kwargs["num_attention_heads"]
                # The first configs count rotated channels of a head; today's give their share.
                config_kwargs["partial_rotary_factor"] = config_kwargs["rotary_dim"] / width
        # Fields of training and of other programs have no place in it.
        fields = {name: config_kwargs[name] for name in _FIELDS if name in config_kwargs}
        config = NormedPhiConfig(**fields)
    original, files = read_weights(directory)
    with errors_about(directory):
        state = convert_phi_state_dict(original, config.num_attention_heads)
    return _make_part(directory, files, NormedPhiForCausalLM, config, state)


def read_converted(part: str, source: str | os.PathLike) -> Part | None:
    """Read a directory that `convert_minigpt3d_parts` made, or one of such a model; None for another source.

    `part` is "point_encoder", "qformer" or "language_model".
    """
    directory = Path(source)
    config_class, kind = _KINDS[part]
    file = directory / "config.json"
    # A file of the authors, or a directory in their layout
    if not file.is_file() or read_json(file).get("model_type") != config_class.model_type:
        return None
    with errors_about(directory):
        config = config_class.from_pretrained(directory)
    stored, files = read_weights(directory)
    ignored = kind._keys_to_ignore_on_load_unexpected or []
    state = {}
    for name, tensor in stored.items():
        # BLIP-2 repositories hold more than the Q-Former.
        if not any(re.search(pattern, name) for pattern in ignored):
            state[name] = tensor
    with errors_about(directory):
        check_finite(state)
    return _make_part(directory, files, kind, config, state)


def _make_part(
    source: str | os.PathLike,
    files: list[Path],
    kind: type[PreTrainedModel],
    config: PreTrainedConfig,
    state: dict[str, torch.Tensor],
) -> Part:
    """Make a part after a check that its tensors are exactly those of a model."""
    with torch.device("meta"):
        expected = kind(config).state_dict()
    account(source, state, expected)
    return Part(Path(source), files, kind.__name__, config, state)
