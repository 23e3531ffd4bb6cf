// Runs in the audio thread: gathers what the microphone gives into pieces of 0.1 seconds.
class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Float32Array(Math.round(sampleRate / 10));
    this.filled = 0;
    this.going = true;
    this.port.onmessage = () => {
      this.going = false;
      this.port.postMessage({ piece: this.piece.slice(0, this.filled), last: true });
    };
  }

  process([channels]) {
    const samples = channels[0];
    if (!this.going) return false;
    if (!samples) return true;
    for (let at = 0; at < samples.length; ) {
      const count = Math.min(samples.length - at, this.piece.length - this.filled);
      this.piece.set(samples.subarray(at, at + count), this.filled);
      this.filled += count;
      at += count;
      if (this.filled === this.piece.length) {
        this.port.postMessage({ piece: this.piece.slice(), last: false });
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("recorder", Recorder);
