// Turn a drawing or an image file into pixels, send them to the server while the user draws, and show the result.

import { Drawing, SAMPLES, pixelsOfImage } from "./drawing.js";

const $ = (id) => document.getElementById(id);
const element = (name, properties) => Object.assign(document.createElement(name), properties);
const MANY = 20; // with more classes only the LISTED likeliest are shown
const LISTED = 10;
const QUIET = 600; // milliseconds without a new result before a screen reader announces it
const STEP = 1 / 28;
const LAST = {
  adder: (n) => `The last layer is an adder layer: the distance of a class is the sum of |feature − filter| over ${n} `
    + "quantized features. Batch normalisation turns it into the score (logit) with a scale and a bias for each class, "
    + "because some classes may be far from every image. The predicted class has the highest score, not the smallest "
    + "distance.",
  conv: (n) => `The last layer is an ordinary layer: the score (logit) of a class is the sum of feature × filter over ${n} `
    + "features, plus a bias. It has no distances.",
  binary: (n) => `The last layer is binary: the score (logit) of a class counts the signs that ${n} features share with its `
    + "filter. It has no distances.",
};

const program = await (await fetch("program")).json();
const [channels, height, width] = program.pixels;
const canvas = $("canvas");
const context = canvas.getContext("2d");
let drawing = new Drawing();
let pen = null; // position of the keyboard pen after its first use
let down = false;

// ---- requests: one at a time, always with the newest pixels

let newest = null;
let waiting = false;
let sheet = 0; // number of cleared drawings, so that a late result for an old one is not shown

async function classify(pixels) {
  newest = pixels;
  if (waiting) return;
  waiting = true;
  while (newest) {
    const [body, current] = [newest, sheet];
    newest = null;
    try {
      const response = await fetch("classify", {
        method: "POST", headers: { "Content-Type": "application/octet-stream" }, body });
      const result = await response.json();
      if (!response.ok) throw new Error(result.error);
      if (current === sheet) show(result);
      $("problem").textContent = "";
    } catch (error) {
      newest = null;
      $("problem").textContent = error instanceof TypeError
        ? "No result: is torchadder demo still running?" : `No result: ${error.message}`;
    }
  }
  waiting = false;
}

function reset() {
  newest = null;
  sheet += 1;
  rows(program.names.length > MANY ? [] : program.names.map((name) => ({ name, score: null })));
  $("result-class").textContent = "–";
  $("problem").textContent = "";
  seen(null);
  announce("");
}

// ---- the result

let scale = 1; // the largest score so far, so that the unit of the bars does not change while the user draws

function show({ logits, distances }) {
  const scores = logits.map((value) => value ?? -Infinity);
  const order = scores.map((_, i) => i).sort((a, b) => scores[b] - scores[a]);
  const best = order[0];
  const share = 1 / scores.reduce((sum, value) => sum + Math.exp(value - scores[best]), 0);
  const likeliest = program.names[best];
  const percent = Number.isFinite(share) ? `${(100 * share).toFixed(1)}%` : "";
  $("result-class").replaceChildren(likeliest, " ", element("span", { className: "share", textContent: percent }));
  const listed = order.length > MANY ? order.slice(0, LISTED) : [...order].sort((a, b) => a - b);
  scale = Math.max(scale, ...scores.filter(Number.isFinite).map(Math.abs));
  rows(listed.map((i) => ({ name: program.names[i], score: logits[i], distance: distances?.[i], best: i === best })));
  announce(`${likeliest}, ${percent}`);
}

function rows(found) {
  $("classes").replaceChildren(...found.map(({ name, score, distance, best }) => {
    const row = element("tr", { className: best ? "best" : "" });
    const title = element("th", { scope: "row", textContent: name });
    const bar = element("td", { className: "bar", ariaHidden: "true" });
    const track = element("div", { className: "track" });
    const fill = element("div", { className: "fill" });
    const half = score === null ? 0 : (50 * Math.abs(score)) / scale;
    fill.style.left = `${score < 0 ? 50 - half : 50}%`;
    fill.style.width = `${half}%`;
    track.append(fill);
    bar.append(track);
    row.append(title, bar, number(score?.toFixed(2).replace("-", "−")));
    if (program.last === "adder") row.append(number(distance?.toLocaleString("en")));
    return row;
  }));
}

function number(text) {
  return element("td", { className: "number", textContent: text ?? "–" });
}

let later = 0;
function announce(text) {
  clearTimeout(later);
  later = setTimeout(() => { $("status").textContent = text; }, QUIET);
}

function seen(pixels) {
  const preview = $("seen");
  [preview.width, preview.height] = [width, height];
  if (!pixels) return;
  const area = width * height;
  const image = new ImageData(width, height);
  for (let i = 0; i < area; i += 1) {
    for (let c = 0; c < 3; c += 1) image.data[4 * i + c] = pixels[i + (channels === 3 ? c * area : 0)];
    image.data[4 * i + 3] = 255;
  }
  preview.getContext("2d").putImageData(image, 0, 0);
}

// ---- drawing

function changed() {
  paint();
  if (!drawing.strokes.length) return reset();
  const pixels = drawing.pixels(width);
  seen(pixels);
  return classify(pixels);
}

function paint() {
  const style = getComputedStyle(document.documentElement);
  const side = canvas.width;
  context.clearRect(0, 0, side, side);
  const ink = style.getPropertyValue("--ink");
  Object.assign(context, { strokeStyle: ink, lineWidth: side * 0.06, lineCap: "round", lineJoin: "round" });
  drawing.trace(context, ([x, y]) => [x * side, y * side]);
  if (pen) {
    Object.assign(context, { strokeStyle: style.getPropertyValue("--accent"), lineWidth: 3 });
    context.beginPath();
    context.arc(pen[0] * side, pen[1] * side, side * (down ? 0.02 : 0.04), 0, 2 * Math.PI);
    context.stroke();
  }
}

function point(event) {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

let pointer = null;
canvas.addEventListener("pointerdown", (event) => {
  if (pointer !== null || event.button !== 0) return;
  pointer = event.pointerId;
  canvas.setPointerCapture(pointer);
  [pen, down] = [null, false];
  drawing.begin(point(event));
  changed();
});
canvas.addEventListener("pointermove", (event) => {
  if (event.pointerId !== pointer) return;
  const moves = event.getCoalescedEvents?.() ?? [];
  (moves.length ? moves : [event]).forEach((move) => drawing.go(point(move)));
  changed();
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, (event) => { if (event.pointerId === pointer) pointer = null; });
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
canvas.addEventListener("keydown", (event) => {
  if (event.key in ARROWS) {
    const step = event.shiftKey ? STEP / 4 : STEP;
    pen = (pen ?? [0.5, 0.5]).map((value, i) => Math.min(1, Math.max(0, value + step * ARROWS[event.key][i])));
    if (down) drawing.go(pen);
    if (down) changed(); else paint();
  } else if (event.key === " ") {
    pen ??= [0.5, 0.5];
    down = !down;
    if (down) drawing.begin(pen);
    changed();
  } else if (event.key === "Delete" || event.key === "Backspace") {
    clear();
  } else {
    return;
  }
  event.preventDefault();
});
document.addEventListener("keydown", (event) => {
  const undoes = event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey;
  if (!undoes || $("drawing").hidden) return;
  event.preventDefault();
  undo();
});
canvas.addEventListener("blur", () => { [pen, down] = [null, false]; paint(); });

function clear() {
  drawing = new Drawing();
  [pointer, down] = [null, false];
  changed();
}

function undo() {
  drawing.strokes.pop();
  [pointer, down] = [null, false];
  changed();
}

$("clear").addEventListener("click", clear);
$("undo").addEventListener("click", undo);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);

// ---- images

async function choose(file) {
  if (!file) return;
  drawing = new Drawing();
  [pen, down] = [null, false];
  paint();
  reset();
  const mine = sheet;
  try {
    const pixels = await pixelsOfImage(file, program.pixels, program.crop);
    if (mine !== sheet) return;
    seen(pixels);
    classify(pixels);
  } catch {
    $("problem").textContent = `${file.name} cannot be shown: expected an image`;
  }
}

$("file").addEventListener("change", () => { choose($("file").files[0]); $("file").value = ""; });
const drop = document.body;
drop.addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
drop.addEventListener("dragleave", () => $("drop").classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  choose(event.dataTransfer.files[0]);
});

// ---- the program

const digits = program.names.length === 10 && program.names.every((name, i) => name === String(i));
const drawn = channels === 1;
$("title").textContent = drawn ? (digits ? "Draw a digit" : "Draw, or choose an image") : "Choose an image";
$("time").textContent = `${program.milliseconds.toPrecision(3)} ms per image, `
  + `${program.threads} thread${program.threads > 1 ? "s" : ""}`;
$("about").textContent = [program.file, ...program.about].join(" · ");
$("drawing").hidden = $("keys").hidden = !drawn;
$("file-label").textContent = drawn ? "Or choose an image file, or drop one here" : "Choose an image file, or drop one here";
$("file-note").textContent = `${program.crop ? "Its centre is" : "It is"} scaled to ${height} × ${width} pixels by `
  + "the browser. Scores may differ a little from torchadder predict, which scales in another way.";
$("last").textContent = `${LAST[program.last](program.features)} Kernels: ${program.kernels.join(", ")}.`;
$("distance-title").hidden = program.last !== "adder";
if (drawn && digits) {
  $("samples").hidden = false;
  SAMPLES.forEach((strokes, digit) => {
    const button = element("button", { type: "button", textContent: digit, ariaLabel: `Sample ${digit}` });
    button.addEventListener("click", () => {
      clear();
      drawing.strokes = structuredClone(strokes);
      changed();
    });
    $("samples").append(button);
  });
}
reset();
paint();
document.body.dataset.ready = "";
