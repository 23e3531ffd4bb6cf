"""The shipped configs on the frames of whisper, with tiny random weights: two steps, resumed,
decoded, packed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from asrtool.bin import decode, extract_features, make_vocab, train
from asrtool.bin import pack as packing
from asrtool.data.kaldi import datadir
from asrtool.recognizer import Recognizer
from asrtool.types import Utterance
from tests import toy_experiment, toy_ssl

EGS = Path(__file__).parents[3] / "egs"
WHISPER = EGS / "librispeech/conf/whisper"
SMALL = """
extends: {extends}
data:
  features: stored  # of audio: not of frames
  max_seconds: 100
  batch: {{seconds: 20, max_seconds_per_device: null}}
  workers: 0
optim: {{schedule: {{type: constant}}}}
trainer: {{steps: 2, epochs: null, precision: float32, validate_every: 1, average: 1}}
model:
  encoder: {encoder}
"""
CONFORMER = "{dim: 16, num_heads: 2, ffn_dim: 32, kernel: 5, frontend: %s}"
DECODER = "{num_layers: 1, num_heads: 2, ffn_dim: 32}"
STEPS = "trainer: {steps: 2, epochs: null}"
CASES = {  # config, and what is added to SMALL
    "frozen": (WHISPER / "train_whisper_frozen.yaml", f"  decoder: {DECODER}\n"),
    "keyframe": (
        WHISPER / "train_whisper_keyframe.yaml",
        f"  decoder: {DECODER}\nphases: {{base: {{{STEPS}}}, fusion: {{{STEPS}}}, "
        f"keyframe: {{{STEPS}}}}}\n",
    ),
    "echo": (WHISPER / "train_whisper_echo.yaml", ""),
    "qifusion": (
        EGS / "kespeech/conf/qifusion/train_qifusion_whisper.yaml",
        f"  decoder: {DECODER}\n  reverse_decoder: {DECODER}\n"
        "losses: {accent: {label: accent}}\n",
    ),
    "lora": (WHISPER / "train_whisper_lora.yaml", ""),
    "cnn": (WHISPER / "train_whisper_cnn.yaml", ""),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Waveforms of tones with accents, one of 31 seconds in training, and weights."""
    root = tmp_path_factory.mktemp("frontend")
    accents = {"low": 1.0, "high": 1.2}
    (root / "waveform.yaml").write_text(
        "data: {input: waveform, batch: {seconds: 20}}\n"
        "model: {type: hybrid, encoder: {type: data2vec, size: tiny}}\n"
        "losses: {ctc: {type: ctc, weight: 1.0}}\noptim: {lr: 1e-3}\ntrainer: {epochs: 1}\n"
    )
    for name, count in (("train", 8), ("dev", 4), ("test", 4)):
        folder = root / "data" / name
        toy_experiment.write_set(folder, count, len(name), accents)
        rows = list(datadir.read(folder))
        if name != "dev":
            samples, _ = soundfile.read(rows[0].audio, dtype="float32")
            long = torch.from_numpy(samples).repeat(100)[: 61 * 8000].numpy()
            path = folder / "audio" / "long.wav"
            soundfile.write(path, long, 8000)
            rows.append(
                Utterance(
                    id="long",
                    audio=str(path),
                    duration=61.0,
                    text=rows[0].text,
                    speaker="long",
                    labels=rows[0].labels,
                )
            )
            shutil.rmtree(folder / ".backup", ignore_errors=True)
            datadir.write(folder, rows)
        made = ["--data", str(folder), "--out", str(root / "dump" / name)]
        training = ["--training"] if name == "train" else []
        extract_features.main(
            ["--config", str(root / "waveform.yaml"), "--nj", "1", *made, *training]
        )
    text = ["--text", str(root / "data/train/text"), "--unit", "char"]
    make_vocab.main([*text, "--out", str(root / "vocab"), "--labels", "accent"])
    toy_ssl.save(toy_ssl.make_whisper(), root / "weights")
    return root


def fit(data: Path, name: str, folder: Path) -> Path:
    """Train a case in `folder`/exp."""
    config, more = CASES[name]
    weights = f"{{weights: {data / 'weights'}, size: null}}"
    encoder = weights if name == "lora" else CONFORMER % weights
    if name == "cnn":
        encoder = f"{{dim: 16, frontend: {weights}}}"
    text = SMALL.format(extends=config, encoder=encoder) + more
    (folder / "train.yaml").write_text(text)
    train.main(
        ["--config", str(folder / "train.yaml"), "--train", str(data / "dump/train")]
        + ["--valid", str(data / "dump/dev"), "--vocab", str(data / "vocab")]
        + ["--exp", str(folder / "exp")]
    )
    return folder / "exp"


@pytest.mark.parametrize("name", CASES)
def test_two_steps_resumed_decoded_and_packed(data, name, tmp_path, capfd):
    exp = fit(data, name, tmp_path)
    phase = exp / ("keyframe" if name == "keyframe" else "train")
    last = phase / "step-00000002"
    stored = load_file(last / "model.safetensors")
    # as if it had been stopped after the first step
    shutil.rmtree(last)
    for file in phase.iterdir():
        if file.name.startswith(("finished", "average")):
            file.unlink()
    fit(data, name, tmp_path)
    again = load_file(last / "model.safetensors")
    assert stored.keys() == again.keys()
    assert [key for key, value in stored.items() if not torch.equal(value, again[key])] == []
    assert not [key for key in stored if ".model." in key and "lora" not in key and not new(key)]
    assert json.loads((phase / "model.json").read_text())["pretrained"][0]["weights"] == str(
        data / "weights"
    )
    assert (
        "longer than the 30 seconds that the encoder reads and left out: long"
        in capfd.readouterr().err
    )
    (tmp_path / "decode.yaml").write_text("searcher: {type: ctc_greedy}\naverage: 1\n")
    if name == "keyframe":
        (tmp_path / "decode.yaml").write_text(
            "searcher: {type: ctc_greedy, input: aligned, collapse: false}\naverage: 1\n"
        )
    decoded(exp, data, tmp_path / "one", tmp_path / "decode.yaml")
    packing.main(
        [str(exp), "--config", str(tmp_path / "decode.yaml"), "--out", str(tmp_path / "packed")]
    )
    packed = load_file(tmp_path / "packed/model.safetensors")
    assert any(".model.layers.0." in key for key in packed)
    recognizer = Recognizer.load(tmp_path / "packed")
    row = datadir.read(data / "data/test")[0]
    lines = (tmp_path / "one/text").read_text().splitlines()
    said = dict(line.partition(" ")[::2] for line in lines)
    assert recognizer.recognize(row.audio).text == said[row.id].strip()


def new(key: str) -> bool:
    """Of Echo-MSA."""
    return ".echo." in key or ".gate." in key


def decoded(exp: Path, data: Path, out: Path, config: Path) -> None:
    decode.main(
        ["--exp", str(exp), "--config", str(config), "--data", str(data / "dump/test")]
        + ["--out", str(out)]
    )
