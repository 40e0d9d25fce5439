"""Settings of models that find parts by their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hf_any3d.tasks.classification.settings import AT_ONCE
from hf_any3d.tasks.settings import ESTIMATE_NORMALS, UP_AXIS, setting


@dataclass(frozen=True)
class PartsByNameSettings:
    """Settings of `zero-shot-point-cloud-segmentation`."""

    labels: tuple[str, ...] | None = setting(
        None, "Part names, for models that find parts by name.", argument="candidate_labels"
    )
    category: str | None = setting(
        None,
        "Object category, for part segmentation models.",
        refused={"demo": "it is part of the words"},
    )
    templates: str | None = setting(
        None,
        "Prompt templates for the names: part_only, part_plus_cat or ensemble.",
        refused={"demo": "the page asks with the model's own texts"},
    )
    text_features: Any = setting(
        None,
        "A precomputed vector for each name, instead of running the text encoder.",
        refused={"demo": "words are typed there", "service": "it opens no files of its machine"},
    )
    votes: bool = setting(
        False,
        "Average predictions over rotated or mirrored copies (test-time augmentation), as in the model's evaluation.",
        refused={"demo": AT_ONCE},
    )
    up_axis: Literal["x", "y", "z"] | None = setting(None, UP_AXIS)
    max_points: int | None = setting(
        None,
        "Downsample larger point clouds to this many points.",
        low=1,
        refused={"demo": "larger clouds are thinned anyway"},
    )
    estimate_normals: bool = setting(False, ESTIMATE_NORMALS)
