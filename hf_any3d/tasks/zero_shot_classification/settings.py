"""Settings of classifiers among labels of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hf_any3d.tasks.settings import setting

_ONE_BY_ONE = "many files are asked with labels of their model; `hf-any3d zero-shot` takes files with words"
NOT_MANY = {"batch": _ONE_BY_ONE, "many_files": _ONE_BY_ONE}


@dataclass(frozen=True)
class ZeroShotClassificationSettings:
    """Settings of `zero-shot-point-cloud-classification`."""

    labels: tuple[str, ...] | None = setting(
        None,
        "Labels to choose from, for zero-shot models alone.",
        argument="candidate_labels",
        refused=NOT_MANY,
    )
    template: str | None = setting(
        None,
        "Text with {} for a label, for zero-shot models.",
        argument="hypothesis_template",
        refused=NOT_MANY | {"demo": "the page asks with the model's own text"},
    )
    text_embeds: tuple[tuple[float, ...], ...] | None = setting(
        None,
        "Features of the labels, (labels, width), in place of the model's text encoder.",
        # There they are a file.
        names={"command": "text_features"},
        refused=NOT_MANY | {"demo": "words are typed there"},
    )
    top_k: int | None = setting(
        5,
        "Number of labels; null for all.",
        low=1,
        takes_none=True,
        defaults={"command": 3},
        refused=NOT_MANY | {"demo": "the page shows all words"},
    )
    up_axis: Literal["x", "y", "z"] | None = setting(None, "Axis that points up in the clouds.", refused=NOT_MANY)
