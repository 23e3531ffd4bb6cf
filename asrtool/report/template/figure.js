// The picture of an utterance: tokens over the spectrogram, key frames, curves and maps below, all on one time axis.

const LANE = { token: 17, tokens: 3, spectrogram: 120, name: 20, keys: 12, curve: 44, axis: 24 };

function figure(detail, audio) {
  const canvas = el("canvas", { role: "img", "aria-label": describe(detail) });
  const cursor = el("div", { class: "cursor", hidden: true });
  const box = el("div", { class: "scroll figure", tabindex: "0", role: "group", "aria-label": "Spectrogram, scrolls sideways" },
    el("div", { class: "plate" }, canvas, cursor));
  const images = {};
  const draw = () => paint(canvas, box.clientWidth, detail, images);
  const load = async () => {
    for (const [name, source] of Object.entries(sources(detail))) images[name] = await shades(source);
    draw();
    redraws.add(draw);
    new ResizeObserver(draw).observe(box);
  };
  whenSeen(box, load);
  if (audio) follow(audio, canvas, cursor, detail);
  return box;
}

function describe(detail) {
  const parts = [`Spectrogram of ${detail.seconds} seconds`];
  if (detail.times) parts.push(`${detail.times.length} tokens at their times`);
  if (detail.key_frames) parts.push(`${detail.key_frames.length} key frames`);
  for (const name of [...Object.keys(detail.curves ?? {}), ...Object.keys(detail.maps ?? {})]) parts.push(name);
  return parts.join(", ");
}

function sources(detail) {
  const found = detail.image ? { spectrogram: detail.image } : {};
  for (const [name, map] of Object.entries(detail.maps ?? {})) found[`map ${name}`] = map.image;
  return found;
}

/** Grey values of an embedded PNG, as {width, height, values}. */
async function shades(source) {
  const image = new Image();
  image.src = source;
  await image.decode();
  const canvas = el("canvas", { width: image.width, height: image.height }), context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const data = context.getImageData(0, 0, image.width, image.height).data;
  return { width: image.width, height: image.height, values: Uint8Array.from({ length: data.length / 4 }, (_, n) => data[4 * n]) };
}

/** The same picture in the colours of the theme. */
function tinted({ width, height, values }, stops) {
  const canvas = el("canvas", { width, height }), context = canvas.getContext("2d"), image = context.createImageData(width, height);
  const table = Array.from({ length: 256 }, (_, n) => mix(stops, n / 255));
  values.forEach((value, n) => image.data.set(table[value], 4 * n));
  context.putImageData(image, 0, 0);
  return canvas;
}

function mix(stops, share) {
  const place = share * (stops.length - 1), low = Math.min(Math.floor(place), stops.length - 2), part = place - low;
  return [0, 1, 2].map((k) => Math.round(stops[low][k] * (1 - part) + stops[low + 1][k] * part)).concat(255);
}

const rgb = (hex) => [1, 3, 5].map((n) => parseInt(hex.slice(n, n + 2), 16));

function paint(canvas, width, detail, images) {
  if (!width) return;
  const seconds = detail.seconds, lanes = layout(detail), scale = devicePixelRatio || 1;
  const wide = Math.max(width, Math.min(8000, Math.round(seconds * 90)));
  canvas.width = wide * scale;
  canvas.height = lanes.height * scale;
  canvas.style.width = `${wide}px`;
  canvas.style.height = `${lanes.height}px`;
  const context = canvas.getContext("2d"), x = (time) => (time / seconds) * wide;
  context.scale(scale, scale);
  context.font = "12px ui-sans-serif, system-ui, sans-serif";
  const stops = ["shade-0", "shade-1", "shade-2"].map((name) => rgb(colour(name)));
  if (images.spectrogram) {
    const start = x(detail.first - detail.step / 2), size = x(images.spectrogram.width * detail.step);
    context.fillStyle = colour("shade-0");
    context.fillRect(0, lanes.spectrogram, wide, LANE.spectrogram);
    context.drawImage(tinted(images.spectrogram, stops), start, lanes.spectrogram, size, LANE.spectrogram);
  }
  if (detail.times) paintTokens(context, detail, lanes, x, wide);
  if (detail.key_frames) {
    context.fillStyle = colour("text");
    for (const time of detail.key_frames) context.fillRect(Math.round(x(time)), lanes.keys, 1.5, LANE.keys);
    name(context, `key frames (${detail.key_frames.length})`, lanes.keys);
  }
  for (const [title, curve] of Object.entries(detail.curves ?? {})) paintCurve(context, title, curve, lanes.curves[title], x, wide);
  for (const [title, map] of Object.entries(detail.maps ?? {})) {
    const { top, height } = lanes.maps[title];
    context.imageSmoothingEnabled = false;
    context.drawImage(tinted(images[`map ${title}`], stops), x(map.start), top, x(map.columns * map.step), height);
    name(context, `${title} (0 to ${map.top}, ${map.rows.length} rows from ${map.rows[0]} to ${map.rows.at(-1)})`, top);
  }
  paintAxis(context, seconds, lanes.axis, x, wide);
}

function layout(detail) {
  const lanes = { curves: {}, maps: {} };
  let y = 0;
  const take = (height, above = LANE.name) => {
    y += above + height;
    return y - height;
  };
  if (detail.times) lanes.tokens = take(LANE.token * LANE.tokens, 0);
  if (detail.image) lanes.spectrogram = take(LANE.spectrogram, 0);
  if (detail.key_frames) lanes.keys = take(LANE.keys);
  for (const title of Object.keys(detail.curves ?? {})) lanes.curves[title] = take(LANE.curve);
  for (const [title, map] of Object.entries(detail.maps ?? {})) {
    const height = Math.max(24, Math.min(200, map.rows.length * 9));
    lanes.maps[title] = { top: take(height), height };
  }
  lanes.axis = take(LANE.axis, 2);
  lanes.height = y;
  return lanes;
}

/** The ticks of each token or word; its text in the first of three rows where it does not touch another. */
function paintTokens(context, detail, lanes, x, wide) {
  const ends = new Array(LANE.tokens).fill(-Infinity), bottom = lanes.spectrogram ?? lanes.tokens + LANE.token * LANE.tokens;
  for (const { text, time, unsure, ticks: at } of spoken(detail)) {
    const token = shownToken(text), size = context.measureText(token).width;
    const left = Math.max(0, Math.min(x(time) - size / 2, wide - size));
    const row = ends.findIndex((end) => end + 4 <= left);
    context.fillStyle = colour(unsure ? "D" : "muted");
    const top = row < 0 ? bottom - 6 : lanes.tokens + (row + 1) * LANE.token - 3;
    context.fillRect(Math.round(x(time)), top, 1, (at.length > 1 ? bottom - 6 : bottom) - top);
    for (const one of at) context.fillRect(Math.round(x(one)), bottom - 6, 1, 6);
    context.globalAlpha = 0.4;
    if (detail.image) context.fillRect(Math.round(x(at[0])), bottom, 1, LANE.spectrogram);
    context.globalAlpha = 1;
    if (row < 0) continue;
    ends[row] = left + size;
    const base = lanes.tokens + (row + 1) * LANE.token - 5;
    context.fillStyle = colour("bg");
    context.fillRect(left - 2, base - 11, size + 4, 14);
    context.fillStyle = colour(unsure ? "D" : "text");
    context.fillText(token, left, base);
    if (unsure) context.fillRect(left, base + 2, size, 1);
  }
}

function shownToken(token) {
  return token === "<space>" || token === " " ? "␣" : token;
}

function paintCurve(context, title, curve, top, x, wide) {
  const low = Math.min(0, ...curve.values), high = Math.max(1e-9, ...curve.values), height = LANE.curve;
  const y = (value) => top + height - ((value - low) / (high - low)) * (height - 3) - 1;
  context.fillStyle = colour("panel");
  context.fillRect(0, top, wide, height);
  context.strokeStyle = colour("accent");
  context.lineWidth = 1.5;
  context.beginPath();
  curve.values.forEach((value, n) => context.lineTo(x(curve.start + n * curve.step), y(value)));
  context.stroke();
  name(context, `${title} (${Number(low.toPrecision(3))} to ${Number(high.toPrecision(3))})`, top);
}

/** A lane's name, above it. */
function name(context, text, top) {
  context.fillStyle = colour("muted");
  context.fillText(text, 0, top - 5);
}

function paintAxis(context, seconds, top, x, wide) {
  context.fillStyle = colour("muted");
  for (const time of ticks(0, seconds, wide / 90)) {
    const text = `${time} s`, size = context.measureText(text).width;
    context.fillRect(Math.round(x(time)), top, 1, 5);
    context.fillText(text, Math.max(0, Math.min(x(time) - size / 2, wide - size)), top + 18);
  }
}

/** While it sounds, a line moves over the picture; a click on the picture jumps there. */
function follow(audio, canvas, cursor, detail) {
  const offset = () => Number((audio.getAttribute("src").match(/#t=([\d.]+)/) ?? [0, 0])[1]); // a cut of a longer file
  const move = () => {
    cursor.hidden = false;
    cursor.style.left = `${((audio.currentTime - offset()) / detail.seconds) * canvas.clientWidth}px`;
    if (!audio.paused) requestAnimationFrame(move);
  };
  for (const event of ["play", "seeked", "timeupdate"]) audio.addEventListener(event, move);
  canvas.addEventListener("click", (event) => {
    audio.currentTime = offset() + (event.offsetX / canvas.clientWidth) * detail.seconds;
    audio.play();
  });
  canvas.classList.add("seekable");
}

/** Calls `act` once, when the element comes near the screen. */
function whenSeen(element, act) {
  const observer = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    act();
  }, { rootMargin: "400px" });
  observer.observe(element);
}
