"""Settings of classifiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hf_any3d.tasks.settings import ESTIMATE_NORMALS, setting

AT_ONCE = "the page answers at once, and this takes several times as long"


@dataclass(frozen=True)
class ClassificationSettings:
    """Settings of `point-cloud-classification`."""

    top_k: int | None = setting(
        5,
        "Number of labels.",
        low=1,
        none="all",
        is_named=True,
        defaults={"command": 3, "runs": 3, "many_files": 1},
        refused={"demo": "the page shows the eight likeliest"},
    )
    votes: int | None = setting(
        None, "Answer by the mean of this many slightly stretched copies.", low=1, refused={"demo": AT_ONCE}
    )
    unknown: bool | None = setting(
        None,
        "Say how unlike the training's clouds each is, if the model knows, and what else speaks against the answer.",
        defaults={"command": True},
        refused={
            "runs": "a table has the column wherever the model has the score",
            "many_files": "rows have the score wherever the model has it",
            "demo": "the page shows labels alone",
        },
    )
    up_axis: Literal["x", "y", "z"] | None = setting(None, "Axis that points up in the clouds.", is_named=True)
    estimate_normals: bool = setting(False, ESTIMATE_NORMALS)
