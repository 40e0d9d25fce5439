"""Convert a released Uni3D encoder into a directory with model, processor and card."""

import os
from typing import Any

from hf_any3d.conversions.aligned_encoders import LOGIT_SCALE, save_aligned_encoder
from hf_any3d.conversions.checkpoints import errors_about, read_checkpoint
from hf_any3d.conversions.uni3d.names import convert_uni3d_state_dict, uni3d_sizes
from hf_any3d.modeling.uni3d import Uni3DConfig, Uni3DForZeroShotPointCloudClassification

_RELEASED = {"sampling_min_squared_norm": 1e-3}
_TOWER = "OpenCLIP EVA02-E-14-plus (laion2b_s9b_b144k)"


def convert_uni3d(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    *,
    num_groups: int | None = None,
    group_size: int | None = None,
    num_attention_heads: int | None = None,
) -> dict[str, Any]:
    """Convert the `model.pt` of any size of Uni3D; the size is found from the shapes of its tensors.

    Numbers in half precision, as published, become float32, in which the released program computes.

    Args:
        checkpoint: The authors' file.
        output: Directory to create.
        num_groups: Patches per cloud; 512 by default, as published.
        group_size: Points per patch; 64 by default, as published.
        num_attention_heads: By default one for 64 channels, for the giant size one for 88.

    Returns:
        Facts by name: `output`, `model`, `parameters`, `bytes`.
    """
    original = read_checkpoint(checkpoint, ("module",))
    patches = {"num_groups": num_groups, "group_size": group_size}
    with errors_about(checkpoint):
        # The scale belongs to training, but without it scores would not be those of the authors.
        state = convert_uni3d_state_dict(original)
        logit_scale = state.pop(LOGIT_SCALE)
        config = Uni3DConfig(
            **uni3d_sizes(state, num_attention_heads),
            **{name: value for name, value in patches.items() if value is not None},
            **_RELEASED,
            aligned_with=_TOWER,
        )
    return save_aligned_encoder(
        checkpoint,
        output,
        Uni3DForZeroShotPointCloudClassification,
        config,
        state,
        logit_scale=logit_scale,
        sections={
            "What it computes": "The released program: points within 0.0316 of the origin are never sampled as "
            "centers of patches (`sampling_min_squared_norm=1e-3`), except for the first point. Parts of the image "
            "transformer that clouds do not pass are left out.",
            "License": "The authors publish their program under the MIT license; the license of these weights is on "
            "the card of their repository.",
        },
    )
