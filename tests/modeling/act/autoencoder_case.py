"""A stored run of a released ACT autoencoder, and our model with the same weights."""

from __future__ import annotations

import json
import re
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedModel

from hf_any3d.modeling.act import ActAutoencoder, ActAutoencoderConfig
from hf_any3d.modeling.encoders import build_encoder
from tests.reference.fill import fill, points

FOLDER = Path(__file__).parents[2] / "reference"
CASES = ("act_dvae", "act_dvae_shallow", "act_dvae_bert", "act_dvae_plain", "act_dvae_clip", "act_dvae_clip_deep")

_RENAMES = (
    (r"^encoder\.first_conv\.0", "patch_encoder.lift"),
    (r"^encoder\.first_conv\.1", "patch_encoder.lift_norm"),
    (r"^encoder\.first_conv\.3", "patch_encoder.widen"),
    (r"^encoder\.second_conv\.0", "patch_encoder.join"),
    (r"^encoder\.second_conv\.1", "patch_encoder.join_norm"),
    (r"^encoder\.second_conv\.3", "patch_encoder.out"),
    (r"^dgcnn_1\.", "graph_encoder."),
    (r"^dgcnn_2\.", "graph_decoder."),
    (r"\.input_trans\.", ".input."),
    (r"\.layer5\.0", ".output"),
    (r"\.layer5\.1", ".norm"),
    (r"\.layer(\d)\.0", lambda found: f".layers.{int(found[1]) - 1}.linear"),
    (r"\.layer(\d)\.1", lambda found: f".layers.{int(found[1]) - 1}.norm"),
    (r"^decoder\.mlp\.", "decoder.coarse."),
    (r"^decoder\.final_conv\.0", "decoder.lift"),
    (r"^decoder\.final_conv\.1", "decoder.lift_norm"),
    (r"^decoder\.final_conv\.3", "decoder.widen"),
    (r"^decoder\.final_conv\.4", "decoder.widen_norm"),
    (r"^decoder\.final_conv\.6", "decoder.out"),
    (r"^proj_pre\.", "teacher_in."),
    (r"^proj_post\.", "teacher_out."),
    (r"^visual_pos_embed\.", "position_embed."),
    (r"^codebook$", "codebook.weight"),
)
_VIT = (
    (r"^visual_embed\.1\.", "layernorm."),
    (r"^visual_embed\.0\.(\d+)\.norm1", r"layers.\1.layernorm_before"),
    (r"^visual_embed\.0\.(\d+)\.norm2", r"layers.\1.layernorm_after"),
    (r"^visual_embed\.0\.(\d+)\.attn\.qkv\.", r"layers.\1.attention.QKV_proj."),
    (r"^visual_embed\.0\.(\d+)\.attn\.proj", r"layers.\1.attention.o_proj"),
    (r"^visual_embed\.0\.(\d+)\.mlp", r"layers.\1.mlp"),
)
_CLIP = (
    (r"^visual_embed\.0\.", "pre_layrnorm."),
    (r"^visual_embed\.2\.", "post_layernorm."),
    (r"^visual_embed\.1\.(\d+)\.ln_", r"encoder.layers.\1.layer_norm"),
    (r"^visual_embed\.1\.(\d+)\.attn\.in_proj_", r"encoder.layers.\1.self_attn.QKV_proj."),
    (r"^visual_embed\.1\.(\d+)\.attn\.out_proj", r"encoder.layers.\1.self_attn.out_proj"),
    (r"^visual_embed\.1\.(\d+)\.mlp\.c_fc", r"encoder.layers.\1.mlp.fc1"),
    (r"^visual_embed\.1\.(\d+)\.mlp\.c_proj", r"encoder.layers.\1.mlp.fc2"),
)
_BERT = ((r"^visual_embed\.0\.layer\.", "encoder.layer."),)
_SIZES = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
_SMALL_IMAGE = {"image_size": 32, "patch_size": 16}
_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_TEACHERS = {
    "vit": (_VIT, _SIZES | _SMALL_IMAGE | {"layer_norm_eps": 1e-6}),
    "bert": (_BERT, _SIZES | {"vocab_size": 8, "max_position_embeddings": 8}),
    "clip_vision_model": (_CLIP, _SIZES | _SMALL_IMAGE),
}


def renamed(name: str, rules: tuple) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


class AutoencoderCase:
    """Reads `tests/reference/{name}.json` and `.safetensors`."""

    def __init__(self, name: str):
        self.name = name
        self.manifest = json.loads((FOLDER / f"{name}.json").read_text())
        self.expected = load_file(FOLDER / f"{name}.safetensors")

    @cached_property
    def points(self) -> torch.Tensor:
        return torch.from_numpy(points(**self.manifest["input"]))

    @property
    def teacher_type(self) -> str | None:
        return {"plain": None, "bert": "bert", "clip": "clip_vision_model"}.get(
            (self.name.split("_") + [""])[2], "vit"
        )

    @property
    def rules(self) -> tuple:
        return _RENAMES if self.teacher_type is None else _TEACHERS[self.teacher_type][0]

    def noise(self, path: str) -> torch.Tensor:
        """The Gumbel noise of a path, zero where it has none."""
        name = self.manifest["paths"][path]["gumbel_noise"]
        if name == "zero":
            return torch.zeros(1)
        shape = self.manifest["subsample"]["eval.logits"]["full_shape"]
        uniform = np.random.default_rng(zlib.crc32(name.encode())).random(shape).clip(1e-12, 1 - 1e-12)
        return torch.from_numpy(-np.log(-np.log(uniform))).float()

    def ours(self, named: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Tensors of the model without its teacher, and of the teacher, under our names."""
        model, teacher = {}, {}
        for name, tensor in named.items():
            if name.startswith("visual_embed."):
                own = renamed(name, _TEACHERS[self.teacher_type][0])
                parts = [(own, tensor)]
                if "QKV" in own:
                    parts = [
                        (own.replace("QKV", part), rows) for part, rows in zip("qkv", tensor.chunk(3), strict=True)
                    ]
                teacher.update(parts)
            elif "prompt" not in name:
                own = renamed(name, _RENAMES)
                model[own] = tensor.flatten(1) if tensor.ndim > 2 else tensor
        for kind in ("token", "pos"):
            deep = [value for name, value in named.items() if name.startswith(f"deep_prompt_{kind}")]
            first = named.get(f"visual_prompt_{kind}")
            if first is not None:
                model[f"prompts.{'tokens' if kind == 'token' else 'positions'}"] = torch.cat([first, *deep])
        return model, teacher

    def our_name(self, original: str) -> str:
        """What a tensor outside the teacher and the prompts is called here."""
        return renamed(original, _RENAMES)

    def original_norms(self, gradients: dict[str, torch.Tensor]) -> dict[str, float]:
        """Norms of our gradients under the released names."""
        norms = {}
        for name in self.manifest["trainable"]:
            if "prompt" in name:
                ours = gradients.get("prompts.tokens" if "token" in name else "prompts.positions")
                gradient = None if ours is None else ours[1:] if name.startswith("deep") else ours[:1]
            else:
                gradient = gradients.get(self.our_name(name))
            if gradient is not None:
                norms[name] = gradient.double().norm().item()
        return norms

    def build(self, **changes: Any) -> ActAutoencoder:
        """Our model under the case's weights."""
        arguments = self.manifest["constructor_args"]
        original = {name: torch.from_numpy(fill(name, *spec)) for name, spec in self.manifest["state_dict"].items()}
        own, frozen = self.ours(original)
        settings: dict[str, Any] = {
            "hidden_size": arguments["encoder_dims"],
            "num_codes": arguments["num_tokens"],
            "sampling_min_squared_norm": 1e-3,
            "noise_in_eval": True,
        }
        encoder = None
        if self.teacher_type:
            encoder = self._teacher(frozen)
            settings |= {
                "encoder_config": encoder.config,
                "num_prompts": arguments["num_prompt_token"],
                "prompt_depth": "deep" if arguments["use_deep_prompt"] else "shallow",
                "prompt_dropout": 0.0,
            }
        if self.teacher_type == "bert":
            settings |= {"position_injection": "input", "use_input_norm": False}
        if self.name == "act_dvae_clip_deep":
            settings["attention_axis"] = "batch"
        model = ActAutoencoder(ActAutoencoderConfig(**settings | changes), encoder)
        report = model.load_state_dict(own, strict=False)
        assert not report.unexpected_keys
        assert all(name.startswith("encoder.") for name in report.missing_keys), report.missing_keys
        return model.eval()

    def _teacher(self, frozen: dict[str, torch.Tensor]) -> PreTrainedModel:
        layers = 1 + max(int(found[1]) for name in frozen if (found := re.search(r"layers?\.(\d+)\.", name)))
        sizes = _TEACHERS[self.teacher_type][1]
        encoder = build_encoder(AutoConfig.for_model(self.teacher_type, num_hidden_layers=layers, **sizes))
        report = encoder.load_state_dict(frozen, strict=False)
        assert not report.unexpected_keys
        assert not [name for name in report.missing_keys if "embeddings" not in name and "pooler" not in name]
        return encoder

    def stored(self, key: str, ours: torch.Tensor) -> torch.Tensor:
        """Our tensor at the places that the case keeps."""
        how = self.manifest["subsample"].get(key)
        if how is None:
            return ours
        assert list(ours.shape) == how["full_shape"], key
        parts = [slice(*(int(n) if n else None for n in part.split(":"))) for part in how["slice"][1:-1].split(",")]
        return ours[tuple(parts)]
