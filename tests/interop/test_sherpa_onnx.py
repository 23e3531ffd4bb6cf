"""sherpa-onnx hears what asrtool hears: its wheel, and its npm packages under node."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import asrtool
from asrtool.bin import export
from asrtool.bin.stream import main as listen
from asrtool.data import audio
from asrtool.data.fbank import Fbank, FbankConfig
from asrtool.data.features import Cmvn
from asrtool.export import prove
from asrtool.export.build import ExportConfig, build
from asrtool.heads import StatelessConfig, TransducerHeadConfig
from asrtool.losses import TransducerConfig
from asrtool.model_folder import build_model
from asrtool.streaming import with_chunks
from tests import toy_experiment
from tests.interop import node
from tests.shared import once

pytestmark = pytest.mark.interop
HERE = Path(__file__).parent
# half a second: sherpa-onnx hears no end that fills no chunk, and the toy hears some tokens late
SILENCE = toy_experiment.quiet(0.5)
SHERPA = toy_experiment.CONFIG.replace("rate: 8000}", "rate: 8000, preset: sherpa}")
STREAMING = (
    SHERPA.replace("dropout: 0.0,", "dropout: 0.0, causal: true, chunk: {max_ms: 320},")
    .replace("channels: 8}", "channels: 8, causal: true}")
    .replace("num_layers: 1", "num_layers: 2")
)


@pytest.fixture(autouse=True)
def needs_sherpa():
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="pip install -e '.[onnx]'")
    pytest.importorskip("sherpa_onnx", reason="pip install -e '.[interop]'")


@pytest.fixture(scope="session")
def toy_sherpa(request) -> Path:
    return once(request, "toy_sherpa", lambda root: toy_experiment.make(root, SHERPA))


@pytest.fixture(scope="session")
def toy_online(request) -> Path:
    return once(request, "toy_online", lambda root: toy_experiment.make(root, STREAMING))


def run(toy: Path, out: Path, *options: object) -> dict:
    """What export.json says after a proof on the test set, of whose words one is three points."""
    arguments = ["--for", "sherpa-onnx", "--int8", "--data", toy / "data" / "test", *options]
    arguments += ["--most-points", 10]
    export.main([str(toy / "exp"), "--out", str(out), *map(str, arguments)])
    return json.loads((out / "export.json").read_text())


def differing(facts: dict) -> dict[str, int]:
    return {name: proof["differing"] for name, proof in facts["proof"].items()}


def check(facts: dict) -> None:
    """The texts of the float model are the same, and so are nearly all of the other; the toy has
    learned, if not in the same way on every processor.
    """
    found = differing(facts)
    assert found.keys() == MODELS.keys()
    assert all(found[name] <= most for name, most in MODELS.items()), found
    assert facts["proof"]["model.onnx"]["asrtool"] < 10


# file -> how many of the twelve texts may differ
MODELS = {"model.onnx": 0, "model.int8.onnx": 2}


def test_whole_utterances_by_the_wheel_and_under_node(toy_sherpa, tmp_path):
    facts = run(toy_sherpa, tmp_path / "out")
    check(facts)
    assert facts["sherpa-onnx"]["recognizer"] == "OfflineRecognizer.from_zipformer_ctc"
    names = ("sherpa-onnx", "sherpa-onnx-node")
    packages = node.install(tmp_path / "npm", *names)
    rows = prove.read_set(toy_sherpa / "data" / "test")
    recognizer = asrtool.load(toy_sherpa / "exp")
    ours = prove.texts(recognizer, rows, prove.by_asrtool(recognizer))
    for name in names:
        for file, most in MODELS.items():
            model = {"zipformerCtc": {"model": str(tmp_path / "out" / file)}}
            config = {
                "featConfig": {"sampleRate": 8000, "featureDim": 20},
                "modelConfig": {**model, "tokens": str(tmp_path / "out" / "tokens.txt")},
            }
            found = under_node(packages, name, config, [row.audio for row in rows])
            wanted = [ours[row.id] for row in rows]
            assert len(found) == len(wanted)
            assert sum(a != b for a, b in zip(found, wanted, strict=True)) <= most


def under_node(packages: Path, name: str, config: dict, files: list[str]) -> list[str]:
    said = node.run(packages, "transcribe.js", name, json.dumps(config), *files)
    lines = [line for line in said.splitlines() if line.startswith("{")]
    return [json.loads(line)["text"] for line in lines]


@pytest.mark.parametrize("left_chunks", [1, 3])
def test_a_stream_by_the_online_recogniser(toy_online, tmp_path, left_chunks):
    options = ("--streaming", "--chunk-ms", 160, "--left-chunks", left_chunks)
    facts = run(toy_online, tmp_path / "out", *options)
    check(facts)
    assert facts["sherpa-onnx"] == {
        "recognizer": "OnlineRecognizer.from_wenet_ctc",
        "sample_rate": 8000,
        "feature_dim": 20,
        "chunk_size": 4,
        "num_left_chunks": left_chunks,
    }
    assert facts["features"]["sample_scale"] == 32768.0


def test_asrtool_stream_and_the_online_recogniser_hear_the_same(toy_online, tmp_path, capsys):
    """The command itself, on files with the silence that sherpa-onnx waits for."""
    import sherpa_onnx

    options = ("--streaming", "--chunk-ms", 160, "--left-chunks", 2)
    facts = run(toy_online, tmp_path / "out", *options)["sherpa-onnx"]
    facts |= {"model": str(tmp_path / "out" / "model.onnx"), "num_threads": 1}
    make = getattr(sherpa_onnx.OnlineRecognizer, facts.pop("recognizer").split(".")[1])
    recognizer = make(tokens=str(tmp_path / "out" / "tokens.txt"), **facts)
    rows = prove.read_set(toy_online / "data" / "test")
    files, theirs = [], []
    for row in rows:
        samples = np.concatenate([audio.read(row.audio, rate=8000), SILENCE])
        files.append(tmp_path / f"{row.id}.wav")
        soundfile.write(files[-1], samples, 8000, subtype="FLOAT")
        one = recognizer.create_stream()
        one.accept_waveform(8000, samples)
        one.input_finished()
        while recognizer.is_ready(one):
            recognizer.decode_stream(one)
        theirs.append(" ".join(recognizer.get_result(one).split()))
    capsys.readouterr()
    chunks = ["--chunk-ms", "160", "--left-chunks", "2", "--pause", "30"]
    model = [str(toy_online / "exp"), *map(str, files), "--set", "searcher.type=ctc_greedy"]
    listen([*model, *chunks])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[1] for line in lines] == theirs == [row.text for row in rows]


def test_a_stream_in_zipformers_form_by_the_wheel_and_under_node(toy_online, tmp_path):
    options = ("--streaming", "--chunk-ms", 160, "--left-chunks", 2, "--caches", "zipformer")
    facts = run(toy_online, tmp_path / "out", *options)
    check(facts)
    assert facts["sherpa-onnx"]["recognizer"] == "OnlineRecognizer.from_zipformer2_ctc"
    several_at_once(toy_online, tmp_path / "out")
    names = ("sherpa-onnx", "sherpa-onnx-node")
    packages = node.install(tmp_path / "npm", *names)
    rows = prove.read_set(toy_online / "data" / "test")
    for name in names:
        config = {
            "featConfig": {"sampleRate": 8000, "featureDim": 20},
            "modelConfig": {
                "zipformer2Ctc": {"model": str(tmp_path / "out" / "model.onnx")},
                "tokens": str(tmp_path / "out" / "tokens.txt"),
            },
        }
        found = under_node(packages, name, config, [row.audio for row in rows])
        assert found == [row.text for row in rows]


def several_at_once(toy: Path, out: Path) -> None:
    """Streams of different lengths share batches, and none hears the others."""
    import sherpa_onnx

    model, tokens = str(out / "model.onnx"), str(out / "tokens.txt")
    recognizer = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(
        model=model, tokens=tokens, sample_rate=8000, feature_dim=20, num_threads=1
    )
    rows = prove.read_set(toy / "data" / "test")
    streams = [recognizer.create_stream() for _ in rows]
    for stream, row in zip(streams, rows, strict=True):
        samples = np.concatenate([audio.read(row.audio, rate=8000), SILENCE])
        stream.accept_waveform(8000, samples)
        stream.input_finished()
    while ready := [stream for stream in streams if recognizer.is_ready(stream)]:
        recognizer.decode_streams(ready)
    found = [" ".join(recognizer.get_result(stream).split()) for stream in streams]
    assert found == [row.text for row in rows]


def test_a_model_of_the_default_features(toy_sherpa, tmp_path):
    """Its texts say nothing, but depend on every number of the features."""
    toy = asrtool.load(toy_sherpa / "exp")
    config = replace(toy.config, data=replace(toy.config.data, fbank=FbankConfig()))
    torch.manual_seed(0)
    model = build_model(config, toy.tokenizer.size).eval()
    with torch.no_grad():
        model.heads["ctc"].weight.mul_(30)  # every token has its turn
    cmvn = Cmvn(np.full(80, 10, np.float32), np.full(80, 3, np.float32))
    recognizer = replace(toy, config=config, model=model, cmvn=cmvn)
    wanted = ExportConfig(sherpa=True, data=toy_sherpa / "data" / "test", metric="cer")
    build(recognizer, wanted, toy_sherpa / "exp" / "vocab", tmp_path)
    facts = json.loads((tmp_path / "export.json").read_text())
    assert facts["sherpa-onnx"] == {"recognizer": "OfflineRecognizer.from_fire_red_asr_ctc"}
    assert facts["proof"]["model.onnx"]["differing"] == 0
    rows = prove.read_set(toy_sherpa / "data" / "test")
    texts = prove.texts(recognizer, rows, prove.by_asrtool(recognizer))
    assert len(set(texts.values())) == len(rows)


@pytest.mark.parametrize(
    ("options", "recogniser"),
    [({}, "Offline"), ({"streaming": True, "caches": "zipformer"}, "Online")],
    ids=["whole", "stream"],
)
def test_a_transducer(toy_online, tmp_path, options, recogniser):
    """Of random weights: every token has its turn."""
    toy = asrtool.load(toy_online / "exp")
    head = TransducerHeadConfig(predictor=StatelessConfig(dim=16), dim=12)
    losses = {**toy.config.losses, "transducer": TransducerConfig(weight=1.0)}
    model = replace(toy.config.model, heads={"transducer": head})
    config = replace(toy.config, model=model, losses=losses)
    torch.manual_seed(0)
    model = build_model(config, toy.tokenizer.size).eval()
    with torch.no_grad():
        model.heads["transducer"].joiner.weight.mul_(30)
        model.heads["transducer"].joiner.bias[1] = -100  # sherpa-onnx never says <unk>
    recognizer = replace(toy, config=config, model=model)
    if options:
        recognizer = with_chunks(recognizer, 160, 2)
    wanted = ExportConfig(sherpa=True, data=toy_online / "data" / "test", metric="cer", **options)
    build(recognizer, wanted, toy_online / "exp" / "vocab", tmp_path)
    facts = json.loads((tmp_path / "export.json").read_text())
    assert facts["sherpa-onnx"]["recognizer"] == f"{recogniser}Recognizer.from_transducer"
    assert differing(facts) == {"encoder.onnx": 0}
    rows = prove.read_set(toy_online / "data" / "test")
    greedy = prove.greedy(recognizer, "transducer")
    listen = prove.by_asrtool_in_chunks if options else prove.by_asrtool
    assert len(set(prove.texts(greedy, rows, listen(greedy)).values())) == len(rows)


def test_features_are_those_of_kaldi_native_fbank_as_it_is_installed():
    pytest.importorskip("kaldi_native_fbank", reason="pip install -e '.[interop]'")
    file = HERE.parent / "golden" / "make_fbank_kaldi.py"
    spec = importlib.util.spec_from_file_location("make_fbank_kaldi", file)
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    for case in maker.CASES.values():
        config = FbankConfig(**case)
        found = Fbank(config)(torch.from_numpy(maker.signal(config.rate))).numpy()
        difference = np.abs(found - maker.native(case))
        assert difference.mean() <= 1e-5 and difference.max() <= 5e-2
