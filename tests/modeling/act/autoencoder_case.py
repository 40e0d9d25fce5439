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
from transformers import AutoConfig

from hf_any3d.conversions.act import convert_act_state_dict, teacher_of
from hf_any3d.conversions.act.names import AUTOENCODER
from hf_any3d.conversions.renaming import rename_tensors
from hf_any3d.modeling.act import ActAutoencoder, ActAutoencoderConfig
from tests.reference.fill import fill, points

FOLDER = Path(__file__).parents[2] / "reference"
CASES = ("act_dvae", "act_dvae_shallow", "act_dvae_bert", "act_dvae_plain", "act_dvae_clip", "act_dvae_clip_deep")

_SIZES = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
_SMALL_IMAGE = {"image_size": 32, "patch_size": 16}
_TEACHERS = {
    "vit": _SIZES | _SMALL_IMAGE | {"layer_norm_eps": 1e-6},
    "bert": _SIZES | {"vocab_size": 8, "max_position_embeddings": 8},
    "clip_vision_model": _SIZES | _SMALL_IMAGE,
}


class AutoencoderCase:
    """Reads `tests/reference/{name}.json` and `.safetensors`."""

    def __init__(self, name: str):
        self.name = name
        self.manifest = json.loads((FOLDER / f"{name}.json").read_text())
        self.expected = load_file(FOLDER / f"{name}.safetensors")

    @cached_property
    def points(self) -> torch.Tensor:
        return torch.from_numpy(points(**self.manifest["input"]))

    @cached_property
    def original(self) -> dict[str, torch.Tensor]:
        """The state dict of the released program."""
        return {name: torch.from_numpy(fill(name, *spec)) for name, spec in self.manifest["state_dict"].items()}

    def noise(self, path: str) -> torch.Tensor:
        """The Gumbel noise of a path, zero where it has none."""
        name = self.manifest["paths"][path]["gumbel_noise"]
        if name == "zero":
            return torch.zeros(1)
        shape = self.manifest["subsample"]["eval.logits"]["full_shape"]
        uniform = np.random.default_rng(zlib.crc32(name.encode())).random(shape).clip(1e-12, 1 - 1e-12)
        return torch.from_numpy(-np.log(-np.log(uniform))).float()

    def our_name(self, original: str) -> str:
        """Our name of a tensor of the released program."""
        (name,) = rename_tensors({original: torch.empty(0)}, AUTOENCODER)
        return name

    def original_norms(self, gradients: dict[str, torch.Tensor]) -> dict[str, float]:
        """Norms of our gradients under the released names."""
        norms = {}
        for original in self.manifest["trainable"]:
            name = self.our_name(original)
            gradient = gradients.get(name.replace(".deep_", "."))
            if gradient is not None:
                # The prompts of the first layer precede those of the other layers.
                grad_prompts = gradient[1:] if ".deep_" in name else gradient[:1]
                norms[original] = (grad_prompts if name.startswith("prompts.") else gradient).double().norm().item()
        return norms

    def build(self, **changes: Any) -> ActAutoencoder:
        """Build our model with the case's weights."""
        arguments, teacher = self.manifest["constructor_args"], teacher_of(self.original)
        tensors = convert_act_state_dict("dvae", self.original)
        settings: dict[str, Any] = {
            "hidden_size": arguments["encoder_dims"],
            "num_codes": arguments["num_tokens"],
            "sampling_min_squared_norm": 1e-3,
            "released": {"noise_in_eval": True},
        }
        if teacher:
            layers = {found[1] for name in tensors if (found := re.search(r"^encoder\..*layers?\.(\d+)\.", name))}
            settings |= {
                "encoder_config": AutoConfig.for_model(teacher, num_hidden_layers=len(layers), **_TEACHERS[teacher]),
                "num_prompts": arguments["num_prompt_token"],
                "prompt_depth": "deep" if arguments["use_deep_prompt"] else "shallow",
                "prompt_dropout": 0.0,
            }
        if teacher == "bert":
            settings |= {"position_injection": "input", "use_input_norm": False}
        if self.name == "act_dvae_clip_deep":
            settings["released"]["attention_axis"] = "batch"
        model = ActAutoencoder(ActAutoencoderConfig(**settings | changes))
        report = model.load_state_dict(tensors, strict=False)
        assert not report.unexpected_keys
        # Embeddings of words and images are in no released checkpoint.
        assert all(re.search(r"^encoder\..*(embeddings|pooler)", name) for name in report.missing_keys)
        return model.eval()

    def stored(self, key: str, ours: torch.Tensor) -> torch.Tensor:
        """Select the entries of our tensor that the case stores."""
        how = self.manifest["subsample"].get(key)
        if how is None:
            return ours
        assert list(ours.shape) == how["full_shape"], key
        parts = [slice(*(int(n) if n else None for n in part.split(":"))) for part in how["slice"][1:-1].split(",")]
        return ours[tuple(parts)]
