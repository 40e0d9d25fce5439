"""Checkpoints of OpenShape, Uni3D and PatchAlign3D as their authors write them, with fewer blocks."""

import argparse
import re

import torch

from tests.modeling.aligned_case import AlignedCase
from tests.reference.fill import fill


def shallow(name: str, blocks: int = 1) -> dict[str, torch.Tensor]:
    """The first blocks, and everything else, of a published encoder, under the authors' names."""
    shapes = AlignedCase(name).manifest["state_dict"]
    numbers = {tensor: re.search(r"(?:layers|blocks)\.(\d+)\.", tensor) for tensor in shapes}
    return {
        tensor: torch.as_tensor(fill(tensor, *shapes[tensor]))
        for tensor, number in numbers.items()
        if number is None or int(number[1]) < blocks
    }


def openshape_training(size: str = "vitg14") -> dict:
    """The content of `model.pt` of the encoders aligned with OpenCLIP bigG: a checkpoint of training."""
    return {
        "state_dict": {f"module.{name}": tensor for name, tensor in shallow(f"openshape_manifest_{size}").items()},
        "logit_scale": {"module.logit_scale": torch.tensor(3.5)},
        "text_proj": None,
        "image_proj": None,
        "optimizer": {"state": {0: {"step": torch.tensor(4.0)}}, "param_groups": [{"lr": 5e-4, "params": [0]}]},
        "scheduler": {"last_epoch": 3},
        "epoch": 3,
        "step": 1000,
        "best_img_contras_acc": 0.5,
    }


def openshape_flat(size: str) -> dict:
    """The content of `model.pt` of the encoders aligned with CLIP B/32 and L/14: tensors of several models."""
    encoder = {f"pc_encoder.{name}": tensor for name, tensor in shallow(f"openshape_manifest_{size}").items()}
    return encoder | {"temp": torch.tensor(0.07), "other.bias": torch.zeros(3)}


def uni3d(name: str, prefix: str = "") -> dict:
    """The content of a `model.pt` of Uni3D, in half precision."""
    return {
        "module": {
            prefix + tensor: value.half() if value.is_floating_point() else value
            for tensor, value in shallow(name).items()
        }
    }


def patchalign3d(stage: int = 2) -> dict:
    """The content of `last.pt` of a training stage of PatchAlign3D, with one block."""
    case = AlignedCase("patchalign3d_segment" if stage == 2 else "patchalign3d_stage1")
    projection = {name: torch.as_tensor(fill(name, *spec)) for name, spec in case.manifest["state_dict_proj"].items()}
    content = {
        "epoch": 100,
        "model": shallow("patchalign3d_segment"),
        "proj": projection,
        "args": argparse.Namespace(lr=1e-4, text_model="ViT-bigG-14"),
    }
    return content | ({"temp": {"log_scale": torch.tensor(3.5)}} if stage == 2 else {})
