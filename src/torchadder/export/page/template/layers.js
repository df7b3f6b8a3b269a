"use strict";
// Show the values of every step as pictures, and how one of them comes about. page.js holds the program and the answer.

// ---- the values of every step

function describeSteps() {
  $("steps").replaceChildren(...program.steps.slice(0, -1).map((step, i) => {
    const [channels, height, width] = step.to;
    const item = element("li");
    const about = element("div");
    about.append(element("strong", { textContent: `${i + 1}. ${titleOf(step)}` }),
      element("small", { textContent: `${channels} channel${channels > 1 ? "s" : ""} of ${height} × ${width}` }));
    const box = element("div");
    box.dataset.step = i;
    if (step.isLayer) box.classList.add("pick");
    item.append(about, box);
    return item;
  }));
}

function showSteps() {
  $("inside-about").textContent = answer
    ? "The values after every step, a picture a channel: the stronger the colour, the larger the value. Click into a picture of a layer to see how a value comes about."
    : "The values after every step appear here, a picture a channel.";
  program.steps.slice(0, -1).forEach((step, i) => {
    const box = $("steps").children[i].lastElementChild;
    const values = answer ? answer.values[i + 1] : new Uint8Array(step.to[0] * step.to[1] * step.to[2]);
    const about = `${step.to[0]} pictures of ${step.to[1]} × ${step.to[2]}, the output of step ${i + 1}`;
    const count = showMaps(box, values, step.to, (value) => value / largestOf(i + 1), palette, about);
    const note = box.previousElementSibling.querySelector("small");
    if (count < step.to[0] && !note.dataset.cut) {
      note.dataset.cut = "yes";
      note.textContent += `, the first ${count} shown`;
    }
  });
  markChosen();
}

// Return the largest value that a step can give; that of its source for a max pooling.
function largestOf(value) {
  if (value === 0) return program.qmax;
  const step = program.steps[value - 1];
  return step.kind === "max_pool" ? largestOf(step.sources[0]) : step.qmax;
}

$("steps").addEventListener("click", (event) => {
  const box = event.target.closest(".pick");
  if (!answer || !box || event.target === box) return;
  const step = Number(box.dataset.step);
  const bounds = event.target.getBoundingClientRect();
  const [, rows, columns] = program.steps[step].to;
  const row = Math.min(rows - 1, Math.floor((rows * (event.clientY - bounds.top)) / bounds.height));
  const column = Math.min(columns - 1, Math.floor((columns * (event.clientX - bounds.left)) / bounds.width));
  choose({ step, filter: [...box.children].indexOf(event.target), row, column }, true);
  $("compare-title").scrollIntoView({ block: "start" });
});

// ---- one sum, term by term

let chosen = { step: 0, filter: 0, row: 0, column: 0, isByUser: false };

function describeLayers(steps) {
  $("layer").replaceChildren(...steps.map((step, i) => [step, i]).filter(([step]) => step.isLayer).map(([step, i]) => (
    element("option", { value: i, textContent: `${i + 1}. ${titleOf(step)}${i === steps.length - 1 ? ", the classes" : ""}` }))));
  delete $("filter").dataset.step; // the menu of filters is that of another program
  choose({ step: steps.length - 1, filter: 0, row: 0, column: 0 });
}

function choose({ step, filter, row, column }, isByUser = false) {
  const { to } = program.steps[step];
  const isLast = step === program.steps.length - 1;
  if ($("filter").dataset.step !== String(step)) {
    $("filter").dataset.step = step;
    $("filter").replaceChildren(...Array.from({ length: to[0] }, (_, i) => (
      element("option", { value: i, textContent: isLast ? program.names[i] : i }))));
  }
  const clamped = (value, count) => Math.min(Math.max(Math.trunc(value) || 0, 0), count - 1);
  chosen = { step, filter: clamped(filter, to[0]), row: clamped(row, to[1]), column: clamped(column, to[2]), isByUser };
  $("layer").value = step;
  $("filter").value = chosen.filter;
  $("filter-title").textContent = isLast ? "Class" : "Filter";
  [$("row").max, $("column").max] = [to[1] - 1, to[2] - 1];
  [$("row").value, $("column").value] = [chosen.row, chosen.column];
  document.querySelectorAll(".place").forEach((label) => { label.hidden = to[1] * to[2] === 1; });
  if (isByUser) {
    compare();
    markChosen();
    for (const button of $("classes").tBodies[0].querySelectorAll("button")) {
      button.setAttribute("aria-pressed", isLast && Number(button.dataset.label) === chosen.filter);
    }
  }
}

for (const id of ["layer", "filter", "row", "column"]) {
  $(id).addEventListener("change", () => {
    const step = Number($("layer").value);
    const isNew = id === "layer";
    const best = isNew && answer && step < program.steps.length - 1 ? strongest(step) : null;
    choose(best ?? { step, filter: isNew ? Number(document.body.dataset.answered ?? 0) : Number($("filter").value),
      row: Number($("row").value), column: Number($("column").value) }, true);
  });
}

// Return where a step has its largest value.
function strongest(step) {
  const [channels, , width] = program.steps[step].to;
  const values = answer.values[step + 1];
  const at = values.indexOf(values.reduce((a, b) => Math.max(a, b), 0));
  const pixel = Math.floor(at / channels);
  return { step, filter: at % channels, row: Math.floor(pixel / width), column: pixel % width };
}

function markChosen() {
  for (const canvas of document.querySelectorAll("#steps .chosen")) canvas.classList.remove("chosen");
  const item = $("steps").children[chosen.step];
  if (answer && item) item.lastElementChild.children[chosen.filter]?.classList.add("chosen");
}

async function compare() {
  const mine = { ...chosen };
  if (!answer) return;
  try {
    const found = await ask("explain", mine);
    if (answer && ["step", "filter", "row", "column"].every((name) => mine[name] === chosen[name])) showCompared(found);
  } catch (error) {
    problem(error.message);
  }
}

let compared = null;

function showCompared(found) {
  compared = found;
  $("compared").hidden = !found;
  $("not-compared").textContent = found ? "" : isDrawn() ? "Draw something to compare it." : "Choose an image to compare it.";
  const step = program.steps[chosen.step];
  const isAdder = step.kind === "adder";
  $("compare-title").textContent = isAdder ? "Where filter and patch differ" : "How filter and patch are multiplied";
  $("compare-about").textContent = isAdder
    ? "An adder layer multiplies nothing: each output is the sum of |patch − filter|. The more alike they are, the smaller it is."
    : "This layer is no adder layer: each output is the sum of patch × filter.";
  if (!found) return;
  const { filter, row, column } = chosen;
  const isLast = chosen.step === program.steps.length - 1;
  const [channels, , width] = step.to;
  const result = isLast ? `score ${answer.logits[filter].toFixed(2).replace("-", "−")} of class ${program.names[filter]}`
    : `value ${answer.values[chosen.step + 1][(row * width + column) * channels + filter]} of 0 to ${step.qmax}`;
  $("sum").replaceChildren(`${grouped(found.terms.length)} ${isAdder ? "differences" : "products"} add up to `,
    element("b", { textContent: grouped(found.sum) }), `, which becomes ${result}.`);
  $("legend").hidden = !isAdder;
  const top = Math.max(isAdder ? largestOf(step.sources[0]) : 0, ...found.patch, ...found.filter);
  drawTerms($("terms"), found, isAdder, top, palette);
  $("terms").setAttribute("aria-label", `${found.terms.length} terms, their sum is ${found.sum}`);
  showPanels(step, found, isAdder, top);
}

function showPanels(step, found, isAdder, top) {
  const [rows, columns] = step.kernel;
  const shape = [found.patch.length / rows / columns, rows, columns];
  const panels = $("panels");
  panels.hidden = rows * columns === 1;
  if (panels.hidden) return;
  const titles = ["patch", "filter", isAdder ? "|patch − filter|" : "|patch × filter|"];
  if (panels.childElementCount !== titles.length) {
    panels.replaceChildren(...titles.map(() => {
      const figure = element("figure");
      figure.append(element("figcaption"), element("div"));
      return figure;
    }));
  }
  [found.patch, found.filter, found.terms].forEach((values, i) => {
    const largest = isAdder ? top : Math.max(1, ...values.map(Math.abs));
    const [caption, box] = panels.children[i].children;
    caption.textContent = titles[i];
    const count = showMaps(box, values, shape, (value) => Math.abs(value) / largest, palette, `${titles[i]}, ${shape.join(" × ")} values`);
    box.classList.toggle("few", count <= 3);
  });
}
