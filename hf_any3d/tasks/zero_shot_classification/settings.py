"""Settings of classifiers among labels of one's own."""

from __future__ import annotations

from dataclasses import dataclass

from hf_any3d.tasks.settings import ESTIMATE_NORMALS, UP_OF_OBJECT, UpDirection, setting


@dataclass(frozen=True)
class ZeroShotClassificationSettings:
    """Settings of `zero-shot-point-cloud-classification`."""

    labels: tuple[str, ...] | None = setting(
        None,
        "Candidate labels, for zero-shot models only.",
        argument="candidate_labels",
    )
    template: str | None = setting(
        None,
        "Prompt template with {} for the label, for zero-shot models.",
        argument="hypothesis_template",
        refused={"demo": "the page asks with the model's own text"},
    )
    text_embeds: tuple[tuple[float, ...], ...] | None = setting(
        None,
        "Precomputed text features of the labels, (labels, width), instead of running the model's text encoder.",
        # There they are a file.
        names={"command": "text_features", "runs": "text_features"},
        refused={"demo": "words are typed there"},
    )
    top_k: int | None = setting(
        5,
        "Number of labels to return.",
        low=1,
        none="all",
        is_named=True,
        defaults={"command": 3, "runs": 3, "many_files": 1},
        refused={"demo": "the page shows all words"},
    )
    up_axis: UpDirection | None = setting(None, UP_OF_OBJECT)
    estimate_normals: bool = setting(False, ESTIMATE_NORMALS)
