"""Stored runs of the released MiniGPT-3D programs, with their weights under our names."""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from hf_any3d.conversions.minigpt3d.names import convert_minigpt3d_state_dict
from hf_any3d.modeling.minigpt3d import names_in
from tests.reference.fill import fill

FOLDER = Path(__file__).parents[2] / "reference"


class ReferenceCase:
    """Reads `tests/reference/minigpt3d_{name}.json` and `.safetensors`.

    Args:
        name: Name of the case.
        prefix: Prefix to add to its tensor names, if it is a run of a submodel.
        left_out: Pattern of names for which the case has no tensors.
    """

    def __init__(self, name: str, prefix: str = "", left_out: str = "$"):
        self.prefix, self.left_out = prefix, left_out
        self.manifest = json.loads((FOLDER / f"minigpt3d_{name}.json").read_text())
        self.expected = load_file(FOLDER / f"minigpt3d_{name}.safetensors")

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.expected[key]

    @cached_property
    def state(self) -> dict[str, torch.Tensor]:
        """The state dict of the released program, under our names."""
        entries = [item for item in self.manifest["state"].items() if not re.match(self.left_out, item[0])]
        return convert_minigpt3d_state_dict(
            {self.prefix + name: torch.from_numpy(fill(name, *spec)) for name, spec in entries}
        )

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """The state of a submodule, under its own names."""
        return {name.removeprefix(prefix): value for name, value in self.state.items() if name.startswith(prefix)}

    def load_into(self, module: nn.Module, prefix: str = "") -> nn.Module:
        """Load exactly its tensors into a module, which may be on the meta device."""
        part = self.part(prefix)
        names = names_in(module, part)
        module.load_state_dict({names[name]: tensor for name, tensor in part.items()}, assign=True)
        return module.eval()

    def difference(self, key: str, ours: torch.Tensor, where: torch.Tensor | None = None) -> float:
        """Largest difference of our full tensor from the stored entries of theirs; `where` selects rows of these."""
        steps = self.manifest["subsampling"].get(key, [1] * ours.ndim)
        ours = ours[tuple(slice(None, None, step) for step in steps)]
        assert ours.shape == self[key].shape
        distance = (ours.detach() - self[key]).abs()
        return (distance if where is None else distance[where]).max().item()
