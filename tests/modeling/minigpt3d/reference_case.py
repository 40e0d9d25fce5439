"""Stored runs of the released MiniGPT-3D programs, with their weights under our names."""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.reference.fill import fill

FOLDER = Path(__file__).parents[2] / "reference"

UNUSED = {"Qformer.bert.embeddings.position_ids"}
# Patterns over a released name, in order, and what they become in our whole model.
RENAMES = (
    (r"^point_2_Qformer_proj\.0\.", "bridge.point_mlp.layers.0."),
    (r"^point_2_Qformer_proj\.2\.", "bridge.point_mlp.layers.1."),
    (r"^query_tokens$", "bridge.experts.queries.0"),
    (r"^query_expert_dict\.", "bridge.experts.queries."),
    (r"^query_router\.", "bridge.experts.router."),
    (r"^llama_proj\.", "bridge.projector.fc1."),
    (r"^llama_proj2\.", "bridge.projector.fc2."),
    (r"^Qformer\.bert\.embeddings\.LayerNorm\.", "bridge.qformer.layernorm."),
    (r"^Qformer\.bert\.encoder\.(.*attention)\.self\.", r"bridge.qformer.encoder.\1.attention."),
    (r"^Qformer\.bert\.", "bridge.qformer."),
    (r"(bridge\.qformer\..*\.attention\.(?:query|key|value))\.(weight|bias)$", r"\1.base_layer.\2"),
    (r"^llama_model\.base_model\.model\.", "language_model."),
    # A layer with a LoRA keeps its own weights one level down, which it did not when the programs were released.
    (r"(language_model\..*\.(?:query_key_value|dense))\.(weight|bias)$", r"\1.base_layer.\2"),
)


class ReferenceCase:
    """Reads `tests/reference/minigpt3d_{name}.json` and `.safetensors`."""

    def __init__(self, name: str):
        self.manifest = json.loads((FOLDER / f"minigpt3d_{name}.json").read_text())
        self.expected = load_file(FOLDER / f"minigpt3d_{name}.safetensors")

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.expected[key]

    @cached_property
    def state(self) -> dict[str, torch.Tensor]:
        """The state dict of the released program, under our names."""
        entries = self.manifest["state"].items()
        state = {our_name(name): torch.from_numpy(fill(name, *spec)) for name, spec in entries if name not in UNUSED}
        # Released sets of queries have an axis for the batch.
        return {
            name: value[0] if name.startswith("bridge.experts.queries") else value for name, value in state.items()
        }

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """What of the state lies below a module, under that module's own names."""
        return {name.removeprefix(prefix): value for name, value in self.state.items() if name.startswith(prefix)}

    def difference(self, key: str, ours: torch.Tensor, where: torch.Tensor | None = None) -> float:
        """How far our complete tensor is at most from the stored part of theirs; `where` picks rows of that part."""
        steps = self.manifest["subsampling"].get(key, [1] * ours.ndim)
        ours = ours[tuple(slice(None, None, step) for step in steps)]
        assert ours.shape == self[key].shape
        distance = (ours.detach() - self[key]).abs()
        return (distance if where is None else distance[where]).max().item()


def our_name(name: str) -> str:
    """What a tensor of the released programs is called in our whole model."""
    for pattern, ours in RENAMES:
        name = re.sub(pattern, ours, name)
    return name
