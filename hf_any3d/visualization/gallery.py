"""A page or picture of many clouds, gathered one by one, with the answers of a model about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hf_any3d.data.frames.axes import turn_up_axis

if TYPE_CHECKING:
    from hf_any3d.data.files import PointCloudData
    from hf_any3d.visualization.viewer import BoxView, CloudView

# Points that a page or picture shows in all, and clouds.
_MOST_POINTS, _MOST_CLOUDS = 200_000, 60


class Shown(Protocol):
    """The part of an answer that is shown; `hf_any3d.tasks.answers.View` explains it."""

    @property
    def clouds(self) -> Sequence[CloudView]:
        """Clouds that are seen in 3D; empty for the cloud as it is in its file."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """Further arguments of a page."""
        ...

    @property
    def up_axis(self) -> str | None:
        """The direction that is up in the cloud, if the answer has it."""
        ...

    @property
    def colors(self) -> Mapping[str, np.ndarray]:
        """Label -> color in the view, (3,) in [0, 1]."""
        ...


@dataclass(frozen=True)
class Mark:
    """Mark of an answer about a cloud.

    Attributes:
        note: Answer, in words.
        status: "right", "wrong", or "" if nobody knows.
        score: Score of the answer, by which a page sorts; None without one.
    """

    note: str = ""
    status: str = ""
    score: float | None = None


class Gallery:
    """The clouds of a page (.html) or picture (.png), thinned so that it stays small; other outputs show nothing."""

    def __init__(self, output: Path | None, num_clouds: int, up_axis: str = "y"):
        self.output = output if output is not None and output.suffix.lower() in (".html", ".png") else None
        self.up_axis = up_axis
        self.clouds: list[np.ndarray] = []
        self.boxes: list[Sequence[BoxView]] = []
        self.titles: list[str] = []
        self.marks: list[Mark] = []
        self.left_out = 0
        self.legend: dict[str, list[float]] = {}
        self.settings: dict[str, Any] = {}  # of pages with boxes: their names, and the lowest score
        # Clouds are thinned as they come, since thousands of them would not fit into memory.
        self._most = _MOST_POINTS // max(1, min(num_clouds, _MOST_CLOUDS))

    @property
    def is_page(self) -> bool:
        """True for a page, False for a picture or nothing."""
        return self.output is not None and self.output.suffix.lower() == ".html"

    def add(
        self,
        points: np.ndarray,
        colors: np.ndarray | None,
        title: str,
        boxes: Sequence[BoxView] = (),
        mark: Mark | None = None,
    ) -> None:
        """Add a cloud (points, 3) with colors (points, 3) in [0, 1] or None, which colors it by height."""
        if self.output is None or len(self.clouds) >= _MOST_CLOUDS:
            self.left_out += self.output is not None
            return
        # An ellipsis selects all points.
        kept: Any = ...
        if len(points) > self._most:
            # The same points in every run, so that the same files give the same page.
            kept = np.random.default_rng(0).choice(len(points), self._most, replace=False)
        cloud = np.asarray(points, dtype=np.float32)[kept]
        self.clouds.append(cloud if colors is None else np.concatenate([cloud, np.asarray(colors)[kept]], axis=1))
        self.titles.append(title)
        self.marks.append(mark or Mark())
        self.boxes.append(boxes)

    def add_file(self, data: PointCloudData, title: str, mark: Mark | None = None, up_axis: str | None = None) -> None:
        """Add a cloud or mesh in its own colors, with its `up_axis` up; labeled points are colored by label."""
        if self.output is None:
            return
        data = data.sample_surface(self._most) if data.is_mesh else data
        colors = data.colors
        if data.labels is not None and data.labels.ndim == 1:
            from hf_any3d.visualization.viewer import label_colors

            # Labels are numbers from 0, and negative ones stand for none.
            palette = label_colors(int(max(data.labels.max(), 0)) + 1)
            gray = (0.6, 0.6, 0.6)  # of points without a class
            colors = np.where(data.labels[:, None] < 0, gray, palette[np.maximum(data.labels, 0)])
        points = data.points if up_axis is None else turn_up_axis(data.points, up_axis, self.up_axis)
        self.add(points, colors, title, mark=mark)

    def add_view(self, view: Shown, data: PointCloudData, title: str, mark: Mark | None = None) -> None:
        """Add what a page shows of an answer about a cloud; `data` is the cloud itself."""
        if self.output is None:
            return
        if not view.clouds:
            self.add_file(data, title, mark, view.up_axis)
        for cloud in view.clouds:
            # Relative to the smallest coordinates, which float32 can hold.
            points = np.asarray(cloud.points, dtype=np.float64)
            frame = points.min(axis=0)
            points = points - frame
            colors = cloud.colors
            if cloud.labels is not None:
                names = view.settings["names"]
                colors = np.stack([view.colors[name] for name in names])[cloud.labels]
                self._add_to_legend(view, [names[number] for number in np.unique(cloud.labels)])
            if cloud.boxes is None:
                self.add(points, colors, title)
            else:
                self._add_boxes(points, colors, cloud.boxes, frame, view, title)

    def _add_boxes(
        self,
        points: np.ndarray,
        colors: np.ndarray | None,
        boxes: Sequence[BoxView],
        frame: np.ndarray,
        view: Shown,
        title: str,
    ) -> None:
        """Add a cloud to a page with its boxes; to a picture with points along their edges."""
        from hf_any3d.visualization.viewer import box_edges

        if colors is None:
            colors = np.full((len(points), 3), 0.7, dtype=np.float32)
        boxes = [replace(box, corners=np.asarray(box.corners) - frame) for box in boxes]
        if self.is_page:
            # It makes its own legend, of all labels, as its slider may show further boxes.
            self.settings |= view.settings
            self.add(points, colors, title, boxes)
            return
        self._add_to_legend(view, [box.label for box in boxes])
        # (edge points, 3) of each box
        edges = [box_edges(box.corners) for box in boxes]
        painted = [np.tile(view.colors[box.label], (len(edge), 1)) for box, edge in zip(boxes, edges, strict=True)]
        self.add(np.concatenate([points, *edges]), np.concatenate([colors, *painted]), title)

    def _add_to_legend(self, view: Shown, names: Iterable[str]) -> None:
        # In the order of the labels' numbers, whichever cloud has them.
        used = {*self.legend, *names}
        self.legend = {name: np.asarray(color).tolist() for name, color in view.colors.items() if name in used}

    def write(self, title: str) -> bool:
        """Write the page or picture, atomically, and return whether there is one."""
        if self.output is None or not self.clouds:
            return False
        settings: dict[str, Any] = {"titles": self.titles, "columns": 4, "up_axis": self.up_axis}
        settings["legend"] = self.legend or None
        if self.is_page:
            from hf_any3d.visualization.viewer import write_clouds_page

            shown = self.boxes if self.settings else None
            # Files of scans have offsets and sizes of their own.
            settings |= {"title": title, "boxes": shown, "rows_share_frame": False, **self.settings}
            right = sum(mark.status == "right" for mark in self.marks)
            judged = right + sum(mark.status == "wrong" for mark in self.marks)
            if judged:
                settings["note"] = f"{right:,} of {judged:,} predictions are correct (true class: name of the folder)"
            settings["marks"] = [(mark.note, mark.status, mark.score) for mark in self.marks]
            write_clouds_page(self.output, self.clouds, **settings)
        else:
            from hf_any3d.visualization.figures import plot_point_clouds

            plot_point_clouds(self.clouds, self.output, heading=title, cell=2.6, **settings)
        return True
