"use strict";
// Ask the worker about the program and about images, and show the answer. input.js makes the images, layers.js shows the
// values inside the network.

const $ = (id) => document.getElementById(id);
const element = (name, properties) => Object.assign(document.createElement(name), properties);
const MANY = 20; // with more classes only the LISTED likeliest are shown
const LISTED = 10;
const QUIET = 600; // milliseconds without a new result before a screen reader announces it
const SYMBOLS = { // what the empty stage shows
  pen: "M4 20l1-5L16 4l4 4L9 19zM14 6l4 4",
  image: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.5 9h.01",
};
const NAMES = { adder: "adder", conv: "convolution", binary: "binary", max_pool: "max pooling",
  average_pool: "average pooling", table: "function", concat: "concatenation" };

// ---- the worker: every question has one answer

const worker = new Worker(URL.createObjectURL(new Blob([$("worker").textContent], { type: "text/javascript" })));
const asked = new Map();

function ask(name, message = {}) {
  return new Promise((resolve, reject) => {
    const id = ask.count = (ask.count ?? 0) + 1;
    asked.set(id, [resolve, reject]);
    worker.postMessage({ id, name, ...message });
  });
}

worker.onmessage = ({ data: { id, result, error } }) => {
  const [resolve, reject] = asked.get(id);
  asked.delete(id);
  if (error === undefined) resolve(result); else reject(new Error(error));
};
worker.onerror = (event) => problem(`The network does not run in this browser: ${event.message ?? "no worker"}`);

function problem(text) {
  $("problem").textContent = text;
}

// ---- the program

let program = null; // the worker's answer to load, with `names` of the classes
let palette = null;

async function load(bytes, name) {
  const loaded = await ask("load", { bytes });
  const keepsInput = program && String(program.shape) === String(loaded.shape);
  program = { ...loaded, name, names: namesOf(loaded) };
  stopCamera();
  describe();
  document.body.classList.add("loaded");
  if (keepsInput) again(); else clear();
  const milliseconds = await ask("benchmark");
  if (program.name === name) {
    program.milliseconds = milliseconds;
    $("time").textContent = timeText();
    document.body.dataset.timed = milliseconds;
  }
}

function namesOf({ about, steps }) {
  const count = steps.at(-1).to[0];
  let names = null;
  try {
    names = JSON.parse(about.classes);
  } catch { /* the file has no names */ }
  const isGood = Array.isArray(names) && names.length === count && names.every((name) => typeof name === "string");
  return isGood ? names : Array.from({ length: count }, (_, i) => String(i));
}

const last = () => program.steps.at(-1);
const isDrawn = () => program.shape[0] === 1;
const hasDigits = () => program.names.length === 10 && program.names.every((name, i) => name === String(i));

function timeText() {
  const { milliseconds } = program;
  return milliseconds === undefined ? "" : `${milliseconds.toFixed(1)} ms per image in this browser, median`;
}

function describe() {
  const { about, bytes, shape, name, steps } = program;
  const [, height, width] = shape;
  const facts = [about.model, about.op, about.dataset, about.bits && `${about.bits} bits`].filter(Boolean).map((v) => String(v).slice(0, 80));
  const size = bytes < 1e6 ? `${Math.round(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
  $("title").textContent = isDrawn() ? (hasDigits() ? "Draw a digit" : "Draw, or choose an image") : "Choose an image";
  $("about").textContent = [...(facts.length ? facts : [name]), size].join(" · ");
  document.title = `${$("title").textContent} · ${name}`;
  for (const id of ["undo", "keys"]) $(id).hidden = !isDrawn();
  $("samples").hidden = !(isDrawn() && hasDigits());
  $("hint-path").setAttribute("d", isDrawn() ? SYMBOLS.pen : SYMBOLS.image);
  $("hint-title").textContent = isDrawn() ? (hasDigits() ? "Draw a digit here" : "Draw here") : "Drop an image here";
  $("hint-text").textContent = isDrawn() ? "with mouse, finger or pen" : "or choose one below";
  const canvas = $("canvas");
  canvas.classList.toggle("pen", isDrawn());
  canvas.tabIndex = isDrawn() ? 0 : -1;
  canvas.setAttribute("role", isDrawn() ? "application" : "img");
  canvas.setAttribute("aria-label", isDrawn() ? "Drawing area" : "Image");
  if (isDrawn()) canvas.setAttribute("aria-describedby", "keys"); else canvas.removeAttribute("aria-describedby");
  $("camera").hidden = !navigator.mediaDevices?.getUserMedia;
  $("seen-size").textContent = `${height} × ${width} pixels`;
  $("time").textContent = timeText();
  document.querySelectorAll(".adder").forEach((cell) => { cell.hidden = last().kind !== "adder"; });
  describeSteps();
  describeLayers(steps);
}

function titleOf(step) {
  const [rows, columns] = step.kernel;
  const isDepthwise = step.groups > 1 && step.groups === step.from[0];
  const kernel = step.isLayer || step.kind.endsWith("pool") ? ` ${rows} × ${columns}` : "";
  return (isDepthwise ? "depthwise " : step.groups > 1 ? "grouped " : "") + NAMES[step.kind] + kernel;
}

// ---- classifying: one image at a time, always the newest

let newest = null;
let isBusy = false;
let sheet = 0; // number of cleared drawings, so that a late result for an old one is not shown
let answer = null;

// `input` returns the message of an image; it is called only if no newer image has come by then.
async function classify(input) {
  newest = input;
  if (isBusy) return;
  isBusy = true;
  while (newest) {
    const [makeMessage, current] = [newest, sheet];
    newest = null;
    try {
      const found = await ask("classify", makeMessage());
      if (current === sheet) show(found);
      problem("");
    } catch (error) {
      newest = null;
      problem(`No result: ${error.message}`);
    }
  }
  isBusy = false;
}

function reset() {
  [newest, answer, chosen.isByUser] = [null, null, false];
  sheet += 1;
  const best = $("best");
  best.className = "none";
  best.textContent = isDrawn() ? "Nothing drawn yet" : "No image yet";
  $("next").textContent = "The answer appears here.";
  $("why").textContent = "";
  $("ground").hidden = true;
  showSeen(null);
  showClasses(program.names.length > MANY ? [] : program.names.map((name, label) => ({ label })));
  showSteps();
  showCompared(null);
  problem("");
  announce("");
  delete document.body.dataset.answered;
}

function show(found) {
  answer = found;
  const { logits, accumulators } = found;
  const order = [...logits.keys()].sort((a, b) => logits[b] - logits[a]);
  const [best, second] = order;
  const total = logits.reduce((sum, value) => sum + Math.exp(value - logits[best]), 0);
  const share = (label) => `${((100 * Math.exp(logits[label] - logits[best])) / total).toFixed(1)}%`;
  const { names } = program;
  $("best").className = names[best].length > 8 ? "long" : "";
  $("best").replaceChildren(names[best], " ", element("span", { className: "share", textContent: share(best) }));
  $("next").textContent = second === undefined ? "" : `then ${names[second]}, ${share(second)}`;
  const listed = order.length > MANY ? order.slice(0, LISTED) : [...order].sort((a, b) => a - b);
  $("why").textContent = why(best, accumulators);
  showSeen(found.pixels);
  showGround(found.ground);
  if (!chosen.isByUser) choose({ step: program.steps.length - 1, filter: best, row: 0, column: 0 });
  showClasses(listed.map((label) => ({ label, isBest: label === best })));
  showSteps();
  compare();
  announce(`${names[best]}, ${share(best)}${second === undefined ? "" : `, then ${names[second]}, ${share(second)}`}`);
  document.body.dataset.answered = best;
}

// The distance at which the score of a class is 0: score = (neutral - distance) * scale.
const neutral = (label) => -last().bias[label] / last().scale[label];

function why(best, distances) {
  const { kind, scale } = last();
  const { names } = program;
  if (kind !== "adder") {
    return kind === "conv" ? "The score of a class is the sum of feature × filter, times a scale, plus a bias. The answer has the highest score."
      : "The score of a class counts the signs that features and filter share. The answer has the highest score.";
  }
  const rule = "Batch normalisation gives each class a neutral distance, at which its score is 0, and a scale: score = (neutral − distance) × scale. ";
  if (!scale.every((value) => value < 0)) return rule;
  const below = (label) => Math.round(neutral(label)) - distances[label];
  const gap = (label) => `${grouped(Math.abs(below(label)))} ${below(label) < 0 ? "above" : "below"} neutral`;
  const nearest = distances.indexOf(Math.min(...distances));
  if (nearest === best) return `${rule}Here ${names[best]} is ${gap(best)}, and the nearest too.`;
  const only = below(nearest) < 0 ? "" : "only ";
  return `${rule}Here ${names[best]} is ${gap(best)}. ${names[nearest]} is nearer, ${grouped(distances[nearest])}, but that is ${only}${gap(nearest)}.`;
}

let later = 0;
function announce(text) {
  clearTimeout(later);
  later = setTimeout(() => { $("status").textContent = text; }, QUIET);
}

function showSeen(pixels) {
  const [channels, height, width] = program.shape;
  const canvas = $("seen");
  [canvas.width, canvas.height] = [width, height];
  canvas.setAttribute("aria-label", pixels ? "What the network sees" : "What the network sees: nothing yet");
  if (!pixels) return;
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i += 1) {
    for (let c = 0; c < 3; c += 1) image.data[4 * i + c] = pixels[i * channels + (channels === 3 ? c : 0)];
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// Offer to exchange light and dark where a picture's ground is not that of the training images.
function showGround(ground) {
  $("ground").hidden = !(picture && isDrawn() && (ground || isInverted));
  $("ground-text").textContent = ground
    ? `It is drawn on a ${ground} ground, the training images on a ${ground === "light" ? "dark" : "light"} one.` : "";
  $("invert").setAttribute("aria-pressed", isInverted);
}

let unit = 1; // the largest score so far, so that the bars keep their unit while the user draws

function showClasses(found) {
  if (answer) unit = Math.max(unit, ...answer.logits.map(Math.abs).filter(Number.isFinite));
  const body = $("classes").tBodies[0];
  const hadFocus = body.contains(document.activeElement) ? document.activeElement.dataset.label : null;
  body.replaceChildren(...found.map(({ label, isBest }) => {
    const row = element("tr", { className: isBest ? "best" : "" });
    const title = element("th", { scope: "row" });
    const button = element("button", { type: "button", textContent: program.names[label], title: "Compare with its filter" });
    button.dataset.label = label;
    button.disabled = !answer;
    button.setAttribute("aria-pressed", chosen.step === program.steps.length - 1 && chosen.filter === label && Boolean(answer));
    title.append(button);
    const score = answer?.logits[label];
    const bar = element("td", { className: "bar", ariaHidden: "true" });
    const track = element("div", { className: "track" });
    const fill = element("div", { className: "fill" });
    const half = score === undefined ? 0 : Math.min(50, (50 * Math.abs(score)) / unit) || 0;
    fill.style.left = `${score < 0 ? 50 - half : 50}%`;
    fill.style.width = `${half}%`;
    track.append(fill);
    bar.append(track);
    row.append(title, bar, number(score?.toFixed(2)));
    if (last().kind === "adder") {
      row.append(number(answer && grouped(answer.accumulators[label])), number(grouped(Math.round(neutral(label)))));
    }
    return row;
  }));
  if (hadFocus !== null) body.querySelector(`[data-label="${hadFocus}"]`)?.focus();
}

const grouped = (value) => value.toLocaleString("en").replace("-", "−");

function number(text) {
  return element("td", { textContent: text ? text.replace("-", "−") : "–" });
}

$("classes").addEventListener("click", ({ target }) => {
  const label = target.closest("button")?.dataset.label;
  if (label === undefined) return;
  choose({ step: program.steps.length - 1, filter: Number(label), row: 0, column: 0 }, true);
  $("compare-title").scrollIntoView({ block: "nearest" });
});
