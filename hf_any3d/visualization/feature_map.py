"""A map of the features of many clouds, with similar ones close together."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from hf_any3d.atomic_files import atomic_write, write_text
from hf_any3d.visualization.label_colors import hex_color, label_colors
from hf_any3d.visualization.web_page import PAGE_BEGIN, PAGE_END, script_value

METHODS = ("auto", "scikit-learn", "openTSNE")
_PAGE = (
    PAGE_BEGIN
    + """  body {{ margin: 0; font: 14px sans-serif; background: #fff; color: #222; overflow: hidden; }}
  canvas {{ display: block; touch-action: none; cursor: grab; }}
  h1 {{ position: fixed; top: 0; left: 0; right: 200px; margin: 12px; font-size: 15px; font-weight: normal; }}
  ul {{ position: fixed; top: 0; right: 0; bottom: 0; width: 170px; margin: 0; padding: 12px; list-style: none;
        overflow: auto; background: #ffffffd0; }}
  li {{ padding: 2px; cursor: pointer; user-select: none; }}
  li.off {{ opacity: 0.25; }}
  i {{ display: inline-block; width: 10px; height: 10px; margin-right: 6px; border-radius: 5px; }}
  p {{ position: fixed; margin: 0; padding: 4px 8px; background: #222; color: #fff; border-radius: 4px;
       pointer-events: none; visibility: hidden; }}
</style>
<canvas></canvas>
<h1>{title}</h1>
<ul>{legend}</ul>
<p></p>
<script>
const places = {places};
const labels = {labels};
const texts = {texts};
const names = {names};
const colors = {colors};
const canvas = document.querySelector("canvas"), pen = canvas.getContext("2d"), tip = document.querySelector("p");
const hidden = new Set();
let zoom = 1, shift = [0, 0], held = null;
function placeOf(i) {{
  const w = innerWidth - 200, h = innerHeight - 40, scale = 0.46 * zoom * Math.min(w, h);
  return [w / 2 + shift[0] + scale * places[i][0], 40 + h / 2 + shift[1] - scale * places[i][1]];
}}
function draw() {{
  const dense = devicePixelRatio || 1;
  canvas.style.width = innerWidth + "px"; canvas.style.height = innerHeight + "px";
  canvas.width = dense * innerWidth; canvas.height = dense * innerHeight;
  pen.scale(dense, dense);
  const size = Math.max(2.5, Math.min(6, 90 / Math.sqrt(labels.length)));
  labels.forEach((label, i) => {{
    if (hidden.has(label)) return;
    const [x, y] = placeOf(i);
    pen.fillStyle = colors[label];
    pen.beginPath(); pen.arc(x, y, size, 0, 7); pen.fill();
  }});
}}
function showTip(e) {{
  let best = -1, least = 144;
  labels.forEach((label, i) => {{
    const [x, y] = placeOf(i), d = (x - e.clientX) ** 2 + (y - e.clientY) ** 2;
    if (d < least && !hidden.has(label)) {{ least = d; best = i; }}
  }});
  tip.style.visibility = best < 0 ? "hidden" : "visible";
  if (best < 0) return;
  tip.textContent = texts.length ? names[labels[best]] + ": " + texts[best] : names[labels[best]];
  tip.style.left = Math.min(e.clientX + 12, innerWidth - 320) + "px"; tip.style.top = e.clientY + 12 + "px";
}}
document.querySelectorAll("li").forEach(item => item.onclick = () => {{
  const label = +item.dataset.label;
  item.classList.toggle("off", !hidden.delete(label) && !!hidden.add(label));
  draw();
}});
canvas.onpointerdown = e => {{ held = [e.clientX, e.clientY]; canvas.setPointerCapture(e.pointerId); }};
canvas.onpointerup = canvas.onpointercancel = () => held = null;
canvas.onpointermove = e => {{
  if (!held) return showTip(e);
  shift = [shift[0] + e.clientX - held[0], shift[1] + e.clientY - held[1]];
  held = [e.clientX, e.clientY];
  draw();
}};
canvas.onwheel = e => {{
  e.preventDefault();
  const by = Math.exp(-e.deltaY / 800), x = (innerWidth - 200) / 2, y = 40 + (innerHeight - 40) / 2;
  // Zoom about the pointer.
  shift = [e.clientX - x - by * (e.clientX - x - shift[0]), e.clientY - y - by * (e.clientY - y - shift[1])];
  zoom *= by;
  draw();
}};
"""
    + PAGE_END
)


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
    for start in range(0, len(unit), 1024):
        rows = np.arange(start, min(start + 1024, len(unit)))
        similarity = unit[rows] @ unit.T  # (rows, clouds)
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
    places = places - (places.max(axis=0) + places.min(axis=0)) / 2
    places = places / max(np.abs(places).max(), np.finfo(np.float32).tiny)
    colors = [hex_color(color) for color in label_colors(len(names))]
    legend = "".join(
        f'<li data-label="{number}"><i style="background:{colors[number]}"></i>{html.escape(names[number])}</li>'
        for number in map(int, np.unique(labels))
    )
    return _PAGE.format(
        title=html.escape(heading or "features"),
        legend=legend,
        places=script_value(places.round(4).tolist()),
        labels=script_value(np.asarray(labels).tolist()),
        texts=script_value(list(texts)),
        names=script_value(list(names)),
        colors=script_value(colors),
    )


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
