// node transcribe.js PACKAGE CONFIG WAV...: texts by sherpa-onnx, one JSON object a line.
//
// PACKAGE: sherpa-onnx (WebAssembly) or sherpa-onnx-node (native). CONFIG: JSON of its recogniser of
// whole utterances; neither package has one for streaming models in WeNet's form.
const [, , name, config, ...files] = process.argv;
const sherpa = require(name);
const native = name === 'sherpa-onnx-node';
const settings = JSON.parse(config);
const recognizer =
    native ? new sherpa.OfflineRecognizer(settings) : sherpa.createOfflineRecognizer(settings);

for (const file of files) {
  const stream = recognizer.createStream();
  const {sampleRate, samples} = sherpa.readWave(file);
  if (native) {
    stream.acceptWaveform({sampleRate, samples});
  } else {
    stream.acceptWaveform(sampleRate, samples);
  }
  recognizer.decode(stream);
  console.log(JSON.stringify({file, text: recognizer.getResult(stream).text}));
}
