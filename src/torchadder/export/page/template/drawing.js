"use strict";
// Hold a drawing as strokes of points in the unit square, and render it as the pixels of an MNIST digit.

const INK = 20; // pixels: MNIST fits digits into a box of 20 x 20
const PEN = 2.4; // pixels: width of their strokes
const FINE = 8; // oversampling in either direction; a pixel is the mean of FINE * FINE values
const DOT = 0.12; // size in the unit square; a smaller drawing is not enlarged to fill the box

class Drawing {
  strokes = [];

  begin(point) {
    this.strokes.push([point]);
  }

  go(point) {
    this.strokes.at(-1).push(point);
  }

  trace(context, place) {
    // Quadratic curves through the midpoints of neighbouring points, so that a smooth stroke has no corners.
    for (const stroke of this.strokes) {
      const points = stroke.map(place);
      const [first, ...rest] = points;
      const last = points.at(-1);
      context.beginPath();
      context.moveTo(...first);
      rest.slice(0, -1).forEach(([x, y], i) => {
        const [nextX, nextY] = rest[i + 1];
        context.quadraticCurveTo(x, y, (x + nextX) / 2, (y + nextY) / 2);
      });
      context.lineTo(...last);
      context.stroke();
    }
  }

  // Return grey pixels (size x size), white on black, fitted into MNIST's box with the centre of mass in the middle.
  pixels(size) {
    const xs = this.strokes.flat().map(([x]) => x);
    const ys = this.strokes.flat().map(([, y]) => y);
    const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const scale = ((INK - PEN) / Math.max(right - left, bottom - top, DOT)) * FINE;
    const middle = [(left + right) / 2, (top + bottom) / 2];
    const fine = size * FINE;
    const centred = (dx, dy) => this.#rendered(fine, ([x, y]) => [
      (x - middle[0]) * scale + fine / 2 + dx, (y - middle[1]) * scale + fine / 2 + dy]);
    const [x, y] = centreOfMass(centred(0, 0), fine);
    return means(centred(fine / 2 - x, fine / 2 - y), size);
  }

  #rendered(side, place) {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillRect(0, 0, side, side);
    Object.assign(context, { strokeStyle: "#fff", lineWidth: PEN * FINE, lineCap: "round", lineJoin: "round" });
    this.trace(context, place);
    const { data } = context.getImageData(0, 0, side, side);
    const grey = new Uint8Array(side * side);
    for (let i = 0; i < grey.length; i += 1) grey[i] = data[4 * i];
    return grey;
  }
}

function centreOfMass(values, side) {
  let [mass, x, y] = [0, 0, 0];
  for (let i = 0; i < values.length; i += 1) {
    mass += values[i];
    x += values[i] * ((i % side) + 0.5);
    y += values[i] * (Math.floor(i / side) + 0.5);
  }
  return [x / mass, y / mass];
}

function means(values, size) {
  const sums = new Float64Array(size * size);
  const side = size * FINE;
  for (let i = 0; i < values.length; i += 1) {
    sums[Math.floor(i / side / FINE) * size + Math.floor((i % side) / FINE)] += values[i];
  }
  return Uint8Array.from(sums, (sum) => Math.round(sum / FINE ** 2));
}

const circle = (x, y, rx, ry, from = 0, to = 1) => Array.from({ length: 25 }, (_, i) => {
  const angle = 2 * Math.PI * (from + ((to - from) * i) / 24);
  return [x + rx * Math.sin(angle), y - ry * Math.cos(angle)];
});

// Sample digits as strokes.
const SAMPLES = [
  [circle(0.5, 0.5, 0.23, 0.36)],
  [[[0.5, 0.14], [0.49, 0.5], [0.47, 0.86]]],
  [[...circle(0.48, 0.32, 0.2, 0.18, -0.2, 0.36), [0.28, 0.82]], [[0.28, 0.82], [0.74, 0.82]]],
  [circle(0.46, 0.31, 0.19, 0.17, -0.15, 0.5), circle(0.46, 0.66, 0.22, 0.18, 0, 0.62)],
  [[[0.36, 0.14], [0.27, 0.54]], [[0.27, 0.54], [0.74, 0.52]], [[0.64, 0.2], [0.58, 0.88]]],
  [[[0.7, 0.16], [0.38, 0.16]], [[0.38, 0.16], [0.34, 0.46]], circle(0.46, 0.63, 0.23, 0.2, -0.13, 0.62)],
  [[[0.62, 0.12], [0.44, 0.3], [0.33, 0.5], ...circle(0.49, 0.67, 0.18, 0.18, -0.22, 0.78)]],
  [[[0.27, 0.17], [0.73, 0.17]], [[0.73, 0.17], [0.6, 0.45], [0.46, 0.86]]],
  [[...circle(0.5, 0.31, 0.16, 0.17, 0.5, -0.5), ...circle(0.5, 0.67, 0.2, 0.19, 0, 1)]],
  [[...circle(0.49, 0.34, 0.19, 0.19, 0.3, -0.7), [0.67, 0.45], [0.63, 0.66], [0.56, 0.88]]],
];
