"""Settings of classifiers."""

from __future__ import annotations

from dataclasses import dataclass

from hf_any3d.tasks.settings import ESTIMATE_NORMALS, UP_OF_OBJECT, UpDirection, setting

AT_ONCE = "the page answers at once, and this takes several times as long"


@dataclass(frozen=True)
class ClassificationSettings:
    """Settings of `point-cloud-classification`."""

    top_k: int | None = setting(
        5,
        "Number of labels to return.",
        low=1,
        none="all",
        is_named=True,
        defaults={"command": 3, "runs": 3, "many_files": 1},
        refused={"demo": "the page shows the eight likeliest"},
    )
    votes: int | None = setting(
        None,
        "Average predictions over this many slightly stretched copies (test-time augmentation).",
        low=1,
        refused={"demo": AT_ONCE},
    )
    unknown: bool | None = setting(
        None,
        "Answer 'none of these' for inputs unlike the training data, if the model supports it, and report "
        "reasons to doubt a label; if off, every input gets a label.",
        defaults={"command": True},
        refused={
            "runs": "a table has the column wherever the model has the score",
            "many_files": "rows have the score wherever the model has it",
            "demo": "the page shows labels alone",
        },
    )
    up_axis: UpDirection | None = setting(None, UP_OF_OBJECT, is_named=True)
    estimate_normals: bool = setting(False, ESTIMATE_NORMALS)
