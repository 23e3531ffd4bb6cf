// The page: the microphone or a file goes to the server, texts come back.
import { Microphone, decode, pcm, wav } from "./audio.js";
import { clock, entry } from "./results.js";
import { Spectrogram } from "./spectrogram.js";

const SEEN = 10; // seconds of live sound in the picture
const BEHIND = 30; // seconds of sound that may wait in this browser
const LONGEST_PICTURE = 3600; // seconds of a file that is drawn
const at = (path) => new URL(path, location.href);
const by = (id) => document.getElementById(id);

let model = null;
let token = sessionStorage.getItem("token") ?? "";
let recording = null; // {microphone, socket, pieces, ...} while there is one
let spectrogram = null;
let address = null; // of the file that the player has

function say(text) {
  by("status").textContent = text;
}

function complain(text) {
  by("problem").textContent = text;
  by("problem").hidden = !text;
}

// A button that is disabled would lose the focus of the keyboard.
function busy(now) {
  by("record").ariaDisabled = String(now);
  by("file").disabled = now;
}

const headers = () => (token ? { Authorization: `Bearer ${token}` } : {});

// The answer as JSON; an error has the server's own words.
async function ask(path, options = {}) {
  const response = await fetch(at(path), { ...options, headers: headers() });
  const answer = await response.json().catch(() => null);
  if (response.ok && answer) return answer;
  const error = new Error(answer?.error?.message ?? `${path}: the server answered ${response.status}`);
  error.status = response.status;
  throw error;
}

async function begin() {
  try {
    model = (await ask("v1/models")).data[0];
  } catch (error) {
    if (error.status !== 401) return complain(error.message);
    by("gate").hidden = false;
    if (token) complain(error.message);
    return by("token").focus();
  }
  by("gate").hidden = true;
  complain("");
  by("model").textContent = `/ ${model.id}`;
  document.title = `${model.id} / asrtool`;
  const how = model.stream ? `texts while you speak, in steps of ${model.chunk_ms} ms` : "texts when you stop; this model does not stream";
  by("facts").textContent = `${model.rate / 1000} kHz · ${how}`;
  busy(false);
}

// -- texts ---------------------------------------------------------------------

function show(result, seek) {
  by("partial").textContent = "";
  if (!result.text) return;
  by("texts").append(entry(result, seek));
  by("announce").textContent = result.text;
  by("empty").hidden = true;
  by("copy").disabled = by("clear").disabled = false;
}

function clear() {
  by("texts").replaceChildren();
  by("partial").textContent = by("announce").textContent = "";
  by("empty").hidden = false;
  by("copy").disabled = by("clear").disabled = true;
}

// -- the picture -----------------------------------------------------------------

function picture(rate, seconds) {
  by("picture").hidden = false;
  spectrogram = new Spectrogram(by("spectrogram"), rate, seconds);
}

function axis(from, to, rate) {
  by("from").textContent = clock(from);
  by("to").textContent = clock(to);
  by("span").textContent = `0 to ${rate / 2000} kHz`;
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => spectrogram?.draw());

// -- the microphone --------------------------------------------------------------

async function start() {
  busy(true);
  complain("");
  forget();
  const now = { pieces: [], samples: 0, failed: false };
  try {
    now.microphone = await Microphone.open(model.rate, (piece) => heard(now, piece));
  } catch (error) {
    busy(false);
    return complain(`The microphone cannot be used: ${error.message}`);
  }
  recording = now;
  now.rate = now.microphone.rate;
  if (model.stream) connect(now);
  picture(now.rate, SEEN);
  by("record").ariaDisabled = "false";
  by("record").classList.add("going");
  by("record-label").textContent = "Stop";
  say("Listening");
}

function heard(now, piece) {
  if (!now.rate || now.failed) return;
  now.samples += piece.length;
  const seconds = now.samples / now.rate;
  spectrogram.add(piece);
  axis(Math.max(0, seconds - SEEN), Math.max(seconds, SEEN), now.rate);
  if (!model.stream) {
    now.pieces.push(piece);
  } else if (now.socket.readyState === WebSocket.OPEN) {
    now.pieces.splice(0).concat([piece]).forEach((one) => now.socket.send(pcm(one)));
    if (now.socket.bufferedAmount > 2 * BEHIND * now.rate) fail(now, `The server is more than ${BEHIND} seconds behind.`);
  } else if (now.socket.readyState === WebSocket.CONNECTING) {
    now.pieces.push(piece);
  }
}

function connect(now) {
  const url = at("v1/stream");
  url.protocol = url.protocol.replace("http", "ws");
  if (token) url.searchParams.set("token", token);
  now.socket = new WebSocket(url);
  now.over = new Promise((done) => {
    now.socket.addEventListener("close", ({ code }) => {
      if (!now.ended && !now.failed) fail(now, `The connection was lost (${code}).`);
      done();
    });
  });
  now.socket.addEventListener("open", () => now.socket.send(JSON.stringify({ type: "start", rate: now.rate, format: "s16le" })));
  now.socket.addEventListener("message", ({ data }) => {
    const message = JSON.parse(data);
    if (message.type === "partial") by("partial").textContent = message.text;
    if (message.type === "final") show(message);
    if (message.type === "error") fail(now, message.message);
    if (message.type === "end") {
      now.ended = true;
      if (recording === now) stop();
    }
  });
}

function fail(now, text) {
  now.failed = true;
  complain(text);
  if (recording === now) stop();
}

async function stop() {
  const now = recording;
  if (!now) return;
  recording = null;
  busy(true);
  by("record").classList.remove("going");
  by("record-label").textContent = "Start the microphone";
  say("Recognising what is left");
  await now.microphone.stop();
  if (model.stream) {
    if (now.failed) now.socket.close();
    else if (!now.ended) {
      now.pieces.splice(0).forEach((one) => now.socket.send(pcm(one)));
      now.socket.send(JSON.stringify({ type: "end" }));
    }
    await now.over;
  } else if (now.samples) {
    await recognise(wav(now.pieces, now.rate), "microphone.wav", null);
  }
  say(`${clock(now.samples / now.rate)} heard`);
  by("partial").textContent = "";
  busy(false);
}

// -- files -----------------------------------------------------------------------

async function recognise(file, name, seek) {
  const form = new FormData();
  form.set("model", model.id);
  form.set("response_format", "verbose_json");
  if (model.words) form.append("timestamp_granularities[]", "word");
  form.set("file", file, name);
  try {
    const answer = await ask("v1/audio/transcriptions", { method: "POST", body: form });
    const words = answer.words?.map(({ word, ...rest }) => ({ text: word, ...rest })) ?? null;
    show({ start: 0, end: answer.duration, text: answer.text, words, classes: answer.classes }, seek);
    if (!answer.text) complain(`${name}: no speech was recognised.`);
    return answer.duration;
  } catch (error) {
    complain(error.message);
    return null;
  }
}

function forget() {
  by("player").hidden = true;
  by("player").removeAttribute("src");
  if (address) URL.revokeObjectURL(address);
  address = null;
}

async function take(file) {
  if (!model || recording || by("file").disabled) return;
  busy(true);
  complain("");
  forget();
  by("picture").hidden = true;
  say(`${file.name}: recognising`);
  const samples = await decode(file, model.rate);
  const player = by("player");
  if (samples) {
    address = URL.createObjectURL(file);
    player.src = address;
    player.hidden = false;
    const seconds = samples.length / model.rate;
    if (seconds <= LONGEST_PICTURE) {
      picture(model.rate, seconds);
      spectrogram.add(samples);
      axis(0, seconds, model.rate);
    }
  }
  const seek = samples && ((start) => { player.currentTime = start; player.play(); });
  const seconds = await recognise(file, file.name, seek);
  say(seconds === null ? "" : `${file.name}: ${clock(seconds)}${samples ? "" : "; this browser cannot play it"}`);
  busy(false);
  by("file").value = "";
}

function follow() {
  const now = by("player").currentTime;
  document.querySelectorAll("li:last-child > .said > .word").forEach((word) => {
    word.classList.toggle("now", !by("player").paused && now >= word.dataset.start && now < word.dataset.end);
  });
}

// -- what is pressed ---------------------------------------------------------------

by("record").addEventListener("click", ({ currentTarget }) => {
  if (currentTarget.ariaDisabled !== "true") (recording ? stop : start)();
});
by("file").addEventListener("change", ({ target }) => target.files[0] && take(target.files[0]));
by("player").addEventListener("timeupdate", follow);
by("player").addEventListener("pause", follow);
by("clear").addEventListener("click", () => {
  clear();
  by("texts").focus();
});
by("copy").addEventListener("click", async () => {
  const texts = [...document.querySelectorAll(".said")].map((line) => line.textContent);
  try {
    await navigator.clipboard.writeText(texts.join("\n"));
    say("Copied");
  } catch {
    complain("This browser does not let the page copy; select the text instead.");
  }
});
by("gate").addEventListener("submit", (event) => {
  event.preventDefault();
  token = by("token").value;
  sessionStorage.setItem("token", token);
  begin();
});
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
begin();
