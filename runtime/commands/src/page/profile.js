// The page of a profile.

const runs = report.runs;
const BOUNDS = { memory: "memory-bound", compute: "compute-bound", neither: "neither" };

// Quantities that a sweep varies: field, label, unit and description.
const SWEPT = [
  ["image_size", "image size", "pixels", "longer side of the images"],
  ["frames", "frames", "", "frames of the video"],
  ["audio_seconds", "sound", "s", "sound"],
  ["turn", "turn", "", "turn of the conversation"],
];
function point(parameters) {
  const words = [];
  if (!missing(parameters.image_size)) words.push(`images of ${parameters.image_size} pixels`);
  if (!missing(parameters.frames)) words.push(`${parameters.frames} ${parameters.frames === 1 ? "frame" : "frames"}`);
  if (!missing(parameters.audio_seconds)) words.push(`${number(parameters.audio_seconds)} s of sound`);
  if (runs.some((run) => run.parameters.turn > 1)) words.push(`turn ${parameters.turn}`);
  return words.join(", ") || "one question";
}

// Modules as trees. Numbers of stacks are replaced by `*` if `combine`d, and their layers added up.

const ADDED = ["own_ms", "hidden_ms", "calls", "weight_bytes", "macs", "bytes", "launches", "wait_ms"];

function stages(modules, combine) {
  const nodes = modules.map((module) => ({ ...module, median: module.ms.median, p95: module.ms.p95, layers: 1, children: [] }));
  nodes.forEach((node) => !missing(node.parent) && nodes[node.parent].children.push(node));
  const roots = nodes.filter((node) => missing(node.parent));
  const trees = combine ? combined(roots) : roots;
  const visit = (node, depth, parent) => {
    node.depth = depth;
    node.above = parent;
    node.path = within(node.name, node.stage);
    node.label = parent ? within(node.path, parent.path) : node.name;
    node.children.forEach((child) => visit(child, depth + 1, node));
  };
  trees.forEach((node) => visit(node, 0, null));
  return trees;
}
const within = (name, outer) => (name.startsWith(`${outer}.`) ? name.slice(outer.length + 1) : name);
const pattern = (name) => name.split(".").map((part) => (/^\d+$/.test(part) ? "*" : part)).join(".");

function combined(nodes) {
  const groups = new Map();
  for (const node of nodes) {
    const id = pattern(node.name);
    groups.set(id, [...(groups.get(id) || []), node]);
  }
  return [...groups].map(([name, members]) => {
    const all = (field) => sum(members.map((member) => member[field] || 0));
    const whole = { ...members[0], children: combined(members.flatMap((member) => member.children)) };
    if (members.length === 1) return whole;
    for (const field of ADDED) whole[field] = all(field);
    const peak = members.reduce((a, b) => (b.peak_bytes > a.peak_bytes ? b : a));
    const main = members.reduce((a, b) => (b.median > a.median ? b : a));
    const median = all("median");
    const share = members.every((member) => !missing(member.roof_share)) && median > 0
      ? sum(members.map((member) => member.roof_share * member.median)) / median : null;
    return {
      ...whole, name, median, p95: null, layers: members.length, bound: main.bound, roof_share: share,
      peak_bytes: peak.peak_bytes, held_bytes: peak.held_bytes,
      gflops: missing(main.gflops) || median === 0 ? null : 2e-6 * whole.macs / median,
      gbs: missing(main.gbs) || median === 0 ? null : 1e-6 * whole.bytes / median,
    };
  });
}
const listed = (trees) => trees.flatMap((node) => [node, ...listed(node.children)]);
// Time of a stage that no other stage hides.
const visible = (node) => Math.max(0, node.median - node.hidden_ms);

function numbers(node, run) {
  const facts = [
    `${time(node.median)}, ${percent(node.median / run.total_ms.median)} of the run`,
    node.children.length > 0 && `${time(node.own_ms)} outside of its modules`,
    `${count(node.calls)} ${node.calls === 1 ? "call" : "calls"}`,
    node.layers > 1 && `${node.layers} layers`,
    node.hidden_ms > 0 && `${time(node.hidden_ms)} hidden by stages at the same time`,
    node.tokens > 0 && `${count(node.tokens)} tokens`,
    node.macs > 0 && `${count(node.macs)} MACs`,
    node.bytes > 0 && `${bytes(node.bytes)} moved`,
    !missing(node.gflops) && `${number(node.gflops)} GFLOP/s`,
    !missing(node.gbs) && `${number(node.gbs)} GB/s`,
    node.bound !== "neither" && BOUNDS[node.bound],
    !missing(node.roof_share) && `${percent(node.roof_share)} of the roofline`,
    `peak heap ${bytes(node.peak_bytes)}`,
    node.weight_bytes > 0 && `weights ${bytes(node.weight_bytes)}`,
    !missing(node.energy_joules) && `${number(node.energy_joules)} J`,
  ];
  return facts.filter((fact) => fact).join("; ");
}

// Headline.

function headline(run) {
  const trees = stages(run.modules, true);
  const largest = trees.reduce((a, b) => (a && visible(a) >= visible(b) ? a : b), null);
  const heap = Math.max(0, ...run.memory.map((sample) => sample.bytes), ...trees.map((node) => node.held_bytes + node.peak_bytes));
  const spread = (statistics, show) => (statistics.count > 1 ? `${show(statistics.min)} to ${show(statistics.max)} in ${statistics.count} repeats` : "one repeat");
  const rate = run.tokens_per_second;
  const tile = (name, value, detail) => h("div", {}, h("dt", {}, name), h("dd", {}, value), h("dd", { class: "soft" }, detail));
  const speed = (value) => number(value);
  return [
    h("dl", { class: "tiles" },
      tile("First token", time(run.first_token_ms.median), spread(run.first_token_ms, time)),
      tile("Tokens per second", rate ? speed(rate.median) : "-", rate ? spread(rate, speed) : "no token after the first one"),
      tile("Peak memory", bytes(run.peak_resident_bytes || heap), run.peak_resident_bytes ? `resident, with mapped weights; heap ${bytes(heap)}` : "heap; mapped weights are not included"),
      largest && tile("Bottleneck", largest.name, `${percent(visible(largest) / run.total_ms.median)} of the time`)),
    largest && h("p", {}, sentence(run, largest)),
  ];
}

function sentence(run, stage) {
  const leaves = listed(stage.children).filter((node) => node.children.length === 0);
  const module = leaves.reduce((a, b) => (a && a.median >= b.median ? a : b), null);
  const start = `The run takes ${time(run.total_ms.median)}; ${time(visible(stage))} of it is the stage ${stage.name}.`;
  if (!module) return start;
  const limit = { memory: " It is memory-bound: it waits for weights and activations, so fewer bytes make it faster.",
    compute: " It is compute-bound: fewer tokens or fewer multiply-accumulates make it faster.", neither: "" }[module.bound];
  const reach = missing(module.roof_share) ? "" : ` and reaches ${percent(module.roof_share)} of the roofline`;
  return `${start} Its largest module is ${module.path}, which takes ${time(module.median)} (${percent(module.median / stage.median)} of the stage)${reach}.${limit}`;
}

function doubts(run) {
  const environment = report.environment;
  const texts = [];
  if (environment.build === "debug") texts.push("The program is a debug build: times are longer than those of a release.");
  if (run.total_ms.count === 1) texts.push("One repeat: the noise of the times is unknown.");
  const gap = run.outside_ms.median - run.total_ms.median;
  if (gap > 0.05 * run.outside_ms.median) texts.push(`The stages leave ${time(gap)} of ${time(run.outside_ms.median)} unexplained.`);
  const throttled = [environment.before, environment.after].flatMap((state) => (state && state.throttling) || []);
  if (throttled.length > 0) texts.push(`The machine was slowed down: ${[...new Set(throttled)].join(", ")}.`);
  return warnings(texts);
}

// Charts of a run.

function stageBar(run) {
  const trees = stages(run.modules, true);
  const largest = Math.max(...trees.map(visible));
  const parts = trees.map((node, i) => ({
    value: visible(node), text: node.name, fill: visible(node) === largest ? "f0" : i % 2 ? "neither" : "empty",
    title: `${node.name}: ${time(visible(node))}`,
  }));
  const words = trees.map((node) => [node, `${node.name} ${time(visible(node))} (${percent(visible(node) / run.total_ms.median)})`]);
  return section("Stages",
    bars([{ label: "", parts }], { full: true, label: `Stages in order: ${words.map(([, text]) => text).join(", ")}` }),
    h("ul", { class: "legend" }, ...words.map(([node, text], i) => h("li", {}, h("span", { class: `key ${parts[i].fill}` }), visible(node) === largest ? h("strong", {}, text) : text))),
    h("p", { class: "soft" }, "In the order in which they run. The stage with the bold name is the bottleneck. Time in which two stages ran at once counts once."));
}

function icicle(run, trees) {
  const root = { name: "run", label: "run", median: run.total_ms.median, children: trees, depth: -1, root: true };
  const panel = h("div", { class: "panel", "aria-live": "polite" });
  const box = h("div", { class: "icicle", role: "tree", "aria-label": "Stages and modules. Arrow keys move, Enter enlarges, Escape goes back." });
  let top = root;
  let current = null;
  const elements = new Map();
  const up = (node) => (node === root ? null : node.above || root);
  const tell = (node) => panel.replaceChildren(h("strong", {}, node.root ? "run" : node.name), h("br"),
    node.root ? `${time(node.median)} in ${trees.length} stages` : numbers(node, run));
  const choose = (node, focus) => {
    if (current && elements.has(current)) elements.get(current).tabIndex = -1;
    current = node;
    elements.get(node).tabIndex = 0;
    if (focus) elements.get(node).focus();
  };
  const enlarge = (node) => {
    top = node;
    draw();
    choose(node, true);
  };
  const press = (event, node) => {
    const siblings = up(node) ? up(node).children : [root];
    const place = siblings.indexOf(node);
    const target = { ArrowRight: siblings[place + 1], ArrowLeft: siblings[place - 1], ArrowDown: node.children[0], ArrowUp: up(node) }[event.key];
    if (target && elements.has(target)) choose(target, true);
    else if (event.key === "Enter" || event.key === " ") enlarge(node === top ? up(node) || root : node);
    else if (event.key === "Escape") enlarge(up(top) || root);
    else return;
    event.preventDefault();
  };
  const put = (node, left, width, row) => {
    const thin = width < 3;
    const element = h("div", {
      class: `${node.root ? "empty" : node.bound}${thin ? " thin" : ""}`, role: "treeitem", "aria-level": row + 1, tabindex: -1,
      "aria-expanded": node.children.length > 0 ? "true" : null,
      "aria-label": node.root ? "run" : `${node.name}: ${numbers(node, run)}`,
      onclick: () => { tell(node); enlarge(node === top ? up(node) || root : node); },
      onmouseenter: () => tell(node), onfocus: () => tell(node), onkeydown: (event) => press(event, node),
    }, thin ? "" : node.root ? `run, ${time(node.median)}` : `${node.label} ${time(node.median)}`);
    element.style.left = `${left}%`;
    element.style.width = `${width}%`;
    element.style.top = `${row * 1.7}rem`;
    elements.set(node, element);
    box.append(element);
    let rows = row + 1;
    const size = (child) => (node.root ? visible(child) : child.median);
    const whole = Math.max(node.median, sum(node.children.map(size)));
    let from = left;
    for (const child of node.children) {
      const share = whole > 0 ? (width * size(child)) / whole : 0;
      if (share > 0.05) rows = Math.max(rows, put(child, from, share, row + 1));
      from += share;
    }
    return rows;
  };
  const draw = () => {
    elements.clear();
    box.replaceChildren();
    box.style.height = `${put(top, 0, 100, 0) * 1.7}rem`;
    choose(top, false);
  };
  draw();
  tell(trees.reduce((a, b) => (visible(a) >= visible(b) ? a : b), trees[0] || root));
  return h("div", {}, box, boundKeys(), panel);
}
function boundKeys() {
  const item = (bound) => h("li", {}, h("span", { class: `key ${bound}` }), bound === "neither" ? "neither, or unknown" : BOUNDS[bound]);
  return h("ul", { class: "legend" }, item("compute"), item("memory"), item("neither"));
}

function moduleTable(run, trees) {
  const rows = listed(trees);
  const total = run.total_ms.median;
  const share = (node) => node.median / total;
  const column = (name, value, show, title) => ({ name, value, text: (node) => (missing(value(node)) ? "-" : show(value(node))), right: true, title });
  const optional = (field, ...rest) => rows.some((node) => node[field]) && column(rest[0], (node) => node[field] || null, rest[1], rest[2]);
  const meter = (node) => {
    const bar = h("i");
    bar.style.width = `${Math.min(100, 100 * share(node))}%`;
    return [percent(share(node)), h("span", { class: "meter", "aria-hidden": "true" }, bar)];
  };
  const columns = [
    { name: "stage or module", value: (node) => node.name, text: (node) => h("div", { style: `padding-left:${0.6 * node.depth}rem` }, node.layers > 1 ? `${node.label} (${node.layers})` : node.label) },
    column("time, ms", (node) => node.median, number, "Median of the repeats; of combined layers, the sum of their medians"),
    { name: "share", value: share, text: meter, right: true, title: "Share of the run" },
    { name: "bound", value: (node) => (node.bound === "neither" ? null : node.bound) },
    optional("roof_share", "of roof", percent, "Shortest possible time by the roofline divided by the measured time"),
    column("own, ms", (node) => node.own_ms, number, "Time outside of child modules"),
    optional("p95", "p95, ms", number, "95th percentile of the repeats"),
    column("calls", (node) => node.calls, number),
    optional("tokens", "tokens", number),
    optional("macs", "MACs", count, "Multiply-accumulates"),
    optional("bytes", "moved", bytes, "Bytes moved: weights, activations, keys and values"),
    optional("gflops", "GFLOP/s", number),
    optional("gbs", "GB/s", number),
    optional("weight_bytes", "weights", bytes),
    column("peak heap", (node) => node.peak_bytes, bytes, "Peak heap use above that at the begin"),
    optional("wait_ms", "wait, ms", number, "Time that threads wait within parallel calls, summed over threads"),
    optional("launches", "launches", number, "GPU kernels launched"),
    optional("energy_joules", "energy, J", number),
  ];
  return table(columns.filter((one) => one), rows, { sticky: true, strong: (node) => node.depth === 0, label: "stages and modules",
    caption: "Shares are of the whole run; the time of a module contains that of its own modules. Select a heading to sort." });
}

function modulesSection(run) {
  const box = h("div");
  const toggle = h("input", { type: "checkbox", onchange: () => draw() });
  const layered = run.modules.some((module) => pattern(module.name) !== module.name);
  const draw = () => {
    const trees = stages(run.modules, !toggle.checked);
    box.replaceChildren(icicle(run, trees), moduleTable(run, trees));
  };
  draw();
  return section("Stages and modules",
    h("p", { class: "soft" }, "The width of a block is its time; the blocks below it are its modules. Point at a block or select it to see its numbers and to enlarge it; select the top block to go back."),
    layered && h("div", { class: "controls" }, h("label", {}, toggle, " every layer of a stack on its own")), box);
}

function roofline(run) {
  const roof = report.roofline;
  if (!roof) return section("Roofline", h("p", {}, "The peaks of this machine were not measured, so the report cannot tell how close the modules are to them."));
  const leaves = listed(stages(run.modules, true)).filter((node) => node.children.length === 0 && node.macs > 0 && node.bytes > 0 && node.median > 0);
  const marks = leaves.map((node) => ({ node, x: (2 * node.macs) / node.bytes, y: (2e-6 * node.macs) / node.median }));
  const peaks = roof.peaks.filter((peak) => peak.macs_per_second).map((peak) => ({ name: peak.format, y: 2e-9 * peak.macs_per_second }));
  const bandwidth = roof.bytes_per_second * 1e-9;
  if (marks.length === 0) return section("Roofline", h("p", {}, "No module of this run counts its multiply-accumulates and bytes."));
  const caption = "Each mark is a module; the layers of a stack are one mark, and its area is its share of the time. "
    + "Circles are compute-bound, squares memory-bound, rings neither. The closer a mark is to the lines above it, the less there is to gain without changing the arithmetic. "
    + "Operations are two for each multiply-accumulate.";
  return section("Roofline", figure(caption, (width, tell) => drawRoofline({ run, marks, peaks, bandwidth, width, tell })));
}

// Width of the right margin of the roofline.
const EDGE = 20;

function decades(values) {
  return [Math.floor(Math.log10(Math.min(...values))), Math.ceil(Math.log10(Math.max(...values)) + 0.05)];
}

function drawRoofline({ run, marks, peaks, bandwidth, width, tell }) {
  const height = Math.min(460, Math.max(320, width * 0.62));
  const ridges = peaks.map((peak) => peak.y / bandwidth);
  const xs = decades([...marks.map((mark) => mark.x), ...ridges]);
  const ys = decades([...marks.map((mark) => mark.y), ...peaks.map((peak) => peak.y), ...(peaks.length ? [] : [bandwidth * 10 ** xs[1]])]);
  const [left, bottom] = [58, height - 44];
  const x = (value) => linear(xs, [left, width - EDGE])(Math.log10(value));
  const y = (value) => linear(ys, [bottom, 30])(Math.log10(value));
  const words = `Roofline. Memory bandwidth ${number(bandwidth)} GB/s. ${peaks.map((peak) => `Peak of ${peak.name}: ${number(peak.y)} GFLOP/s.`).join(" ")}`;
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": words });
  if (peaks.length > 0) regions(svg, { x, low: Math.min(...ridges), high: Math.max(...ridges), xs, bottom });
  for (let power = xs[0]; power <= xs[1]; power += 1) svg.append(s("line", { class: "grid", x1: x(10 ** power), x2: x(10 ** power), y1: 30, y2: bottom }),
    s("text", { class: "soft", x: x(10 ** power), y: bottom + 16, "text-anchor": "middle" }, count(10 ** power)));
  for (let power = ys[0]; power <= ys[1]; power += 1) svg.append(s("line", { class: "grid", x1: left, x2: width - EDGE, y1: y(10 ** power), y2: y(10 ** power) }),
    s("text", { class: "soft", x: left - 6, y: y(10 ** power) + 4, "text-anchor": "end" }, count(10 ** power)));
  svg.append(s("text", { x: 2, y: 14 }, "GFLOP/s"), s("text", { x: width - EDGE, y: height - 6, "text-anchor": "end" }, "operations per byte moved"));
  const taken = roofs(svg, { x, y, xs, ys, peaks, bandwidth, width });
  const order = [...marks].sort((a, b) => b.node.median - a.node.median);
  const named = new Set(order.slice(0, width < 520 ? 3 : 6));
  for (const mark of order) {
    const size = 3.5 + 16 * Math.sqrt(mark.node.median / run.total_ms.median);
    const shape = mark.node.bound === "memory" ? SHAPES[1](size * 0.9) : SHAPES[0](size);
    const paint = { memory: "fill:var(--memory);fill-opacity:.75;stroke:var(--text)", compute: "fill:var(--compute);fill-opacity:.75;stroke:var(--text)", neither: "fill:var(--back);fill-opacity:.3;stroke:var(--text)" }[mark.node.bound];
    const text = `${mark.node.name}: ${number(mark.x)} operations per byte, ${number(mark.y)} GFLOP/s; ${numbers(mark.node, run)}`;
    svg.append(telling(s("path", { d: shape, transform: `translate(${x(mark.x)} ${y(mark.y)})`, style: paint }), text, tell));
    mark.size = size;
    taken.push([x(mark.x) - size, y(mark.y) - size, x(mark.x) + size, y(mark.y) + size]);
  }
  for (const mark of order.filter((one) => named.has(one))) label(svg, taken, mark.node.path, x(mark.x), y(mark.y), mark.size, width, bottom);
  return svg;
}

function regions(svg, { x, low, high, xs, bottom }) {
  const box = (from, to, color) => s("rect", { x: from, y: 30, width: Math.max(0, to - from), height: bottom - 30, style: `fill:${color};opacity:.1` });
  const [start, end] = xs.map((power) => x(10 ** power));
  svg.append(box(start, x(low), "var(--memory)"), box(x(high), end, "var(--compute)"));
  if (x(low) - start > 110) svg.append(s("text", { class: "soft", x: start + 6, y: bottom - 8 }, "memory-bound"));
  if (end - x(high) > 110) svg.append(s("text", { class: "soft", x: end - 6, y: bottom - 8, "text-anchor": "end" }, "compute-bound"));
}

// Draws the roofs and returns the boxes of their labels.
function roofs(svg, { x, y, xs, ys, peaks, bandwidth, width }) {
  const [start, end] = [10 ** xs[0], 10 ** xs[1]];
  const top = peaks.length > 0 ? Math.max(...peaks.map((peak) => peak.y)) : bandwidth * end;
  const from = Math.max(start, 10 ** ys[0] / bandwidth);
  const stroke = { style: "stroke:var(--text)", "stroke-width": 2 };
  svg.append(s("line", { ...stroke, x1: x(from), y1: y(bandwidth * from), x2: x(top / bandwidth), y2: y(top) }));
  const taken = [];
  const right = width - EDGE;
  // Peaks whose lines are close to each other share a label.
  const groups = [];
  for (const peak of [...peaks].sort((a, b) => b.y - a.y)) {
    svg.append(s("line", { ...stroke, x1: x(peak.y / bandwidth), x2: right, y1: y(peak.y), y2: y(peak.y) }));
    const group = groups[groups.length - 1];
    if (group && y(peak.y) - y(group[group.length - 1].y) < 16) group.push(peak);
    else groups.push([peak]);
  }
  for (const group of groups) {
    const text = `${group.map((peak) => `${peak.name} ${number(peak.y)}`).join(", ")} GFLOP/s`;
    const height = y(group[0].y) - 5;
    svg.append(s("text", { class: "halo", x: right - 2, y: height, "text-anchor": "end" }, text));
    taken.push([right - 6.8 * text.length, height - 11, right, height + 3]);
  }
  const [x0, y0, x1, y1] = [x(from), y(bandwidth * from), x(top / bandwidth), y(top)];
  const angle = (Math.atan2(y1 - y0, x1 - x0) * 180) / Math.PI;
  const [mx, my] = [x0 + (x1 - x0) * 0.5, y0 + (y1 - y0) * 0.5];
  svg.append(s("text", { class: "halo", transform: `translate(${mx} ${my - 7}) rotate(${angle})`, "text-anchor": "middle" }, `memory: ${number(bandwidth)} GB/s`));
  taken.push([mx - 50, my - 40, mx + 40, my + 25]);
  return taken;
}

// Puts a name beside a mark where it overlaps no other one; leaves it out if there is no place.
function label(svg, taken, name, cx, cy, size, width, bottom) {
  const w = 6.8 * name.length;
  const places = [[cx + size + 4, cy + 4], [cx - size - 4 - w, cy + 4], [cx - w / 2, cy - size - 5], [cx - w / 2, cy + size + 13]];
  for (const [left, base] of places) {
    const box = [left, base - 11, left + w, base + 3];
    const free = left > 60 && left + w < width - 8 && base < bottom - 4 && base > 40
      && taken.every((other) => box[0] > other[2] || box[2] < other[0] || box[1] > other[3] || box[3] < other[1]);
    if (!free) continue;
    taken.push(box);
    svg.append(s("text", { class: "halo", x: left, y: base, style: "pointer-events:none" }, name));
    return;
  }
}

function memory(run) {
  if (run.memory.length < 2) return null;
  const peak = run.memory.reduce((a, b) => (b.bytes > a.bytes ? b : a));
  const end = run.memory[run.memory.length - 1].ms;
  const [size, name] = peak.bytes >= 2 ** 30 ? [2 ** 30, "GiB"] : [2 ** 20, "MiB"];
  const [span, second] = end >= 10000 ? [1000, "s"] : [1, "ms"];
  const points = run.memory.map((sample) => [sample.ms / span, sample.bytes / size]);
  const resident = run.peak_resident_bytes ? ` The peak resident memory of the process, with mapped weights, is ${bytes(run.peak_resident_bytes)}.` : "";
  return section("Memory over time",
    h("p", {}, `Heap use is largest at ${time(peak.ms)}: ${bytes(peak.bytes)}.${resident}`),
    lines({ title: "Heap use at the boundaries of stages and their modules, last run", x: { label: "time", unit: second }, y: { label: "heap", unit: name },
      series: [{ name: "heap", points }], fromZero: true, area: true, plain: run.memory.length > 60, height: 240 }));
}

function tokens(run) {
  const t = run.tokens;
  const part = (value, name, fill) => ({ value, text: `${number(value)} ${name}`, fill });
  const rows = [{ label: "prompt", parts: [part(t.computed, "computed", "f0"), part(t.reused, "reused", "empty")],
    value: `${number(t.prompt)}: ${number(t.computed)} computed, ${number(t.reused)} reused` }];
  if (t.visual_before > 0) {
    rows.push({ label: "media", parts: [part(t.visual, "kept", "f0"), part(Math.max(0, t.visual_before - t.visual), "dropped", "empty")],
      value: `${number(t.visual_before)}: ${number(t.visual)} kept, ${number(Math.max(0, t.visual_before - t.visual))} dropped` });
    for (const step of t.reductions) rows.push({ label: `after ${step.method} (${step.stage})`, parts: [part(step.tokens, "left", "f0")], value: `${number(step.tokens)} left` });
  }
  rows.push({ label: "generated", parts: [part(t.generated, "generated", "f0")], value: number(t.generated) });
  const frames = t.useful_frames + t.padded_frames > 0 && bars([{ label: "frames", parts: [part(t.useful_frames, "useful", "f0"), part(t.padded_frames, "padding", "empty")],
    value: `${number(t.useful_frames + t.padded_frames)}: ${number(t.useful_frames)} with content, ${number(t.padded_frames)} padding` }], { label: "frames at the input of the encoders" });
  const hits = t.encoder_hits + t.encoder_misses;
  return section("Tokens", bars(rows, { label: "tokens" }), frames,
    hits > 0 && h("p", {}, `Encoders: ${t.encoder_misses} of ${hits} media were encoded, ${t.encoder_hits} reused.`),
    h("p", { class: "soft" }, "Solid parts were computed. Hatched parts cost nothing, except for padding, which encoders process like content."));
}

// Minimum, median, 95th percentile and maximum relative to the median.
function spread(run) {
  const rows = [["first token", run.first_token_ms, time], ["whole run", run.total_ms, time], ["one clock around the run", run.outside_ms, time],
    run.tokens_per_second && ["tokens per second", run.tokens_per_second, number],
    ...run.modules.filter((module) => missing(module.parent)).map((module) => [module.name, module.ms, time])].filter((row) => row && row[1].median > 0);
  if (rows.every(([, statistics]) => statistics.count < 2)) {
    return section("Spread of the repeats", h("p", {}, "The run was measured once, so there is no spread. More repeats tell noise from differences."));
  }
  const relative = rows.flatMap(([, { min, max, median }]) => [(100 * min) / median, (100 * max) / median]);
  const domain = range([...relative, 100, 99, 101], false);
  const caption = "Line: minimum to maximum. Box: median to 95th percentile. Dot: median. All relative to the median; standard deviations are in percent of the mean.";
  return section("Spread of the repeats", figure(caption, (width, tell) => drawSpread(rows, domain, width, tell)));
}

function drawSpread(rows, domain, width, tell) {
  const narrow = width < 560;
  const left = narrow ? 8 : 8 + 6.8 * Math.max(...rows.map(([name]) => name.length));
  const step = narrow ? 44 : 30;
  const height = 30 + rows.length * step + 24;
  const details = narrow ? 12 : 320;
  const x = linear(domain, [left + 8, width - details]);
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Spread of the repeats relative to the median" });
  for (const value of ticks(domain[0], domain[1], narrow ? 4 : 6)) svg.append(
    s("line", { class: value === 100 ? "axis" : "grid", x1: x(value), x2: x(value), y1: 8, y2: height - 30 }),
    s("text", { class: "soft", x: x(value), y: height - 12, "text-anchor": "middle" }, `${number(value)} %`));
  rows.forEach(([name, v, show], i) => {
    const y = 22 + i * step + (narrow ? 18 : 0);
    const at = (value) => x((100 * value) / v.median);
    const deviation = v.mean ? ` ± ${number((100 * v.std_dev) / v.mean)} %` : "";
    const words = `${name}: minimum ${show(v.min)}, median ${show(v.median)}, 95th percentile ${show(v.p95)}, maximum ${show(v.max)}, ${v.count} repeats`;
    const short = narrow ? `${show(v.median)}${deviation}` : `median ${show(v.median)}, p95 ${show(v.p95)}${deviation}`;
    svg.append(s("text", { x: narrow ? 2 : left, y: narrow ? y - 13 : y + 4, "text-anchor": narrow ? "start" : "end" }, narrow ? `${name}: ${short}` : name));
    if (!narrow) svg.append(s("text", { class: "soft", x: width - details + 14, y: y + 4 }, short));
    svg.append(telling(s("g", {},
      s("line", { x1: at(v.min), x2: at(v.max), y1: y, y2: y, style: "stroke:var(--s0)", "stroke-width": 2 }),
      s("rect", { x: at(v.median), y: y - 5, width: Math.max(1, at(v.p95) - at(v.median)), height: 10, style: "fill:var(--s0);fill-opacity:.4;stroke:var(--s0)" }),
      s("path", { d: SHAPES[0](4), transform: `translate(${at(v.median)} ${y})`, style: "fill:var(--s0)" })), words, tell));
  });
  return svg;
}

function energy(run) {
  const trees = stages(run.modules, true).filter((node) => !missing(node.energy_joules));
  if (missing(run.energy_joules) && trees.length === 0) return null;
  const each = run.tokens.generated > 0 && !missing(run.energy_joules) ? `, ${number(run.energy_joules / run.tokens.generated)} J for each generated token` : "";
  return section("Energy",
    h("p", {}, missing(run.energy_joules) ? "" : `The median run takes ${number(run.energy_joules)} J${each}. `, report.energy_source ? `Source: ${report.energy_source}.` : ""),
    trees.length > 0 && bars(trees.map((node) => ({ label: node.name, parts: [{ value: node.energy_joules }], value: `${number(node.energy_joules)} J` })), { label: "energy of the stages" }));
}

function cold(run) {
  if (!run.cold) return null;
  const warm = new Map(run.modules.filter((module) => missing(module.parent)).map((module) => [module.name, module.ms.median]));
  const rows = [["first token", run.cold.first_token_ms, run.first_token_ms.median], ["whole run", run.cold.total_ms, run.total_ms.median],
    ...run.cold.stages.map(([name, ms]) => [name, ms, warm.get(name)])];
  return section("First run after loading",
    table([{ name: "", value: (row) => row[0] }, { name: "first run", value: (row) => row[1], text: (row) => time(row[1]), right: true },
      { name: "later runs, median", value: (row) => row[2], text: (row) => time(row[2]), right: true },
      { name: "ratio", value: (row) => row[1] / row[2], text: (row) => (row[2] > 0 ? `${number(row[1] / row[2])} x` : "-"), right: true }], rows, { fixed: true, label: "first run and later runs" }));
}

// Sections about the whole report.

function sweep(chosen) {
  if (runs.length < 2) return null;
  const figures = SWEPT.flatMap(([field, label, name, long]) => {
    const others = SWEPT.map(([other]) => other).filter((other) => other !== field);
    const same = runs.filter((run) => !missing(run.parameters[field]) && others.every((other) => run.parameters[other] === chosen.parameters[other]));
    if (new Set(same.map((run) => run.parameters[field])).size < 2) return [];
    same.sort((a, b) => a.parameters[field] - b.parameters[field]);
    return [lines({ title: `Time by ${long}; dots are medians, whiskers reach from the minimum to the 95th percentile`, x: { label, unit: name }, fromZero: true, ...sweptSeries(same, field) })];
  });
  const one = (name, value, show) => ({ name, value, text: (run) => show(value(run)), right: true });
  const list = table([{ name: "point", value: (run) => runs.indexOf(run), text: (run) => point(run.parameters) },
    one("first token", (run) => run.first_token_ms.median, time), one("whole run", (run) => run.total_ms.median, time),
    one("tokens per second", (run) => run.tokens_per_second && run.tokens_per_second.median, number),
    one("prompt tokens", (run) => run.tokens.prompt, number), one("computed", (run) => run.tokens.computed, number),
    one("peak heap", (run) => Math.max(0, ...run.memory.map((sample) => sample.bytes)), bytes)],
  runs, { strong: (run) => run === chosen, label: "points of the sweep" });
  return section("Sweep", ...figures, list);
}

function sweptSeries(same, field) {
  const longest = Math.max(...same.map((run) => run.total_ms.median));
  const [scale, name] = longest >= 10000 ? [1000, "s"] : [1, "ms"];
  const at = (run, v) => [run.parameters[field], v.median / scale, v.min / scale, v.p95 / scale];
  const names = [...new Set(same.flatMap((run) => run.modules.filter((module) => missing(module.parent)).map((module) => module.name)))];
  // A run without the stage spends no time in it.
  const none = { median: 0, min: 0, p95: 0 };
  const stage = (title) => same.map((run) => {
    const module = run.modules.find((one) => missing(one.parent) && one.name === title);
    return at(run, module ? module.ms : none);
  });
  const most = (points) => Math.max(...points.map((one) => one[1]));
  const largest = names.map((title) => ({ name: title, points: stage(title) })).filter((line) => most(line.points) > 0.02 * (longest / scale))
    .sort((a, b) => most(b.points) - most(a.points)).slice(0, 4);
  return { y: { label: "time", unit: name }, series: [{ name: "whole run", points: same.map((run) => at(run, run.total_ms)) },
    { name: "first token", points: same.map((run) => at(run, run.first_token_ms)) }, ...largest] };
}

function loading() {
  const trees = listed(stages(report.load, true)).filter((node) => node.median > 0);
  if (trees.length === 0) return null;
  return section("Loading the model", bars(trees.map((node) => ({ label: node.label, parts: [{ value: node.median, fill: node.depth ? "neither" : "f0" }], value: `${time(node.median)}, peak heap ${bytes(node.peak_bytes)}` })), { label: "loading" }));
}

function question(run) {
  const p = run.parameters;
  return section("Question and answer", pairs([["prompt", p.prompt], ["media", p.media.join(", ")], ["reduction", p.reduce], ["largest number of tokens", number(p.max_tokens)],
    ["warm-up runs", number(run.warmup)], ["measured runs", number(run.total_ms.count)], ["end of the answer", String(run.finish_reason).replace(/_/g, " ")]], "question"),
  h("pre", {}, run.answer || "(no text)"));
}

function show(run) {
  const view = document.getElementById("run");
  view.replaceChildren(...[doubts(run), ...headline(run), stageBar(run), modulesSection(run), sweep(run), roofline(run), memory(run), tokens(run), spread(run), energy(run), cold(run), question(run)].flat().filter((part) => part));
}

const record = report.environment.record;
page.append(h("header", {},
  h("h1", {}, `Profile of ${record ? record.path.split("/").pop() : "a model"}`),
  h("p", { class: "soft" }, [report.environment.machine, `${report.environment.threads} threads`, report.environment.device, `${report.environment.program} ${report.environment.version}`].filter((text) => text).join(", "))));
if (runs.length > 1) {
  const choice = h("select", { onchange: (event) => show(runs[event.target.value]) }, ...runs.map((run, i) => h("option", { value: i }, point(run.parameters))));
  page.append(h("div", { class: "controls" }, h("label", {}, "Point of the sweep: ", choice)));
}
page.append(h("div", { id: "run" }));
if (runs.length > 0) show(runs[0]);
else document.getElementById("run").append(h("p", {}, "The report has no runs."));
page.append(...[loading(), section("Environment", pairs(flatten(report.environment), "environment"))].filter((part) => part));
