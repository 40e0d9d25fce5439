"""The results of commands: tables, JSON and CSV on standard output; files, pages and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_any3d.cli.common import print_note
from hf_any3d.utils.messages import csv_text, print_json, print_line

if TYPE_CHECKING:
    from hf_any3d.data.files import PointCloudData
    from hf_any3d.visualization.viewer import BoxView

DATA = (".json", ".csv")
VIEWS = (".html", ".png")
CLOUDS = (".ply", ".obj", ".npz")
# Points that a page or picture shows in all, and clouds.
_MOST_POINTS, _MOST_CLOUDS = 200_000, 60

Row = Mapping[str, Any]


def check_output(
    output: Path | None,
    types: Sequence[str],
    *,
    as_json: bool = False,
    as_csv: bool = False,
    num_files: int = 1,
    folders: bool = False,
) -> str:
    """Check the options of a command's results before any work is done.

    Args:
        output: `--output`.
        types: Endings that it may have.
        as_json: `--json`.
        as_csv: `--csv`.
        num_files: Number of clouds; a file of a cloud holds one.
        folders: Whether a name without an ending, a folder, is allowed.

    Returns:
        The ending in lower case, "" for a folder or without `--output`.

    Raises:
        ValueError: An ending that is not allowed, or two formats at once.
    """
    if as_json and as_csv:
        raise ValueError("--json and --csv; expected one of them")
    if output is None:
        return ""
    suffix = "" if output.is_dir() else output.suffix.lower()
    if suffix not in types and not (folders and not suffix):
        known = ", ".join(types) + (", or a folder" if folders else "")
        raise ValueError(f"--output: {output} has type {suffix!r}; expected one of {known}")
    if suffix in CLOUDS and num_files > 1:
        raise ValueError(f"--output: {output} for {num_files} files; expected a folder, .html or .png")
    if suffix == ".png":
        from importlib.util import find_spec

        if find_spec("matplotlib") is None:
            raise ImportError("--output: a .png needs matplotlib: pip install 'hf-any3d[visuals]'")
    return suffix


def print_rows(
    rows: Iterable[dict[str, Any]],
    line: Callable[[Row], str | None],
    flat: Callable[[Row], Iterable[Row]],
    *,
    as_json: bool = False,
    as_csv: bool = False,
    hidden: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Print results as they come: a line each, a JSON list, or CSV.

    Args:
        rows: A row per file.
        line: The line of a row in the table; None for none.
        flat: The rows of a row in CSV.
        as_json: Print JSON.
        as_csv: Print CSV.
        hidden: Keys that JSON leaves out.

    Returns:
        All rows.
    """
    done: list[dict[str, Any]] = []
    for row in rows:
        done.append(row)
        if not as_json and not as_csv and "error" not in row and (text := line(row)) is not None:
            print_line(text)
    if as_json:
        print_json([_plain(row, hidden) for row in done])
    elif as_csv:
        for text in csv_lines([cells for row in done for cells in flat(row)]):
            print_line(text)
    return done


def write_data(
    output: Path, rows: Sequence[Row], flat: Callable[[Row], Iterable[Row]], hidden: Sequence[str] = ()
) -> None:
    """Write results as `.json` or `.csv`, atomically."""
    from hf_any3d.utils.atomic_files import write_json, write_text

    if output.suffix.lower() == ".json":
        write_json(output, [_plain(row, hidden) for row in rows])
    else:
        write_text(output, "\n".join(csv_lines([cells for row in rows for cells in flat(row)])) + "\n")
    print_note(f"{output}: {counted(len(rows), 'file')}")


def counted(number: int, what: str) -> str:
    """Return a number with its noun, such as "1 file" or "2 files"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def csv_lines(rows: Sequence[Row]) -> list[str]:
    """Return lines of CSV with a header of all keys, errors last; see `csv_text`."""
    # Sorting is stable: all other columns keep their order.
    names = sorted(dict.fromkeys(name for row in rows for name in row), key=lambda name: name == "error")
    return csv_text([names, *([row.get(name) for name in names] for row in rows)]).splitlines()


def _plain(row: Row, hidden: Sequence[str]) -> dict[str, Any]:
    def convert(value: Any) -> Any:
        return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)

    # There and back, so that arrays at any depth become lists.
    return json.loads(json.dumps({key: value for key, value in row.items() if key not in hidden}, default=convert))


def colors_of(labels: Any, colors: np.ndarray | None) -> np.ndarray | None:
    """Return a color for each point: of its label (points,) if there are labels, else the given ones."""
    if labels is None or np.asarray(labels).ndim != 1:
        return colors
    from hf_any3d.visualization.viewer import label_colors

    # A color for each different label; `numbers` leads from the points to these.
    values, numbers = np.unique(np.asarray(labels), return_inverse=True)
    palette = label_colors(int(max(values.max(), 0)) + 1)
    gray = np.full(3, 0.6, np.float32)  # of points without a class
    return np.stack([palette[value] if value >= 0 else gray for value in values])[numbers]


class Gallery:
    """The clouds of a page or picture, thinned so that a page stays small.

    Args:
        output: `.html` or `.png`; None shows nothing.
        num_clouds: How many are expected.
        up_axis: "x", "y" or "z".
    """

    def __init__(self, output: Path | None, num_clouds: int, up_axis: str = "y"):
        self.output, self.up_axis, self.num_clouds = output, up_axis, num_clouds
        self.clouds: list[np.ndarray] = []
        self.boxes: list[Sequence[BoxView]] = []
        self.titles: list[str] = []
        self.left_out = 0
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
        if self.output is not None:
            data = data.sample_surface(self._most) if data.is_mesh else data
            self.add(data.points, colors_of(data.labels, data.colors), title)

    def write(
        self,
        title: str,
        legend: Mapping[str, Sequence[float]] | None = None,
        columns: int = 4,
        **boxes: Any,
    ) -> None:
        """Write the page or picture, atomically; `boxes` has `box_names` and `threshold` of pages with boxes."""
        if self.output is None or not self.clouds:
            return
        if self.is_page:
            from hf_any3d.visualization.viewer import write_clouds_page

            write_clouds_page(
                self.output,
                self.clouds,
                titles=self.titles,
                columns=columns,
                title=title,
                legend=legend,
                up_axis=self.up_axis,
                boxes=self.boxes if boxes else None,
                rows_share_frame=False,  # files of scans have offsets and sizes of their own
                **boxes,
            )
        else:
            from hf_any3d.visualization.figures import plot_point_clouds

            plot_point_clouds(
                self.clouds,
                self.output,
                titles=self.titles,
                heading=title,
                legend=legend,
                columns=columns,
                up_axis=self.up_axis,
                cell=2.6,
            )
        more = f", without {self.left_out} more" if self.left_out else ""
        print_note(f"{self.output}: {counted(len(self.clouds), 'cloud')}{more}")
