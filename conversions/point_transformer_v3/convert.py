"""Convert a released Sonata, Concerto or Utonia into a directory with model, processor and card."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hf_any3d.conversions.checkpoints import errors_about, read_checkpoint, read_json, read_settings
from hf_any3d.conversions.origin import is_stated, name_labels, record_terms
from hf_any3d.conversions.point_transformer_v3.names import (
    convert_ptv3_state_dict,
    convert_supervised_state_dict,
    ptv3_fields,
)
from hf_any3d.conversions.point_transformer_v3.supervised import TRAINED_WITH, arguments_of, benchmark_of, fields_of
from hf_any3d.conversions.renaming import rename_tensors
from hf_any3d.conversions.saving import save_converted
from hf_any3d.data.options import one_of
from hf_any3d.modeling.point_transformer_v3 import (
    PointTransformerV3Config,
    PointTransformerV3ForPointCloudSegmentation,
    PointTransformerV3Model,
)
from hf_any3d.modeling.point_transformer_v3.about import SUPERVISED, SYSTEM
from hf_any3d.processing.voxels import VOXEL_PRESETS, PointTransformerV3Processor

_LICENSE = (
    "The authors of Sonata, Concerto and Utonia publish their program under Apache-2.0, and these weights under CC "
    "BY-NC 4.0, which forbids commercial use: they were trained on data that forbids it."
)
_COMPUTES = (
    "The released program, except where it depends on chance or on the other clouds of a batch: curves are not "
    "shuffled at inference (`shuffle_curves`), the depth of Hilbert curves is that of each cloud (`depth_of_batch`), "
    "and the processor keeps the point of a cell that is nearest to its center."
)
_SUPERVISED_LICENSE = (
    "The authors publish their program under MIT; the license of these weights is on the card of their repository, "
    "which was not read here. The data sets of the training have terms of their own, most of which forbid commercial "
    "use."
)
_HEAD = {r"seg_head\.": "segmenter.out."}


def convert_ptv3(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    *,
    preset: str | None = None,
    head: str | os.PathLike | None = None,
    trained_with: str | None = None,
    dataset: str | None = None,
    arguments: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Convert the `.pth` of a released encoder, whose size is in the file, or of a supervised segmentation model.

    Args:
        checkpoint: The authors' file, with the settings of the model and its tensors.
        output: Directory to create.
        preset: Settings of the processor, one of `VOXEL_PRESETS`; by default those for rooms.
        head: The authors' file of a linear head on it, for a segmentation model.
        trained_with: Of a supervised model: the program that trained it, one of `TRAINED_WITH`, which decides how it
            computes and which no file shows.
        dataset: Of a supervised model: the benchmark, one of `BENCHMARKS`; by default found by the numbers of classes
            and channels.
        arguments: Of a supervised model that is none of the published ones: a JSON file with the arguments of the
            original's constructor.

    Returns:
        Facts by name: `output`, `model`, `parameters`, `bytes`.
    """
    original = read_checkpoint(checkpoint, ("state_dict",))
    supervised = {"trained_with": trained_with, "dataset": dataset, "arguments": arguments}
    # The supervised layout alone has a convolution as stem.
    is_supervised = any("embedding.stem.conv." in name for name in original)
    others = {"preset": preset, "head": head} if is_supervised else supervised
    unused = [name for name, value in others.items() if value is not None]
    if unused:
        layout = "is" if is_supervised else "is not"
        raise ValueError(f"{checkpoint}: {layout} of the supervised layout; expected no {unused[0]}")
    if is_supervised:
        return _convert_supervised(checkpoint, output, original, **supervised)
    # The file states its own sizes; several of them were never published elsewhere.
    settings = read_settings(checkpoint, "config")
    if any(name.endswith("rope.inv_freq") for name in original):
        # The constructor that has rotary positions has this base by default; the others have no such argument.
        settings.setdefault("rope_base", 10.0)
    with errors_about(checkpoint):
        fields = ptv3_fields(settings)
        state = convert_ptv3_state_dict(original, fields)
        if not preset:
            # Of the three, only Utonia rotates channels by positions.
            preset = "sonata" if fields.get("rope_theta") is None else "utonia_indoor"
        processor = PointTransformerV3Processor(**VOXEL_PRESETS[one_of("preset", preset, VOXEL_PRESETS)])
        config = PointTransformerV3Config(**fields, grid_size=processor.grid_size)
    model_class: Any = PointTransformerV3Model
    files = {"Encoder": Path(checkpoint)}
    if head is not None:
        model_class = PointTransformerV3ForPointCloudSegmentation
        files["Head"] = Path(head)
        state = {f"{model_class.base_model_prefix}.{name}": tensor for name, tensor in state.items()}
        # A linear probe: it reads the features of all stages, carried up to the points.
        with errors_about(head):
            weights = rename_tensors(read_checkpoint(head, ("state_dict",)), _HEAD)
            config.num_labels = len(weights["segmenter.out.weight"])
        state |= weights
    # Channels are xyz, color and normal, in this order; a model of six has no normals.
    if config.in_channels == 6:
        processor.features = ["xyz", "rgb"]
    if head is not None:
        # A head has one row for each class, and no names of them.
        name_labels(config, (), files.values())
    record_terms(config, SYSTEM, files.values())
    normals = ", then normals" if config.in_channels > 6 else ""
    takes = f"{config.in_channels} channels per point: coordinates, colors from 0 to 1{normals}."
    sections = {"What it computes": _COMPUTES, "License": _LICENSE}
    return save_converted(output, model_class, config, state, processor, files, takes, sections)


def _convert_supervised(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    original: Mapping[str, torch.Tensor],
    trained_with: str | None,
    dataset: str | None,
    arguments: str | os.PathLike | None,
) -> dict[str, Any]:
    with errors_about(checkpoint):
        # First what a file can tell, so that an unknown one is named before anything is asked.
        if arguments is None:
            variant, settings = arguments_of(original)
        else:
            variant, settings = "own", read_json(Path(arguments))
        if trained_with not in TRAINED_WITH:
            told = "; ".join(f"{name}: {rules.title}" for name, rules in TRAINED_WITH.items())
            raise ValueError(
                f"trained_with={trained_with!r}: programs with different rules trained this layout, which a file does "
                "not show, and with the wrong ones its answers are noise; give --trained-with, one of "
                f"{told}. The weights of Pointcept/PointTransformerV3 are of pointcept-1.5.1"
            )
        rules = TRAINED_WITH[trained_with]
        benchmark = benchmark_of(original, dataset)
        fields = fields_of(original, settings, rules, benchmark)
        state = convert_supervised_state_dict(original, fields)
        processor = PointTransformerV3Processor(**VOXEL_PRESETS[benchmark.preset], color_range=rules.color_range)
        config = PointTransformerV3Config(**fields, grid_size=processor.grid_size)
        files = {"Model": Path(checkpoint)}
        if name_labels(config, benchmark.classes, files.values(), is_stated=is_stated("dataset", dataset)):
            config.label_colors = list(benchmark.hex_colors)
        record_terms(config, SUPERVISED, files.values())
    colors = "c / 127.5 - 1" if rules.color_range == "signed" else "c / 255"
    sections = {
        "Origin": f"Variant {variant!r} of the supervised layout, for {benchmark.title}, trained with {rules.title}: "
        f'block_rule="{rules.block_rule}", depth_rule="{rules.depth_rule}", colors {colors} of bytes. With the rules '
        "of another program the same weights answer noise, without any error.",
        "What it computes": _COMPUTES,
        "License": _SUPERVISED_LICENSE,
    }
    words = {"rgb": "colors", "normals": "normals", "intensity": "the intensity of a laser"}
    # Without the first, which is always xyz
    features = ", ".join(words[name] for name in processor.features[1:])
    takes = f"{config.in_channels} channels per point: coordinates, {features}, as its processor scales them."
    model_class = PointTransformerV3ForPointCloudSegmentation
    return save_converted(output, model_class, config, state, processor, files, takes, sections)
