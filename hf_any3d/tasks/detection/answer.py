"""Answers of detectors: boxes with labels and scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from hf_any3d.data.annotations.boxes import answer_features
from hf_any3d.data.files import PointCloudData
from hf_any3d.tasks.answers import Answers, Row, View
from hf_any3d.utils.messages import counted, percent, printable
from hf_any3d.visualization.viewer import LOWEST_BOX, BoxView, CloudView, label_colors

_GRAY = (0.7, 0.7, 0.7)  # of boxes whose label the model did not list
_SURFACE_POINTS = 10_000  # shown of a mesh


class DetectionAnswers(Answers):
    """Boxes, the likeliest first; those of models that write layouts have no scores."""

    column = "boxes"
    is_called_whole = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.threshold: float = self.settings.get("threshold", 0.5)
        # The slider of a page shows boxes with lower scores, too.
        if self.on_page and self.pipe.has_scores:
            self.arguments["threshold"] = min(self.threshold, LOWEST_BOX)
        # Colors by label, the same for all clouds.
        names = self.pipe.labels
        self.palette: dict[str, np.ndarray] = dict(zip(names, label_colors(len(names)), strict=True))

    def value(self, result: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the boxes that are asked for."""
        return [box for box in result if box["score"] is None or box["score"] >= self.threshold]

    def line(self, row: Row) -> str:
        """Return the number of boxes, and each with its place."""
        texts = []
        for found in row[self.column]:
            place = ", ".join(f"{value:.2f}" for value in found["box"]["center"])
            score = "" if found["score"] is None else f" {percent(found['score'])} %"
            texts.append(f"{printable(found['label'])}{score} at ({place})")
        # Without a box nothing stands behind the number.
        return f"{counted(len(texts), 'box')}: {'   '.join(texts)}".rstrip(": ")

    @staticmethod
    def cells(row: Row) -> Iterable[Row]:
        """Return a row for each box."""
        for found in row.get("boxes") or ():
            box = found["box"]
            yield {
                "label": found["label"],
                "score": found["score"],
                **dict(zip(("x", "y", "z"), box["center"], strict=True)),
                **dict(zip(("length", "width", "height"), box["size"], strict=True)),
                "heading": box["heading"],
            }

    @staticmethod
    def feature() -> Any:
        """Return the type of boxes."""
        return answer_features()

    def view(self, cloud: PointCloudData, result: list[dict[str, Any]]) -> View:
        """Return the cloud with its boxes, in the coordinates of its file."""
        if cloud.is_mesh:
            cloud = cloud.sample_surface(_SURFACE_POINTS)
        points = cloud.points if cloud.offset is None else cloud.points + cloud.offset
        # A model that writes labels may write others than those of its training.
        for found in result:
            self.palette.setdefault(found["label"], np.asarray(_GRAY, dtype=np.float32))
        boxes = [BoxView(np.asarray(one["box"]["corners"]), one["label"], one["score"]) for one in result]
        listed = self.value(result)
        # Models that write boxes give no scores.
        counts = Counter(one["label"] for one in listed if one["score"] is None)
        return View(
            [CloudView(points, colors=cloud.colors, boxes=boxes)],
            {"box_names": list(self.palette), "threshold": self.threshold},
            # Only boxes that the slider shows at first are listed.
            [(one["label"], one["score"]) for one in listed if one["score"] is not None],
            ", ".join(f"{label} {count}" for label, count in counts.items()),
            self.palette,
        )
