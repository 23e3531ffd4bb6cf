// The page: the microphone or a file goes to the server, texts come back.
import { Microphone, decode, pcm, wav } from "./audio.js";
import { clock } from "./results.js";
import { beginPicture, busy, by, complain, connectKeys, forget, introduce, listening, paint, partial, present, say, show } from "./view.js";

const BEHIND = 30; // seconds of sound that may wait in this browser
const at = (path) => new URL(path, location.href);

let model = null;
let token = sessionStorage.getItem("token") ?? "";
let recording = null; // {microphone, socket, pieces, ...} while there is one

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
  introduce(model, model.stream ? `texts while you speak, in steps of ${model.chunk_ms} ms` : "texts when you stop; this model does not stream");
  busy(false);
}

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
  beginPicture(now.rate);
  by("record").ariaDisabled = "false";
  listening(true);
}

function heard(now, piece) {
  if (!now.rate || now.failed) return;
  now.samples += piece.length;
  paint(piece, now.samples / now.rate, now.rate);
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
    if (message.type === "partial") partial(message.text);
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
  listening(false);
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
  partial("");
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

async function take(file) {
  if (!model || recording || by("file").disabled) return;
  busy(true);
  complain("");
  forget();
  by("picture").hidden = true;
  say(`${file.name}: recognising`);
  const samples = await decode(file, model.rate);
  const seek = samples && present(file, samples, model.rate);
  const seconds = await recognise(file, file.name, seek);
  say(seconds === null ? "" : `${file.name}: ${clock(seconds)}${samples ? "" : "; this browser cannot play it"}`);
  busy(false);
  by("file").value = "";
}

by("gate").addEventListener("submit", (event) => {
  event.preventDefault();
  token = by("token").value;
  sessionStorage.setItem("token", token);
  begin();
});
connectKeys(() => (recording ? stop : start)(), take);
begin();
