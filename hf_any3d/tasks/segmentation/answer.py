"""Answers of segmentation: the label of each point, and how much of the cloud each label has."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hf_any3d.data.files import PointCloudData
from hf_any3d.tasks.answers import Answers, Row, View
from hf_any3d.utils.messages import percent, printable
from hf_any3d.visualization.viewer import CloudView, colors_of


class SegmentationAnswers(Answers):
    """Labels of points; rows have the share of each label, the largest first."""

    column = "segments"
    is_called_whole = True

    @property
    def names(self) -> Sequence[str]:
        """Names of the labels by their numbers."""
        further = {name: True for name in ("none_of_these", "noise") if self.settings.get(name)}
        # Other pipelines refuse these arguments when they are called.
        if further and hasattr(self.pipe, "all_names"):
            return self.pipe.all_names(**further)
        return self.pipe.label_names()

    @property
    def palette(self) -> np.ndarray:
        """Colors of the labels (labels, 3) in [0, 1]."""
        return colors_of(self.config, len(self.names))

    def value(self, result: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the points of each label, and their share."""
        count = len(result["labels"])
        segments = []
        for part in result["segments"]:
            points = int(part["mask"].sum())
            segments.append(
                {"label": part["label"], "points": points, "share": points / count, "score": part["score"]}
            )
        return segments

    def row(self, result: dict[str, Any]) -> dict[str, Any]:
        """Return the number of points, and those of each label."""
        return {"points": len(result["labels"]), self.column: self.value(result)}

    def line(self, row: Row) -> str:
        """Return the number of points, and the share of each label."""
        parts = "   ".join(f"{printable(part['label'])} {percent(part['share'], 1)} %" for part in row[self.column])
        return f"{row['points']:,} points: {parts}"

    @staticmethod
    def cells(row: Row) -> Iterable[Row]:
        """Return a row for each label."""
        return row.get("segments") or ()

    @staticmethod
    def feature() -> Any:
        """Return the type of the shares of labels."""
        from datasets import List, Value

        kinds = {"label": "string", "points": "int64", "share": "float32", "score": "float32"}
        return List({name: Value(kind) for name, kind in kinds.items()})

    def plain(self, result: dict[str, Any], cloud: PointCloudData) -> dict[str, Any]:
        """Return the label of each point, as numbers or in base64, and the points of each label."""
        # The types that the description of `encoding` promises
        arrays = {"labels": result["labels"].astype("<i4")}
        if self.settings.get("scores"):
            arrays["scores"] = result["scores"].astype("<f4")
        if "noise" in result:
            arrays["noise"] = result["noise"]
        if cloud.is_mesh:  # labels are those of points on its surface, which the client does not have
            arrays["points"] = result["points"].astype("<f4")
        encoded: dict[str, Any] = {}
        for name, values in arrays.items():
            if self.settings.get("encoding") == "base64":
                encoded[name] = base64.b64encode(values.tobytes()).decode("ascii")
            else:
                encoded[name] = values.tolist()
        segments = [{name: part[name] for name in ("label", "points", "score")} for part in self.value(result)]
        # Names are those of the numbers in `labels`.
        return {"num_points": len(result["labels"]), "names": list(self.names), "segments": segments, **encoded}

    def view(self, cloud: PointCloudData, result: dict[str, Any]) -> View:
        """Return the points in the colors of their labels."""
        labels = result["labels"]
        names = self.names
        # Labels of a mesh are those of samples, which are others than the vertices.
        colors = cloud.colors if cloud.colors is not None and len(cloud.colors) == len(labels) else None
        points = np.asarray(result["points"])
        left_out = [result[name] for name in ("far", "withheld") if name in result]
        if left_out:
            # A page that has those far away shows nothing else.
            shown = ~np.any(left_out, axis=0)
            points = points[shown]
            labels = labels[shown]
            colors = None if colors is None else colors[shown]
        return View(
            [CloudView(points, colors=colors, labels=labels)],
            {"names": list(names), "label_name": "part"},
            [(part["label"], part["share"]) for part in self.value(result)],
            colors=dict(zip(names, self.palette, strict=True)),
        )
