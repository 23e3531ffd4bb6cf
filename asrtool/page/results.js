// Final texts with their words, confidences and labels.

const UNSURE = 0.5; // words below this confidence are marked

export const clock = (seconds) => {
  const minutes = Math.floor(seconds / 60);
  return minutes ? `${minutes}:${(seconds % 60).toFixed(1).padStart(4, "0")}` : `${seconds.toFixed(2)} s`;
};

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

const percent = (share) => `${Math.round(100 * share)} %`;

// result: {start, end, text, words, classes}; seek: what a pressed word does, where there is a player.
export function entry(result, seek) {
  const item = element("li");
  item.append(said(result, seek));
  const about = [`${clock(result.start)} to ${clock(result.end)}`];
  if (result.words?.length) {
    about.push(`confidence ${percent(result.words.reduce((sum, word) => sum + word.confidence, 0) / result.words.length)}`);
  }
  for (const [label, values] of Object.entries(result.classes ?? {})) {
    const [best, share] = Object.entries(values).reduce((one, other) => (other[1] > one[1] ? other : one));
    about.push(`${label} ${best} ${percent(share)}`);
  }
  item.append(element("p", { className: "about", textContent: about.join(" · ") }));
  const details = element("details", {}, element("summary", { textContent: "Details" }));
  for (const [label, values] of Object.entries(result.classes ?? {})) details.append(shares(label, values));
  if (result.words?.length) details.append(times(result.words));
  if (details.children.length > 1) item.append(details);
  return item;
}

function said(result, seek) {
  const line = element("p", { className: "said" });
  if (!result.words?.length) {
    line.textContent = result.text;
    return line;
  }
  // the text decides where spaces are: Chinese words have none between them
  let at = 0;
  for (const word of result.words) {
    const found = result.text.indexOf(word.text, at);
    if (found > at) line.append(result.text.slice(at, found));
    at = Math.max(at, found + word.text.length);
    const part = element(seek ? "button" : "span", { className: "word", textContent: word.text });
    part.title = `${clock(word.start)} to ${clock(word.end)}, confidence ${percent(word.confidence)}`;
    if (word.confidence < UNSURE) part.classList.add("unsure");
    if (seek) {
      part.type = "button";
      part.dataset.start = word.start;
      part.dataset.end = word.end;
      part.addEventListener("click", () => seek(word.start));
    }
    line.append(part);
  }
  line.append(result.text.slice(at));
  return line;
}

function table(caption, head, rows) {
  const cells = (kind, texts) => texts.map((text, at) => element(kind === "td" && at === 0 ? "th" : kind, at === 0 || kind === "th" ? { scope: kind === "th" ? "col" : "row" } : {}, text));
  const made = element(
    "table",
    {},
    element("caption", { textContent: caption }),
    element("thead", {}, element("tr", {}, ...cells("th", head))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...cells("td", row)))),
  );
  return element("div", { className: "scroll", tabIndex: 0, role: "group", ariaLabel: caption }, made);
}

function times(words) {
  const rows = words.map((word) => [word.text, word.start.toFixed(2), word.end.toFixed(2), percent(word.confidence)]);
  return table("Words, with seconds from the beginning", ["Word", "Start", "End", "Confidence"], rows);
}

function shares(label, values) {
  const rows = Object.entries(values)
    .sort((one, other) => other[1] - one[1])
    .map(([value, share]) => [value, percent(share), element("meter", { min: 0, max: 1, value: share, ariaLabel: `${value} ${percent(share)}` })]);
  return table(`Probability of each ${label}`, [label, "Probability", "Share"], rows);
}
