"""Convert a released classifier with PointGST's adapters into the directory of an adapter, with its head."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from hf_any3d.conversions.act import convert_act_state_dict
from hf_any3d.conversions.act.convert import Choices, build_act, fill_act
from hf_any3d.conversions.act.datasets import UNLABELED
from hf_any3d.conversions.checkpoints import (
    account,
    check_finite,
    errors_about,
    read_checkpoint,
    without_parallel_prefix,
)
from hf_any3d.conversions.renaming import size_of
from hf_any3d.conversions.saving import check_frozen, new_directory, stored_bytes
from hf_any3d.modeling.act import ActForPointCloudClassification
from hf_any3d.modeling.pretrained_parts import own_state
from hf_any3d.processing import PointCloudProcessor
from hf_any3d.tuners import PointGSTConfig

_ADAPTER = re.compile(r"blocks\.blocks\.(\d+)\.gft_adapter\.(down|adapt1|norm_ly1|norm_ly2|up)\.(weight|bias)")
# What the released training changes besides the adapters: head and class token by its optimizer, and the statistics of
# the token network's norms, which it leaves in training mode.
_TRAINED = ("classifier", "class_token")
_DRIFTING = ("lift_norm", "join_norm")


def convert_pointgst(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    base: str | os.PathLike | None = None,
    revision: str | None = None,
    num_groups: int | None = None,
    group_size: int | None = None,
    num_attention_heads: int | None = None,
    dataset: str | None = None,
    num_points: int | None = None,
) -> dict[str, Any]:
    """Convert a classifier of PointGST's program on the transformer of ACT, Point-MAE or ReCon.

    The checkpoint holds the frozen transformer too. If a base is named, both are compared, and the directory holds
    adapters, head, class token and the norms of the token network, whose statistics the program lets drift; otherwise
    the transformer is stored beside them.

    Args:
        checkpoint: The authors' file.
        output: Directory to create.
        base: Directory or hub name of the pretrained transformer, with or without a head.
        revision: Branch, tag or commit of the base on the hub.
        num_groups: Patches per cloud; None for the published number.
        group_size: Points per patch; None for the published number.
        num_attention_heads: Heads of the transformer; None for the published number.
        dataset: The dataset of the training, see `choose_dataset`.
        num_points: Points per cloud that the processor returns.

    Returns:
        Facts by name: `output`, `model`, `trained_parameters`, `bytes`.

    Raises:
        ValueError: The checkpoint cannot be read or does not fit, or the base is another one.
        FileNotFoundError: No such checkpoint.
        FileExistsError: `output` exists and is not empty.
    """
    choices = Choices(num_groups, group_size, num_attention_heads, dataset, num_points)
    with new_directory(output) as directory:
        original = without_parallel_prefix(read_checkpoint(checkpoint, ("base_model",)))
        added = {name: tensor for name, tensor in original.items() if "gft_adapter." in name}
        with errors_about(checkpoint):
            check_finite(added)
            state = convert_act_state_dict("cls", {n: t for n, t in original.items() if n not in added})
            model, trained_on = build_act(checkpoint, "cls", state, None, choices)
            width = size_of(added, "blocks.blocks.0.gft_adapter.down.weight")
        modules = list(_TRAINED)
        if base is None:
            fill_act(model, state, teacher_is_stored=False)
        else:
            model = _on_base(checkpoint, os.fspath(base), revision, model, state)
            modules += _DRIFTING
        adapted = get_peft_model(model, PointGSTConfig.published(r=width, modules_to_save=modules)).eval()
        _fill(checkpoint, adapted, added, state)
        adapted.save_pretrained(os.fspath(directory))
        processor = dict(trained_on.processor if trained_on else UNLABELED)
        if num_points is not None:
            processor["num_points"] = num_points
        PointCloudProcessor(**processor).save_pretrained(directory)
        own = [weight for name, weight in adapted.named_parameters() if weight.requires_grad and "_norm.m" not in name]
    return {
        "output": os.fspath(output),
        "model": type(model).__name__,
        "trained_parameters": sum(weight.numel() for weight in own),
        "bytes": stored_bytes(output),
    }


def _on_base(
    checkpoint: str | os.PathLike,
    base: str,
    revision: str | None,
    model: PreTrainedModel,
    state: Mapping[str, torch.Tensor],
) -> PreTrainedModel:
    """Open the base with the settings of `model`, after comparing its frozen tensors with those in the checkpoint."""
    opened = ActForPointCloudClassification.from_pretrained(base, config=model.config, revision=revision)
    changed = re.compile(r"classifier\.|act\.class_token\.|.*\.(running_mean|running_var|num_batches_tracked)$")
    frozen = {name: tensor for name, tensor in state.items() if not changed.match(name)}
    expected = {name: tensor for name, tensor in own_state(opened).items() if not changed.match(name)}
    check_frozen(checkpoint, base, expected, frozen, "--base")
    return opened


@torch.no_grad()
def _fill(
    checkpoint: str | os.PathLike,
    model: PeftModel,
    added: Mapping[str, torch.Tensor],
    state: Mapping[str, torch.Tensor],
) -> None:
    """Load the adapters, and the copies of modules that are stored with them."""
    own = model.get_base_model().state_dict()
    found = {}
    for name, tensor in added.items():
        match = _ADAPTER.fullmatch(name)
        ours = "act.blocks.layers.{}.pointgst_{}.default.{}".format(*match.groups()) if match else name
        found[ours] = tensor
    account(checkpoint, found, {name: tensor for name, tensor in own.items() if ".pointgst_" in name})
    stored = ".modules_to_save.default"
    found |= {name: state[name.replace(stored, "")] for name in own if stored in name}
    for name, tensor in found.items():
        own[name].copy_(tensor)
