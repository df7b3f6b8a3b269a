"use strict";
// Paint quantized values as small pictures, and the terms of a sum as a chart, in the colours of the page.

const SHOWN = { wide: 64, small: 64, single: 256 }; // pictures of one value at most, by their class

// Return "#rrggbb", "rgb(...)" or another colour of the style as [r, g, b].
function colour(name) {
  const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  context.fillStyle = getComputedStyle(probe).color;
  probe.remove();
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data.subarray(0, 3)];
}

class Palette {
  constructor() {
    for (const name of ["panel", "ink", "accent", "bar", "line"]) this[name] = colour(`--${name}`);
  }

  // Return the colour of a share from 0, the ground, to 1, the accent.
  ramp(share) {
    return this.panel.map((value, i) => value + share * (this.accent[i] - value));
  }

  css(name) {
    return `rgb(${this[name].join()})`;
  }
}

// Paint one channel of values (H, W, C); `shareOf` maps a value to 0..1.
function paintMap(canvas, values, [channels, height, width], channel, shareOf, palette) {
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i += 1) {
    image.data.set(palette.ramp(shareOf(values[i * channels + channel])), 4 * i);
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// Show values (H, W, C) as one picture a channel in `box`, which keeps its canvases from call to call.
function showMaps(box, values, shape, shareOf, palette, about) {
  const [channels, height, width] = shape;
  const size = height * width === 1 ? "single" : height * width < 36 ? "small" : "wide";
  const count = Math.min(channels, SHOWN[size]);
  if (box.childElementCount !== count || !box.classList.contains(size)) {
    box.classList.remove("wide", "small", "single");
    box.classList.add("maps", size);
    box.replaceChildren(...Array.from({ length: count }, () => document.createElement("canvas")));
  }
  for (let c = 0; c < count; c += 1) paintMap(box.children[c], values, shape, c, shareOf, palette);
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", about);
  return count;
}

// Draw the terms of a sum side by side: of an adder layer a bar from filter to patch, of others the product from 0.
function drawTerms(canvas, { patch, filter, terms }, isAdder, top, palette) {
  const density = globalThis.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth * density, canvas.clientHeight * density];
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  const edge = 5 * density;
  const largest = Math.max(1, ...terms.map(Math.abs));
  const place = isAdder ? (value) => height - edge - ((height - 2 * edge) * value) / top
    : (value) => height / 2 - ((height / 2 - edge) * value) / largest;
  const step = width / terms.length;
  const thick = Math.max(1, Math.min(step * 0.6, 10 * density));
  context.fillStyle = palette.css("line");
  context.fillRect(0, Math.round(place(0)), width, density);
  terms.forEach((term, i) => {
    const [from, to] = isAdder ? [place(filter[i]), place(patch[i])] : [place(0), place(term)];
    const x = (i + 0.5) * step;
    context.fillStyle = palette.css(isAdder ? "bar" : "accent");
    context.fillRect(x - thick / 2, Math.min(from, to), thick, Math.max(1, Math.abs(to - from)));
    if (!isAdder) return;
    const size = Math.max(2 * density, Math.min(step * 0.9, 5 * density));
    context.fillStyle = palette.css("ink");
    context.fillRect(x - size / 2, from - density, size, 2 * density);
    context.fillStyle = palette.css("accent");
    context.beginPath();
    context.arc(x, to, size / 2, 0, 2 * Math.PI);
    context.fill();
  });
}
