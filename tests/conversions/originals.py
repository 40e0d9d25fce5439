"""Checkpoints as the authors' programs write them, and the encoders that they started from."""

from __future__ import annotations

import dataclasses
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from hf_any3d.conversions.any2point import Variant
from tests.modeling.any2point.reference_case import ReferenceCase
from tests.reference.fill import fill
from tests.tiny_encoders import tiny_config

# A sixteenth of every width that depends on the encoder's; others do not change.
_SMALLER = {768: 48, 1536: 96, 2304: 144, 3072: 192, 384: 24, 192: 12, 96: 6}
LAYERS = 2


def small_variant(variant: Variant) -> Variant:
    """A variant with an encoder of two layers and 48 channels."""
    sizes = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": LAYERS}
    return dataclasses.replace(variant, encoder={key: sizes.get(key, value) for key, value in variant.encoder.items()})


class SmallCase(ReferenceCase):
    """A small version of a reference case: the same names, two layers, 48 channels."""

    def __init__(self, name: str):
        super().__init__(name)
        self.variant = small_variant(self.variant)

    @cached_property
    def original(self) -> dict[str, torch.Tensor]:
        return {
            name: torch.from_numpy(fill(name, _smaller(shape), dtype))
            for name, (shape, dtype) in self.manifest["state_dict"].items()
            if not (block := re.search(r"blocks\.(\d+)\.", name)) or int(block[1]) < LAYERS
        }

    @property
    def position_table(self) -> torch.Tensor:
        ((name, (shape, dtype)),) = self.manifest["external"].items()
        return torch.from_numpy(fill(name, _smaller(shape), dtype))

    def base(self) -> PreTrainedModel:
        """The public checkpoint: for CLIP one with both towers."""
        encoder = self.encoder()
        if encoder.config.model_type != "clip_text_model":
            return encoder
        towers = {"text_config": encoder.config.to_dict(), "vision_config": tiny_config("clip_vision_model").to_dict()}
        clip = AutoModel.from_config(AutoConfig.for_model("clip", **towers, projection_dim=16))
        clip.text_model.load_state_dict(encoder.state_dict())
        return clip


def content(case: ReferenceCase) -> dict[str, Any]:
    """The content of the file as the authors' program writes it."""
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 5e-4, "params": [0]}]}
    if "scan" in case.variant_name:
        # The best accuracy is a NumPy scalar.
        return {"model": case.original, "optimizer": optimizer, "epoch": 300, "best_val": np.float64(91.9)}
    parallel = {f"module.{name}": tensor for name, tensor in case.original.items()}
    return {"base_model": parallel, "optimizer": optimizer, "epoch": 300, "metrics": {"acc": 94.3}}


def write(case: ReferenceCase, directory: Path, base: PreTrainedModel) -> tuple[Path, Path]:
    """Write checkpoint and encoder and return their paths."""
    checkpoint, encoder = directory / "original.pth", directory / "base"
    torch.save(content(case), checkpoint)
    base.save_pretrained(encoder)
    return checkpoint, encoder


def _smaller(shape: list[int]) -> list[int]:
    return [_SMALLER.get(size, size) for size in shape]
