// The page of a comparison of records: `{text, questions, models}`, the reference first.

const nameOf = (model) => model.file.split(/[\\/]/).pop();
const predictions = (model) => model.predictions || {};
const divergence = (model) => predictions(model).divergence || {};
const answers = (model) => model.answers || {};

// One point per model.
function bySize(title, y, value, models) {
  const series = models
    .filter((model) => !missing(value(model)))
    .map((model) => ({ name: nameOf(model), points: [[model.size.bytes / 2 ** 20, value(model)]] }));
  return lines({ title, x: { label: "size of the record", unit: "MiB" }, y, series, fromZero: true });
}

function stageColumns(models, part, label) {
  const names = [...new Set(models.flatMap((model) => Object.keys(part(model).stages_ms || {})))];
  return names.map((name) => ({ name: `${label}: ${name}`, value: (m) => (part(m).stages_ms || {})[name], text: (m) => time((part(m).stages_ms || {})[name]), right: true }));
}

const figure3 = (name, value, decimals, title) => ({ name, value, text: (m) => (missing(value(m)) ? "-" : fixed(value(m), decimals)), right: true, title });
const share1 = (name, value, title) => ({ name, value, text: (m) => percent(value(m)), right: true, title });

const columns = [
  { name: "model", value: nameOf },
  { name: "size", value: (m) => m.size.bytes, text: (m) => bytes(m.size.bytes), right: true },
  figure3("bits, layers", (m) => m.size.layer_bits, 2, "Bits per weight of the matrices in the layers"),
  figure3("bits, vocabulary", (m) => m.size.vocabulary_bits, 2, "Bits per weight of embeddings and output head"),
  figure3("bits, file", (m) => m.size.file_bits, 2, "Bits per weight of the whole file"),
];
if (report.text) {
  columns.push(
    figure3("perplexity", (m) => predictions(m).perplexity, 3),
    figure3("KL", (m) => divergence(m).mean, 4, "Mean divergence from the reference, in nats per token"),
    figure3("±", (m) => divergence(m).standard_error, 4, "Standard error over windows"),
    figure3("median", (m) => divergence(m).median, 4),
    figure3("99 %", (m) => divergence(m).p99, 3),
    share1("top-1", (m) => predictions(m).top1, "Positions with the most probable token of the reference"),
    ...stageColumns(report.models, predictions, "per window"),
  );
}
if (report.questions) {
  columns.push(
    share1("accuracy", (m) => answers(m).accuracy),
    share1("same answers", (m) => answers(m).agreement, "Questions with the answer of the reference"),
    figure3("KL of answers", (m) => (answers(m).divergence || {}).mean, 4, "Mean divergence at the tokens of the reference's answers, in nats per token"),
    ...stageColumns(report.models, answers, "per question"),
  );
}

const [reference, ...candidates] = report.models;
page.append(h("header", {}, h("h1", {}, "Comparison of records"), h("p", {}, "Reference: ", h("code", {}, reference.file)),
  report.text && h("p", { class: "soft" }, `${number(report.text.positions)} positions of ${report.text.file}: the second halves of ${report.text.windows} windows of ${report.text.window_tokens} tokens.`),
  report.questions && h("p", { class: "soft" }, `${report.questions.questions} questions of ${report.questions.file}.`)));
if (report.text) {
  page.append(bySize("Divergence from the reference by size", { label: "KL", unit: "nats per token" }, (m) => divergence(m).mean, candidates),
    bySize("Perplexity by size", { label: "perplexity", unit: "" }, (m) => predictions(m).perplexity, report.models));
}
if (report.questions) {
  page.append(bySize("Accuracy by size", { label: "accuracy", unit: "%" }, (m) => (missing(answers(m).accuracy) ? null : 100 * answers(m).accuracy), report.models),
    bySize("Divergence of the answers by size", { label: "KL", unit: "nats per token" }, (m) => (answers(m).divergence || {}).mean, candidates));
}
page.append(table(columns, report.models, { caption: "Models. Select a heading to sort.", sticky: true }));
