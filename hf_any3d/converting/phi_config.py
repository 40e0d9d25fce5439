"""Phi's configuration files, of whatever time, as that of MiniGPT-3D's language model."""

from __future__ import annotations

from pathlib import Path

from hf_any3d.converting.weight_files import read_json
from hf_any3d.modeling.minigpt3d import NormedPhiConfig

_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "layer_norm_eps",
    "post_norm_eps",
    "resid_pdrop",
    "embd_pdrop",
    "attention_dropout",
    "partial_rotary_factor",
    "rope_theta",
    "rope_parameters",
    "rope_scaling",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
# Microsoft's first names.
_FIRST = {
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


def normed_phi_config(file: Path) -> NormedPhiConfig:
    """Read a `config.json` of Phi.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is no JSON object, of another model, or of one that cannot have the added norms.
    """
    given = read_json(file)
    if given.get("model_type") not in _KNOWN:
        raise ValueError(
            f"{file}: model_type={given.get('model_type')!r}; expected one of {', '.join(map(repr, _KNOWN))}"
        )
    settings = {_FIRST.get(name, name): value for name, value in given.items() if value is not None}
    try:
        if "rotary_dim" in settings and "n_embd" in given:
            width = settings["hidden_size"] // settings["num_attention_heads"]
            settings["partial_rotary_factor"] = settings["rotary_dim"] / width
        if "n_embd" in given:
            settings.setdefault("intermediate_size", 4 * settings["hidden_size"])
        return NormedPhiConfig(**{name: settings[name] for name in _FIELDS if name in settings})
    except KeyError as error:
        raise ValueError(f"{file}: lacks {error}") from error
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{file}: {error}") from error
