// The microphone, and samples as bytes.

// A microphone that hands out pieces of samples until it is stopped.
export class Microphone {
  // rate: Hz of the model; browsers that cannot record at it record at their own.
  static async open(rate, onPiece) {
    if (!navigator.mediaDevices) {
      throw new Error("Browsers open the microphone only for pages of https:// or of this machine (localhost).");
    }
    const stream = await navigator.mediaDevices.getUserMedia({
      audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false },
    });
    const microphone = new Microphone();
    microphone.stream = stream;
    try {
      let source;
      try {
        microphone.context = new AudioContext({ sampleRate: rate });
        source = microphone.context.createMediaStreamSource(stream);
      } catch {
        // Firefox resamples no microphone: whoever gets the samples does it
        await microphone.context?.close();
        microphone.context = new AudioContext();
        source = microphone.context.createMediaStreamSource(stream);
      }
      await microphone.context.audioWorklet.addModule(new URL("recorder.js", import.meta.url));
      const node = new AudioWorkletNode(microphone.context, "recorder", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
      microphone.node = node;
      microphone.ended = new Promise((done) => {
        node.port.onmessage = ({ data }) => {
          onPiece(data.piece);
          if (data.last) done();
        };
      });
      source.connect(node);
    } catch (error) {
      stream.getTracks().forEach((track) => track.stop());
      throw error;
    }
    return microphone;
  }

  get rate() {
    return this.context.sampleRate;
  }

  // Resolves when the last piece was handed out.
  async stop() {
    this.node.port.postMessage("stop");
    await this.ended;
    this.stream.getTracks().forEach((track) => track.stop());
    await this.context.close();
  }
}

// Float samples in [-1, 1] -> 16 bits, little-endian.
export function pcm(samples) {
  const view = new DataView(new ArrayBuffer(2 * samples.length));
  samples.forEach((value, at) => view.setInt16(2 * at, Math.max(-32768, Math.min(32767, Math.round(32768 * value))), true));
  return view.buffer;
}

// Pieces of samples -> a wav file.
export function wav(pieces, rate) {
  const bytes = pieces.map(pcm);
  const size = bytes.reduce((sum, part) => sum + part.byteLength, 0);
  const head = new DataView(new ArrayBuffer(44));
  const text = (at, letters) => [...letters].forEach((letter, index) => head.setUint8(at + index, letter.charCodeAt(0)));
  text(0, "RIFF");
  head.setUint32(4, 36 + size, true);
  text(8, "WAVEfmt ");
  head.setUint32(16, 16, true);
  head.setUint16(20, 1, true);
  head.setUint16(22, 1, true);
  head.setUint32(24, rate, true);
  head.setUint32(28, 2 * rate, true);
  head.setUint16(32, 2, true);
  head.setUint16(34, 16, true);
  text(36, "data");
  head.setUint32(40, size, true);
  return new Blob([head.buffer, ...bytes], { type: "audio/wav" });
}

// The samples of a file at a rate, channels averaged; null where this browser cannot decode it.
export async function decode(file, rate) {
  try {
    const buffer = await new OfflineAudioContext(1, 1, rate).decodeAudioData(await file.arrayBuffer());
    const mean = new Float32Array(buffer.length);
    for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
      buffer.getChannelData(channel).forEach((value, at) => { mean[at] += value / buffer.numberOfChannels; });
    }
    return mean;
  } catch {
    return null;
  }
}

// Pieces of samples at one rate -> all samples at another.
export async function resampled(pieces, from, to) {
  const size = pieces.reduce((sum, piece) => sum + piece.length, 0);
  const samples = new Float32Array(size);
  let at = 0;
  for (const piece of pieces) {
    samples.set(piece, at);
    at += piece.length;
  }
  if (from === to || !size) return samples;
  const context = new OfflineAudioContext(1, Math.ceil((size * to) / from), to);
  const buffer = new AudioBuffer({ length: size, numberOfChannels: 1, sampleRate: from });
  buffer.copyToChannel(samples, 0);
  const source = new AudioBufferSourceNode(context, { buffer });
  source.connect(context.destination);
  source.start();
  return (await context.startRendering()).getChannelData(0);
}
