// Utterances: the columns of the page's JSON and what is worked out from them. Nothing here touches the document.

/** "3C1S" -> [[3, "C"], [1, "S"]]: runs of correct, substituted, deleted and inserted tokens. */
function runs(ops) {
  return Array.from(ops.matchAll(/(\d+)([CSDI])/g), ([, number, tag]) => [Number(number), tag]);
}

function words(text) {
  return text === "" ? [] : text.split(" ");
}

/** The alignment, a column for each pair: {tag, ref, hyp}; the side that has no token is null. */
function align(ops, ref, hyp) {
  const left = words(ref), right = words(hyp), columns = [];
  let i = 0, j = 0;
  for (const [number, tag] of runs(ops)) {
    for (let k = 0; k < number; k++) {
      columns.push({ tag, ref: tag === "I" ? null : left[i++], hyp: tag === "D" ? null : right[j++] });
    }
  }
  return columns;
}

/** One object per utterance: the columns side by side, with counts and rate (null without reference tokens). */
function makeRows(columns) {
  const missing = new Set(columns.missing), labels = Object.entries(columns.labels);
  return columns.id.map((id, index) => {
    const row = { index, id, C: 0, S: 0, D: 0, I: 0, missing: missing.has(index), labels: {} };
    for (const [number, tag] of runs(columns.ops[index])) row[tag] += number;
    row.errors = row.S + row.D + row.I;
    row.tokens = row.C + row.S + row.D;
    row.rate = row.tokens ? row.errors / row.tokens : (row.errors ? Infinity : null);
    row.seconds = columns.seconds[index];
    row.confidence = columns.confidence ? columns.confidence[index] : null;
    for (const [label, { values, of }] of labels) row.labels[label] = of[index] < 0 ? null : values[of[index]];
    row.speaker = row.labels.speaker ?? null;
    row.ops = columns.ops[index];
    row.ref = columns.ref[index];
    row.hyp = columns.hyp[index];
    return row;
  });
}

/** A test for rows: every term of the query must hold. `a>b`, `-a`, `+a`: a substitution, a deletion, an insertion. */
function makeTest({ query = "", kind = "", labels = {} }) {
  const tests = query.split(/\s+/).filter(Boolean).map(termTest);
  const kinds = {
    E: (row) => row.errors > 0, C: (row) => row.errors === 0, M: (row) => row.missing,
    R: (row) => row.C + row.S + row.I > 2 * Math.max(row.tokens, 1),
    S: (row) => row.S > 0, D: (row) => row.D > 0, I: (row) => row.I > 0,
  };
  if (kind) tests.unshift(kinds[kind]);
  for (const [label, value] of Object.entries(labels)) {
    if (value !== "") tests.unshift((row) => row.labels[label] === value);
  }
  return (row) => tests.every((test) => test(row));
}

function termTest(term) {
  const edit = /.>./.test(term) ? "S" : /^-./.test(term) ? "D" : /^\+./.test(term) ? "I" : "";
  if (edit) {
    const wanted = { S: (c) => `${c.ref}>${c.hyp}` === term, D: (c) => c.ref === term.slice(1), I: (c) => c.hyp === term.slice(1) }[edit];
    return (row) => row[edit] > 0 && align(row.ops, row.ref, row.hyp).some((c) => c.tag === edit && wanted(c));
  }
  const text = term.toLowerCase();
  return (row) => [row.id, row.ref, row.hyp].some((field) => field.toLowerCase().includes(text));
}

/** Rows by a field; rows without a value come last either way, equal ones by most errors, then in the file's order. */
function sortRows(rows, key, down) {
  const sign = down ? -1 : 1;
  return rows.slice().sort((a, b) => {
    const x = a[key], y = b[key];
    if (x === null || y === null) return (x === null) - (y === null) || a.index - b.index;
    const order = typeof x === "string" ? collator.compare(x, y) : x === y ? 0 : x < y ? -1 : 1;
    return sign * order || b.errors - a.errors || a.index - b.index;
  });
}

const collator = new Intl.Collator("en", { numeric: true });

/** A rate as percent, with as few digits as a table needs. */
function percent(rate) {
  if (rate === null) return "–";
  return rate === Infinity ? "∞" : (100 * rate).toFixed(1);
}

/** Marks of an axis from `low` to `high`, about `count` of them, at 1, 2 or 5 times a power of ten. */
/** What is written over a spectrogram, as {text, time, unsure, ticks}: each token at its time, or each word where tokens are the
 * characters of words, whose letters would touch. */
function spoken({ tokens, times, confidences }) {
  const isSpace = (token) => token === "<space>" || token === " ";
  const one = (index) => ({ text: tokens[index], time: times[index], unsure: confidences?.[index] < 0.5, ticks: [times[index]] });
  const all = tokens.map((_, index) => one(index));
  if (!tokens.some(isSpace) || tokens.some((token) => !isSpace(token) && [...token].length > 1 && !token.startsWith("<"))) return all;
  const words = [];
  let open = false;
  for (const letter of all) {
    if (isSpace(letter.text)) open = false;
    else if (!open) open = words.push(letter) > 0;
    else {
      const word = words.at(-1);
      word.text += letter.text;
      word.ticks.push(letter.time);
      word.unsure ||= letter.unsure;
      word.time = (word.ticks[0] + letter.time) / 2;
    }
  }
  return words;
}

/** Whole epochs on an axis of steps, as [step, epoch], at most about `count`; `ends`: the last step of each epoch. */
function epochMarks(ends, count) {
  return ticks(0, ends.length, count).filter((epoch) => epoch > 0 && Number.isInteger(epoch)).map((epoch) => [ends[epoch - 1], epoch]);
}

/** The epoch that a step is in, counted from 1; null where it is not known. */
function epochOf(ends, step) {
  const index = ends.findIndex((end) => step <= end);
  return index < 0 ? null : index + 1;
}

function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count), power = 10 ** Math.floor(Math.log10(raw || 1));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= raw * 0.999) || power;
  const marks = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) marks.push(Number((n * step).toPrecision(12)));
  return marks;
}
