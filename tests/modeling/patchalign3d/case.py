"""A stored run of the released PatchAlign3D, and our models with the same weights."""

from __future__ import annotations

import zlib
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_any3d.conversions.patchalign3d.convert import NAMES, PROJECTION_NAMES, convert_patchalign3d_encoder
from hf_any3d.conversions.renaming import rename_tensors
from hf_any3d.modeling.patchalign3d import PatchAlign3DConfig
from tests.modeling.aligned_case import AlignedCase
from tests.reference.fill import fill

RELEASED = {"sampling_min_squared_norm": 1e-3, "drop_path_rate": 0.0}


class PatchCase(AlignedCase):
    """Reads `tests/reference/patchalign3d_{name}.json` and `.safetensors`."""

    def __init__(self, name: str):
        super().__init__(f"patchalign3d_{name}")

    def filled(self, part: str) -> dict[str, torch.Tensor]:
        """Tensors of an entry of the released checkpoint."""
        return {name: torch.as_tensor(fill(name, *spec)) for name, spec in self.manifest[part].items()}

    @cached_property
    def converted(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors of a `PatchAlign3DModel`, and the sizes that they imply."""
        return convert_patchalign3d_encoder(self.filled("state_dict"), self.filled("state_dict_proj"))

    def config(self, **settings: Any) -> PatchAlign3DConfig:
        """Sizes of the released model."""
        given = self.manifest["constructor_args"]
        groups = {"num_groups": given["num_group"], "group_size": given["group_size"]}
        return PatchAlign3DConfig(**self.converted[1], **groups, **RELEASED, **settings)

    def load(self, model: nn.Module) -> nn.Module:
        """Load the released weights into our encoder, or a model around it."""
        encoder = getattr(model, "base_model", model)
        encoder.load_state_dict(self.converted[0], strict=True)
        return model

    def sampled(self, key: str, ours: torch.Tensor) -> torch.Tensor:
        """The entries of a tensor that the case stores."""
        how = self.manifest["subsample"].get(key)
        if how is not None:
            assert list(ours.shape) == how["full_shape"], f"{key}: {tuple(ours.shape)}"
            steps = [int(part.rsplit(":", 1)[-1] or 1) for part in how["slice"][1:-1].split(",")]
            ours = ours[tuple(slice(None, None, step) for step in steps)]
        assert ours.shape == self.expected[key].shape, f"{key}: {tuple(ours.shape)}"
        return ours.detach()

    def differing_norms(self, model: nn.Module, key: str = "") -> dict[str, tuple[float, float]]:
        """Gradient norms that are not within 1 % of the stored ones: ours and those, by name.

        The stored names are those of the released program.
        """
        expected = self.manifest[f"{key}grad_norms"]
        noise = self.manifest.get(
            f"{key}grad_norms_rounding_noise", self.manifest.get("grad_norms_rounding_noise", ())
        )
        gradients = {
            name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
        }
        ours = {}
        for name in (*self.manifest["state_dict"], *self.manifest["state_dict_proj"]):
            renamed = rename_tensors({name: torch.zeros(1)}, {**NAMES, **PROJECTION_NAMES})
            gradient = gradients.get(f"patchalign3d.{next(iter(renamed))}")
            if gradient is not None:
                ours[name] = gradient.double().norm().item()
        if "alignment.logit_scale" in gradients:
            ours["log_scale"] = gradients["alignment.logit_scale"].double().norm().item()
        assert ours.keys() == expected.keys()
        skipped = self.manifest[f"{key}grad_norms_skip_below"]
        kept = {name: norm for name, norm in expected.items() if norm >= skipped and name not in noise}
        assert len(kept) > len(expected) // 2
        return {name: (ours[name], norm) for name, norm in kept.items() if not abs(ours[name] - norm) <= 0.01 * norm}


def unit_rows(name: str, shape: list[int]) -> torch.Tensor:
    """A filled tensor whose rows are unit vectors."""
    return nn.functional.normalize(torch.from_numpy(fill(name, shape)), dim=-1)


def random_masks(name: str, shape: list[int]) -> torch.Tensor:
    """Masks of labels that a quarter of all points have."""
    return torch.from_numpy(np.random.default_rng(zlib.crc32(name.encode())).random(shape) < 0.25)
