"""Stage 4: what is written, what happens to utterances that fail, and how a stopped decoding goes
on.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from asrtool.bin import decode, score
from asrtool.errors import UserError
from asrtool.recognizer import Recognizer
from asrtool.system import atomic, stamp

ALL = [f"u{number:03}" for number in range(12)]


def run(toy: Path, out: Path, *options: str, data: Path | None = None) -> None:
    paths = {
        "exp": toy / "exp",
        "config": toy / "decode.yaml",
        "data": data or toy / "dump" / "test",
        "out": out,
    }
    decode.main(
        [part for name, path in paths.items() for part in (f"--{name}", str(path))] + list(options)
    )


def lines(path: Path) -> list[dict]:
    return [json.loads(row) for row in path.read_text().splitlines()]


@pytest.fixture
def data(toy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy / "dump" / "test", tmp_path / "test"))


def drop_features(data: Path, *ids: str) -> None:
    """Point some utterances to an archive that is not there."""
    rows = (data / "feats.scp").read_text().splitlines()
    kept = [row if row.split()[0] not in ids else f"{row.split()[0]} missing.ark:7" for row in rows]
    (data / "feats.scp").write_text("\n".join(kept) + "\n")


def test_every_utterance_gets_its_text_and_its_times(toy, tmp_path, capsys):
    run(toy, tmp_path / "out")
    found = lines(tmp_path / "out" / "hyps.jsonl")
    assert [line["id"] for line in found] == ALL
    assert (tmp_path / "out" / "text").read_text() == (toy / "data" / "test" / "text").read_text()
    for line in found:
        assert len(line["times"]) == len(line["tokens"])
        assert 0 < line["elapsed"] <= line["latency"]
        assert 0 < line["frames"] <= 25 * line["seconds"] + 1
        assert line["rtf"] == pytest.approx(line["elapsed"] / line["seconds"], rel=0.01, abs=1e-4)
    assert not list(tmp_path.glob("out.*"))
    said = capsys.readouterr().err
    assert (
        "12 utterances" in said
        and "real-time factor" in said
        and ("seconds until a result: median") in said
    )


def test_the_same_command_again_does_nothing(toy, tmp_path, capsys):
    run(toy, tmp_path / "out")
    run(toy, tmp_path / "out")
    assert "is up to date" in capsys.readouterr().err


def test_an_utterance_that_cannot_be_read_is_named_and_cannot_be_forgotten(
    toy, data, tmp_path, capsys
):
    drop_features(data, "u003", "u007")
    run(toy, tmp_path / "out", data=data)
    assert (
        "2 of 12 utterances failed; see failed.jsonl for the reasons: u003, u007"
        in capsys.readouterr().err
    )
    assert [line["id"] for line in lines(tmp_path / "out" / "failed.jsonl")] == ["u003", "u007"]
    assert len(lines(tmp_path / "out" / "hyps.jsonl")) == 10
    reference = str(toy / "data" / "test")
    with pytest.raises(UserError, match="u003"):
        score.main([reference, str(tmp_path / "out")])
    score.main([reference, str(tmp_path / "out"), "--missing", "deletions"])
    total = json.loads((tmp_path / "out" / "score.json").read_text())["total"]
    assert total["deletions"] > 0


def test_failures_are_tried_again_and_nothing_else(toy, data, tmp_path, capsys, monkeypatch):
    drop_features(data, "u003")
    run(toy, tmp_path / "out", data=data)
    before = lines(tmp_path / "out" / "hyps.jsonl")
    (data / "missing.ark").write_bytes(b"")
    digest = stamp.digest
    monkeypatch.setattr(
        stamp, "digest", lambda path: "the same" if data in (path, *path.parents) else digest(path)
    )
    run(toy, tmp_path / "out", "--force", data=data)
    drop_features(data)
    shutil.copy(toy / "dump" / "test" / "feats.scp", data)
    run(toy, tmp_path / "out", data=data)
    assert "1 utterance failed; trying again" in capsys.readouterr().err
    after = lines(tmp_path / "out" / "hyps.jsonl")
    assert [line["id"] for line in after] == ALL
    assert not (tmp_path / "out" / "failed.jsonl").exists()
    untouched = [line for line in after if line["id"] != "u003"]
    assert [line["text"] for line in untouched] == [line["text"] for line in before]


def test_what_fails_together_is_tried_apart(toy, tmp_path, monkeypatch):
    plain = Recognizer.search_counted

    def fragile(self, inputs):
        if (inputs.lengths == longest).any():
            raise RuntimeError("out of memory")
        return plain(self, inputs)

    frames = dict(
        row.split() for row in (toy / "dump" / "test" / "utt2num_frames").read_text().splitlines()
    )
    victim = max(frames, key=lambda key: int(frames[key]))
    longest = int(frames[victim])
    monkeypatch.setattr(Recognizer, "search_counted", fragile)
    run(toy, tmp_path / "out", "--set", "batch_seconds=200")
    failed = lines(tmp_path / "out" / "failed.jsonl")
    assert failed == [{"id": victim, "error": f"{victim}: out of memory"}]
    assert len(lines(tmp_path / "out" / "hyps.jsonl")) == 11


def test_nothing_but_failures_ends_with_the_reason(toy, data, tmp_path):
    drop_features(data, *ALL)
    with pytest.raises(UserError, match="none of 12 utterances succeeded; the last reason: u011: "):
        run(toy, tmp_path / "out", data=data)
    assert not (tmp_path / "out").exists()


def test_a_stopped_decoding_goes_on_and_ends_the_same(toy, tmp_path, capsys, monkeypatch):
    run(toy, tmp_path / "whole", "--set", "batch_seconds=4")
    plain, seen = Recognizer.search_counted, []

    def stopped(self, inputs):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(len(inputs.lengths))
        return plain(self, inputs)

    monkeypatch.setattr(Recognizer, "search_counted", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(toy, tmp_path / "out", "--set", "batch_seconds=4")
    assert not (tmp_path / "out").exists() and (tmp_path / "out.part").exists()
    part = next((tmp_path / "out.part").glob("*.jsonl"))
    part.write_text(part.read_text() + '{"id": "u0')  # torn by a kill
    again = []
    monkeypatch.setattr(
        Recognizer, "search_counted", lambda self, x: again.append(len(x.lengths)) or plain(self, x)
    )
    run(toy, tmp_path / "out", "--set", "batch_seconds=4")
    assert sum(seen) + sum(again) == 12
    assert "resuming an earlier run that was stopped" in capsys.readouterr().err
    timing = dict.fromkeys(("elapsed", "latency", "rtf"))
    one, other = (
        [{**line, **timing} for line in lines(tmp_path / name / "hyps.jsonl")]
        for name in ("whole", "out")
    )
    assert one == other
    assert not (tmp_path / "out.part").exists()


def test_what_was_begun_with_other_options_is_not_taken_over(toy, tmp_path, capsys):
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "stage.json").write_text("{}")
    (tmp_path / "out.part" / "0.0.0.jsonl").write_text('{"id": "u000", "text": "wrong"}\n')
    run(toy, tmp_path / "out")
    assert "started with different inputs or options; starting again" in capsys.readouterr().err
    assert "wrong" not in (tmp_path / "out" / "text").read_text()


def test_a_disk_that_is_full_at_the_very_end_costs_no_decoding(toy, tmp_path, monkeypatch):
    def full(new: Path, out: Path) -> None:
        raise OSError(28, "No space left on device")

    with (
        monkeypatch.context() as patch,
        pytest.raises(stamp.StageError, match="out: no space left on device; free"),
    ):
        patch.setattr(atomic, "replace_folder", full)
        run(toy, tmp_path / "out")
    monkeypatch.setattr(Recognizer, "search_counted", lambda *_: pytest.fail("decoded again"))
    run(toy, tmp_path / "out")
    assert [line["id"] for line in lines(tmp_path / "out" / "hyps.jsonl")] == ALL
    assert os.listdir(tmp_path) == ["out"]


def test_what_a_kill_behind_the_end_left_goes(toy, tmp_path):
    run(toy, tmp_path / "out")
    (tmp_path / "out.lock").touch()
    (tmp_path / "out.part").mkdir()
    run(toy, tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_long_utterances_are_decoded_in_windows_where_the_config_says_so(toy, tmp_path):
    run(toy, tmp_path / "out", "--set", "windows='{max_seconds: 1.8, overlap_seconds: 0.8}'")
    found = lines(tmp_path / "out" / "hyps.jsonl")
    assert any(line.get("windows", 1) > 1 for line in found)
    assert (tmp_path / "out" / "text").read_text() == (toy / "data" / "test" / "text").read_text()
    for line in found:
        assert len(line["times"]) == len(line["tokens"])
        assert line["times"] == sorted(line["times"])


def test_windows_without_a_length_are_as_training_was_and_none_leave_utterances_whole(
    toy, tmp_path, capsys
):
    longest = json.loads((toy / "exp" / "train" / "lengths.json").read_text())["seconds"]["0.99"]
    run(toy, tmp_path / "cut", "--set", "windows={}")
    assert f"audio longer than {longest:.2f} s (the longest of 99%" in capsys.readouterr().err
    for line in lines(tmp_path / "cut" / "hyps.jsonl"):
        assert ("windows" in line) == (line["seconds"] - 0.02 > longest)
    run(toy, tmp_path / "whole")
    assert not any("windows" in line for line in lines(tmp_path / "whole" / "hyps.jsonl"))


def test_a_detector_that_hears_samples_is_refused_where_there_are_features(toy, tmp_path):
    with pytest.raises(UserError, match="silero needs samples, not features"):
        run(toy, tmp_path / "out", "--set", "windows.detector=silero")
