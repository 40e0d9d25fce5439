"""Convert a released DGCNN into a directory with model, processor and card."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hf_any3d.conversions.checkpoints import errors_about, read_checkpoint
from hf_any3d.conversions.origin import name_labels
from hf_any3d.conversions.renaming import as_linear
from hf_any3d.conversions.saving import save_converted
from hf_any3d.conversions.tensor_checks import check_finite
from hf_any3d.data.catalog import modelnet40, s3dis
from hf_any3d.modeling.dgcnn import DgcnnConfig, DgcnnForPointCloudClassification, DgcnnForSemanticSegmentation
from hf_any3d.processing.point_clouds import PointCloudProcessor

# What the program builds whatever its settings are.
_RELEASED: dict[str, Any] = {
    "in_channels": 9,
    "edge_widths": [[64, 64], [64, 64], [64]],
    "head_widths": [512, 256],
    "position_channel": 6,
}
# Settings of the classifiers, which their tensors show in part.
_SHAPES: dict[str, Any] = {"edge_widths": [[64], [64], [128], [256]], "head_widths": [512, 256]}
# Their layers -> our layers, two where the weights for a neighbor and a point, or a cloud and a point, are apart.
_LAYERS: dict[str, tuple[tuple[str, ...], str]] = {
    "conv1": (("dgcnn.edges.0.from_neighbor", "dgcnn.edges.0.from_point"), "dgcnn.edges.0.norm"),
    "conv2": (("dgcnn.edges.0.layers.0.linear",), "dgcnn.edges.0.layers.0.norm"),
    "conv3": (("dgcnn.edges.1.from_neighbor", "dgcnn.edges.1.from_point"), "dgcnn.edges.1.norm"),
    "conv4": (("dgcnn.edges.1.layers.0.linear",), "dgcnn.edges.1.layers.0.norm"),
    "conv5": (("dgcnn.edges.2.from_neighbor", "dgcnn.edges.2.from_point"), "dgcnn.edges.2.norm"),
    "conv6": (("dgcnn.layers.0.linear",), "dgcnn.layers.0.norm"),
    "conv7": (("segmenter.from_cloud", "segmenter.from_points"), "segmenter.norm"),
    "conv8": (("segmenter.head.hidden.0",), "segmenter.head.norms.0"),
}
# Those of the classifiers, whose head has norms of other numbers.
_SHAPE_LAYERS: dict[str, tuple[tuple[str, ...], str]] = {
    "conv1": (("dgcnn.edges.0.from_neighbor", "dgcnn.edges.0.from_point"), "dgcnn.edges.0.norm"),
    "conv2": (("dgcnn.edges.1.from_neighbor", "dgcnn.edges.1.from_point"), "dgcnn.edges.1.norm"),
    "conv3": (("dgcnn.edges.2.from_neighbor", "dgcnn.edges.2.from_point"), "dgcnn.edges.2.norm"),
    "conv4": (("dgcnn.edges.3.from_neighbor", "dgcnn.edges.3.from_point"), "dgcnn.edges.3.norm"),
    "conv5": (("dgcnn.layers.0.linear",), "dgcnn.layers.0.norm"),
}
_SHAPE_HEAD = {"linear1": "bn6", "linear2": "bn7"}
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_OUT = "segmenter.head.out.weight"
_COMPUTES = (
    "Blocks of a room, 1 m wide and as high as the room: places relative to the middle of the block and to the floor, "
    "colors, and places in the room from 0 to 1 along each axis, which the first graph of neighbors is of. So labels "
    "depend on the walls of the scan: a part of a room is read as if it were a whole one."
)
_LICENSE = (
    "MIT, as that of the repository which they are part of. S3DIS, the data of the training, is for non-commercial "
    "research."
)
_SHAPE_LICENSE = (
    "MIT, as that of the repository which they are part of. ModelNet40, the data of the training, is for academic "
    "research."
)


def convert_dgcnn(
    checkpoint: str | os.PathLike, output: str | os.PathLike, *, num_neighbors: int = 20
) -> dict[str, Any]:
    """Convert a `.t7` of DGCNN in PyTorch: for the classes of S3DIS, or a classifier of ModelNet40.

    Args:
        checkpoint: The authors' file.
        output: Directory to create.
        num_neighbors: Neighbors in each graph, which no tensor shows: 20, or 40 for the classifier of 2,048 points.

    Returns:
        Facts by name: `output`, `model`, `parameters`, `bytes`.
    """
    original = read_checkpoint(checkpoint)
    if "linear3.weight" in original:
        return _convert_classifier(checkpoint, original, output, num_neighbors)
    with errors_about(checkpoint):
        state = convert_dgcnn_state_dict(original)
        config = DgcnnConfig(
            **_RELEASED,
            hidden_sizes=[len(state["dgcnn.layers.0.norm.bias"])],
            num_labels=len(state[_OUT]),
            num_neighbors=num_neighbors,
        )
        # Of the released training; no tensor shows it.
        config.head_dropout = 0.5
        name_labels(config, s3dis.CLASS_NAMES, [Path(checkpoint)])
    processor = PointCloudProcessor(
        num_points=4096,
        center="room",
        scale=None,
        features=("xyz", "rgb"),
        up_axis=s3dis.UP_AXIS,
        block_size=1.0,
    )
    takes = "whole rooms in meters with colors, z up, which its processor and pipeline cut into blocks."
    sections = {"What it computes": _COMPUTES, "License": _LICENSE}
    files = {"Model": Path(checkpoint)}
    return save_converted(output, DgcnnForSemanticSegmentation, config, state, processor, files, takes, sections)


def _convert_classifier(
    checkpoint: str | os.PathLike, original: Mapping[str, torch.Tensor], output: str | os.PathLike, num_neighbors: int
) -> dict[str, Any]:
    """Convert a classifier; its head reads the maximum and the mean over the points."""
    with errors_about(checkpoint):
        check_finite(original)
        # The norms of its head are stored once, those of its convolutions twice.
        of_head = tuple(f"{norm}." for norm in _SHAPE_HEAD.values())
        state = {}
        for name, tensor in original.items():
            if name.startswith(of_head) or not name.startswith("bn"):
                state[name] = tensor
        _split(state, _SHAPE_LAYERS)
        for number, (linear, norm) in enumerate(_SHAPE_HEAD.items()):
            state[f"classifier.hidden.{number}.weight"] = state.pop(f"{linear}.weight")
            for name in _NORM:
                state[f"classifier.norms.{number}.{name}"] = state.pop(f"{norm}.{name}")
            # A bias before a norm is the same as another mean.
            if f"{linear}.bias" in state:
                mean = f"classifier.norms.{number}.running_mean"
                state[mean] = state[mean] - state.pop(f"{linear}.bias")
        for name in ("weight", "bias"):
            state[f"classifier.out.{name}"] = state.pop(f"linear3.{name}")
        config = DgcnnConfig(
            **_SHAPES,
            hidden_sizes=[len(state["dgcnn.layers.0.norm.bias"])],
            num_labels=len(state["classifier.out.bias"]),
            num_neighbors=num_neighbors,
        )
        config.head_dropout = 0.5
        config.expected_pose = "upright"
        name_labels(config, modelnet40.CLASS_NAMES, [Path(checkpoint)])
    return save_converted(
        output,
        DgcnnForPointCloudClassification,
        config,
        state,
        # As in the program's training on ModelNet40, whose HDF5 files hold clouds in the unit sphere.
        PointCloudProcessor(num_points=1024 if num_neighbors <= 20 else 2048, up_axis="y"),
        {"Classifier": Path(checkpoint)},
        "single objects, y up, as in the HDF5 files of ModelNet40 that the released weights were trained on.",
        {"License": _SHAPE_LICENSE},
    )


def convert_dgcnn_state_dict(original: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the tensors of the released program to those of a `DgcnnForSemanticSegmentation`."""
    check_finite(original)
    # Each norm is stored twice, as bn1 and conv1.1; the program loads the latter last.
    state = {name: tensor for name, tensor in original.items() if not name.startswith("bn")}
    _split(state, _LAYERS)
    state[_OUT] = as_linear(state.pop("conv9.weight"))
    return state


def _split(state: dict[str, torch.Tensor], layers: Mapping[str, tuple[tuple[str, ...], str]]) -> None:
    """Replace layers with norms by ours, some of which are two."""
    cloud_width = len(state["conv6.0.weight"]) if "conv6.0.weight" in state else 0
    for theirs, (ours, norm) in layers.items():
        weight = as_linear(state.pop(f"{theirs}.0.weight"))
        # The head's first layer reads [cloud ; point], those of edges [neighbor ; point].
        if len(ours) == 1:
            state[f"{ours[0]}.weight"] = weight
        else:
            first = cloud_width if theirs == "conv7" else weight.shape[1] // 2
            state[f"{ours[0]}.weight"] = weight[:, :first]
            state[f"{ours[1]}.weight"] = weight[:, first:]
        for name in _NORM:
            state[f"{norm}.{name}"] = state.pop(f"{theirs}.1.{name}")
