"""Convert a released Sonata, Concerto or Utonia into a directory with model, processor and card."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers.initialization import no_init_weights

from hf_any3d.conversions.checkpoints import account, errors_about, read_checkpoint, read_settings
from hf_any3d.conversions.model_cards import write_converted_card
from hf_any3d.conversions.point_transformer_v3.names import convert_ptv3_state_dict, ptv3_fields
from hf_any3d.conversions.renaming import check_owners, size_of
from hf_any3d.conversions.saving import new_directory, save_weights, stored_bytes
from hf_any3d.hub.published_table import PTV3, RECORD, terms_of
from hf_any3d.modeling.point_transformer_v3 import (
    PointTransformerV3Config,
    PointTransformerV3ForPointCloudSegmentation,
    PointTransformerV3Model,
)
from hf_any3d.voxel_processing import VOXEL_PRESETS, PointTransformerV3Processor

LICENSE = PTV3.weights_license.lower()
_LICENSE = (
    "The authors of Sonata, Concerto and Utonia publish their program under Apache-2.0, and these weights under CC "
    "BY-NC 4.0, which forbids commercial use: they were trained on data that forbids it."
)
_COMPUTES = (
    "The released program, except where it depends on chance or on the other clouds of a batch: curves are not "
    "shuffled at inference (`shuffle_curves`), the depth of Hilbert curves is that of each cloud (`depth_of_batch`), "
    "and the processor keeps the point of a cell that is nearest to its center."
)
_HEAD = {"seg_head.weight": "segmenter.out.weight", "seg_head.bias": "segmenter.out.bias"}


def convert_ptv3(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    *,
    preset: str | None = None,
    head: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Convert the `.pth` of a released encoder; its size is in the file.

    Args:
        checkpoint: The authors' file, with the settings of the model and its tensors.
        output: Directory to create.
        preset: Settings of the processor, one of `VOXEL_PRESETS`; by default those for rooms.
        head: The authors' file of a linear head on it, for a segmentation model.

    Returns:
        Facts by name: `output`, `model`, `parameters`, `bytes`, `license`.

    Raises:
        ValueError: A checkpoint cannot be read or does not fit, or the preset is unknown.
        FileNotFoundError: No such checkpoint.
        FileExistsError: `output` exists and is not empty.
    """
    if preset is not None and preset not in VOXEL_PRESETS:
        raise ValueError(f"preset={preset!r}; expected one of {', '.join(VOXEL_PRESETS)}")
    original = read_checkpoint(checkpoint, ("state_dict",))
    if any("embedding.stem.conv." in name for name in original):
        raise ValueError(
            f"{checkpoint}: the original, supervised layout of Point Transformer V3, with a convolution as stem and "
            "batch norms, which is not supported; expected a file of Sonata, Concerto or Utonia"
        )
    arguments = read_settings(checkpoint, "config")
    with errors_about(checkpoint):
        fields = ptv3_fields(arguments)
        state = convert_ptv3_state_dict(original, fields)
        # Of the three, only Utonia rotates channels by positions.
        preset = preset or ("utonia_indoor" if fields.get("rope_theta") is not None else "sonata")
        processor = PointTransformerV3Processor(**VOXEL_PRESETS[preset])
        config = PointTransformerV3Config(**fields, grid_size=processor.grid_size)
    model_class: Any = PointTransformerV3Model
    files = {"Encoder": Path(checkpoint)}
    if head is not None:
        model_class = PointTransformerV3ForPointCloudSegmentation
        files["Head"] = Path(head)
        state = {f"{model_class.base_model_prefix}.{name}": tensor for name, tensor in state.items()}
        state |= (found := _read_head(head))
        # A head has one row for each class, and no names of them.
        config.num_labels = size_of(found, _HEAD["seg_head.weight"])
    if config.in_channels == 6:
        processor.features = ["xyz", "rgb"]
    setattr(config, RECORD, terms_of(PTV3))
    with torch.device("meta"), no_init_weights():
        model = model_class(config)
    account(" and ".join(map(str, files.values())), state, model.state_dict())
    with new_directory(output) as directory, errors_about(checkpoint):
        save_weights(directory, model_class.__name__, config, state, torch.float32)
        processor.save_pretrained(directory)
        remarks = {"What it computes": _COMPUTES, "License": _LICENSE}
        normals = ", then normals" if config.in_channels > 6 else ""
        takes = f"{config.in_channels} channels per point: coordinates, colors from 0 to 1{normals}."
        write_converted_card(directory, Path(output).name, model, takes, files, remarks)
    return {
        "output": os.fspath(output),
        "model": model_class.__name__,
        "parameters": model.num_parameters(),
        "bytes": stored_bytes(output),
        "license": LICENSE,
    }


def _read_head(head: str | os.PathLike) -> dict[str, torch.Tensor]:
    original = read_checkpoint(head, ("state_dict",))
    with errors_about(head):
        check_owners([name for name in original if name not in _HEAD], [])
        return {_HEAD[name]: tensor for name, tensor in original.items()}
