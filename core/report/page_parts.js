// What figures and the table are made of: elements, numbers, marks, axes, what is pointed at.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
const hidden = new Set(); // numbers of the rows that a filter took away
const grey = new Set(data.panels.bytes.flatMap(panel => panel.context.map(line => line.row)));

// Elements. Texts are text nodes always: names are the users' own.
function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes))
    if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value);
  element.append(...children.filter(child => child !== null));
  return element;
}
function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}
function draw(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}
function toggles(place, title, options, current, chosen) {
  const set = make("fieldset", {}, make("legend", {}, title));
  for (const [value, text] of options) {
    const button = make("button", {type: "button", "aria-pressed": String(value === current)}, text);
    button.addEventListener("click", () => {
      for (const other of set.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
      chosen(value);
    });
    set.append(button);
  }
  place.append(set);
}

// Numbers.
const UNITS = {
  bytes: [["B", 1], ["kB", 1e3], ["MB", 1e6], ["GB", 1e9], ["TB", 1e12]],
  steps: [["", 1]], seconds: [["s", 1]], joules: [["J", 1], ["kJ", 1e3], ["MJ", 1e6]],
};
const isKnown = value => value !== null && value !== undefined;
function unitOf(value, kind) {
  return UNITS[kind].filter(([, size]) => Math.abs(value) >= size).pop() || UNITS[kind][0];
}
function short(value, digits = 3) {
  return Number(value.toPrecision(digits)).toLocaleString("en", {maximumSignificantDigits: digits});
}
function amount(value, kind, digits = 3) {
  if (!isKnown(value)) return "—";
  const [unit, size] = unitOf(value, kind);
  return `${short(value / size, kind === "steps" ? 9 : digits)} ${unit}`.trim();
}
function share(value, half) {
  if (!isKnown(value)) return "—";
  return value.toFixed(4) + (isKnown(half) ? ` ± ${half.toFixed(4)}` : "");
}
function clipped(text, length) {
  const letters = [...text];
  return letters.length > length ? `${letters.slice(0, length - 1).join("")}…` : text;
}
function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) if (isKnown(v)) { low = Math.min(low, v); high = Math.max(high, v); }
  return low <= high ? [low, high] : [0, 1];
}
function ticks(low, high, count) {
  const raw = (high - low) / count || 1, ten = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(k => k * ten).find(k => k >= raw * .999), found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
  return found;
}
function logTicks(low, high, count) {
  const found = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++)
    for (const k of [1, 2, 5]) if (k * 10 ** e >= low * .999 && k * 10 ** e <= high * 1.001) found.push(k * 10 ** e);
  const tens = found.filter(v => Math.abs(Math.log10(v) - Math.round(Math.log10(v))) < 1e-9);
  const kept = found.length > count && tens.length > 1 ? tens : found;
  return kept.length ? kept.filter((_, i) => i % Math.ceil(kept.length / count) === 0) : [low, high];
}

// Marks: nine shapes, seven colours and four dashes, so that 63 of them all differ.
const SHAPES = [
  (x, y, r) => draw("circle", {cx: x, cy: y, r}),
  (x, y, r) => draw("rect", {x: x - r * .9, y: y - r * .9, width: r * 1.8, height: r * 1.8}),
  (x, y, r) => draw("path", {d: `M${x} ${y - r * 1.2}L${x + r * 1.15} ${y + r * .9}H${x - r * 1.15}Z`}),
  (x, y, r) => draw("path", {d: `M${x} ${y - r * 1.35}L${x + r * 1.35} ${y}L${x} ${y + r * 1.35}L${x - r * 1.35} ${y}Z`}),
  (x, y, r) => draw("path", {d: `M${x} ${y + r * 1.2}L${x + r * 1.15} ${y - r * .9}H${x - r * 1.15}Z`}),
  (x, y, r) => draw("path", {d: `M${x - r} ${y - r}L${x + r} ${y + r}M${x + r} ${y - r}L${x - r} ${y + r}`, "stroke-width": r / 2}),
  (x, y, r) => draw("path", {d: `M${x} ${y - r * 1.25}V${y + r * 1.25}M${x - r * 1.25} ${y}H${x + r * 1.25}`, "stroke-width": r / 2}),
  (x, y, r) => draw("path", {d: `M${x - r * 1.2} ${y}L${x + r * .9} ${y - r * 1.15}V${y + r * 1.15}Z`}),
  (x, y, r) => draw("path", {d: `M${x + r * 1.2} ${y}L${x - r * .9} ${y - r * 1.15}V${y + r * 1.15}Z`}),
];
const DASHES = ["", "7 3", "2 2.5", "9 3 2 3"];
const GREY = -1;
const colourOf = i => i === GREY ? "var(--grey)" : `var(--c${i % 7})`;
function mark(i, x, y, r) {
  return fill(SHAPES[i === GREY ? 0 : i % SHAPES.length](x, y, r), {fill: colourOf(i), stroke: colourOf(i)}, []);
}
function key(i, text, isLine = true) {
  const wide = isLine ? 30 : 12;
  const icon = draw("svg", {viewBox: `0 0 ${wide} 12`, width: wide, height: 12, "aria-hidden": "true"});
  if (isLine) icon.append(draw("path", {d: "M0 6H30", stroke: colourOf(i), "stroke-width": 2, "stroke-dasharray": i === GREY ? "" : DASHES[i % 4]}));
  if (!isLine || i !== GREY) icon.append(mark(i, wide / 2, 6, 4));
  return make("li", {title: clipped(text, 600)}, icon, clipped(text, 60));
}

// A plot: scales, ticks, and a group that is cut off at its edges.
let clips = 0;
function plot(width, height, x, y, label, names = null) {
  const box = {left: names ? 54 : 46, right: width - 12, top: names ? 12 : 8, bottom: height - (names ? 40 : 22)};
  const to = v => x.log ? Math.log10(v) : v;
  const sx = v => box.left + (to(v) - to(x.low)) / ((to(x.high) - to(x.low)) || 1) * (box.right - box.left);
  const sy = v => box.bottom - (Math.min(Math.max(v, y.low), y.high) - y.low) / ((y.high - y.low) || 1) * (box.bottom - box.top);
  const id = `clip-${clips++}`;
  const svg = draw("svg", {viewBox: `0 0 ${width} ${height}`, width, height, role: "img", tabindex: 0, class: "plot", "aria-label": clipped(label, 600)});
  svg.append(draw("clipPath", {id}, draw("rect", {x: box.left - 1, y: box.top - 8, width: box.right - box.left + 2, height: box.bottom - box.top + 9})));
  for (const v of ticks(y.low, y.high, Math.max(2, (box.bottom - box.top) / 32))) {
    svg.append(draw("path", {d: `M${box.left} ${sy(v).toFixed(1)}H${box.right}`, stroke: "var(--grid)"}));
    svg.append(draw("text", {x: box.left - 6, y: sy(v) + 4, "text-anchor": "end"}, short(v)));
  }
  const many = Math.max(2, Math.floor((box.right - box.left) / (x.log ? 66 : 52)));
  const [unit, size] = unitOf(x.high, x.kind);
  const at = x.log ? logTicks(x.low, x.high, many) : ticks(x.low / size, x.high / size, many).map(v => v * size);
  for (const v of at) {
    svg.append(draw("path", {d: `M${sx(v).toFixed(1)} ${box.bottom}v4`, stroke: "var(--grey)"}));
    const anchor = sx(v) > width - 22 ? "end" : "middle";
    svg.append(draw("text", {x: anchor === "end" ? width : sx(v), y: box.bottom + 17, "text-anchor": anchor},
      x.log ? amount(v, x.kind) : `${short(v / size)} ${v ? unit : ""}`.trim()));
  }
  svg.append(draw("path", {d: `M${box.left} ${box.bottom}H${box.right}`, stroke: "var(--grey)"}));
  if (names) {
    const middle = (box.top + box.bottom) / 2;
    svg.append(draw("text", {class: "name", x: (box.left + box.right) / 2, y: height - 4, "text-anchor": "middle"}, names[0]));
    svg.append(draw("text", {class: "name", x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})`}, names[1]));
  }
  const area = draw("g", {"clip-path": `url(#${id})`});
  svg.append(area);
  return {svg, area, sx, sy, box};
}
function upright(values) { // an interval may go beyond what an accuracy can be; the axis does not
  const [low, high] = extent(values), room = Math.max((high - low) * .06, .004);
  return {low: Math.max(0, low - room), high: Math.min(1, high + room)};
}
// Both ends of an interval, which may go beyond what an accuracy can be.
const within = v => Math.min(Math.max(v, 0), 1);
const ends = row => [within(row.accuracy - (row.half || 0)), within(row.accuracy + (row.half || 0))];
// The least and the greatest accuracy of rows and their runs, with intervals that say something:
// of two runs, one may be wider than everything else.
function reach(rows) {
  const halves = rows.filter(row => row.n > 2).flatMap(ends);
  return extent([...halves, ...rows.flatMap(row => row.runs.map(run => run.accuracy))]);
}

// What a pointer or the keys are at: the nearest spot of a figure.
// A spot is {x, y, line, row, told}: where it is in the figure, and what is told of it.
const tip = byId("tip");
let toldAt = null; // how far the page was scrolled
function light(row) {
  for (const each of document.querySelectorAll(".lit")) each.classList.remove("lit");
  document.body.classList.toggle("dimmed", row !== null);
  if (row !== null) for (const each of document.querySelectorAll(`[data-row="${row}"]`)) each.classList.add("lit");
}
function tell(lines, left, top) {
  tip.replaceChildren(...lines.map((line, i) => make(i ? "span" : "b", {}, clipped(line, 280))));
  tip.hidden = false;
  toldAt = scrollY;
  const own = tip.getBoundingClientRect(), edge = document.documentElement.clientWidth;
  tip.style.left = `${Math.max(4, left + 14 + own.width < edge ? left + 14 : Math.min(left - own.width - 14, edge - own.width - 4))}px`;
  tip.style.top = `${Math.max(4, Math.min(top + 14, innerHeight - own.height - 4))}px`;
}
function hush() { tip.hidden = true; light(null); }

function answer(svg, spots, width, reach = 30) {
  const cursor = draw("circle", {class: "cursor", r: 7, visibility: "hidden"});
  svg.append(cursor);
  let at = null;
  const scale = () => svg.getBoundingClientRect().width / width || 1;
  const clear = () => { at = null; cursor.setAttribute("visibility", "hidden"); hush(); };
  const choose = spot => {
    if (spot === at) return;
    at = spot;
    fill(cursor, {cx: spot.x, cy: spot.y, visibility: "visible"}, []);
    const place = svg.getBoundingClientRect();
    tell(spot.told(), place.left + spot.x * scale(), place.top + spot.y * scale());
    light(spot.row);
  };
  const point = event => {
    const place = svg.getBoundingClientRect(), s = scale();
    const x = (event.clientX - place.left) / s, y = (event.clientY - place.top) / s;
    let best = null, least = reach ** 2;
    for (const spot of spots) {
      const far = (spot.x - x) ** 2 + (spot.y - y) ** 2;
      if (far < least) { best = spot; least = far; }
    }
    if (best) choose(best); else if (at) clear();
  };
  const reveal = () => { if (at) { const row = at.row; clear(); open(row); } };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", clear);
  svg.addEventListener("blur", clear);
  svg.addEventListener("click", event => { if (event.pointerType !== "touch") reveal(); });
  const lines = [...new Set(spots.map(spot => spot.line))].map(line => spots.filter(spot => spot.line === line));
  svg.addEventListener("keydown", event => {
    const way = {ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0]}[event.key];
    if (event.key === "Enter") reveal();
    else if (event.key === "Escape") clear();
    if (!way || !lines.length) return;
    event.preventDefault();
    const i = at ? lines.findIndex(line => line.includes(at)) : 0;
    const line = lines[(i + (at ? way[0] : 0) + lines.length) % lines.length];
    const k = at ? lines[i].indexOf(at) + way[1] : line.length - 1;
    choose(line[Math.max(0, Math.min(k, line.length - 1))]);
    byId("said").textContent = at.told().join(", ");
  });
}
addEventListener("scroll", () => { if (!tip.hidden && scrollY !== toldAt) hush(); }, {passive: true});
