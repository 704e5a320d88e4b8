"use strict";
const $ = (id) => document.getElementById(id);
const MAX_SIDE = 1536, RATE = 16000;
/* The colors of stages are those of the reports. */
const COLORS = { media: "f5", preprocess: "f4", vision: "f0", audio: "f0", projector: "f3", cache: "f5", prefill: "f2", decode: "f1" };
let messages = [], pending = [], running = null, stream = null, recorder = null, isOpening = false, facing = "environment";

/** Creates an element; text is never parsed as markup. */
function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

function notice(text) {
  $("notice").textContent = text || "";
  $("notice").hidden = !text;
}

function bytes(n) {
  if (n == null) return "?";
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]])
    if (n >= size) return `${(n / size).toFixed(1)} ${unit}`;
  return `${n} B`;
}
const time = (ms) => (ms < 1000 ? `${ms.toFixed(ms < 10 ? 1 : 0)} ms` : `${(ms / 1000).toFixed(1)} s`);

function headers() {
  const key = $("key").value;
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

/* Model and memory. */
let model = null;
async function facts() {
  try {
    const health = await (await fetch("/health")).json();
    if (!model || model.id !== health.model) {
      const reply = await fetch("/v1/models", { headers: headers() });
      if (reply.ok) model = (await reply.json()).data[0];
      else if (reply.status === 401) { $("settings").hidden = false; notice("This server requires an API key: see the settings."); }
    }
    $("model").textContent = health.model;
    document.title = `${health.model} – Edge-LMM`;
    const parts = [];
    if (model) {
      const more = model.edge_lmm;
      parts.push(`record ${bytes(more.record_bytes)}`, `context ${more.context}`, more.device);
      $("max-tokens").max = more.max_tokens;
    }
    parts.push(`memory ${bytes(health.resident_bytes)} used, ${bytes(health.usable_bytes)} free`);
    if (health.queue) parts.push(`${health.queue} waiting`);
    $("facts").textContent = parts.join(" · ");
  } catch {
    $("facts").textContent = "The server does not answer.";
  }
}

/* Files of the next question. */
function readUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** Returns an image as a data URL, scaled down if it is large: a photo of a phone has many megabytes. */
async function imageUrl(blob) {
  const bitmap = await createImageBitmap(blob);
  const scale = MAX_SIDE / Math.max(bitmap.width, bitmap.height);
  if (scale >= 1 && ["image/png", "image/jpeg", "image/webp", "image/gif"].includes(blob.type)) return readUrl(blob);
  const canvas = element("canvas", { width: Math.round(bitmap.width * Math.min(1, scale)), height: Math.round(bitmap.height * Math.min(1, scale)) });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.92);
}

/** Converts sound that the browser can decode to WAV with one channel. */
async function wavUrl(blob) {
  const context = new OfflineAudioContext(1, 1, RATE);
  const decoded = await context.decodeAudioData(await blob.arrayBuffer());
  const offline = new OfflineAudioContext(1, Math.max(1, Math.ceil(decoded.duration * RATE)), RATE);
  const source = offline.createBufferSource();
  source.buffer = decoded;
  source.connect(offline.destination);
  source.start();
  const samples = (await offline.startRendering()).getChannelData(0);
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, word) => [...word].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true); view.setUint32(28, 2 * RATE, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((v, i) => view.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, v)) * 32767, true));
  return readUrl(new Blob([view.buffer], { type: "audio/wav" }));
}

async function add(blob, name) {
  const kind = blob.type.split("/")[0];
  try {
    if (kind === "image") pending.push({ kind, name, url: await imageUrl(blob) });
    else if (kind === "audio") pending.push({ kind, name, url: await wavUrl(blob) });
    else pending.push({ kind: "video", name, url: await readUrl(blob) });
    notice();
  } catch (error) {
    notice(`${name} cannot be read: ${error.message || error}`);
  }
  showPending();
}

function showPending() {
  $("pending").replaceChildren(...pending.map((file, i) => {
    const remove = element("button", { type: "button", textContent: "×", ariaLabel: `Remove ${file.name}` });
    remove.onclick = () => { pending.splice(i, 1); showPending(); };
    const shown = file.kind === "image" ? element("img", { src: file.url, alt: file.name }) : element("span", { textContent: file.name });
    return element("li", {}, shown, remove);
  }));
}

function part(file) {
  if (file.kind === "image") return { type: "image_url", image_url: { url: file.url } };
  if (file.kind === "audio") return { type: "input_audio", input_audio: { data: file.url, format: "wav" } };
  return { type: "video_url", video_url: { url: file.url } };
}

function shownFile(file) {
  if (file.kind === "image") return element("img", { src: file.url, alt: file.name });
  return element(file.kind, { src: file.url, controls: true, ariaLabel: file.name });
}

/* Camera and microphone. */
async function openCamera() {
  // Browsers offer the camera on https and on this machine only; elsewhere a phone takes a photo.
  if (!navigator.mediaDevices) return $("capture").click();
  closeCamera();
  $("settings").hidden = true;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: facing, width: { ideal: 1280 } } });
    $("viewfinder").srcObject = stream;
    $("preview").hidden = false;
    $("log").scrollTop = $("log").scrollHeight;
    notice();
  } catch (error) {
    notice(`The camera cannot be used: ${error.message}`);
  }
}

function closeCamera() {
  if (stream) stream.getTracks().forEach((track) => track.stop());
  stream = null;
  $("viewfinder").srcObject = null;
  $("preview").hidden = true;
}

function shoot() {
  const video = $("viewfinder");
  if (!video.videoWidth) return;
  const canvas = element("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => add(blob, "camera"), "image/jpeg", 0.92);
}

async function record() {
  const button = $("microphone");
  if (recorder) return recorder.stop();
  if (isOpening) return;
  if (!navigator.mediaDevices) return notice("Browsers offer the microphone on https and on this machine only; add a sound file instead.");
  isOpening = true;
  try {
    const sound = await navigator.mediaDevices.getUserMedia({ audio: true });
    const pieces = [];
    recorder = new MediaRecorder(sound);
    recorder.ondataavailable = (event) => pieces.push(event.data);
    recorder.onstop = () => {
      sound.getTracks().forEach((track) => track.stop());
      const type = recorder.mimeType.split(";")[0] || "audio/webm";
      recorder = null;
      button.textContent = "Record";
      button.ariaPressed = "false";
      add(new Blob(pieces, { type: type.replace("video/", "audio/") }), "recording");
    };
    recorder.start();
    button.textContent = "Stop recording";
    button.ariaPressed = "true";
    notice();
  } catch (error) {
    recorder = null;
    notice(`The microphone cannot be used: ${error.message}`);
  }
  isOpening = false;
}

/** The bar of an answer: live from the events of progress, exact from the figures at the end. */
class Stages {
  constructor() {
    this.bar = element("div", { className: "stages", role: "img" });
    this.legend = element("ul", { className: "legend" });
    this.figures = element("p", { className: "figures" });
    this.stages = [];
    this.start = performance.now();
  }
  /** A stage has come a step further. */
  progress({ stage, done, total, queue }) {
    if (queue != null) return void (this.figures.textContent = queue ? `${queue} ahead in the queue` : "starting");
    const now = performance.now();
    let last = this.stages.at(-1);
    if (!last || last.stage !== stage) {
      last = { stage, ms: 0, from: last ? last.until : this.start };
      this.stages.push(last);
    }
    last.until = now;
    last.ms = now - last.from;
    this.figures.textContent = stage === "decode" ? `token ${done}` : `${stage} ${done} of ${total}`;
    this.draw();
  }
  finish(figures, usage) {
    if (!figures) return;
    this.stages = figures.timings;
    this.draw();
    const parts = [`first token ${time(figures.first_token_ms)}`];
    if (figures.tokens_per_second) parts.push(`${figures.tokens_per_second.toFixed(1)} tokens/s`);
    if (usage) {
      const cached = usage.prompt_tokens_details.cached_tokens;
      parts.push(`${usage.prompt_tokens} + ${usage.completion_tokens} tokens` + (cached ? `, ${cached} cached` : ""));
    }
    if (figures.visual_tokens) parts.push(`${figures.visual_tokens} for media`);
    if (figures.queue_ms > 100) parts.push(`${time(figures.queue_ms)} in the queue`);
    if (figures.finish_reason === "length") parts.push("ended at the token limit");
    if (figures.finish_reason === "context") parts.push("the context is full: start a new chat");
    this.figures.textContent = parts.join(" · ");
  }
  draw() {
    const total = this.stages.reduce((sum, { ms }) => sum + ms, 0) || 1;
    while (this.bar.children.length > this.stages.length) this.bar.lastChild.remove();
    this.stages.forEach(({ stage, ms }, i) => {
      const piece = this.bar.children[i] || this.bar.appendChild(element("i", {}, element("span")));
      piece.className = COLORS[stage] || "f5";
      piece.style.width = `${(100 * ms) / total}%`;
      piece.title = `${stage}: ${time(ms)}`;
      piece.firstChild.textContent = ms / total > 0.14 ? stage : "";
    });
    const rows = this.stages.filter(({ ms }) => ms / total >= 0.005);
    this.legend.replaceChildren(...rows.map(({ stage, ms }) =>
      element("li", {}, element("span", { className: `key ${COLORS[stage] || "f5"}` }), `${stage} ${time(ms)}`)));
    this.bar.ariaLabel = this.stages.map(({ stage, ms }) => `${stage} ${time(ms)}`).join(", ");
  }
}

/* The conversation. */
function showTurn(className, ...children) {
  document.querySelector(".empty-log")?.remove();
  const log = $("log");
  const turn = log.appendChild(element("article", { className: `turn ${className}` }, ...children));
  log.scrollTop = log.scrollHeight;
  return turn;
}

/** Calls `take` with the JSON of each server-sent event. */
async function readEvents(body, take) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events)
      if (event.startsWith("data: ") && event !== "data: [DONE]") take(JSON.parse(event.slice(6)));
  }
}

async function ask(text) {
  const files = pending, conversation = messages;
  pending = [];
  showPending();
  const content = files.length ? [...files.map(part), { type: "text", text }] : text;
  showTurn("user", element("div", { className: "media" }, ...files.map(shownFile)), element("div", { className: "text", textContent: text }));
  conversation.push({ role: "user", content });
  const stages = new Stages(), out = element("div", { className: "text" });
  const turn = showTurn("answer waiting", out, stages.bar, stages.legend, stages.figures);
  const system = $("system").value.trim();
  const request = {
    messages: system ? [{ role: "system", content: system }, ...conversation] : conversation,
    max_tokens: Number($("max-tokens").value) || 512, temperature: Number($("temperature").value) || 0,
    stream: true, stream_options: { include_usage: true }, edge_lmm: { progress: true },
  };
  running = new AbortController();
  showRunning();
  let figures = null, usage = null, failure = null, answer = "";
  try {
    const reply = await fetch("/v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(request), signal: running.signal });
    if (!reply.ok) throw new Error((await reply.json()).error.message);
    await readEvents(reply.body, (event) => {
      if (event.error) failure = event.error.message;
      const log = $("log"), atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
      if (event.edge_lmm?.progress) stages.progress(event.edge_lmm.progress);
      else if (event.edge_lmm) figures = event.edge_lmm;
      if (event.usage) usage = event.usage;
      const delta = event.choices?.[0]?.delta?.content;
      if (delta) { answer += delta; out.textContent = answer; }
      if (atEnd) log.scrollTop = log.scrollHeight;
    });
  } catch (error) {
    failure = error.name === "AbortError" ? null : error.message;
  }
  turn.classList.remove("waiting");
  stages.finish(figures, usage);
  if (failure || !answer && !figures) {
    // A question without an answer is not part of the conversation; it can be asked again.
    conversation.pop();
    turn.classList.add("failed");
    out.textContent = failure || "stopped";
    stages.figures.textContent = "";
    if (!$("question").value) $("question").value = text;
    pending = [...files, ...pending];
    showPending();
  } else {
    conversation.push({ role: "assistant", content: answer });
  }
  $("log").scrollTop = $("log").scrollHeight;
  running = null;
  showRunning();
  facts();
}

function showRunning() {
  $("send").textContent = running ? "Stop" : "Send";
}

function submit(event) {
  event?.preventDefault();
  if (running) return running.abort();
  const text = $("question").value.trim();
  if (!text && !pending.length) return;
  $("question").value = "";
  fitQuestion();
  notice();
  ask(text);
}

function fitQuestion() {
  const field = $("question");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

function newChat() {
  running?.abort();
  messages = [];
  $("log").replaceChildren(element("p", { className: "empty-log", textContent: "Ask a question; add an image, a sound or a video." }));
  $("question").focus();
}

$("composer").onsubmit = submit;
$("question").oninput = fitQuestion;
$("question").onkeydown = (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event); };
$("question").onpaste = (event) => [...event.clipboardData.files].forEach((file) => add(file, file.name));
document.body.ondragover = (event) => event.preventDefault();
document.body.ondrop = (event) => { event.preventDefault(); [...event.dataTransfer.files].forEach((file) => add(file, file.name)); };
$("pick").onclick = () => $("files").click();
for (const id of ["files", "capture"])
  $(id).onchange = () => { [...$(id).files].forEach((file) => add(file, file.name)); $(id).value = ""; };
$("camera").onclick = () => ($("preview").hidden ? openCamera() : closeCamera());
$("shoot").onclick = shoot;
$("flip").onclick = () => { facing = facing === "user" ? "environment" : "user"; openCamera(); };
$("close-camera").onclick = closeCamera;
$("microphone").onclick = record;
$("new").onclick = newChat;
$("open-settings").onclick = () => { $("settings").hidden = !$("settings").hidden; $("open-settings").ariaExpanded = String(!$("settings").hidden); };
$("key").onchange = () => { sessionStorage.setItem("key", $("key").value); model = null; notice(); facts(); };
$("key").value = sessionStorage.getItem("key") || "";
newChat();
facts();
setInterval(() => { if (!document.hidden) facts(); }, 10000);
