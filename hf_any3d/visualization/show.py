"""Show files, rows of datasets and features: as a page, as a picture, or served in 3D.

`hf-any3d show` calls `view_of_cloud` for files, `views_of_rows` for datasets, `write_views` for their output, and
`serve_scene` for clouds that are too large for a page.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.data.classes.las_classes import ASPRS_CLASSES, ASPRS_COLORS, RESERVED, names_of
from hf_any3d.data.files import PointCloudData
from hf_any3d.data.inputs import to_cloud
from hf_any3d.data.options import one_of, package
from hf_any3d.utils.atomic_files import write_text
from hf_any3d.visualization.figures import plot_views
from hf_any3d.visualization.things import NUMBERS, with_things
from hf_any3d.visualization.viewer import CloudView, height_colors, label_colors, parse_color, viewer_page

METHODS = ("auto", "scikit-learn", "openTSNE")


def project_features(
    features: np.ndarray, *, perplexity: float = 25.0, metric: str = "cosine", seed: int = 42, method: str = "auto"
) -> np.ndarray:
    """Embed features in a plane by t-SNE.

    Near neighbors stay near; distances between groups and sizes of groups have no meaning.

    `perplexity` is about the number of neighbors of a cloud. `method` is "scikit-learn", "openTSNE", faster for many
    thousands, or "auto" for the latter if installed.

    Returns:
        (clouds, 2) float32.

    Source: van der Maaten and Hinton, Visualizing Data using t-SNE.
    """
    features = np.asarray(features, dtype=np.float32)
    if method == "auto":
        method = "openTSNE" if find_spec("openTSNE") else "scikit-learn"
    TSNE = package("openTSNE" if method == "openTSNE" else "sklearn.manifold", "visuals").TSNE  # noqa: N806
    if method == "openTSNE":
        embedding = TSNE(perplexity=perplexity, metric=metric, random_state=seed).fit(features)
        return np.asarray(embedding, dtype=np.float32)
    # Principal components preserve more of the global structure than a random start.
    embedding = TSNE(init="pca", perplexity=perplexity, metric=metric, random_state=seed)
    return embedding.fit_transform(features).astype(np.float32)


def write_feature_map(
    path: str | os.PathLike,
    places: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    *,
    texts: Sequence[str] | None = None,
    heading: str = "",
) -> Path:
    """Write a map, colored by class, with `write_views`; on a page classes can be hidden and clouds show their names.

    `places` (clouds, 2) is the result of `project_features`, `labels` (clouds,) are class numbers from 0, and `texts`
    the names of the clouds, for pages.
    """
    view = CloudView(np.asarray(places, dtype=np.float64), labels=np.asarray(labels), texts=texts)
    return write_views(path, [view], names=names, label_name="class", title=heading or "features")


MESH_POINTS = 20_000
"""Points that are sampled on the surface of a mesh to show it."""
# Columns of a dataset that a cloud is made of.
_OF_CLOUDS = ("points", "colors", "faces", "face_colors", "intensity")
# Percentiles of the darkest and brightest intensity that are told apart.
_INTENSITIES = (1, 99)
CLOUDS_OF_A_GRID = 60
"""Rows of a dataset that are shown by default."""
NO_LABEL = "no label"
"""Name of points without a label."""


def write_views(path: str | os.PathLike, clouds: Sequence[CloudView], **arguments: Any) -> Path:
    """Write clouds as a page or as a picture.

    Args:
        path: File to write, atomically: `.html` for a self-contained page, `.png` for a picture.
        clouds: The clouds.
        **arguments: Arguments that `viewer_page` and `plot_views` share: `title`, `note`, `names`, `label_name`,
            `value_name`, `categories`, `palette`, `legend`, `columns`, `rows_share_frame`, `up_axis`.
    """
    path = Path(path)
    if one_of(f"file type of {path}", path.suffix.lower(), (".html", ".png")) == ".html":
        return write_text(path, viewer_page(clouds, **arguments))
    return plot_views(clouds, path, **arguments)


def view_of_cloud(cloud: Any, *, title: str = "", names: Sequence[str] | None = None) -> tuple[CloudView, list[str]]:
    """Return how a cloud or mesh is shown, and the names of its labels.

    Without `names`, classes of LAS and LAZ have the names of ASPRS, others their numbers.

    The view has the extents along x, y and z, in meters where the file says its unit, colors and labels where the
    cloud has them, and intensities as values. Labels without `names` are named by their numbers; those that are all
    equal are named, not shown. On meshes, 20,000 points are sampled. The title is by default the name of the file. A
    scan that was read with the column `PredInstance` is colored by its numbers, and has no labels.
    """
    data = to_cloud(cloud)
    if isinstance(cloud, (str, os.PathLike)):
        title = title or Path(cloud).name
        if names is None:
            names = class_names(data)
    note = f"{len(data):,} points"
    extents = data.points.max(axis=0) - data.points.min(axis=0)
    unit = ""
    # Where the unit is known, everybody understands meters.
    if data.meters_per_axis is not None:
        extents = extents * data.meters_per_axis
        unit = " m"
    if data.is_mesh and data.faces is not None:
        note += f", {len(data.faces):,} faces"
        # With a fixed seed, so that a mesh looks the same each time
        data = data.sample_surface(MESH_POINTS, np.random.default_rng(0))
    note += f" · extent {' × '.join(f'{extent:.3g}' for extent in extents.tolist())}{unit}"
    labels = data.labels
    shown_names: list[str] = list(names or ())
    # One label on all points tells no more than a line of text, and would hide their colors.
    if labels is not None and (labels == labels[0]).all():
        label = labels[0]
        note += f" · class of all points: {label if names is None or label < 0 else names[label]}"
        labels = None
        shown_names = []
    if labels is not None:
        # Names are by default the numbers.
        if names is None:
            shown_names = [str(number) for number in range(int(labels.max()) + 1)]
        # Points without a label get one.
        if labels.min() < 0:
            labels = labels + 1
            shown_names = [NO_LABEL, *shown_names]
    values = None
    if data.intensity is not None:
        # Some reflectors are so bright that all else would be dark.
        values = data.intensity.clip(*np.percentile(data.intensity, _INTENSITIES))
    view = CloudView(data.points, data.colors, labels, values, title, note, up_axis=data.up_axis)
    if NUMBERS in (data.further or {}):
        return with_things(view, data, names), []
    return view, shown_names


def share_legend(views: Sequence[CloudView], names: Sequence[Sequence[str]]) -> list[str]:
    """Give the labels of several views one list of names, and return it.

    Args:
        views: Views of clouds whose labels mean the same; those without one in front of the others are changed.
        names: The names of the labels of each view, as `view_of_cloud` returns them.
    """
    have_unlabeled = [bool(named) and named[0] == NO_LABEL for named in names]
    if any(have_unlabeled):
        for view, has_unlabeled in zip(views, have_unlabeled, strict=True):
            # Numbers start behind "no label" in all views, as they do in some.
            if view.labels is not None and not has_unlabeled:
                view.labels = view.labels + 1
    classes = [named[1:] if has else named for named, has in zip(names, have_unlabeled, strict=True)]
    # A file has names up to its largest label; the longest list names the labels of all.
    longest = max(classes, key=len, default=[])
    return [NO_LABEL, *longest] if any(have_unlabeled) else list(longest)


def class_names(data: PointCloudData) -> list[str] | None:
    """Return the names of classes that a file or its format gives them, by their numbers, or None."""
    if data.label_names is not None:
        return list(data.label_names)
    if data.label_codes is None or data.labels is None:
        return None
    names = names_of(data.label_codes)
    return [names.get(number, str(number)) for number in range(int(data.labels.max()) + 1)]


def class_colors(names: Sequence[str]) -> np.ndarray:
    """Return colors (names, 3) in [0, 1]: of classes of LAS those that surveyors know, of others the library's."""
    colors = label_colors(len(names))
    color_of = {name: ASPRS_COLORS[code] for code, name in ASPRS_CLASSES.items()}
    # Heights of vegetation are often joined.
    color_of["vegetation"] = ASPRS_COLORS[5]
    for number, name in enumerate(names):
        name = name.removesuffix(RESERVED)
        if name in color_of:
            colors[number] = parse_color(color_of[name])
    return colors


def views_of_rows(
    rows: Any, most: int = CLOUDS_OF_A_GRID, predictions: Sequence[str] | None = None
) -> tuple[list[CloudView], dict[str, Any]]:
    """Return how the rows of a dataset are shown in a grid, and the settings for `write_views`.

    Args:
        rows: A split of `load_point_dataset`, with `points` and perhaps `colors`, `label` (of the cloud), `labels`
            (of its points) and `name`.
        most: Number of rows; they are evenly spread over the split.
        predictions: Name of the predicted class of each row of the split; right and wrong ones are marked.
    """
    if predictions is not None and len(predictions) != len(rows):
        raise ValueError(f"predictions: {len(predictions)} for {len(rows)} rows; expected one for each")
    classes = _names_of_column(rows, "label")
    names = _names_of_column(rows, "labels")
    # Spread over the dataset, whose rows are often sorted by class.
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)).tolist()
    views = []
    for number in chosen:
        prediction = None if predictions is None else str(predictions[number])
        views.append(view_of_row(rows[number], number, classes, prediction))
    # The page has one legend for all its clouds.
    labels = [view.labels for view in views if view.labels is not None and view.labels.min() >= 0]
    if len(labels) < len(views):
        for view in views:
            view.labels = None
    elif not names:
        names = [str(number) for number in range(max(int(of_view.max()) for of_view in labels) + 1)]
    note = f"{len(views):,} of {len(rows):,} clouds" if len(views) < len(rows) else f"{len(rows):,} clouds"
    page: dict[str, Any] = {"categories": classes, "names": names, "note": note}
    if any(view.values is not None for view in views):
        page["value_name"] = "intensity"
    return views, page


def _names_of_column(rows: Any, column: str) -> list[str]:
    """Return the names of the classes in a column of a dataset, or in its lists; none without names."""
    feature = getattr(rows, "features", {}).get(column)
    # Labels of points are lists, whose classes are those of an entry.
    feature = getattr(feature, "feature", feature)
    return list(getattr(feature, "names", None) or ())


def view_of_row(row: Any, number: int, classes: Sequence[str] = (), prediction: str | None = None) -> CloudView:
    """Return how a row of a dataset is shown: its class below it, and what was predicted."""
    cloud = {key: row[key] for key in _OF_CLOUDS if row.get(key) is not None}
    view, _ = view_of_cloud(cloud, title=str(row.get("name") or f"row {number}"))
    # As they are in the dataset, where the column has the names
    view.labels = None if row.get("labels") is None else np.asarray(row["labels"])
    view.note = ""
    if classes:
        view.category = int(row["label"])
        view.note = classes[view.category]
    if prediction is not None and prediction == view.note:
        view.status = "right"
    elif prediction is not None:
        view.status = "wrong"
        view.note = f"{view.note} → {prediction}"
    return view


def serve_scene(
    cloud: Any,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    names: Sequence[str] | None = None,
    palette: np.ndarray | None = None,
) -> Any:
    """Serve a cloud of millions of points in 3D, drawn by the graphics card of the browser's machine.

    The page comes from the package viser and needs no network. All points are sent once; nothing is thinned out.
    `host` 0.0.0.0 admits other machines; if the port is taken, the next free one is. `palette` (names, 3) has colors
    of the labels in [0, 1], by default those of `label_colors`.

    Returns:
        The server; `get_port()` tells the port, `sleep_forever()` waits for Ctrl-C, `stop()` ends it.
    """
    viser = package("viser", "scenes")
    view, names = view_of_cloud(cloud, names=names)
    center = (view.points.min(axis=0) + view.points.max(axis=0)) / 2
    # Centered first: float32 is too coarse for coordinates of maps.
    points = np.ascontiguousarray(view.points - center, dtype=np.float32)
    colors = _colorings(view, names, points[:, 2], palette)
    radius = max(float(np.linalg.norm(np.ptp(points, axis=0))) / 2, 1e-6)
    # About the distance between points if they filled the three faces of the bounding box.
    size = float(np.clip(1.2 * radius / np.sqrt(len(points)), radius / 5000, radius / 100))

    server = viser.ViserServer(host=host, port=port, label=view.title or "scene", verbose=False)
    shown = server.scene.add_point_cloud("/scene", points, next(iter(colors.values())), point_size=size)
    server.initial_camera.position = (1.2 * radius, 1.2 * radius, 0.9 * radius)
    server.initial_camera.look_at = (0.0, 0.0, 0.0)
    server.gui.add_markdown(f"{len(points):,} points")
    coloring = server.gui.add_dropdown("Color", tuple(colors))
    scale = server.gui.add_slider("Point size", min=0.2, max=5.0, step=0.1, initial_value=1.0)
    present = [] if view.labels is None else np.unique(view.labels).tolist()
    boxes = {}
    # A single label is nothing to choose from.
    for number in present if len(present) > 1 else []:
        boxes[number] = server.gui.add_checkbox(names[number], initial_value=True)

    def update(_: Any = None) -> None:
        visible = np.ones(len(points), dtype=bool)
        hidden = [number for number, box in boxes.items() if not box.value]
        if hidden and view.labels is not None:
            visible = ~np.isin(view.labels, hidden)
        # Hidden points are taken out of the cloud, since points have no visibility of their own.
        shown.points = points[visible]
        shown.colors = colors[coloring.value][visible]

    for control in (coloring, *boxes.values()):
        control.on_update(update)
    scale.on_update(lambda _: setattr(shown, "point_size", size * scale.value))
    return server


def _colorings(
    view: CloudView, names: Sequence[str], heights: np.ndarray, palette: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Return the ways to color a view, each (points, 3) in bytes; the first is shown at first."""
    colorings = {}
    if view.colors is not None:
        colorings["color"] = view.colors
    if view.labels is not None:
        colors = label_colors(len(names)) if palette is None else palette
        colorings["label"] = colors[view.labels]
    if view.values is not None:
        colorings["intensity"] = height_colors(view.values, float(view.values.min()), float(view.values.max()))
    colorings["height"] = height_colors(heights, float(heights.min()), float(heights.max()))
    return {name: np.rint(255 * values).astype(np.uint8) for name, values in colorings.items()}
