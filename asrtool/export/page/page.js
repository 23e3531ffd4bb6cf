// The page: the microphone or a file goes to the graph in this browser, a text comes back.
import { Microphone, decode, resampled } from "./audio.js";
import { clock } from "./results.js";
import { beginPicture, busy, by, complain, connectKeys, forget, introduce, listening, paint, present, say, show } from "./view.js";

const MEGABYTE = 1e6;

let model = null; // {id, rate}
let worker = null;
let recording = null; // {microphone, pieces, samples} while there is one
let answer = null; // what takes the next text or error of the worker

// -- the worker ------------------------------------------------------------------

function begin() {
  worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  worker.addEventListener("message", ({ data }) => told[data.type](data));
  worker.addEventListener("error", () => told.failed({ message: "page/worker.js or a file that it needs cannot be read." }));
}

const told = {
  progress({ bytes, total }) {
    if (model) return;
    by("loading").value = bytes / total;
    by("loaded").textContent = `${(bytes / MEGABYTE).toFixed(1)} of ${(total / MEGABYTE).toFixed(1)} MB`;
  },
  ready(message) {
    if (model) return; // again, after an error
    model = message.model;
    by("load").hidden = true;
    introduce(model, "texts when you stop, made in this browser: no sound leaves it");
    busy(false);
    say("Ready");
  },
  failed({ message }) {
    by("load").hidden = true;
    complain(`The model cannot be loaded: ${message}`);
    answer?.({ message });
  },
  text: (message) => answer?.(message),
  error: (message) => answer?.(message),
};

// {text}, or {message} where the graph failed
async function heardBy(samples) {
  const found = new Promise((done) => { answer = done; });
  worker.postMessage({ samples }, [samples.buffer]);
  const result = await found;
  answer = null;
  if (result.text === undefined) {
    // memory that was asked for in vain makes what follows fail too
    worker.terminate();
    begin();
  }
  return result;
}

// Shows the text; what: the name of the sound in a complaint.
async function recognise(samples, what, seek) {
  const seconds = samples.length / model.rate;
  if (!seconds) return complain(`${what}: there is no sound in it.`);
  const { text, message } = await heardBy(samples);
  if (text === undefined) complain(`${what}: the model failed on ${clock(seconds)} of sound, perhaps for want of memory (${message}). Try a shorter one.`);
  else if (text) show({ start: 0, end: seconds, text, words: null, classes: null }, seek);
  else complain(`${what}: no speech was recognised.`);
}

// -- the microphone --------------------------------------------------------------

async function start() {
  busy(true);
  complain("");
  forget();
  const now = { pieces: [], samples: 0 };
  try {
    now.microphone = await Microphone.open(model.rate, (piece) => heard(now, piece));
  } catch (error) {
    busy(false);
    return complain(`The microphone cannot be used: ${error.message}`);
  }
  now.rate = now.microphone.rate;
  recording = now;
  beginPicture(now.rate);
  by("record").ariaDisabled = "false";
  listening(true);
}

function heard(now, piece) {
  if (!now.rate) return;
  now.samples += piece.length;
  now.pieces.push(piece);
  paint(piece, now.samples / now.rate, now.rate);
}

async function stop() {
  const now = recording;
  recording = null;
  busy(true);
  listening(false);
  await now.microphone.stop();
  try {
    await recognise(await resampled(now.pieces, now.rate, model.rate), "Microphone", null);
  } catch (error) {
    complain(`The recording cannot be resampled to ${model.rate} Hz: ${error.message}`);
  }
  say(`${clock(now.samples / now.rate)} heard`);
  busy(false);
}

// -- files -----------------------------------------------------------------------

async function take(file) {
  if (!model || recording || by("file").disabled) return;
  busy(true);
  complain("");
  forget();
  by("picture").hidden = true;
  say(`${file.name}: recognising`);
  const samples = await decode(file, model.rate);
  if (samples) {
    const seconds = samples.length / model.rate;
    const seek = present(file, samples, model.rate);
    await recognise(samples, file.name, seek);
    say(`${file.name}: ${clock(seconds)}`);
  } else {
    say("");
    complain(`${file.name}: this browser finds no sound in it that it can decode.`);
  }
  busy(false);
  by("file").value = "";
}

connectKeys(() => (recording ? stop : start)(), take);
begin();
