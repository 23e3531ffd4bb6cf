"""The studies on real speech: every system's commands name configs and sets that exist, rows are
kept once, and the table's numbers and intervals are right."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asrtool.experiment import load_decode, load_phases, split_overrides
from tests import warm_python
from tests.recipes.conftest import ROOT

STUDIES = ROOT / "egs" / "accents" / "studies"
RECIPE = STUDIES.parent
RUN = """#!/usr/bin/env bash
printf '%q ' "$@" >> "$CALLS"; echo >> "$CALLS"
python - "$@" << 'END'
import json
import sys
from pathlib import Path


def train_encoder(exp, given):
    from asrtool.data import tokenizers
    from asrtool.experiment import dump_phases, load_phases, split_overrides
    from asrtool.trainer import records

    phases = load_phases(Path(given["--train-config"]), split_overrides([given["--train-args"]]))
    (exp / "config.yaml").write_text(dump_phases(phases))
    (exp / "vocab").mkdir(exist_ok=True)
    tokenizers.train(["A B", "C"], "char", 0, exp / "vocab")  # whatever --unit says
    *_, (name, phase) = phases.items()
    (exp / name).mkdir(exist_ok=True)
    weights = exp / name / f"average-{phase.trainer.average}.safetensors"
    weights.write_bytes(b"weights")
    records.note(weights)
    records.point(exp / name, "finished", weights)


given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
tests = ("librispeech", "librispeech_other", "speechocean762", "commonvoice", "speaker")
for name in ("train", "dev", "test", *(f"test_{test}" for test in tests)):
    folder = Path("data", name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text").write_text("1-1 A B\\n2-1 C\\n")
    (folder / "wav.scp").write_text("1-1 a.wav\\n2-1 b.wav\\n")
    (folder / "utt2spk").write_text("1-1 1\\n2-1 2\\n")
    (folder / "utt2dur").write_text("1-1 1.0\\n2-1 2.0\\n")
    (folder / "utt2accent").write_text("1-1 us\\n2-1 wales\\n")
exp = Path("exp", given.get("--tag", "none"))
if given.get("--stop-stage") == "3":
    exp.mkdir(parents=True, exist_ok=True)
    if "pieces" in given["--tag"] and not (exp / "config.yaml").exists():
        train_encoder(exp, given)
    (exp / "log.jsonl").write_text('{"event": "valid", "time": 1.0, "valid/wer": 0.5}\\n')
if given.get("--stage") == "4":
    for name in given["--test-sets"].split():
        folder = exp / given["--decode-tag"] / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "text").write_text("1-1 A X\\n2-1 C\\n")
        line = json.dumps({"seconds": 2.0, "frames": 10, "elapsed": 0.5})
        (folder / "hyps.jsonl").write_text(f"{line}\\n{line}\\n")
END
"""
NOISE = """
import sys
from pathlib import Path

for name in ("noise_train", "noise_eval"):
    folder = Path(sys.argv[sys.argv.index("--out") + 1], name)
    folder.mkdir(exist_ok=True)
    (folder / "text").write_text("1-1\\n2-1\\n")
"""
DEGRADE = """
import shutil
import sys

for name in ("snr20", "snr10", "snr0", "room"):
    shutil.copytree(sys.argv[2], f"{sys.argv[2]}_{name}", dirs_exist_ok=True)
"""


@pytest.fixture
def modules(monkeypatch):
    """The scripts of the studies, as they import each other."""
    monkeypatch.syspath_prepend(str(STUDIES))
    names = ("systems", "rows", "real_speech", "make_lists")
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def recipe(tmp_path):
    """A copy in which run.sh only writes its commands and made-up texts."""
    recipe = tmp_path / "egs" / "accents"
    shutil.copytree(STUDIES, recipe / "studies")
    (recipe / "conf").symlink_to(RECIPE / "conf")
    other = recipe.parent / "librispeech"
    (other / "local").mkdir(parents=True)
    (other / "local/prepare_noise.py").write_text(NOISE)
    degrade = recipe.parent / "aishell1/studies/noisy_sets.py"
    degrade.parent.mkdir(parents=True)
    degrade.write_text(DEGRADE)
    (other / "conf").symlink_to(ROOT / "egs/librispeech/conf")
    digits = recipe.parent / "fsdd"
    digits.mkdir()
    (digits / "conf").symlink_to(ROOT / "egs/fsdd/conf")
    for one in (recipe, digits):
        (one / "run.sh").write_text(RUN)
        (one / "run.sh").chmod(0o755)
    for path in (RECIPE / "lists").rglob("*.txt"):
        copy = recipe / path.relative_to(RECIPE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text("1-1\n2-1\n")
    return recipe


def run(recipe: Path, *given: str) -> subprocess.CompletedProcess:
    given += ("--noise", str(recipe / "noises")) if given[0] == "speech_llm" else ()
    return run_as_given(recipe, *given)


def run_as_given(recipe: Path, *given: str) -> subprocess.CompletedProcess:
    corpora = recipe / "corpora"
    corpora.mkdir(exist_ok=True)
    return subprocess.run(
        [warm_python.python(), "studies/real_speech.py", *given, "--corpus", str(corpora)],
        cwd=recipe,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CALLS": str(recipe / "calls")},
        capture_output=True,
        text=True,
    )


def calls(recipe: Path) -> list[dict[str, str]]:
    lines = [shlex.split(line) for line in (recipe / "calls").read_text().splitlines()]
    return [dict(zip(line[::2], line[1::2], strict=True)) for line in lines]


def test_every_command_of_a_study_names_what_exists(recipe, modules):
    text = recipe / "text.txt"
    text.write_text("A B\n")
    for name, study in modules["systems"].STUDIES.items():
        given = ("--systems", *study.systems, "--seeds", "7", "--lm-text", str(text))
        (recipe / "calls").write_text("")
        done = run(recipe, name, *given)
        assert done.returncode == 0, done.stderr
        kept = {path.stem for path in (recipe.parents[1] / "docs/results" / name).glob("*.json")}
        assert kept == {f"{one}-s7" for one in study.systems}
        assert_configs_exist(ROOT / "egs" / study.recipe, calls(recipe))


def assert_configs_exist(folder: Path, commands: list[dict[str, str]]) -> None:
    for call in commands:
        assert Path(call["--corpus"]).name in ("corpora", folder.name)
        if call.get("--stop-stage") == "3":
            phases = load_phases(
                folder / call["--train-config"], split_overrides([call["--train-args"]])
            )
            assert {phase.seed for phase in phases.values()} == {7}
        if call.get("--stage") == "4":
            changes = split_overrides([call.get("--decode-args", "")])
            settings = load_decode(folder / call["--decode-config"], changes)
            assert settings.phase in (None, *phases)  # of the training before


def test_a_row_says_what_was_run_and_is_measured_once(recipe):
    assert run(recipe, "keyframes", "--systems", "axe").returncode == 0
    path = recipe.parents[1] / "docs/results/keyframes/axe-s0.json"
    row = json.loads(path.read_text())
    assert row["decodings"]["aligned"]["test_librispeech"] == {
        "1-1": [1, 1, 0, 0],
        "2-1": [1, 0, 0, 0],
    }
    assert row["training"]["validations"] == [{"event": "valid", "valid/wer": 0.5}]
    assert all("--corpus <corpora>" in command for command in row["commands"])
    assert str(recipe) not in path.read_text()
    before = len(calls(recipe))
    done = run(recipe, "keyframes", "--systems", "axe")
    assert "is there" in done.stdout and len(calls(recipe)) == before + 1  # stage 0 alone
    table = run(recipe, "keyframes", "--table").stdout
    assert "| key frames, AXE | aligned | 1 | 33.33 | 33.33 | 33.33 |" in table
    # 20 frames, "A B" and "C"
    rates, frames = " | ".join(["33.33"] * 5), " | ".join(["5.00"] * 5)
    assert f"| key frames, AXE | {rates} | {frames} |" in table


def decodings(systems):
    return [way for system in systems.values() for way in system.decodings.values()]


def test_the_small_budget_has_one_system_in_each_study(modules):
    for study in modules["systems"].STUDIES.values():
        systems = study.systems
        assert sum(system.small for system in systems.values()) == 1
        assert all(one.encoder is None or one.encoder in systems for one in systems.values())
        assert all(set(way.sets or ()) <= set(study.sets) for way in decodings(systems))
        assert all(one.against is None or one.against in systems for one in systems.values())
        assert all(system.primary in system.decodings for system in systems.values())


def test_systems_that_need_a_gpu_are_a_budget_of_their_own(recipe, modules):
    systems = modules["systems"].STUDIES["echotune"].systems
    large = [name for name, system in systems.items() if system.large]
    assert large and not any(systems[name].small for name in large)
    assert run(recipe, "echotune", "--budget", "large").returncode == 0
    kept = {path.stem for path in (recipe.parents[1] / "docs/results/echotune").glob("*.json")}
    assert kept == {f"{name}-s0" for name in large}


def test_accents_of_few_clips_are_one_class(recipe):
    assert run(recipe, "accents", "--systems", "conformer").returncode == 0
    train = recipe / "data/study_accents/utt2accent"
    assert train.read_text() == "1-1 us\n2-1 other\n"
    row = json.loads((recipe.parents[1] / "docs/results/accents/conformer-s0.json").read_text())
    assert row["labels"]["1-1"] == "us"


def test_systems_that_are_trained_alike_share_the_training(modules):
    systems = modules["systems"]
    names = {
        (study, name): systems.trained_as(study, name)
        for study, one in systems.STUDIES.items()
        for name in one.systems
    }
    shared = {key for key, name in names.items() if name != "_".join(key)}
    assert shared == {("speech_llm", "pieces")}
    assert names["speech_llm", "pieces"] == "keyframes_pieces"


def test_a_speech_llm_takes_the_encoder_of_its_study_and_counts_words_on_noise(recipe):
    done = run(recipe, "speech_llm", "--systems", "pieces", "lora", "aligned")
    assert done.returncode == 0, done.stderr
    trained = [call for call in calls(recipe) if call.get("--stop-stage") == "3"]
    # the encoder is also a system of the study of key frames
    tags = ["keyframes_pieces_s0", "speech_llm_lora_s0", "speech_llm_aligned_s0"]
    assert list(dict.fromkeys(call["--tag"] for call in trained)) == tags
    for call in trained:
        changes = split_overrides([call["--train-args"]])
        phases = load_phases(RECIPE / call["--train-config"], changes)
        assert call["--extra-sets"] == "noise_train noise_eval"
        if call["--unit"] == "hf":
            assert call["--tokenizer"] == "google/gemma-3-270m"
            path = "exp/keyframes_pieces_s0/keyframe/average-1.safetensors"
            assert {phase.model.encoder_weights for phase in phases.values()} == {path}
            assert {phase.model.encoder_vocab_size for phase in phases.values()} == {7}
            assert (call["--train-set"], "noise_train") == tuple(
                part.set for part in phases["non_speech"].data.sets
            )
    row = json.loads((recipe.parents[1] / "docs/results/speech_llm/lora-s0.json").read_text())
    assert row["decodings"]["before"]["noise_eval"] == {"1-1": [0, 0, 0, 2], "2-1": [0, 0, 0, 1]}
    measured = row["measured"]["greedy"]["sets"]
    assert measured["study_dev"] == {"seconds": 4.0, "frames": 20, "elapsed": 1.0}
    # 3 words on 4 seconds of noise; 20 frames of 4 seconds of speech
    table = run(recipe, "speech_llm", "--table").stdout
    (line,) = (
        line
        for line in table.splitlines()
        if line.startswith("| adapter first") and "greedy" in line
    )
    assert "| 45.0 | 5.0 |" in line and "| lora | +0.00 |" in line
    assert "| unlimited | 1 |  |  | 33.33 |" in table


def test_a_system_that_begins_with_the_weights_of_another_trains_that_first(recipe):
    done = run(recipe, "echotune", "--systems", "plain", "adaptive64", "--seeds", "3")
    assert done.returncode == 0, done.stderr
    trained = [call for call in calls(recipe) if call.get("--stop-stage") == "3"]
    tags = [call["--tag"] for call in trained]
    assert list(dict.fromkeys(tags)) == [
        f"echotune_{name}_s3" for name in ("reader", "plain", "adaptive64")
    ]
    for call in trained:
        is_reader = "reader" in call["--tag"]
        assert call.get("--init-from") == (None if is_reader else "exp/echotune_reader_s3")
    assert all("--init-from" in call for call in calls(recipe) if call.get("--stage") == "4")


def test_a_study_with_noise_needs_noises(recipe):
    done = run_as_given(recipe, "speech_llm")
    assert done.returncode == 2 and "--noise: the study speech_llm counts" in done.stderr


def test_an_unknown_system_is_named(recipe):
    done = run(recipe, "keyframes", "--systems", "zipformer")
    assert done.returncode == 2 and "--systems zipformer: the study keyframes has" in done.stderr


def row(seed: int, errors: dict[str, tuple[int, int]]) -> dict:
    found = {key: [words - wrong, wrong, 0, 0] for key, (wrong, words) in errors.items()}
    return {"seed": seed, "decodings": {"greedy": {"test": found}}}


def test_a_contrast_pairs_seeds_and_speakers(modules):
    rows = modules["rows"]
    rng = np.random.default_rng(1)
    words = {f"{speaker}-{n}": 20 for speaker in range(30) for n in range(2)}
    hard = {key: int(rng.integers(2, 12)) for key in words}
    # the second system makes one error less in every utterance, whoever speaks
    first = {s: row(s, {k: (hard[k] + s, 20) for k in words}) for s in range(4)}
    second = {s: row(s, {k: (hard[k] + s - 1, 20) for k in words}) for s in range(4)}
    found = rows.contrast(first, second, ("greedy", "greedy"), ["test"])
    assert found.difference == pytest.approx(-5.0)
    assert (found.low, found.high) == (pytest.approx(-5.0), pytest.approx(-5.0))
    assert found.units == "speakers" and found.seeds == 4
    assert found.verdict(None) == "confirmed"
    assert rows.contrast(second, first, ("greedy", "greedy"), ["test"]).verdict(-1.0) == "denied"


def test_an_interval_covers_seeds_and_speakers(modules):
    """Against the deviation of the mean that both kinds of chance give."""
    rows = modules["rows"]
    rng = np.random.default_rng(2)
    first, second = {}, {}
    by_speaker = rng.normal(0, 1.0, 40)
    for seed in range(5):
        shift = rng.normal(0, 0.5)
        first[seed] = row(seed, {f"{n}-0": (200, 1000) for n in range(40)})
        second[seed] = row(
            seed, {f"{n}-0": (200 + round(10 * (by_speaker[n] + shift)), 1000) for n in range(40)}
        )
    found = rows.contrast(first, second, ("greedy", "greedy"), ["test"])
    expected = 1.96 * np.hypot(1.0 / 40**0.5, 0.5 / 5**0.5)
    assert expected * 0.6 < (found.high - found.low) / 2 < expected * 2.5
    alone = rows.contrast({0: first[0]}, {0: second[0]}, ("greedy", "greedy"), ["test"])
    assert (alone.high - alone.low) / 2 == pytest.approx(1.96 / 40**0.5, rel=0.3)


def test_fewer_than_ten_speakers_draw_utterances(modules):
    rows = modules["rows"]
    few = {0: row(0, {f"{speaker}-{n}": (3, 10) for speaker in range(9) for n in range(4)})}
    assert rows.errors_of([few[0]], "greedy", ["test"]).units == "utterances"
    assert rows.contrast(few, few, ("greedy", "greedy"), ["test"]).units == "utterances"


def test_the_mean_over_accents_gives_each_the_same_weight(modules):
    rows = modules["rows"]
    many = {f"{speaker}-0": (1, 10) for speaker in range(100)}  # 10 %
    few = {f"cv-{clip}": (5, 10) for clip in range(20)}  # 50 %
    rare = {f"cv-rare{clip}": (10, 10) for clip in range(19)}  # too few to count
    one = row(0, {**many, **few, **rare})
    names = {"mandarin": many, "us": few, "wales": rare}
    one["labels"] = {key: name for name, keys in names.items() for key in keys}
    found = rows.errors_of([one], "greedy", ["test"], macro=True)
    assert found.rate == pytest.approx(30.0)
    assert found.units == "speakers and utterances"
    # one error more in every utterance of one accent: half of its 10 points
    more = row(0, {**many, **{key: (6, 10) for key in few}, **rare})
    more["labels"] = one["labels"]
    both = rows.contrast({0: one}, {0: more}, ("greedy", "greedy"), ["test"], macro=True)
    assert (both.difference, both.low, both.high) == pytest.approx((5.0, 5.0, 5.0))
    study = replace(modules["systems"].STUDIES["accents"], tests=("test",))
    lines = rows.accent_table({**dict.fromkeys(study.systems, {}), "conformer": {0: one}}, study)
    assert lines.splitlines()[0] == "| system | mandarin, 100 clips | us, 20 clips |"
    assert lines.splitlines()[2] == "| Conformer | 10.00 | 50.00 |"


def test_errors_by_speaking_rate_and_length(modules):
    rows = modules["rows"]
    study = replace(modules["systems"].STUDIES["echotune"], tests=("test",))
    # 6 utterances of 1 to 6 seconds; the faster, the more errors; the longer, the fewer words
    wrong = {f"{n}-0": (n, 60 // n) for n in range(1, 7)}
    found = row(0, wrong) | {
        "durations": {f"{n}-0": float(n) for n in range(1, 7)},
        "measured": {"greedy": {"cpu_seconds": 7}},
    }
    other = found | {"measured": {"greedy": {"cpu_seconds": 10}}}
    measured = {**dict.fromkeys(study.systems, {}), "plain": {0: found, 1: other}}
    heads, _, line = rows.speed_table(measured, study).splitlines()
    assert heads == (
        "| system | 1.7 to 2.4 words a second | 3.8 to 6.7 words a second | 15.0 to 60.0 words a "
        "second | 1.0 to 2.0 seconds | 3.0 to 4.0 seconds | 5.0 to 6.0 seconds | decoding, CPU "
        "seconds |"
    )
    # (6 + 5) / (10 + 12), (4 + 3) / (15 + 20), (2 + 1) / (30 + 60)
    rates = ["50.00", "20.00", "3.33"]
    assert line == f"| whisper-tiny.en, CTC | {' | '.join(rates + rates[::-1])} | 8 |"


def test_the_lists_are_nested_balanced_and_without_the_held_out(modules):
    lists = {path.stem: path.read_text().split() for path in (RECIPE / "lists/studies").iterdir()}
    train, hour, minutes = lists["train"], lists["train_1h"], lists["train_10min"]
    assert set(minutes) < set(hour) < set(train) and not set(train) & set(lists["dev_speakers"])
    assert set(train) | set(lists["dev_speakers"]) == set(
        (RECIPE / "lists/librispeech/train.txt").read_text().split()
    )
    count = {name: Counter(key.partition("-")[0] for key in ids) for name, ids in lists.items()}
    for name in ("train_1h", "train_10min"):
        most = max(count[name].values())
        for speaker, available in count["train"].items():
            assert count[name][speaker] in (most, most - 1, available)
    assert len(lists["dev_speakers"]) == 20
    held_out = {key.partition("-")[0] for key in lists["dev_speakers"]}
    assert not held_out & {key.partition("-")[0] for key in train}
