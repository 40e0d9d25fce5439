"""Recognize files of the supervised layout of Point Transformer V3: variant, program and benchmark.

The names and shapes of the tensors are the same whichever program trained them, and so is an error-free load; but the
numbers mean something only with that program's rules. So these are asked for where a file cannot tell.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hf_any3d.conversions.point_transformer_v3.benchmarks import BENCHMARKS, CONDITION_CLASSES, Benchmark
from hf_any3d.conversions.point_transformer_v3.names import SUPERVISED_DEFAULTS, supervised_fields
from hf_any3d.conversions.renaming import count_of, numbers_in
from hf_any3d.data.options import one_of


@dataclass(frozen=True)
class Rules:
    """Rules in which programs differ that train the same tensors.

    Args:
        block_rule: Of the config.
        depth_rule: Of the config.
        color_range: Of the processor.
        title: The programs, for cards.
        defaults: Of the constructor; None if these programs have different ones.
    """

    block_rule: str
    depth_rule: str
    color_range: str
    title: str
    defaults: Mapping[str, Any] | None


# Their constructor's defaults differ from those of the detached repository, which are in `_BASE`.
_POINTCEPT = {"order": ("z", "z-trans"), "enc_patch_size": (48,) * 5, "dec_patch_size": (48,) * 4}
TRAINED_WITH: dict[str, Rules] = {
    "pointcept-1.5.1": Rules(
        "branch", "max", "signed", "Pointcept 1.5.0 or 1.5.1 (December 2023 to March 2024)", _POINTCEPT
    ),
    "pointcept-1.5.2": Rules(
        "full", "max", "signed", "Pointcept 1.5.2 (May 2024) or the detached repository since March 2024", None
    ),
    "pointcept-1.6": Rules("full", "max_plus_one", "unit", "Pointcept 1.6.0 (March 2025) or later", _POINTCEPT),
}
"""Program -> its rules. All published segmentation weights are of the first."""

_BASE = {
    **SUPERVISED_DEFAULTS,
    "order": ("z", "z-trans", "hilbert", "hilbert-trans"),
    "enc_patch_size": (1024,) * 5,
    "dec_patch_size": (1024,) * 4,
}
# As published: with biases of relative positions, patches are smaller.
_RELATIVE = {"enable_rpe": True, "enc_patch_size": (128,) * 5, "dec_patch_size": (128,) * 4}
# Trained on three data sets at once, with norms for each.
_SEVERAL = {"pdnorm_bn": True, "pdnorm_ln": True, "pdnorm_conditions": ("ScanNet", "S3DIS", "Structured3D")}
VARIANTS: dict[str, dict[str, Any]] = {
    "base": _BASE,
    "rpe": _BASE | _RELATIVE,
    "ppt": {
        **_BASE,
        **_SEVERAL,
        "enc_depths": (3, 3, 3, 6, 3),
        "enc_channels": (48, 96, 192, 384, 512),
        "enc_num_head": (3, 6, 12, 24, 32),
        "dec_depths": (3, 3, 3, 3),
        "dec_channels": (64, 96, 192, 384),
        "dec_num_head": (4, 6, 12, 24),
    },
    "s3dis-ppt": {
        **_BASE,
        **_RELATIVE,
        **_SEVERAL,
        "enc_channels": (32, 64, 128, 256, 384),
        "enc_num_head": (2, 4, 8, 16, 24),
    },
}
"""Published configurations, as arguments of the original's constructor."""
_SIZES = ("enc_depths", "enc_channels", "dec_depths", "dec_channels", "enable_rpe", "pdnorm_bn", "pdnorm_ln")


def sizes_of(original: Mapping[str, torch.Tensor], encoder: str = "backbone.") -> dict[str, Any]:
    """Read from the tensors, those of the encoder below a prefix, what they show of the constructor's arguments."""
    sizes: dict[str, Any] = {}
    for part in ("enc", "dec"):
        # Every stage has blocks, each with a convolution for positions, whose linear layer shows the width.
        stages = sorted(numbers_in(original, rf"{re.escape(encoder)}{part}\.{part}(\d+)\."))
        places = [f"{encoder}{part}.{part}{stage}.block" for stage in stages]
        sizes[f"{part}_depths"] = tuple(count_of(original, re.escape(place) + r"(\d+)\.") for place in places)
        sizes[f"{part}_channels"] = tuple(original[f"{place}0.cpe.1.weight"].shape[0] for place in places)
    sizes["enable_rpe"] = any(name.endswith("rpe_table") for name in original)
    sizes["pdnorm_bn"] = any("stem.norm.norm." in name for name in original)
    sizes["pdnorm_ln"] = any(re.search(r"norm1\.0\.norm\.", name) for name in original)
    return sizes


def arguments_of(original: Mapping[str, torch.Tensor]) -> tuple[str, dict[str, Any]]:
    """Return the published variant that a file is, and the arguments of its constructor."""
    sizes = sizes_of(original)
    for name, arguments in VARIANTS.items():
        # Of what tensors show; heads, patches and curves are then those of the published configuration.
        if all(sizes[size] == arguments.get(size, False) for size in _SIZES):
            return name, arguments
    told = ", ".join(f"{size}={sizes[size]}" for size in _SIZES)
    raise ValueError(
        f"a model of the supervised layout of Point Transformer V3 with {told}: none of the published ones, "
        f"{', '.join(VARIANTS)}, and a file has no heads, patches and curves; give --arguments, a JSON file with the "
        "arguments of its constructor"
    )


def benchmark_of(original: Mapping[str, torch.Tensor], dataset: str | None) -> Benchmark:
    """Return the benchmark that a file was trained for, given or recognized by its numbers of classes and channels."""
    channels = original["backbone.embedding.stem.conv.weight"].shape[4]
    if dataset is not None:
        # Other numbers of classes or channels than the file's would not fit.
        return BENCHMARKS[one_of("dataset", dataset, BENCHMARKS)]
    # A model of several data sets compares features with texts, or has a head for each data set.
    told = "several data sets, or without a head"
    if "seg_head.weight" in original:
        classes = original["seg_head.weight"].shape[0]
        fitting = []
        for benchmark in BENCHMARKS.values():
            if len(benchmark.classes) == classes and benchmark.channels == channels:
                fitting.append(benchmark)
        if len(fitting) == 1:
            return fitting[0]
        told = f"{classes} classes and {channels} channels"
    raise ValueError(f"a model of {told}; give --dataset, one of {', '.join(BENCHMARKS)}")


def fields_of(
    original: Mapping[str, torch.Tensor], arguments: Mapping[str, Any], rules: Rules, benchmark: Benchmark
) -> dict[str, Any]:
    """Return the fields of `PointTransformerV3Config` of a file."""
    for name, default in _POINTCEPT.items():
        if rules.defaults is None and name not in arguments:
            raise ValueError(
                f"the arguments lack {name!r}, which is {default} by default in Pointcept and {_BASE[name]} in the "
                "detached repository; state it"
            )
    settings = {"in_channels": benchmark.channels, **(rules.defaults or {}), **arguments}
    fields = supervised_fields(settings, block_rule=rules.block_rule, depth_rule=rules.depth_rule)
    fields["reads_coordinates"] = benchmark.reads_coordinates
    fields["in_channels"] = settings["in_channels"]
    if not benchmark.reads_coordinates:
        # Our points always begin with xyz, which indoor models do not read.
        fields["in_channels"] += 3
    if "seg_head.weight" not in original:
        fields |= {
            "segmentation_head": "conditions",
            "condition": benchmark.title,
            "condition_classes": CONDITION_CLASSES,
            "text_embedding_size": 512,
        }
        if "proj_head.weight" in original:
            fields["segmentation_head"] = "texts"
            fields["text_embedding_size"] = original["class_embedding"].shape[1]
    # No published norm reads the table, but files hold it.
    if "embedding_table.weight" in original:
        fields["condition_size"] = original["embedding_table.weight"].shape[1]
    fields["num_labels"] = len(benchmark.classes)
    return fields
