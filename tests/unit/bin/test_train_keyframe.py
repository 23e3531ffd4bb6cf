"""The three phases of key frames, from a config of a recipe, trained on tones and decoded in every
way there is.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from asrtool.bin import decode, plot, score, train
from asrtool.data import audio
from asrtool.data.kaldi import datadir
from asrtool.errors import UserError
from asrtool.experiment import load_decode
from asrtool.model_folder import Experiment
from asrtool.recognizer import Recognizer
from asrtool.score import count_errors
from asrtool.searchers import AttentionBeamConfig
from asrtool.trainer import checkpoint

slow = partial(pytest.param, marks=pytest.mark.slow)
CONF = Path(__file__).parents[3] / "egs" / "aishell1" / "conf"
SMALL = [
    "data.fbank={num_mel_bins: 20, rate: 8000}",
    "data.batch={seconds: 20}",
    "data.augment.spec_augment=null",
    "data.workers=0",
    "model.encoder={num_layers: 3, dim: 32, num_heads: 2, ffn_dim: 64, kernel: 7, dropout: 0.0}",
    "model.decoder={num_layers: 1, num_heads: 2, ffn_dim: 64, dropout: 0.0}",
    "optim.lr=5e-3",
    "trainer={precision: float32, average: 1}",
]
EPOCHS = [
    f"phases.{name}.trainer.epochs={number}"
    for name, number in (("base", 22), ("fusion", 1), ("keyframe", 3))
]


def fit(toy: Path, exp: Path, config: str, *overrides: str) -> Path:
    dump = toy / "dump"
    train.main(
        [
            "--config",
            str(CONF / config),
            "--train",
            str(dump / "train"),
            "--valid",
            str(dump / "dev"),
        ]
        + [
            "--vocab",
            str(toy / "vocab"),
            "--exp",
            str(exp),
            "--set",
            shlex.join([*SMALL, *overrides]),
        ]
    )
    return exp


@pytest.fixture(scope="module")
def exp(toy, tmp_path_factory) -> Path:
    return fit(
        toy,
        tmp_path_factory.mktemp("keyframe") / "exp",
        "keyframe/train_keyframe_mini.yaml",
        *EPOCHS,
    )


def study(name: str):
    """A script of the study."""
    spec = importlib.util.spec_from_file_location(name, CONF.parent / "studies" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def records(exp: Path, event: str, phase: str) -> list[dict]:
    lines = [json.loads(line) for line in (exp / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event and line["phase"] == phase]


def decoded(toy: Path, exp: Path, config: str, name: str) -> list[dict]:
    out = exp / name
    data = toy / "dump" / "dev"
    decode.main(
        ["--exp", str(exp), "--config", str(CONF / config), "--data", str(data), "--out", str(out)]
        + ["--set", "average=1"]
    )
    return [json.loads(line) for line in (out / "hyps.jsonl").read_text().splitlines()]


def texts(toy: Path) -> dict[str, str]:
    lines = (toy / "dump" / "dev" / "text").read_text().splitlines()
    return {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in lines}


def test_the_inter_ctc_finds_a_frame_per_token_and_the_rest_is_dropped(exp):
    base, last = records(exp, "valid", "base"), records(exp, "valid", "keyframe")[-1]
    assert base[0]["valid/inter_ctc.frame_reduction"] == 0
    assert 0.9 < base[-1]["valid/inter_ctc.key_frames_per_token"] < 1.1
    assert 0.9 < last["valid/inter_ctc.key_frames_per_token"] < 1.1
    assert last["valid/inter_ctc.frame_reduction"] > 0.5
    assert {"valid/inter_ctc", "valid/aligned", "valid/attention", "valid/cer"} <= set(last)
    assert "valid/ctc" not in last


def test_the_head_of_the_aligned_loss_starts_as_that_of_ctc(exp):
    assert "heads.ctc.weight" in checkpoint.shapes(exp / "fusion" / "average-1.safetensors")
    shapes = checkpoint.shapes(exp / "keyframe" / "average-1.safetensors")
    assert "heads.aligned.weight" in shapes and "heads.ctc.weight" not in shapes
    assert records(exp, "valid", "keyframe")[0]["valid/cer"] < 0.5  # it did not begin from nothing


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ("keyframe/decode_keyframe_aligned.yaml", 0.2),
        ("keyframe/decode_keyframe_rescoring.yaml", 0.2),
        ("keyframe/decode_keyframe_joint.yaml", 0.3),
        (
            "keyframe/decode_keyframe.yaml",
            1.0,
        ),  # 80 utterances are too few for an attention decoder
    ],
)
def test_every_decoding_of_the_last_phase_works(toy, exp, config, most):
    lines, references = decoded(toy, exp, config, Path(config).stem), texts(toy)
    counts = count_errors(
        [list(references[line["id"]]) for line in lines], [list(line["text"]) for line in lines]
    )
    assert counts.errors / counts.reference <= most
    frames = sum(line["frames"] for line in lines)
    assert 0.85 < frames / counts.reference < 1.15


def test_the_aligned_head_tells_when_each_token_was_said(toy, exp):
    for line in decoded(toy, exp, "keyframe/decode_keyframe_aligned.yaml", "times"):
        assert len(line["times"]) == len(line["tokens"]) <= line["frames"]
        assert line["times"] == sorted(line["times"])
        assert all(0 <= time <= line["seconds"] for time in line["times"])


def test_words_get_their_times_from_the_inter_ctc_head(toy, exp):
    recognizer = Recognizer.load(
        exp, load_decode(CONF / "keyframe/decode_keyframe_aligned.yaml", ["average=1"])
    )
    audio = sorted((toy / "data" / "dev" / "audio").glob("*.wav"))[0]
    found = recognizer.recognize(audio)
    assert found.text == texts(toy)[audio.stem]
    assert [word.text for word in found.words] == found.text.split()
    assert all(0 <= word.start < word.end <= found.seconds for word in found.words)
    assert len(recognizer.align(audio, found.text)) == len(found.words)


def test_a_model_without_a_ctc_head_is_searched_by_what_it_has(exp):
    assert isinstance(Experiment.open(exp).decode_config().searcher, AttentionBeamConfig)


@pytest.mark.parametrize(
    "variant",
    [
        ["model.encoder.downsamplers.2.fusion=none"],
        ["phases.keyframe.losses.aligned.weight=0", "phases.keyframe.trainer.best=valid/attention"],
        ["phases.fusion.model.encoder.downsamplers.2={drop: true, keep: 5}"],
        slow(["model.encoder.downsamplers.2.radius=2"]),
        slow(
            [
                f"phases.{phase}.model.encoder.downsamplers.2.fusion=concat"
                for phase in ("fusion", "keyframe")
            ]
        ),
        slow(["losses.aligned.skip_penalty=5"]),
        slow(["model.encoder.downsamplers.2.causal=true"]),
    ],
)
def test_every_ablation_by_override_trains(toy, tmp_path, variant):
    short = [f"phases.{name}.trainer.epochs=1" for name in ("base", "fusion", "keyframe")]
    fit(toy, tmp_path / "exp", "keyframe/train_keyframe_mini.yaml", *short, *variant)
    assert records(tmp_path / "exp", "finished", "keyframe")


def test_kept_frames_are_drawn(toy, exp, tmp_path):
    pytest.importorskip("matplotlib")
    plot.main(
        [
            "keyframes",
            str(exp),
            "--data",
            str(toy / "dump" / "dev"),
            "--out",
            str(tmp_path / "a.svg"),
        ]
    )
    drawn = (tmp_path / "a.svg").read_text()
    assert "kept frames" in drawn and "inter-CTC: not blank" in drawn
    audio = sorted((toy / "data" / "dev" / "audio").glob("*.wav"))[1]
    plot.main(
        [
            "keyframes",
            str(exp),
            "--audio",
            str(audio),
            "--phase",
            "base",
            "--out",
            str(tmp_path / "b.png"),
        ]
    )
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="has no utterance nobody"):
        plot.main(
            ["keyframes", str(exp), "--data", str(toy / "dump" / "dev"), "--utterance", "nobody"]
        )


def test_a_model_without_key_frames_has_none_to_draw(toy):
    pytest.importorskip("matplotlib")
    with pytest.raises(UserError, match="phase 'train' has no loss on the head 'inter_ctc'"):
        plot.main(["keyframes", str(toy / "exp"), "--data", str(toy / "dump" / "dev")])


def test_the_study_reads_dropped_frames_and_writes_its_table(toy, exp, tmp_path, capsys):
    exps, dev = tmp_path / "exp", toy / "data" / "dev"
    shutil.copytree(exp, exps / "study_axe_0")
    shutil.copytree(toy / "exp", exps / "study_baseline_0")
    study("dropped_frames").main(
        ["--exp", str(exps / "study_axe_0"), "--data", str(dev), "--layer", "2"]
    )
    found = json.loads((exps / "study_axe_0" / "dropped_frames.json").read_text())
    assert found["probe"]["key frames"] > 0.95 > found["probe"]["dropped frames"]
    assert 0 < found["reconstruction"]["left over"] < 1
    one = datadir.read(dev)[:1]
    datadir.write(tmp_path / "one", one)
    study("dropped_frames").main(
        ["--exp", str(exps / "study_axe_0"), "--data", str(tmp_path / "one"), "--layer", "2"]
    )
    assert "too few utterances" in capsys.readouterr().out
    decodings = (
        ("axe", "decode_keyframe_aligned"),
        ("axe", "decode_keyframe"),
        ("baseline", "decode_greedy"),
    )
    for name, config in (*decodings, ("baseline", "decode_attention")):
        folder = exps / f"study_{name}_0"
        chosen = next(CONF.rglob(f"{config.replace('attention', 'greedy')}.yaml"))
        out = folder / config / "dev"
        arguments = [
            "--exp",
            str(folder),
            "--config",
            str(chosen),
            "--data",
            str(toy / "dump" / "dev"),
        ]
        decode.main([*arguments, "--out", str(out), "--set", "average=1"])
        score.main(["--metric", "cer", str(dev), str(out)])
    table, wanted = (
        study("keyframe_table"),
        ["--exp", str(exps), "--seeds", "0", "--variants", "baseline axe"],
    )
    table.main([*wanted, "--match", "0"])
    assert int(capsys.readouterr().out.split()[-1]) >= 22
    table.main([*wanted, "--set", "dev"])
    rows = [
        line.split(" | ")
        for line in (exps / "keyframe_study.md").read_text().splitlines()
        if " | " in line
    ]
    axe = next(row for row in rows if row[0] == "| axe")
    assert (
        float(axe[6]) == pytest.approx(1.0, abs=0.15) and axe[7].startswith("8") and "(" in axe[5]
    )
    assert next(row for row in rows if row[0] == "| baseline")[5] == "-"


def test_noisy_copies_of_a_set_have_their_level(toy, tmp_path):
    dev = Path(shutil.copytree(toy / "data" / "dev", tmp_path / "dev"))
    study("noisy_sets").main(["--data", str(dev)])
    for original in datadir.read(dev)[:3]:
        clean = audio.read(original.audio)
        for level in (20, 10, 0):
            noisy = audio.read(str(tmp_path / f"dev_snr{level}" / "audio" / f"{original.id}.flac"))
            scale = float(noisy @ clean / (clean @ clean))  # what would clip is turned down
            noise = noisy / scale - clean
            assert 10 * np.log10(
                np.square(clean).mean() / np.square(noise).mean()
            ) == pytest.approx(level, abs=1)
    copies = datadir.read(tmp_path / "dev_room")
    assert [(u.id, u.text, u.speaker) for u in copies] == [
        (u.id, u.text, u.speaker) for u in datadir.read(dev)
    ]
