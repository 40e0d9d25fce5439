"""A labelled cloud as one HTML page that works without the network."""

from __future__ import annotations

import base64
import html
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hf_any3d.label_colors import label_colors

# Beyond this a page turns slowly; a random part shows the same.
MOST_POINTS = 200_000

_PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
  body {{ margin: 0; font: 14px sans-serif; background: #fff; color: #222; }}
  canvas {{ display: block; width: 100vw; height: 100vh; touch-action: none; cursor: grab; }}
  ul {{ position: fixed; top: 0; left: 0; margin: 12px; padding: 0; list-style: none; }}
  i {{ display: inline-block; width: 10px; height: 10px; margin-right: 6px; border-radius: 5px; }}
</style>
<ul>{legend}</ul>
<canvas></canvas>
<script>
const decode = text => Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer;
const points = new Float32Array(decode("{points}"));
const labels = new Uint16Array(decode("{labels}"));
const colors = {colors};
const canvas = document.querySelector("canvas"), pen = canvas.getContext("2d");
let turn = 0.7, tilt = 0.35, zoom = 1, held = null;
function draw() {{
  const w = canvas.width = innerWidth, h = canvas.height = innerHeight, scale = 0.45 * zoom * Math.min(w, h);
  const [a, b, c, d] = [Math.cos(turn), Math.sin(turn), Math.cos(tilt), Math.sin(tilt)];
  const depth = new Float32Array(labels.length), order = new Uint32Array(labels.length).map((_, i) => i);
  for (let i = 0; i < labels.length; i++)
    depth[i] = (b * points[3 * i] + a * points[3 * i + 2]) * c + d * points[3 * i + 1];
  order.sort((i, j) => depth[i] - depth[j]);
  for (const i of order) {{
    const x = points[3 * i], y = points[3 * i + 1], z = points[3 * i + 2];
    const across = a * x - b * z, up = c * y - d * (b * x + a * z);
    pen.fillStyle = colors[labels[i]];
    pen.fillRect(w / 2 + scale * across - 1.5, h / 2 - scale * up - 1.5, 3, 3);
  }}
}}
canvas.onpointerdown = e => {{ held = [e.clientX, e.clientY]; canvas.setPointerCapture(e.pointerId); }};
canvas.onpointerup = () => held = null;
canvas.onpointermove = e => {{
  if (!held) return;
  turn += (e.clientX - held[0]) / 150;
  tilt = Math.max(-1.5, Math.min(1.5, tilt + (e.clientY - held[1]) / 150));
  held = [e.clientX, e.clientY];
  draw();
}};
canvas.onwheel = e => {{ e.preventDefault(); zoom *= Math.exp(-e.deltaY / 800); draw(); }};
onresize = draw;
draw();
</script>
</html>
"""


def write_point_cloud_page(
    path: str | os.PathLike,
    points: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    *,
    title: str = "point cloud",
    up_axis: str = "y",
) -> Path:
    """Write a page that shows a cloud coloured by label, to be turned with the mouse or a finger.

    Everything lies in the one file; it fetches nothing. Of clouds beyond 200,000 points a random part is shown.

    Args:
        path: where to write; the file is complete or not there.
        points: (points, 3).
        labels: (points,) class numbers from 0.
        names: names of the classes; those that occur are listed.
        title: of the page.
        up_axis: "x", "y" or "z".

    Raises:
        ValueError: shapes that do not fit, or a label without a name.
    """
    points, labels = np.asarray(points, dtype=np.float64), np.asarray(labels)
    if points.ndim != 2 or points.shape[1] != 3 or labels.shape != points.shape[:1] or not len(points):
        raise ValueError(f"points have shape {points.shape}, labels {labels.shape}; expected (points, 3), (points,)")
    if labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}; there are {len(names)} names")
    if len(points) > MOST_POINTS:
        kept = np.random.default_rng(0).choice(len(points), MOST_POINTS, replace=False)
        points, labels = points[kept], labels[kept]
    order = {"x": (1, 0, 2), "y": (0, 1, 2), "z": (1, 2, 0)}[up_axis]
    seen = points[:, order] - (points[:, order].max(axis=0) + points[:, order].min(axis=0)) / 2
    seen /= max(np.linalg.norm(seen, axis=1).max(), np.finfo(np.float32).tiny)
    colors = ["#" + "".join(f"{round(255 * float(c)):02x}" for c in color) for color in label_colors(len(names))]
    legend = "".join(
        f'<li><i style="background:{colors[number]}"></i>{html.escape(names[number])}</li>'
        for number in np.unique(labels)
    )
    page = _PAGE.format(
        title=html.escape(title),
        legend=legend,
        points=_encoded(seen, "<f4"),
        labels=_encoded(labels, "<u2"),
        colors=json.dumps(colors),
    )
    path = Path(path)
    temporary = path.with_name(f".{path.name}.unfinished")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _encoded(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=kind).tobytes()).decode("ascii")
