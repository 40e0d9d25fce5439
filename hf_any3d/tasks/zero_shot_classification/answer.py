"""Answers of classifiers among labels of one's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from hf_any3d.tasks.classification.answer import ClassificationAnswers
from hf_any3d.tasks.zero_shot_classification.pipeline import as_labels


class ZeroShotClassificationAnswers(ClassificationAnswers):
    """Labels of the call, the likeliest first. Features of the labels may be a file (.npy) or rows of numbers."""

    for_doubts = {"other_axis": True}
    for_pages = {}

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        features = self.arguments.get("text_embeds")
        if isinstance(features, str):
            # Arrays alone: a pickled file could run code.
            self.arguments["text_embeds"] = np.load(features, allow_pickle=False)
        elif features is not None:
            self.arguments["text_embeds"] = np.asarray(features, dtype=np.float32)  # (labels, width)

    def _names(self) -> Iterable[str]:
        return as_labels(self.settings["labels"])
