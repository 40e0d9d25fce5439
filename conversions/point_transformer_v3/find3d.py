"""Convert a released Find3D into a directory that finds parts by name."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_any3d.conversions.checkpoints import errors_about, read_checkpoint, read_json
from hf_any3d.conversions.origin import record_terms
from hf_any3d.conversions.point_transformer_v3.names import EXTRACTOR, convert_supervised_state_dict, supervised_fields
from hf_any3d.conversions.point_transformer_v3.supervised import VARIANTS, sizes_of
from hf_any3d.conversions.saving import save_converted
from hf_any3d.modeling.point_encoders.aligned_encoders.configuration_aligned_encoders import TEXT_TOWER
from hf_any3d.modeling.point_transformer_v3 import (
    PointTransformerV3Config,
    PointTransformerV3ForZeroShotPointCloudSegmentation,
)
from hf_any3d.modeling.point_transformer_v3.about import FIND3D, FIND3D_TOWER
from hf_any3d.processing.voxels import VOXEL_PRESETS, PointTransformerV3Processor

# Trained by the detached repository's program of March 2024.
_RULES = {"block_rule": "full", "depth_rule": "max"}
_COMPUTES = (
    "The released program, except where it depends on chance or on the other clouds of a batch: curves are not "
    "shuffled at inference (`shuffle_curves`), the depth of Hilbert curves is that of each cloud (`depth_of_batch`), "
    "the processor keeps the point of a cell that is nearest to its center, and of more than 5,000 points it draws "
    "5,000 different ones, where the program draws with replacement, also from smaller clouds. Cells start at the "
    'lowest point, as in the authors\' benchmarks; `box_center="half_ground"` of the processor is their demo. Clouds '
    "have y up and are turned for the model, normals are not, as in the training. A point whose products with all "
    'texts are negative gets the label "none".'
)
_LICENSE = (
    "The authors publish their program under MIT; the license of these weights is on the card of their repository, "
    "which was not read here. The text tower has its own."
)


def convert_find3d(
    checkpoint: str | os.PathLike, output: str | os.PathLike, *, arguments: str | os.PathLike | None = None
) -> dict[str, Any]:
    """Convert Find3D's `model.safetensors`, or a `ckpt_….pth` of its training.

    Args:
        checkpoint: The authors' file.
        output: Directory to create.
        arguments: Of a model of your own sizes: a JSON file with the arguments of the extractor's constructor.

    Returns:
        Facts by name: `output`, `model`, `parameters`, `bytes`.
    """
    path = Path(checkpoint)
    original = read_checkpoint(path, ("model_state_dict",))
    with errors_about(checkpoint):
        sizes = sizes_of(original, EXTRACTOR)
        settings = VARIANTS["base"]
        if arguments is not None:
            settings = read_json(Path(arguments))
        else:
            _check_published(sizes)
        widths = [original[f"fc{number}.weight"].shape[0] for number in (1, 2, 3)]
        # Given arguments replace those of the published extractor one by one.
        fields = supervised_fields({"in_channels": 6, **VARIANTS["base"], **settings}, **_RULES)
        config = PointTransformerV3Config(
            # Coordinates come with every point, and are not read.
            **fields | {"in_channels": fields["in_channels"] + 3, "reads_coordinates": False, "lovasz_weight": 0.0},
            text_head_widths=widths,
            text_embedding_size=original["fc4.weight"].shape[0],
            none_label=True,
            aligned_with=FIND3D_TOWER,
            parts={TEXT_TOWER: {"name_or_path": FIND3D_TOWER}},
        )
        state = convert_supervised_state_dict(original, fields)
        record_terms(config, FIND3D, [path])
    takes = (
        f"{config.in_channels} channels per point: coordinates, colors and normals, as its processor scales them. "
        f"Texts are encoded by `{FIND3D_TOWER}`, which is loaded when first needed."
    )
    return save_converted(
        output,
        PointTransformerV3ForZeroShotPointCloudSegmentation,
        config,
        state,
        PointTransformerV3Processor(**VOXEL_PRESETS["find3d"]),
        {"Model": path},
        takes,
        {"What it computes": _COMPUTES, "License": _LICENSE},
    )


def _check_published(sizes: Mapping[str, Any]) -> None:
    """Check that a file has the sizes of the published model.

    Of other sizes, numbers that no tensor shows, such as heads, may be others too.
    """
    for name, size in sizes.items():
        published = VARIANTS["base"].get(name, False)
        if size != published:
            raise ValueError(
                f"{name}={size}; the published model has {published}, and a file has no heads, patches and curves; "
                "give --arguments, a JSON file with the arguments of its extractor"
            )
