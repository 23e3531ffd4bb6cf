// What is seen: the state, the texts, the picture of the sound, the player; and what is pressed.
import { clock, entry } from "./results.js";
import { Spectrogram } from "./spectrogram.js";

export const SEEN = 10; // seconds of live sound in the picture
const LONGEST_PICTURE = 3600; // seconds of a file that is drawn
export const by = (id) => document.getElementById(id);

let spectrogram = null;
let address = null; // of the file that the player has

export function say(text) {
  by("status").textContent = text;
}

export function complain(text) {
  by("problem").textContent = text;
  by("problem").hidden = !text;
}

// A button that is disabled would lose the focus of the keyboard.
export function busy(now) {
  by("record").ariaDisabled = String(now);
  by("file").disabled = now;
}

// The button while a recording is going on, and after it.
export function listening(now) {
  by("record").classList.toggle("going", now);
  by("record-label").textContent = now ? "Stop" : "Start the microphone";
  say(now ? "Listening" : "Recognising what is left");
}

export function introduce(model, how) {
  by("model").textContent = `/ ${model.id}`;
  document.title = `${model.id} / asrtool`;
  by("facts").textContent = `${model.rate / 1000} kHz · ${how}`;
}

// -- texts ---------------------------------------------------------------------

export function partial(text) {
  by("partial").textContent = text;
}

export function show(result, seek) {
  partial("");
  if (!result.text) return;
  by("texts").append(entry(result, seek));
  by("announce").textContent = result.text;
  by("empty").hidden = true;
  by("copy").disabled = by("clear").disabled = false;
}

function clear() {
  by("texts").replaceChildren();
  partial("");
  by("announce").textContent = "";
  by("empty").hidden = false;
  by("copy").disabled = by("clear").disabled = true;
}

// -- the picture and the player --------------------------------------------------

function axis(from, to, rate) {
  by("from").textContent = clock(from);
  by("to").textContent = clock(to);
  by("span").textContent = `0 to ${rate / 2000} kHz`;
}

export function beginPicture(rate) {
  by("picture").hidden = false;
  spectrogram = new Spectrogram(by("spectrogram"), rate, SEEN);
}

// A piece of live sound, with which `seconds` were heard.
export function paint(piece, seconds, rate) {
  spectrogram.add(piece);
  axis(Math.max(0, seconds - SEEN), Math.max(seconds, SEEN), rate);
}

export function forget() {
  by("player").hidden = true;
  by("player").removeAttribute("src");
  if (address) URL.revokeObjectURL(address);
  address = null;
}

// A file in the player, and its picture; gives what a pressed word does.
export function present(file, samples, rate) {
  const player = by("player");
  address = URL.createObjectURL(file);
  player.src = address;
  player.hidden = false;
  const seconds = samples.length / rate;
  if (seconds <= LONGEST_PICTURE) {
    by("picture").hidden = false;
    spectrogram = new Spectrogram(by("spectrogram"), rate, seconds);
    spectrogram.add(samples);
    axis(0, seconds, rate);
  }
  return (start) => {
    player.currentTime = start;
    player.play();
  };
}

function follow() {
  const now = by("player").currentTime;
  document.querySelectorAll("li:last-child > .said > .word").forEach((word) => {
    word.classList.toggle("now", !by("player").paused && now >= word.dataset.start && now < word.dataset.end);
  });
}

// -- what is pressed ---------------------------------------------------------------

async function copy() {
  const texts = [...document.querySelectorAll(".said")].map((line) => line.textContent);
  try {
    await navigator.clipboard.writeText(texts.join("\n"));
    say("Copied");
  } catch {
    complain("This browser does not let the page copy; select the text instead.");
  }
}

// record: called when the button is pressed; take: called with a file that is chosen or dropped.
export function connectKeys(record, take) {
  by("record").addEventListener("click", ({ currentTarget }) => {
    if (currentTarget.ariaDisabled !== "true") record();
  });
  by("file").addEventListener("change", ({ target }) => target.files[0] && take(target.files[0]));
  by("player").addEventListener("timeupdate", follow);
  by("player").addEventListener("pause", follow);
  by("clear").addEventListener("click", () => {
    clear();
    by("texts").focus();
  });
  by("copy").addEventListener("click", copy);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => spectrogram?.draw());
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
}
