// The page of one or several experiments: `{title, reports}`.

const cellText = (cell, column) => (missing(cell) ? "-" : typeof cell === "number" ? fixed(cell, column.decimals) : cell);

function dataTable(data, caption) {
  const numeric = (i) => data.rows.some((row) => typeof row[i] === "number");
  const columns = data.columns.map((column, i) => ({
    name: column.name + (column.unit ? `, ${column.unit}` : ""),
    right: numeric(i),
    value: (row) => row[i],
    text: (row) => cellText(row[i], column),
  }));
  return table(columns, data.rows, { caption, sticky: true });
}

function chartOf(chart) {
  if (chart.data.lines) {
    return lines({ title: chart.title, x: chart.x, y: chart.y, series: chart.data.lines });
  }
  const { categories, series, stacked } = chart.data.bars;
  const words = (value) => `${number(value)}${unit(chart.y.unit)}`;
  const fill = (i) => `f${i % 6}`;
  let rows;
  if (stacked) {
    rows = categories.map((label, c) => ({
      label,
      parts: series.map((bar, i) => ({ value: bar.values[c] || 0, text: number(bar.values[c]), title: `${bar.name}: ${words(bar.values[c])}`, fill: fill(i) })),
      value: words(sum(series.map((bar) => bar.values[c] || 0))),
    }));
  } else {
    const row = (label, value, i) => ({ label, parts: [{ value: value || 0, title: words(value), fill: fill(i) }], value: missing(value) ? "no value" : words(value) });
    rows = series.length === 1
      ? categories.map((label, c) => row(label, series[0].values[c], 0))
      : categories.flatMap((label, c) => [{ label }, ...series.map((bar, i) => row(bar.name, bar.values[c], i))]);
  }
  const legend = stacked && h("ul", { class: "legend" }, ...series.map((bar, i) => h("li", {}, h("span", { class: `key ${fill(i)}` }), bar.name)));
  const axis = `${chart.title}: ${chart.y.label}${chart.y.unit ? ` in ${chart.y.unit}` : ""}${chart.x.label ? ` by ${chart.x.label}` : ""}`;
  return h("figure", {}, h("figcaption", {}, axis), legend, bars(rows, { label: axis }));
}

function failureTable(failures) {
  if (failures.length === 0) return null;
  const column = (name, field, wide) => ({ name, value: (row) => row[field], wide });
  return [h("h3", {}, `Failures (${failures.length})`),
    h("p", {}, "These measurements failed; the results do not contain them."),
    table([column("model", "model"), column("setting", "setting"), column("sample", "sample"), column("error", "error", true)], failures, { label: "failures" })];
}

function experiment(one, id) {
  const notes = one.notes.length > 0 && h("ul", {}, ...one.notes.map((note) => h("li", {}, note)));
  const environments = one.environments.map((environment, i) => h("details", {},
    h("summary", {}, one.environments.length > 1 ? `Environment of shard ${i + 1}` : "Environment"), pairs(flatten(environment), "environment")));
  return h("section", { id },
    h("h2", {}, one.question), h("p", { class: "soft" }, "Experiment ", h("code", {}, one.experiment)),
    warnings(one.failures.length > 0 ? [`Failed measurements: ${one.failures.length}; they are listed below.`] : []),
    notes, ...one.charts.map(chartOf), dataTable(one.table, "Results. Select a heading to sort."),
    failureTable(one.failures),
    h("details", {}, h("summary", {}, "Parameters"), pairs(flatten(one.parameters), "parameters")), ...environments);
}

function contents() {
  if (report.reports.length < 2) return null;
  return h("nav", { "aria-label": "experiments" }, h("ul", {},
    ...report.reports.map((one, i) => h("li", {}, h("a", { href: `#report-${i}` }, one.question)))));
}

page.append(h("header", {}, h("h1", {}, report.title), contents()));
page.append(...report.reports.map((one, i) => experiment(one, `report-${i}`)));
