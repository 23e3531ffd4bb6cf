"""`data.features: stored_frames` from stage 1 to texts: what is stored, that training and decoding
give what they give from audio, and what is refused.
"""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import asrtool
from asrtool import experiment
from asrtool.bin import check_config, decode, extract_features, pack, train
from asrtool.config import ConfigError
from asrtool.data import audio, extraction, features
from asrtool.data.kaldi import datadir
from asrtool.data.loader import Dataset, EvalLoader
from asrtool.errors import UserError
from asrtool.stored_frames import FrontEnd
from asrtool.trainer import checkpoint
from asrtool.types import Padded
from tests import toy_frames

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, dump, vocabulary and an experiment on stored frames; tests leave it as it is."""
    return toy_frames.make(tmp_path_factory.mktemp("frames"))


def front_end(toy: Path) -> FrontEnd:
    return FrontEnd.of(experiment.load_phases(toy / "train.yaml")["train"])


def extract(toy: Path, out: Path, *more: str, config: Path | None = None) -> None:
    paths = ["--config", str(config or toy / "train.yaml"), "--data", str(toy / "data" / "test")]
    extract_features.main([*paths, "--out", str(out), *more])


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def texts(toy: Path, out: Path, data: Path, *options: str, exp: Path | None = None) -> str:
    """What stage 4 writes for a set."""
    decode.main(
        [
            *("--exp", str(exp or toy / "exp"), "--config", str(toy / "decode.yaml")),
            *("--data", str(data), "--out", str(out), *options),
        ]
    )
    return (out / "text").read_text()


# -- what stage 1 stores ---------------------------------------------------


def test_the_frames_of_an_utterance_are_stored_as_float16(toy):
    network = front_end(toy).build()
    for row in datadir.read(toy / "dump" / "test"):
        stored = features.read_stored(row.features)
        samples = torch.from_numpy(audio.read(row.audio, rate=8000))
        # an utterance alone; float32 sums may round to the number beside it
        expected = network.stored(Padded.stack([samples])).data[0].numpy()
        assert stored.dtype == np.float16 and stored.shape == (row.num_frames, 48)
        np.testing.assert_allclose(stored, expected, rtol=2e-3, atol=1e-4)
        assert (stored == expected.astype(np.float16)).mean() > 0.98
    assert not (toy / "dump" / "train" / "cmvn.json").exists()


def test_any_number_of_processes_stores_the_same_bytes(toy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("asrtool.data.extraction.SMALLEST_FRAME_SHARD", 5)
    for nj in ("1", "2"):
        extract(toy, tmp_path / nj, "--nj", nj)
    names = sorted(path.name for path in (tmp_path / "1").glob("feats.*.ark"))
    assert names == ["feats.1.ark", "feats.2.ark", "feats.3.ark"]
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    said = capsys.readouterr().err
    assert f"frames of {front_end(toy).name}, 48 numbers every 20 ms" in said
    assert "1 speeds: 0.00 GB, and" in said
    again = (tmp_path / "1" / "feats.1.ark").stat().st_ino
    extract(toy, tmp_path / "1")
    assert (tmp_path / "1" / "feats.1.ark").stat().st_ino == again


def test_a_sum_of_layers_stores_all_of_them_and_a_training_set_its_speed_copies(toy, tmp_path):
    config = written(tmp_path / "sum.yaml", toy_frames.config(toy / "hubert", layer="sum"))
    speeds = ["--set", "data.augment.speeds=[0.9,1.0]"]
    extract(toy, tmp_path / "out", "--training", *speeds, config=config)
    rows = {row.id: row for row in datadir.read(tmp_path / "out")}
    assert len(rows) == 24
    copy, original = rows["sp0.9-u001"], rows["u001"]
    assert features.read_stored(original.features).shape[1] == 3 * 48
    assert copy.duration == pytest.approx(original.duration / 0.9, abs=1e-3)
    assert copy.num_frames == pytest.approx(original.num_frames / 0.9, abs=1.5)
    # layer 1 is the first third
    alone = {row.id: row for row in datadir.read(toy / "dump" / "test")}["u001"]
    first = features.read_features(original.features)[:, :48]
    np.testing.assert_allclose(first, features.read_features(alone.features), rtol=2e-3, atol=1e-4)


def test_a_disk_without_room_is_refused_before_anything_is_computed(toy, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10, 10, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"the frames take 0.00 GB, and 0.00 GB are free"):
        extract(toy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_folder_is_named_by_the_layer_and_the_content_of_the_weights(toy, tmp_path, capsys):
    def name(folder: Path, *values: str, **settings: object) -> str:
        config = written(tmp_path / "train.yaml", toy_frames.config(folder, **settings))
        changes = [word for value in values for word in ("--train-args", value)]
        check_config.main(["--train-config", str(config), *changes])
        return capsys.readouterr().out.strip()

    moved = shutil.copytree(toy / "hubert", tmp_path / "moved")
    other = toy_frames.weights(tmp_path / "other", seed=1)
    first = name(toy / "hubert")
    assert first == front_end(toy).name and first.startswith("hubert-layer1-")
    assert name(moved) == name(moved, "model.encoder.frontend.final_dropout=0.1") == first
    changes = "data.augment.speeds=[0.9,1.0] data.shards={}"
    assert name(moved, changes) == f"{first}-sp0.9-shards"
    others = [name(other), name(moved, layer="sum"), name(moved, "data.fbank.rate=16000")]
    assert len({first, *others}) == 4 and others[1].startswith("hubert-sum-")


class Counter:
    """Makes a frame for every tenth of a second, which holds how many utterances it came with."""

    dim, max_seconds = 2, 2.0

    def __init__(self, batch_seconds: float) -> None:
        self.batch_seconds = batch_seconds

    def __call__(self, samples: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [np.full((len(one) // 800, 2), len(samples), np.float16) for one in samples]


@pytest.mark.parametrize("batch_seconds", [0.0, 6.0])
def test_audio_is_grouped_by_length_where_asked_and_long_audio_has_no_frames(
    toy, tmp_path, batch_seconds
):
    config = experiment.load_phases(toy / "train.yaml")["train"].data
    found = {}
    for training in (False, True):
        out = tmp_path / str(training)
        maker = Counter(batch_seconds)
        summary = extraction.extract(
            toy / "data" / "test", config, out, final=out, training=training, nj=1, frames=maker
        )
        found[training] = {row.id: row for row in datadir.read(out)}
        long = [row for row in found[training].values() if row.duration > 2]
        assert summary.long == len(long)
    rows = found[False]
    assert len(rows) == 12 and long == [] and {*rows} > {*found[True]}
    long = [key for key, row in rows.items() if row.duration > 2]
    assert sorted(key for key, _ in summary.skipped) == long
    assert "the front end reads at most 2 s" in summary.skipped[0][1]
    counts = []
    for row in rows.values():
        stored = features.read_stored(row.features)
        assert stored.shape == (0 if row.duration > 2 else int(row.duration * 10), 2)
        counts += stored[:1, 0].tolist()
    assert (max(counts) > 1) == bool(batch_seconds)


# -- both roads ------------------------------------------------------------


def test_stored_frames_and_audio_give_the_same_texts(toy, tmp_path, capsys):
    stored = texts(toy, tmp_path / "stored", toy / "dump" / "test")
    assert f"reading the stored frames of {front_end(toy).name}" in capsys.readouterr().err
    assert texts(toy, tmp_path / "audio", toy / "data" / "test") == stored
    assert "reading the audio: it holds no stored frames" in capsys.readouterr().err
    small = ["--set", "batch_seconds=3"]
    assert texts(toy, tmp_path / "small", toy / "dump" / "test", *small) == stored
    assert texts(toy, tmp_path / "smaller", toy / "data" / "test", *small) == stored
    cut = ["--set", "windows={}"]
    assert texts(toy, tmp_path / "windows", toy / "dump" / "test", *cut) == stored
    pack.main([str(toy / "exp"), "--out", str(tmp_path / "packed")])
    said = [line.partition(" ")[2] for line in stored.splitlines()]
    assert len(set(said)) > 4
    recognizer = asrtool.load(tmp_path / "packed")
    files = [row.audio for row in datadir.read(toy / "data" / "test")]
    assert [result.text for result in recognizer.recognize(files)] == said
    exp = tmp_path / "packed"
    assert texts(toy, tmp_path / "again", toy / "dump" / "test", exp=exp) == stored


def test_a_set_with_audio_longer_than_the_front_end_reads_is_recognised_in_windows(
    toy, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("asrtool.encoders.ssl.SslEncoder.max_seconds", 2.0)
    extract(toy, tmp_path / "test")
    stored = texts(toy, tmp_path / "stored", tmp_path / "test")
    assert "longer than the front end accepts" in capsys.readouterr().err
    assert stored == texts(toy, tmp_path / "audio", toy / "data" / "test")
    assert len(stored.splitlines()) == 12


def test_log_probabilities_are_those_from_audio_in_batches_of_any_size(toy):
    recognizer = asrtool.load(toy / "exp")
    stored = experiment.read_phases(toy / "exp" / "config.yaml")["train"].data

    def log_probs(config: object, seconds: float) -> dict[str, np.ndarray]:
        found = {}
        data = Dataset(datadir.read(toy / "dump" / "test"), recognizer.tokenizer, config)
        for batch in EvalLoader(data, seconds):
            with torch.inference_mode():
                encoded = recognizer.encode(batch.inputs)
                rows = recognizer.model.log_probs(encoded).unpad()
            found |= {key: row.numpy() for key, row in zip(batch.ids, rows, strict=True)}
        return found

    expected = log_probs(recognizer.config.data, 1.0)  # samples, one by one
    for config in (recognizer.config.data, stored):
        for seconds in (1.0, 7.0, 60.0):
            for key, row in log_probs(config, seconds).items():
                np.testing.assert_allclose(row, expected[key], atol=5e-3)


@pytest.mark.parametrize("layer", [1, "sum"])
def test_training_gives_the_weights_of_training_from_audio(toy, tmp_path, layer):
    weights = {}
    for kind in ("stored_frames", "stored"):
        config = written(
            tmp_path / f"{kind}.yaml",
            toy_frames.config(toy / "hubert", features=kind, layer=layer, epochs=1),
        )
        dump = toy / "dump"
        if layer == "sum" and kind == "stored_frames":
            dump = tmp_path
            for name, more in (("train", ["--training"]), ("dev", [])):
                data = ["--data", str(toy / "data" / name), "--out", str(dump / name), *more]
                extract_features.main(["--config", str(config), *data])
        train.main(
            [
                *("--config", str(config), "--vocab", str(toy / "vocab")),
                *("--train", str(dump / "train"), "--valid", str(dump / "dev")),
                *("--exp", str(tmp_path / kind)),
            ]
        )
        weights[kind] = checkpoint.load(tmp_path / kind / "train" / "average-1.safetensors")
    stored, computed = weights.values()
    assert stored.keys() == computed.keys() and not any("frontend.model" in key for key in stored)
    for key, value in stored.items():
        torch.testing.assert_close(value, computed[key], rtol=2e-3, atol=2e-4)


def test_training_reads_shards_of_frames(toy, tmp_path):
    changes = ["--set", "'data.shards={size_mb: 0.2, buffer_mb: 0.5}' trainer.epochs=1"]
    config = ["--config", str(toy / "train.yaml"), *changes]
    data = ["--data", str(toy / "data" / "train"), "--out", str(tmp_path / "train")]
    extract_features.main([*config, *data, "--training"])
    assert not list((tmp_path / "train").glob("*.ark"))
    row = datadir.read(tmp_path / "train")[0]
    assert features.read_stored(row.features).dtype == np.float16
    train.main(
        [
            *(*config, "--vocab", str(toy / "vocab"), "--exp", str(tmp_path / "exp")),
            *("--train", str(tmp_path / "train"), "--valid", str(toy / "dump" / "dev")),
        ]
    )
    assert (tmp_path / "exp" / "train" / "finished.json").exists()


# -- what is refused -------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.input=fbank", "data.input is fbank: set data.input: waveform"),
        ("data.augment.gain_db=[-6,6]", r"augment.gain_db changes waveforms"),
        ("data.augment.noise={set: noises}", r"augment.noise changes waveforms"),
        ("data.augment.room={set: rooms}", r"augment.room changes waveforms"),
        ("data.augment.babble={set: train}", r"augment.babble changes waveforms"),
        ("data.augment.non_speech={set: noises}", r"augment.non_speech changes waveforms"),
        ("model.encoder.frontend.tuning=lora", "tuning is lora: frames that change"),
        ("model.encoder.frontend.tuning=full", "tuning is full: frames that change"),
        ("model.encoder.frontend={size: tiny, weights: null}", "has no pre-trained weights"),
    ],
)
def test_what_stored_frames_cannot_do_is_a_config_error(toy, change, message):
    with pytest.raises(ConfigError, match=message):
        experiment.load_phases(toy / "train.yaml", [change])


def test_stored_frames_need_a_front_end(toy):
    change = "model.encoder={type: hubert, size: tiny}"
    with pytest.raises(ConfigError, match="but the model has no front end"):
        experiment.load_phases(toy / "train.yaml", [change])


def test_phases_must_agree_on_the_front_end(toy, tmp_path):
    phases = "phases: {one: {}, two: {model: {encoder: {frontend: {layer: 2}}}}}\n"
    config = written(tmp_path / "two.yaml", (toy / "train.yaml").read_text() + phases)
    with pytest.raises(UserError, match=r"different features \(one: hubert-layer1-"):
        extract(toy, tmp_path / "out", config=config)


def test_frames_of_other_weights_are_not_trained_on_and_decoding_reads_the_audio(
    toy, tmp_path, capsys
):
    other = toy_frames.weights(tmp_path / "other", seed=1)
    config = written(tmp_path / "other.yaml", toy_frames.config(other, epochs=1))
    arguments = [
        *("--config", str(config), "--vocab", str(toy / "vocab"), "--exp", str(tmp_path / "exp")),
        *("--train", str(toy / "dump" / "train"), "--valid"),
    ]
    with pytest.raises(UserError, match=r"holds frames of hubert-layer1-\w+, and model"):
        train.main([*arguments, str(toy / "dump" / "dev")])
    extract(toy, tmp_path / "test", config=config)
    stored = texts(toy, tmp_path / "stored", toy / "dump" / "test")
    assert texts(toy, tmp_path / "others", tmp_path / "test") == stored
    assert "reading the audio: it holds frames of hubert-layer1-" in capsys.readouterr().err
    config.write_text((toy / "train.yaml").read_text())
    with pytest.raises(UserError, match=r"frames.json is missing\)"):
        train.main([*arguments[:-2], str(toy / "data" / "train"), "--valid", str(tmp_path)])


def test_a_damaged_note_is_one_sentence(toy, tmp_path):
    shutil.copytree(toy / "dump" / "test", tmp_path / "test")
    (tmp_path / "test" / "frames.json").write_text(json.dumps({"name": "hubert"}))
    with pytest.raises(UserError, match="expected a JSON object with name, digest and long"):
        texts(toy, tmp_path / "out", tmp_path / "test")
