"""A stored run of an aligned point encoder: weights and inputs made from names, and the tensors that it returned."""

from __future__ import annotations

import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.reference.fill import fill, points

FOLDER = Path(__file__).parents[1] / "reference"


class AlignedCase:
    """Reads `tests/reference/{name}.json` and `.safetensors`."""

    def __init__(self, name: str):
        self.manifest = json.loads((FOLDER / f"{name}.json").read_text())
        stored = FOLDER / f"{name}.safetensors"
        self.expected = load_file(stored) if stored.exists() else {}

    @cached_property
    def points(self) -> torch.Tensor:
        """Clouds `(batch, count, channels)`."""
        spec = self.manifest["input"]
        cloud = torch.from_numpy(points(spec["name"], spec["batch"], spec["count"], spec["channels"]))
        scale, shift = (torch.tensor(spec.get(key, default)) for key, default in (("scale", 1.0), ("shift", 0.0)))
        cloud[..., :3] = cloud[..., :3] * scale + shift
        return cloud

    @cached_property
    def original(self) -> dict[str, torch.Tensor]:
        """The state dict of the released program."""
        return {name: torch.as_tensor(fill(name, *spec)) for name, spec in self.manifest["state_dict"].items()}

    @property
    def on_meta(self) -> dict[str, torch.Tensor]:
        """Its names, shapes and types, without numbers."""
        shapes = self.manifest["state_dict"]
        return {
            name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
            for name, (shape, dtype) in shapes.items()
        }

    @cached_property
    def text_embeds(self) -> torch.Tensor:
        """Features of texts, not normalized."""
        return torch.from_numpy(fill(self.manifest["text"]["name"], self.manifest["text"]["shape"]))

    @cached_property
    def logit_scale(self) -> torch.Tensor:
        """Logarithm of the scale of logits."""
        return torch.tensor(fill("logit_scale", []))

    def sampled(self, key: str, ours: torch.Tensor) -> torch.Tensor:
        """The entries of a tensor that the case stores."""
        how = self.manifest["subsample"].get(key)
        if how is not None:
            assert list(ours.shape) == how["full_shape"], f"{key}: {tuple(ours.shape)}"
            ours = ours[tuple(slice(None, None, step) for step in how["step"])]
        assert ours.shape == self.expected[key].shape, f"{key}: {tuple(ours.shape)}"
        return ours.detach()

    def error(self, key: str, ours: torch.Tensor) -> float:
        """Largest difference from a stored tensor; infinite if an index differs."""
        ours, expected = self.sampled(key, ours), self.expected[key]
        if not expected.is_floating_point():
            return 0.0 if torch.equal(ours.long(), expected.long()) else math.inf
        return (ours.double() - expected.double()).abs().max().item()

    def relative(self, key: str, error: float) -> float:
        """An error as a share of the largest stored value."""
        return error / max(self.expected[key].abs().max().item(), 1e-30)


def stages_of(encoder: Any, clouds: torch.Tensor, blocks: list[int]) -> dict[str, torch.Tensor]:
    """Everything that the cases store of a forward pass, by its name there."""
    seen: dict[str, torch.Tensor] = {}
    hook = encoder.patch_encoder.register_forward_hook(lambda module, args, out: seen.update(patch_features=out))
    with torch.no_grad():
        output = encoder(clouds, output_hidden_states=True)
    hook.remove()
    seen |= {"centers": output.centers, "center_index": output.center_index, "tokens": output.hidden_states[0]}
    seen |= {f"block_{number}": output.hidden_states[number + 1] for number in blocks}
    return seen | {"pooled": output.last_hidden_state[:, 0], "feature": output.pooler_output}
