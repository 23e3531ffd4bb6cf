"""`asrtool results` and `asrtool compare` over a folder of experiments."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml

from asrtool.bin import compare, decode, results, score
from asrtool.errors import UserError
from asrtool.score.results_page import PUBLISHED, difference

BASE = {
    "seed": 3,
    "optim": {"lr": 0.002},
    "data": {"workers": 2},
    "model": {"type": "hybrid", "encoder": {"type": "conformer", "dim": 4}},
}
NEW = {
    "seed": 3,
    "optim": {"lr": 0.001},
    "data": {"workers": 0},
    "model": {"type": "hybrid", "encoder": {"type": "zipformer", "width": 9}},
}
FRAMES = 20  # of 2 seconds; 50 would be all


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """egs/librispeech with two experiments and a miniature, all scored."""
    root = tmp_path / "egs" / "librispeech"
    data = root / "data" / "test_clean"
    data.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"s{row % 9}-{row:02}" for row in range(45)]
    texts = {name: " ".join(rng.choice(list("abcde"), 6)) for name in sorted(names)}
    write_table(data / "text", texts)
    write_table(data / "utt2spk", {name: name[:2] for name in texts})
    write_table(data / "utt2accent", {name: "north" if name < "s5" else "south" for name in texts})
    monkeypatch.chdir(root)
    for day, (place, config, rate) in enumerate(
        (("base", BASE, 0.3), ("new", NEW, 0.1), ("mini/toy", BASE, 0.5)), 1
    ):
        exp = root / "exp" / place
        out = exp / "decode_x" / "test_clean"
        out.mkdir(parents=True)
        (exp / "config.yaml").write_text(
            yaml.safe_dump({"phases": {"train": config}}, sort_keys=False)
        )
        command = f"2026-01-0{day} 10:00:00 {tmp_path}/asrtool/bin/train.py --exp exp/{place}\n"
        (exp / "command.txt").write_text(command * 2)
        commits = ["ab" * 20, "cd" * 20 + " and uncommitted changes"]
        (exp / "git.txt").write_text(
            "".join(f"2026-01-01 10:00:00 {commit}\n" for commit in commits)
        )
        (exp / ".stage.json").write_text(json.dumps({"sources": {"train": "0123456789abcdef"}}))
        (exp / "train").mkdir()
        facts = {"parameters": 1234567, "trained": 1234567, "frame_shift": 0.04}
        (exp / "train" / "model.json").write_text(json.dumps(facts))
        found = {
            name: " ".join("x" if rng.random() < rate else word for word in text.split())
            for name, text in texts.items()
        }
        write_table(out / "text", found)
        lines = [
            {"id": n, "text": t, "seconds": 2.0, "elapsed": 0.1, "frames": FRAMES}
            for n, t in found.items()
        ]
        (out / "hyps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        score.main(["data/test_clean", str(out.relative_to(root)), "--group-by", "accent"])
    return root


def write_table(path, values):
    path.write_text("".join(f"{key} {value}\n" for key, value in values.items()))


def printed(capsys, command, *arguments) -> str:
    capsys.readouterr()
    command.main(list(arguments))
    return capsys.readouterr().out


def failure(command, *arguments) -> str:
    with pytest.raises(UserError) as stopped:
        command.main([str(argument) for argument in arguments])
    return str(stopped.value)


def test_results_has_a_row_for_each_experiment_and_set_with_what_made_it(recipe, capsys):
    text = printed(capsys, results)
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    new = next(row for row in rows if row[0] == "new")
    stored = json.loads((recipe / "exp/new/decode_x/test_clean/score.json").read_text())
    assert new[1:3] == ["decode_x", f"{100 * stored['total']['rate']:.2f}"]
    assert new[8:] == ["1.23 M", "10.0", "60 %", "0.050", "3", "abababab, cdcdcdcd+", "01234567"]
    low, high = stored["intervals"]["speaker"]["rate"]
    assert new[4] == f"{100 * low:.2f} to {100 * high:.2f}"
    assert [row[0] for row in rows if "decode_x" in row] == [
        "new",
        "base (baseline)",
        "toy (baseline)",
    ]
    assert (
        "baseline's values in brackets: optim.lr: 0.001 (0.002); model.encoder: zipformer "
        "(conformer)\n"
    ) in text
    assert text.count("* command: `python -m asrtool.bin.train --exp exp/new`") == 1
    assert str(recipe) not in text


def test_published_numbers_stand_beside_ours_and_say_so_but_not_beside_a_miniature(recipe, capsys):
    full, mini = printed(capsys, results).split("## exp/mini")
    assert "| *published:* SLAM-ASR" in full
    assert "SLAM-LLM repository" in full
    assert "*published:*" not in mini
    assert "*published:*" in printed(capsys, results, "exp/mini", "--recipe", "librispeech")


def test_every_published_number_has_a_source():
    known = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    rows = [row for rows in known.values() for row in rows]
    assert len(rows) > 10
    for row in rows:
        assert row["source"] and row["system"] and isinstance(row["checked"], bool)
        assert row["metric"] in ("wer", "cer")
        assert 0 < row.get("rate", row.get("reduction")) < 100


def test_a_score_that_cannot_be_trusted_is_left_out_and_named(recipe, capsys):
    with open(recipe / "exp/new/decode_x/test_clean/text", "a") as file:
        file.write("s9-99 more\n")
    (recipe / "exp/base/decode_x/test_clean/result.txt").write_text("")
    (recipe / "exp/mini/toy/decode_x/test_clean/hyps.jsonl").write_text("{")
    (recipe / "exp/stray").mkdir()
    (recipe / "exp/stray/score.json").write_text("{}")
    assert "no result in it; " in failure(results)
    assert "exp/mini/toy/decode_x/test_clean/hyps.jsonl:1: not JSON" in failure(results)
    again = recipe / "exp/again/decode_x/test_clean"
    again.mkdir(parents=True)
    (recipe / "exp/again/config.yaml").write_text(yaml.safe_dump({"phases": {"train": BASE}}))
    (again / "text").write_text((recipe / "data/test_clean/text").read_text())
    score.main(["data/test_clean", str(again)])
    text = printed(capsys, results)
    assert "| new |" not in text and "| base" not in text and "| again (baseline) |" in text
    assert "exp/new/decode_x/test_clean/text has changed since" in text
    assert "the result.txt beside it is missing or belongs to another score.json" in text
    assert "exp/stray/score.json: it is not inside an experiment" in text


def test_results_can_be_written_read_by_programs_and_have_another_baseline(recipe, capsys):
    assert printed(capsys, results, "--out", "RESULTS.md") == "3 results in RESULTS.md\n"
    assert (recipe / "RESULTS.md").read_text() == printed(capsys, results)
    rows = json.loads(printed(capsys, results, "--format", "json"))
    assert sorted((row["experiment"], row["set"]) for row in rows) == [
        (name, "test_clean") for name in ("base", "new", "toy")
    ]
    assert rows[0]["real_time_factor"] == pytest.approx(0.05)
    assert "new (baseline)" in printed(capsys, results, "--baseline", "new")
    assert "no experiment 'nwe' with results; there are: base, new, toy" in failure(
        results, "--baseline", "nwe"
    )
    assert "nowhere: no such folder" in failure(results, "nowhere")


def test_a_config_of_phases_is_compared_phase_by_phase():
    class One:
        def __init__(self, phases):
            self.config = {"phases": phases}

    found = difference(One({"a": BASE}), One({"a": NEW, "b": BASE}), ("data.workers",))
    assert found == [
        "a.optim.lr: 0.001 (0.002)",
        "a.model.encoder: zipformer (conformer)",
        "b: set (absent)",
    ]


def test_compare_pairs_the_sets_of_two_experiments_as_they_were_scored(recipe, capsys):
    text = printed(capsys, compare, "exp/base", "exp/new", "--out", "cmp")
    assert text == (recipe / "cmp/compare.txt").read_text()
    assert (
        "== test_clean\nWER, normalizer none, alignment levenshtein, 270 tokens in 45 utterances "
        "of 9"
    ) in text
    assert "B is better at the 5% level" in text
    stored = json.loads((recipe / "cmp/compare.json").read_text())["sets"]["test_clean"]
    rates = [
        json.loads((recipe / f"exp/{tag}/decode_x/test_clean/score.json").read_text())
        for tag in ("base", "new")
    ]
    assert stored["numbers"]["rate"]["first"] == pytest.approx(rates[0]["total"]["rate"])
    assert stored["groups"]["accent"]["north"]["second"] == pytest.approx(
        rates[1]["groups"]["accent"]["north"]["rate"]
    )


def test_compare_works_from_another_folder(recipe, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "B is better" in printed(
        capsys, compare, str(recipe / "exp/base"), str(recipe / "exp/new")
    )


def test_compare_takes_bare_files_with_a_reference(recipe, capsys):
    files = [f"exp/{tag}/decode_x/test_clean/text" for tag in ("base", "new")]
    text = printed(
        capsys,
        compare,
        *files,
        "--reference",
        "data/test_clean",
        "--metric",
        "cer",
        "--group-by",
        "length",
    )
    assert "== test_clean\nCER, normalizer none" in text
    assert "\nlength" in text


def test_compare_refuses_what_cannot_be_compared(recipe, capsys):
    score.main(["data/test_clean", "exp/new/decode_x/test_clean", "--metric", "cer"])
    assert failure(compare, "exp/base", "exp/new") == (
        "test_clean: metric is wer in A and cer in B; score both in the same way"
    )
    (recipe / "data/test_clean/text").write_text("s0-00 other\n")
    assert "data/test_clean/text has changed since" in failure(compare, "exp/base", "exp/base")
    assert "no set in common: exp/base has test_clean, data has no score.json" in failure(
        compare, "exp/base", "data"
    )
    with pytest.raises(SystemExit):
        compare.main(["exp/base", "exp/new", "--metric", "cer"])
    assert "--metric needs --reference" in capsys.readouterr().err


def test_what_training_and_decoding_write_is_found(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(shutil.copytree(toy, tmp_path / "recipe"))
    decode.main(
        [
            "--exp",
            "exp",
            "--config",
            "decode.yaml",
            "--data",
            "dump/test",
            "--out",
            "exp/decode/test",
        ]
    )
    score.main(["data/test", "exp/decode/test"])
    row = json.loads(printed(capsys, results, ".", "--format", "json"))[0]
    assert (row["experiment"], row["decode"], row["set"]) == ("exp", "decode", "test")
    assert row["parameters"] == row["trained_parameters"] > 0
    assert row["real_time_factor"] > 0
    assert row["frame_reduction"] < 0.05  # all frames of the stem are kept, but for the edges
    assert row["frames_per_second"] == pytest.approx(25, rel=0.05)
    assert len(row["training_data"]) == 16
    assert row["commits"] and row["commands"] and row["seeds"]
