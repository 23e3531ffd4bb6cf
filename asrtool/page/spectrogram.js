// A picture of sound: time to the right, frequency upwards, loud is dark (or light, on a dark page).

const BINS = 128;
const LOUD = -20; // decibels of the darkest shade
const SOFT = -90; // and of the lightest

// In place, radix 2; real and imaginary parts.
function fft(re, im) {
  const size = re.length;
  for (let i = 1, j = 0; i < size; i++) {
    let bit = size >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      [re[i], re[j]] = [re[j], re[i]];
      [im[i], im[j]] = [im[j], im[i]];
    }
  }
  for (let width = 2; width <= size; width *= 2) {
    const half = width / 2;
    for (let k = 0; k < half; k++) {
      const angle = (-2 * Math.PI * k) / width;
      const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
      for (let at = k; at < size; at += width) {
        const other = at + half;
        const [x, y] = [re[other] * cos - im[other] * sin, re[other] * sin + im[other] * cos];
        [re[other], im[other]] = [re[at] - x, im[at] - y];
        re[at] += x;
        im[at] += y;
      }
    }
  }
}

export class Spectrogram {
  // seconds: how much is seen at a time; what is older leaves on the left
  constructor(canvas, rate, seconds, columns = 800) {
    this.canvas = canvas;
    this.rate = rate;
    this.columns = [];
    this.most = columns;
    this.hop = Math.max(1, Math.round((seconds * rate) / columns));
    this.size = 2 * BINS;
    while (this.size < 0.02 * rate) this.size *= 2;
    this.window = Float32Array.from({ length: this.size }, (_, at) => 0.5 - 0.5 * Math.cos((2 * Math.PI * at) / this.size));
    this.rest = new Float32Array(0);
    this.skip = 0; // samples to the next window, where windows do not touch
    canvas.width = columns;
    canvas.height = BINS;
  }

  add(samples) {
    const all = new Float32Array(this.rest.length + samples.length);
    all.set(this.rest);
    all.set(samples, this.rest.length);
    let at = this.skip;
    for (; at + this.size <= all.length; at += this.hop) this.columns.push(this.column(all.subarray(at, at + this.size)));
    this.skip = Math.max(0, at - all.length);
    this.rest = all.slice(Math.min(at, all.length));
    if (this.columns.length > this.most) this.columns.splice(0, this.columns.length - this.most);
    this.draw();
  }

  column(samples) {
    const re = Float32Array.from(samples, (value, at) => value * this.window[at]);
    const im = new Float32Array(this.size);
    fft(re, im);
    const each = this.size / 2 / BINS; // lines of the spectrum in a bin
    return Uint8Array.from({ length: BINS }, (_, bin) => {
      let power = 0;
      for (let k = bin * each; k < (bin + 1) * each; k++) power += re[k] * re[k] + im[k] * im[k];
      const decibels = 10 * Math.log10(power / each / ((this.size / 4) * (this.size / 4)) + 1e-12);
      return Math.max(0, Math.min(255, (255 * (decibels - SOFT)) / (LOUD - SOFT)));
    });
  }

  draw() {
    const shades = palette();
    const context = this.canvas.getContext("2d");
    const image = context.createImageData(this.most, BINS);
    const pixels = new Uint32Array(image.data.buffer);
    pixels.fill(shades[0]);
    this.columns.forEach((column, x) => {
      for (let bin = 0; bin < BINS; bin++) pixels[(BINS - 1 - bin) * this.most + x] = shades[column[bin]];
    });
    context.putImageData(image, 0, 0);
  }
}

// 256 colours between the shades of the page.
function palette() {
  const style = getComputedStyle(document.documentElement);
  const stops = [0, 1, 2].map((number) => {
    const hex = style.getPropertyValue(`--shade-${number}`).trim().slice(1);
    return [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16));
  });
  return Uint32Array.from({ length: 256 }, (_, value) => {
    const place = (2 * value) / 255;
    const [low, high] = place < 1 ? [stops[0], stops[1]] : [stops[1], stops[2]];
    const share = place < 1 ? place : place - 1;
    const [red, green, blue] = low.map((part, at) => Math.round(part + share * (high[at] - part)));
    return (255 << 24) | (blue << 16) | (green << 8) | red;
  });
}
