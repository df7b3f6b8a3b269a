"use strict";
// Read a .tadder file: safetensors, with the steps of an integer program as metadata. quant/file.py describes it.
//
// A file may come from a stranger: read() checks every length, shape, index and range, by the rules of the native reader
// (native/engine/program.cpp), and throws FileError, whose message is one line. Only JSON itself may be written in more
// ways here: 3.0 for 3, a name twice, deep nesting. In the file zero_point is called "zero", qmax "highest", pre_shift
// "pre", and the scale of the logits "gain".
//
//   read(bytes) -> { shape: [C, H, W], qmax, scale, zeroPoint, steps, about }
//
// A step has kind, sources, from and to ([C, H, W] of its first source and of its output), kernel, stride, dilation
// ([rows, columns]), padding ([top, left, bottom, right]), groups, and the typed arrays of its tensors.

class FileError extends Error {}

const VERSION = 3; // the newest; older files are read, too
const PACKED = 3; // the first with packed weights
const LAYERS = ["adder", "conv", "binary"];
const LIMIT = 2 ** 31; // of a 32-bit number
const MAX_SIDE = 2 ** 14;
const MAX_CHANNELS = 2 ** 16;
const MAX_STEPS = 2 ** 12;
const MAX_SIZE = 2 ** 28; // quantized values of one image or of one output
const MAX_HEADER = 1e8; // bytes
const DTYPES = { U8: Uint8Array, I8: Int8Array, I32: Int32Array, F32: Float32Array };

function read(bytes) {
  const tensors = tensorsOf(bytes);
  const head = parsed(tensors.metadata, "its head");
  const version = whole(head.version, "its version", 1, VERSION);
  const about = object(head.about, "'about'");
  if (!Object.values(about).every((value) => ["string", "number"].includes(typeof value))) {
    throw new FileError("a value of 'about' is neither text nor a number");
  }
  const input = object(head.input, "'input'");
  const shape = list(input.shape, "input shape", 3).map((size) => whole(size, "input size", 1, MAX_SIDE));
  checkSize(shape);
  const scale = tensors.take("input.scale", "F32", [shape[0]]);
  const zeroPoint = tensors.take("input.zero", "F32", [shape[0]]);
  if (!scale.every((value) => value > 0 && value < Infinity)) throw new FileError("input.scale is not positive");
  if (!zeroPoint.every(Number.isFinite)) throw new FileError("input.zero is not finite");
  const qmax = whole(input.highest, "input highest", 1, 255);
  const shapes = [shape];
  const steps = list(head.steps, "'steps'").map((fields, number, all) => {
    try {
      const step = readStep(version, object(fields, "step"), number, number + 1 === all.length, shapes, tensors);
      shapes.push(step.to);
      return step;
    } catch (error) {
      throw error instanceof FileError ? new FileError(`step ${number}: ${error.message}`) : error;
    }
  });
  if (!steps.length || steps.length > MAX_STEPS) throw new FileError(`it has ${steps.length} steps`);
  checkPadding(steps);
  tensors.checkAllTaken();
  return { version, shape, qmax, scale, zeroPoint, steps, about };
}

// ---- safetensors: 8 bytes with the length of a JSON header, the header, the data

function tensorsOf(bytes) {
  if (bytes.length < 8) throw new FileError("it is too short for a .tadder file");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const length = view.getUint32(0, true) + 2 ** 32 * view.getUint32(4, true);
  if (length > MAX_HEADER || length > bytes.length - 8) throw new FileError("it is no .tadder file, or a part of one");
  const header = parsed(decoded(bytes.subarray(8, 8 + length)), "its header");
  const data = bytes.subarray(8 + length);
  const found = new Map();
  const ranges = [];
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const { dtype, shape, data_offsets: offsets } = object(entry, "a tensor");
    if (!Object.hasOwn(DTYPES, dtype)) throw new FileError(`tensor ${name.slice(0, 60)} has an unknown dtype`);
    const [begin, end] = list(offsets, "data offsets", 2).map((n) => whole(n, "data offset", 0, data.length));
    const sizes = list(shape, "shape").map((n) => whole(n, "size of a tensor", 0, 2 ** 48));
    const needed = sizes.reduce((product, n) => product * n, DTYPES[dtype].BYTES_PER_ELEMENT);
    if (end - begin !== needed) throw new FileError(`tensor ${name.slice(0, 60)} does not have the bytes of its shape`);
    ranges.push([begin, end]);
    found.set(name, { dtype, shape: sizes, data: data.slice(begin, end) });
  }
  ranges.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const covered = ranges.reduce((at, [begin, end]) => (begin === at ? end : NaN), 0);
  if (covered !== data.length) throw new FileError("its tensors overlap, or leave bytes unused");
  const metadata = object(header.__metadata__, "its metadata").tadder;
  if (typeof metadata !== "string") throw new FileError("it is no .tadder file: its metadata lacks 'tadder'");
  return {
    metadata,
    has: (name) => found.has(name),
    // Return the numbers of a tensor and forget it. `shape`: the expected one, null for a size that may be any.
    take(name, dtype, shape) {
      const tensor = found.get(name);
      if (!tensor) throw new FileError(`it lacks the tensor ${name}`);
      found.delete(name);
      const fits = tensor.shape.length === shape.length && shape.every((n, i) => n === null || n === tensor.shape[i]);
      if (tensor.dtype !== dtype || !fits) {
        throw new FileError(`${name} is ${tensor.dtype} [${tensor.shape}], expected ${dtype} [${shape.map((n) => n ?? "any")}]`);
      }
      const numbers = new DTYPES[dtype](tensor.data.buffer); // little-endian, as every browser's machine
      numbers.shape = tensor.shape;
      return numbers;
    },
    checkAllTaken() {
      for (const name of found.keys()) throw new FileError(`tensor ${name.slice(0, 60)} belongs to no step`);
    },
  };
}

function decoded(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new FileError("its header is no text");
  }
}

function parsed(text, what) {
  try {
    return object(JSON.parse(text), what);
  } catch (error) {
    throw error instanceof FileError ? error : new FileError(`${what} is not JSON`);
  }
}

function object(value, what) {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new FileError(`${what} is no object`);
  return value;
}

function list(value, what, length) {
  if (!Array.isArray(value)) throw new FileError(`${what} is no list`);
  if (length !== undefined && value.length !== length) {
    throw new FileError(`${what} has ${value.length} numbers, expected ${length}`);
  }
  return value;
}

function whole(value, what, low, high) {
  if (!Number.isInteger(value) || value < low || value > high) {
    throw new FileError(`${what} is ${JSON.stringify(value)?.slice(0, 40)}, expected ${low} to ${high}`);
  }
  return value;
}

// ---- steps

function readStep(version, fields, number, isLast, shapes, tensors) {
  const kind = fields.op;
  const isLayer = LAYERS.includes(kind);
  if (!isLayer && !["max_pool", "average_pool", "table", "concat"].includes(kind)) {
    throw new FileError(`op ${JSON.stringify(kind)?.slice(0, 40)} is unknown`);
  }
  if (isLast && !isLayer) throw new FileError(`the last step is ${kind}, which gives no logits: expected a layer`);
  const sources = list(fields.sources, "sources").map((value) => whole(value, "source", 0, number));
  const most = kind === "concat" ? MAX_CHANNELS : isLayer ? 2 : 1;
  if (!sources.length || sources.length > most) throw new FileError(`it has ${sources.length} sources`);
  const from = shapes[sources[0]];
  const step = { kind, isLayer, sources, from, to: from, kernel: [1, 1], stride: [1, 1], dilation: [1, 1],
    padding: [0, 0, 0, 0], groups: 1 };
  const take = (name, dtype, shape) => tensors.take(`${number}.${name}`, dtype, shape);
  if (isLayer) readLayer(version, fields, step, isLast, shapes, take);
  else if (kind === "table") {
    step.entries = take("table", "U8", [null, 256]);
    if (![1, from[0]].includes(step.entries.shape[0])) throw new FileError("table is not one for all channels or each");
  } else if (kind === "concat") {
    const parts = sources.map((value) => shapes[value]);
    if (parts.some(([, height, width]) => height !== from[1] || width !== from[2])) {
      throw new FileError("it concatenates images of several sizes");
    }
    step.to = [parts.reduce((sum, [channels]) => sum + channels, 0), from[1], from[2]];
    if (step.to[0] > MAX_CHANNELS) throw new FileError(`it has ${step.to[0]} channels`);
    readRequantization(fields, step, 255, take);
  } else {
    for (const name of ["kernel", "stride"]) step[name] = axes(fields[name], name, 1, 2);
    if (fields.padding !== undefined) step.padding = axes(fields.padding, "padding", 0, 4);
    step.to = outputShape(step, from[0]);
    if (kind === "average_pool") {
      step.meanUnit = meanUnit(step, 0) * meanUnit(step, 1);
      readRequantization(fields, step, 255 * step.meanUnit, take);
    }
  }
  checkSize(step.to);
  return step;
}

function readLayer(version, fields, step, isLast, shapes, take) {
  const [channels, height, width] = step.from;
  step.stride = axes(fields.stride, "stride", 1, 2);
  step.padding = axes(fields.padding, "padding", 0, 4);
  if (fields.dilation !== undefined) step.dilation = axes(fields.dilation, "dilation", 1, 2);
  if (fields.groups !== undefined) step.groups = whole(fields.groups, "groups", 1, MAX_CHANNELS);
  step.weight = version >= PACKED && fields.filters !== undefined ? unpackedWeight(fields, step, take)
    : take("weight", step.kind === "adder" ? "U8" : "I8", [null, null, null, null]);
  if (step.weight.shape[1] !== channels / step.groups) {
    throw new FileError(`weight takes ${step.weight.shape[1]} channels in ${step.groups} groups, its source has ${channels}`);
  }
  const [filters, , ...kernel] = step.weight.shape;
  if (filters % step.groups) throw new FileError(`weight has ${filters} filters in ${step.groups} groups`);
  whole(filters, "the number of filters", 1, MAX_CHANNELS);
  if (Math.min(...kernel) < 1) throw new FileError("weight has an empty kernel");
  step.kernel = kernel;
  const [top, left, bottom, right] = step.padding;
  checkSize([channels, height + top + bottom, width + left + right]);
  step.to = outputShape(step, filters);
  const largest = largestAccumulator(step);
  if (largest >= LIMIT) throw new FileError(`an accumulator may reach ${largest}, which needs more than 32 bits`);
  step.zeroPoint = take("zero", "U8", [channels]);
  if (isLast) {
    if (step.to[1] !== 1 || step.to[2] !== 1) throw new FileError("the last step gives several outputs a class");
    if (step.sources.length > 1) throw new FileError("the last step has a shortcut, expected none");
    step.scale = take("gain", "F32", [filters]);
    step.bias = take("bias", "F32", [filters]);
    return;
  }
  if (step.sources.length > 1 && String(shapes[step.sources[1]]) !== String(step.to)) {
    throw new FileError(`it adds value ${step.sources[1]} of another shape`);
  }
  readRequantization(fields, step, largest, take);
}

// Unpack weights of 4 bits, two in a byte, the lower half first; those of an adder layer have no sign.
function unpackedWeight({ filters }, { kind }, take) {
  const shape = list(filters, "filters", 4).map((size) => whole(size, "a size of filters", 1, MAX_CHANNELS));
  const count = shape.reduce((product, size) => product * size, 1);
  const packed = take("packed", "U8", [Math.ceil(count / 2)]);
  if (count % 2 && packed.at(-1) >> 4) throw new FileError("packed ends with half a byte that is not 0");
  const sign = kind === "adder" ? 0 : 8;
  const weight = new (sign ? Int8Array : Uint8Array)(count);
  for (let i = 0; i < count; i += 1) weight[i] = (((packed[i >> 1] >> (4 * (i & 1))) & 15) ^ sign) - sign;
  weight.shape = shape;
  return weight;
}

function largestAccumulator(step) {
  const length = step.weight.length / step.to[0];
  if (step.kind === "adder") return 255 * length;
  let largest = 0;
  for (let at = 0; at < step.weight.length; at += length) {
    let sum = 0;
    for (let i = at; i < at + length; i += 1) sum += Math.abs(step.weight[i]);
    largest = Math.max(largest, sum);
  }
  if (step.weight.includes(-128)) throw new FileError("a weight is -128, expected -127 to 127");
  if (step.kind === "conv") return 255 * largest;
  if (step.weight.some((w) => w !== 1 && w !== -1)) throw new FileError("a binary weight is not 1 or -1");
  return largest;
}

// Read the numbers of requantize(). No intermediate result needs more than 32 bits, for any input.
function readRequantization(fields, step, largest, take) {
  const channels = step.to[0];
  for (const name of ["multiplier", "offset", "shift"]) step[name] = take(name, "I32", [channels]);
  const hasShortcut = step.isLayer && step.sources.length > 1;
  if (hasShortcut) step.factor = take("factor", "I32", [channels]);
  step.qmax = whole(fields.highest, "highest", 1, 255);
  step.preShift = whole(fields.pre, "pre", 0, 31);
  if (largest >= LIMIT) throw new FileError(`an accumulator may reach ${largest}, which needs more than 32 bits`);
  for (let c = 0; c < channels; c += 1) {
    whole(step.shift[c], `shift of channel ${c}`, 0, 31);
    const total = Math.abs(step.multiplier[c]) * ((largest >> step.preShift) + 1) + Math.abs(step.offset[c])
      + (hasShortcut ? 255 * Math.abs(step.factor[c]) : 0); // exact where it is below 2^53
    if (total >= LIMIT) throw new FileError(`requantizing channel ${c} may reach ${total}, which needs more than 32 bits`);
  }
}

// Return a number for each axis ([rows, columns]) or side ([top, left, bottom, right]); a file has those that differ.
function axes(value, name, low, count) {
  const numbers = Array.isArray(value) ? value : [value];
  if (Array.isArray(value) && ![2, count].includes(value.length)) {
    throw new FileError(`${name} has ${value.length} numbers, expected ${count}`);
  }
  return Array.from({ length: count }, (_, i) => whole(numbers[i % numbers.length], name, low, MAX_SIDE));
}

function outputShape(step, channels) {
  const sides = [0, 1].map((axis) => {
    const padded = step.from[1 + axis] + step.padding[axis] + step.padding[2 + axis];
    const room = padded - (step.dilation[axis] * (step.kernel[axis] - 1) + 1);
    if (room < 0) throw new FileError(`kernel ${step.kernel[axis]} is larger than the padded source, ${padded}`);
    return Math.floor(room / step.stride[axis]) + 1;
  });
  return [channels, ...sides];
}

// Return the pixels of the source in window `at` along an axis: [first, end).
function windowOf(step, axis, at) {
  const first = at * step.stride[axis] - step.padding[axis];
  return [Math.max(first, 0), Math.min(first + step.kernel[axis], step.from[1 + axis])];
}

// Return the least number that all counts of pixels in a window along an axis divide.
function meanUnit(step, axis) {
  const divisor = (a, b) => (b ? divisor(b, a % b) : a);
  let unit = 1;
  for (let at = 0; at < step.to[1 + axis]; at += 1) {
    const [first, end] = windowOf(step, axis, at);
    if (first >= end) throw new FileError(`window ${at} has no pixel of its source`);
    unit *= (end - first) / divisor(unit, end - first);
    if (unit >= LIMIT / 255) throw new FileError("an accumulator needs more than 32 bits");
  }
  return unit;
}

function checkSize([channels, height, width]) {
  if (channels * height * width > MAX_SIZE) throw new FileError(`it has more than ${MAX_SIZE} values`);
}

// The native engine stores the padding of a value once, so all layers that pad it must agree on its zero point.
function checkPadding(steps) {
  const known = new Map();
  for (const step of steps) {
    if (!["adder", "conv"].includes(step.kind) || !step.padding.some(Boolean)) continue;
    const [source] = step.sources;
    if (String(known.get(source) ?? step.zeroPoint) !== String(step.zeroPoint)) {
      throw new FileError(`it pads value ${source} with another zero point than a step before it`);
    }
    known.set(source, step.zeroPoint);
  }
}
