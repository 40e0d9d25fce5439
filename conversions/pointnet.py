"""Convert the PointNet classifier of learning3d into a directory with model, processor and card."""

import os
import re
from pathlib import Path
from typing import Any

from hf_any3d.conversions.checkpoints import errors_about, read_checkpoint
from hf_any3d.conversions.origin import name_labels
from hf_any3d.conversions.renaming import as_linear, rename_tensors
from hf_any3d.conversions.saving import save_converted
from hf_any3d.data.catalog import modelnet40
from hf_any3d.modeling.pointnet import PointNetConfig, PointNetForPointCloudClassification
from hf_any3d.processing.point_clouds import PointCloudProcessor

_LAYERS, _HIDDEN = 5, 2  # of the encoder and of the head, whatever the settings of the program are
# Layers count from 1 there, and from 0 here.
_NAMES = {
    "feature_model.conv1.": "pointnet.layers.0.linear.",
    "feature_model.conv2.": "pointnet.layers.1.linear.",
    "feature_model.conv3.": "pointnet.layers.2.linear.",
    "feature_model.conv4.": "pointnet.layers.3.linear.",
    "feature_model.conv5.": "pointnet.layers.4.linear.",
    "feature_model.bn1.": "pointnet.layers.0.norm.",
    "feature_model.bn2.": "pointnet.layers.1.norm.",
    "feature_model.bn3.": "pointnet.layers.2.norm.",
    "feature_model.bn4.": "pointnet.layers.3.norm.",
    "feature_model.bn5.": "pointnet.layers.4.norm.",
    "linear1.": "classifier.hidden.0.",
    "linear2.": "classifier.hidden.1.",
    "bn1.": "classifier.norms.0.",
    "bn2.": "classifier.norms.1.",
    # The last linear layer has no norm.
    "linear3.": "classifier.out.",
}
_COMPUTES = (
    "The released program: no networks that turn clouds or features into a common pose, so that the up axis matters, "
    "and layers with a bias before their norms."
)
_LICENSE = (
    "MIT, as that of the repository which they are part of. ModelNet40, the data of the training, is for academic "
    "research."
)


def convert_pointnet(checkpoint: str | os.PathLike, output: str | os.PathLike) -> dict[str, Any]:
    """Convert a classifier of learning3d, `best_model.t7`; sizes are found from its tensors.

    Args:
        checkpoint: The authors' file.
        output: Directory to create.

    Returns:
        Facts by name: `output`, `model`, `parameters`, `bytes`.
    """
    original = read_checkpoint(checkpoint)
    names = {re.escape(theirs): ours for theirs, ours in _NAMES.items()}
    with errors_about(checkpoint):
        renamed = rename_tensors(original, names)
        # Layers on points are convolutions of length 1 there.
        state = {name: as_linear(tensor) for name, tensor in renamed.items()}
        config = PointNetConfig(
            in_channels=state["pointnet.layers.0.linear.weight"].shape[1],
            hidden_sizes=[len(state[f"pointnet.layers.{n}.norm.bias"]) for n in range(_LAYERS)],
            head_widths=[len(state[f"classifier.norms.{n}.bias"]) for n in range(_HIDDEN)],
            # Of the program's training; no tensor shows it.
            head_dropout=0.7,
            bias=True,
            num_labels=len(state["classifier.out.bias"]),
        )
        name_labels(config, modelnet40.CLASS_NAMES, [Path(checkpoint)])
        config.expected_pose = "upright"
    return save_converted(
        output,
        PointNetForPointCloudClassification,
        config,
        state,
        # As in the program's training on ModelNet40
        PointCloudProcessor(num_points=1024, up_axis="y"),
        {"Classifier": Path(checkpoint)},
        "single objects, y up, as in the HDF5 files of ModelNet40 that the released weights were trained on.",
        {"What it computes": _COMPUTES, "License": _LICENSE},
    )
