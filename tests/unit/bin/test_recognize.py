"""`asrtool recognize`: what is printed, what is written, and files that cannot be recognised."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.bin import align, decode, recognize
from asrtool.errors import UserError
from tests import toy_experiment as toys


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Path -> what is said."""
    made = {}
    for name, text in (("one.wav", "abc de"), ("two.flac", "bad cab a")):
        soundfile.write(tmp_path / name, toys.sound(text), toys.RATE)
        made[str(tmp_path / name)] = text
    return made


def run(toy: Path, *arguments: str) -> None:
    recognize.main([str(toy / "exp"), *arguments])


def test_one_file_is_its_text(toy, files, capsys):
    path, text = next(iter(files.items()))
    run(toy, path)
    assert capsys.readouterr().out == f"{text}\n"


def test_several_files_are_lines_that_begin_with_their_names(toy, files, capsys):
    run(toy, *files)
    assert capsys.readouterr().out == "".join(f"{path}\t{text}\n" for path, text in files.items())


def test_json_has_times_and_the_real_time_factor(toy, files, capsys):
    run(toy, *files, "--format", "json")
    for line, (path, text) in zip(
        map(json.loads, capsys.readouterr().out.splitlines()), files.items(), strict=True
    ):
        assert (line["audio"], line["text"]) == (path, text)
        assert [word["text"] for word in line["words"]] == text.split()
        assert line["words"][-1]["end"] <= line["seconds"]
        assert line["rtf"] > 0


def test_subtitles_go_into_a_folder(toy, files, tmp_path):
    run(toy, *files, "--format", "srt", "--out", str(tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"one.srt", "two.srt"}
    assert (tmp_path / "out" / "one.srt").read_text().endswith("\nabc de\n")


def test_json_has_scores_and_the_hypotheses_that_were_asked_for(toy, files, capsys):
    path, text = next(iter(files.items()))
    search = "nbest=3 searcher={type: ctc_prefix_beam, beam: 3}"
    run(toy, path, "--format", "json", "--set", search.replace(": ", ":\\ ").replace(", ", ",\\ "))
    line = json.loads(capsys.readouterr().out)
    assert [one["text"] for one in line["nbest"]][0] == line["text"] == text
    assert len(line["nbest"]) == 3 and line["score"] == line["nbest"][0]["score"]
    assert line["nbest"][0]["score"] > line["nbest"][1]["score"]


def test_a_folder_stands_for_its_audio_files(toy, files, tmp_path, capsys):
    (tmp_path / "notes.md").write_text("no audio")
    run(toy, str(tmp_path))
    assert capsys.readouterr().out == "".join(f"{path}\t{text}\n" for path, text in files.items())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="the folder holds no audio file"):
        run(toy, str(tmp_path / "empty"))


def test_standard_input_may_be_any_audio_file(toy, files, capsys, monkeypatch):
    path, text = list(files.items())[1]
    with open(path, "rb") as stream:
        monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": stream}))
        run(toy, "-")
    assert capsys.readouterr().out == f"{text}\n"
    with pytest.raises(UserError, match="can be read only once"):
        run(toy, "-", "-")


def test_subtitles_for_browsers(toy, files, capsys):
    run(toy, next(iter(files)), "--format", "vtt")
    assert re.fullmatch(
        r"WEBVTT\n\n00:00:0\d\.\d{3} --> 00:00:0\d\.\d{3}\nabc de\n", capsys.readouterr().out
    )


def test_no_files_have_no_real_time_factor(toy, capsys):
    with pytest.raises(SystemExit):
        run(toy, "missing.wav")
    assert "real-time factor" not in capsys.readouterr().err


def test_a_training_that_is_not_finished_is_used_where_that_is_asked_for(
    toy, files, tmp_path, capsys
):
    exp = Path(shutil.copytree(toy / "exp", tmp_path / "exp"))
    (exp / "train" / "finished.json").unlink()
    path, text = next(iter(files.items()))
    with pytest.raises(UserError, match="--set unfinished=true"):
        recognize.main([str(exp), path])
    recognize.main([str(exp), path, "--set", "unfinished=true"])
    align.main([str(exp), "--audio", path, "--text", text, "--set", "unfinished=true"])
    assert capsys.readouterr().out.startswith(f"{text}\n")


def test_subtitles_of_several_files_need_a_folder(toy, files):
    with pytest.raises(UserError, match="need --out"):
        run(toy, *files, "--format", "srt")


def test_two_files_of_the_same_name_are_refused_before_any_work(toy, tmp_path):
    with pytest.raises(UserError, match="would both be written to .*a.txt"):
        run(toy, "x/a.wav", "y/a.flac", "--out", str(tmp_path / "out"))


def test_a_file_that_cannot_be_read_is_named_and_the_others_go_on(toy, files, tmp_path, capsys):
    (tmp_path / "bad.wav").write_bytes(b"RIFF no")
    with pytest.raises(SystemExit) as ended:
        run(toy, str(tmp_path / "bad.wav"), "missing.wav", *files)
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert said.out.count("\n") == 2
    assert "2 of 4 files could not be recognised" in said.err
    assert "missing.wav: no such file or directory" in said.err


def test_a_name_is_never_run(toy, files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, text = next(iter(files.items()))
    Path(path).rename("x;touch ran|")
    with pytest.raises(SystemExit):
        run(toy, "x;touch ran|", "y;touch ran|")
    said = capsys.readouterr()
    assert said.out == f"x;touch ran|\t{text}\n"
    assert (
        "y;touch ran|: no such file or directory; commands are only run from wav.scp of a data "
        "directory"
    ) in said.err
    assert not Path("ran").exists()


def test_a_name_may_be_no_text_at_all(toy, files, tmp_path, capsys):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9\x1b.wav")
    Path(next(iter(files))).rename(odd)
    run(toy, odd, "--format", "json")
    assert json.loads(capsys.readouterr().out)["audio"].endswith("/\\xe9\\x1b.wav")
    run(toy, odd, "--out", str(tmp_path / "out"))
    assert Path(f"{tmp_path}/out/{Path(odd).stem}.txt").exists()


def test_what_a_command_prints_is_read_from_its_pipe(toy, files, tmp_path, capsys):
    """As with `<(ffmpeg -i talk.m4a -f wav -)` in bash."""
    path, text = next(iter(files.items()))
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(
        target=(tmp_path / "pipe").write_bytes, args=(Path(path).read_bytes(),)
    )
    writer.start()
    run(toy, str(tmp_path / "pipe"))
    writer.join()
    assert capsys.readouterr().out == f"{text}\n"


def test_what_fails_together_is_tried_apart(toy, files, capsys, monkeypatch):
    plain = recognize.Recognizer.transcribe

    def fragile(self, inputs):
        if len(inputs) > 1:
            raise RuntimeError("out of memory")
        return plain(self, inputs)

    monkeypatch.setattr(recognize.Recognizer, "transcribe", fragile)
    run(toy, *files)
    assert capsys.readouterr().out == "".join(f"{path}\t{text}\n" for path, text in files.items())


def test_the_search_may_be_another_one(toy, files, capsys):
    run(
        toy,
        next(iter(files)),
        "--config",
        str(toy / "decode.yaml"),
        "--set",
        "windows='{max_seconds: 1.0}'",
    )
    assert "windows" in capsys.readouterr().err


def slow_at_first(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """What a process does once, such as compiling, takes so long."""
    plain, calls = recognize.Recognizer.search_encoded, []

    def search(self, encoded):
        time.sleep(0 if calls else seconds)
        calls.append(1)
        return plain(self, encoded)

    monkeypatch.setattr(recognize.Recognizer, "search_encoded", search)


def test_the_real_time_factor_leaves_out_what_is_done_once(toy, files, capsys, monkeypatch):
    slow_at_first(monkeypatch, 1.0)
    run(toy, *files, "--format", "json")
    said = capsys.readouterr()
    assert all(line["rtf"] * line["seconds"] < 1 for line in map(json.loads, said.out.splitlines()))
    count, seconds, factor = re.search(
        r"(\d) files, ([\d.]+) s of audio, real-time factor " r"([\d.]+)", said.err
    ).groups()
    assert int(count) == 2 and float(factor) * float(seconds) < 1


def test_that_of_decoding_too(toy, tmp_path, monkeypatch):
    slow_at_first(monkeypatch, 1.0)
    arguments = {
        "--exp": toy / "exp",
        "--config": toy / "decode.yaml",
        "--data": toy / "dump" / "test",
    }
    decode.main(
        [str(part) for pair in [*arguments.items(), ("--out", tmp_path / "out")] for part in pair]
    )
    lines = map(json.loads, (tmp_path / "out" / "hyps.jsonl").read_text().splitlines())
    assert max(line["latency"] for line in lines) < 1


def test_how_a_long_file_was_cut_is_said_in_one_line(toy, tmp_path, capsys):
    rng = np.random.default_rng(0)
    silence = np.zeros(2 * toys.RATE)
    parts = [
        part
        for text in ("abc de", "bad cab", "ea dead")
        for part in (toys.sound(text, rng), silence)
    ]
    soundfile.write(tmp_path / "long.wav", np.concatenate(parts), toys.RATE)
    run(toy, str(tmp_path / "long.wav"))
    said = capsys.readouterr()
    assert said.out == "abc de bad cab ea dead\n"
    (line,) = [line for line in said.err.splitlines() if "windows" in line]
    assert re.search(
        r"long.wav: \d+\.\d s in 3 windows of \d\.\d\d to \d\.\d\d s, at most \d\.\d\d \(the "
        r"longest of 99% of the 80 "
        r"training utterances\); \d\.\d s without speech left out",
        line,
    )
