"""Stored runs of PointGPT's program, and its files in released and in small sizes."""

from __future__ import annotations

import json
import re
from typing import Any

import torch

from hf_any3d.conversions.pointgpt import convert_pointgpt_state_dict
from tests.conversions.start_case import FOLDER, StartCase, filled

RELEASED = json.loads((FOLDER / "start_manifest_point_gpt.json").read_text())
KINDS = ("pretrain", "cls", "partseg")
ENTRIES = {"pretrain": "base_model", "cls": "base_model", "partseg": "model_state_dict"}
# Small sizes of the smallest model, by the pattern of a name.
_SMALLER = (
    (r"encoder\.(?!second_conv\.3)", {}),
    (r"(generator_)?blocks\.increase_dim\.", {384: 64, 96: 24}),
    (r"blocks\.cls_head", {768: 128, 256: 20}),
    (r"label_conv", {}),
    (r"propagation_0", {1155: 195, 1536: 40, 1024: 32}),
    (r"convs1", {3392: 480, 512: 24}),
    (r"(convs|bns)", {512: 24, 256: 20}),
    ("", {384: 64, 1152: 192, 1536: 256}),
)


class PointGPTCase(StartCase):
    """A stored run; its sizes are those of the manifest."""

    renamed = staticmethod(convert_pointgpt_state_dict)

    @property
    def kind(self) -> str:
        """The kind of file."""
        model = self.manifest["model"]
        return "pretrain" if model == "PointGPT" else "partseg" if "segmentation" in model else "cls"


def kind_of(name: str) -> str:
    """The kind of a file with one of the released sizes."""
    return {"pretrain": "pretrain", "classifier": "cls", "part": "partseg"}[name.partition("_")[0]]


def small_state(kind: str) -> dict[str, torch.Tensor]:
    """The tensors of a file of the smallest size with two blocks, a block of the generator, and few channels."""
    smallest = next(name for name in RELEASED if kind_of(name) == kind and name.endswith("_S"))
    state = {}
    for name, (shape, dtype) in RELEASED[smallest]["tensors"].items():
        plain = name.removeprefix("GPT_Transformer.")
        # Segmentation reads the outputs of blocks 3, 7 and 11.
        most = 12 if kind == "partseg" else 2
        layer = re.match(r"(generator_)?blocks\.layers\.(\d+)\.", plain)
        if layer and int(layer[2]) >= (1 if layer[1] else most):
            continue
        sizes: dict[int, int] = next(sizes for pattern, sizes in _SMALLER if re.match(pattern, plain))
        state[name] = filled(name, [sizes.get(size, size) for size in shape], dtype)
    return state


def small_file(kind: str, state: dict[str, torch.Tensor] | None = None) -> dict[str, Any]:
    """The content of such a file, or of one with other tensors, as the program writes it."""
    return {ENTRIES[kind]: state or small_state(kind), "epoch": 3}
