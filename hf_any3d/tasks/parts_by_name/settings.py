"""Settings of models that find parts by their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hf_any3d.tasks.classification.settings import AT_ONCE
from hf_any3d.tasks.settings import ESTIMATE_NORMALS, setting


@dataclass(frozen=True)
class PartsByNameSettings:
    """Settings of `zero-shot-point-cloud-segmentation`."""

    labels: tuple[str, ...] | None = setting(
        None, "Names of parts, for models that find parts by name.", argument="candidate_labels"
    )
    category: str | None = setting(
        None,
        "Category of the object, for models of parts.",
        refused={"demo": "it is part of the words"},
    )
    templates: str | None = setting(
        None,
        "Texts around names: part_only, part_plus_cat or ensemble.",
        refused={"demo": "the page asks with the model's own texts"},
    )
    text_features: Any = setting(
        None,
        "A vector for each name, instead of the text tower.",
        refused={"demo": "words are typed there", "service": "it opens no files of its machine"},
    )
    votes: bool = setting(
        False,
        "Answer by the mean of turned or mirrored copies, as a model was judged.",
        refused={"demo": AT_ONCE},
    )
    up_axis: Literal["x", "y", "z"] | None = setting(None, "Axis that points up in the clouds.")
    max_points: int | None = setting(
        None,
        "Thin larger clouds out to this many points.",
        low=1,
        refused={"demo": "larger clouds are thinned anyway"},
    )
    estimate_normals: bool = setting(False, ESTIMATE_NORMALS)
