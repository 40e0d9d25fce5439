"""A stored run of a released program of adapters on point transformers, and our model with the same weights."""

from __future__ import annotations

import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from hf_any3d.conversions.act import convert_act_state_dict
from hf_any3d.conversions.act.adapter_names import PROGRAMS, added_names, rename_added
from hf_any3d.conversions.renaming import rename_tensors
from hf_any3d.modeling.act import ActConfig, ActForPointCloudClassification
from tests.modeling.act.reference_case import RELEASED, without_chance
from tests.reference.fill import fill, points

FOLDER = Path(__file__).parents[1] / "reference"


def filled(name: str, shape: list[int], dtype: str = "float32") -> torch.Tensor:
    """A weight by the rules of the cases, under which no branch is small."""
    values = fill(name, shape, dtype)
    if not dtype.startswith("float"):
        return torch.from_numpy(values)
    factor = 1.0
    if name.startswith("tfts_gamma") or ".tfts_gamma" in name:
        return torch.from_numpy(1 + 2 * values)
    if len(shape) >= 2:
        factor *= 20 / math.sqrt(math.prod(shape[1:]))
        factor *= 2 if name.endswith("attn.qkv.weight") else 1
    marks = {"encoder.first_conv.0.weight": 5, "gft_adapter.up.weight": 0.5, "Adapter_MLP.up_proj.weight": 2}
    for mark, more in {**marks, "Adapter_MLP.scale.weight": 2}.items():
        factor *= more if mark in name else 1
    shift = 0.3 if "Adapter_MLP.scale.bias" in name else 0.0
    return torch.from_numpy(values) * factor + shift


def added_by(method: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors that a program has added to the transformer."""
    return {name: tensor for name, tensor in state.items() if any(mark in name for mark in PROGRAMS[method].marks)}


HEAD = {"0": "hidden.0", "1": "norms.0", "4": "hidden.1", "5": "norms.1", "8": "out"}


def ours_of_base(name: str) -> str:
    """Our name, in an adapted classifier, of a tensor of the head or the class token of a released program."""
    if name in ("cls_token", "cls_pos"):
        own = "token" if name == "cls_token" else "position"
        return f"base_model.model.act.class_token.modules_to_save.default.{own}"
    if name.startswith("encoder.first_conv."):
        _, _, number, leaf = name.split(".")
        part = {"0": "lift", "1": "lift_norm", "3": "widen"}[number]
        return f"base_model.model.act.patch_encoder.{part}.modules_to_save.default.{leaf}"
    if name.startswith("pos_embed."):
        return name.replace("pos_embed.", "base_model.model.act.position_embed.modules_to_save.default.")
    _, number, leaf = name.split(".")
    return f"base_model.model.classifier.modules_to_save.default.{HEAD[number]}.{leaf}"


class PeftCase:
    """Reads `tests/reference/{name}.json` and `.safetensors`."""

    def __init__(self, name: str):
        self.manifest = json.loads((FOLDER / f"{name}.json").read_text())
        self.expected = load_file(FOLDER / f"{name}.safetensors")

    @cached_property
    def points(self) -> torch.Tensor:
        spec = self.manifest["input"]
        cloud = torch.from_numpy(points(spec["name"], spec["batch"], spec["count"], spec["channels"]))
        if "multiplied_by" in spec:
            return cloud * torch.tensor(spec["multiplied_by"])
        return cloud * torch.tensor(spec["multiplied_by_per_cloud"]).unsqueeze(1)

    @cached_property
    def original(self) -> dict[str, torch.Tensor]:
        """The state dict of the released program, without `module.`."""
        return {name: filled(self.kept(name), *spec) for name, spec in self.manifest["state_dict"].items()}

    def kept(self, name: str) -> str:
        """The name under which a tensor has its values, of two that a module has."""
        for copy, kept in self.manifest.get("aliases", {}).items():
            name = name.replace(copy + ".", kept + ".")
        return name

    def base(self, *own: str, **changes: Any) -> ActForPointCloudClassification:
        """The classifier below the adapters, whose tensors have names that contain one of `own`."""
        sizes = self.manifest["constructor_args"]
        model = ActForPointCloudClassification(
            ActConfig(
                hidden_size=sizes.get("trans_dim") or sizes["embed_dim"],
                num_hidden_layers=sizes["depth"],
                num_attention_heads=sizes["num_heads"],
                num_groups=sizes["num_group"],
                group_size=sizes["group_size"],
                num_labels=sizes["cls_dim"],
                **{**RELEASED, **changes},
            )
        )
        below = {name: tensor for name, tensor in self.original.items() if not any(part in name for part in own)}
        model.load_state_dict(convert_act_state_dict("cls", below), strict=True)
        return model.eval()

    def check(self, key: str, ours: torch.Tensor) -> None:
        """Compare a tensor with a stored one, within the case's tolerance."""
        tolerance = self.manifest["tolerance"]
        kind = key.rpartition(".")[2]
        if key.startswith("train") and kind in ("logits", "loss"):
            tolerance = tolerance["train_logits_and_loss"]
        elif kind in ("logits", "feature"):
            tolerance = tolerance["logits_and_feature"]
        limits = {name: tolerance[name] for name in ("atol", "rtol")}
        torch.testing.assert_close(ours.detach().float(), self.expected[key], **limits, msg=lambda text: key + text)

    def check_gradients(self, mode: str, model: PeftModel, ours_of: Any) -> None:
        """Compare all stored gradients; `ours_of` returns our parameter of a released name."""
        named = dict(model.named_parameters())
        stored = [key for key in self.expected if key.startswith(f"{mode}.grad.")]
        assert stored
        for key in stored:
            name = key.removeprefix(f"{mode}.grad.")
            parameter = named[ours_of(name)]
            expected, found = self.expected[key], parameter.grad.view(self.manifest["state_dict"][name][0])
            if found.shape != expected.shape:
                found = found[::16]  # stored in part
            limit = 1e-3 * expected.abs().max().item()
            torch.testing.assert_close(found, expected, atol=limit, rtol=0, msg=lambda text, key=key: key + text)


class AdaptedRun:
    """A case, and our model with its weights."""

    def __init__(self, name: str, method: str, config: PeftConfig, prompt_layer: int | None = None, **changes: Any):
        self.case, self.method, self.prompt_layer = PeftCase(name), method, prompt_layer
        self.model = get_peft_model(self.case.base(*PROGRAMS[method].marks, **changes), config).eval()
        self.depth = self.case.manifest["constructor_args"]["depth"]
        own = self.model.get_base_model().state_dict()
        added = rename_added(method, added_by(method, self.case.original), self.depth, prompt_layer)
        assert added.keys() == {name for name in own if f".{PROGRAMS[method].prefix}" in name}
        with torch.no_grad():
            for name, tensor in added.items():
                own[name].copy_(tensor.view(own[name].shape))

    def ours_of(self, name: str) -> str:
        """Our name of a trained tensor of the released program."""
        name = self.case.kept(name)
        tensor = {name: self.case.original[name]}
        if added_by(self.method, tensor):
            (ours,) = rename_tensors(tensor, added_names(self.method, self.depth, self.prompt_layer))
            return f"base_model.model.{ours}"
        return ours_of_base(name)

    def check_step(self, mode: str) -> None:
        """Compare a training step with the stored one."""
        without_chance(self.model)
        # The released programs train with the statistics of the batch, which then drift.
        for part in self.model.get_base_model().act.patch_encoder.modules():
            part.training = mode == "train"
        output = self.model(points=self.case.points, labels=torch.tensor(self.case.manifest["labels"]))
        self.case.check(f"{mode}.logits", output.logits)
        self.case.check(f"{mode}.loss", output.loss)
        output.loss.backward()
        if mode == "train":
            self.case.check_gradients(mode, self.model, self.ours_of)
