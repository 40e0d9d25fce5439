"""The results of commands: tables, JSON and CSV on standard output; files, pages and pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_any3d.cli.common import FileOptions, check_model, need_packages, print_note
from hf_any3d.cli.inputs import Inputs, find_inputs, for_each_file, model_or_packaged, split_model
from hf_any3d.many_files.work import Answer
from hf_any3d.utils.atomic_files import write_json, write_text
from hf_any3d.utils.messages import counted, csv_text, print_json, print_line, printable

if TYPE_CHECKING:
    from hf_any3d.data.files import PointCloudData
    from hf_any3d.tasks.answers import View
    from hf_any3d.visualization.viewer import BoxView

DATA = (".json", ".csv")
TABLES = (".jsonl", ".csv", ".json", ".parquet")
VIEWS = (".html", ".png")
CLOUDS = (".ply", ".obj", ".npz")
# Points that a page or picture shows in all, and clouds.
_MOST_POINTS, _MOST_CLOUDS = 200_000, 60

Row = Mapping[str, Any]
Cells = Callable[[Row], Iterable[Row]]
"""Function from the row of a file to its rows in CSV."""


def check_output(
    output: Path | None, types: Sequence[str], *, as_json: bool = False, as_csv: bool = False, num_files: int = 1
) -> str:
    """Check the options of results before any work is done, and return the ending of `--output` in lower case.

    `types` are the endings that are allowed; "" stands for a folder, and is returned without `--output`, too.
    """
    if as_json and as_csv:
        raise ValueError("--json and --csv; expected one of them")
    if output is None:
        return ""
    suffix = "" if output.is_dir() else output.suffix.lower()
    # One file of points has no place for several clouds.
    expected = [ending or "a folder" for ending in types if num_files == 1 or ending not in CLOUDS]
    if suffix not in types or (suffix in CLOUDS and num_files > 1):
        several = " for several files" if num_files > 1 else ""
        raise ValueError(f"--output: {output} has type {suffix!r}; expected one of {', '.join(expected)}{several}")
    # A missing package is told before the model runs, whose answers would be lost.
    if suffix == ".png":
        need_packages("visuals", "matplotlib")
    return suffix


def find_all(
    files: Sequence[str],
    model: str | None,
    command: str,
    output: Path | None,
    types: Sequence[str],
    options: FileOptions,
    also: Sequence[str] = (),
) -> tuple[str, Inputs, str]:
    """Return model, files and ending of the output of a command, and check its options, before libraries are loaded.

    Models of the commands `also` do, too. A command that takes classifiers has a default model.
    """
    # The packaged model classifies, and its encoder has features of any object; for other commands there is none.
    has_default = "predict" in (command, *also)
    name, files = split_model(files, model, None if has_default else command)
    inputs = find_inputs(files, options.file_type)
    # Where a folder is allowed, several files need one; elsewhere they share a table or page.
    suffix = check_output(
        output, types, as_json=options.as_json, as_csv=options.as_csv, num_files=len(inputs) if "" in types else 1
    )
    name = (model_or_packaged if has_default else check_model)(name, command, *also)
    return name, inputs, suffix


def answer_inputs(
    inputs: Inputs,
    answer: Answer,
    line: Callable[[Row], str],
    cells: Cells,
    output: Path | None,
    options: FileOptions,
    batch_size: int = 1,
    has_bar: bool = False,
) -> list[dict[str, Any]]:
    """Answer files, print a line for each as it comes or JSON or CSV of all, and return their rows.

    `line` returns the line of a row in the table, behind the name of its file, and `cells` its rows in CSV. A table is
    also written if `output` is one. With `has_bar`, `answer` shows its progress itself.
    """
    is_table = not options.as_json and not options.as_csv
    width = max(len(printable(file.name)) for file in inputs.files)
    rows = []
    # A table on a terminal shows the progress itself.
    show = not has_bar and not (is_table and sys.stdout.isatty())
    for row in for_each_file(inputs, answer, batch_size, show=show):
        rows.append(row)
        if is_table and "error" not in row:
            print_line(f"{printable(row['file']):<{width}}  {line(row)}")
    write_rows(rows, cells, output, options)
    return rows


def write_rows(rows: Sequence[Row], cells: Cells, output: Path | None, options: FileOptions) -> None:
    """Print and write the rows of files; see `write_results`."""
    # There and back, so that arrays at any depth become lists.
    plain = json.loads(
        json.dumps(rows, default=lambda value: value.tolist() if hasattr(value, "tolist") else str(value))
    )
    table = [part for row in rows for part in cells(row)]
    if write_results(plain, table, output, options.as_json, options.as_csv):
        print_note(f"{output}: {counted(len(rows), 'file')}")


def write_results(value: Any, table: Sequence[Row], output: Path | None, as_json: bool, as_csv: bool) -> bool:
    """Print results as JSON or CSV if asked for, and write them if the output is `.json` or `.csv`; return whether."""
    if as_json:
        print_json(value)
    for text in csv_lines(table) if as_csv else ():
        print_line(text)
    suffix = "" if output is None else output.suffix.lower()
    if output is None or suffix not in DATA:
        return False
    if suffix == ".json":
        write_json(output, value)
    else:
        write_text(output, "\n".join(csv_lines(table)) + "\n")
    return True


def file_cells(row: Row, parts: Iterable[Row]) -> Iterator[Row]:
    """Yield the CSV rows of the parts of a file; without any, one for the file, with its error if it has one."""
    # A file without parts, such as a scan without objects, still has its row.
    parts = [{"file": row["file"], **part} for part in parts]
    yield from parts or [{name: row[name] for name in ("file", "error") if name in row}]


def csv_lines(rows: Sequence[Row]) -> list[str]:
    """Return lines of CSV with a header of all keys, errors last; see `csv_text`."""
    # Sorting is stable: all other columns keep their order.
    names = sorted(dict.fromkeys(name for row in rows for name in row), key=lambda name: name == "error")
    return csv_text([names, *([row.get(name) for name in names] for row in rows)]).splitlines()


class Gallery:
    """The clouds of a page (.html) or picture (.png), thinned so that it stays small; other outputs show nothing."""

    def __init__(self, output: Path | None, num_clouds: int, up_axis: str = "y"):
        self.output = output if output is not None and output.suffix.lower() in VIEWS else None
        self.up_axis = up_axis
        self.clouds: list[np.ndarray] = []
        self.boxes: list[Sequence[BoxView]] = []
        self.titles: list[str] = []
        self.left_out = 0
        self.legend: dict[str, list[float]] = {}
        self.settings: dict[str, Any] = {}  # of pages with boxes: their names, and the lowest score
        # Clouds are thinned as they come, since thousands of them would not fit into memory.
        self._most = _MOST_POINTS // max(1, min(num_clouds, _MOST_CLOUDS))

    @property
    def is_page(self) -> bool:
        """True for a page, False for a picture or nothing."""
        return self.output is not None and self.output.suffix.lower() == ".html"

    def add(self, points: np.ndarray, colors: np.ndarray | None, title: str, boxes: Sequence[BoxView] = ()) -> None:
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
        self.boxes.append(boxes)

    def add_file(self, data: PointCloudData, title: str) -> None:
        """Add a cloud or mesh in its own colors; labeled points are colored by label."""
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
        self.add(data.points, colors, title)

    def add_view(self, view: View, data: PointCloudData, title: str) -> None:
        """Add what a page shows of an answer about a cloud; `data` is the cloud itself."""
        if self.output is None:
            return
        if not view.clouds:
            self.add_file(data, title)
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
        view: View,
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

    def _add_to_legend(self, view: View, names: Iterable[str]) -> None:
        # In the order of the labels' numbers, whichever cloud has them.
        used = {*self.legend, *names}
        self.legend = {name: np.asarray(color).tolist() for name, color in view.colors.items() if name in used}

    def write(self, title: str) -> None:
        """Write the page or picture, atomically."""
        if self.output is None or not self.clouds:
            return
        settings: dict[str, Any] = {"titles": self.titles, "columns": 4, "up_axis": self.up_axis}
        settings["legend"] = self.legend or None
        if self.is_page:
            from hf_any3d.visualization.viewer import write_clouds_page

            shown = self.boxes if self.settings else None
            # Files of scans have offsets and sizes of their own.
            settings |= {"title": title, "boxes": shown, "rows_share_frame": False, **self.settings}
            write_clouds_page(self.output, self.clouds, **settings)
        else:
            from hf_any3d.visualization.figures import plot_point_clouds

            plot_point_clouds(self.clouds, self.output, heading=title, cell=2.6, **settings)
        more = f", without {self.left_out} more" if self.left_out else ""
        print_note(f"{self.output}: {counted(len(self.clouds), 'cloud')}{more}")
