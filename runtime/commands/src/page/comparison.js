// The page of a comparison of profiles.

const VERDICTS = {
  better: "better", worse: "worse", within_noise: "within noise", noise_unknown: "noise unknown",
  equal: "equal", added: "added", removed: "removed",
};
const shown = (value, unitName) => (missing(value) ? "-" : { ms: time, bytes }[unitName] ? { ms: time, bytes }[unitName](value) : `${number(value)} ${unitName}`);
const signed = (value, text) => (value > 0 ? `+${text}` : text);
const relative = (change) => (missing(change.before) || missing(change.after) || change.before === 0 ? null : change.difference / change.before);
const ratio = (pair) => (!pair || (pair[0] === 0 && pair[1] === 0) ? null : pair[0] === 0 ? Infinity : pair[1] / pair[0] - 1);
const share = (value) => (missing(value) ? "-" : value === Infinity ? "new" : value === 0 ? "equal" : signed(value, `${fixed(100 * value, 1)} %`));

function changeTable(changes, label, isModule) {
  const columns = [
    { name: isModule ? "stage or module" : "value", value: (c) => c.name, text: (c) => (c.stage === c.name ? h("strong", {}, c.name) : isModule && !c.name.startsWith(`${c.stage}.`) ? `${c.name} (${c.stage})` : c.name) },
    { name: "before", value: (c) => c.before, text: (c) => shown(c.before, c.unit), right: true },
    { name: "after", value: (c) => c.after, text: (c) => shown(c.after, c.unit), right: true },
    { name: "difference", value: (c) => Math.abs(c.difference), text: (c) => signed(c.difference, shown(c.difference, c.unit)), right: true },
    { name: "noise", value: (c) => c.noise, text: (c) => (missing(c.noise) ? "-" : `± ${shown(c.noise, c.unit)}`), right: true, title: "Half the width of the 99 % confidence interval of the difference" },
    { name: "relative", value: relative, text: (c) => share(relative(c)), right: true },
    { name: "verdict", value: (c) => VERDICTS[c.verdict], text: (c) => (c.verdict === "better" || c.verdict === "worse" ? h("strong", {}, VERDICTS[c.verdict]) : VERDICTS[c.verdict]) },
  ];
  if (isModule && changes.some((c) => c.macs && sum(c.macs) > 0)) columns.push({ name: "MACs", value: (c) => ratio(c.macs), text: (c) => share(ratio(c.macs)), right: true, title: "Change of the multiply-accumulates" });
  if (isModule && changes.some((c) => c.bytes && sum(c.bytes) > 0)) columns.push({ name: "bytes moved", value: (c) => ratio(c.bytes), text: (c) => share(ratio(c.bytes)), right: true });
  return table(columns, changes, { sticky: true, label });
}

// Bars to the left are faster, bars to the right are slower.
function stageChart(changes) {
  const stages = changes.filter((c) => c.stage === c.name && c.difference !== 0);
  if (stages.length === 0) return null;
  const fill = (c) => (c.verdict === "within_noise" || c.verdict === "noise_unknown" ? "empty" : c.difference < 0 ? "f0" : "f1");
  return h("figure", {}, h("figcaption", {}, "Change of the stages. To the left: less time; to the right: more time. Hatched: within noise, or noise unknown."),
    bars(stages.map((c) => ({ label: c.name, parts: [{ value: c.difference, fill: fill(c) }], value: `${signed(c.difference, time(c.difference))} (${missing(relative(c)) ? VERDICTS[c.verdict] : share(relative(c))})` })), { label: "change of the stages" }));
}

function words(run) {
  const moved = run.whole.filter((c) => c.verdict === "better" || c.verdict === "worse");
  if (moved.length === 0) return "No value of the whole run differs beyond noise.";
  return `Beyond noise: ${moved.map((c) => `${c.name} ${share(relative(c))}`).join(", ")}.`;
}

function against(profile) {
  return section(profile.file, warnings(profile.warnings), ...profile.runs.map((run) => h("div", {},
    profile.runs.length > 1 && h("h3", {}, run.point), h("p", {}, words(run)), changeTable(run.whole, "whole run", false),
    stageChart(run.modules), h("h3", {}, "Stages and modules, the largest difference first"), changeTable(run.modules, "stages and modules", true),
    run.layers.length > 0 && h("details", {}, h("summary", {}, `Every layer (${run.layers.length} modules)`), changeTable(run.layers, "layers", true)))));
}

page.append(h("header", {}, h("h1", {}, "Comparison of profiles"), h("p", {}, "Baseline: ", h("code", {}, report.baseline)),
  h("p", { class: "soft" }, "Values are means of the repeats. A difference is beyond noise if the 99 % confidence interval of the difference of the means (Welch's t-test) does not contain zero. The layers of a stack are added up, with the largest noise that their sum can have.")),
  ...report.profiles.map(against));
