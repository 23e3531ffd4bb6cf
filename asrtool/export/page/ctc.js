// Log-probabilities -> text, by the best path of CTC (Graves et al. 2006).

// logProbs: (frames, size), row by row, perhaps with more rows behind -> ids of tokens: the most
// probable token of each frame, the first of equal ones; repetitions joined, then blanks left out.
export function bestPath(logProbs, frames, size, blank) {
  const ids = [];
  let before = blank;
  for (let start = 0; start < frames * size; start += size) {
    let best = 0;
    for (let id = 1; id < size; id++) if (logProbs[start + id] > logProbs[start + best]) best = id;
    if (Number.isNaN(logProbs[start + best])) throw new Error("the graph gives no numbers");
    if (best !== blank && best !== before) ids.push(best);
    before = best;
  }
  return ids;
}

// Tokens, characters or word pieces -> text with single spaces; an unknown one is shown.
export function join(ids, tokens) {
  const pieces = ids.map((id) => {
    const token = tokens[id];
    if (token === "<blank>" || token === "<sos/eos>") return "";
    return token === "<space>" ? " " : token.replaceAll("\u2581", " ");
  });
  return pieces.join("").split(" ").filter(Boolean).join(" ");
}

// The lines of tokens.txt.
export const read = (text) => text.replace(/\n$/, "").split("\n");
