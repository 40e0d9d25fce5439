"""Settings of models that label points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hf_any3d.tasks.classification.settings import AT_ONCE
from hf_any3d.tasks.settings import ESTIMATE_NORMALS, setting

_SHOWN = {"demo": "the page shows objects, whose points all have a part"}


@dataclass(frozen=True)
class SegmentationSettings:
    """Settings of `point-cloud-segmentation`."""

    category: str | None = setting(None, "Category of the object, for models of parts.")
    up_axis: Literal["x", "y", "z"] | None = setting(None, "Axis that points up in the clouds.")
    max_points: int | None = setting(
        None,
        "Thin larger clouds out to this many points.",
        low=1,
        refused={"demo": "larger clouds are thinned anyway"},
    )
    votes: bool = setting(
        False,
        "Answer by the mean of turned or mirrored copies, as a model was judged.",
        refused={"demo": AT_ONCE},
    )
    unit: Literal["meters", "feet", "us-feet"] | None = setting(
        None, "Unit of scans whose files say none, for models of tiles.", refused=_SHOWN
    )
    none_of_these: bool = setting(
        False, "Label points that are unlike all learned ones so, for models of tiles.", refused=_SHOWN
    )
    noise: bool = setting(
        False,
        "Label points far below the ground, and lone ones far above it, so, for models of tiles.",
        refused=_SHOWN,
    )
    adapt: bool = setting(
        False,
        "Learn once more from the points that the model is sure of, for models of tiles; slower.",
        refused={"demo": AT_ONCE},
    )
    estimate_normals: bool = setting(False, ESTIMATE_NORMALS)
