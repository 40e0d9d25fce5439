"""Settings of models that label points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hf_any3d.tasks.classification.settings import AT_ONCE
from hf_any3d.tasks.settings import ESTIMATE_NORMALS, UP_AXIS, setting

_SHOWN = {"demo": "the page shows objects, whose points all have a part"}


@dataclass(frozen=True)
class SegmentationSettings:
    """Settings of `point-cloud-segmentation`."""

    category: str | None = setting(None, "Object category, for part segmentation models.")
    up_axis: Literal["x", "y", "z"] | None = setting(None, UP_AXIS)
    max_points: int | None = setting(
        None,
        "Downsample larger point clouds to this many points.",
        low=1,
        refused={"demo": "larger clouds are thinned anyway"},
    )
    votes: bool = setting(
        False,
        "Average predictions over rotated or mirrored copies (test-time augmentation), as in the model's evaluation.",
        refused={"demo": AT_ONCE},
    )
    unit: Literal["meters", "feet", "us-feet"] | None = setting(
        None, "Unit of files that do not state one, for models trained on tiles.", refused=_SHOWN
    )
    none_of_these: bool = setting(
        False,
        "Label points that are unlike all training classes as 'none of these', for models trained on tiles.",
        refused=_SHOWN,
    )
    noise: bool = setting(
        False,
        "Label points far below the ground, and isolated points far above it, as noise, for models trained on tiles.",
        refused=_SHOWN,
    )
    adapt: bool = setting(
        False,
        "Adapt to each scan by self-training on the points that the model is sure of, for models trained "
        "on tiles; slower.",
        refused={"demo": AT_ONCE},
    )
    estimate_normals: bool = setting(False, ESTIMATE_NORMALS)
