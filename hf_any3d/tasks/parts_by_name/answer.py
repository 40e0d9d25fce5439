"""Answers of the search for parts by their names."""

from __future__ import annotations

from collections.abc import Sequence

from hf_any3d.tasks.segmentation.answer import SegmentationAnswers


class PartsByNameAnswers(SegmentationAnswers):
    """Labels of points, of the names that are asked for."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the labels by their numbers."""
        return self.pipe.label_names(self.settings.get("labels") or ())
