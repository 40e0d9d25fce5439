"""Convert a released 3DETR into a directory with model, processor and card."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_any3d.conversions.checkpoints import errors_about, read_checkpoint, read_entries, read_settings
from hf_any3d.conversions.detr3d.names import (
    convert_detr3d_state_dict,
    detr3d_sizes,
    is_masked,
    scale_colors,
)
from hf_any3d.conversions.origin import is_stated, name_labels
from hf_any3d.conversions.saving import save_converted
from hf_any3d.data.catalog import scannet_detection, sunrgbd
from hf_any3d.data.options import one_of
from hf_any3d.modeling.detr3d import Detr3DConfig, Detr3DForPointCloudObjectDetection
from hf_any3d.modeling.detr3d.configuration_detr3d import RELEASED, RELEASED_RADII
from hf_any3d.processing.point_clouds import PointCloudProcessor

_DATASETS: dict[str, dict[str, Any]] = {
    "scannet": {"classes": scannet_detection.DATASET.class_names, "num_queries": 256, "num_points": 40_000},
    "sunrgbd": {"classes": sunrgbd.DATASET.class_names, "num_queries": 128, "num_points": 20_000},
}
# Of the published training: matching, loss, dropout.
_TRAINING: dict[str, dict[str, Any]] = {
    "scannet": {},
    "sunrgbd": {
        **{"giou_cost": 3.0, "center_cost": 5.0, "objectness_cost": 5.0},
        **{"giou_loss_weight": 0.0, "no_object_weight": 0.1},
    },
}
# Names of settings in a file of the authors, and ours.
_ARGUMENTS = {
    "nqueries": "num_queries",
    "preenc_npoints": "num_tokens",
    "enc_nhead": "encoder_attention_heads",
    "dec_nhead": "decoder_attention_heads",
    "enc_dropout": "encoder_dropout",
    "dec_dropout": "dropout",
    "mlp_dropout": "head_dropout",
    "matcher_giou_cost": "giou_cost",
    "matcher_cls_cost": "class_cost",
    "matcher_center_cost": "center_cost",
    "matcher_objectness_cost": "objectness_cost",
    "loss_giou_weight": "giou_loss_weight",
    "loss_sem_cls_weight": "class_loss_weight",
    "loss_no_object_weight": "no_object_weight",
    "loss_angle_cls_weight": "heading_class_loss_weight",
    "loss_angle_reg_weight": "heading_residual_loss_weight",
    "loss_center_weight": "center_loss_weight",
    "loss_size_weight": "size_loss_weight",
}
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "leakyrelu": "leaky_relu"}
_COMPUTES = (
    "The released program, with the quirks that its weights were trained with: points within 0.0316 of the origin are "
    "never sampled (`sampling_min_squared_norm=1e-3`), except for the first point; a crowded ball keeps its first "
    "points (`neighbor_order='first'`), so that boxes depend on the order of the points;{masked} training "
    "misses overlaps of boxes that are turned by more than 45 degrees (`published_overlap=True`). Headings are "
    "counterclockwise here; the rows of the last layers for angles were reordered. Clouds that are thinner than "
    "0.1 along an axis are read as if they were as thick."
)
_MASKED = (
    " the radii of the encoder's attention are the squares of the paper's (`attention_radii=(0.16, 0.64, 1.44)`), as "
    "the program compares squares with distances;"
)
_COLORS = (
    " Colors are from 0 to 1 here; the original's scale of ScanNet's colors has become part of the first layer and of "
    "its norm."
)
_LICENSE = (
    "The authors publish their program under Apache-2.0, and state no other license for these weights. ScanNet and "
    "SUN RGB-D, the data of the training, have terms of their own."
)


def convert_detr3d(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    *,
    dataset: str | None = None,
    num_attention_heads: int | None = None,
    num_points: int | None = None,
) -> dict[str, Any]:
    """Convert a `.pth` of 3DETR; sizes are found from its tensors, the rest from the settings stored beside them.

    Args:
        checkpoint: The authors' file.
        output: Directory to create.
        dataset: What it was trained on, "scannet", "sunrgbd" or "none", for the names of classes; by default chosen by
            their number.
        num_attention_heads: Attention heads, if no settings are stored; by default 4, as published.
        num_points: Points per cloud; by default 40,000 for ScanNet, else 20,000, as published.

    Returns:
        Facts by name: `output`, `model`, `parameters`, `bytes`.
    """
    original = read_checkpoint(checkpoint, ("model",))
    # Training files hold them; files with the weights alone are read too.
    arguments = {}
    if "args" in read_entries(checkpoint):
        arguments = read_settings(checkpoint, "args")
    with errors_about(checkpoint):
        state = convert_detr3d_state_dict(original)
        sizes = detr3d_sizes(state)
        name = _dataset_of(sizes["num_labels"], dataset)
        facts = _DATASETS.get(name, _DATASETS["sunrgbd"])
        # Weights with colors were never published: only ScanNet's training script says how it scales them.
        if sizes["in_channels"] != 3:
            if sizes["in_channels"] != 6 or name != "scannet":
                raise ValueError(
                    f"the first layer reads {sizes['in_channels']} numbers of a point, dataset={name!r}; expected 3, "
                    "or 6 with dataset='scannet', whose colors the original program scales in a known way"
                )
            state = scale_colors(state)
        masked = is_masked(state)
        fields = {"num_queries": facts["num_queries"], **_TRAINING.get(name, {})}
        # The two models of this dataset were trained with different weights of the classes' loss.
        if name == "sunrgbd" and masked:
            fields["class_loss_weight"] = 0.8
        # What is stored beside the weights counts more than what was published, and what the caller says most.
        fields |= _fields(arguments)
        if num_attention_heads is not None:
            fields |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), num_attention_heads)
        # Constants of the program, in no settings.
        fields["attention_radii"] = RELEASED_RADII if masked else None
        # With the quirks of the released program, which its weights were trained with.
        config = Detr3DConfig(**(sizes | RELEASED | fields))
        classes = facts["classes"] if name in _DATASETS else ()
        name_labels(config, classes, [Path(checkpoint)], is_stated=is_stated("dataset", dataset))
    has_colors = config.in_channels == 6
    processor = PointCloudProcessor(
        num_points=num_points or facts["num_points"],
        center=False,
        scale=None,
        up_axis="z",
        features=("xyz", "rgb") if has_colors else ("xyz",),
    )
    computes = _COMPUTES.format(masked=_MASKED if masked else "")
    if has_colors:
        computes += _COLORS
    return save_converted(
        output,
        Detr3DForPointCloudObjectDetection,
        config,
        state,
        processor,
        {"Detector": Path(checkpoint)},
        "scans in meters, with z up.",
        {"What it computes": computes, "License": _LICENSE},
    )


def _dataset_of(num_labels: int, chosen: str | None) -> str:
    """Return the name of the dataset whose classes a model has, "none" for classes of no name."""
    if chosen is not None:
        return one_of("dataset", chosen, [*_DATASETS, "none"])
    # 18 classes of ScanNet, 10 of SUN RGB-D
    by_count = {len(facts["classes"]): name for name, facts in _DATASETS.items()}
    return by_count.get(num_labels, "none")


def _fields(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of our config that the settings of the authors' program give."""
    fields = {ours: arguments[theirs] for theirs, ours in _ARGUMENTS.items() if theirs in arguments}
    activation = arguments.get("enc_activation")
    if activation is not None:
        fields["encoder_activation"] = _ACTIVATIONS[one_of("args.enc_activation", activation, _ACTIVATIONS)]
    # Configs of transformers check types, and command lines give whole numbers where a float is meant.
    for name, value in fields.items():
        if name.endswith(("_cost", "_weight", "dropout")):
            fields[name] = float(value)
    return fields
