// The page of the demo: the image, the answers and the time of their stages.

const FILLS = ["f0", "f1", "f2", "f3", "f4", "f5"];
const names = [...new Set(report.answers.flatMap((answer) => answer.stages.map((stage) => stage.name)))];
const fill = (stage) => FILLS[names.indexOf(stage.name) % FILLS.length];
const whole = (answer) => sum(answer.stages.map((stage) => stage.ms));

function stageChart() {
  const high = Math.max(...report.answers.map(whole));
  const rows = report.answers.map((answer, i) => ({
    label: `question ${i + 1}`,
    parts: answer.stages.map((stage) => ({ value: stage.ms, text: stage.name, fill: fill(stage), title: `${stage.name}: ${time(stage.ms)}` })),
    value: time(whole(answer)),
  }));
  const key = (name) => h("li", {}, h("span", { class: `key ${fill({ name })}` }), name);
  return h("figure", {}, h("figcaption", {}, "Time of the stages. A question about an image that was seen before starts at its text."),
    bars(rows, { high, label: "time of the stages" }), h("ul", { class: "legend" }, ...names.map(key)));
}

function stageTable() {
  const at = (answer, name) => answer.stages.find((stage) => stage.name === name);
  const columns = [
    { name: "stage", value: (name) => name },
    ...report.answers.map((answer, i) => ({
      name: `question ${i + 1}`, right: true,
      value: (name) => (at(answer, name) || {}).ms, text: (name) => time((at(answer, name) || {}).ms),
    })),
  ];
  return table(columns, names, { fixed: true, label: "stages" });
}

function answered(answer) {
  const rate = missing(answer.tokens_per_second) ? null : `${number(answer.tokens_per_second)} tokens per second`;
  const facts = [`first token after ${time(answer.first_token_ms)}`, rate,
    `${answer.prompt_tokens} tokens of the prompt, ${answer.visual_tokens} of them of the image, ${answer.reused_tokens} reused`];
  return h("div", {}, h("h3", {}, answer.question), h("pre", {}, answer.text), h("p", { class: "soft" }, facts.filter((fact) => fact).join("; ")));
}

const machine = report.environment;
page.append(
  h("header", {}, h("h1", {}, "Demo of edge-lmm"),
    h("p", { class: "soft" }, [machine.machine, machine.kernels, `${machine.threads} threads`, machine.device, `${machine.program} ${machine.version}, ${machine.build} build`].filter((text) => text).join(", ")),
    h("p", {}, "A model of 0.8 million parameters, embedded in the program, that knows colored shapes. Models of billions of parameters run through the same code and report the same stages.")),
  h("img", { src: report.image, alt: "the image of the questions", width: 320, style: "image-rendering: pixelated; border: 1px solid var(--line)" }),
  section("Questions and answers", ...report.answers.map(answered)),
  section("Stages", stageChart(), stageTable(), h("p", { class: "soft" }, `Loading the model took ${time(report.load_ms)}.`)));
