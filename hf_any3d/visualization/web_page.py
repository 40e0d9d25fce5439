"""Point clouds on one HTML page that needs no network."""

from __future__ import annotations

import base64
import html
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hf_any3d.atomic_files import write_text
from hf_any3d.visualization.label_colors import hex_color, label_colors

# Start and end of pages, for `str.format`: up to the CSS rules, and after the last function of the script.
PAGE_BEGIN = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
"""
PAGE_END = """onresize = draw;
// A frame that is shown after it was created gets its size without an event.
new ResizeObserver(() => requestAnimationFrame(draw)).observe(canvas);
draw();
</script>
</html>
"""


MOST_POINTS = 200_000
"""Points of a page at most: more turn slowly, and a random sample looks the same."""
# Colors from low to high points, for clouds without colors: viridis.
_HEIGHTS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]) / 255

_PAGE = (
    PAGE_BEGIN
    + """  body {{ margin: 0; font: 14px sans-serif; background: #d6dbe3; color: #222; }}
  canvas {{ display: block; width: 100%; touch-action: {touch}; cursor: grab; }}
  ul {{ position: fixed; left: 0; margin: 0; padding: 8px 12px; list-style: none; background: #d6dbe3; }}
  ul {{ {legend_place} }}
  ul:empty {{ display: none; }}
  i {{ display: inline-block; width: 10px; height: 10px; margin-right: 6px; border-radius: 5px; }}
</style>
<ul>{legend}</ul>
<canvas></canvas>
<script>
const decode = text => Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer;
const points = new Float32Array(decode("{points}"));
const labels = new Uint16Array(decode("{labels}"));
const colors = {colors};
const clouds = {clouds}, columns = {columns}, rows = Math.ceil(clouds.length / columns), least = 240, heading = 24;
const canvas = document.querySelector("canvas"), pen = canvas.getContext("2d"), legend = document.querySelector("ul");
let turn = 0.7, tilt = 0.35, zoom = 1, held = null;
function draw() {{
  const dense = devicePixelRatio || 1, bar = clouds.length > 1 ? legend.offsetHeight : 0;
  const h = Math.max(innerHeight - bar, rows > 1 ? rows * least : 0), high = h / rows;
  canvas.style.height = h + "px"; document.body.style.paddingBottom = bar + "px";
  // Read only now, since a scroll bar may take part of the width.
  const w = canvas.clientWidth, wide = w / columns;
  canvas.width = dense * w; canvas.height = dense * h;
  pen.scale(dense, dense);
  pen.font = "13px sans-serif"; pen.textAlign = "center";
  clouds.forEach((cloud, number) => {{
    const left = number % columns * wide, top = Math.floor(number / columns) * high;
    pen.save();
    pen.beginPath(); pen.rect(left, top, wide, high); pen.clip();
    const room = cloud.title ? heading : 0;
    drawCloud(cloud, left + wide / 2, top + room + (high - room) / 2, 0.45 * zoom * Math.min(wide, high - room));
    pen.fillStyle = "#222";
    if (cloud.title) pen.fillText(cloud.title, left + wide / 2, top + 17, wide - 8);
    pen.restore();
  }});
}}
function drawCloud(cloud, x0, y0, scale) {{
  const [a, b, c, d] = [Math.cos(turn), Math.sin(turn), Math.cos(tilt), Math.sin(tilt)];
  const depth = new Float32Array(cloud.count), order = new Uint32Array(cloud.count).map((_, i) => i);
  const size = Math.max(1.5, Math.min(5, 1.4 * scale / Math.sqrt(cloud.count))), from = cloud.start;
  for (let i = 0; i < cloud.count; i++) {{
    const k = 3 * (from + i);
    depth[i] = (b * points[k] + a * points[k + 2]) * c + d * points[k + 1];
  }}
  order.sort((i, j) => depth[i] - depth[j]);
  for (const i of order) {{
    const k = 3 * (from + i), x = points[k], y = points[k + 1], z = points[k + 2];
    const across = a * x - b * z, up = c * y - d * (b * x + a * z);
    pen.fillStyle = colors[labels[from + i]];
    pen.fillRect(x0 + scale * across - size / 2, y0 - scale * up - size / 2, size, size);
  }}
}}
canvas.onpointerdown = e => {{ held = [e.clientX, e.clientY]; canvas.setPointerCapture(e.pointerId); }};
canvas.onpointerup = canvas.onpointercancel = () => held = null;
canvas.onpointermove = e => {{
  if (!held) return;
  turn += (e.clientX - held[0]) / 150;
  tilt = Math.max(-1.5, Math.min(1.5, tilt + (e.clientY - held[1]) / 150));
  held = [e.clientX, e.clientY];
  draw();
}};
canvas.onwheel = e => {{
  // On a page that is longer than the window the wheel scrolls, unless a key is held.
  if (document.documentElement.scrollHeight > innerHeight && !e.ctrlKey) return;
  e.preventDefault(); zoom *= Math.exp(-e.deltaY / 800); draw();
}};
"""
    + PAGE_END
)


def write_point_cloud_page(
    path: str | os.PathLike,
    points: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    *,
    title: str = "point cloud",
    up_axis: str = "y",
) -> Path:
    """Write a page that shows a cloud colored by label and turns it with the mouse or a finger.

    The file is self-contained. Of clouds beyond 200,000 points a random sample is shown.

    Args:
        path: File to write, atomically.
        points: (points, 3).
        labels: (points,) class numbers from 0.
        names: Names of the classes; those that occur are listed.
        title: Title of the page.
        up_axis: "x", "y" or "z".

    Raises:
        ValueError: Shapes do not fit, or a label has no name.
    """
    points, labels = np.asarray(points, dtype=np.float64), np.asarray(labels)
    if points.ndim != 2 or points.shape[1] != 3 or labels.shape != points.shape[:1] or not len(points):
        raise ValueError(f"points have shape {points.shape}, labels {labels.shape}; expected (points, 3), (points,)")
    if labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}; there are {len(names)} names")
    palette = label_colors(len(names))
    legend = {names[number]: palette[number].tolist() for number in map(int, np.unique(labels))}
    return write_text(path, _page([(points, labels)], palette, title=title, legend=legend, up_axis=up_axis))


def write_clouds_page(
    path: str | os.PathLike,
    clouds: Sequence[np.ndarray],
    *,
    titles: Sequence[str] | None = None,
    columns: int = 3,
    title: str = "point clouds",
    legend: Mapping[str, Sequence[float]] | None = None,
    up_axis: str = "y",
) -> Path:
    """Write a page that shows clouds in a grid; turning one turns all.

    The clouds of a row are drawn in one frame, so that their sizes and places can be compared.

    Args:
        path: File to write, atomically.
        clouds: Arrays (points, 3 or 6); channels 4 to 6 are colors in [0, 1]. Without them, points are colored by
            height.
        titles: A line above each cloud.
        columns: Clouds per row.
        title: Title of the page.
        legend: Names and their colors, red, green and blue in [0, 1].
        up_axis: "x", "y" or "z".

    Raises:
        ValueError: There is no cloud, one is no (points, 3 or 6) array, or the number of titles differs.
    """
    page = clouds_page(clouds, titles=titles, columns=columns, title=title, legend=legend, up_axis=up_axis)
    return write_text(path, page)


def clouds_page(
    clouds: Sequence[np.ndarray],
    *,
    titles: Sequence[str] | None = None,
    columns: int = 3,
    title: str = "point clouds",
    legend: Mapping[str, Sequence[float]] | None = None,
    up_axis: str = "y",
) -> str:
    """Return the text of the page that `write_clouds_page` writes; arguments and errors are the same."""
    clouds = [np.asarray(cloud, dtype=np.float64) for cloud in clouds]
    if not clouds:
        raise ValueError("clouds is empty; expected at least one array (points, 3)")
    for number, cloud in enumerate(clouds):
        if cloud.ndim != 2 or cloud.shape[1] not in (3, 6) or not len(cloud):
            raise ValueError(f"cloud {number} has shape {cloud.shape}; expected (points, 3 or 6)")
    if titles is not None and len(titles) != len(clouds):
        raise ValueError(f"titles: {len(titles)} for {len(clouds)} clouds; expected one for each")
    up = "xyz".index(up_axis)
    columns, paints = min(columns, len(clouds)), []
    for number, cloud in enumerate(clouds):
        row = number // columns * columns
        heights = np.concatenate([each[:, up] for each in clouds[row : row + columns]])
        by_height = _height_colors(cloud[:, up], heights.min(), heights.max())
        paints.append(by_height if cloud.shape[1] == 3 else cloud[:, 3:].clip(0, 1))
    # With 32 levels per channel, any number of colors fits into 16-bit labels.
    levels = np.rint(31 * np.concatenate(paints)).astype(np.int64)  # (all points, 3)
    palette, labels = np.unique(levels, axis=0, return_inverse=True)
    labels = np.split(labels.reshape(-1), np.cumsum([len(cloud) for cloud in clouds])[:-1])
    shown = [(cloud[:, :3], numbers) for cloud, numbers in zip(clouds, labels, strict=True)]
    return _page(
        shown, palette / 31, titles=titles, columns=columns, title=title, legend=legend or {}, up_axis=up_axis
    )


def _height_colors(height: np.ndarray, low: float, high: float) -> np.ndarray:
    relative = (height - low) / max(high - low, np.finfo(np.float32).tiny)
    stops = np.linspace(0, 1, len(_HEIGHTS))
    return np.stack([np.interp(relative, stops, channel) for channel in _HEIGHTS.T], axis=1)


def _page(
    clouds: Sequence[tuple[np.ndarray, np.ndarray]],
    palette: np.ndarray,
    *,
    title: str,
    legend: Mapping[str, Sequence[float]],
    up_axis: str,
    titles: Sequence[str] | None = None,
    columns: int = 1,
) -> str:
    """Fill in the page for clouds, each with its points (points, 3) and indices into the palette (points,)."""
    most, generator = MOST_POINTS // len(clouds), np.random.default_rng(0)
    thinned = []
    for points, labels in clouds:
        kept = generator.choice(len(points), most, replace=False) if len(points) > most else ...
        thinned.append((points[kept], labels[kept]))
    order = {"x": (1, 0, 2), "y": (0, 1, 2), "z": (1, 2, 0)}[up_axis]
    shown = []
    for start in range(0, len(thinned), columns):
        row = [points[:, order] for points, _ in thinned[start : start + columns]]
        together = np.concatenate(row)
        center = (together.max(axis=0) + together.min(axis=0)) / 2
        radius = max(np.linalg.norm(together - center, axis=1).max(), np.finfo(np.float32).tiny)
        shown += [(points - center) / radius for points in row]
    starts = np.cumsum([0] + [len(points) for points in shown])
    ranges = [
        {"start": int(start), "count": len(points), "title": titles[number] if titles is not None else ""}
        for number, (start, points) in enumerate(zip(starts, shown, strict=False))
    ]
    return _PAGE.format(
        title=html.escape(title),
        legend="".join(
            f'<li><i style="background:{hex_color(color)}"></i>{html.escape(name)}</li>'
            for name, color in legend.items()
        ),
        points=_base64(np.concatenate(shown), "<f4"),
        labels=_base64(np.concatenate([labels for _, labels in thinned]), "<u2"),
        colors=script_value([hex_color(color) for color in palette]),
        # A list on top of a single cloud, a line below several.
        legend_place="top: 0;" if len(clouds) == 1 else "bottom: 0; right: 0; display: flex; gap: 16px;",
        clouds=script_value(ranges),
        columns=columns,
        touch="none" if len(clouds) <= columns else "pan-y",
    )


def script_value(value: object) -> str:
    """Format a value for a script such that no name or title can end the script."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


def _base64(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode("ascii")
