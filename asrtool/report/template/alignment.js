// Alignments: the text runs on where both agree and forks where they do not; every fork carries its letter.

const SPOKEN = { S: "substitution", D: "deletion", I: "insertion" };

/** What stands between a token and the next one: nothing between characters, a space between words. */
function gapAfter(token) {
  return METRIC === "wer" || (METRIC === "mer" && !/^\p{Script=Han}$/u.test(token)) ? " " : "";
}

/** The whole alignment of an utterance. */
function alignmentView(row) {
  const columns = align(row.ops, row.ref, row.hyp);
  if (!columns.length) return el("p", { class: "muted" }, "Nothing was said and nothing recognised.");
  const pieces = [];
  let run = [];
  const flush = () => {
    if (run.length) pieces.push(el("span", { class: "same" }, run.map((token) => token + gapAfter(token)).join("").trimEnd()), " ");
    run = [];
  };
  for (const column of columns) {
    if (column.tag === "C") run.push(column.ref);
    else {
      flush();
      pieces.push(pair(column), " ");
    }
  }
  flush();
  return el("p", { class: "alignment", translate: "no" }, pieces);
}

function pair({ tag, ref, hyp }) {
  const reading = { S: ["", " recognised as "], D: ["", " not recognised "], I: ["not said: ", ""] }[tag];
  return el("span", { class: `pair ${tag}` },
    el("span", { class: "vh" }, `[${SPOKEN[tag]}: ${reading[0]}`),
    el("span", { class: "r", "aria-hidden": ref === null }, ref ?? "–"),
    el("span", { class: "vh" }, reading[1]),
    el("span", { class: "h", "aria-hidden": hyp === null }, hyp ?? "–"),
    el("b", { "aria-hidden": "true" }, tag), el("span", { class: "vh" }, "] "));
}

/** One line for the table: from shortly before the first error. */
function snippet(row) {
  const columns = align(row.ops, row.ref, row.hyp), before = METRIC === "wer" ? 3 : 8, most = METRIC === "wer" ? 24 : 60;
  const first = columns.findIndex((column) => column.tag !== "C"), start = Math.max(0, first - before);
  const pieces = start ? ["… "] : [];
  for (const { tag, ref, hyp } of columns.slice(start, start + most)) {
    if (tag === "C") pieces.push(ref);
    else if (tag === "S") pieces.push(el("span", { class: "tok S" }, el("s", {}, ref), "→", el("span", {}, hyp)));
    else if (tag === "D") pieces.push(el("span", { class: "tok D" }, el("s", {}, ref)));
    else pieces.push(el("span", { class: "tok I" }, el("u", {}, hyp)));
    pieces.push(tag === "C" ? gapAfter(ref) : "\u2005");
  }
  if (columns.length > start + most) pieces.push("…");
  return el("span", { class: "snippet", translate: "no" }, pieces);
}

/** Counts in words: "2 errors in 14 words: 1 S, 1 D". */
function inWords(row) {
  if (!row.errors) return `no error in ${row.tokens} ${UNIT}`;
  const parts = ["S", "D", "I"].filter((tag) => row[tag]).map((tag) => `${row[tag]} ${SPOKEN[tag]}${row[tag] > 1 ? "s" : ""}`);
  return `${row.errors} error${row.errors > 1 ? "s" : ""} in ${row.tokens} ${UNIT}: ${parts.join(", ")}`;
}
