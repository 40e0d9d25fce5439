"""Convert released PointGPT checkpoints: pretraining and post-pretraining, classifiers, part segmentation."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.initialization import no_init_weights

from hf_any3d.conversions.act.datasets import UNLABELED, TrainedOn, find_dataset
from hf_any3d.conversions.act.names import DEEP_HEAD, LINEAR_HEAD, SEGMENTER
from hf_any3d.conversions.checkpoints import errors_about, read_checkpoint
from hf_any3d.conversions.common_layers import PATCH_ENCODER, below, student_sizes
from hf_any3d.conversions.origin import name_labels
from hf_any3d.conversions.point_starts import TABLE
from hf_any3d.conversions.renaming import (
    Names,
    as_linear,
    as_vector,
    count_of,
    heads_of,
    numbers_in,
    rename_tensors,
    under,
)
from hf_any3d.conversions.saving import save_converted
from hf_any3d.conversions.tensor_checks import account
from hf_any3d.data.options import one_of
from hf_any3d.modeling.pointgpt import (
    PointGPTConfig,
    PointGPTForPartSegmentation,
    PointGPTForPointCloudClassification,
    PointGPTForPreTraining,
)
from hf_any3d.modeling.pointgpt.modeling_pointgpt import PatchGenerator
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.utils.markdown import code

KINDS = {
    "pretrain": PointGPTForPreTraining,
    "cls": PointGPTForPointCloudClassification,
    "partseg": PointGPTForPartSegmentation,
}
_PREFIX = "GPT_Transformer."
_BLOCKS: Names = {
    r"(?P<layer>\d+)\.ln_(?P<norm>[12])\.": "{layer}.norm{norm}.",
    r"(?P<layer>\d+)\.attn\.in_proj_": "{layer}.attention.qkv.",
    r"(?P<layer>\d+)\.attn\.out_proj\.": "{layer}.attention.proj.",
    r"(?P<layer>\d+)\.mlp\.0\.": "{layer}.mlp.fc1.",
    r"(?P<layer>\d+)\.mlp\.2\.": "{layer}.mlp.fc2.",
}
# With one layer more before the first maximum, in the larger sizes.
_DEEP_PATCH_ENCODER: Names = {
    **PATCH_ENCODER,
    r"first_conv\.3\.": "deepen.",
    r"first_conv\.4\.": "deepen_norm.",
    r"first_conv\.6\.": "widen.",
}
_GENERATOR: Names = {
    **under("generator_blocks.layers.", "generator.decoder.layers.", _BLOCKS),
    r"generator_blocks\.ln_f\.": "generator.norm.",
    r"generator_blocks\.increase_dim\.0\.": "generator.out.",
}
# What no program reads; in segmentation also the generator, whose loss that program computes and drops.
_UNREAD = "unread."
_OF_NO_USE: Names = {
    r"blocks\.increase_dim\.0\.": f"{_UNREAD}increase_dim.",
    r"generator_blocks\.sos$": f"{_UNREAD}sos",
}
_TRANSFORMER: Names = {
    r"cls_token$": "class_token.token",
    r"cls_pos$": "class_token.position",
    r"blocks\.sos$": "start_token.token",
    r"sos_pos$": "start_token.position",
    **under("blocks.layers.", "blocks.layers.", _BLOCKS),
    r"blocks\.ln_f\.": "norm.",
    r"norm\.": "token_norm.",
    r"blocks\.cls_norm\.": "class_norm.",
}
_POINT_COLUMNS = (("propagation.", "from_tokens"), ("segmenter.", "from_cloud"))
_SPREAD = 0.02
_NUM_GROUPS = 64


def convert_pointgpt_state_dict(kind: str, original: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename and reshape the tensors of a checkpoint of a kind; what fine-tuning adds is not drawn."""
    renamed = _renamed(kind, original)
    return {name: tensor for name, tensor in renamed.items() if not name.startswith(_UNREAD)}


def _renamed(kind: str, original: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of our model, and those that nothing reads, so that both are accounted for."""
    prefix = _PREFIX if kind == "pretrain" else ""
    is_deep = any(name.startswith(f"{prefix}encoder.first_conv.6.") for name in original)
    encoder = under("encoder.", "patch_encoder.", _DEEP_PATCH_ENCODER if is_deep else PATCH_ENCODER)
    head: Names = {}
    if kind == "cls":
        is_linear = not any(name.startswith("blocks.cls_head_finetune.1.") for name in original)
        head = under("blocks.", "", LINEAR_HEAD if is_linear else DEEP_HEAD)
    elif kind == "partseg":
        head = SEGMENTER
    table = {
        **_OF_NO_USE,
        **under("", _UNREAD if kind == "partseg" else "pointgpt.", _GENERATOR),
        **under("", "pointgpt.", {**encoder, **_TRANSFORMER}),
        **head,
    }
    converted = rename_tensors(original, under(prefix, "", table))
    for name, tensor in converted.items():
        if name.endswith("weight"):
            converted[name] = as_linear(tensor)
    for name in ("class_token.token", "class_token.position", "start_token.position"):
        if f"pointgpt.{name}" in converted:
            converted[f"pointgpt.{name}"] = as_vector(converted[f"pointgpt.{name}"])
    if "category_embedding.weight" in converted:
        # A linear layer over one-hot categories becomes an embedding.
        converted["category_embedding.weight"] = converted["category_embedding.weight"].T
    if kind == "partseg":
        for layer, others in _POINT_COLUMNS:
            # A layer over channels of a point, then of tokens or the cloud, is the sum of two.
            columns = 3 if layer == "propagation." else len(converted["propagation.out.bias"])
            joined = converted.pop(f"{layer}joined.weight")
            converted[f"{layer}from_points.weight"] = joined[:, :columns]
            converted[f"{layer}{others}.weight"] = joined[:, columns:]
    return converted


def fresh_tensors(width: int) -> dict[str, torch.Tensor]:
    """Draw what fine-tuning adds to a pretrained transformer, as the program does, always the same."""
    generator = torch.Generator().manual_seed(0)
    token, position = torch.nn.init.trunc_normal_(torch.empty(2, width), std=_SPREAD, generator=generator)
    return {
        "pointgpt.class_token.token": token,
        "pointgpt.class_token.position": position,
        "pointgpt.class_norm.weight": torch.ones(width),
        "pointgpt.class_norm.bias": torch.zeros(width),
    }


def convert_pointgpt(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    kind: str,
    *,
    num_groups: int | None = None,
    group_size: int | None = None,
    num_attention_heads: int | None = None,
    dataset: str | None = None,
    num_points: int | None = None,
) -> dict[str, Any]:
    """Convert a checkpoint of PointGPT-S, -B or -L.

    Args:
        checkpoint: The authors' file.
        output: Directory to create.
        kind: "pretrain", "cls" (a post-pretraining is one of 87 classes) or "partseg".
        num_groups: Patches per cloud, which no tensor shows; None for the published number.
        group_size: Points per patch, which the file shows; another number is refused.
        num_attention_heads: Heads of each block; by default one for 64 channels.
        dataset: Dataset that names the labels, or "none"; by default their number tells.
        num_points: Points per cloud that the processor returns.

    Returns:
        Facts by name: `output`, `model`, `parameters`, `bytes`, `fresh`, tensors of fine-tuning that were drawn.

    Raises:
        ValueError: The checkpoint has tensors of no known part, or lacks some; names them.
        FileExistsError: `output` is there and not empty.
        FileNotFoundError: There is no such checkpoint.
    """
    one_of("kind", kind, KINDS)
    file = Path(checkpoint)
    original = read_checkpoint(file, ("base_model", "model_state_dict"))
    start = next(start for start in TABLE if start.system == "PointGPT" and start.kind == kind)
    given = {"num_groups": num_groups, "group_size": group_size, "num_attention_heads": num_attention_heads}
    try:
        with errors_about(checkpoint):
            config, state, trained_on = read_pointgpt(file, kind, original, dataset, **given)
        settings = dict(trained_on.processor if trained_on else UNLABELED)
        if num_points is not None:
            settings["num_points"] = num_points
        drawn = list(fresh_tensors(config.hidden_size)) if kind == "pretrain" else []
        facts = save_converted(
            output,
            KINDS[kind],
            config,
            state,
            PointCloudProcessor(**settings),
            {"PointGPT": file},
            f"clouds as {config.num_groups} patches of {config.group_size} points.",
            _sections(kind, drawn),
        )
    except ValueError as error:
        # What it is taken for, as files of this form are many.
        text = str(error).removeprefix(f"{checkpoint}: ")
        raise ValueError(f"{checkpoint}: taken for {start.described} of PointGPT: {text}") from error
    return facts | {"fresh": [name.removeprefix("pointgpt.") for name in drawn]}


def read_pointgpt(
    file: Path,
    kind: str,
    original: Mapping[str, torch.Tensor],
    dataset: str | None = None,
    *,
    num_groups: int | None = None,
    group_size: int | None = None,
    num_attention_heads: int | None = None,
) -> tuple[PointGPTConfig, dict[str, torch.Tensor], TrainedOn | None]:
    """Return config and tensors of our model, and its dataset, by the number of labels or as given.

    The arguments are those of `convert_pointgpt`; tensors may be on "meta".
    """
    renamed = _renamed(kind, original)
    state = {name: tensor for name, tensor in renamed.items() if not name.startswith(_UNREAD)}
    if kind == "pretrain":
        state = fresh_tensors(len(state["pointgpt.norm.bias"])) | state
    sizes: dict[str, Any] = student_sizes(below(state, "pointgpt."))
    sizes["num_attention_heads"] = heads_of(sizes["hidden_size"], num_attention_heads)
    widths = []
    for layer in ("lift", "deepen", "widen", "join"):
        bias = state.get(f"pointgpt.patch_encoder.{layer}.bias")
        if bias is not None:
            widths.append(len(bias))
    prefix = _PREFIX if kind == "pretrain" else ""
    sizes |= {
        "patch_widths": widths,
        "group_size": len(original[f"{prefix}generator_blocks.increase_dim.0.bias"]) // 3,
        "decoder_num_hidden_layers": count_of(original, rf"{prefix}generator_blocks\.layers\.(\d+)\."),
        "sampling_min_squared_norm": 1e-3,
    }
    if group_size not in (None, sizes["group_size"]):
        raise ValueError(f"group_size={group_size}; its patches have {sizes['group_size']} points")
    if kind == "pretrain":
        if dataset is not None:
            raise ValueError(f"dataset={dataset!r}: it has no labels; expected none")
        config = PointGPTConfig(**sizes, num_groups=num_groups or _NUM_GROUPS)
        _account_unread(file, kind, renamed, config)
        return config, state, None
    num_labels = len(state["classifier.out.bias" if kind == "cls" else "segmenter.head.out.bias"])
    trained_on = find_dataset(kind, num_labels, dataset)
    if num_groups is None and trained_on is None:
        raise ValueError(
            f"{num_labels} labels are of no dataset of the released programs, so the number of patches, which no "
            "tensor shows, is not known; give --num-groups: 64 for 1,024 points, 128 for 2,048"
        )
    if not num_groups and trained_on is not None:
        num_groups = trained_on.num_groups
    sizes |= {"num_labels": num_labels, "num_groups": num_groups or None}
    sizes |= _head_settings(kind, state, num_labels)
    config = PointGPTConfig(**sizes)
    _account_unread(file, kind, renamed, config)
    labels = () if trained_on is None else trained_on.labels
    is_named = name_labels(config, labels, [file], is_stated=dataset is not None)
    if is_named and trained_on is not None and trained_on.categories:
        config.category_names = list(trained_on.categories)
        config.category_parts = [list(parts) for parts in trained_on.categories.values()]
    return config, state, trained_on


def _head_settings(kind: str, state: Mapping[str, torch.Tensor], num_labels: int) -> dict[str, Any]:
    """Return the settings that the tensors of a head imply."""
    if kind == "cls":
        hidden = sorted(numbers_in(state, r"classifier\.hidden\.(\d+)\."))
        return {"head_widths": [len(state[f"classifier.hidden.{number}.bias"]) for number in hidden]}
    count, category_width = state["category_embedding.weight"].shape
    propagation = ("propagation.from_points.bias", "propagation.out.bias")
    head = ("segmenter.from_points.bias", "segmenter.head.hidden.0.bias")
    return {
        "category_width": category_width,
        "propagation_widths": [len(state[name]) for name in propagation],
        "segmentation_head_widths": [len(state[name]) for name in head],
        # Tensors do not show which parts a category has, so every category may have all of them.
        "category_parts": [list(range(num_labels))] * count,
        "use_class_token": False,
        "drop_path_rate": 0.1,
    }


def _account_unread(file: Path, kind: str, renamed: Mapping[str, torch.Tensor], config: PointGPTConfig) -> None:
    """Check that the tensors that nothing reads are those of the program, as a damaged file may lack some."""
    found = below(renamed, _UNREAD)
    # Copies leave out what nothing reads.
    parts = {name.partition(".")[0] for name in found}
    modules: dict[str, torch.nn.Module] = {}
    expected: dict[str, torch.Tensor] = {}
    with torch.device("meta"), no_init_weights():
        if "sos" in parts:
            expected["sos"] = torch.empty(config.hidden_size)
        if "increase_dim" in parts:
            modules["increase_dim"] = torch.nn.Linear(config.hidden_size, 3 * config.group_size)
        if kind == "partseg" and "generator" in parts:
            modules["generator"] = PatchGenerator(config)
    for part, module in modules.items():
        for name, tensor in module.state_dict().items():
            expected[f"{part}.{name}"] = tensor
    account(file, found, expected)


def _sections(kind: str, drawn: list[str]) -> dict[str, str]:
    """Return the paragraph of a card about the numbers."""
    computes = (
        "The released program, with what its weights were trained with: all sines and cosines of an axis have one "
        "frequency (`position_temperature=1.0`), the positions of start and class token are exchanged "
        "(`crossed_positions=True`), and points within 0.0316 of the origin are never sampled as centers, except for "
        "the first. As the class token sees nothing of a cloud, its feature is the same for all."
    )
    left_out = "`blocks.increase_dim` and `generator_blocks.sos`"
    if kind == "cls":
        computes += " In training, generated patches are compared with absolute points (`absolute_targets=True`)."
    if kind == "partseg":
        left_out += ", and the generator, whose loss the program computes and drops"
    sections = {"What it computes": computes, "Left out": f"Nothing reads {left_out}."}
    if drawn:
        names = ", ".join(code(name.removeprefix("pointgpt.")) for name in drawn)
        sections["Drawn, not pretrained"] = (
            f"Pretraining has none of {names}, so they were drawn as fine-tuning does, with a fixed seed, and are to "
            "be trained. Features that contain the class token are not those of the authors."
        )
    return sections
