"use strict";
// Run an integer program on typed arrays, bit-equal to the native engine. src/torchadder/quant/steps.py is the
// specification; program.js reads the file.
//
//   const executor = new Executor(read(bytes));
//   const { values, accumulators, logits } = executor.run(q);    // q: Uint8Array of quantized values, (H, W, C)
//   executor.explain(values, step, filter, row, column);         // how one number of a layer comes about
//
// A value is a Uint8Array in the order (H, W, C). A layer copies each patch once and compares it with four filters at a
// time, so that a number of the patch is loaded once for four sums. Everything fits 32-bit integers (program.js checks
// that), hence Math.imul and |0 are exact; logits are float32 by Math.fround after each operation.

const TILE = 4; // filters that sumDifferences and sumProducts take at once

class Executor {
  constructor(program) {
    this.program = program;
    this.steps = program.steps.map((step) => (step.isLayer ? new Layer(step) : new Other(step)));
  }

  run(q) {
    const values = [q];
    for (const step of this.steps) values.push(step.run(values));
    const accumulators = values.pop();
    return { values, accumulators, logits: this.#logits(accumulators) };
  }

  #logits(accumulators) {
    const { scale, bias } = this.program.steps.at(-1);
    return Float32Array.from(accumulators, (sum, c) => Math.fround(Math.fround(sum) * scale[c]) + bias[c]);
  }

  // Return the patch and the filter that give one output of a layer, (kernel rows, columns, channels), their sum, and
  // the terms of the sum: |x - w| of an adder layer, x * w of others.
  explain(values, step, filter, row, column) {
    return this.steps[step].explain(values, filter, row, column);
  }
}

class Layer {
  constructor(step) {
    Object.assign(this, step);
    this.channels = step.from[0] / step.groups; // of a filter
    this.filters = step.to[0] / step.groups; // of a group
    this.length = this.channels * step.kernel[0] * step.kernel[1];
    this.isAdder = step.kind === "adder";
    this.weight = channelsLast(step.weight, this.channels);
    this.patch = new (this.isAdder ? Uint8Array : Int16Array)(this.length);
  }

  // Return quantized values; of the last layer, which does not requantize, the accumulators.
  run(values) {
    const [filters, rows, columns] = this.to;
    const x = values[this.sources[0]];
    const shortcut = this.factor ? values[this.sources[1]] : null;
    const accumulators = new Int32Array(filters);
    const out = this.multiplier ? new Uint8Array(rows * columns * filters) : accumulators;
    for (let row = 0, at = 0; row < rows; row += 1) {
      for (let column = 0; column < columns; column += 1, at += filters) {
        for (let group = 0; group < this.groups; group += 1) {
          this.copyPatch(x, row, column, group);
          this.accumulate(group * this.filters, accumulators);
        }
        if (this.multiplier) requantize(this, accumulators, shortcut, out, at);
      }
    }
    return out;
  }

  // Copy the values of a window into the patch; padding has the zero point, and contributes 0 to a binary layer.
  copyPatch(x, row, column, group) {
    const { patch, channels, zeroPoint, kernel, dilation } = this;
    const [all, height, width] = this.from;
    const isBinary = this.kind === "binary";
    const top = row * this.stride[0] - this.padding[0];
    const left = column * this.stride[1] - this.padding[1];
    const first = group * channels;
    let to = 0;
    for (let i = 0; i < kernel[0]; i += 1) {
      const y = top + i * dilation[0];
      for (let j = 0; j < kernel[1]; j += 1) {
        const place = left + j * dilation[1];
        const at = (y * width + place) * all + first;
        if (y < 0 || y >= height || place < 0 || place >= width) {
          for (let c = 0; c < channels; c += 1) patch[to + c] = isBinary ? 0 : zeroPoint[first + c];
        } else if (isBinary) {
          for (let c = 0; c < channels; c += 1) patch[to + c] = x[at + c] >= zeroPoint[first + c] ? 1 : -1;
        } else {
          for (let c = 0; c < channels; c += 1) patch[to + c] = x[at + c];
        }
        to += channels;
      }
    }
  }

  // Compare the patch with the filters of a group, of which `first` is the first.
  accumulate(first, accumulators) {
    const { patch, weight, length } = this;
    const end = first + this.filters;
    const tiled = this.isAdder ? sumDifferences : sumProducts;
    const single = this.isAdder ? sumDifference : sumProduct;
    let filter = first;
    for (; filter + TILE <= end; filter += TILE) tiled(patch, weight, filter, length, accumulators);
    for (; filter < end; filter += 1) single(patch, weight, filter, length, accumulators);
  }

  explain(values, filter, row, column) {
    this.copyPatch(values[this.sources[0]], row, column, Math.floor(filter / this.filters));
    const patch = Array.from(this.patch);
    const weights = Array.from(this.weight.subarray(filter * this.length, (filter + 1) * this.length));
    const terms = patch.map((x, i) => (this.isAdder ? Math.abs(x - weights[i]) : x * weights[i]));
    return { patch, filter: weights, terms, sum: terms.reduce((sum, term) => sum + term, 0) };
  }
}

// Pool, look up or concatenate values.
class Other {
  constructor(step) {
    Object.assign(this, step);
  }

  run(values) {
    const out = new Uint8Array(this.to[0] * this.to[1] * this.to[2]);
    this[this.kind](values, out);
    return out;
  }

  max_pool(values, out) {
    this.#windows(values[this.sources[0]], out, (x, starts, c) => {
      let largest = 0; // of the padding
      for (let i = 0; i < starts.length; i += 1) largest = Math.max(largest, x[starts[i] + c]);
      return largest;
    });
  }

  average_pool(values, out) {
    const accumulators = new Int32Array(1);
    this.#windows(values[this.sources[0]], out, (x, starts, c) => {
      let sum = 0;
      for (let i = 0; i < starts.length; i += 1) sum += x[starts[i] + c];
      accumulators[0] = sum * (this.meanUnit / starts.length);
      return requantized(this, accumulators[0], c);
    });
  }

  // Fill `out` by a function of the source, of where the pixels of a window begin, and of the channel.
  #windows(x, out, compute) {
    const [channels, rows, columns] = this.to;
    const width = this.from[2];
    for (let row = 0, at = 0; row < rows; row += 1) {
      const [top, bottom] = windowOf(this, 0, row);
      for (let column = 0; column < columns; column += 1, at += channels) {
        const [left, right] = windowOf(this, 1, column);
        const starts = [];
        for (let y = top; y < bottom; y += 1) {
          for (let place = left; place < right; place += 1) starts.push((y * width + place) * channels);
        }
        for (let c = 0; c < channels; c += 1) out[at + c] = compute(x, starts, c);
      }
    }
  }

  table(values, out) {
    const x = values[this.sources[0]];
    const channels = this.to[0];
    const isByChannel = this.entries.length > 256;
    for (let i = 0; i < x.length; i += 1) out[i] = this.entries[(isByChannel ? 256 * (i % channels) : 0) + x[i]];
  }

  concat(values, out) {
    const pixels = this.to[1] * this.to[2];
    const parts = this.sources.map((source) => values[source]);
    for (let pixel = 0, at = 0; pixel < pixels; pixel += 1) {
      let channel = 0;
      for (const part of parts) {
        const width = part.length / pixels;
        for (let c = 0; c < width; c += 1, at += 1, channel += 1) {
          out[at] = requantized(this, part[pixel * width + c], channel);
        }
      }
    }
  }
}

// Return weights (filters, channels, rows, columns) in the order (filters, rows, columns, channels).
function channelsLast(weight, channels) {
  const [filters, , rows, columns] = weight.shape;
  const taps = rows * columns;
  const out = new weight.constructor(weight.length);
  for (let filter = 0, at = 0; filter < filters; filter += 1) {
    for (let tap = 0; tap < taps; tap += 1) {
      for (let c = 0; c < channels; c += 1, at += 1) out[at] = weight[(filter * channels + c) * taps + tap];
    }
  }
  return out;
}

// q = clamp(((accumulator >> preShift) * multiplier + r * factor + offset) >> shift, 0, qmax)
function requantize(step, accumulators, shortcut, out, at) {
  const { multiplier, offset, shift, factor, qmax, preShift } = step;
  for (let c = 0; c < accumulators.length; c += 1) {
    let total = (Math.imul(accumulators[c] >> preShift, multiplier[c]) + offset[c]) | 0;
    if (shortcut !== null) total = (total + Math.imul(shortcut[at + c], factor[c])) | 0;
    total >>= shift[c];
    out[at + c] = total < 0 ? 0 : total > qmax ? qmax : total;
  }
}

function requantized(step, accumulator, c) {
  const total = (Math.imul(accumulator >> step.preShift, step.multiplier[c]) + step.offset[c]) >> step.shift[c];
  return total < 0 ? 0 : total > step.qmax ? step.qmax : total;
}

// accumulators[filter + k] = sum over i of |patch[i] - weight[filter + k, i]|, for four filters.
function sumDifferences(patch, weight, filter, length, accumulators) {
  const first = filter * length;
  const second = first + length;
  const third = second + length;
  const fourth = third + length;
  let a = 0;
  let b = 0;
  let c = 0;
  let d = 0;
  for (let i = 0; i < length; i += 1) {
    const x = patch[i];
    a = (a + Math.abs(x - weight[first + i])) | 0;
    b = (b + Math.abs(x - weight[second + i])) | 0;
    c = (c + Math.abs(x - weight[third + i])) | 0;
    d = (d + Math.abs(x - weight[fourth + i])) | 0;
  }
  accumulators[filter] = a;
  accumulators[filter + 1] = b;
  accumulators[filter + 2] = c;
  accumulators[filter + 3] = d;
}

function sumDifference(patch, weight, filter, length, accumulators) {
  const first = filter * length;
  let sum = 0;
  for (let i = 0; i < length; i += 1) sum = (sum + Math.abs(patch[i] - weight[first + i])) | 0;
  accumulators[filter] = sum;
}

// accumulators[filter + k] = sum over i of patch[i] * weight[filter + k, i], for four filters.
function sumProducts(patch, weight, filter, length, accumulators) {
  const first = filter * length;
  const second = first + length;
  const third = second + length;
  const fourth = third + length;
  let a = 0;
  let b = 0;
  let c = 0;
  let d = 0;
  for (let i = 0; i < length; i += 1) {
    const x = patch[i];
    a = (a + Math.imul(x, weight[first + i])) | 0;
    b = (b + Math.imul(x, weight[second + i])) | 0;
    c = (c + Math.imul(x, weight[third + i])) | 0;
    d = (d + Math.imul(x, weight[fourth + i])) | 0;
  }
  accumulators[filter] = a;
  accumulators[filter + 1] = b;
  accumulators[filter + 2] = c;
  accumulators[filter + 3] = d;
}

function sumProduct(patch, weight, filter, length, accumulators) {
  const first = filter * length;
  let sum = 0;
  for (let i = 0; i < length; i += 1) sum = (sum + Math.imul(patch[i], weight[first + i])) | 0;
  accumulators[filter] = sum;
}
