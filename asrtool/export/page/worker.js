// A thread of its own, so that the page answers while it loads and computes.
import * as ort from "../ort/ort.wasm.min.mjs";
import { bestPath, join, read } from "./ctc.js";

const WASM = "ort/ort-wasm-simd-threaded.wasm";
const at = (path) => new URL(`../${path}`, import.meta.url);

// What this browser kept is asked for again, so that files of two exports do not meet.
async function get(path) {
  const response = await fetch(at(path), { cache: "no-cache" });
  if (!response.ok) throw new Error(`${path}: the server answered ${response.status}.`);
  return response;
}

// The bytes of a file of known size; onBytes is told of each part.
async function download(path, size, onBytes) {
  const bytes = new Uint8Array(size);
  const reader = (await get(path)).body.getReader();
  let filled = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (filled + part.value.length > size) throw new Error(`${path} is not the file that was exported: it is longer.`);
    bytes.set(part.value, filled);
    filled += part.value.length;
    onBytes(part.value.length);
  }
  if (filled < size) throw new Error(`${path} is not the file that was exported: it has ${filled} of ${size} bytes.`);
  return bytes;
}

async function load() {
  const facts = await (await get("export.json")).json();
  const tokens = read(await (await get("tokens.txt")).text());
  const sizes = facts.page.bytes;
  const total = Object.values(sizes).reduce((sum, size) => sum + size, 0);
  let sum = 0;
  const onBytes = (count) => {
    sum += count;
    postMessage({ type: "progress", bytes: sum, total });
  };
  const [runtime, graph] = await Promise.all([WASM, facts.page.model].map((path) => download(path, sizes[path], onBytes)));
  ort.env.wasm.numThreads = 1; // more need headers that plain servers do not send
  ort.env.wasm.wasmBinary = runtime.buffer;
  ort.env.wasm.wasmPaths = at("ort/").href;
  const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
  postMessage({ type: "ready", model: { id: facts.page.name, rate: facts.rate } });
  return { session, tokens, blank: facts.blank };
}

async function recognise({ session, tokens, blank }, samples) {
  const inputs = new ort.Tensor("float32", samples, [1, samples.length]);
  const lengths = new ort.Tensor("int64", BigInt64Array.of(BigInt(samples.length)), [1]);
  const found = await session.run({ inputs, lengths });
  const ids = bestPath(found.log_probs.data, Number(found.frames.data[0]), found.log_probs.dims[2], blank);
  return join(ids, tokens);
}

const words = (error) => error?.message ?? String(error);
const loaded = load();
loaded.catch((error) => postMessage({ type: "failed", message: words(error) }));
onmessage = async ({ data }) => {
  try {
    postMessage({ type: "text", text: await recognise(await loaded, data.samples) });
  } catch (error) {
    postMessage({ type: "error", message: words(error) });
  }
};
