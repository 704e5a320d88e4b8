"use strict";
// Elements, numbers, tables and charts that all pages share. Text of a report reaches the page as
// text nodes and attributes only, never as markup.

const report = JSON.parse(document.getElementById("data").textContent);
const page = document.getElementById("page");
const SVG = document.getElementById("svg").namespaceURI;

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}
const h = (tag, attributes = {}, ...children) => build(document.createElement(tag), attributes, children);
const s = (tag, attributes = {}, ...children) => build(document.createElementNS(SVG, tag), attributes, children);

function section(title, ...content) {
  return h("section", {}, h("h2", {}, title), ...content);
}

// Numbers.

const missing = (value) => value === null || value === undefined;
const sum = (values) => values.reduce((a, b) => a + b, 0);

function number(value) {
  if (missing(value)) return "-";
  const size = Math.abs(value);
  let decimals = 0;
  if (size > 0 && size < 100) decimals = size >= 10 ? 1 : size >= 1 ? 2 : Math.min(6, 2 - Math.floor(Math.log10(size)));
  return value.toLocaleString("en", { maximumFractionDigits: decimals });
}
function fixed(value, decimals) {
  return value.toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}
function scaled(value, base, units) {
  let unit = 0;
  while (Math.abs(value) >= base && unit + 1 < units.length) {
    value /= base;
    unit += 1;
  }
  return `${number(value)} ${units[unit]}`.trim();
}
const bytes = (value) => (missing(value) ? "-" : scaled(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]));
const count = (value) => (missing(value) ? "-" : scaled(value, 1000, ["", "k", "M", "G", "T", "P"]));
const time = (ms) => (missing(ms) ? "-" : Math.abs(ms) >= 1000 ? `${number(ms / 1000)} s` : `${number(ms)} ms`);
const percent = (share) => (missing(share) || !Number.isFinite(share) ? "-" : `${share < 0.9995 ? fixed(100 * share, 1) : number(100 * share)} %`);
const unit = (name) => (name ? ` ${name}` : "");

// Tables.

// A column has `name`, `value(row)` to sort by, and optionally `text(row)` to show and `right`.
function table(columns, rows, options = {}) {
  const body = h("tbody");
  const cell = (column, row, first) => {
    const value = column.value(row);
    const shown = column.text ? column.text(row) : missing(value) ? "-" : value;
    return h(first ? "th" : "td", { class: column.right ? "right" : column.wide ? "wide" : null, scope: first ? "row" : null }, shown);
  };
  const fill = (order) => body.replaceChildren(...order.map((row) =>
    h("tr", { class: options.strong && options.strong(row) ? "strong" : null }, ...columns.map((column, i) => cell(column, row, i === 0)))));
  const headings = columns.map((column) => h("th", { scope: "col", class: column.right ? "right" : null, title: column.title },
    options.fixed ? column.name : h("button", { type: "button", onclick: () => sort(column) }, column.name)));
  const sort = (column) => {
    const heading = headings[columns.indexOf(column)];
    const down = heading.getAttribute("aria-sort") ? heading.getAttribute("aria-sort") === "ascending" : column.right;
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const compare = (a, b) => {
      const [x, y] = [column.value(a), column.value(b)];
      if (missing(x) || missing(y)) return missing(x) - missing(y);
      const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      return down ? -order : order;
    };
    fill([...rows].sort(compare));
  };
  fill(rows);
  const element = h("table", {}, h("thead", {}, h("tr", {}, ...headings)), body);
  const box = h("div", { class: options.sticky ? "scroll sticky" : "scroll", tabindex: 0, role: "region", "aria-label": options.label || options.caption || "table" }, element);
  return options.caption ? h("div", {}, h("p", { class: "soft" }, options.caption), box) : box;
}

function pairs(entries, label) {
  const rows = entries.filter(([, value]) => !missing(value) && value !== "");
  return h("div", { class: "scroll" }, h("table", { "aria-label": label }, h("tbody", {},
    ...rows.map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", { class: "wide" }, value))))));
}

// Bars: one row for each entry, `{label, parts: [{value, text, fill, title}], value}`, on a scale
// that starts at zero.
function bars(rows, options = {}) {
  const total = (row) => sum(row.parts.map((part) => Math.max(0, part.value)));
  const low = Math.min(0, ...rows.flatMap((row) => (row.parts || []).map((part) => part.value)));
  const high = options.high || Math.max(...rows.filter((row) => row.parts).map(total), 0);
  // The value stands behind the bar, so that the longest bar leaves room for it.
  const room = options.full ? 100 : 74;
  const scale = room / (high - low || 1);
  const elements = rows.flatMap((row) => {
    if (!row.parts) return [h("div", { class: "group" }, row.label)];
    const track = h("div", { class: "track" });
    const negative = row.parts.filter((part) => part.value < 0);
    const offset = (-low + sum(negative.map((part) => part.value))) * scale;
    if (low < 0) track.append(place(h("div"), offset));
    for (const part of row.parts) {
      const width = Math.abs(part.value) * scale;
      if (width === 0) continue;
      const text = width > 7 && part.text ? part.text : "";
      track.append(place(h("div", { class: `part ${part.fill || "f0"}${text ? "" : " thin"}`, title: part.title || part.text }, text), width));
    }
    if (row.value) track.append(h("span", { class: "value" }, row.value));
    return options.full ? [track] : [h("div", { class: "label" }, row.label), track];
  });
  return h("div", { class: options.full ? "bars full" : "bars", role: "group", "aria-label": options.label }, ...elements);
}
function place(element, width) {
  element.style.width = `${width}%`;
  return element;
}

// Charts are drawn for the width of the page and again when it changes.
function figure(caption, draw) {
  const readout = h("p", { class: "readout", "aria-live": "polite" });
  const box = h("div", { class: "chart" });
  let width = 0;
  new ResizeObserver(() => {
    const now = Math.floor(box.clientWidth);
    if (now === 0 || now === width) return;
    width = now;
    requestAnimationFrame(() => box.replaceChildren(draw(now, (text) => readout.replaceChildren(text))));
  }).observe(box);
  return h("figure", {}, h("figcaption", {}, caption), box, readout);
}

// Makes an element show `text` on hover, tap and focus.
function telling(element, text, tell) {
  const show = () => tell(text);
  element.append(s("title", {}, text));
  element.setAttribute("tabindex", 0);
  element.setAttribute("role", "img");
  element.setAttribute("aria-label", text);
  element.setAttribute("class", `mark ${element.getAttribute("class") || ""}`.trim());
  for (const event of ["mouseenter", "focus", "click"]) element.addEventListener(event, show);
  return element;
}

// Values between `low` and `high` at steps of 1, 2 or 5 times a power of ten.
function ticks(low, high, most) {
  const rough = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const values = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) values.push(i * step || 0);
  return values;
}
function range(values, fromZero) {
  let low = Math.min(...values);
  let high = Math.max(...values);
  if (fromZero || (low >= 0 && low < 0.5 * high)) low = Math.min(0, low);
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  const spread = ticks(low, high, 5);
  const step = spread[1] - spread[0];
  return [Math.floor(low / step + 1e-9) * step, Math.ceil(high / step - 1e-9) * step];
}
const linear = ([low, high], [from, to]) => (value) => from + ((value - low) / (high - low)) * (to - from);

const SHAPES = [
  (r) => `M${-r},0a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0z`,
  (r) => `M${-r},${-r}h${2 * r}v${2 * r}h${-2 * r}z`,
  (r) => `M0,${-1.2 * r}L${1.2 * r},${r}H${-1.2 * r}z`,
  (r) => `M0,${-1.4 * r}L${1.4 * r},0L0,${1.4 * r}L${-1.4 * r},0z`,
  (r) => `M${-r},${-0.4 * r}h${0.6 * r}v${-r}h${0.8 * r}v${r}h${0.6 * r}v${0.8 * r}h${-0.6 * r}v${r}h${-0.8 * r}v${-r}h${-0.6 * r}z`,
  (r) => `M0,${1.2 * r}L${1.2 * r},${-r}H${-1.2 * r}z`,
];
const DASHES = ["", "6 3", "2 3"];
// Series differ in color, in the shape of their markers, and from the seventh on in their lines.
const look = (i) => ({ color: `var(--s${i % 6})`, shape: SHAPES[i % 6], dash: DASHES[Math.floor(i / 6) % 3] });

function key(i) {
  const { color, shape, dash } = look(i);
  return s("svg", { width: 30, height: 14, viewBox: "0 0 30 14", "aria-hidden": "true" },
    s("line", { x1: 1, x2: 29, y1: 7, y2: 7, style: `stroke:${color}`, "stroke-width": 2, "stroke-dasharray": dash }),
    s("path", { d: shape(4), transform: "translate(15 7)", style: `fill:${color}` }));
}

// Lines with a marker at each point: `{title, x: {label, unit}, y, series: [{name, points}]}`.
// A point is `[x, y]` or `[x, y, low, high]` with the ends of a whisker.
function lines(chart) {
  const all = chart.series.flatMap((line) => line.points);
  if (all.length === 0) return h("p", { class: "soft" }, `${chart.title}: no values.`);
  const xs = all.map((point) => point[0]);
  const ys = all.flatMap((point) => point.slice(1));
  const places = [...new Set(xs)].sort((a, b) => a - b);
  const [first, last] = [places[0], places[places.length - 1]];
  const margin = chart.area ? 0 : (last - first) * 0.03 || Math.abs(last) / 2 || 1;
  const domain = [chart.area ? Math.min(0, first) : first - margin, last + margin];
  const values = range(ys, chart.fromZero);
  const name = ({ label, unit: u }) => (u ? `${label}, ${u}` : label);
  const words = `${chart.title}. Horizontal axis: ${name(chart.x)}. Vertical axis: ${name(chart.y)}. `
    + chart.series.map((line) => `${line.name}: ${line.points.map(([x, y]) => `${number(x)}: ${number(y)}`).join("; ")}`).join(". ");
  const height = chart.height || 320;
  return figure(chart.title, (width, tell) => {
    const rows = ticks(values[0], values[1], 5);
    const single = chart.series.length === 1;
    const longest = Math.max(...chart.series.map((line) => line.name.length));
    const labels = !single && width >= 600 && longest <= 34 && apart(chart.series, linear(values, [height - 42, 28]));
    const left = 14 + 7 * Math.max(...rows.map((y) => number(y).length));
    const right = labels ? 16 + 6.8 * longest : 16;
    const x = linear(domain, [left, width - right]);
    const y = linear(values, [height - 42, 28]);
    const gap = Math.min(...places.slice(1).map((place, i) => x(place) - x(places[i])));
    const columns = places.length <= 10 && gap > 44 ? places : ticks(domain[0], domain[1], Math.max(2, Math.min(8, Math.floor(width / 90))));
    const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": words });
    for (const value of rows) {
      svg.append(s("line", { class: value === 0 ? "axis" : "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
        s("text", { class: "soft", x: left - 6, y: y(value) + 4, "text-anchor": "end" }, number(value)));
    }
    for (const value of columns) svg.append(s("line", { class: "axis", x1: x(value), x2: x(value), y1: height - 42, y2: height - 37 }),
      s("text", { class: "soft", x: x(value), y: height - 23, "text-anchor": "middle" }, number(value)));
    svg.append(s("text", { x: 2, y: 14 }, name(chart.y)), s("text", { x: width - right, y: height - 5, "text-anchor": "end" }, name(chart.x)));
    const ends = chart.series.map((line, i) => drawLine(svg, line, i, { x, y, tell, chart, height }));
    if (labels) endLabels(svg, ends.filter((end) => end), height);
    if (single || labels) return svg;
    return h("div", {}, svg, h("ul", { class: "legend" }, ...chart.series.map((line, i) => h("li", {}, key(i), line.name))));
  });
}

function drawLine(svg, line, i, { x, y, tell, chart, height }) {
  const { color, shape, dash } = look(i);
  if (line.points.length === 0) return null;
  const path = line.points.map((point) => `${x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`).join("L");
  if (chart.area) {
    const [first, last] = [line.points[0], line.points[line.points.length - 1]];
    svg.append(s("path", { d: `M${x(first[0])},${height - 42}L${path}L${x(last[0])},${height - 42}z`, style: `fill:${color};opacity:.18` }));
  }
  svg.append(s("path", { d: `M${path}`, style: `stroke:${color};fill:none`, "stroke-width": 2, "stroke-dasharray": dash }));
  for (const [px, py, low, high] of chart.plain ? [] : line.points) {
    if (low !== undefined) svg.append(s("line", { x1: x(px), x2: x(px), y1: y(low), y2: y(high), style: `stroke:${color}`, "stroke-width": 2, opacity: 0.6 }));
    const words = `${line.name}: ${number(px)}${unit(chart.x.unit)}, ${number(py)}${unit(chart.y.unit)}`
      + (low === undefined ? "" : ` (minimum ${number(low)}, 95th percentile ${number(high)})`);
    svg.append(telling(s("path", { d: shape(4), transform: `translate(${x(px)} ${y(py)})`, style: `fill:${color}` }), words, tell));
  }
  const last = lastOf(line);
  return { name: line.name, color, x: x(last[0]), y: y(last[1]), at: y(last[1]) };
}

const lastOf = (line) => line.points.reduce((a, b) => (b[0] >= a[0] ? b : a));

// Tells whether there is room for the names of lines at their ends.
function apart(series, y) {
  const ends = series.filter((line) => line.points.length > 0).map((line) => y(lastOf(line)[1])).sort((a, b) => a - b);
  return ends.every((end, i) => i < 3 || end - ends[i - 3] > 14);
}

// Names at the ends of the lines, moved apart where they would overlap.
function endLabels(svg, ends, height) {
  ends.sort((a, b) => a.y - b.y);
  let floor = 20;
  for (const end of ends) floor = end.at = Math.max(end.y, floor + 14);
  let ceiling = height - 42;
  for (const end of [...ends].reverse()) {
    end.at = Math.min(end.at, ceiling);
    ceiling = end.at - 14;
  }
  const right = Math.max(...ends.map((end) => end.x));
  for (const end of ends) {
    svg.append(s("line", { x1: end.x + 5, y1: end.y, x2: right + 11, y2: end.at, style: `stroke:${end.color}`, opacity: 0.5, "stroke-dasharray": "1 3" }),
      s("text", { x: right + 14, y: end.at + 4, style: `fill:${end.color}` }, end.name));
  }
}

function warnings(texts) {
  return texts.length === 0 ? null : h("ul", { class: "warnings" }, ...texts.map((text) => h("li", {}, text)));
}

// Words for the fields of an environment; other fields are shown with their own names.
const FIELDS = {
  program: "program", version: "version", build: "build", features: "built for", machine: "machine",
  architecture: "architecture", kernels: "instruction set", threads: "threads", device: "device",
  device_name: "device name", os: "system", os_kernel: "kernel", memory_bytes: "memory",
  governor: "frequency governor", highest_mhz: "highest frequency, MHz", record: "record", before: "before", after: "after",
  celsius: "hottest zone, °C", zone: "zone", mhz: "frequency, MHz", throttling: "throttling",
  available_bytes: "available memory", path: "file", hash: "hash", bytes: "size",
};
function flatten(value, prefix = "") {
  if (missing(value)) return [];
  if (Array.isArray(value)) return value.length === 0 ? [[prefix, "none"]]
    : value.some((item) => typeof item === "object") ? value.flatMap((item, i) => flatten(item, `${prefix} ${i + 1}`)) : [[prefix, value.join(", ")]];
  if (typeof value === "object") return Object.entries(value).flatMap(([name, inner]) => {
    const words = FIELDS[name] || name.replace(/_/g, " ");
    const sized = /(^|_)bytes$/.test(name) && typeof inner === "number";
    return flatten(sized ? bytes(inner) : inner, prefix ? `${prefix}: ${words}` : words);
  });
  return [[prefix, String(value)]];
}
