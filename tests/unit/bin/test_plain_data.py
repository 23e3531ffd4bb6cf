"""Commands that take a data directory, on plain ones: wav.scp and text alone, pipes, segments to
the end, odd ids.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from asrtool.bin import (
    align,
    decode,
    extract_features,
    insertions,
    make_shards,
    probe,
    report,
    score,
    train,
)
from asrtool.data import audio
from asrtool.data.kaldi import datadir
from asrtool.errors import UserError
from asrtool.plots import keyframes
from asrtool.recognizer import Recognizer
from asrtool.streaming import check as stream_check
from tests import toy_experiment as toys

ALL = [f"u{number:03}" for number in range(12)]


def lines(path: Path) -> list[dict]:
    return [json.loads(row) for row in path.read_text(encoding="utf-8").split("\n") if row]


@pytest.fixture
def minimal(toy: Path, tmp_path: Path) -> Path:
    """The test set as wav.scp and text, every third recording a command."""
    folder = tmp_path / "minimal"
    folder.mkdir()
    rows = datadir.read(toy / "data" / "test")
    scp = [
        f"{row.id} {row.audio}" if number % 3 else f"{row.id} cat {row.audio} |"
        for number, row in enumerate(rows)
    ]
    (folder / "wav.scp").write_text("".join(f"{line}\n" for line in scp))
    shutil.copy(toy / "data" / "test" / "text", folder)
    return folder


@pytest.fixture
def to_end(toy: Path, tmp_path: Path) -> Path:
    """Recordings of two sentences; the second one goes to the end."""
    folder = tmp_path / "to_end"
    folder.mkdir()
    rows, scp, segments, text = datadir.read(toy / "data" / "test"), "", "", ""
    for number in range(0, 12, 2):
        one, two = rows[number : number + 2]
        path, name = tmp_path / f"r{number}.wav", f"r{number}"
        samples = [audio.read(row.audio, rate=None) for row in (one, two)]
        soundfile.write(path, [*samples[0], *samples[1]], toys.RATE)
        scp += f"{name} {path}\n"
        middle = len(samples[0]) / toys.RATE
        segments += (
            f"{one.id} {name} 0.0 {middle:.6f}\n{two.id} {name} {middle:.6f} "
            f"{'-1' if number % 4 else '-1.0'}\n"
        )
        text += f"{one.id} {one.text}\n{two.id} {two.text}\n"
    (folder / "wav.scp").write_text("".join(sorted(scp.splitlines(keepends=True))))
    (folder / "segments").write_text(segments)
    (folder / "text").write_text(text)
    return folder


def run_decode(toy: Path, data: Path, out: Path) -> None:
    decode.main(
        [
            "--exp",
            str(toy / "exp"),
            "--config",
            str(toy / "decode.yaml"),
            "--data",
            str(data),
            "--out",
            str(out),
        ]
    )


def run_align(toy: Path, data: Path, out: Path) -> list[dict]:
    align.main([str(toy / "exp"), "--data", str(data), "--out", str(out)])
    return lines(out / "alignments.jsonl")


@pytest.mark.parametrize("kind", ["minimal", "to_end"])
def test_decoding_gives_what_it_gives_with_features(toy, tmp_path, capsys, request, kind):
    data = request.getfixturevalue(kind)
    run_decode(toy, toy / "dump" / "test", tmp_path / "stored")
    run_decode(toy, data, tmp_path / "out")
    assert (tmp_path / "out" / "text").read_text() == (tmp_path / "stored" / "text").read_text()
    assert not (tmp_path / "out" / "failed.jsonl").exists()
    said = capsys.readouterr().err
    assert said.count("is measured from the audio") == 1 and "nan" not in said
    seconds = {row.id: row.duration for row in datadir.read(toy / "data" / "test")}
    found = {line["id"]: line["seconds"] for line in lines(tmp_path / "out" / "hyps.jsonl")}
    assert found == pytest.approx(seconds, abs=1e-4)


def test_aligning_gives_what_it_gives_with_features(toy, minimal, to_end, tmp_path):
    stored = {
        line["id"]: line for line in run_align(toy, toy / "dump" / "test", tmp_path / "stored")
    }
    for data in (minimal, to_end):
        found = run_align(toy, data, tmp_path / f"{data.name}-out")
        assert [line["id"] for line in found] == ALL
        assert all(line["words"] == stored[line["id"]]["words"] for line in found)


def test_scoring_insertions_and_probing_follow(toy, minimal, tmp_path, capsys):
    run_decode(toy, minimal, tmp_path / "out")
    score.main([str(minimal), str(tmp_path / "out"), "--group-by", "speaking_rate,snr"])
    assert set(json.loads((tmp_path / "out" / "score.json").read_text())["groups"]) == {
        "speaking_rate",
        "snr",
    }
    insertions.main([str(minimal), str(tmp_path / "out")])
    assert "nan" not in (tmp_path / "out" / "insertions.txt").read_text()
    probe.main(
        [str(tmp_path / "out"), "--exp", str(toy / "exp"), "--config", str(toy / "decode.yaml")]
        + ["--data", str(minimal), "--worst", "0", "--also", "u000", "--also", "u001"]
    )
    assert {line["id"] for line in lines(tmp_path / "out" / "taps.jsonl")} == {"u000", "u001"}
    report.main([str(tmp_path / "out"), "--also", "u000"])
    assert (tmp_path / "out" / "report.html").stat().st_size > 10000


@pytest.mark.parametrize("kind", ["minimal", "to_end"])
def test_a_picture_is_drawn_of_it(toy, tmp_path, request, kind):
    recognizer = Recognizer.load(toy / "exp", decode.experiment.load_decode(toy / "decode.yaml"))
    name, text, inputs = keyframes.chosen(recognizer, request.getfixturevalue(kind), "u001", None)
    row = datadir.read(toy / "dump" / "test")[1]
    assert (name, text, len(inputs)) == ("u001", row.text, row.num_frames)


@pytest.mark.parametrize("kind", ["minimal", "to_end"])
def test_the_check_of_streaming_hears_all_of_it(toy, request, kind):
    recognizer = SimpleNamespace(rate=toys.RATE)
    rows = zip(
        datadir.read(request.getfixturevalue(kind)),
        datadir.read(toy / "data" / "test"),
        strict=True,
    )
    for row, same in rows:
        assert (
            np.abs(
                stream_check.samples_of(recognizer, row) - audio.read(same.audio, rate=None)
            ).max()
            < 1e-4
        )


def test_training_computes_features_where_the_config_says_so(
    toy, minimal, to_end, tmp_path, capsys
):
    arguments = ["--train", str(minimal), "--vocab", str(toy / "vocab"), "--valid", str(to_end)]
    arguments += ["--exp", str(tmp_path / "exp"), "--config", str(toy / "train.yaml")]
    with pytest.raises(UserError, match="minimal has no cmvn.json, mean and variance .*; stage 1 "):
        train.main([*arguments, "--set", "data.features=online"])
    shutil.rmtree(tmp_path / "exp")
    shutil.copy(toy / "dump" / "train" / "cmvn.json", minimal)
    train.main(
        [*arguments, "--set", "data.features=online trainer.epochs=1 trainer.best=valid/loss"]
    )
    assert list((tmp_path / "exp" / "train").glob("average-*.safetensors"))
    capsys.readouterr()
    with pytest.raises(UserError, match="no utterance of the first step"):
        train.main([*arguments, "--set", "trainer.epochs=20", "--force", "true"])
    assert (
        "it has no stored features (run stage 1, or set data.features: online)"
        in capsys.readouterr().err
    )


def test_an_utterance_that_cannot_be_measured_fails_alone(toy, minimal, tmp_path, capsys):
    scp = (minimal / "wav.scp").read_text().replace("cat ", "no-such-command ", 1)
    (minimal / "wav.scp").write_text(scp.replace(ALL[1] + ".wav", "gone\u2028away.wav"))
    run_decode(toy, minimal, tmp_path / "out")
    assert (
        "2 of 12 utterances failed; see failed.jsonl for the reasons: u000, u001"
        in capsys.readouterr().err
    )
    first, second = lines(tmp_path / "out" / "failed.jsonl")
    assert (
        first["error"].startswith("u000: no-such-command ")
        and "failed with status 127" in first["error"]
    )
    assert second["error"].endswith("gone\u2028away.wav: no such file or directory")
    assert len(lines(tmp_path / "out" / "hyps.jsonl")) == 10


# -- ids -------------------------------------------------------------------

ODD = {
    "u000": "../x",
    "u001": "a/b",
    "u002": "/" * 150,
    "u003": "..",
    "u004": "字" * 100,
    "u005": "a\u2028b",
}


@pytest.fixture
def odd(minimal: Path) -> dict[str, str]:
    """Usual id -> odd one; `minimal` has the odd ones."""
    names = {key: ODD.get(key, key) for key in ALL}
    for name in ("wav.scp", "text"):
        rows = dict(line.split(" ", 1) for line in (minimal / name).read_text().splitlines())
        renamed = sorted(f"{names[key]} {value}\n" for key, value in rows.items())
        (minimal / name).write_text("".join(renamed), encoding="utf-8")
    return names


def test_no_id_is_a_path(toy, minimal, odd, tmp_path):
    before = set(tmp_path.rglob("*"))
    found = run_align(toy, minimal, tmp_path / "out" / "deep")
    assert {line["id"] for line in found} == set(odd.values())
    assert {path.relative_to(tmp_path).parts[0] for path in set(tmp_path.rglob("*")) - before} == {
        "out"
    }
    grids = {path.name for path in (tmp_path / "out" / "deep" / "textgrid").iterdir()}
    assert len(grids) == 12 and {"%2E.%2Fx.TextGrid", "a%2Fb.TextGrid", "u006.TextGrid"} <= grids
    run_decode(toy, minimal, tmp_path / "out" / "decoded")
    assert {line["id"] for line in lines(tmp_path / "out" / "decoded" / "hyps.jsonl")} == set(
        odd.values()
    )
    score.main([str(minimal), str(tmp_path / "out" / "decoded")])
    coverage = json.loads((tmp_path / "out" / "decoded" / "score.json").read_text())["coverage"]
    assert coverage == {"with_hypothesis": 12, "missing_counted_as_deletions": []}


def test_shards_and_stage_1_keep_odd_ids(toy, minimal, odd, tmp_path):
    make_shards.main(["--data", str(minimal), "--out", str(tmp_path / "packed")])
    with tarfile.open(tmp_path / "packed" / "shard-00000.tar") as archive:
        members = archive.getnames()
    assert len(set(members)) == 3 * 12 and not [  # audio, text and json of each
        name for name in members if "/" in name or name.startswith(".")
    ]
    assert {row.id for row in datadir.read(tmp_path / "packed")} == set(odd.values())
    config = [
        "--config",
        str(toy / "train.yaml"),
        "--data",
        str(minimal),
        "--out",
        str(tmp_path / "dump"),
    ]
    extract_features.main(config)
    assert {row.id for row in datadir.read(tmp_path / "dump")} == set(odd.values())
