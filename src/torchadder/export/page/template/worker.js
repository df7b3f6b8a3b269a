"use strict";
// Answer the page from a worker, so that drawing never waits for the network. program.js, preprocessing.js and
// executor.js stand before this file in the same script.
//
// A message is { id, name, ...arguments }, its answer { id, result } or { id, error }, a text of one line:
//
//   load { bytes }                          -> what the page shows of a program
//   classify { drawing | image, ... }       -> logits, accumulators, pixels, ground, values of the steps
//   explain { step, filter, row, column }   -> Executor.explain, for the image that was classified last
//   benchmark {}                            -> milliseconds of one image

const MIN_SAMPLE = 3; // milliseconds; browsers round the clock to 0.1
const REPETITIONS = 51;
const PATIENCE = 400; // milliseconds after which no further sample is taken

let executor = null;
let preprocessing = null;
let values = null;

const ANSWERS = {
  load({ bytes }) {
    const program = read(bytes);
    const prepare = new Preprocessing(program);
    [executor, preprocessing, values] = [new Executor(program), prepare, null];
    const steps = program.steps.map(({ kind, isLayer, sources, from, to, kernel, groups, qmax, scale, bias }) => (
      { kind, isLayer, sources, from, to, kernel, groups, qmax: qmax ?? 255, scale, bias }));
    return { shape: program.shape, qmax: program.qmax, steps, about: program.about, bytes: bytes.length,
      crops: prepare.crops };
  },

  classify({ drawing, image }) {
    const { q, ...prepared } = drawing ? preprocessing.ofDrawing(drawing.pixels, drawing.size)
      : preprocessing.ofImage(image.rgba, image.width, image.height, image.isInverted);
    const found = executor.run(q);
    values = found.values;
    return { ...prepared, ...found };
  },

  explain({ step, filter, row, column }) {
    return executor.explain(values, step, filter, row, column);
  },

  // Return the latency as Engine.benchmark does: the median of calls with a random image, after some to warm up. A
  // sample is as many calls as the clock can tell.
  benchmark() {
    const { shape, qmax } = executor.program;
    const q = Uint8Array.from({ length: shape[0] * shape[1] * shape[2] }, () => Math.random() * (qmax + 1));
    const timed = (calls) => {
      const start = performance.now();
      for (let i = 0; i < calls; i += 1) executor.run(q);
      return performance.now() - start;
    };
    let calls = 1;
    while (timed(calls) < MIN_SAMPLE) calls *= 2;
    const samples = [];
    const end = performance.now() + PATIENCE;
    do samples.push(timed(calls) / calls); while (samples.length < REPETITIONS && performance.now() < end);
    return samples.sort((a, b) => a - b)[samples.length >> 1];
  },
};

globalThis.onmessage = ({ data }) => {
  try {
    globalThis.postMessage({ id: data.id, result: ANSWERS[data.name](data) });
  } catch (error) {
    globalThis.postMessage({ id: data.id, error: error.message, isFile: error instanceof FileError });
  }
};
