"""The picture on top of README: `python -m docs.tools.pictures first` draws docs/first.png.

Four commands about files that `hf-any3d data example` writes, and their answers: the class of a scan, the numbered
trees and buildings of a tile, a classifier trained on twenty scans, and "none of these" for stairs. Text is large
enough to be read on a phone.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import chdir, redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SIZE, DPI = (12, 8.4), 150  # inches, dots an inch
PAPER, CARD, INK, QUIET, ACCENT = "#0b1020", "#121a30", "#f4f7ff", "#9fb0d0", "#7ee0c3"
CLASSES = {1: "#9fb0d0", 2: "#d2b48c", 3: "#7ccf6a", 4: "#7ccf6a", 5: "#2f9e6b", 6: "#e6550d"}  # brighter, on black
THINGS = ["#ffb454", "#7ee0c3", "#8ab4ff", "#ff8fab", "#d6a2ff", "#f6e05e", "#9ae6b4"]
BUILDING = 6
LIGHT = np.array([0.4, 0.8, 0.5]) / np.linalg.norm([0.4, 0.8, 0.5])


class View(NamedTuple):
    """What a panel shows.

    Attributes:
        points: (points, 3), the last axis up.
        colors: (points, 3) from 0 to 1.
        command: The command, in lines of at most 28 characters.
        answer: Its answer, in a few words.
        size: Of a point, in points of typography.
        turn: Degrees about the vertical axis.
    """

    points: np.ndarray
    colors: np.ndarray
    command: str
    answer: str
    size: float = 3.0
    turn: float = 35.0


def run(folder: Path, *words: str) -> None:
    """Run a command of the package in a folder."""
    from hf_any3d.cli import app

    with chdir(folder), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        app(words, standalone_mode=False)


def scan() -> View:
    """Ask for the class of the packaged chair."""
    from transformers import pipeline

    import hf_any3d

    file = hf_any3d.example_file("chair.ply")
    best = pipeline("point-cloud-classification")(str(file), top_k=1)[0]
    surface = hf_any3d.read_point_cloud(file).sample_surface(26_000)
    colors = shaded(surface.normals, np.array([0.54, 0.71, 1.0]))
    answer = f"{best['label']}, {best['score']:.0%}"
    return View(z_up(surface.points), colors, "hf-any3d predict chair.ply", answer, size=2.2, turn=215)


def stairs(folder: Path) -> View:
    """Classify a flight of stairs, which is none of the model's classes."""
    from transformers import pipeline

    import hf_any3d

    run(folder, "data", "example", "stairs.ply")
    best = pipeline("point-cloud-classification")(str(folder / "stairs.ply"), top_k=1)[0]
    answer = best["label"] or "none of these"
    points = z_up(hf_any3d.read_point_cloud(folder / "stairs.ply").points)
    points = points - points.mean(axis=0)
    colors = shaded_by_height(points, "#8a5a44", "#f2c9a1")
    return View(points, colors, "hf-any3d predict stairs.ply", answer, size=3, turn=140)


def tile(folder: Path) -> View:
    """Take an inventory of a tile."""
    import hf_any3d
    from hf_any3d.visualization.things import COLUMNS

    run(folder, "data", "example", "new.las")
    run(folder, "inventory", "new.las", "--output", "numbered.las")
    labeled = hf_any3d.read_point_cloud(folder / "numbered.las", columns=COLUMNS)
    numbers = labeled.further["PredInstance"].astype(int)
    points = labeled.points - labeled.points.mean(axis=0)
    colors = np.array([rgb(CLASSES[int(code)]) for code in labeled.labels])
    for number in range(1, numbers.max() + 1):
        colors[numbers == number] = rgb(THINGS[number % len(THINGS)])
    trees = len(np.unique(numbers[(numbers > 0) & (labeled.labels != BUILDING)]))
    buildings = len(np.unique(numbers[(numbers > 0) & (labeled.labels == BUILDING)]))
    command = "hf-any3d inventory new.las \\\n    --output numbered.las"
    return View(points, colors, command, f"{trees} trees, {buildings} buildings", size=6, turn=-40)


def scans(folder: Path) -> View:
    """Train a classifier on twenty scans of four classes."""
    import hf_any3d

    run(folder, "data", "example", "scans")
    run(folder, "train", "scans")
    report = json.loads((folder / "outputs/scans/metrics.json").read_text(encoding="utf-8"))
    points, colors = [], []
    for row, kind in enumerate(sorted((folder / "scans").iterdir())):
        for column, file in enumerate(sorted(kind.iterdir())):
            cloud = z_up(hf_any3d.read_point_cloud(file).points)
            cloud = (cloud - cloud.mean(axis=0)) / np.abs(cloud).max()
            points.append(cloud + 2.1 * np.array([column, -row, 0]))
            colors.append(shaded_by_height(cloud) * rgb(THINGS[row]))
    answer = f"your classes, {report['metrics']['cross-validation']['accuracy']:.0%}"
    return View(np.concatenate(points), np.concatenate(colors), "hf-any3d train scans", answer, size=1.2, turn=25)


def z_up(points: np.ndarray) -> np.ndarray:
    """Turn points (points, 3) with y up so that z is."""
    return points[:, [0, 2, 1]] * (1, -1, 1)


def rgb(color: str) -> tuple[float, ...]:
    """Return a color as three numbers from 0 to 1."""
    return tuple(int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))


def shaded(normals: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Return colors (points, 3) of a surface in the light of one lamp."""
    return np.clip((0.35 + 0.65 * np.abs(normals @ LIGHT))[:, None] * color, 0, 1)


def shaded_by_height(points: np.ndarray, lowest: str = "#4a5d8f", highest: str = "#c6d4f5") -> np.ndarray:
    """Return colors (points, 3) between those of the lowest and the highest point."""
    heights = points[:, 2] - points[:, 2].min()
    share = (heights / max(heights.max(), 1e-9))[:, None]
    return (1 - share) * rgb(lowest) + share * rgb(highest)


def projected(points: np.ndarray, turn: float, center: np.ndarray, extent: float) -> tuple[np.ndarray, np.ndarray]:
    """Return places (points, 2) as a camera sees them, and depths (points,)."""
    angle = np.deg2rad(turn)
    tilt = np.deg2rad(30)
    x, y, z = ((points - center) / extent).T
    right = x * np.cos(angle) - y * np.sin(angle)
    back = x * np.sin(angle) + y * np.cos(angle)
    up = z * np.cos(tilt) + back * np.sin(tilt)
    depth = back * np.cos(tilt) - z * np.sin(tilt)
    near = 1 / (1 + 0.22 * depth)
    return np.column_stack([right * near, up * near]), depth


def draw(axes: Any, view: View) -> None:
    """Draw a panel: points from back to front, the answer and the command."""
    center = (view.points.min(axis=0) + view.points.max(axis=0)) / 2
    extent = float(np.linalg.norm(view.points.max(axis=0) - view.points.min(axis=0)))
    places, depths = projected(view.points, view.turn, center, extent)
    # The view fills its panel above the text.
    low, high = places.min(axis=0), places.max(axis=0)
    scale = (np.array([1.12, 0.58]) / (high - low)).min()
    middle = (low + high) / 2
    places = (places - middle) * scale
    order = np.argsort(-depths)
    fog = np.clip(1.05 - 0.55 * (depths + 0.5), 0.45, 1)[:, None]
    axes.scatter(*places[order].T, s=view.size, c=np.clip(view.colors * fog, 0, 1)[order], linewidths=0)
    axes.set_xlim(-0.62, 0.62)
    axes.set_ylim(-0.59, 0.31)
    axes.set_aspect("equal")
    axes.axis("off")
    style: dict[str, Any] = {"transform": axes.transAxes, "verticalalignment": "top"}
    axes.text(0.03, 0.315, view.answer, color=INK, fontsize=27, fontweight="bold", **style)
    axes.text(0.03, 0.195, view.command, color=ACCENT, fontsize=22, family="monospace", linespacing=1.15, **style)


@cache
def views() -> list[View]:
    """Run the four commands and return what the panels show."""
    with tempfile.TemporaryDirectory() as folder:
        return [scan(), tile(Path(folder)), scans(Path(folder)), stairs(Path(folder))]


def texts() -> list[str]:
    """Return what the picture says: commands and their answers."""
    return [text for view in views() for text in (view.command, view.answer)]


def draw_all(path: Path) -> None:
    """Draw the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import FancyBboxPatch

    figure = pyplot.figure(figsize=SIZE, dpi=DPI, facecolor=PAPER)
    for number, view in enumerate(views()):
        left, bottom = 0.012 + 0.494 * (number % 2), 0.506 - 0.494 * (number // 2)
        box = (left, bottom, 0.482, 0.482)
        card = FancyBboxPatch(
            (left + 0.008, bottom + 0.008),
            *(0.466, 0.466),
            boxstyle="round,pad=0.006,rounding_size=0.012",
            facecolor=CARD,
            edgecolor="none",
            zorder=-1,
            transform=figure.transFigure,
        )
        figure.add_artist(card)
        draw(figure.add_axes(box), view)
    figure.savefig(path, facecolor=PAPER)
    pyplot.close(figure)
