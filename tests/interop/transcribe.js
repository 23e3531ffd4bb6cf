// node transcribe.js PACKAGE CONFIG WAV...: texts by sherpa-onnx, one JSON object a line.
//
// PACKAGE: sherpa-onnx (WebAssembly) or sherpa-onnx-node (native). CONFIG: JSON of its recogniser. A
// model of Zipformer's form is a stream, which hears half a second of silence behind the audio.
const [, , name, config, ...files] = process.argv;
const sherpa = require(name);
const native = name === 'sherpa-onnx-node';
const settings = JSON.parse(config);
const online = 'zipformer2Ctc' in settings.modelConfig;

function create() {
  if (online) {
    return native ? new sherpa.OnlineRecognizer(settings) : sherpa.createOnlineRecognizer(settings);
  }
  return native ? new sherpa.OfflineRecognizer(settings) : sherpa.createOfflineRecognizer(settings);
}

function accept(stream, sampleRate, samples) {
  if (native) {
    stream.acceptWaveform({sampleRate, samples});
  } else {
    stream.acceptWaveform(sampleRate, samples);
  }
}

const recognizer = create();
for (const file of files) {
  const stream = recognizer.createStream();
  const {sampleRate, samples} = sherpa.readWave(file);
  accept(stream, sampleRate, samples);
  if (online) {
    accept(stream, sampleRate, new Float32Array(sampleRate / 2));
    stream.inputFinished();
    while (recognizer.isReady(stream)) recognizer.decode(stream);
  } else {
    recognizer.decode(stream);
  }
  console.log(JSON.stringify({file, text: recognizer.getResult(stream).text.trim()}));
}
