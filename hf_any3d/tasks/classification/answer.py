"""Answers of classifiers: labels with scores, and why they may be wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import Any, ClassVar

from hf_any3d.data.checks.single_objects import why_no_object
from hf_any3d.data.files import PointCloudData
from hf_any3d.data.frames.floors import without_floor
from hf_any3d.registry import NONE_OF_THESE
from hf_any3d.tasks.answers import Again, Answers, Doubt, Row, View
from hf_any3d.utils.messages import percent, printable

UNLIKE_FROM, MUCH_LESS = 0.01, 1.5
"""Unknown score from which on other axes are tried, and by how much less that of a turned cloud is, as logits, which
then clearly looks like something known (`studies/results/none_of_these.md`)."""
SURE_FROM = 0.8
"""Score from which on a turned cloud is sure of another class."""
_MOST_SHOWN = 8
_WHY = {"file": "the file", "found": "its shape"}
_FOR_DOUBTS = ("one_sided", "other_axis")
_UNLIKE_FROM_ELSE = 0.1  # for scores without projection or energy, which are above 0.01 for nearly all clouds


class ClassificationAnswers(Answers):
    """Labels, the likeliest first; a label of None stands for none of the classes."""

    column = "predictions"
    for_doubts = {"one_sided": True, "other_axis": True}
    for_pages: ClassVar[dict[str, Any]] = {"keep_labels": True}  # arguments of its own for pages

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # What a page has room for
        if self.on_page and "top_k" not in self.settings:
            self.arguments |= {"top_k": _MOST_SHOWN} | self.for_pages
        # Only scores with a projection or an energy are near 0 for clouds like those of the training.
        calibration = getattr(self.config, "unknown", None)
        is_of_scans = calibration is not None and (calibration.width or calibration.energy)
        self._unlike_from = UNLIKE_FROM if is_of_scans else _UNLIKE_FROM_ELSE

    @property
    def is_regression(self) -> bool:
        """True for numbers instead of labels; of a model with adapters, those of the active one."""
        return self.config.problem_type == "regression"

    @cached_property
    def _width(self) -> int:
        return max(len(printable(name)) for name in self.config.id2label.values())

    def value(self, result: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the labels without what is for doubts alone."""
        return [{name: value for name, value in one.items() if name not in _FOR_DOUBTS} for one in result]

    def line(self, row: Row) -> str:
        """Return labels with their scores, in columns."""
        texts = []
        for prediction in row[self.column]:
            score = prediction["score"]
            number = f"{score:12.6g}" if self.is_regression else f"{percent(score, 1):>5} %"
            # A cloud that is none of the classes has a single prediction without a label.
            if prediction["label"]:
                texts.append(f"{printable(prediction['label']):<{self._width}} {number}")
        words = self._words_of_axis(row[self.column][0])
        return ("   ".join(texts) or NONE_OF_THESE) + (f"   ({words})" if words else "")

    def _words_of_axis(self, best: Row) -> str:
        """Return which direction is up and why, if that is not what the model takes for granted."""
        if best.get("up_source") == "unsure":
            return "which way is up could not be told"
        if best.get("up_source") in ("file", "found") and best["up_axis"] != self.pipe.up_axis:
            return f"{best['up_axis']} is up by {_WHY[best['up_source']]}"
        return ""

    @staticmethod
    def cells(row: Row) -> Iterable[Row]:
        """Return one row: label and score, then those of the next best labels."""
        cells: dict[str, Any] = {}
        for number, prediction in enumerate(row.get("predictions") or (), 1):
            ending = "" if number == 1 else f"_{number}"
            cells |= {f"label{ending}": prediction["label"], f"score{ending}": f"{prediction['score']:.6f}"}
            # The unknown score is of the cloud, and the same for each of its labels.
            if number == 1 and "unknown" in prediction:
                cells["unknown"] = f"{prediction['unknown']:.6f}"
            if number == 1 and "up_axis" in prediction:
                cells |= {"up_axis": prediction["up_axis"], "up_source": prediction["up_source"]}
        return [cells] if cells else []

    @staticmethod
    def feature() -> Any:
        """Return the type of labels with their scores."""
        from datasets import List, Value

        numbers = {"score": Value("float32"), "unknown": Value("float32")}
        return List({"label": Value("string"), **numbers, "up_axis": Value("string"), "up_source": Value("string")})

    def caption(self, row: Row) -> str:
        """Return the best label; of a regression all numbers are the answer."""
        if self.is_regression:
            return self._numbers(row[self.column])
        best = row[self.column][0]
        return f"{best['label']}, {percent(best['score'])} %" if best["label"] else NONE_OF_THESE

    def best(self, row: Row) -> tuple[str | None, float] | None:
        """Return the best label and its score; of a regression there is none."""
        if self.is_regression:
            return None
        return row[self.column][0]["label"], row[self.column][0]["score"]

    def _numbers(self, predictions: list[dict[str, Any]]) -> str:
        # Numbers of any unit, of which six digits tell enough.
        return ", ".join(f"{number['label']} {number['score']:.6g}" for number in predictions)

    def plain(self, result: list[dict[str, Any]], cloud: PointCloudData) -> dict[str, Any]:
        """Return the labels."""
        del cloud
        return {"labels": self.value(result)}

    def view(self, cloud: PointCloudData, result: list[dict[str, Any]]) -> View:
        """Return the shares of the labels; numbers of a regression are none."""
        del cloud
        if self.is_regression:
            return View(note=self._numbers(result))
        shares = []
        note = ""
        for one in result:
            if one["label"] is None:
                # Its score is that of the best class.
                shares.append((NONE_OF_THESE, one.get("unknown", one["score"])))
                note = "unlike the training data, so probably none of the classes, whose scores say which is nearest"
            else:
                shares.append((one["label"], one["score"]))
        words = self._words_of_axis(result[0])
        note = "; ".join(text for text in (note, words) if text)
        return View(shares=shares, note=note, up_axis=result[0].get("up_axis"))

    def doubt(self, cloud: PointCloudData, result: list[dict[str, Any]], again: Again) -> Doubt | None:
        """Return why a cloud may be nothing that the model knows, the likeliest reason first."""
        # Whoever wants no unknown score wants no doubts either.
        if self.settings.get("unknown") is False:
            return None
        # From what is seen without the model to what only the model knows.
        best = result[0]
        up_axis = best.get("up_axis", self.up_axis)
        reason = why_no_object(cloud, up_axis.removeprefix("-"), self.config)
        if reason is not None:
            return Doubt(reason)
        if "other_axis" in best:
            return self._why_axis(cloud, best["other_axis"], again)
        other = None
        if best.get("unknown", 0.0) > self._unlike_from:
            other = self._why_unlike(cloud, best, again)
        if other is None and best.get("one_sided", 0.0) > 0.5:
            return Doubt(
                "looks as if seen from one side, and the model was trained on whole shapes: scan it from more sides, "
                "or train with scans like it"
            )
        return other

    def _why_axis(self, cloud: PointCloudData, axis: str, again: Again) -> Doubt | None:
        """Return the doubt about a cloud that does not show its direction up and has another label with this one."""
        result = again(cloud, axis)
        # Of a class, not of none
        if not result or result[0]["label"] is None:
            return None
        text = f"which way is up could not be told; if {axis} points up it looks like {result[0]['label']}"
        return Doubt(text, ("up_axis", axis))

    def _why_unlike(self, cloud: PointCloudData, best: dict[str, Any], again: Again) -> Doubt | None:
        """Find why a cloud is unlike those of the training: it was scanned with its floor, or lies on its side."""
        stands = False
        own = best.get("up_axis", self.up_axis).removeprefix("-")
        # The axis that it was read with first
        for axis in sorted("xyz", key=lambda axis: axis != own):
            rest = without_floor(cloud, axis)
            if rest is None:
                continue
            stands |= axis == own
            result = again(rest, axis)
            if result and result[0]["label"] is not None and _is_much_less(result[0], best):
                label = result[0]["label"]
                if axis == own:
                    return Doubt(f"without the floor that it stands on it looks like {label}: cut the floor off")
                text = f"if {axis} points up and the floor that it stands on is cut off, it looks like {label}"
                return Doubt(text, ("up_axis", axis))
        # What stands on a floor does not lie on its side, nor does what was turned upright by its shape.
        is_upright = stands or best.get("up_source") in ("found", "unsure")
        return None if is_upright else self._why_turned(cloud, best, again)

    def _why_turned(self, cloud: PointCloudData, best: dict[str, Any], again: Again) -> Doubt | None:
        """Find whether a cloud is unlike those of the training because it lies on its side."""
        # Two more runs of the model, which only clouds in doubt get.
        labeled = {}
        for axis in "xyz":
            result = None if axis == self.up_axis else again(cloud, axis)
            # If no class is likely either when it is turned, the axis is not what is wrong.
            if result and result[0]["label"] is not None:
                labeled[axis] = result[0]
        axis = min(labeled, key=lambda axis: labeled[axis]["unknown"], default=None)
        if axis is None or not _is_much_less(labeled[axis], best):
            # An answer may be sure, and wrong.
            surer = [axis for axis in labeled if _is_surer(labeled[axis], best)]
            axis = max(surer, key=lambda axis: labeled[axis]["score"], default=None)
        if axis is None:
            return None
        return Doubt(f"if {axis} points up it looks like {labeled[axis]['label']}", ("up_axis", axis))


def _is_much_less(other: dict[str, Any], own: dict[str, Any]) -> bool:
    """Return whether the unknown score of another answer is much less, as logits.

    Scores near 0 or 1 differ in far decimals alone.
    """
    least = 1e-9  # a score in single precision may be 0 or 1
    less, more = (min(max(answer["unknown"], least), 1 - least) for answer in (other, own))
    return math.log(more / (1 - more)) - math.log(less / (1 - less)) > MUCH_LESS


def _is_surer(other: dict[str, Any], own: dict[str, Any]) -> bool:
    """Return whether another answer is sure of another class, and as sure as the own one at least."""
    is_other = None not in (own["label"], other["label"]) and other["label"] != own["label"]
    is_as_sure = other.get("score", 0.0) >= max(SURE_FROM, own.get("score", 1.0))
    return is_other and is_as_sure and other["unknown"] < own["unknown"]
