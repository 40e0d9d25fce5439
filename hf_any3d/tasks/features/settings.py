"""Settings of features of clouds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hf_any3d.tasks.settings import ESTIMATE_NORMALS, UP_OF_OBJECT, UpDirection, setting


@dataclass(frozen=True)
class FeatureSettings:
    """Settings of `point-cloud-feature-extraction`."""

    feature: Literal["pooled", "class_token", "tokens"] = setting(
        "pooled",
        "Feature to return; for tokens, rows contain their mean, and the service returns each token with its center.",
        # The pipeline returns all of them.
        argument=None,
        is_named=True,
        refused={"demo": "shapes are similar by the pooled feature, the one that models compare"},
    )
    up_axis: UpDirection | None = setting(None, UP_OF_OBJECT, is_named=True)
    estimate_normals: bool = setting(False, ESTIMATE_NORMALS)
