"""The command as people call it: `utils/score.sh` and `asrtool.bin.score`."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from asrtool.bin.score import main

ROOT = Path(__file__).parents[3]


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "text").write_text("a-1 the cat sat\na-2 hello\nb-1 one two\n", encoding="utf-8")
    (folder / "utt2spk").write_text("a-1 anna\na-2 anna\nb-1 ben\n", encoding="utf-8")
    (folder / "utt2accent").write_text("a-1 north\na-2 south\nb-1 south\n", encoding="utf-8")
    return folder


@pytest.fixture
def hyps(tmp_path) -> Path:
    folder = tmp_path / "exp" / "test"
    folder.mkdir(parents=True)
    rows = {"b-1": "one too", "a-1": "the cat sat", "a-2": "hello"}
    lines = [json.dumps({"id": name, "text": text}) for name, text in rows.items()]
    (folder / "hyps.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def failure(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code not in (0, None)
    message = stopped.value.code if isinstance(stopped.value.code, str) else capsys.readouterr().err
    assert message.count("\n") == 0
    return message


def test_results_lie_beside_the_hypotheses_and_name_their_files(data, hyps, capsys):
    main([str(data), str(hyps), "--group-by", "accent"])
    result = (hyps / "result.txt").read_text(encoding="utf-8")
    assert "| anna   |    2      4 |100.0 " in result
    assert "   1:    1  ->  two ==> too" in result
    stored = json.loads((hyps / "score.json").read_text(encoding="utf-8"))
    assert stored["total"]["substitutions"] == 1
    assert stored["groups"]["accent"]["south"]["reference"] == 3
    assert stored["files"]["reference"]["sha256"] == hashlib.sha256((data / "text").read_bytes()).hexdigest()
    assert sorted(path.name for path in hyps.iterdir()) == ["hyps.jsonl", "result.txt", "score.json"]
    assert capsys.readouterr().out.startswith(f"write a WER result in {hyps / 'result.txt'}\n| SPKR ")


def test_out_names_another_folder(data, hyps, tmp_path):
    main([str(data), str(hyps), "--out", str(tmp_path / "new" / "score")])
    assert (tmp_path / "new" / "score" / "score.json").is_file()
    assert not (hyps / "score.json").exists()


def test_the_shell_script_scores_from_any_folder(data, hyps, tmp_path):
    command = [ROOT / "utils" / "score.sh", "--metric", "cer", "data/text", "exp/test/hyps.jsonl"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "\n%CER 5.00 [ 1 / 20, 0 ins, 0 del, 1 sub ]\n" in done.stdout


def test_speakers_of_a_trn_file_stand_before_the_hyphen(tmp_path):
    (tmp_path / "ref.trn").write_text("a b (s1-u1)\nc (s2-u1)\n", encoding="utf-8")
    (tmp_path / "hyp.trn").write_text("c (s2-u1)\na (s1-u1)\n", encoding="utf-8")
    main([str(tmp_path / "ref.trn"), str(tmp_path / "hyp.trn")])
    assert "Speaker sentences   1:  s2   #utts: 1" in (tmp_path / "result.txt").read_text(encoding="utf-8")


def test_a_label_that_the_folder_lacks_lists_those_it_has(data, hyps, capsys):
    message = failure(capsys, data, hyps, "--group-by", "dialect")
    assert message.endswith("no label 'dialect' (no file utt2dialect); the folder has: accent, spk")
    assert not (hyps / "result.txt").exists()


def test_labels_need_a_data_directory(data, hyps, capsys):
    message = failure(capsys, data / "text", hyps, "--group-by", "accent")
    assert "the labels come from a data directory, but" in message


def test_a_missing_hypothesis_names_both_files_and_writes_nothing(data, hyps, capsys):
    (hyps / "hyps.jsonl").write_text('{"id": "a-1", "text": ""}\n', encoding="utf-8")
    message = failure(capsys, data, hyps)
    assert f"{hyps / 'hyps.jsonl'} against {data / 'text'}: 2 of 3 utterances have no hypothesis: a-2, b-1" in message
    assert not (hyps / "score.json").exists()


def test_an_empty_reference_file_is_named(data, hyps, capsys):
    (data / "text").write_text("", encoding="utf-8")
    assert f"{data / 'text'}: the file holds no utterance" in failure(capsys, data, hyps)


def test_a_path_that_does_not_exist_is_named(data, tmp_path, capsys):
    assert "nowhere: no such file or folder" in failure(capsys, data, tmp_path / "nowhere")


def test_an_output_folder_that_is_a_file_is_named(data, hyps, capsys):
    assert str(data / "text") in failure(capsys, data, hyps, "--out", data / "text")
