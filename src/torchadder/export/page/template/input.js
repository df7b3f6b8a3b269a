"use strict";
// Turn strokes of mouse, finger, pen and keyboard, image files and frames of the camera into what page.js classifies.

const PIXELS = 28; // height and width of a drawing, those of an MNIST digit
const STEP = 1 / 28; // of the keyboard's pen
const MAX_SIDE_OF_IMAGE = 4096; // larger images are reduced first

// ---- drawing

const canvas = $("canvas");
const context = canvas.getContext("2d");
let drawing = new Drawing();
let picture = null; // of an image file or the camera, in place of a drawing
let isInverted = false; // light and dark of pictures
let pen = null; // position of the keyboard's pen after its first use
let isDown = false;

function changed() {
  if (picture && drawing.strokes.length) picture = null;
  paint();
  if (!drawing.strokes.length) return reset();
  return classify(() => ({ drawing: { pixels: drawing.pixels(PIXELS), size: PIXELS } }));
}

function paint() {
  const side = canvas.width;
  context.clearRect(0, 0, side, side);
  $("hint").hidden = Boolean(picture || drawing.strokes.length || pen);
  if (picture) {
    const scale = side / Math.max(picture.width, picture.height);
    const [width, height] = [picture.width * scale, picture.height * scale];
    context.imageSmoothingEnabled = scale < 1;
    context.drawImage(picture, (side - width) / 2, (side - height) / 2, width, height);
    return;
  }
  Object.assign(context, { strokeStyle: palette.css("ink"), lineWidth: side * 0.06, lineCap: "round", lineJoin: "round" });
  drawing.trace(context, ([x, y]) => [x * side, y * side]);
  if (pen) {
    Object.assign(context, { strokeStyle: palette.css("accent"), lineWidth: 4 });
    context.beginPath();
    context.arc(pen[0] * side, pen[1] * side, side * (isDown ? 0.02 : 0.04), 0, 2 * Math.PI);
    context.stroke();
  }
}

function point(event) {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

let pointer = null;
canvas.addEventListener("pointerdown", (event) => {
  if (!program || !isDrawn() || pointer !== null || event.button !== 0) return;
  stopCamera();
  pointer = event.pointerId;
  canvas.setPointerCapture(pointer);
  [pen, isDown] = [null, false];
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
  if (!program || !isDrawn()) return;
  if (event.key in ARROWS) {
    const step = event.shiftKey ? STEP / 4 : STEP;
    pen = (pen ?? [0.5, 0.5]).map((value, i) => Math.min(1, Math.max(0, value + step * ARROWS[event.key][i])));
    if (isDown) drawing.go(pen);
    if (isDown) changed(); else paint();
  } else if (event.key === " ") {
    pen ??= [0.5, 0.5];
    isDown = !isDown;
    if (isDown) drawing.begin(pen);
    if (isDown) changed(); else paint();
  } else if (event.key === "Delete" || event.key === "Backspace") {
    clear();
  } else {
    return;
  }
  event.preventDefault();
});
document.addEventListener("keydown", (event) => {
  const undoes = event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey;
  if (!undoes || !program || !isDrawn()) return;
  event.preventDefault();
  undo();
});
canvas.addEventListener("blur", () => { [pen, isDown] = [null, false]; paint(); });

function clear() {
  drawing = new Drawing();
  [picture, pointer, pen, isDown] = [null, null, null, false];
  changed();
}

// Show and classify what is there once more, by another program.
function again() {
  if (!picture) return changed();
  reset();
  paint();
  return classifyPicture();
}

function undo() {
  drawing.strokes.pop();
  [picture, pointer, isDown] = [null, null, false];
  changed();
}

$("clear").addEventListener("click", () => { stopCamera(); clear(); });
$("undo").addEventListener("click", () => { stopCamera(); undo(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
window.addEventListener("resize", () => { if (compared) showCompared(compared); });

function repaint() {
  palette = new Palette();
  paint();
  showSteps();
  if (compared) showCompared(compared);
}

SAMPLES.forEach((strokes, digit) => {
  const button = element("button", { type: "button", textContent: digit, ariaLabel: `Sample ${digit}` });
  button.addEventListener("click", () => {
    stopCamera();
    [drawing, picture, pen] = [new Drawing(), null, null];
    drawing.strokes = structuredClone(strokes);
    changed();
  });
  $("samples").append(button);
});

// ---- image files, other programs, the camera

async function take(file) {
  if (!file) return;
  if (file.name.endsWith(".tadder")) {
    try {
      await load(new Uint8Array(await file.arrayBuffer()), file.name);
    } catch (error) {
      problem(`${file.name} cannot be used: ${error.message}`);
    }
    return;
  }
  stopCamera();
  clear();
  const mine = sheet;
  try {
    const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
    if (mine === sheet) showPicture(bitmap);
  } catch {
    if (mine === sheet) problem(`${file.name} cannot be shown: expected an image, or a .tadder file`);
  }
}

function showPicture(source) {
  const [width, height] = [source.videoWidth ?? source.width, source.videoHeight ?? source.height];
  const scale = Math.min(1, MAX_SIDE_OF_IMAGE / Math.max(width, height));
  picture = element("canvas", { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) });
  const pixels = picture.getContext("2d", { willReadFrequently: true });
  pixels.drawImage(source, 0, 0, picture.width, picture.height);
  source.close?.();
  drawing = new Drawing();
  paint();
  return classifyPicture();
}

function classifyPicture() {
  const { width, height } = picture;
  const { data } = picture.getContext("2d").getImageData(0, 0, width, height);
  return classify(() => ({ image: { rgba: data, width, height, isInverted } }));
}

$("invert").addEventListener("click", () => {
  isInverted = !isInverted;
  classifyPicture();
});

let stream = null;

async function startCamera() {
  const video = $("video");
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 640 } } });
  } catch (error) {
    return problem(`The camera does not start: ${error.message}`);
  }
  $("camera").textContent = "Stop the camera";
  video.srcObject = stream;
  await video.play();
  while (stream) {
    if (!isBusy) showPicture(video);
    await new Promise(requestAnimationFrame);
  }
}

// Stop the camera; its last frame stays.
function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $("camera").textContent = "Camera";
}

$("camera").addEventListener("click", () => { if (stream) stopCamera(); else startCamera(); });
$("choose").addEventListener("click", () => $("file").click());
canvas.addEventListener("click", () => { if (program && !isDrawn()) $("file").click(); });
$("file").addEventListener("change", () => { take($("file").files[0]); $("file").value = ""; });
document.addEventListener("dragover", (event) => { event.preventDefault(); $("stage").classList.add("over"); });
document.addEventListener("dragleave", () => $("stage").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("stage").classList.remove("over");
  take(event.dataTransfer.files[0]);
});

// ---- start

async function start() {
  const { textContent, dataset } = $("program");
  palette = new Palette();
  $("about").textContent = `Loading ${dataset.name} …`;
  try {
    await load(Uint8Array.from(atob(textContent), (letter) => letter.charCodeAt(0)), dataset.name);
  } catch (error) {
    $("about").textContent = "";
    problem(`${dataset.name} cannot be used: ${error.message}`);
  }
  document.body.dataset.ready = "";
}

requestAnimationFrame(() => setTimeout(start)); // after the first paint
