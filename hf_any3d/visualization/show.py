"""Show files, rows of datasets and what a model does with a cloud: as a page, as a picture, or served in 3D.

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
import torch

from hf_any3d.data.inputs import to_cloud
from hf_any3d.modeling.any2point import Any2PointModel
from hf_any3d.modeling.any2point.virtual_projection import project
from hf_any3d.modeling.layers.modes import evaluation_mode
from hf_any3d.modeling.point_ops.geometry import Geometry, normalize_centers
from hf_any3d.utils.atomic_files import atomic_write, write_text
from hf_any3d.visualization.viewer import CloudView, height_colors, label_colors, viewer_page

METHODS = ("auto", "scikit-learn", "openTSNE")


def project_features(
    features: np.ndarray,
    *,
    perplexity: float = 25.0,
    metric: str = "cosine",
    seed: int = 42,
    method: str = "auto",
) -> np.ndarray:
    """Embed features in a plane by t-SNE.

    Near neighbors stay near; distances between groups and sizes of groups have no meaning.

    Args:
        features: (clouds, width).
        perplexity: Effective number of neighbors of a cloud.
        metric: Metric of features: "cosine", "euclidean" …
        seed: Random seed.
        method: "scikit-learn", "openTSNE", faster for many thousands, or "auto" for the latter if installed.

    Returns:
        (clouds, 2) float32.

    Raises:
        ValueError: The features are no such array or not finite, or too few for the perplexity.
        ImportError: The library is missing.

    Source: van der Maaten and Hinton, Visualizing Data using t-SNE.
    """
    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 2 or not np.isfinite(features).all():
        raise ValueError(f"features have shape {features.shape}; expected finite numbers (clouds, width)")
    if not 0 < perplexity < len(features):
        raise ValueError(f"perplexity: {perplexity}; expected more than 0 and less than {len(features)}, the clouds")
    if method not in METHODS:
        raise ValueError(f"method: {method!r}; expected one of {', '.join(METHODS)}")
    if method == "auto":
        method = "openTSNE" if find_spec("openTSNE") else "scikit-learn"
    try:
        if method == "openTSNE":
            from openTSNE import TSNE  # pyright: ignore[reportMissingImports] optional
        else:
            from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError(f"t-SNE needs {method}: pip install 'hf-any3d[visuals]'") from error
    settings = {"perplexity": perplexity, "metric": metric, "random_state": seed}
    if method == "openTSNE":
        return np.asarray(TSNE(**settings).fit(features), dtype=np.float32)
    # Principal components preserve more of the global structure than a random start.
    return TSNE(init="pca", **settings).fit_transform(features).astype(np.float32)


def same_class_share(features: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of clouds whose nearest neighbor, by cosine of the features, has the same class.

    It measures the features themselves, without the distortion of a map.

    Args:
        features: (clouds, width), at least two.
        labels: (clouds,) class numbers.
    """
    unit = np.asarray(features, dtype=np.float64)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    labels, hits = np.asarray(labels), 0
    # A matrix of all pairs would not fit into memory for large datasets.
    for start in range(0, len(unit), 1024):
        rows = np.arange(start, min(start + 1024, len(unit)))
        similarity = unit[rows] @ unit.T  # (rows, clouds)
        # A cloud is not its own neighbor.
        similarity[np.arange(len(rows)), rows] = -np.inf
        hits += int((labels[similarity.argmax(axis=1)] == labels[rows]).sum())
    return hits / len(unit)


def write_feature_map(
    path: str | os.PathLike,
    places: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    *,
    texts: Sequence[str] | None = None,
    heading: str = "",
) -> Path:
    """Write a map, colored by class.

    Args:
        path: File to write, atomically: `.png` for a picture, `.html` for a page where classes can be hidden and
            clouds show their names.
        places: (clouds, 2), the result of `project_features`.
        labels: (clouds,) class numbers from 0.
        names: Names of the classes; those that occur are listed.
        texts: Name of each cloud, for pages.
        heading: A line above the map.

    Raises:
        ValueError: Shapes do not fit, a label has no name, or the path has another suffix.
        ImportError: matplotlib is missing, for `.png`.
    """
    path, places, labels = Path(path), np.asarray(places, dtype=np.float64), np.asarray(labels)
    if places.ndim != 2 or places.shape[1] != 2 or labels.shape != places.shape[:1] or not len(places):
        raise ValueError(f"places have shape {places.shape}, labels {labels.shape}; expected (clouds, 2), (clouds,)")
    if labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}; there are {len(names)} names")
    if texts is not None and len(texts) != len(places):
        raise ValueError(f"texts: {len(texts)} for {len(places)} clouds; expected one for each")
    if path.suffix.lower() == ".html":
        return write_text(path, feature_map_page(places, labels, names, texts or (), heading))
    if path.suffix.lower() == ".png":
        return _plot(path, places, labels, names, heading)
    raise ValueError(f"{path}: file type {path.suffix!r}; expected one of .html, .png")


def feature_map_page(
    places: np.ndarray, labels: np.ndarray, names: Sequence[str], texts: Sequence[str], heading: str
) -> str:
    """Return the text of a page with a dot for each cloud, colored by class; for arguments see `write_feature_map`.

    A click on a class hides it, hovering over a dot shows its class and name, the wheel zooms and dragging moves the
    map. The page is self-contained.
    """
    places = np.asarray(places, dtype=np.float64)
    view = CloudView(places, labels=labels, texts=texts or None)
    return viewer_page([view], names=names, label_name="class", title=heading or "features")


def _plot(path: Path, places: np.ndarray, labels: np.ndarray, names: Sequence[str], heading: str) -> Path:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing a map needs matplotlib: pip install 'hf-any3d[visuals]'") from error
    figure = Figure(figsize=(8.5, 6.5), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    palette, present = label_colors(len(names)), np.unique(labels)
    size = float(np.clip(9000 / len(places), 4, 40))
    for number in present:
        # With many classes hues are similar, so marker shapes alternate too.
        marker = "osD^v"[number % 5]
        rows = labels == number
        axes.scatter(*places[rows].T, s=size, color=palette[number], marker=marker, linewidths=0, label=names[number])
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#cccccc")
    if heading:
        axes.set_title(heading, fontsize=11)
    columns = 1 if len(present) <= 25 else 2
    figure.legend(loc="outside right center", ncols=columns, fontsize=9, frameon=False, markerscale=1.3)
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, format="png")
    return path


MESH_POINTS = 20_000
"""Points that are sampled on the surface of a mesh to show it."""
# Percentiles of the darkest and brightest intensity that are told apart.
_INTENSITIES = (1, 99)
CLOUDS_OF_A_GRID = 60
"""Rows of a dataset that are shown by default."""


def write_views(path: str | os.PathLike, clouds: Sequence[CloudView], **settings: Any) -> Path:
    """Write clouds as a page or as a picture.

    Args:
        path: File to write, atomically: `.html` for a self-contained page, `.png` for a picture.
        clouds: The clouds.
        **settings: Arguments that `viewer_page` and `plot_views` share: `title`, `note`, `names`, `label_name`,
            `value_name`, `categories`, `legend`, `columns`, `rows_share_frame`, `up_axis`.

    Raises:
        ValueError: The path has another suffix, or the clouds cannot be drawn.
        ImportError: matplotlib is missing, for `.png`.
    """
    path = Path(path)
    if path.suffix.lower() == ".html":
        return write_text(path, viewer_page(clouds, **settings))
    if path.suffix.lower() == ".png":
        from hf_any3d.visualization.figures import plot_views

        return plot_views(clouds, path, **settings)
    raise ValueError(f"{path}: file type {path.suffix!r}; expected one of .html, .png")


def view_of_cloud(cloud: Any, *, title: str = "", names: Sequence[str] | None = None) -> tuple[CloudView, list[str]]:
    """Return how a cloud or mesh is shown, and the names of its labels.

    Args:
        cloud: A path, or anything else that pipelines accept.
        title: Title; by default the name of the file.
        names: Names of labels; by default their numbers.

    Returns:
        The view, with its extents along x, y and z and in the units of the file, with colors and labels where the
        cloud has them, intensities as values, and as many names as there are labels. Labels that are all equal are
        named, not shown. On meshes, 20,000 points are sampled.

    Raises:
        ValueError: It cannot be read, or a label has no name.
    """
    if isinstance(cloud, (str, os.PathLike)) and not title:
        title = Path(cloud).name
    data = to_cloud(cloud)
    note = f"{len(data):,} points"
    extents = (data.points.max(axis=0) - data.points.min(axis=0)).tolist()
    if data.is_mesh and data.faces is not None:
        note += f", {len(data.faces):,} faces"
        data = data.sample_surface(MESH_POINTS, np.random.default_rng(0))
    note += f" · extent {' × '.join(f'{extent:.3g}' for extent in extents)}"
    labels = data.labels
    # One label on all points tells no more than a line of text, and would hide their colors.
    if labels is not None and (labels == labels[0]).all():
        note += f" · all with label {labels[0] if names is None or labels[0] < 0 else names[labels[0]]}"
        labels, names = None, []
    if labels is not None and labels.min() < 0:  # points without a label
        labels, names = labels + 1, ["no label", *(names or map(str, range(int(labels.max()) + 1)))]
    if labels is not None and names is None:
        names = [str(number) for number in range(int(labels.max()) + 1)]
    # Some reflectors are so bright that all else would be dark.
    values = None if data.intensity is None else data.intensity.clip(*np.percentile(data.intensity, _INTENSITIES))
    view = CloudView(data.points, data.colors, labels, values, title, note, up_axis=data.up_axis)
    return view, list(names or ())


def views_of_rows(
    rows: Any, most: int = CLOUDS_OF_A_GRID, predictions: Sequence[str] | None = None
) -> tuple[list[CloudView], dict[str, Any]]:
    """Return how the rows of a dataset are shown in a grid, and the settings for `write_views`.

    Args:
        rows: A split of `load_point_dataset`, with `points` and perhaps `colors`, `label` (of the cloud), `labels`
            (of its points) and `name`.
        most: Number of rows; they are evenly spread over the split.
        predictions: Name of the predicted class of each row of the split; right and wrong ones are marked.

    Raises:
        ValueError: There are no rows, another number of predictions, or numbers instead of names.
    """
    if not len(rows) or most < 1:
        raise ValueError(f"there are {len(rows)} rows, of which {most} are to be shown; expected at least one")
    if predictions is not None and len(predictions) != len(rows):
        raise ValueError(f"predictions: {len(predictions)} for {len(rows)} rows; expected one for each")
    if numbers := [one for one in predictions or () if not isinstance(one, str)]:
        raise ValueError(f"predictions has {numbers[0]!r}; expected names of classes")
    classes = _names_of(rows, "label")
    names = _names_of(rows, "labels")
    # Spread over the dataset, whose rows are often sorted by class.
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)).tolist()
    views = []
    for number in chosen:
        row = rows[number]
        keys = ("points", "colors", "faces", "face_colors", "intensity")
        cloud = {key: row[key] for key in keys if row.get(key) is not None}
        view, _ = view_of_cloud(cloud, title=str(row.get("name") or f"row {number}"))
        view.labels = None if row.get("labels") is None else np.asarray(row["labels"])
        view.category = int(row["label"]) if classes else None
        true = classes[view.category] if view.category is not None else ""
        view.note = true
        if predictions is not None:
            view.status = "right" if predictions[number] == true else "wrong"
            view.note = true if view.status == "right" else f"{true} → {predictions[number]}"
        views.append(view)
    # The page has one legend for all its clouds.
    if any(view.labels is None or view.labels.min() < 0 for view in views):
        for view in views:
            view.labels = None
    elif not names:
        names = [str(number) for number in range(max(int(view.labels.max()) for view in views) + 1)]  # pyright: ignore
    note = f"{len(views):,} of {len(rows):,} clouds" if len(views) < len(rows) else f"{len(rows):,} clouds"
    settings: dict[str, Any] = {"categories": classes, "names": names, "note": note}
    if any(view.values is not None for view in views):
        settings["value_name"] = "intensity"
    return views, settings


def _names_of(rows: Any, column: str) -> list[str]:
    feature = getattr(rows, "features", {}).get(column)
    feature = getattr(feature, "feature", feature)
    return list(getattr(feature, "names", ()) or ())


@torch.no_grad()
def views_of_cells(model: Any, points: torch.Tensor) -> tuple[list[CloudView], dict[str, Any]]:
    """Show the virtual projection of an Any2Point model and the cells within which its adapters attend.

    Args:
        model: An Any2Point model, with or without an adapter around it.
        points: (points, channels), input of the model.

    Returns:
        For each view, the cloud with every point colored by the cell of its nearest token, and the tokens at their
        places in the view; and the settings for `write_views`.

    Raises:
        ValueError: The model has no virtual projection.

    Source: Any2Point (arXiv 2404.07989), Sec. 3.2 and 3.3.
    """
    backbone = _backbone(model)
    config = backbone.config
    with evaluation_mode(backbone):
        tokens = backbone.point_tokenizer(points[None].to(backbone.device))
    # As in the model's forward pass.
    centers = normalize_centers(tokens.centers) if config.normalize_centers else tokens.centers
    projection = project(centers, backbone.family.positions_of(backbone.encoder), config)
    geometry = Geometry(centers.float(), projection.view_positions, projection.extent, projection.cell_size)
    cells = geometry.view_cells().row[0].cpu().numpy()  # (views, tokens)
    places = projection.view_positions[0].float().cpu().numpy()  # (views, tokens, 1 or 2)
    xyz, nearest = _nearest_token(points, tokens.centers[0])
    views, most = [], 0
    for number, (place, cell) in enumerate(zip(places, cells, strict=True), 1):
        # Cells without tokens have numbers too; drawn ones are counted without gaps.
        cell = np.unique(cell, return_inverse=True)[1]
        most = max(most, int(cell.max()) + 1)
        across = place[:, 0]
        # On a line, tokens are drawn on rising steps, so that those at one place stay visible.
        up = -place[:, 1] if place.shape[1] == 2 else np.linspace(0, float(np.ptp(across)) / 3, len(across))
        kind, count = "plane" if place.shape[1] == 2 else "line", f"{cell.max() + 1} cells, {len(cell)} tokens"
        views.append(CloudView(xyz, labels=cell[nearest], title=f"view {number}: cells", note=count))
        views.append(CloudView(np.stack([across, up], axis=1), labels=cell, title=f"view {number}: {kind}"))
    names = [f"cell {number}" for number in range(1, most + 1)]
    return views, {"names": names, "label_name": "cell", "columns": 4, "title": "cells of the virtual projection"}


@torch.no_grad()
def views_of_attention(model: Any, points: torch.Tensor) -> tuple[list[CloudView], dict[str, Any]]:
    """Show how much each layer's class token attends to the parts of a cloud, as the mean over the heads.

    Args:
        model: An Any2Point model with eager attention: `from_pretrained(…, attn_implementation="eager")`.
        points: (points, channels), input of the model.

    Returns:
        For each layer, the cloud with every point colored by the weight of its nearest token, relative to a uniform
        one; and the settings for `write_views`.

    Raises:
        ValueError: The model has no virtual projection, or does not return attention weights.
    """
    backbone = _backbone(model)
    with evaluation_mode(backbone):
        output = backbone(points[None].to(backbone.device), output_attentions=True)
    xyz, nearest = _nearest_token(points, output.centers[0])
    count, views = output.centers.shape[1], []
    for number, weights in enumerate(output.attentions, 1):  # (batch, heads, 1 + tokens, keys)
        # Row 0 is that of the class token, and the last keys are the patches.
        weight = weights[0].float().mean(dim=0)[0, -count:]
        # In multiples of equal attention to all tokens, so that models with other numbers of tokens compare.
        views.append(CloudView(xyz, values=(weight * count).cpu().numpy()[nearest], title=f"layer {number}"))
    return views, {"value_name": "attention", "columns": 4, "title": "attention of the class token"}


def _backbone(model: Any) -> Any:
    """Return the part of an Any2Point model that has tokenizer and encoder."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    backbone = next((part for part in model.modules() if isinstance(part, Any2PointModel)), None)
    if backbone is None:
        raise ValueError(f"model: {type(model).__name__} has no virtual projection; expected an Any2Point model")
    return backbone


def _nearest_token(points: torch.Tensor, centers: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates of points (points, 3), and the number of the nearest center of each, (points,)."""
    xyz = points[:, :3].float().cpu()
    return xyz.numpy(), torch.cdist(xyz, centers.float().cpu()).argmin(dim=1).numpy()


def serve_scene(cloud: Any, *, host: str = "127.0.0.1", port: int = 8080, names: Sequence[str] | None = None) -> Any:
    """Serve a cloud of millions of points in 3D, drawn by the graphics card of the browser's machine.

    The page comes from the package viser and needs no network. All points are sent once; nothing is thinned out.

    Args:
        cloud: A path, or anything else that pipelines accept.
        host: Address to listen on; 0.0.0.0 admits other machines.
        port: Port to listen on; the next free one if it is taken.
        names: Names of labels; by default their numbers.

    Returns:
        The server; `get_port()` tells the port, `sleep_forever()` waits for Ctrl-C, `stop()` ends it.

    Raises:
        ImportError: viser is missing.
        ValueError: The cloud cannot be read.
    """
    try:
        import viser  # pyright: ignore[reportMissingImports] optional
    except ImportError as error:
        raise ImportError("serving large scenes needs viser: pip install 'hf-any3d[scenes]'") from error
    view, names = view_of_cloud(cloud, names=names)
    center = (view.points.min(axis=0) + view.points.max(axis=0)) / 2
    # Centered first: float32 is too coarse for coordinates of maps.
    points = np.ascontiguousarray(view.points - center, dtype=np.float32)
    heights = points[:, 2]
    colorings = {} if view.colors is None else {"color": view.colors}
    if view.labels is not None:
        colorings["label"] = label_colors(len(names))[view.labels]
    if view.values is not None:
        colorings["intensity"] = height_colors(view.values, float(view.values.min()), float(view.values.max()))
    colorings["height"] = height_colors(heights, float(heights.min()), float(heights.max()))
    colors = {name: np.rint(255 * values).astype(np.uint8) for name, values in colorings.items()}
    radius = max(float(np.linalg.norm(np.ptp(points, axis=0))) / 2, 1e-6)
    # About the distance between points if they filled the three faces of the bounding box.
    size = float(np.clip(1.2 * radius / np.sqrt(len(points)), radius / 5000, radius / 100))

    server = viser.ViserServer(host=host, port=port, label=view.title or "scene", verbose=False)
    shown = server.scene.add_point_cloud("/scene", points, next(iter(colors.values())), point_size=size)
    server.initial_camera.position = (1.2 * radius, 1.2 * radius, 0.9 * radius)
    server.initial_camera.look_at = (0.0, 0.0, 0.0)
    server.gui.add_markdown(f"{len(points):,} points")
    choice = server.gui.add_dropdown("Color", tuple(colors))
    wide = server.gui.add_slider("Point size", min=0.2, max=5.0, step=0.1, initial_value=1.0)
    present = [] if view.labels is None else np.unique(view.labels).tolist()
    boxes = {}
    for number in present if len(present) > 1 else []:
        boxes[number] = server.gui.add_checkbox(names[number], initial_value=True)

    def update(_: Any = None) -> None:
        visible = np.ones(len(points), dtype=bool)
        hidden = [number for number, box in boxes.items() if not box.value]
        if hidden and view.labels is not None:
            visible = ~np.isin(view.labels, hidden)
        shown.points, shown.colors = points[visible], colors[choice.value][visible]

    def resize(_: Any = None) -> None:
        shown.point_size = size * wide.value

    for control in (choice, *boxes.values()):
        control.on_update(update)
    wide.on_update(resize)
    return server
