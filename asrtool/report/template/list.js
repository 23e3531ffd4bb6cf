// One utterance in full, and the table of all of them: filtered, sorted, a page at a time.

/** Alignment, sound, picture and numbers of an utterance: a card's body and a table row's fold. */
function utteranceView(row) {
  const detail = DETAILS.get(row.index), source = detail?.sound ?? DATA.links[row.index];
  const audio = source ? player(row, source) : null;
  const facts = [["rate", `${percent(row.rate)} %`], ["duration", row.seconds === null ? null : `${row.seconds} s`],
    ["mean confidence", row.confidence], ...Object.entries(row.labels)].filter(([, value]) => value !== null);
  return el("div", { class: "utterance" },
    row.missing ? el("p", { class: "note" }, `There is no hypothesis; all tokens count as deleted. ${DATA.failed[row.id] ?? ""}`) : null,
    alignmentView(row),
    audio,
    detail?.seconds ? figure(detail, audio?.querySelector("audio")) : null,
    Object.entries(detail?.classes ?? {}).map(([label, shares]) => classBars(label, shares)),
    detail?.times ? tokenTable(detail) : null,
    el("dl", { class: "facts small" }, facts.map(([key, value]) => el("div", {}, el("dt", {}, key), el("dd", {}, String(value))))));
}

function player(row, source) {
  const audio = el("audio", { controls: true, preload: "none", src: source, "aria-label": `Sound of ${row.id}` });
  const box = el("div", { class: "sound" }, audio);
  audio.addEventListener("error", () => {
    box.replaceChildren(el("p", { class: "note" }, `The sound cannot be played. It is looked for at ${source.slice(0, 300)}`));
  });
  return box;
}

function classBars(label, shares) {
  const shown = shares.slice(0, 6);
  return el("figure", { class: "classes" }, el("figcaption", {}, `${label}: posteriors of the model`),
    el("table", { "aria-label": label }, el("tbody", {}, shown.map(([value, share]) => el("tr", {},
      el("th", { scope: "row" }, value),
      el("td", { class: "bar" }, el("svg:svg", { width: "100%", height: 12, "aria-hidden": "true" },
        el("svg:rect", { width: `${100 * Math.max(0, Math.min(1, share))}%`, height: 10, y: 1, rx: 1.5 }))),
      el("td", {}, `${(100 * share).toFixed(1)} %`))))),
    shares.length > shown.length ? el("p", { class: "muted" }, `${shares.length - shown.length} more below`) : null);
}

function tokenTable({ tokens, times, confidences }) {
  const rows = tokens.map((token, n) => el("tr", {}, el("th", { scope: "row" }, token), el("td", {}, times[n].toFixed(2)),
    confidences ? el("td", {}, confidences[n].toFixed(3)) : null));
  return el("details", {}, el("summary", {}, "Tokens as a table"),
    el("table", { class: "numbers narrow", "aria-label": "Tokens with their times" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "token"),
      el("th", { scope: "col" }, "seconds"), confidences ? el("th", { scope: "col" }, "confidence") : null)), el("tbody", {}, rows)));
}

// -- the table ----------------------------------------------------------------

const COLUMNS = [
  { key: "id", name: "utterance" }, { key: "errors", name: "errors" }, { key: "rate", name: "rate %" },
  { key: "S", name: "S" }, { key: "D", name: "D" }, { key: "I", name: "I" }, { key: "tokens", name: "tokens" },
  { key: "seconds", name: "seconds" }, { key: "confidence", name: "conf." }, { key: "speaker", name: "speaker" },
];

const view = { query: "", kind: "", labels: {}, key: "errors", down: true, page: 0, size: 50, rows: [], columns: [], open: new Set() };

function startList() {
  view.columns = COLUMNS.filter(({ key }) => ROWS.some((row) => row[key] !== null));
  for (const [label, { values }] of Object.entries(DATA.columns.labels)) {
    const options = values.map((value) => el("option", {}, value));
    const select = el("select", { "data-label": label }, el("option", { value: "" }, "all"), options);
    $("labels").append(el("label", {}, `${label} `, select));
  }
  let wait;
  $("query").addEventListener("input", () => {
    clearTimeout(wait);
    wait = setTimeout(filter, 120);
  });
  $("filters").addEventListener("change", filter);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("reset", () => setTimeout(filter));
  $("pages").addEventListener("click", (event) => turn(event.target.dataset.page));
  filter();
}

/** Reads the form and begins with the first page. */
function filter() {
  view.query = $("query").value;
  view.kind = $("kind").value;
  view.size = Number($("size").value);
  for (const select of document.querySelectorAll("[data-label]")) view.labels[select.dataset.label] = select.value;
  view.page = 0;
  select();
}

function select() {
  view.rows = sortRows(ROWS.filter(makeTest(view)), view.key, view.down);
  let errors = 0, tokens = 0;
  for (const row of view.rows) {
    errors += row.errors;
    tokens += row.tokens;
  }
  const share = tokens ? `, ${percent(errors / tokens)} % of ${tokens} ${UNIT} wrong` : "";
  $("found").textContent = `${view.rows.length} of ${ROWS.length} utterances${share}`;
  show();
}

function turn(where) {
  const last = Math.max(0, Math.ceil(view.rows.length / view.size) - 1);
  const to = { first: 0, back: view.page - 1, next: view.page + 1, last }[where];
  if (to === undefined) return;
  view.page = Math.max(0, Math.min(last, to));
  show();
  $("list").scrollIntoView({ block: "nearest" });
}

function sortBy(key) {
  view.down = view.key === key ? !view.down : !["id", "speaker"].includes(key);
  view.key = key;
  view.page = 0;
  select();
  $("list").querySelector(`[data-key="${key}"]`).focus();
}

function show() {
  const list = $("list"), start = view.page * view.size, pages = Math.max(1, Math.ceil(view.rows.length / view.size));
  list.tHead.replaceChildren(el("tr", {}, view.columns.map(({ key, name }) => heading(key, name)), el("th", { scope: "col", class: "text" }, "text")));
  list.tBodies[0].replaceChildren(...view.rows.slice(start, start + view.size).flatMap(lines));
  $("page").textContent = `page ${view.page + 1} of ${pages}`;
  for (const button of $("pages").querySelectorAll("button")) {
    button.disabled = ["first", "back"].includes(button.dataset.page) ? view.page === 0 : view.page >= pages - 1;
  }
}

function heading(key, name) {
  const sorted = view.key === key, arrow = sorted ? (view.down ? " ↓" : " ↑") : "";
  return el("th", { scope: "col", "aria-sort": sorted ? (view.down ? "descending" : "ascending") : null, class: `k-${key}` },
    el("button", { type: "button", class: "sort", "data-key": key, onclick: () => sortBy(key) }, name, el("span", { "aria-hidden": "true" }, arrow)));
}

/** The row and, where it is unfolded, the one below it. */
function lines(row) {
  const open = view.open.has(row.index), button = el("button", { type: "button", class: "fold", "aria-expanded": String(open) }, row.id);
  const cells = view.columns.slice(1).map(({ key }) => el("td", { class: `k-${key}` }, cell(row, key)));
  const line = el("tr", { class: "row", id: `utt-${row.index}` }, el("th", { scope: "row", class: "k-id" }, button), cells,
    el("td", { class: "text" }, snippet(row)));
  let below = open ? fold(row) : null;
  button.addEventListener("click", () => {
    if (below) below.remove();
    else line.after(below = fold(row));
    if (!below.isConnected) below = null;
    button.setAttribute("aria-expanded", String(below !== null));
    view.open[below ? "add" : "delete"](row.index);
  });
  return below ? [line, below] : [line];
}

function fold(row) {
  return el("tr", { class: "below" }, el("td", { colspan: view.columns.length + 1 }, utteranceView(row)));
}

function cell(row, key) {
  const value = row[key];
  if (value === null) return "–";
  if (key === "rate") return percent(value);
  if (key === "seconds") return value.toFixed(2);
  if (key === "confidence") return value.toFixed(2);
  return String(value);
}
