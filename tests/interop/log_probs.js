// node log_probs.js MODEL SAMPLES: a graph from samples by onnxruntime-web, on WebAssembly.
//
// SAMPLES: a file of float32. Writes {"dims": [...], "frames": n, "log_probs": [...]}.
const fs = require('fs');
const ort = require('onnxruntime-web');
const [, , model, file] = process.argv;

async function main() {
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create(model, {executionProviders: ['wasm']});
  const bytes = fs.readFileSync(file);
  const samples = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  const {log_probs, frames} = await session.run({
    inputs: new ort.Tensor('float32', samples, [1, samples.length]),
    lengths: new ort.Tensor('int64', BigInt64Array.from([BigInt(samples.length)]), [1]),
  });
  const found = {dims: log_probs.dims, frames: Number(frames.data[0]), log_probs: [...log_probs.data]};
  process.stdout.write(JSON.stringify(found));
}

main();
