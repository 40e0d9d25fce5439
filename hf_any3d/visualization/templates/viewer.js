"use strict";
const data = JSON.parse(document.getElementById("data").textContent), $ = s => document.querySelector(s);
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer;
const points = new Int16Array(bytes(data.points)), unit = 1 / 32767, count = points.length / 3;
const panels = data.panels, rgb = hex => { const n = parseInt(hex.slice(1), 16); return 0xff000000 | (n & 255) << 16 | n & 0xff00 | n >> 16; };
const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const ramp = Uint32Array.from({ length: 256 }, (_, i) => {
  const at = i / 255 * 4, k = Math.min(3, Math.floor(at)), mix = c => Math.round(VIRIDIS[k][c] + (at - k) * (VIRIDIS[k + 1][c] - VIRIDIS[k][c]));
  return 0xff000000 | mix(2) << 16 | mix(1) << 8 | mix(0);
});
const flat = panels.every(panel => panel.flat), hidden = new Set(), boxes = data.boxes, outBoxes = new Set();
const view = { turn: 0.7, tilt: 0.35, zoom: 1, x: 0, y: 0 }, start = { ...view };
// What is drawn around the middle of the frame, `span` times as large; the whole cloud unless a page moves it.
const focus = { x: 0, y: 0, z: 0, span: 1 };
let least = boxes ? boxes.threshold : 0, recount = () => {};
// A box is its class, score and corners.
const isShown = ([label, score]) => !outBoxes.has(label) && (score === null || score >= least);
let coloring, size = 1, turning = false, settled = true, sharpen, over = null;

// Colors of all points: by label, of the file, by a value, or by height within the frame of a row.
function paintOf(how) {
  const colors = new Uint32Array(count);
  if (how.kind === "labels") {
    const labels = how.labels = new Uint16Array(bytes(how.values)), palette = how.colors.map(rgb);
    for (let i = 0; i < count; i++) colors[i] = palette[labels[i]];
  } else if (how.kind === "colors") {
    const raw = new Uint8Array(bytes(how.values));
    for (let i = 0; i < count; i++) colors[i] = 0xff000000 | raw[3 * i + 2] << 16 | raw[3 * i + 1] << 8 | raw[3 * i];
  } else if (how.kind === "values") {
    const raw = how.raw = new Uint8Array(bytes(how.values));
    for (let i = 0; i < count; i++) colors[i] = ramp[raw[i]];
  } else for (const panel of panels) for (let i = panel.start; i < panel.start + panel.count; i++)
    colors[i] = ramp[Math.max(0, Math.min(255, Math.round(255 * (points[3 * i + 1] * unit - panel.low) / (panel.high - panel.low || 1))))];
  return colors;
}

// Half widths of the rows of a mark: disc, square, diamond, triangle up, triangle down.
const MARKS = [
  (dy, r) => Math.sqrt(Math.max(0, r * r - dy * dy)), (dy, r) => 0.86 * r - Math.max(0, Math.abs(dy) - 0.86 * r) * 99,
  (dy, r) => 1.15 * r - Math.abs(dy), (dy, r) => 0.58 * (dy + r), (dy, r) => 0.58 * (r - dy)];
const SHAPES = ['<circle cx="7" cy="7" r="6"/>', '<rect x="1.5" y="1.5" width="11" height="11"/>', '<path d="M7 0l7 7-7 7-7-7z"/>',
  '<path d="M7 1l6.5 12H.5z"/>', '<path d="M7 13L.5 1h13z"/>', '<path fill-rule="evenodd" d="M1 1h12v12H1zM3.5 3.5v7h7v-7z"/>'];

function render(panel) {
  const canvas = panel.canvas, wide = canvas.clientWidth, high = canvas.clientHeight;
  if (!wide || !high) return;
  const own = Math.min(devicePixelRatio || 1, 2), total = panel.list ? panel.list.length : panel.count, dense = settled && wide * high < 1.6e6 && total < 1e5 ? 2 : own;
  const w = Math.round(wide * dense), h = Math.round(high * dense), pen = canvas.getContext("2d");
  if (canvas.width !== w || canvas.height !== h || !panel.image) {
    canvas.width = w; canvas.height = h;
    panel.image = pen.createImageData(w, h);
    panel.depth = new Float32Array(w * h); panel.ids = new Int32Array(w * h);
  }
  const out = new Uint32Array(panel.image.data.buffer), { depth, ids } = panel, colors = coloring.paint, labels = coloring.labels;
  out.fill(0); ids.fill(-1); depth.fill(-9);
  const a = Math.cos(view.turn), b = Math.sin(view.turn), c = Math.cos(view.tilt), d = Math.sin(view.tilt);
  const [side, up] = panel.fit, tall = panel.flat ? up : side * Math.sin(start.tilt) + up * Math.cos(start.tilt);
  // Large enough to fill the frame from every side, within bounds for what is flat.
  const scale = 0.45 * view.zoom * Math.min(w / Math.max(side, 0.2), h / Math.max(tall, 0.2)), x0 = w / 2 + view.x * dense, y0 = h / 2 + view.y * dense, marked = panel.flat && labels;
  const near = panel.flat ? 1 : Math.min(4.5 * dense, Math.max(0.55 * dense, 1.4 * scale / Math.sqrt(total)));
  const base = panel.flat ? dense * Math.max(2.5, Math.min(6, 90 / Math.sqrt(panel.count))) * size : near * size;
  // Of large clouds a part is drawn while they move. A page may have listed the points that are near.
  const { list } = panel, stride = settled ? 1 : Math.ceil(total / 60000), { span } = focus;
  for (let n = 0; n < total; n += stride) {
    const i = list ? list[n] : panel.start + n;
    if (labels && hidden.size && hidden.has(labels[i])) continue;
    const k = 3 * i, x = (points[k] * unit - focus.x) * span, y = (points[k + 1] * unit - focus.y) * span, z = (points[k + 2] * unit - focus.z) * span;
    let px, py, deep, r = base;
    if (panel.flat) { px = x0 + scale * x; py = y0 - scale * y; deep = 0; }
    else {
      deep = (b * x + a * z) * c + d * y;
      const closer = 6 / (6 - deep);
      px = x0 + scale * closer * (a * x - b * z); py = y0 - scale * closer * (c * y - d * (b * x + a * z)); r *= closer;
    }
    if (px < -r || py < -r || px > w + r || py > h + r) continue;
    const mark = marked ? MARKS[labels[i] % 5] : MARKS[0], color = colors[i];
    for (let row = Math.max(0, Math.ceil(py - 1.2 * r)); row <= Math.min(h - 1, py + 1.2 * r); row++) {
      const half = mark(row - py, r);
      if (half < 0) continue;
      for (let at = row * w + Math.max(0, Math.ceil(px - half)), end = row * w + Math.min(w - 1, Math.floor(px + half)); at <= end; at++)
        if (deep >= depth[at]) { depth[at] = deep; out[at] = color; ids[at] = i; }
    }
    if (r < 0.75) { // never lose a point between two pixels
      const at = Math.round(py) * w + Math.round(px);
      if (at >= 0 && at < out.length && deep >= depth[at]) { depth[at] = deep; out[at] = color; ids[at] = i; }
    }
  }
  if (!panel.flat) shade(out, depth, w, h, Math.max(1, Math.round(dense)));
  const project = (x, y, z) => {
    const deep = (b * x + a * z) * c + d * y, closer = 6 / (6 - deep);
    return [x0 + scale * closer * (a * x - b * z), y0 - scale * closer * (c * y - d * (b * x + a * z)), deep];
  };
  if (panel.boxes) wires(panel, out, depth, ids, w, h, Math.max(2, Math.round(1.5 * dense)), project);
  pen.putImageData(panel.image, 0, 0);
  panel.over?.(pen, project, dense);
}

// Darken what nearer points cover, so that shapes stand out without light or normals (eye-dome lighting).
function shade(out, depth, w, h, step) {
  for (let y = 0, at = 0; y < h; y++) for (let x = 0; x < w; x++, at++) {
    if (!out[at]) continue;
    const own = depth[at];
    let sum = 0;
    if (x >= step) sum += Math.max(0, depth[at - step] - own);
    if (x < w - step) sum += Math.max(0, depth[at + step] - own);
    if (y >= step) sum += Math.max(0, depth[at - step * w] - own);
    if (y < h - step) sum += Math.max(0, depth[at + step * w] - own);
    const light = 0.45 + 0.55 * Math.exp(-3 * Math.min(sum, 2)), color = out[at];
    out[at] = 0xff000000 | (color >> 16 & 255) * light << 16 | (color >> 8 & 255) * light << 8 | (color & 255) * light;
  }
}

// Draw the edges of boxes, dashed where points cover them. A box is known under the pointer by an id below -1.
function wires(panel, out, depth, ids, w, h, thick, project) {
  panel.boxes.forEach((box, number) => {
    if (!isShown(box)) return;
    const color = rgb(boxes.colors[box[0]]), place = box[2], ends = [];
    for (let k = 0; k < 24; k += 3) ends.push(project(place[k], place[k + 1], place[k + 2]));
    for (const [from, to] of boxes.edges) {
      const [px, py, pd] = ends[from], [qx, qy, qd] = ends[to], steps = Math.ceil(Math.max(Math.abs(qx - px), Math.abs(qy - py), 1));
      if (!(Math.max(pd, qd) < 5.5) || steps > 50000) continue; // behind the eye
      for (let step = 0; step <= steps; step++) {
        const t = step / steps, x = Math.round(px + t * (qx - px)), y = Math.round(py + t * (qy - py)), deep = pd + t * (qd - pd);
        if (x < 0 || y < 0 || x >= w || y >= h) continue;
        if (deep < depth[y * w + x] - 0.02 && step % (8 * thick) > 3 * thick) continue;
        for (let row = y; row < Math.min(h, y + thick); row++) for (let at = row * w + x, end = row * w + Math.min(w, x + thick); at < end; at++) {
          out[at] = color; ids[at] = -2 - number;
        }
      }
    }
  });
}

let asked = 0;
function draw() {
  if (asked) return;
  asked = requestAnimationFrame(() => {
    asked = 0;
    for (const panel of panels) if (panel.seen) render(panel); else panel.stale = true;
  });
}
// Draws coarse pixels while something moves and fine ones afterwards.
function moved() {
  settled = false; draw();
  clearTimeout(sharpen); sharpen = setTimeout(() => { settled = true; draw(); }, 160);
}
const single = panels.length === 1;
const pressed = new Map();
let spread = 0;
function listen(panel) {
  const canvas = panel.canvas, isAlone = () => single || panel.figure.classList.contains("large");
  canvas.onpointerdown = e => { pressed.set(e.pointerId, [e.clientX, e.clientY]); spread = 0; canvas.setPointerCapture(e.pointerId); };
  canvas.onpointerup = canvas.onpointercancel = e => { pressed.delete(e.pointerId); spread = 0; };
  canvas.onpointerleave = () => tip(null);
  canvas.onpointermove = e => {
    const before = pressed.get(e.pointerId);
    if (!before) return point(panel, e);
    const dx = e.clientX - before[0], dy = e.clientY - before[1];
    pressed.set(e.pointerId, [e.clientX, e.clientY]);
    if (pressed.size > 1) {
      const [p, q] = [...pressed.values()], apart = Math.hypot(p[0] - q[0], p[1] - q[1]);
      if (spread) view.zoom *= apart / spread;
      spread = apart;
    } else if (panel.flat || e.shiftKey || e.buttons & 2) { view.x += dx; view.y += dy; }
    else { view.turn += dx / 150; view.tilt = Math.max(-1.5, Math.min(1.5, view.tilt + dy / 150)); }
    moved();
  };
  canvas.oncontextmenu = e => e.preventDefault();
  canvas.onwheel = e => {
    if (!isAlone() && !e.ctrlKey) return; // the wheel scrolls a page of several
    e.preventDefault();
    const by = Math.exp(-e.deltaY / 800), box = canvas.getBoundingClientRect();
    const x = e.clientX - box.left - box.width / 2, y = e.clientY - box.top - box.height / 2;
    view.x = x - by * (x - view.x); view.y = y - by * (y - view.y); view.zoom *= by;
    moved();
  };
  canvas.onkeydown = e => {
    const step = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[e.key];
    if (step) { view.turn += step[0]; view.tilt = Math.max(-1.5, Math.min(1.5, view.tilt + step[1])); }
    else if (e.key === "+" || e.key === "-") view.zoom *= e.key === "+" ? 1.1 : 1 / 1.1;
    else return;
    e.preventDefault(); moved();
  };
}
function point(panel, e) {
  const canvas = panel.canvas, box = canvas.getBoundingClientRect(), dense = canvas.width / box.width;
  const x = Math.round((e.clientX - box.left) * dense), y = Math.round((e.clientY - box.top) * dense), reach = Math.round(5 * dense);
  let best = -1, nearest = Infinity;
  for (let dy = -reach; dy <= reach; dy++) for (let dx = -reach; dx <= reach; dx++) {
    const column = x + dx, row = y + dy, apart = dx * dx + dy * dy;
    if (column < 0 || row < 0 || column >= canvas.width || row >= canvas.height || apart >= nearest || !panel.ids) continue;
    const id = panel.ids[row * canvas.width + column];
    if (id !== -1) { best = id; nearest = apart; }
  }
  if (best === -1) return tip(null);
  const words = [], [label, score] = best < -1 ? panel.boxes[-2 - best] : [];
  if (best < -1) return tip(boxes.names[label] + (score === null ? "" : ` ${(100 * score).toFixed(0)} %`), e);
  if (coloring.labels) words.push(coloring.names[coloring.labels[best]]);
  if (coloring.raw) words.push(number(coloring.low + coloring.raw[best] / 255 * (coloring.high - coloring.low)));
  if (panel.texts) words.push(panel.texts[best - panel.start]);
  tip(words.join(": "), e);
}
function tip(text, e) {
  const box = $("#tip");
  box.style.visibility = text ? "visible" : "hidden";
  if (!text) return;
  box.textContent = text;
  box.style.left = Math.max(4, Math.min(e.clientX + 14, innerWidth - box.offsetWidth - 8)) + "px";
  box.style.top = Math.max(4, Math.min(e.clientY + 14, innerHeight - box.offsetHeight - 8)) + "px";
}
function number(value) {
  const size = Math.abs(value);
  if (size >= 1e9 || value && size < 0.001) return value.toExponential(2);
  return size >= 1000 ? Math.round(value).toLocaleString("en-US") : +value.toPrecision(4) + "";
}
const make = (tag, text, kind) => { const node = document.createElement(tag); if (text) node.textContent = text; if (kind) node.className = kind; return node; };

// The legend lists the labels of points, or the classes of the clouds of a grid.
function legend() {
  const list = $("ul"), keys = $("#keys"), scale = $("#scale"), groups = data.classes;
  list.replaceChildren(); keys.replaceChildren(); scale.replaceChildren();
  const entries = [], isGrid = !!groups, how = coloring;
  if (isGrid) groups.names.forEach((name, k) => {
    const total = panels.filter(panel => panel.class === k).length;
    if (total) entries.push({ k, name, color: groups.colors[k], total, set: outClasses, shape: 0 });
  });
  if (how.kind === "labels") {
    const totals = new Uint32Array(how.names.length);
    how.labels.forEach(label => totals[label]++);
    how.names.forEach((name, k) => totals[k] && entries.push({ k, name, color: how.colors[k], total: totals[k], set: hidden, shape: flat ? k % 5 : 0 }));
  } else if (how.legend) for (const [name, color] of Object.entries(how.legend)) entries.push({ name, color, shape: 0 });
  if (boxes) boxes.names.forEach((name, k) => {
    const own = panels.flatMap(panel => panel.boxes ?? []).filter(box => box[0] === k);
    if (own.length) entries.push({ k, name, color: boxes.colors[k], total: own.length, set: outBoxes, shape: 5, own });
  });
  if (how.kind === "values") {
    const bar = make("i");
    bar.style.background = `linear-gradient(90deg, ${VIRIDIS.map(c => `rgb(${c})`)})`;
    const ends = make("div"); ends.append(make("span", number(how.low)), make("span", number(how.high)));
    scale.append(bar, ends);
  }
  const free = entries.filter(entry => entry.set);
  if (free.length > 1) {
    for (const [text, act] of [["All", () => free.forEach(one => one.set.delete(one.k))], ["None", () => free.forEach(one => one.set.add(one.k))]]) {
      const button = make("button", text); button.onclick = () => { act(); changed(); }; keys.append(button);
    }
    if (free.length > 12) {
      const find = make("input"); find.type = "search"; find.placeholder = "Find a class"; find.setAttribute("aria-label", "Find a class");
      find.oninput = () => [...list.children].forEach(li => li.hidden = !li.textContent.toLowerCase().includes(find.value.toLowerCase()));
      keys.append(find);
    }
  }
  for (const entry of entries) {
    const item = make("li"), button = make("button"), mark = document.createElement("i");
    mark.innerHTML = `<svg viewBox="0 0 14 14">${SHAPES[entry.shape]}</svg>`; // constants only
    mark.firstChild.style.fill = entry.color;
    button.append(mark, make("span", entry.name), make("small", entry.total === undefined ? "" : entry.total.toLocaleString("en")));
    item.append(button); list.append(item); entry.button = button; entry.item = item;
    if (!entry.set) { item.className = "fixed"; continue; }
    button.title = "Click to hide or show; double-click to show only this one";
    button.onclick = () => { entry.set.delete(entry.k) || entry.set.add(entry.k); changed(); };
    button.ondblclick = () => { free.forEach(one => one.set.add(one.k)); entry.set.delete(entry.k); changed(); };
  }
  const changed = () => {
    for (const entry of free) entry.button.setAttribute("aria-pressed", !entry.set.has(entry.k));
    for (const panel of panels) panel.figure.hidden = panel.class !== null && outClasses.has(panel.class);
    for (const panel of panels) panel.figure.style.display = panel.figure.hidden ? "none" : "";
    recount(); draw();
  };
  const thing = how.kind === "labels" ? how.name : "class", many = thing.endsWith("s") ? `${thing}es` : `${thing}s`;
  $("summary").textContent = how.kind === "values" ? how.name : !free.length ? "colors" : `${free.length} ${free.length === 1 ? thing : many}`;
  document.body.classList.toggle("own", how.kind === "colors");
  $("aside").hidden = !entries.length && how.kind !== "values";
  // Classes without a box of this score are left out, and the others tell how many they have.
  recount = () => {
    for (const entry of entries.filter(one => one.own)) {
      const reached = entry.own.filter(([, score]) => score === null || score >= least).length;
      entry.item.hidden = !reached; entry.button.lastChild.textContent = reached;
    }
    const shown = panels.flatMap(panel => panel.boxes ?? []).filter(isShown).length;
    if (boxes && how.kind !== "labels" && how.kind !== "values") $("summary").textContent = `${shown} ${shown === 1 ? "box" : "boxes"}`;
  };
  changed();
}
// Axes change places in a circle, so that no cloud is mirrored; frames and heights of the rows follow.
function turnUp() {
  for (let k = 0; k < 3 * count; k += 3) { const right = points[k]; points[k] = points[k + 1]; points[k + 1] = points[k + 2]; points[k + 2] = right; }
  for (const panel of panels) for (const [, , place] of panel.boxes ?? []) for (let k = 0; k < 24; k += 3) place.splice(k, 3, place[k + 1], place[k + 2], place[k]);
  const width = data.rows ? data.columns : 1;
  for (let first = 0; first < panels.length; first += width) {
    const row = panels.slice(first, first + width);
    let low = 1, high = -1, side = 0;
    const heights = [];
    for (const panel of row) for (let k = 3 * panel.start; k < 3 * (panel.start + panel.count); k += 3) {
      low = Math.min(low, points[k + 1] * unit); high = Math.max(high, points[k + 1] * unit); heights.push(points[k + 1] * unit);
      side = Math.max(side, Math.hypot(points[k], points[k + 2]) * unit);
    }
    const sorted = Float32Array.from(heights).sort(), out = Math.floor(0.01 * (sorted.length - 1));
    for (const panel of row) Object.assign(panel, { low: sorted[out], high: sorted[sorted.length - 1 - out], fit: [side, (high - low) / 2], up: { y: "z", z: "x", x: "y" }[panel.up] });
  }
  for (const how of data.colorings) if (how.kind === "height") how.paint = how === coloring ? paintOf(how) : null;
}
function nameUp() { $("#up").textContent = panels.every(panel => panel.up === panels[0].up) ? `${panels[0].up.toUpperCase()} up` : "Up"; }
const outClasses = new Set();
function choose(k) {
  coloring = data.colorings[k];
  coloring.paint ??= paintOf(coloring);
  hidden.clear(); legend();
}

const main = $("main");
main.className = single ? "one" : data.rows && panels.length <= data.columns ? "line" : "";
if (!single) main.style.gridTemplateColumns = data.rows
  ? `repeat(${data.columns}, minmax(0, 1fr))`
  : `repeat(auto-fill, minmax(max(min(150px, 40%), ${(100 / data.columns).toFixed(3)}% - 10px), 1fr))`;
const watcher = new IntersectionObserver(entries => entries.forEach(entry => {
  const panel = entry.target.panel;
  panel.seen = entry.isIntersecting;
  if (panel.seen) render(panel);
}), { rootMargin: "200px" });
const sizes = new ResizeObserver(draw);
for (const panel of panels) {
  const figure = panel.figure = make("figure"), canvas = panel.canvas = make("canvas");
  canvas.panel = panel; canvas.tabIndex = 0; canvas.setAttribute("role", "img"); canvas.setAttribute("aria-label", panel.title || data.title);
  figure.append(canvas);
  if (panel.title || panel.note) {
    const caption = make("figcaption"), note = make("div", panel.note, panel.status);
    if (data.classes && panel.class !== null) {
      const dot = make("i", "", "dot"); dot.style.background = data.classes.colors[panel.class]; note.prepend(dot);
    }
    const title = make("b"); // long names may break after a separator
    panel.title.split(/(?<=[\/_.-])/).forEach((piece, k) => title.append(...(k ? [make("wbr")] : []), piece));
    caption.append(title); if (panel.note) caption.append(note);
    figure.append(caption);
  }
  const large = make("button", "⤢"); large.setAttribute("aria-label", "Enlarge or shrink");
  large.onclick = () => { document.querySelectorAll(".large").forEach(one => one !== figure && one.classList.remove("large")); figure.classList.toggle("large"); draw(); };
  figure.append(large); main.append(figure); listen(panel); watcher.observe(canvas); sizes.observe(canvas);
}
const ORDERS = {
  [data.order]: () => 0, "lowest score first": panel => panel.score ?? 2, "highest score first": panel => -(panel.score ?? -1),
  "wrong answers first": panel => panel.status === "wrong" ? 0 : panel.status ? 1 : 2 };
function sortBy(name) {
  const key = ORDERS[name], ranked = panels.map((panel, k) => [key(panel), k, panel]).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  for (const [, , panel] of ranked) main.append(panel.figure);
  draw();
}
if (!single && !data.rows && panels.some(panel => panel.score !== null)) {
  const names = Object.keys(ORDERS).filter(name => !name.startsWith("wrong") || panels.some(panel => panel.status));
  for (const name of names) $("#order select").append(new Option(name));
  $("#order").hidden = false; $("#order select").onchange = e => sortBy(e.target.value);
}
addEventListener("keydown", e => e.key === "Escape" && (document.querySelectorAll(".large").forEach(one => one.classList.remove("large")), draw()));
$("h1").textContent = data.title; $("#about").textContent = data.note;
if (self !== top) document.body.classList.add("frame");
const select = $("#paint select");
data.colorings.forEach((how, k) => select.append(new Option(how.name, k)));
$("#paint").hidden = data.colorings.length < 2; $("#paint").style.display = $("#paint").hidden ? "none" : "";
select.onchange = () => choose(+select.value);
$("#size").oninput = e => { size = Math.exp(+e.target.value); moved(); };
if (flat) $("#turn").style.display = $("#up").style.display = "none";
$("#up").onclick = () => { turnUp(); nameUp(); moved(); };
nameUp();
$("#turn").onclick = e => {
  turning = !turning; e.target.setAttribute("aria-pressed", turning);
  let last = performance.now();
  const step = now => { if (!turning) return; view.turn += (now - last) / 2200; last = now; moved(); requestAnimationFrame(step); };
  if (turning) requestAnimationFrame(step);
};
$("#reset").onclick = () => { Object.assign(view, start); moved(); };
$("#theme").onclick = () => {
  const page = document.documentElement, device = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  page.dataset.theme = (page.dataset.theme ?? device) === "dark" ? "light" : "dark";
};
$("#save").onclick = () => { // all visible clouds on one sheet, as they are on the page
  const box = main.getBoundingClientRect(), sheet = document.createElement("canvas"), pen = sheet.getContext("2d"), style = getComputedStyle(document.body);
  const shown = panels.filter(panel => !panel.figure.hidden && panel.image), low = Math.max(...shown.map(panel => panel.figure.getBoundingClientRect().bottom));
  sheet.width = 2 * box.width; sheet.height = 2 * (low - box.top + main.scrollTop);
  pen.scale(2, 2); pen.fillStyle = style.backgroundColor; pen.fillRect(0, 0, sheet.width, sheet.height);
  for (const panel of shown) {
    const place = panel.canvas.getBoundingClientRect(), x = place.left - box.left, y = place.top - box.top + main.scrollTop;
    pen.drawImage(panel.canvas, x, y, place.width, place.height);
    pen.fillStyle = style.color; pen.font = "13px sans-serif"; pen.fillText(panel.title || "", x + 8, y + place.height + 17, place.width - 16);
  }
  const link = make("a"); link.download = "view.png"; link.href = sheet.toDataURL("image/png"); link.click();
};
if (boxes && panels.some(panel => panel.boxes?.some(([, score]) => score !== null))) {
  const slide = $("#scores input"), tell = () => { least = +slide.value; $("#scores output").textContent = least.toFixed(2); recount(); draw(); };
  $("#scores").hidden = false; slide.value = least; slide.oninput = tell; tell();
}
if (innerWidth <= 720) $("details").open = false;
addEventListener("resize", draw);
choose(0);
