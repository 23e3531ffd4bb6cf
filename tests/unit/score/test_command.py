"""The command as people call it: `utils/score.sh` and `asrtool.bin.score`."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.bin import explain
from asrtool.bin.score import main
from asrtool.errors import UserError
from asrtool.score.stored import read_score

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
    with pytest.raises((UserError, OSError)) as stopped:
        main([str(argument) for argument in arguments])
    message = explain(stopped.value)
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
    assert (
        stored["files"]["reference"]["sha256"]
        == hashlib.sha256((data / "text").read_bytes()).hexdigest()
    )
    assert sorted(path.name for path in hyps.iterdir()) == [
        "hyps.jsonl",
        "result.txt",
        "score.json",
    ]
    assert capsys.readouterr().out.startswith(
        f"write a WER result in {hyps / 'result.txt'}\n| SPKR "
    )


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
    assert "Speaker sentences   1:  s2   #utts: 1" in (tmp_path / "result.txt").read_text(
        encoding="utf-8"
    )


def test_a_label_that_the_folder_lacks_lists_those_it_has(data, hyps, capsys):
    message = failure(capsys, data, hyps, "--group-by", "dialect")
    assert (
        "no label 'dialect' (no file utt2dialect or spk2dialect); the folder has: accent, spk; "
        "always"
    ) in message
    assert not (hyps / "result.txt").exists()


def test_labels_need_a_data_directory(data, hyps, capsys):
    message = failure(capsys, data / "text", hyps, "--group-by", "accent")
    assert "the labels come from a data directory, but" in message


def test_a_missing_hypothesis_names_both_files_and_writes_nothing(data, hyps, capsys):
    (hyps / "hyps.jsonl").write_text('{"id": "a-1", "text": ""}\n', encoding="utf-8")
    message = failure(capsys, data, hyps)
    assert (
        f"{hyps / 'hyps.jsonl'} against {data / 'text'}: 2 of 3 utterances have no hypothesis: "
        "a-2, b-1"
    ) in message
    assert not (hyps / "score.json").exists()


def test_hashes_coverage_and_normaliser_are_printed(data, hyps, capsys):
    main([str(data), str(hyps), "--normalize", "en"])
    printed = capsys.readouterr().out
    assert "normalizer en, alignment levenshtein, coverage 3 of 3 utterances\n" in printed
    digest = hashlib.sha256((hyps / "hyps.jsonl").read_bytes()).hexdigest()
    assert f"hypothesis {hyps / 'hyps.jsonl'}, sha256 {digest[:16]}\n" in printed


def test_intervals_by_speaker_come_with_utt2spk(data, hyps, capsys):
    main([str(data), str(hyps)])
    stored = json.loads((hyps / "score.json").read_text(encoding="utf-8"))
    assert stored["speakers"] == 2
    assert stored["intervals"]["speaker"].keys() == stored["intervals"]["utterance"].keys()
    assert "bootstrap: 3 utterances, too few for intervals: 8 are needed" in capsys.readouterr().out


def test_recognised_accents_are_scored_where_the_data_directory_knows_the_truth(data, hyps, capsys):
    lines = [json.loads(line) for line in (hyps / "hyps.jsonl").read_text().splitlines()]
    labelled = [{**line, "labels": {"accent": "south", "mood": "good"}} for line in lines]
    (hyps / "hyps.jsonl").write_text("\n".join(map(json.dumps, labelled)))
    # what stage 4 writes beside it
    (hyps / "text").write_text("a-1 the cat sat\na-2 hello\nb-1 one too\n")
    main([str(data), str(hyps)])
    found = json.loads((hyps / "score.json").read_text())["recognition"]["accent"]
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["confusion"] == {"north": {"south": 1}, "south": {"south": 2}}
    assert "the label 'mood' of the hypotheses is not scored: " in capsys.readouterr().out


def test_snr_is_measured_from_the_audio(data, hyps, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name, level in (("a-1", 0.3), ("a-2", 0.3), ("b-1", 0.001)):
        speech = np.concatenate([np.zeros(4000), 0.1 * np.sin(np.arange(4000)), np.zeros(4000)])
        soundfile.write(
            tmp_path / f"{name}.wav", speech + level * 0.1 * rng.normal(size=12000), 16000
        )
    (data / "wav.scp").write_text(
        "".join(f"{name} {tmp_path / name}.wav\n" for name in ("a-1", "a-2", "b-1"))
    )
    main([str(data), str(hyps), "--group-by", "snr"])
    groups = json.loads((hyps / "score.json").read_text())["groups"]["snr"]
    assert {name: group["utterances"] for name, group in groups.items()} == {
        "0 to 5": 2,
        "30 and more": 1,
    }
    (data / "wav.scp").write_text(
        f"a-1 {tmp_path}/a-1.wav\na-2 {tmp_path}/none.wav\nb-1 {tmp_path}/b-1.wav\n"
    )
    assert "--group-by snr: a-2: " in failure(capsys, data, hyps, "--group-by", "snr")


@pytest.mark.parametrize("step", ["unlink", "first rename", "second rename"])
def test_a_crash_while_writing_leaves_nothing_that_looks_finished(step, data, hyps, monkeypatch):
    main([str(data), str(hyps)])
    old = (hyps / "result.txt").read_bytes()
    (hyps / "hyps.jsonl").write_text(
        "".join(f'{{"id": "{name}", "text": ""}}\n' for name in ("a-1", "a-2", "b-1"))
    )
    renames = iter(["first rename", "second rename"])
    replace = os.replace

    def dying(source, target):
        if next(renames) == step:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", dying)
        if step == "unlink":
            patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        main([str(data), str(hyps)])
    if step == "unlink":
        assert (hyps / "result.txt").read_bytes() == old
        assert read_score(hyps / "score.json")["total"]["substitutions"] == 1
    else:
        assert not (hyps / "score.json").exists()
    main([str(data), str(hyps)])
    assert read_score(hyps / "score.json")["total"]["deletions"] == 6
    assert not list(hyps.glob("*.tmp"))


def test_a_result_that_was_changed_later_is_not_taken_for_the_score_beside_it(data, hyps):
    main([str(data), str(hyps)])
    with open(hyps / "result.txt", "a") as file:
        file.write("better\n")
    with pytest.raises(
        UserError, match="the result.txt beside it is missing or belongs to another score.json"
    ):
        read_score(hyps / "score.json")


def test_every_kind_of_odd_file_gives_the_same_result(tmp_path, capsys):
    plain = {"u1": "好 的", "u10": "是", "u1-0": ""}
    kinds = {
        "text": "u1 好 的\nu10 是\nu1-0\n",
        "bom": "\ufeffu1 好 的\nu10 是\nu1-0\n",
        "crlf": "u1 好 的\r\nu10 是\r\nu1-0\r\n",
        "tabs": "u1\t好\t的\nu10\t是\nu1-0\t\n",
        "full": "u1\u3000好\u3000的\nu10\u3000是\nu1-0\n",
        "x.trn": "好 的 (u1)\n是 (u10)\n(u1-0)\n",
        "x.jsonl": "\n".join(
            json.dumps({"id": name, "text": text}) for name, text in plain.items()
        ),
    }
    for name, content in kinds.items():
        (tmp_path / name).write_text(content, encoding="utf-8", newline="")
        main(
            [
                str(tmp_path / "text"),
                str(tmp_path / name),
                "--metric",
                "wer",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        assert "%WER 0.00 [ 0 / 3, 0 ins, 0 del, 0 sub ]" in capsys.readouterr().out, name


def test_an_empty_hypothesis_file_misses_everything(data, hyps, capsys):
    (hyps / "hyps.jsonl").write_text("")
    assert "3 of 3 utterances have no hypothesis: a-1, a-2, b-1" in failure(capsys, data, hyps)


def test_an_empty_reference_file_is_named(data, hyps, capsys):
    (data / "text").write_text("", encoding="utf-8")
    assert f"{data / 'text'}: the file holds no utterance" in failure(capsys, data, hyps)


def test_a_path_that_does_not_exist_is_named(data, tmp_path, capsys):
    assert "nowhere: no such file or folder" in failure(capsys, data, tmp_path / "nowhere")


def test_an_output_folder_that_is_a_file_is_named(data, hyps, capsys):
    assert str(data / "text") in failure(capsys, data, hyps, "--out", data / "text")
