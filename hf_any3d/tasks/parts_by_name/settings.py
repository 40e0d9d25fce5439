"""Settings of models that find parts by their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hf_any3d.tasks.classification.settings import AT_ONCE
from hf_any3d.tasks.settings import setting

_ROWS = {"many_files": "rows have one answer a cloud; `hf-any3d batch segment` writes labeled copies"}


@dataclass(frozen=True)
class PartsByNameSettings:
    """Settings of `zero-shot-point-cloud-segmentation`."""

    labels: tuple[str, ...] | None = setting(
        None, "Names of parts, for models that find parts by name.", argument="candidate_labels", refused=_ROWS
    )
    category: str | None = setting(
        None,
        "Category of the object, for models of parts.",
        refused=_ROWS | {"demo": "it is part of the words"},
    )
    templates: str | None = setting(
        None,
        "Texts around names: part_only, part_plus_cat or ensemble.",
        refused=_ROWS | {"demo": "the page asks with the model's own texts"},
    )
    text_features: Any = setting(
        None,
        "A vector for each name, instead of the text tower.",
        refused=_ROWS | {"demo": "words are typed there", "service": "it opens no files of its machine"},
    )
    votes: bool = setting(
        False,
        "Answer by the mean of turned or mirrored copies, as a model was judged.",
        refused=_ROWS | {"demo": AT_ONCE},
    )
    up_axis: Literal["x", "y", "z"] | None = setting(None, "Axis that points up in the clouds.", refused=_ROWS)
    max_points: int | None = setting(
        None,
        "Thin larger clouds out to this many points.",
        low=1,
        refused=_ROWS | {"demo": "larger clouds are thinned anyway"},
    )
