// Start: cards of the worst utterances, the list, the curves, and what the buttons of the static parts do.

const DATA = JSON.parse($("data").textContent);
const ROWS = makeRows(DATA.columns);
const DETAILS = new Map(DATA.details.map((detail) => [detail.row, detail]));
const METRIC = DATA.metric;
const UNIT = { wer: "words", cer: "characters", mer: "tokens" }[METRIC];

function card(detail) {
  const row = ROWS[detail.row];
  return el("article", { class: "card", "aria-label": row.id },
    el("header", {}, el("h3", {}, row.id), el("p", { class: "muted" }, inWords(row))), utteranceView(row));
}

/** Sets the filters as if a person had, and goes to the list. */
function look({ query = "", labels = {} }) {
  $("filters").reset();
  $("query").value = query;
  for (const [label, value] of Object.entries(labels)) document.querySelector(`[data-label="${CSS.escape(label)}"]`).value = value;
  filter();
  $("utterances").scrollIntoView();
  $("query").focus({ preventScroll: true });
}

function startButtons() {
  for (const button of document.querySelectorAll("[data-query]")) {
    button.addEventListener("click", () => look({ query: button.dataset.query }));
  }
  for (const button of document.querySelectorAll("[data-group]")) {
    const { group, value } = button.dataset, known = DATA.columns.labels[group === "spk" ? "speaker" : group];
    if (!known?.values.includes(value)) button.replaceWith(...button.childNodes); // a group that is no label of the utterances
    else button.addEventListener("click", () => look({ labels: { [group === "spk" ? "speaker" : group]: value } }));
  }
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.target.closest("input, select, textarea")) return;
    event.preventDefault();
    $("query").focus();
  });
}

startTheme();
startButtons();
$("cards").append(...(DATA.details.length ? DATA.details.map(card) : [el("p", { class: "muted" }, "No utterance has an error.")]));
startList();
for (const phase of DATA.curves) {
  if (DATA.curves.length > 1) $("charts").append(el("h3", {}, `Phase ${phase.phase}`));
  $("charts").append(el("div", { class: "charts" }, panels(phase).map(chart)));
}
if (!DATA.curves.length) $("charts").append(el("p", { class: "muted" }, "The folder lies in no experiment with a log.jsonl."));
