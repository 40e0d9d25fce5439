"""A stored run of a program whose weights others start from, and its file as its authors write it."""

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
from tests.reference.fill import fill, points

FOLDER = Path(__file__).parents[1] / "reference"
# Names of layers whose matrices are larger than others.
_INPUTS = ("attn.qkv.weight", "attn_contrast.q.weight", "attn_contrast.kv.weight", "attn.in_proj_weight")


def filled(name: str, shape: list[int], dtype: str = "float32") -> torch.Tensor:
    """A weight by the rules of the cases."""
    values = torch.from_numpy(fill(name, shape, dtype))
    if not values.is_floating_point() or len(shape) < 2:
        return values
    factor = 20 / math.sqrt(math.prod(shape[1:]))
    factor *= 2 if name.endswith(_INPUTS) else 1
    factor *= 5 if name.endswith("first_conv.0.weight") else 1
    return values * factor


class StartCase:
    """Reads `tests/reference/{name}.json` and `.safetensors`."""

    def __init__(self, name: str):
        self.name = name
        self.manifest = json.loads((FOLDER / f"{name}.json").read_text())
        self.expected = load_file(FOLDER / f"{name}.safetensors")
        self.arguments = self.manifest["constructor_args"]

    @cached_property
    def points(self) -> torch.Tensor:
        spec = self.manifest["input"]
        cloud = torch.from_numpy(points(spec["name"], spec["batch"], spec["count"], spec["channels"]))
        return cloud * torch.tensor(spec["multiplied_by_per_cloud"]).unsqueeze(1)

    @cached_property
    def original(self) -> dict[str, torch.Tensor]:
        """The state dict of the released program."""
        return {name: filled(name, *spec) for name, spec in self.manifest["state_dict"].items()}

    def write(self, folder: Path, state: dict[str, torch.Tensor] | None = None) -> Path:
        """Write the file as the program does."""
        prefix = self.manifest["published_prefix"]
        named = {prefix + name: tensor for name, tensor in (state or self.original).items()}
        file = folder / f"{self.name}.pth"
        torch.save({self.manifest["published_entry"]: named, "epoch": 300}, file)
        return file

    def convert(self, folder: Path, **options: Any) -> Path:
        """Convert the file as `hf-any3d convert` does, with the settings that no tensor shows."""
        sizes = self.arguments.get("fixed", self.arguments)
        sizes = sizes.get("dvae_config", sizes)
        output = folder / "converted"
        given = {"num_groups": sizes["num_group"], "group_size": sizes["group_size"]}
        convert_files([self.write(folder)], output, {**given, **options})
        return output

    def error(self, key: str, ours: torch.Tensor) -> float:
        """Largest difference from a stored tensor, relative to its largest value."""
        expected = self.expected[key]
        ours = ours.detach()
        if key in self.manifest["subsample"]:
            how = self.manifest["subsample"][key]
            assert list(ours.shape) == how["full_shape"], f"{key}: {tuple(ours.shape)}"
            ours = ours[tuple(slice(None, None, int(part.rpartition(":")[2])) for part in how["slice"].split(", "))]
        assert ours.shape == expected.shape, f"{key}: {tuple(ours.shape)}; expected {tuple(expected.shape)}"
        return ((ours.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()

    @staticmethod
    def renamed(kind: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename tensors as the conversion does."""
        from hf_any3d.conversions.act import convert_act_state_dict

        return convert_act_state_dict(kind, state)

    def differing_norms(self, model: nn.Module, kind: str) -> dict[str, tuple[float, float]]:
        """Gradient norms that are not within 1 % of the stored ones: ours and those, by name."""
        # Each tensor filled with its number, so that our tensors tell what they are made of.
        names = list(self.manifest["gradient_norms"])
        numbers = {name: torch.full_like(self.original[name], float(n)) for n, name in enumerate(names)}
        own = dict(model.named_parameters())
        squares = dict.fromkeys(names, 0.0)
        for ours, number in self.renamed(kind, numbers).items():
            gradient = own[ours].grad
            if gradient is not None:
                squares[names[int(number.flatten()[0])]] += gradient.double().square().sum().item()
        largest = max(norm or 0 for norm in self.manifest["gradient_norms"].values())
        differing = {}
        for name, norm in self.manifest["gradient_norms"].items():
            found = squares[name] ** 0.5
            expected = norm or 0.0
            # Below this, norms are rounding noise in float32.
            if abs(found - expected) > max(0.01 * expected, 1e-6 * largest):
                differing[name] = (found, expected)
        return differing
