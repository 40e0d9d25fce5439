"""A stored run of PointGPT's program: a file of its layout, and what it computed; sizes are those of the manifest."""

from __future__ import annotations

import json
from functools import cached_property
from math import prod, sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from hf_any3d.conversions.pointgpt import convert_pointgpt_state_dict
from tests.reference.fill import fill, points

FOLDER = Path(__file__).parents[2] / "reference"
_MAPS_INPUT = ("attn.qkv.weight", "attn_contrast.q.weight", "attn_contrast.kv.weight", "attn.in_proj_weight")


def weight(name: str, shape: list[int], dtype: str = "float32") -> torch.Tensor:
    """Values of a tensor of the file, by the rules in the manifest."""
    values = torch.from_numpy(fill(name, shape, dtype))
    if len(shape) < 2:
        return values
    factor = 20 / sqrt(prod(shape[1:]))
    return (
        values * factor * (2 if name.endswith(_MAPS_INPUT) else 1) * (5 if name.endswith("first_conv.0.weight") else 1)
    )


class StartCase:
    """Reads `tests/reference/{name}.json` and `.safetensors`."""

    def __init__(self, name: str):
        self.name = name
        self.manifest = json.loads((FOLDER / f"{name}.json").read_text())
        self.expected = load_file(FOLDER / f"{name}.safetensors")
        model = self.manifest["model"]
        self.kind = "pretrain" if model == "PointGPT" else "partseg" if "segmentation" in model else "cls"

    @property
    def num_groups(self) -> int:
        return self.manifest["constructor_args"]["num_group"]

    @property
    def heads(self) -> int:
        settings = self.manifest["constructor_args"]
        return settings.get("transformer_config", settings)["num_heads"]

    @cached_property
    def original(self) -> dict[str, torch.Tensor]:
        return {name: weight(name, *spec) for name, spec in self.manifest["state_dict"].items()}

    def save(self, file: Path, state: dict[str, torch.Tensor] | None = None) -> Path:
        """Write a file as the program does."""
        state = {self.manifest["published_prefix"] + name: t for name, t in (state or self.original).items()}
        torch.save({self.manifest["published_entry"]: state, "epoch": 3}, file)
        return file

    @cached_property
    def points(self) -> torch.Tensor:
        spec = self.manifest["input"]
        clouds = points(*(spec[key] for key in ("name", "batch", "count", "channels")))
        return torch.from_numpy(clouds) * torch.tensor(spec["multiplied_by_per_cloud"]).unsqueeze(1)

    def error(self, key: str, ours: torch.Tensor) -> float:
        """Largest difference from a stored tensor, relative to its largest value."""
        expected = self.expected[key]
        if how := self.manifest["subsample"].get(key):
            assert list(ours.shape) == how["full_shape"], key
            steps = [slice(None, None, int(part.rpartition(":")[2])) for part in how["slice"].split(",")]
            ours = ours[tuple(steps)]
        assert ours.shape == expected.shape, f"{key}: {tuple(ours.shape)}; expected {tuple(expected.shape)}"
        return ((ours.detach() - expected).abs().max() / expected.abs().max()).item()

    @cached_property
    def renames(self) -> dict[str, list[str]]:
        """Our names of each tensor of the program, several where it is split, none where it is left out."""
        shapes = self.manifest["state_dict"]
        numbers = {name: torch.full(spec[0], float(n)) for n, (name, spec) in enumerate(shapes.items())}
        found: dict[str, list[str]] = {name: [] for name in numbers}
        for ours, tensor in convert_pointgpt_state_dict(self.kind, numbers).items():
            found[list(numbers)[int(tensor.max())]].append(ours)
        return found

    def differing_norms(self, model: nn.Module) -> dict[str, Any]:
        """Norms of gradients that are not within 1 % of the stored ones, of those that are not rounding noise."""
        own = dict(model.named_parameters())
        expected = self.manifest["gradient_norms"]
        largest = max(norm for norm in expected.values() if norm is not None)
        differing: dict[str, Any] = {}
        for name, norm in expected.items():
            gradients = [own[ours].grad for ours in self.renames[name]]
            if norm is None:
                if any(gradient is not None for gradient in gradients):
                    differing[name] = "has a gradient"
            elif norm > 1e-6 * largest:
                made = sum(gradient.double().square().sum().item() for gradient in gradients) ** 0.5
                if not abs(made - norm) <= 0.01 * norm:
                    differing[name] = (made, norm)
        return differing


def without_chance(model: nn.Module) -> nn.Module:
    """Train mode without dropout and drop path, in place."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout) or type(module).__name__ == "DropPath":
            module.eval()
    return model
