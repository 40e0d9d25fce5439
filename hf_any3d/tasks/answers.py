"""Answers of a task as doors show them: rows of tables, lines, JSON of the service, and views in 3D."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from hf_any3d.data.files import PointCloudData
from hf_any3d.tasks.settings import pipeline_arguments
from hf_any3d.visualization.viewer import CloudView

Row = Mapping[str, Any]
Again = Callable[[PointCloudData, str], Any]
"""Function from a cloud and its up axis to the result of the same pipeline, None where there is none."""


@dataclass(frozen=True)
class Doubt:
    """Reason why an answer may be wrong, and a setting that may mend it, as (name, value)."""

    text: str
    advice: tuple[str, str] | None = None

    def __str__(self) -> str:
        """Return it in words of Python; a door may have other ones for the setting."""
        return self.text if self.advice is None else f"{self.text}: try {self.advice[0]}={self.advice[1]!r}"


@dataclass(frozen=True)
class View:
    """An answer about a cloud as a page shows it.

    Attributes:
        clouds: What is seen in 3D; empty for the cloud as it is in its file.
        settings: Further arguments of `hf_any3d.visualization.viewer.viewer_page`.
        shares: Labels with shares in [0, 1], the best first.
        note: What else is said, in words.
        colors: Label -> color in the view, (3,) in [0, 1].
        up_axis: The direction that is up in the cloud, where the answer says it; None for that of the page.
    """

    clouds: Sequence[CloudView] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    shares: Sequence[tuple[str, float]] = ()
    note: str = ""
    colors: Mapping[str, np.ndarray] = field(default_factory=dict)
    up_axis: str | None = None


class Answers:
    """Answers of a pipeline to one way of asking, and how doors show them.

    A task derives its own class, and says what differs. A result is what the pipeline returns for a cloud; a row is
    made of it, has plain values alone, and is what commands and tables keep.

    Args:
        pipe: The pipeline.
        kind: Dataclass of the task's settings.
        values: Settings by their names, those of `door`.
        door: Where it is asked, one of `hf_any3d.tasks.settings.DOORS`.
        on_page: Whether a page lets people look at more than what is asked for, such as boxes of lower scores.
    """

    column: ClassVar[str] = "answer"
    """Name of the answer in rows."""
    for_doubts: ClassVar[dict[str, Any]] = {}
    """Further arguments of calls, by which results have what `doubt` looks at."""
    compares: ClassVar[bool] = False
    """Whether a page shows how near examples are, by `nearest`."""
    is_called_whole: ClassVar[bool] = False
    """Whether the pipeline may read a cloud in several parts, so that its steps cannot be run on batches of clouds."""

    def __init__(self, pipe: Any, kind: type, values: Mapping[str, Any], door: str, *, on_page: bool = False):
        self.pipe = pipe
        self.config: Any = pipe.model.config
        self.settings = dict(values)
        self.on_page = on_page
        self.arguments: dict[str, Any] = pipeline_arguments(kind, values, door)
        """Arguments of calls of the pipeline."""

    @property
    def up_axis(self) -> str:
        """The axis that points up in the clouds, or down."""
        return (self.settings.get("up_axis") or self.pipe.up_axis).removeprefix("-")

    def value(self, result: Any) -> Any:
        """Return the answer as a value of a row."""
        return result

    def row(self, result: Any) -> dict[str, Any]:
        """Return the row of a result, without the name of its file."""
        return {self.column: self.value(result)}

    def line(self, row: Row) -> str:
        """Return the row of a file in one line of words."""
        raise NotImplementedError

    @staticmethod
    def cells(row: Row) -> Iterable[Row]:
        """Return the rows of a CSV table that a row stands for; none for a file with an error."""
        raise NotImplementedError

    @staticmethod
    def feature() -> Any:
        """Return the type of the column in `datasets`."""
        raise NotImplementedError

    def caption(self, row: Row) -> str:
        """Return what stands below the cloud in a page, behind its name; nothing by default."""
        del row
        return ""

    def best(self, row: Row) -> tuple[str | None, float] | None:
        """Return the best label of a cloud, None for none of the classes, and its score; None if it has no such."""
        del row
        return None

    def plain(self, result: Any, cloud: PointCloudData) -> dict[str, Any]:
        """Return a result as JSON of the service."""
        del cloud
        return self.row(result)

    def view(self, cloud: PointCloudData, result: Any) -> View:
        """Return what a page shows of a result; by default the cloud as it is."""
        del cloud, result
        return View()

    def nearest(self, result: Any, others: Mapping[str, Any]) -> list[tuple[str, float]]:
        """Return the results by their names that are most like one, with shares in [-1, 1], the best first."""
        raise NotImplementedError

    def doubt(self, cloud: PointCloudData, result: Any, again: Again) -> Doubt | None:
        """Return why the answer may be wrong, None if nothing speaks against it."""
        del cloud, result, again
        return None
