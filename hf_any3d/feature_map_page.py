"""A map of features as one HTML page that works without the network."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

from hf_any3d.label_colors import hex_color, label_colors
from hf_any3d.page_parts import PAGE_BEGIN, PAGE_END, script_value

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
const canvas = document.querySelector("canvas"), pen = canvas.getContext("2d"), told = document.querySelector("p");
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
function tell(e) {{
  let best = -1, least = 144;
  labels.forEach((label, i) => {{
    const [x, y] = placeOf(i), d = (x - e.clientX) ** 2 + (y - e.clientY) ** 2;
    if (d < least && !hidden.has(label)) {{ least = d; best = i; }}
  }});
  told.style.visibility = best < 0 ? "hidden" : "visible";
  if (best < 0) return;
  told.textContent = texts.length ? names[labels[best]] + ": " + texts[best] : names[labels[best]];
  told.style.left = Math.min(e.clientX + 12, innerWidth - 320) + "px"; told.style.top = e.clientY + 12 + "px";
}}
document.querySelectorAll("li").forEach(item => item.onclick = () => {{
  const label = +item.dataset.label;
  item.classList.toggle("off", !hidden.delete(label) && !!hidden.add(label));
  draw();
}});
canvas.onpointerdown = e => {{ held = [e.clientX, e.clientY]; canvas.setPointerCapture(e.pointerId); }};
canvas.onpointerup = canvas.onpointercancel = () => held = null;
canvas.onpointermove = e => {{
  if (!held) return tell(e);
  shift = [shift[0] + e.clientX - held[0], shift[1] + e.clientY - held[1]];
  held = [e.clientX, e.clientY];
  draw();
}};
canvas.onwheel = e => {{
  e.preventDefault();
  const by = Math.exp(-e.deltaY / 800), x = (innerWidth - 200) / 2, y = 40 + (innerHeight - 40) / 2;
  // What is under the pointer stays there.
  shift = [e.clientX - x - by * (e.clientX - x - shift[0]), e.clientY - y - by * (e.clientY - y - shift[1])];
  zoom *= by;
  draw();
}};
"""
    + PAGE_END
)


def feature_map_page(
    places: np.ndarray, labels: np.ndarray, names: Sequence[str], texts: Sequence[str], heading: str
) -> str:
    """The text of a page with a dot for each cloud, coloured by class; see `write_feature_map` for the arguments.

    A click on a class hides it, the pointer over a dot tells its class and name, the wheel enlarges and a drag moves.
    Everything lies in the one file; it fetches nothing.
    """
    places = np.asarray(places, dtype=np.float64)
    places = places - (places.max(axis=0) + places.min(axis=0)) / 2
    places = places / max(np.abs(places).max(), np.finfo(np.float32).tiny)
    colors = [hex_color(color) for color in label_colors(len(names))]
    legend = "".join(
        f'<li data-label="{number}"><i style="background:{colors[number]}"></i>{html.escape(names[number])}</li>'
        for number in np.unique(labels)
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
