"""Read the pretrained parts of MiniGPT-3D, each from its own file: config and tensors under our names."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Blip2Config, Blip2QFormerConfig, PreTrainedConfig, PreTrainedModel

from hf_any3d.conversions.act.names import student_sizes
from hf_any3d.conversions.checkpoints import (
    account,
    check_finite,
    errors_about,
    read_checkpoint,
    read_json,
    read_weights,
)
from hf_any3d.conversions.minigpt3d.names import BLIP2, convert_phi_state_dict, convert_point_encoder_state_dict
from hf_any3d.conversions.renaming import count_of, numbers_in, rename_tensors, size_of
from hf_any3d.conversions.saving import save_weights
from hf_any3d.modeling.act import ActConfig, ActModel
from hf_any3d.modeling.minigpt3d import MiniGPT3DConfig, NormedPhiConfig, NormedPhiForCausalLM
from hf_any3d.modeling.minigpt3d.modeling_minigpt3d import QueriesAndQFormer
from hf_any3d.modeling.pretrained_parts.sources import record_source, resolve_encoder

_State = Mapping[str, torch.Tensor]
_HEAD_WIDTH = 64


def point_encoder_sizes(state: _State) -> dict[str, Any]:
    """Return settings of `ActConfig`.

    Args:
        state: The result of `convert_point_encoder_state_dict`.

    Raises:
        ValueError: A tensor that a size is read from is missing, or the number of heads is unknown.
    """
    found = student_sizes({f"act.{name}": tensor for name, tensor in state.items()})
    patches = [size_of(state, f"patch_encoder.{layer}.weight") for layer in ("lift", "widen", "join")]
    return found | {
        "patch_widths": patches,
        "patch_pooled_width": size_of(state, "patch_encoder.out.weight"),
        "num_attention_heads": _heads("the point encoder", found["hidden_size"]),
    }


def qformer_sizes(state: _State) -> dict[str, Any]:
    """Return settings of `Blip2QFormerConfig`.

    Args:
        state: The tensors under the names of `BLIP2`.

    Raises:
        ValueError: A tensor that a size is read from is missing, or the number of heads is unknown.
    """
    layer = "qformer.encoder.layer."
    width = size_of(state, "qformer.layernorm.weight")
    crossed = sorted(numbers_in(state, rf"{re.escape(layer)}(\d+)\.crossattention\."))
    depth = count_of(state, rf"{re.escape(layer)}(\d+)\.")
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": _heads("the Q-Former", width),
        "intermediate_size": size_of(state, f"{layer}0.intermediate_query.dense.weight"),
        "encoder_hidden_size": size_of(state, f"{layer}0.crossattention.attention.key.weight", 1),
        # Layer 0 attends to the encoder, and so does every n-th; the second number is n.
        "cross_attention_frequency": crossed[1] if len(crossed) > 1 else depth,
    }


def bridge_sizes(state: _State) -> dict[str, Any]:
    """Return the settings of `MiniGPT3DConfig` for the trained parts that are there.

    Args:
        state: The results of `convert_minigpt3d_state_dict` for all files together.

    Raises:
        ValueError: A tensor that a size is read from is missing.
    """
    sizes: dict[str, Any] = {"projector_width": size_of(state, "bridge.projector.fc1.weight")}
    if layers := count_of(state, r"bridge\.point_mlp\.layers\.(\d+)\."):
        hidden = range(layers - 1)
        sizes["point_mlp_widths"] = [size_of(state, f"bridge.point_mlp.layers.{number}.weight") for number in hidden]
    if "bridge.experts.router.0.weight" in state:
        sizes["router_width"] = size_of(state, "bridge.experts.router.0.weight")
        sizes["num_query_experts"] = size_of(state, "bridge.experts.router.2.weight")
    return sizes


def lora_rank(state: _State, part: str) -> int | None:
    """Return the rank of the LoRA below a prefix; None if there is none."""
    ranks = (size_of(state, name) for name in state if name.startswith(part) and ".lora_A." in name)
    return next(ranks, None)


def _heads(part: str, width: int) -> int:
    if width % _HEAD_WIDTH:
        raise ValueError(
            f"{part} has {width} channels; expected a multiple of {_HEAD_WIDTH}, since its heads are that wide"
        )
    return width // _HEAD_WIDTH


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
        is_converted: Whether `from_pretrained` opens the source, so that a model can name it instead of storing it.
    """

    source: Path
    files: list[Path]
    architecture: str
    config: PreTrainedConfig
    state: dict[str, torch.Tensor]
    is_converted: bool = False

    def save(self, directory: Path, dtype: torch.dtype) -> None:
        """Write a directory that `from_pretrained` opens."""
        directory.mkdir(parents=True, exist_ok=True)
        save_weights(directory, self.architecture, self.config, self.state, dtype)


def read_point_encoder(file: str | os.PathLike, num_groups: int | None = None, group_size: int | None = None) -> Part:
    """Read the point encoder's own file, `point_model.pth`, for `AutoModel`.

    Args:
        file: The file.
        num_groups: Patches per cloud; published: 512.
        group_size: Points per patch; published: 32.

    Raises:
        ValueError: The file cannot be read, or its tensors are not all those of a point encoder.
        FileNotFoundError: No such file.
    """
    with errors_about(file):
        state = convert_point_encoder_state_dict(read_checkpoint(file, ("base_model",)))
        settings: dict[str, Any] = point_encoder_sizes(state)
        settings |= {"num_groups": num_groups} if num_groups else {}
        settings |= {"group_size": group_size} if group_size else {}
        published = MiniGPT3DConfig().to_dict()["point_config"]
        config = ActConfig(**published | settings)
    return _make_part(file, [Path(file)], ActModel, config, state)


def read_qformer(file: str | os.PathLike) -> Part:
    """Read Q-Former and queries of a BLIP-2 file such as `blip2_pretrained_flant5xxl.pth`, for `build_from_parts`.

    Raises:
        ValueError: The file cannot be read, or its Q-Former is not complete.
        FileNotFoundError: No such file.
    """
    with errors_about(file):
        state = rename_tensors(read_checkpoint(file, ("model",)), BLIP2)
        qformer_config = Blip2QFormerConfig(**qformer_sizes(state))
        count = size_of(state, "query_tokens", 1) if "query_tokens" in state else Blip2Config().num_query_tokens
        # BLIP-2's config has the width that the Q-Former attends to under the vision encoder, which is left out.
        vision = {"hidden_size": qformer_config.encoder_hidden_size}
        config = Blip2Config(vision_config=vision, qformer_config=qformer_config.to_dict(), num_query_tokens=count)
    return _make_part(file, [Path(file)], QueriesAndQFormer, config, state)


def read_language_model(directory: str | os.PathLike) -> Part:
    """Read Phi-2 in any of its three layouts, for `AutoModelForCausalLM`.

    Args:
        directory: With `config.json` and weights.

    Raises:
        ValueError: A file cannot be read, or the tensors are not all those of the model that config.json describes.
        FileNotFoundError: A file is missing.
    """
    directory = Path(directory)
    config = normed_phi_config(directory / "config.json")
    original, files = read_weights(directory)
    with errors_about(directory):
        state = convert_phi_state_dict(original, config.num_attention_heads)
    return _make_part(directory, files, NormedPhiForCausalLM, config, state)


def read_converted(part: str, source: str | os.PathLike) -> Part | None:
    """Read a directory that `convert_minigpt3d_parts` made, or one of a model of the same kind.

    Args:
        part: "point_encoder", "qformer" or "language_model".
        source: The directory, or another source of the part.

    Returns:
        The part; None if `source` is something else, such as a file of the authors.

    Raises:
        ValueError: A file cannot be read, or tensors are missing, left over or of another shape.
        FileNotFoundError: A file is missing.
    """
    directory, (config_class, kind) = Path(source), _KINDS[part]
    file = directory / "config.json"
    if not file.is_file() or read_json(file).get("model_type") != config_class.model_type:
        return None
    with errors_about(directory):
        config = config_class.from_pretrained(directory)
    state, files = read_weights(directory)
    ignored = kind._keys_to_ignore_on_load_unexpected or []
    state = {name: t for name, t in state.items() if not any(re.search(pattern, name) for pattern in ignored)}
    with errors_about(directory):
        check_finite(state)
    found = _make_part(directory, files, kind, config, state)
    found.is_converted = True
    return found


def source_record(part: Part) -> dict[str, Any]:
    """Return name and checksum of a converted part, for `MiniGPT3DConfig.parts`."""
    source = resolve_encoder(part.source.absolute())
    return record_source(source.name, source).to_dict()


def normed_phi_config(file: Path) -> NormedPhiConfig:
    """Read a `config.json` of Phi.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is not a JSON object, or of another model or one that cannot have the added norms.
    """
    given = read_json(file)
    if given.get("model_type") not in _KNOWN:
        raise ValueError(
            f"{file}: model_type={given.get('model_type')!r}; expected one of {', '.join(map(repr, _KNOWN))}"
        )
    settings = {_OLD_NAMES.get(name, name): value for name, value in given.items() if value is not None}
    try:
        if "rotary_dim" in settings and "n_embd" in given:
            width = settings["hidden_size"] // settings["num_attention_heads"]
            # The first configs count rotated channels of a head; today's give their share.
            settings["partial_rotary_factor"] = settings["rotary_dim"] / width
        if "n_embd" in given:
            # What Microsoft's program computes where its config has no `n_inner`.
            settings.setdefault("intermediate_size", 4 * settings["hidden_size"])
        return NormedPhiConfig(**{name: settings[name] for name in _FIELDS if name in settings})
    except KeyError as error:
        raise ValueError(f"{file}: lacks {error}") from error
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{file}: {error}") from error


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
