"""A stored run of the released 3DETR: weights and inputs made from names, and what it computed."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch

from hf_any3d.conversions.detr3d.names import convert_detr3d_state_dict, detr3d_sizes
from hf_any3d.modeling.detr3d import Detr3DConfig, Detr3DForPointCloudObjectDetection
from hf_any3d.modeling.detr3d.configuration_detr3d import RELEASED, RELEASED_RADII
from tests.modeling.aligned_case import AlignedCase
from tests.reference.fill import fill, points


class DetectionCase(AlignedCase):
    """Reads `tests/reference/{name}.json` and `.safetensors`."""

    @cached_property
    def points(self) -> torch.Tensor:
        """Clouds `(batch, count, channels)`."""
        spec = self.manifest["input"]
        cloud = torch.from_numpy(points(spec["name"], spec["batch"], spec["count"], spec["channels"]))
        cloud[..., :3] = cloud[..., :3] * torch.tensor(spec["stretch"]) + torch.tensor(spec["shift"]).unsqueeze(1)
        cloud[..., 3:] -= 0.5
        for row, number, xyz in spec["set"]:
            cloud[row, number, :3] = torch.tensor(xyz, dtype=torch.float32)
        return cloud

    @cached_property
    def original(self) -> dict[str, torch.Tensor]:
        """The state dict of the released program."""
        return {name: self._filled(name, *spec) for name, spec in self.manifest["state_dict"].items()}

    def _filled(self, name: str, shape: list[int], dtype: str) -> torch.Tensor:
        if f"buffer.{name}" in self.expected:
            return self.expected[f"buffer.{name}"]
        weight = torch.as_tensor(fill(name, shape, dtype))
        if not weight.is_floating_point():
            return weight
        weight = weight.double()
        if name == "pos_embedding.gauss_B":
            weight = weight * 20
        elif weight.ndim > 1:
            weight = weight - weight.flatten(1).mean(dim=1).view(-1, *[1] * (weight.ndim - 1))
            weight = weight * 28 / math.sqrt(weight[0].numel())
            if name.startswith("mlp_heads.") and name.endswith("layers.8.weight"):
                weight = weight * 1.5
            if name == "query_projection.layers.2.weight":
                weight = weight * 2
        return weight.float()

    def model(self, **changes: Any) -> Detr3DForPointCloudObjectDetection:
        """The converted model, in eval mode."""
        state = convert_detr3d_state_dict(self.original)
        given = self.manifest["constructor_args"]
        settings: dict[str, Any] = {
            "encoder_attention_heads": given["enc_nhead"],
            "decoder_attention_heads": given["dec_nhead"],
            "num_tokens": given["preenc_npoints"],
            "num_queries": given["nqueries"],
            "attention_radii": RELEASED_RADII if given["enc_type"] == "masked" else None,
        }
        model = Detr3DForPointCloudObjectDetection(
            Detr3DConfig(**detr3d_sizes(state), **(settings | RELEASED | changes))
        )
        model.load_state_dict(state, strict=True)
        return model.eval()


def camera_corners(corners: torch.Tensor) -> torch.Tensor:
    """Corners in the original's frame, y down."""
    x, y, z = corners.unbind(dim=-1)
    return torch.stack([x, -z, y], dim=-1)


def clockwise(values: torch.Tensor) -> torch.Tensor:
    """Values of heading bins in the original's order."""
    return values[..., -torch.arange(values.shape[-1]) % values.shape[-1]]
