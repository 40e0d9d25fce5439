// Runs the viewer's script without a browser: node without_browser.js viewer.js data.json
// The elements below answer what the script asks of a page; then the boxes that it draws are counted.
const fs = require("fs");
const [script, data] = process.argv.slice(2).map(path => fs.readFileSync(path, "utf8"));

function element() {
  const own = {
    style: {}, dataset: {}, children: [], clientWidth: 300, clientHeight: 200, value: "0",
    classList: { add() {}, remove() {}, toggle() {}, contains: () => false },
    append(...more) { own.children.push(...more); own.lastChild = more.at(-1); own.firstChild ??= more[0]; },
    prepend() {}, setAttribute() {},
    replaceChildren() { own.children = []; },
    getContext: () => ({ createImageData: (w, h) => ({ data: new Uint8ClampedArray(4 * w * h) }), putImageData() {} }),
  };
  return own;
}
const known = new Map();
const find = selector => known.get(selector) ?? known.set(selector, element()).get(selector);
find("#data").textContent = data;
class Observer { observe() {} }
Object.assign(globalThis, {
  document: {
    getElementById: id => find("#" + id), querySelector: find, querySelectorAll: () => [],
    createElement: tag => tag === "i" ? Object.assign(element(), { firstChild: element() }) : element(),
    body: element(), documentElement: element(),
  },
  self: 1, top: 1, innerWidth: 360, innerHeight: 640, devicePixelRatio: 1, addEventListener() {},
  requestAnimationFrame: () => 1, Option: class {}, IntersectionObserver: Observer, ResizeObserver: Observer,
});

// In one text with the script, whose names it uses.
const counted = `
function drawn() {
  render(panels[0]);
  const ids = [...panels[0].ids];
  return { boxes: ids.filter(id => id < -1).length, points: ids.filter(id => id >= 0).length };
}
function slide(score) {
  $("#scores input").value = score;
  $("#scores input").oninput();
  return { ...drawn(), summary: $("summary").textContent };
}
const seen = { first: { ...drawn(), summary: $("summary").textContent }, slider: $("#scores").hidden };
seen.few = slide("0.9");
seen.all = slide("0");
outBoxes.add(0);
seen.classless = drawn();
outBoxes.clear();
const corner = () => panels[0].boxes[0][2].slice(0, 3);
const before = corner();
turnUp();
seen.turned = [before, corner()];
process.stdout.write(JSON.stringify(seen));
`;
eval(script.replace('"use strict";', "") + counted);
