// Asks for the class of one point after another. `data.ask` has the points, the classes and the file that is saved.
const ask = data.ask, panel = panels[0], asked_points = ask.points, classes = ask.classes.map(one => ({ ...one }));
const answers = new Array(asked_points.length).fill(null), SKIPPED = "";
const reach = ask.reach, calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
let current = 0, flight = 0, saved = true;
Object.assign(start, { tilt: 0.6 }); Object.assign(view, start);
panel.fit = [0.85, 0.5];

// Answers outlast a closed tab where the browser stores anything for files.
const memory = `hf-any3d ${ask.tile} ${asked_points.map(one => one.row).join(" ")}`;
function remember() { try { localStorage.setItem(memory, JSON.stringify(answers)); } catch { /* private windows store nothing */ } }
function recall() {
  let known = null;
  try { known = JSON.parse(localStorage.getItem(memory)); } catch { return; }
  if (!Array.isArray(known) || known.length !== answers.length) return;
  known.forEach((name, k) => { answers[k] = typeof name === "string" ? name : null; });
  for (const name of answers) if (name && !classes.some(one => one.name === name)) addClass(name);
  const open = answers.indexOf(null);
  current = open < 0 ? answers.length : open;
}

const placeOf = k => { const at = 3 * asked_points[k].at; return [points[at] * unit, points[at + 1] * unit, points[at + 2] * unit]; };
// Numbers of the points around places, seen from above.
function near(...places) {
  const found = [], square = reach * reach;
  for (let i = 0; i < count; i++) {
    const x = points[3 * i] * unit, z = points[3 * i + 2] * unit;
    for (const [px, , pz] of places) if ((x - px) ** 2 + (z - pz) ** 2 < square) { found.push(i); break; }
  }
  return Int32Array.from(found);
}
// Fly from where the camera is to a point, the higher the longer the way is.
function fly(k) {
  cancelAnimationFrame(flight);
  const [x, y, z] = placeOf(k), from = { ...focus }, far = Math.hypot(x - from.x, y - from.y, z - from.z) / reach, span = 1 / reach;
  const arrive = () => { Object.assign(focus, { x, y, z, span }); panel.list = near([x, y, z]); moved(); };
  if (calm || from.span === 1) return arrive();
  panel.list = near([from.x, from.y, from.z], [x, y, z]);
  const begin = performance.now(), long = Math.min(1200, 350 + 120 * far);
  const step = now => {
    const t = Math.min(1, (now - begin) / long), s = t * t * (3 - 2 * t), high = 1 + Math.min(4, far) * 2 * s * (1 - s);
    Object.assign(focus, { x: from.x + s * (x - from.x), y: from.y + s * (y - from.y), z: from.z + s * (z - from.z), span: span / high });
    if (t === 1) return arrive();
    moved(); flight = requestAnimationFrame(step);
  };
  flight = requestAnimationFrame(step);
}
// The ring around the point that is asked for, dashed where others cover it.
panel.over = (pen, project, dense) => {
  if (current >= answers.length) return;
  const [px, py, pz] = placeOf(current), [x, y, deep] = project((px - focus.x) * focus.span, (py - focus.y) * focus.span, (pz - focus.z) * focus.span);
  const w = panel.canvas.width, at = Math.round(y) * w + Math.round(x), radius = 13 * dense;
  const covered = x >= 0 && y >= 0 && x < w && at < panel.depth.length && panel.depth[at] > deep + 0.03;
  pen.save();
  pen.setLineDash(covered ? [4 * dense, 4 * dense] : []);
  for (const [color, wide] of [["#000", 5], ["#fff", 2.5]]) {
    pen.strokeStyle = color; pen.lineWidth = wide * dense;
    pen.beginPath(); pen.arc(x, y, radius, 0, 2 * Math.PI); pen.stroke();
  }
  pen.restore();
};

function addClass(name) {
  const known = classes.find(one => one.name.toLowerCase() === name.toLowerCase());
  if (known) return known;
  const added = { name, color: ask.colors[classes.length % ask.colors.length] };
  classes.push(added);
  return added;
}
function buttons() {
  $("#classes").replaceChildren(...classes.map((one, k) => {
    const button = make("button"), dot = make("i");
    dot.style.background = one.color;
    button.append(dot, one.name);
    if (k < 9) button.append(make("kbd", String(k + 1)));
    button.setAttribute("aria-pressed", answers[current] === one.name);
    button.onclick = () => answer(one.name);
    return button;
  }));
}
function show(far = true) {
  const total = answers.length, done = answers.filter(name => name !== null).length, named = answers.filter(Boolean).length;
  $("#progress").max = total; $("#progress").value = done;
  const over = current >= total, point = asked_points[current];
  $("#count").textContent = over ? `${named} of ${total} labeled` : `${current + 1} of ${total}`;
  $("#guess").textContent = over ? (named ? "Done: save the answers." : "Nothing is labeled.") : `model: ${point.guess}, ${Math.round(100 * point.score)} %`;
  $("#skip").disabled = over; $("#back").disabled = current === 0; $("#download").disabled = !named;
  $("#download").classList.toggle("ready", over && named > 0);
  buttons();
  if (!over && far) fly(current); else draw();
}
function answer(name) {
  if (current >= answers.length) return;
  answers[current] = name; saved = false; remember();
  current++; show();
}
function back() { if (current > 0) { current--; show(); } }

// A table for `hf-any3d train --from`; texts are quoted, as names may have commas.
function table() {
  const quoted = text => `"${text.replaceAll('"', '""')}"`, lines = ["tile,row,x,y,z,class"];
  answers.forEach((name, k) => {
    const one = asked_points[k];
    if (name) lines.push([quoted(ask.tile), one.row, ...one.place, quoted(name)].join(","));
  });
  return lines.join("\n") + "\n";
}
function save() {
  const link = make("a");
  link.download = ask.file; link.href = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
  link.click(); saved = true;
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
$("#skip").onclick = () => answer(SKIPPED);
$("#back").onclick = back;
$("#download").onclick = save;
$("#other").onsubmit = e => {
  e.preventDefault();
  const input = $("#other input"), name = input.value.trim();
  if (!name) return;
  input.value = ""; input.blur();
  answer(addClass(name).name);
};
addEventListener("keydown", e => {
  if (e.ctrlKey || e.metaKey || e.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName)) return;
  const number = +e.key;
  if (number >= 1 && number <= Math.min(9, classes.length)) answer(classes[number - 1].name);
  else if (e.key === " " || e.key === "s") answer(SKIPPED);
  else if (e.key === "Backspace" || e.key === "b") back();
  else return;
  e.preventDefault(); // the space bar would press the button with the focus once more
});
addEventListener("beforeunload", e => { if (!saved) e.preventDefault(); });
recall();
show();
