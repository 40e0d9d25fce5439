"""A stored run of a released ACT program, and our model with the same weights."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from hf_any3d.conversions.act import convert_act_state_dict
from tests.reference.fill import fill, points

FOLDER = Path(__file__).parents[2] / "reference"
# Quirks of the released programs.
RELEASED = {"sampling_min_squared_norm": 1e-3}


class ReferenceCase:
    """Reads `tests/reference/{name}.json` and `.safetensors`."""

    def __init__(self, name: str, kind: str):
        self.kind = kind
        self.manifest = json.loads((FOLDER / f"{name}.json").read_text())
        self.expected = load_file(FOLDER / f"{name}.safetensors")

    @cached_property
    def points(self) -> torch.Tensor:
        spec = {key: self.manifest["input"][key] for key in ("name", "batch", "count", "channels")}
        return torch.from_numpy(points(**spec))

    @cached_property
    def original(self) -> dict[str, torch.Tensor]:
        """The state dict of the released program."""
        return self.filled(self.shapes)

    def filled(self, shapes: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(fill(name, *spec)) for name, spec in shapes.items()}

    def load(self, model: nn.Module, original: dict[str, torch.Tensor] | None = None) -> nn.Module:
        """Load all converted weights into our model."""
        model.load_state_dict(convert_act_state_dict(self.kind, original or self.original), strict=True)
        return model.eval()

    @cached_property
    def renames(self) -> dict[str, list[str]]:
        """Our names of each released tensor, several where it is split."""
        numbers = {name: torch.full(spec[0], float(n)) for n, (name, spec) in enumerate(self.shapes.items())}
        found: dict[str, list[str]] = {name: [] for name in numbers}
        released = list(numbers)
        for ours, tensor in convert_act_state_dict(self.kind, numbers).items():
            assert tensor.min() == tensor.max(), f"{ours} is made of several released tensors"
            found[released[int(tensor.max())]].append(ours)
        return found

    @property
    def shapes(self) -> dict[str, Any]:
        """Shapes and dtypes of the released state dict."""
        return self.manifest["state_dict"]

    def error(self, key: str, ours: torch.Tensor) -> float:
        """Largest difference from a stored tensor, relative to its largest value."""
        expected = self.expected[key]
        if key in self.manifest["subsample"]:
            how = self.manifest["subsample"][key]
            assert list(ours.shape) == how["full_shape"], f"{key}: {tuple(ours.shape)}"
            steps = [slice(None, None, int(part.rsplit(":", 1)[-1] or 1)) for part in how["slice"][1:-1].split(",")]
            ours = ours[tuple(steps)]
        assert ours.shape == expected.shape, f"{key}: {tuple(ours.shape)}; expected {tuple(expected.shape)}"
        return ((ours.detach() - expected).abs().max() / expected.abs().max()).item()

    def differing_norms(self, key: str, model: nn.Module) -> dict[str, tuple[float, float]]:
        """Gradient norms after a backward pass that are not within 1 % of the stored ones: ours and those, by name.

        Norms that are only rounding noise are ignored.
        """
        expected = self.manifest[f"{key}.grad_norms"]
        own = {name: parameter.grad for name, parameter in model.named_parameters()}
        gradients = {}
        for name, ours in self.renames.items():
            if own.get(ours[0]) is not None:
                gradients[name] = sum(own[part].double().square().sum().item() for part in ours) ** 0.5
        assert gradients.keys() == expected.keys()
        compared, differing = 0, {}
        for name, norm in expected.items():
            if norm < self.manifest[f"{key}.grad_norms_skip_below"]:
                continue
            if name in self.manifest[f"{key}.grad_norms_rounding_noise"]:
                continue
            if not abs(gradients[name] - norm) <= 0.01 * norm:
                differing[name] = (gradients[name], norm)
            compared += 1
        assert compared > len(expected) // 3
        return differing


def without_chance(model: nn.Module) -> nn.Module:
    """Train mode without dropout and drop path, in place."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout) or type(module).__name__ == "DropPath":
            module.eval()
    return model
