"""A stored run of a released program on starting weights: its file as published, and what is expected of it.

Weights and inputs are made of their names by the rules of the case's manifest.
"""

from __future__ import annotations

import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from hf_any3d.conversions.programs import convert_files
from tests.modeling.act.reference_case import FOLDER
from tests.reference.fill import fill, points

Shapes = dict[str, tuple[list[int], str]]
_MAPS = ("attn.qkv.weight", "attn_contrast.q.weight", "attn_contrast.kv.weight", "attn.in_proj_weight")


class StartCase:
    """Reads `tests/reference/{name}.json` and `.safetensors`."""

    def __init__(self, name: str):
        self.name = name
        self.manifest = json.loads((FOLDER / f"{name}.json").read_text())
        self.expected = load_file(FOLDER / f"{name}.safetensors")
        self.arguments: dict[str, Any] = self.manifest["constructor_args"]

    @cached_property
    def points(self) -> torch.Tensor:
        spec = self.manifest["input"]
        clouds = torch.from_numpy(points(*(spec[key] for key in ("name", "batch", "count", "channels"))))
        return clouds * torch.tensor(spec["multiplied_by_per_cloud"]).unsqueeze(1)

    def features(self, key: str) -> torch.Tensor:
        """Return features of a frozen encoder, which the case gives."""
        return torch.from_numpy(fill(self.manifest[key]["name"], self.manifest[key]["shape"])) * 20

    @property
    def shapes(self) -> Shapes:
        """Shapes and dtypes of the released state dict."""
        return self.manifest["state_dict"]

    def convert(self, folder: Path, shapes: Shapes | None = None, numbered: bool = False, **options: Any) -> Path:
        """Write the file of the released program and convert it, as the command does."""
        shapes = self.shapes if shapes is None else shapes
        state = numbered_tensors(shapes) if numbered else filled(shapes)
        written = {self.manifest["published_prefix"] + name: tensor for name, tensor in state.items()}
        torch.save({self.manifest["published_entry"]: written, "epoch": 300}, folder / "original.pth")
        convert_files([folder / "original.pth"], folder / "out", options)
        return folder / "out"

    def error(self, key: str, ours: torch.Tensor) -> float:
        """Return the largest difference from a stored tensor, relative to its largest value."""
        expected = self.expected[key]
        if key in self.manifest["subsample"]:
            how = self.manifest["subsample"][key]
            assert list(ours.shape) == how["full_shape"], f"{key}: {tuple(ours.shape)}"
            steps = [int(part.rsplit(":", 1)[-1] or 1) for part in how["slice"].split(",")]
            ours = ours[tuple(slice(None, None, step) for step in steps)]
        assert ours.shape == expected.shape, f"{key}: {tuple(ours.shape)}; expected {tuple(expected.shape)}"
        return ((ours.detach() - expected).abs().max() / expected.abs().max()).item()

    def differing_norms(self, model: nn.Module, renames: dict[str, list[str]], key: str = "gradient_norms") -> dict:
        """Return gradient norms that are not within 1 % of the stored ones: ours and those, by name."""
        expected = self.manifest[key]
        least = 1e-6 * max(norm for norm in expected.values() if norm is not None)
        own = dict(model.named_parameters())
        differing = {}
        for name, norm in expected.items():
            gradients = [own[ours].grad for ours in renames[name] if own[ours].grad is not None]
            found = math.sqrt(sum(gradient.double().square().sum().item() for gradient in gradients))
            if not abs(found - (norm or 0)) <= max(0.01 * (norm or 0), least):
                differing[name] = (found, norm)
        return differing


def filled(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Return weights of these names by the rules of the manifests."""
    state = {}
    for name, (shape, dtype) in shapes.items():
        factor = 20 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 1
        factor *= 2 if name.endswith(_MAPS) else 5 if name.endswith("first_conv.0.weight") else 1
        tensor = torch.from_numpy(fill(name, shape, dtype))
        state[name] = (tensor * factor).to(tensor.dtype)
    return state


def numbered_tensors(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Return tensors that hold the number of their name, so that they are found again after a conversion."""
    return {
        name: torch.full(shape, number, dtype=getattr(torch, dtype))
        for number, (name, (shape, dtype)) in enumerate(shapes.items())
    }


def renames_of(shapes: Shapes, model: nn.Module) -> dict[str, list[str]]:
    """Return the names in a model of each tensor in a file of `numbered_tensors`."""
    found: dict[str, list[str]] = {name: [] for name in shapes}
    released = list(shapes)
    for name, tensor in model.state_dict().items():
        assert tensor.min() == tensor.max(), f"{name} is made of several released tensors"
        found[released[int(tensor.max())]].append(name)
    return found


def outputs_of(model: nn.Module, *names: str) -> dict[str, torch.Tensor]:
    """Keep the outputs of modules in a dictionary, which later calls of the model fill."""
    seen: dict[str, torch.Tensor] = {}
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: seen.__setitem__(name, out))
    return seen
