// Runs the page of points to label without a browser: node labeling_without_browser.js viewer.js labeling.js data.json
// The elements below answer what the scripts ask of a page; then a person answers by keys and buttons.
const fs = require("fs");
const [viewer, labeling, data] = process.argv.slice(2).map(path => fs.readFileSync(path, "utf8"));

function element() {
  const own = {
    style: {}, dataset: {}, children: [], clientWidth: 300, clientHeight: 200, value: "0", className: "", textContent: "",
    classList: { add() {}, remove() {}, toggle() {}, contains: () => false },
    append(...more) { own.children.push(...more); own.lastChild = more.at(-1); own.firstChild ??= more[0]; },
    prepend() {}, setAttribute() {}, blur() {}, click() { own.onclick?.(); },
    replaceChildren(...more) { own.children = more; },
    getContext: () => ({
      createImageData: (w, h) => ({ data: new Uint8ClampedArray(4 * w * h) }),
      putImageData() {}, save() {}, restore() {}, beginPath() {}, setLineDash() {}, stroke() { rings++; }, arc(x, y) { ring = [x, y]; },
    }),
  };
  return own;
}
let rings = 0, ring = null;
const known = new Map(), keys = [], stored = new Map();
const find = selector => known.get(selector) ?? known.set(selector, element()).get(selector);
find("#data").textContent = data;
class Observer { observe() {} }
Object.assign(globalThis, {
  document: {
    getElementById: id => find("#" + id), querySelector: find, querySelectorAll: () => [],
    createElement: tag => tag === "i" ? Object.assign(element(), { firstChild: element() }) : element(),
    body: element(), documentElement: element(),
  },
  self: 1, top: 1, innerWidth: 360, innerHeight: 640, devicePixelRatio: 1,
  addEventListener: (kind, act) => kind === "keydown" && keys.push(act),
  requestAnimationFrame: () => 1, cancelAnimationFrame() {}, matchMedia: () => ({ matches: true }),
  localStorage: { getItem: key => stored.get(key) ?? null, setItem: (key, text) => stored.set(key, text) },
  Option: class {}, IntersectionObserver: Observer, ResizeObserver: Observer,
});

const played = `
const press = key => keys.forEach(act => act({ key, target: { tagName: "BODY" }, preventDefault() {} }));
const drawn = () => { rings = 0; settled = true; render(panels[0]); return { ring, rings, shown: [...panels[0].ids].filter(id => id >= 0).length, list: panels[0].list.length, size: [panels[0].canvas.width, panels[0].canvas.height] }; };
const seen = { first: drawn(), count: $("#count").textContent, guess: $("#guess").textContent };
press("1"); press(" "); press("2");
seen.after = { answers: [...answers], count: $("#count").textContent };
press("Backspace"); press("3");
seen.corrected = [...answers];
$("#other input").value = " car, parked ";
$("#other").onsubmit({ preventDefault() {} });
seen.added = [...answers];
seen.table = table();
while (current < answers.length) press("1");
seen.done = { count: $("#count").textContent, guess: $("#guess").textContent };
seen.stored = [...stored.values()].map(text => JSON.parse(text));
answers.fill(null); current = 0; recall();
seen.recalled = { answers: [...answers], current };
process.stdout.write(JSON.stringify(seen));
`;
eval(`${viewer}\n${labeling}`.replaceAll('"use strict";', "") + played);
