"use strict";
// Turn pixels into the input of a program, as torchadder predict does (src/torchadder/data/preprocessing.py).
//
//   const preprocessing = new Preprocessing(program);             // throws FileError where the file does not tell how
//   preprocessing.ofImage(rgba, width, height, isInverted)         // an image file or a frame of a camera
//   preprocessing.ofDrawing(pixels, size)                          // grey, size x size, light strokes on dark ground
//
// Both return { pixels, q, ground }: uint8 (H, W, C) for the eye, the quantized values that Executor.run takes, and
// "light" or "dark" where the ground of a grey image is not that of the training images, else null.

const CENTRE = 224 / 256; // a centre crop takes this part of the shorter side

class Preprocessing {
  constructor({ shape, scale, zeroPoint, qmax, about }) {
    Object.assign(this, { shape, scale, zeroPoint, qmax });
    const [channels] = shape;
    const numbers = (name) => String(about[name] ?? "").split(" ").filter(Boolean).map(Number).map(Math.fround);
    [this.mean, this.std] = [numbers("mean"), numbers("std")];
    const told = [this.mean, this.std].every((values) => values.length === channels && values.every(Number.isFinite));
    const isKnown = { 1: "L", 3: "RGB" }[channels] === about.mode && ["whole", "centre"].includes(about.part);
    if (!told || !isKnown || Math.min(...this.std) <= 0) {
      throw new FileError("it does not say how to prepare an image: quantize it again, or save it with mean and std");
    }
    this.crops = about.part === "centre";
    this.isLight = channels === 1 && this.mean[0] > 0.5; // the ground of the training images
  }

  ofDrawing(pixels, size) {
    return this.#quantized(this.isLight ? pixels.map((value) => 255 - value) : pixels, size, size, [0, 0, size, size]);
  }

  ofImage(rgba, width, height, isInverted = false) {
    const pixels = coloursOf(rgba, this.shape[0]).map((value) => (isInverted ? 255 - value : value));
    if (!this.crops) return this.#quantized(pixels, width, height, [0, 0, width, height]);
    const side = CENTRE * Math.min(width, height);
    const [left, top] = [(width - side) / 2, (height - side) / 2];
    return this.#quantized(pixels, width, height, [left, top, left + side, top + side]);
  }

  #quantized(pixels, width, height, [left, top, right, bottom]) {
    const [channels, rows, columns] = this.shape;
    const round = this.crops ? Math.round : Math.fround; // a crop is made by Pillow, in 8 bits
    let values = Float32Array.from(pixels);
    if (this.crops || width !== columns || height !== rows) {
      values = resized(values, [height, width, channels], columns, left, right, round);
      values = resized(values, [1, height, columns * channels], rows, top, bottom, round);
    }
    const q = new Uint8Array(values.length);
    for (let i = 0; i < q.length; i += 1) {
      const c = i % channels;
      // float32 after every operation: (pixel / 255 - mean) / std, then x / scale + zero_point
      const x = Math.fround(Math.fround(Math.fround(values[i] / 255) - this.mean[c]) / this.std[c]);
      q[i] = Math.min(Math.max(rounded(Math.fround(Math.fround(x / this.scale[c]) + this.zeroPoint[c])), 0), this.qmax);
    }
    return { pixels: Uint8ClampedArray.from(values), q, ground: this.#otherGround(values) };
  }

  // The mean of the training pixels tells their ground where it is below a quarter, or above three quarters.
  #otherGround(values) {
    const isLight = values.reduce((sum, value) => sum + value, 0) > 0.5 * 255 * values.length;
    if (this.shape[0] !== 1 || !(isLight ? this.mean[0] < 0.25 : this.mean[0] > 0.75)) return null;
    return isLight ? "light" : "dark";
  }
}

// Round to the nearest integer, of two as near ones to the even one.
function rounded(value) {
  const nearest = Math.round(value);
  return nearest - value === 0.5 && nearest % 2 ? nearest - 1 : nearest;
}

// Return opaque RGBA as uint8 (H, W, C), grey by the weights of Pillow. A transparent image gets a ground that its
// visible pixels stand out from: black where they are light on average, else white.
function coloursOf(rgba, channels) {
  const grey = (i) => (19595 * rgba[i] + 38470 * rgba[i + 1] + 7471 * rgba[i + 2] + 32768) >> 16;
  let [light, opacity] = [0, 0];
  for (let i = 0; i < rgba.length; i += 4) {
    light += grey(i) * rgba[i + 3];
    opacity += rgba[i + 3];
  }
  const ground = light >= 128 * opacity ? 0 : 255;
  const opaque = Uint8ClampedArray.from(rgba);
  if (opacity < 255 * (rgba.length / 4)) {
    for (let i = 0; i < rgba.length; i += 1) opaque[i] = ground + ((rgba[i] - ground) * rgba[i | 3]) / 255;
  }
  const out = new Uint8Array((rgba.length / 4) * channels);
  for (let i = 0, to = 0; i < rgba.length; i += 4) {
    if (channels === 1) out[to] = (19595 * opaque[i] + 38470 * opaque[i + 1] + 7471 * opaque[i + 2] + 32768) >> 16;
    for (let c = 0; channels > 1 && c < channels; c += 1) out[to + c] = opaque[i + c];
    to += channels;
  }
  return out;
}

// Resize the middle axis of values (outer, size, inner) from the part [from, to) of it to `count`, bilinear with
// antialiasing: a triangle as wide as two pixels of the larger grid weighs its neighbours.
function resized(values, [outer, size, inner], count, from, to, round) {
  const out = new Float32Array(outer * count * inner);
  const step = (to - from) / count;
  const reach = Math.max(step, 1);
  for (let i = 0; i < count; i += 1) {
    const centre = from + step * (i + 0.5);
    const first = Math.max(Math.trunc(centre - reach + 0.5), 0);
    const end = Math.min(Math.trunc(centre + reach + 0.5), size);
    const weights = Array.from({ length: end - first }, (_, j) => Math.max(0, 1 - Math.abs((j + first - centre + 0.5) / reach)));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    for (let o = 0; o < outer; o += 1) {
      for (let n = 0; n < inner; n += 1) {
        let sum = 0;
        for (let j = 0; j < weights.length; j += 1) sum += weights[j] * values[(o * size + first + j) * inner + n];
        out[(o * count + i) * inner + n] = round(sum / total);
      }
    }
  }
  return out;
}
