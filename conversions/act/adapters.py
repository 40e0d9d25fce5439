"""Convert a released classifier with adapters in the transformer into the directory of an adapter, with its head.

PointGST, IDPT, DAPT and PPT on the transformer of ACT, Point-MAE or ReCon.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from hf_any3d.conversions.act import convert_act_state_dict
from hf_any3d.conversions.act.adapter_names import PROGRAMS, prompt_module, rename_added
from hf_any3d.conversions.act.convert import Choices, build_act, fill_act
from hf_any3d.conversions.act.datasets import UNLABELED
from hf_any3d.conversions.checkpoints import errors_about, read_checkpoint, without_parallel_prefix
from hf_any3d.conversions.saving import check_frozen, stored_bytes, write_card
from hf_any3d.conversions.tensor_checks import account
from hf_any3d.data.options import one_of
from hf_any3d.model_card.subject import Subject
from hf_any3d.modeling.act import ActConfig, ActForPointCloudClassification
from hf_any3d.modeling.pretrained_parts.tensors import own_state
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.tuners import DAPTConfig, IDPTConfig, PointGSTConfig, PPTConfig
from hf_any3d.tuners.tuners_utils import EncoderTunerConfig
from hf_any3d.utils.atomic_files import new_directory

# Norms of the token network, whose statistics the released training changes, as it leaves them in training mode.
_DRIFTING = ("lift_norm", "join_norm")
# What the head reads in the published settings, by the width of its input in tokens.
_POOLING = {
    "pointgst": {2: ("cls", "max")},
    "idpt": {3: ("cls", "prompt_mean", "max"), 1: ("prompt_mean",)},
    "dapt": {3: ("cls", "prompt_mean", "max")},
    "ppt": {3: ("cls", "mean", "prompt_mean")},
}
# Of the two settings of DAPT with heads of the same width, by the number of classes: ScanObjectNN and ModelNet40.
_DAPT_POOLING = {15: ("cls", "prompt_mean"), 40: ("cls", "max")}


def convert_act_adapter(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    method: str,
    base: str | os.PathLike | None = None,
    revision: str | None = None,
    num_groups: int | None = None,
    group_size: int | None = None,
    num_attention_heads: int | None = None,
    dataset: str | None = None,
    num_points: int | None = None,
    pooling: str | None = None,
    prompt_layer: int | None = None,
    prompt_groups: int | None = None,
) -> dict[str, Any]:
    """Convert a classifier of the program of PointGST, IDPT, DAPT or PPT.

    The checkpoint holds the frozen transformer too. If a base is named, both are compared, and the directory holds
    adapters, head, class token and the norms of the token network, whose statistics the programs let drift; otherwise
    the transformer is stored beside them.

    Args:
        checkpoint: The authors' file.
        output: Directory to create.
        method: "pointgst", "idpt", "dapt" or "ppt".
        base: Directory or hub name of the pretrained transformer, with or without a head.
        revision: Branch, tag or commit of the base on the hub.
        num_groups: Patches per cloud; None for the published number.
        group_size: Points per patch; None for the published number.
        num_attention_heads: Heads of the transformer; None for the published number.
        dataset: The dataset of the training, as for `convert_act`.
        num_points: Points per cloud that the processor returns.
        pooling: What the head reads, such as "cls,prompt_mean,max"; None for the published setting of its width.
        prompt_layer: IDPT: the block, from 0, before which the prompt is made; None for the last one.
        prompt_groups: PPT: number of further patches; None for as many as there are patches.

    Returns:
        Facts by name: `output`, `model`, `trained_parameters`, `bytes`.
    """
    # Options of another method would have no effect.
    one_of("method", method, PROGRAMS)
    for name, value, owner in (("prompt_layer", prompt_layer, "idpt"), ("prompt_groups", prompt_groups, "ppt")):
        if value is not None and method != owner:
            raise ValueError(f"{name}={value}: not for a file of {PROGRAMS[method].title}; expected None")
    choices = Choices(num_groups, group_size, num_attention_heads, dataset, num_points)
    with new_directory(output) as directory:
        original = read_checkpoint(checkpoint, ("base_model",))
        with errors_about(checkpoint):
            # What is left is a classifier of ACT, which is converted like any other.
            added, kept = _split(without_parallel_prefix(original), PROGRAMS[method].marks)
            state = convert_act_state_dict("cls", kept)
            settings: dict[str, Any] = {"pooling": _pooling(method, state, pooling)}
            if method == "ppt":
                settings["head_activation"] = "gelu"
            model, trained_on = build_act(checkpoint, "cls", state, None, choices, settings)
            renamed = rename_added(method, added, model.config.num_hidden_layers, prompt_layer)
            config = _config(method, added, model, prompt_layer, prompt_groups)
        # What the program trained in full is stored with the adapter, whatever the methods here do by default.
        config.modules_to_save = list(PROGRAMS[method].trained)
        if base is None:
            fill_act(model, state, teacher_is_stored=False)
        else:
            model = _open_base(checkpoint, base, revision, model.config, state, config.modules_to_save)
            # A public base has the statistics of its own training, not the drifted ones.
            for name in _DRIFTING:
                if name not in config.modules_to_save:
                    config.modules_to_save.append(name)
        adapted = get_peft_model(model, config).eval()
        _fill(checkpoint, adapted, renamed, state, PROGRAMS[method].prefix)
        adapted.save_pretrained(os.fspath(directory))
        title = Path(output).absolute().name  # not that of the temporary directory
        write_card(directory, title, Subject.from_model(adapted), "", {}, files=[Path(checkpoint)])
        processor = dict(trained_on.processor if trained_on else UNLABELED)
        if num_points is not None:
            processor["num_points"] = num_points
        PointCloudProcessor(**processor).save_pretrained(directory)
    # The norms of the token network are stored, but were not trained; PPT does train the first one.
    untrained = ("join_norm.m",) if method == "ppt" else ("lift_norm.m", "join_norm.m")
    count = 0
    for name, weight in adapted.named_parameters():
        if weight.requires_grad and not any(part in name for part in untrained):
            count += weight.numel()
    return {
        "output": os.fspath(output),
        "model": type(model).__name__,
        "trained_parameters": count,
        "bytes": stored_bytes(output),
    }


def _split(
    original: Mapping[str, torch.Tensor], marks: Iterable[str]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the tensors that a method has added, which have one of its marks in their names, and the others."""
    added = {}
    kept = {}
    for name, tensor in original.items():
        is_added = any(mark in name for mark in marks)
        target = added if is_added else kept
        target[name] = tensor
    return added, kept


def _open_base(
    checkpoint: str | os.PathLike,
    base: str | os.PathLike,
    revision: str | None,
    config: ActConfig,
    state: Mapping[str, torch.Tensor],
    trained: Iterable[str],
) -> PreTrainedModel:
    """Open the pretrained transformer with the settings of a checkpoint, and compare what training has left alone."""
    model = ActForPointCloudClassification.from_pretrained(base, config=config, revision=revision)
    # The programs leave frozen parts in training mode, so the statistics of all norms drift.
    modules = "|".join(map(re.escape, trained))
    changed = re.compile(rf"(.*\.)?({modules})\.|.*\.(running_mean|running_var|num_batches_tracked)$")
    frozen = {name: tensor for name, tensor in state.items() if not changed.match(name)}
    expected = {name: tensor for name, tensor in own_state(model).items() if not changed.match(name)}
    check_frozen(checkpoint, os.fspath(base), expected, frozen, "--base")
    return model


def _pooling(method: str, state: Mapping[str, torch.Tensor], chosen: str | None) -> list[str]:
    """Return what the head reads."""
    width = state["act.norm.weight"].shape[0]
    features = state["classifier.hidden.0.weight"].shape[1]
    # How many pooled vectors the head reads
    count, rest = divmod(features, width)
    if chosen is not None:  # a head for features of another width would not fit
        return chosen.split(",")
    known = _POOLING[method]
    if method == "dapt":
        num_classes = state["classifier.out.weight"].shape[0]
        # Two settings read two vectors each; the number of classes tells them apart.
        if num_classes in _DAPT_POOLING:
            known = known | {2: _DAPT_POOLING[num_classes]}
    if rest or count not in known:
        expected = " or ".join(f"{number} * {width}" for number in sorted(known))
        raise ValueError(
            f"the head reads {features} features, which no published setting of {PROGRAMS[method].title} for as many "
            f"classes does; expected {expected}, or give --pooling"
        )
    return list(known[count])


def _config(
    method: str,
    added: Mapping[str, torch.Tensor],
    model: PreTrainedModel,
    prompt_layer: int | None,
    prompt_groups: int | None,
) -> EncoderTunerConfig:
    """Return the config of the adapters."""
    if method == "pointgst":
        return PointGSTConfig.published(r=added["blocks.blocks.0.gft_adapter.down.weight"].shape[0])
    if method == "idpt":
        return IDPTConfig.published(prompt_layers=prompt_layer, prompt_module=prompt_module(added))
    if method == "dapt":
        return DAPTConfig.published(r=added["blocks.blocks.0.Adapter_MLP.down_proj.weight"].shape[0])
    return PPTConfig.published(
        r=added["blocks.prompt_mlp.0.weight"].shape[0],
        num_groups=prompt_groups or model.config.num_groups,
        group_size=model.config.group_size,
    )


@torch.no_grad()
def _fill(
    checkpoint: str | os.PathLike,
    model: PeftModel,
    renamed: Mapping[str, torch.Tensor],
    state: Mapping[str, torch.Tensor],
    prefix: str,
) -> None:
    """Load the adapters, and the copies of modules that are stored with them."""
    weights = model.get_base_model().state_dict()
    # The parameters of the adapter alone
    ours = {name: tensor for name, tensor in weights.items() if f".{prefix}" in name}
    shaped = dict(renamed)
    for name, tensor in renamed.items():
        # Linear layers on tokens are convolutions of length one in the programs.
        if name in ours and tensor.squeeze().shape == ours[name].squeeze().shape:
            shaped[name] = tensor.view(ours[name].shape)
    account(checkpoint, shaped, ours)
    stored = ".modules_to_save.default"
    for name in weights:
        # Copies that PEFT keeps of modules trained in full are filled from the checkpoint, not from the base.
        if stored in name:
            shaped[name] = state[name.replace(stored, "")]
    for name, tensor in shaped.items():
        weights[name].copy_(tensor)
