// Training curves as SVG: one panel each for losses, error rates, learning rate and gradient norm, for every phase.

const MARGIN = { left: 56, right: 12, top: 10, bottom: 46 };
const HEIGHT = 236;

/** The panels of a phase: title and series {name, points, dashed}; validation is dashed. */
function panels({ step, valid, epochs = [] }) {
  const rest = (names) => names.filter((key) => !["rate", "norm"].includes(key));
  const last = Math.max(...[step, valid].flatMap(Object.values).map((points) => points.at(-1)[0]), 1);
  const losses = rest(Object.keys(step)).map((key) => ({ name: key, points: step[key] }));
  const rates = [];
  for (const [key, points] of Object.entries(valid)) {
    (/\b[wcm]er$/.test(key) ? rates : losses).push({ name: key, points, dashed: true });
  }
  const distinct = losses.filter((one, n) => !losses.slice(0, n).some((other) => same(one.points, other.points)));
  return [
    { title: "Loss per utterance", series: distinct, wide: true },
    { title: "Error rate in validation", series: rates, format: (value) => `${Number((100 * value).toFixed(1))} %` },
    { title: "Learning rate", series: step.rate ? [{ name: "rate", points: step.rate }] : [], format: (value) => (value ? value.toExponential(1) : "0") },
    { title: "Gradient norm", series: step.norm ? [{ name: "norm", points: step.norm }] : [], wide: true },
  ].filter((panel) => panel.series.length).map((panel) => ({ ...panel, last, epochs, log: panel.wide && needsLog(panel.series) }));
}

/** Values over more than a factor of 50, all above 0. */
function needsLog(series) {
  const values = series.flatMap((one) => one.points.map(([, value]) => value)), least = Math.min(...values);
  return least > 0 && Math.max(...values) / least > 50;
}

function same(a, b) {
  return a.length === b.length && a.every(([, value], n) => value === b[n][1]);
}

function chart({ title, series, last, epochs, log, format = (value) => String(Number(value.toPrecision(3))) }) {
  const reading = el("p", { class: "reading", role: "status" });
  const plot = el("div", { class: "plotarea", tabindex: "0", role: "group", "aria-label": `${title}; arrow keys read the values` });
  const legend = el("p", { class: "keys" }, series.map((one, n) => el("span", {}, swatch(one, n), one.name)));
  const steps = [...new Set(series.flatMap((one) => one.points.map(([step]) => step)))].sort((a, b) => a - b);
  let at = null;
  const draw = () => plot.replaceChildren(drawing(plot.clientWidth, { series, last, epochs, log, format }, at));
  const read = (index) => {
    at = steps[Math.max(0, Math.min(steps.length - 1, index))];
    const values = series.map((one) => [one.name, valueAt(one.points, at)]).filter(([, value]) => value !== null);
    const epoch = epochOf(epochs, at);
    reading.textContent = `step ${at}${epoch ? `, epoch ${epoch}` : ""}: ${values.map(([key, value]) => `${key} ${format(value)}`).join(", ")}`;
    draw();
  };
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    read((at === null ? steps.length : steps.indexOf(at)) + move);
  });
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect(), inner = box.width - MARGIN.left - MARGIN.right;
    const step = ((event.clientX - box.left - MARGIN.left) / inner) * last;
    read(steps.reduce((best, value, n) => (Math.abs(value - step) < Math.abs(steps[best] - step) ? n : best), 0));
  });
  whenSeen(plot, () => new ResizeObserver(draw).observe(plot));
  return el("figure", { class: "chart" }, el("figcaption", {}, title, log ? el("span", { class: "muted" }, " log scale") : null), series.length > 1 ? legend : null, plot, reading);
}

function swatch(one, n) {
  return el("svg:svg", { width: 22, height: 10, "aria-hidden": "true" },
    el("svg:line", { class: `line c${n % 6}`, x1: 0, x2: 22, y1: 5, y2: 5, "stroke-dasharray": one.dashed ? "5 3" : null }));
}

/** The value of the last point up to a step; null before the first. */
function valueAt(points, step) {
  let found = null;
  for (const [at, value] of points) if (at <= step) found = value;
  return found;
}

function drawing(width, { series, last, epochs, log, format }, at) {
  const values = series.flatMap((one) => one.points.map(([, value]) => value));
  const top = Math.max(...values), least = Math.min(...values);
  const low = log ? Math.log10(least) : Math.min(0, least), high = log ? Math.log10(top) : top || 1;
  const inner = width - MARGIN.left - MARGIN.right, tall = HEIGHT - MARGIN.top - MARGIN.bottom;
  const x = (step) => MARGIN.left + (step / last) * inner;
  const y = (value) => MARGIN.top + tall - (((log ? Math.log10(value) : value) - low) / (high - low || 1)) * tall;
  const marks = log ? ticks(low, high, 4).map((power) => 10 ** power) : ticks(low, high, 4);
  const parts = marks.map((value) => [
    el("svg:line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }),
    el("svg:text", { x: MARGIN.left - 6, y: y(value) + 4, "text-anchor": "end" }, format(value)),
  ]);
  for (const step of ticks(0, last, inner / 90)) {
    const label = step === 0 ? "step 0" : String(step), anchor = step > last * 0.95 ? "end" : "middle";
    parts.push(el("svg:text", { x: x(step), y: HEIGHT - 26, "text-anchor": anchor }, label));
  }
  epochMarks(epochs, inner / 90).forEach(([step, epoch], n) => {
    const label = n === 0 ? `epoch ${epoch}` : String(epoch), anchor = step > last * 0.95 ? "end" : "middle";
    parts.push(el("svg:line", { class: "grid", x1: x(step), x2: x(step), y1: MARGIN.top + tall, y2: MARGIN.top + tall + 4 }));
    parts.push(el("svg:text", { class: "epoch", x: x(step), y: HEIGHT - 8, "text-anchor": anchor }, label));
  });
  series.forEach((one, n) => {
    const path = one.points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    parts.push(el("svg:polyline", { class: `line c${n % 6}`, points: path, "stroke-dasharray": one.dashed ? "5 3" : null }));
    if (one.points.length <= 30) {
      parts.push(one.points.map(([step, value]) => el("svg:circle", { class: `dot c${n % 6}`, cx: x(step), cy: y(value), r: 2.5 })));
    }
  });
  if (at !== null) parts.push(el("svg:line", { class: "at", x1: x(at), x2: x(at), y1: MARGIN.top, y2: MARGIN.top + tall }));
  return el("svg:svg", { width, height: HEIGHT, "aria-hidden": "true" }, parts.flat());
}
