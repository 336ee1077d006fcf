// The table sorts, filters and opens; filters reach the figures, too. Then the rest of the page.

const table = byId("rows"), body = table.tBodies[0], lines = [...body.rows], order = [...lines];
const heads = [...table.tHead.rows[0].cells], names = heads.map(head => head.textContent);

// Opening: the runs of a row, in a row of their own below it.
const inners = new Map();
function runsOf(row) {
  const columns = ["seed", "state", "accuracy", "up", "down", "folder"];
  const cells = run => [
    make("td", {class: "number"}, String(run.seed)),
    make("td", {class: `why state ${run.state}`}, run.error ? `${run.state}: ${run.error}` : run.state),
    make("td", {class: "number"}, share(run.accuracy)),
    make("td", {class: "number"}, amount(run.up, "bytes", 4)), make("td", {class: "number"}, amount(run.down, "bytes", 4)),
    make("td", {}, make("code", {}, run.folder)),
  ];
  return make("table", {}, make("caption", {class: "unseen"}, `Runs of ${row.title}`),
    make("thead", {}, make("tr", {}, ...columns.map((name, i) => make("th", {scope: "col", class: [0, 2, 3, 4].includes(i) ? "number" : null}, name)))),
    make("tbody", {}, ...row.runs.map(run => make("tr", {}, ...cells(run)))));
}
function turn(line, isOpen) {
  const button = line.querySelector(".open"), row = data.rows[line.dataset.row];
  button.setAttribute("aria-expanded", String(isOpen));
  button.textContent = isOpen ? "▾" : "▸";
  inners.get(line)?.remove();
  inners.delete(line);
  if (!isOpen) return;
  const inner = make("tr", {class: "inner"}, make("td", {colspan: heads.length + 1}, runsOf(row)));
  inners.set(line, inner);
  line.after(inner);
}
function open(number) {
  const line = order[number];
  turn(line, true);
  line.scrollIntoView({block: "center"});
  line.querySelector(".open").focus({preventScroll: true});
  light(number);
}
for (const line of lines) {
  const head = line.cells[0], row = data.rows[line.dataset.row];
  const button = make("button", {type: "button", class: "open", "aria-expanded": "false", "aria-label": clipped(`Runs of ${row.title}`, 200)}, "▸");
  head.prepend(button);
  head.querySelector(".title").title = clipped(row.title, 600);
  button.addEventListener("click", () => turn(line, !inners.has(line)));
  line.addEventListener("pointerenter", () => light(Number(line.dataset.row)));
  line.addEventListener("pointerleave", () => light(null));
}
toggles(byId("row-bar"), "Runs", [[false, "closed"], [true, "all open"]], false, isOpen => { for (const line of lines) turn(line, isOpen); });

// Intervals of accuracy, all on one scale.
const [least, most] = reach(data.rows);
const at = v => Math.max(0, Math.min(120, 5 + (v - least) / ((most - least) || 1) * 110));
const accuracy = names.indexOf("accuracy");
if (data.marks.length > 1) {
  heads[accuracy].after(make("th", {scope: "col", class: "interval"}, `${least.toFixed(2)} – ${most.toFixed(2)}`));
  const best = Math.max(...data.marks.map(m => m.y));
  for (const line of lines) {
    const row = data.rows[line.dataset.row], cell = make("td", {class: "interval"});
    line.cells[accuracy].after(cell);
    if (!isKnown(row.accuracy)) continue;
    const [low, high] = ends(row);
    cell.append(draw("svg", {width: 120, height: 12, viewBox: "0 0 120 12", "aria-hidden": "true"},
      draw("path", {d: `M${at(best)} 0V12`, stroke: "var(--rule)"}),
      draw("path", {d: `M${at(low)} 6H${at(high)}`, stroke: "var(--c0)", "stroke-width": 1.5}),
      draw("circle", {cx: at(row.accuracy), cy: 6, r: 3, fill: "var(--c0)"})));
  }
}

// Sorting: up, down, and back to the order of the study.
function sortKey(line, name) {
  const row = data.rows[line.dataset.row], key = name in data.rows[line.dataset.row].sort ? name : name.split(" ")[0];
  return key in row.sort ? row.sort[key] : row.title;
}
function alphabetic(a, b) { // 0.05 before 0.1 before 9 before 10
  const [x, y] = [a, b].map(text => text.split(/(\d+(?:\.\d+)?)/));
  for (let i = 0; i < Math.min(x.length, y.length); i++) {
    const order = i % 2 ? x[i] - y[i] : x[i].localeCompare(y[i], "en");
    if (order) return order;
  }
  return x.length - y.length;
}
function inOrder(a, b, name, way) {
  const x = sortKey(a, name), y = sortKey(b, name);
  if (x === null || y === null) return (x === null) - (y === null); // what is not known comes last
  return way * (typeof x === "string" ? alphabetic(x, y) : x - y);
}
heads.forEach((head, column) => {
  const button = make("button", {type: "button"}, names[column]);
  head.replaceChildren(button);
  button.addEventListener("click", () => {
    const turns = head.classList.contains("number") ? ["descending", "ascending"] : ["ascending", "descending"];
    const next = turns[turns.indexOf(head.getAttribute("aria-sort")) + 1];
    for (const each of heads) each.removeAttribute("aria-sort");
    lines.sort((a, b) => order.indexOf(a) - order.indexOf(b));
    if (next) {
      head.setAttribute("aria-sort", next);
      lines.sort((a, b) => inOrder(a, b, names[column], next === "ascending" ? 1 : -1));
    }
    body.append(...lines.flatMap(line => inners.has(line) ? [line, inners.get(line)] : [line]));
    byId("said").textContent = next ? `sorted by ${names[column]}, ${next}` : "in the order of the study";
  });
});

// Filters.
const wanted = {words: [], settings: new Map()};
const texts = new Map(order.map(line => [line, line.textContent.toLowerCase()]));
const search = make("input", {type: "search", id: "filter", placeholder: "name, diverged, …", size: 16, autocomplete: "off"});
const count = make("span", {id: "count", role: "status"});
const reset = make("button", {type: "button", id: "reset", hidden: ""}, "Clear");
function filter() {
  hidden.clear();
  for (const line of order) {
    const number = Number(line.dataset.row), row = data.rows[number];
    const fits = wanted.words.every(word => texts.get(line).includes(word)) && [...wanted.settings].every(([i, value]) => row.settings[i] === value);
    line.hidden = !fits;
    if (inners.has(line)) inners.get(line).hidden = !fits;
    if (!fits) hidden.add(number);
  }
  const isAll = !wanted.words.length && !wanted.settings.size;
  reset.hidden = isAll;
  count.textContent = isAll ? "" : `${order.length - hidden.size} of ${order.length} rows`;
  byId("none").hidden = hidden.size < order.length || !order.length;
  figures();
}
search.addEventListener("input", () => { wanted.words = search.value.toLowerCase().split(/\s+/).filter(Boolean); filter(); });
byId("selects").append(make("label", {}, make("span", {}, "Filter"), search));
const selects = data.axes.map(({name, values}, i) => {
  const select = make("select", {"data-axis": name}, make("option", {value: ""}, "all"));
  values.forEach((value, k) => select.append(make("option", {value: String(k)}, clipped(value, 60))));
  select.addEventListener("change", () => {
    if (select.value === "") wanted.settings.delete(i); else wanted.settings.set(i, values[Number(select.value)]);
    filter();
  });
  byId("selects").append(make("label", {}, make("span", {}, clipped(name, 40)), select));
  return select;
});
reset.addEventListener("click", () => {
  search.value = ""; wanted.words = []; wanted.settings.clear();
  for (const select of selects) select.value = "";
  filter();
  search.focus();
});
byId("selects").append(reset, count);

// Theme, copying, and the first drawing.
const theme = byId("theme"), root = document.documentElement, isDarkAlready = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : isDarkAlready.matches;
const nameTheme = () => { theme.textContent = isDark() ? "Light theme" : "Dark theme"; };
theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
isDarkAlready.addEventListener("change", nameTheme);
nameTheme();
const copy = byId("copy");
copy?.addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(byId("command").textContent);
    copy.textContent = "Copied";
  } catch { // not allowed here: it is marked, for the user's own keys
    getSelection().selectAllChildren(byId("command"));
    copy.textContent = "Marked";
  }
  setTimeout(() => { copy.textContent = "Copy"; }, 1500);
});
for (const element of [theme, copy, byId("row-bar"), byId("drawn")]) if (element) element.hidden = false;
byId("filters").hidden = data.rows.length < 2;
byId("still").hidden = true;
figures();
let width = root.clientWidth;
addEventListener("resize", () => { if (root.clientWidth !== width) { width = root.clientWidth; figures(); } });
