"""`data.shards` from stage 1 to trained weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.bin import extract_features, make_shards, train
from asrtool.bin.extract_features import load_config
from asrtool.data import tokenizers
from asrtool.data.kaldi import datadir
from asrtool.data.shards.index import FILE
from asrtool.trainer import checkpoint
from asrtool.types import Utterance
from tests.toy_interruptions import power_failure

CONFIG = """
data:
  fbank: {num_mel_bins: 8}
  batch: {seconds: 3}
  workers: 0
  shards: {size_mb: 0.05, buffer_mb: 0.2}
  augment: {speeds: [0.9, 1.0]}
model:
  type: hybrid
  encoder: {type: conformer, num_layers: 1, dim: 16, num_heads: 2, ffn_dim: 16, kernel: 3}
losses:
  ctc: {type: ctc, weight: 1.0}
optim: {lr: 1e-3}
trainer: {epochs: 2, average: 1, best: valid/cer}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    rng, rows = np.random.default_rng(0), []
    for n in range(24):
        samples = rng.normal(0, 0.1, int(rng.integers(6000, 16000)))
        soundfile.write(root / f"{n}.flac", samples, 16000)
        rows.append(
            Utterance(
                id=f"u{n}",
                audio=str(root / f"{n}.flac"),
                duration=len(samples) / 16000,
                text="ab",
                speaker="s",
            )
        )
    datadir.write(root / "set", rows)
    (root / "vocab").mkdir()
    tokenizers.train(["ab"], "char", 0, root / "vocab")
    (root / "config.yaml").write_text(CONFIG)
    extract(root, "set", "stored")
    extract(root, "set", "online", "data.features=online")
    return root


def extract(root: Path, source: str, out: str, *overrides: str) -> Path:
    """Stage 1 for the training set."""
    options = [
        "--config",
        f"{root}/config.yaml",
        "--data",
        f"{root}/{source}",
        "--out",
        f"{root}/{out}",
        "--training",
    ]
    options += [word for value in overrides for word in ("--set", value)]
    args = extract_features.parse(options)
    extract_features.run(args, *load_config(args.config, args.set))
    return root / out


def names(folder: Path) -> set[str]:
    return {path.name.split("-0")[0] for path in folder.iterdir()}


def test_stage_1_writes_the_training_set_in_shards(data: Path) -> None:
    common = {
        ".stage.json",
        "cmvn.json",
        "shard",
        "spk2utt",
        "text",
        "utt2dur",
        "utt2num_frames",
        "utt2spk",
        "wav.scp",
    }
    assert names(data / "stored") == common | {"feats.scp", FILE}
    assert names(data / "online") == common | {FILE}
    assert len(datadir.read(data / "stored")) == 48 and len(datadir.read(data / "online")) == 24
    assert not [problem for problem in datadir.check(data / "stored") if problem.kind == "error"]


def test_stage_1_made_again_packs_what_it_computed_now(data: Path) -> None:
    before = extract(data, "set", "again") / "shard-00000.tar"
    old = before.read_bytes()
    extract(data, "set", "again", "data.fbank.low_hz=100")
    assert before.read_bytes() != old
    extract(data, "set", "again")
    assert before.read_bytes() == old


def test_audio_that_is_in_shards_already_stays_there(data: Path) -> None:
    make_shards.run(
        make_shards.parse(["--data", f"{data}/set", "--out", f"{data}/packed", "--size-mb", "0.1"])
    )
    out = extract(data, "packed", "from-shards", "data.features=online")
    assert (out / FILE).read_bytes() == (data / "packed" / FILE).read_bytes()
    assert not list(out.glob("*.tar"))


def test_sets_that_are_not_trained_on_stay_as_they_are(data: Path) -> None:
    args = extract_features.parse(
        ["--config", f"{data}/config.yaml", "--data", f"{data}/set", "--out", f"{data}/dev"]
    )
    extract_features.run(args, *load_config(args.config, []))
    assert not (data / "dev" / FILE).exists() and (data / "dev" / "feats.1.ark").exists()


@pytest.mark.parametrize("kind", ["stored", "online"])
def test_a_stopped_training_ends_with_the_same_weights(
    kind: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(exp: Path) -> None:
        sets = [
            "--train",
            str(data / kind),
            "--valid",
            str(data / kind),
            "--vocab",
            str(data / "vocab"),
        ]
        train.main(
            [
                "--config",
                f"{data}/config.yaml",
                "--exp",
                str(exp),
                *sets,
                "--set",
                f"data.features={kind}",
            ]
            + ["--set", "trainer.save_every_seconds=0"]
        )

    run(tmp_path / "whole")
    with power_failure(monkeypatch, 1, 3):
        run(tmp_path / "stopped")
    run(tmp_path / "stopped")
    whole, stopped = (
        checkpoint.load(tmp_path / name / "train" / "average-1.safetensors")
        for name in ("whole", "stopped")
    )
    assert whole.keys() == stopped.keys() and all(
        (whole[key] == stopped[key]).all() for key in whole
    )
