// The figures: heat maps, the frontier, curves. Each is drawn anew when what is shown changes.

const NAMES = {bytes: "training bytes over the link, both directions", steps: "training steps",
  seconds: "seconds of training, client, server and link", joules: "joules of the client's training"};
const seedsOf = row => row.runs.filter(run => run.accuracy !== null).map(run => run.seed).join(", ");
const isSeveral = data.rows.some(row => row.runs.length > 1);
const choice = {kind: data.start.kind, log: data.start.log, runs: false, heat: "accuracy", scatterRuns: false};

// Curves: small multiples with the same axes.
function curves() {
  const place = byId("panels");
  const isShown = line => !hidden.has(line.row) && (line.x.length || line.missing);
  const all = data.panels[choice.kind];
  const shown = all.map(p => ({...p, lines: p.lines.filter(isShown), context: p.context.filter(isShown)})).filter(p => p.lines.length);
  place.replaceChildren();
  byId("curves").hidden = !data.rows.some(row => row.runs.some(run => run.y.length));
  const own = shown.flatMap(p => p.lines.flatMap(trails)), behind = shown.flatMap(p => p.context.flatMap(trails));
  const x = across(own.flatMap(t => t.x), behind.flatMap(t => t.x));
  const inside = trail => trail.y.flatMap((v, i) => trail.x[i] > x.high || (x.log && trail.x[i] <= 0) ? [] : trail.low ? [trail.low[i], trail.high[i]] : [v]);
  const y = upright([...own, ...behind].flatMap(inside).concat(x.cut ? behind.map(t => t.y[t.y.length - 1]) : []));
  byId("curve-axes").textContent = `Vertical: test accuracy. Horizontal: ${NAMES[choice.kind]}${x.log ? ", logarithmic" : ""}. `
    + (choice.runs ? "A thin line is a run; a cross is where one ended before it was finished." : isSeveral ? "Lines are means over seeds, bands their 95 % intervals." : "")
    + (x.cut ? " What goes further right ends in a dotted line at its last accuracy." : "");
  const labels = [...new Set(all.flatMap(p => p.lines.map(line => line.label)))], isShared = labels.length <= 8;
  const keys = byId("curve-keys");
  keys.replaceChildren(...(isShared ? labels : []).filter(label => label).map((label, i) => key(labels.indexOf(label), label)));
  const reference = [...new Set(behind.map(t => data.rows[t.row].method))];
  if (reference.length) keys.append(key(GREY, `${reference.join(", ")} (uncompressed or the reference)`));
  const room = place.clientWidth || 1232;
  const [columns, width] = columnsOf(room, shown.length, room < 560 ? 160 : 250, 20);
  place.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  for (const panel of shown) place.append(one(panel, x, y, labels, isShared, Math.min(width, 640)));
}
function columnsOf(room, count, least, gap) {
  const fit = Math.max(1, Math.min(4, Math.floor((room + gap) / (least + gap)), count));
  const columns = fit === 4 && count > 4 && -(-count % 3) === 0 && count % 4 ? 3 : fit;
  return [columns, Math.floor((room - gap * (columns - 1)) / columns)];
}
// What is drawn of a row: its mean, or every one of its runs.
function trails(line) {
  if (!choice.runs) return line.x.length ? [line] : [];
  return data.rows[line.row].runs.flatMap(run => {
    const kept = run.y.map((v, i) => i).filter(i => isKnown(run.y[i]) && isKnown(run.x[choice.kind][i]));
    const column = values => kept.map(i => values[i]);
    return kept.length ? [{row: line.row, label: line.label, run, x: column(run.x[choice.kind]), y: column(run.y), steps: column(run.x.steps), bytes: column(run.x.bytes)}] : [];
  });
}
function across(own, behind) {
  const positive = [...own, ...behind].filter(v => v > 0);
  const [low, high] = extent(own.length ? own : behind), [, far] = extent([...own, ...behind]);
  if (choice.log && positive.length) {
    const [least, most] = extent(positive);
    return {kind: choice.kind, log: true, low: least * .85, high: most * 1.15};
  }
  const cut = far > 1.5 * high && high > 0;
  return {kind: choice.kind, log: false, low: Math.min(0, low), high: cut ? high * 1.05 : (far || 1), cut};
}
function one(panel, x, y, labels, isShared, width) {
  const title = panel.title || "all rows";
  const height = Math.round(Math.min(240, Math.max(140, width * .64)));
  const named = panel.lines.map(line => line.label || data.rows[line.row].title).join("; ");
  const p = plot(width, height, x, y, `${title}: test accuracy against ${NAMES[choice.kind]}, of ${named}. Arrow keys go through the points.`);
  const spots = [], keys = make("ul", {class: "keys"});
  for (const line of panel.context) for (const trail of trails(line)) trace(p, trail, GREY, x, spots);
  for (const line of panel.lines) {
    const i = labels.indexOf(line.label);
    for (const trail of trails(line)) trace(p, trail, i, x, spots);
    if (!isShared) keys.append(key(i, line.label || data.rows[line.row].title));
  }
  const missing = panel.lines.filter(line => line.missing).map(line => [line.label, line.missing].filter(Boolean).join(": "));
  if (x.log && !spots.length && panel.lines.some(line => line.x.length)) missing.push("nothing above 0, which a logarithmic axis needs");
  answer(p.svg, spots, width);
  return make("figure", {}, make("figcaption", {title: clipped(title, 600)}, title), p.svg,
    missing.length ? make("p", {class: "remark"}, missing.join("; ")) : null, keys);
}
function trace(p, trail, i, x, spots) {
  const at = trail.x.map((v, k) => k).filter(k => (!x.log || trail.x[k] > 0) && isKnown(trail.y[k]));
  if (!at.length) return;
  const group = draw("g", {class: "of", "data-row": trail.row}), colour = colourOf(i), first = at[0], last = at[at.length - 1];
  const px = k => p.sx(trail.x[k]).toFixed(1), py = v => p.sy(v).toFixed(1);
  if (trail.low && trail.n > 1) {
    const d = at.length > 1
      ? `M${at.map(k => `${px(k)} ${py(trail.high[k])}`).join("L")}L${[...at].reverse().map(k => `${px(k)} ${py(trail.low[k])}`).join("L")}Z`
      : `M${px(first)} ${py(trail.low[first])}V${py(trail.high[first])}`;
    group.append(draw("path", at.length > 1 ? {d, fill: colour, opacity: .18} : {d, stroke: colour}));
  }
  group.append(draw("path", {d: `M${at.map(k => `${px(k)} ${py(trail.y[k])}`).join("L")}`, fill: "none", stroke: colour,
    "stroke-width": trail.run ? 1 : 1.75, "stroke-linejoin": "round", "stroke-dasharray": i === GREY ? "" : DASHES[i % 4]}));
  if (x.cut && trail.x[last] > x.high)
    group.append(draw("path", {d: `M${p.box.left} ${py(trail.y[last])}H${p.box.right}`, stroke: colour, "stroke-dasharray": "1 3"}));
  const isLost = trail.run && trail.run.accuracy === null;
  if (i !== GREY || at.length === 1 || isLost) group.append(mark(isLost ? 5 : i, p.sx(trail.x[last]), p.sy(trail.y[last]), isLost ? 5 : trail.run ? 2.5 : 4));
  p.area.append(group);
  const line = trail.run ? `${trail.row} ${trail.run.seed}` : String(trail.row);
  for (const k of at) if (trail.x[k] <= x.high) spots.push({x: p.sx(trail.x[k]), y: p.sy(trail.y[k]), line, row: trail.row, told: () => toldOf(trail, k)});
}
function toldOf(trail, k) {
  const row = data.rows[trail.row], run = trail.run;
  const half = run || trail.n < 2 ? null : (trail.high[k] - trail.low[k]) / 2;
  const means = data.panels.bytes.flatMap(p => [...p.lines, ...p.context]).find(line => line.row === trail.row);
  const bytes = run ? trail.bytes[k] : means && means.x[means.steps.indexOf(trail.steps[k])];
  const spent = ["bytes", "steps"].includes(choice.kind) ? [] : [amount(trail.x[k], choice.kind)];
  return [row.title, `accuracy ${share(trail.y[k], half)}`, `step ${amount(trail.steps[k], "steps")}`,
    ...(isKnown(bytes) ? [amount(bytes, "bytes")] : []), ...spent, ...(run ? ofRun(run) : ofRow(row))];
}
function ofRun(run) {
  return [`seed ${run.seed}, ${run.state}${run.error ? `: ${run.error}` : ""}`, run.folder];
}
function ofRow(row) {
  const done = row.runs.filter(run => run.accuracy !== null), n = row.n === row.of ? row.n : `${row.n} of ${row.of}`;
  return [`n = ${n}${row.n ? `, seed${row.n > 1 ? "s" : ""} ${seedsOf(row)}` : ""}`, ...(done.length === 1 ? [done[0].folder] : [])];
}

// The frontier.
function scatter() {
  const marks = data.marks.filter(m => !hidden.has(m.row)), place = byId("scatter"), keys = byId("scatter-keys");
  byId("pareto").hidden = data.marks.length < 2;
  place.replaceChildren(); keys.replaceChildren();
  if (!marks.length) return;
  const width = Math.max(260, place.clientWidth || 1232), height = width > 700 ? 430 : 340;
  const [least, most] = extent(marks.map(m => m.x)), log = least > 0 && most / least > 4;
  const room = (most - least || Math.abs(most) || 1) * .08;
  const x = {kind: "bytes", log, low: log ? least * .8 : Math.min(least - room, 0), high: log ? most * 1.25 : most + room};
  const finals = m => data.rows[m.row].runs.filter(run => run.accuracy !== null);
  const y = upright(reach(marks.map(m => data.rows[m.row])));
  byId("cut").hidden = choice.scatterRuns || !marks.some(m => m.y - m.half < y.low || m.y + m.half > y.high);
  const p = plot(width, height, x, y, `Final accuracy against training bytes of ${marks.length} rows. Arrow keys go through them.`,
    [`${width > 560 ? NAMES.bytes : "training bytes"}${log ? " (logarithmic)" : ""}`, "test accuracy"]);
  const methods = [...new Set(data.marks.filter(m => !grey.has(m.row)).map(m => data.rows[m.row].method))];
  const leading = marks.filter(m => m.leads).sort((a, b) => a.x - b.x), spots = [];
  if (leading.length > 1) {
    const steps = leading.slice(1).map(m => `H${p.sx(m.x).toFixed(1)}V${p.sy(m.y).toFixed(1)}`).join("");
    p.area.append(draw("path", {d: `M${p.sx(leading[0].x)} ${p.sy(leading[0].y)}${steps}`, fill: "none", stroke: "var(--grey)", "stroke-dasharray": "5 3", "stroke-width": 1.5}));
  }
  for (const m of [...marks].sort((a, b) => a.leads - b.leads)) {
    const row = data.rows[m.row], i = grey.has(m.row) ? GREY : methods.indexOf(row.method), cx = p.sx(m.x), cy = p.sy(m.y);
    const group = draw("g", {class: "of", "data-row": m.row});
    if (choice.scatterRuns) for (const run of finals(m)) {
      const rx = p.sx(log ? Math.max(run.up + run.down, x.low) : run.up + run.down), ry = p.sy(run.accuracy);
      group.append(mark(i, rx, ry, 3));
      spots.push({x: rx, y: ry, line: String(m.row), row: m.row, told: () => [row.title, `accuracy ${share(run.accuracy)}`, amount(run.up + run.down, "bytes"), ...ofRun(run)]});
    } else {
      if (m.half) group.append(draw("path", {d: `M${cx} ${p.sy(m.y - m.half)}V${p.sy(m.y + m.half)}`, stroke: colourOf(i), "stroke-width": 1.25}));
      group.append(mark(i, cx, cy, 5));
      spots.push({x: cx, y: cy, line: "rows", row: m.row, told: () => [row.title, `accuracy ${share(m.y, m.half)}`, amount(m.x, "bytes", 4), ...ofRow(row), ...(m.leads ? ["on the Pareto frontier"] : [])]});
    }
    if (m.leads) group.append(draw("circle", {cx, cy, r: 9, fill: "none", stroke: "var(--ink)", "stroke-width": 1.25}));
    p.area.append(group);
  }
  const taken = marks.map(m => ({x: p.sx(m.x) - 8, y: p.sy(m.y) - 8, w: 16, h: 16}));
  leading.slice(1).forEach((m, i) => { // the stepped line
    const [ax, ay, bx, by] = [p.sx(leading[i].x), p.sy(leading[i].y), p.sx(m.x), p.sy(m.y)];
    taken.push({x: ax, y: ay - 1, w: bx - ax, h: 2}, {x: bx - 1, y: by, w: 2, h: ay - by});
  });
  for (const m of leading) label(p, taken, p.sx(m.x), p.sy(m.y), data.rows[m.row].title);
  spots.sort((a, b) => a.x - b.x || b.y - a.y);
  answer(p.svg, spots, width);
  place.append(p.svg);
  const seen = new Set(marks.map(m => data.rows[m.row].method));
  for (const method of new Set(marks.filter(m => grey.has(m.row)).map(m => data.rows[m.row].method))) keys.append(key(GREY, method, false));
  methods.forEach((method, i) => { if (seen.has(method)) keys.append(key(i, method, false)); });
}
function label(p, taken, x, y, title) {
  const text = clipped(title, 40), w = [...text].length * 6.6, h = 14;
  const places = [[12, 4, "start"], [9, -10, "start"], [-12, 4, "end"], [0, -14, "middle"], [-9, -10, "end"], [9, 20, "start"], [-9, 20, "end"], [0, 24, "middle"]];
  let best = null;
  for (const [dx, dy, anchor] of places) {
    const left = x + dx - (anchor === "end" ? w : anchor === "middle" ? w / 2 : 0), top = y + dy - h + 3;
    if (left < p.box.left || left + w > p.box.right + 8 || top < 0 || top + h > p.box.bottom) continue;
    const cost = taken.filter(t => left < t.x + t.w && left + w > t.x && top < t.y + t.h && top + h > t.y).length;
    if (!best || cost < best.cost) best = {cost, dx, dy, anchor, left, top};
  }
  if (!best || best.cost > 0) return; // it is told when it is pointed at
  taken.push({x: best.left, y: best.top, w, h});
  p.svg.append(draw("text", {class: "lead", x: x + best.dx, y: y + best.dy, "text-anchor": best.anchor}, text));
}

// Heat maps: viridis, as five stops.
const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
function heatColour(t) {
  const at = Math.min(Math.max(t, 0), 1) * 4, i = Math.min(3, Math.floor(at));
  return STOPS[i].map((v, k) => Math.round(v + (STOPS[i + 1][k] - v) * (at - i)));
}
function inkOn(rgb) {
  const [r, g, b] = rgb.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b < .179 ? "#ffffff" : "#000000"; // which of them has more contrast
}
const heatValue = row => data.rows[row][choice.heat];
function maps() {
  const place = byId("maps");
  byId("heat").hidden = !data.maps.length;
  place.replaceChildren();
  const cells = data.maps.flatMap(found => found.maps.flatMap(map => map.cells.map(cell => cell[2])));
  const known = cells.map(heatValue).filter(isKnown), [low, high] = extent(known), bar = byId("heat-bar");
  const isLog = choice.heat === "bytes" && low > 0;
  const scale = v => isLog ? Math.log(v / low) / (Math.log(high / low) || 1) : (v - low) / ((high - low) || 1);
  bar.querySelector(".scale")?.remove();
  if (known.length) bar.append(make("p", {class: "scale"}, heatText(low), make("i"), heatText(high)));
  for (const found of data.maps) for (const map of found.maps) place.append(heatMap(found, map, scale, place.clientWidth || 1232));
  const beside = [...new Set(data.maps.flatMap(found => found.beside))].filter(number => !hidden.has(number) && isKnown(heatValue(number)));
  byId("beside").textContent = beside.length ? `Without ${data.maps.length > 1 ? "some of the" : "these"} settings: ${beside.map(number => {
    const row = data.rows[number];
    return `${clipped(row.title, 80)} ${heatText(heatValue(number))}${choice.heat === "accuracy" && isKnown(row.half) ? ` ± ${row.half.toFixed(3)}` : ""}`;
  }).join("; ")}.` : "";
}
const heatText = v => choice.heat === "accuracy" ? v.toFixed(3) : amount(v, "bytes");
function heatMap(found, map, scale, room) {
  const columns = found.x.values.length, rows = found.y.values.length, h = 54;
  const left = 30 + Math.min(110, 7 * Math.max(...found.y.values.map(v => v.length), 1));
  const w = Math.max(58, Math.min(112, (room - left - 4) / columns)), width = left + columns * w + 2, height = rows * h + 46, spots = [];
  const svg = draw("svg", {viewBox: `0 0 ${width} ${height}`, width, height, role: "img", tabindex: 0, class: "plot", style: width > room ? "max-width:none" : null,
    "aria-label": clipped(`${choice.heat} by ${found.x.name} and ${found.y.name}${map.title ? `, ${map.title}` : ""}. Arrow keys go through the cells.`, 600)});
  const fits = Math.max(3, Math.floor(w / 7));
  found.x.values.forEach((v, i) => svg.append(draw("text", {class: "name", x: left + (i + .5) * w, y: rows * h + 18, "text-anchor": "middle"}, clipped(v, fits))));
  found.y.values.forEach((v, j) => svg.append(draw("text", {class: "name", x: left - 8, y: (j + .5) * h + 4, "text-anchor": "end"}, clipped(v, 16))));
  svg.append(draw("text", {class: "name", x: left + columns * w / 2, y: height - 6, "text-anchor": "middle"}, found.x.name));
  svg.append(draw("text", {class: "name", x: 12, y: rows * h / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${rows * h / 2})`}, found.y.name));
  for (const [i, j, number] of map.cells) {
    if (hidden.has(number)) continue;
    const v = heatValue(number), row = data.rows[number], x = left + i * w, y = j * h, rgb = isKnown(v) ? heatColour(scale(v)) : null;
    const group = draw("g", {class: "of", "data-row": number});
    group.append(draw("rect", rgb ? {x: x + 1, y: y + 1, width: w - 2, height: h - 2, rx: 3, fill: `rgb(${rgb})`}
      : {x: x + 1.5, y: y + 1.5, width: w - 3, height: h - 3, rx: 3, fill: "none", stroke: "var(--grey)", "stroke-dasharray": "3 3"}));
    const ink = rgb ? inkOn(rgb) : "var(--soft)", half = choice.heat === "accuracy" && rgb && isKnown(row.half) ? `± ${row.half.toFixed(3)}` : "";
    group.append(draw("text", {class: rgb ? "value" : "", x: x + w / 2, y: y + h / 2 + (half ? -1 : 5), "text-anchor": "middle", style: `fill:${ink}`},
      rgb ? heatText(v) : row.runs.some(run => run.state === "diverged") ? "diverged" : "—"));
    if (half) group.append(draw("text", {x: x + w / 2, y: y + h / 2 + 15, "text-anchor": "middle", style: `fill:${ink}`}, half));
    svg.append(group);
    spots.push({x: x + w / 2, y: y + h / 2, line: j, row: number, at: i, told: () => [row.title, `accuracy ${share(row.accuracy, row.half)}`, `${amount(row.bytes, "bytes", 4)} of training`, ...ofRow(row),
      ...row.runs.filter(run => run.error).map(run => `seed ${run.seed} ${run.state}: ${run.error}`).slice(0, 3)]});
  }
  spots.sort((a, b) => a.line - b.line || a.at - b.at);
  answer(svg, spots, width, Math.hypot(w, h) / 2);
  return make("figure", {}, map.title ? make("figcaption", {title: clipped(map.title, 600)}, map.title) : null, svg);
}

// Bars of buttons.
const kinds = Object.keys(data.panels);
toggles(byId("curve-bar"), "Against", kinds.map(kind => [kind, kind]), choice.kind, value => { choice.kind = value; curves(); });
toggles(byId("curve-bar"), "Axis", [[true, "logarithmic"], [false, "linear"]], choice.log, value => { choice.log = value; curves(); });
if (isSeveral) {
  const shows = [[false, "means"], [true, "every run"]];
  toggles(byId("curve-bar"), "Show", shows, false, value => { choice.runs = value; curves(); });
  toggles(byId("pareto-bar"), "Show", shows, false, value => { choice.scatterRuns = value; scatter(); });
}
toggles(byId("heat-bar"), "Show", [["accuracy", "accuracy"], ["bytes", "training bytes"]], choice.heat, value => { choice.heat = value; maps(); });
function figures() {
  for (const id of ["heat", "pareto", "curves"]) byId(id).hidden = false; // what is hidden has no width
  maps(); scatter(); curves();
}
