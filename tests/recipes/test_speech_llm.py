"""The recipe of the speech LLM: script, noises, studies; (slow) all stages at the smallest size."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.data import audio, augment
from asrtool.data.config import AugmentConfig, RoomConfig
from asrtool.data.kaldi import datadir
from asrtool.experiment import load_decode, load_phases, split_overrides
from asrtool.types import Utterance
from tests import warm_python
from tests.recipes.conftest import run_in
from tests.recipes.workspace import NOTHING, Workspace

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "egs" / "librispeech"
Script = Callable[..., subprocess.CompletedProcess[str]]


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Script:
    """Runs the script with options."""
    work = Workspace(tmp_path_factory.mktemp("recipe"))
    environment = {**work.environment, "ONLY_REAL": NOTHING}

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(work.recipe / "run_llm.sh"), *options],
            env=environment,
            capture_output=True,
            text=True,
            cwd="/",
            timeout=120,
            stdin=subprocess.DEVNULL,
        )

    return run


def test_the_miniature_trains_its_parts_before_they_are_connected(script):
    done = script("--mini", "true", "--dry-run", "true", "--stage", "2", "--train-args", "seed=3")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    order = ["train_llm_mini.yaml", "export_llm", "--unit hf", "train_speech_llm_mini_encoder"]
    order += ["export_ctc_head", "train_speech_llm_mini.yaml"]
    places = [
        next(i for i, line in enumerate(lines) if part in line and "check_config" not in line)
        for part in order
    ]
    assert places == sorted(places)
    trained = lines[places[-1]]
    assert "model.llm.weights=exp/mini/llm" in trained and "seed=3" in trained
    assert sum("noise_eval" in line for line in lines) == 2  # decoded, and its insertions counted


def test_a_real_run_takes_the_tokenizer_of_the_language_model(script):
    done = script("--corpus", str(RECIPE), "--dry-run", "true", "--stage", "2", "--stop-stage", "2")
    assert "--unit hf --tokenizer lmsys/vicuna-7b-v1.5 --case lower" in done.stdout, done.stderr
    assert "train_llm_mini" not in done.stdout


def test_every_command_gets_the_modules_of_the_user(tmp_path, script):
    options = ("--imports", "mine.a b", "--import-from", str(tmp_path))
    done = script("--mini", "true", "--dry-run", "true", *options)
    assert done.returncode == 0, done.stderr
    reads = {"train": False, "extract_features": False, "decode": True, "export_llm": True}
    reads["export_ctc_head"] = True
    counts = dict.fromkeys(reads, 0)
    for line in done.stdout.splitlines():
        name = next((name for name in reads if f"asrtool.bin.{name} " in line), None)
        if name is not None:
            counts[name] += 1
            assert f"--import-from {tmp_path}" in line, line
            assert ("--import mine.a --import b" in line) == reads[name], line
    assert counts["train"] == 3 and counts["export_llm"] == 1 and counts["decode"] > 0
    assert counts["export_ctc_head"] == 1


def test_rooms_are_a_set_that_training_takes(tmp_path, script):
    (tmp_path / "rirs").mkdir()
    command = ("--mini", "true", "--dry-run", "true", "--train-args", "seed=3")
    plain = script(*command).stdout
    assert "room_train" not in plain and "--rooms" not in plain
    lines = script(*command, "--rooms", str(tmp_path / "rirs")).stdout.splitlines()
    assert any("prepare_noise.py" in line and f"--rooms {tmp_path}/rirs" in line for line in lines)
    (trained,) = (
        line for line in lines if "bin.train" in line and "train_speech_llm_mini.yaml" in line
    )
    given = shlex.split(trained)
    changes = split_overrides([given[given.index("--set") + 1]])
    assert "data.augment.room={set: room_train}" in changes and "seed=3" in changes
    config = RECIPE / "conf" / "speech_llm" / "train_speech_llm_mini.yaml"
    for phase in load_phases(config, changes).values():
        assert "room_train" in phase.data.augment.sets
    assert any("dump/mini" in line and line.endswith("/room_train") for line in lines)


# -- noises ----------------------------------------------------------------


def prepare(*options: str) -> subprocess.CompletedProcess:
    command = [warm_python.python(), str(RECIPE / "local" / "prepare_noise.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_without_a_corpus_there_are_synthesised_noises(tmp_path):
    noise = load(RECIPE / "local" / "prepare_noise.py")
    for kind in noise.KINDS:
        sound = noise.sound(kind, np.random.default_rng(0))
        assert (
            sound.dtype == np.float32
            and np.isfinite(sound).all()
            and 2 <= len(sound) / noise.RATE <= 10
        )
        assert 0 < np.abs(sound).max() <= 1
    found = noise.synthesised("noise_eval", tmp_path / "noise_eval")
    assert len(found.utterances) == 24 and all(row.text == "" for row in found.utterances)


def write_sound(path: Path, samples: int = 1600) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(samples, 0.1), 16000)


def write_musan(musan: Path) -> None:
    """30 files of each kind; of the music, every third has vocals and one no line."""
    for kind in ("noise", "music", "speech"):
        for number in range(30):
            write_sound(musan / kind / "free" / f"{kind}-free-{number:04}.wav")
    lines = [
        f"music-free-{number:04} folk,pop {'N' if number % 3 else 'Y'} Someone_{number}\n"
        for number in range(29)
    ]
    (musan / "music" / "free" / "ANNOTATIONS").write_text("".join(lines))


def write_rirs(rirs: Path) -> None:
    """Rooms of three sizes with the same names, real ones, and point-source noises."""
    for size in ("small", "medium", "large"):
        folder = rirs / "simulated_rirs" / f"{size}room"
        lines = []
        for number in range(4):
            write_sound(folder / "Room001" / f"Room001-{number:05}.wav")
            place = f"RIRS_NOISES/simulated_rirs/{size}room/Room001/Room001-{number:05}.wav"
            lines.append(f"--rir-id {size}-{number} --room-id {size}-Room001 {place}\n")
        (folder / "rir_list").write_text("".join(lines[:3]) if size == "small" else "".join(lines))
    write_sound(rirs / "real_rirs_isotropic_noises" / "a_rir_1.wav")
    for number in range(25, 60):
        write_sound(rirs / "pointsource_noises" / f"noise-free-{number:04}.wav")


def ids(folder: Path) -> set[str]:
    return {row.id for row in datadir.read(folder)}


def test_musan_is_split_by_its_files_and_voices_left_out(tmp_path):
    write_musan(tmp_path / "musan")
    done = prepare("--corpus", str(tmp_path / "musan"), "--out", str(tmp_path / "data"))
    assert done.returncode == 0, done.stderr
    train, held = (datadir.read(tmp_path / "data" / name) for name in ("noise_train", "noise_eval"))
    names = {row.id for row in train} | {row.id for row in held}
    music = {f"music-free-{number:04}" for number in range(29) if number % 3}
    assert names == {f"noise-free-{number:04}" for number in range(30)} | music
    assert len(train) + len(held) == len(names) and 0 < len(held) < 15
    assert not any(row.text for row in [*train, *held])
    skipped = "".join(path.read_text() for path in sorted((tmp_path / "data").rglob("skipped.txt")))
    assert "music-free-0003: has vocals according to ANNOTATIONS" in skipped
    assert "music-free-0029: may have vocals, since it is not in ANNOTATIONS" in skipped
    assert skipped.count("music-free") == 11


def test_rooms_and_point_source_noises_join_those_of_musan(tmp_path):
    write_musan(tmp_path / "musan")
    write_rirs(tmp_path / "RIRS_NOISES")
    places = ("--corpus", str(tmp_path), "--rooms", str(tmp_path), "--out", str(tmp_path / "data"))
    done = prepare(*places)
    assert done.returncode == 0, done.stderr
    train, held = (ids(tmp_path / "data" / name) for name in ("noise_train", "noise_eval"))
    assert {f"noise-free-{number:04}" for number in range(60)} <= train | held
    assert not train & held and len(train) + len(held) == 60 + 19
    rows = datadir.read(tmp_path / "data" / "room_train")
    small = {f"smallroom-Room001-{number:05}" for number in range(3)}
    medium = {f"mediumroom-Room001-{number:05}" for number in range(4)}
    assert {row.id for row in rows} == small | medium
    rooms = augment.WaveformAugment(
        AugmentConfig(room=RoomConfig(set="room_train", share=1.0)), {"room_train": rows}, 16000, 0
    )
    assert np.isfinite(rooms(np.ones(800, np.float32), 0, "u")).all()
    alone = tmp_path / "alone"
    assert prepare(*places[2:4], "--out", str(alone)).returncode == 0
    assert ids(alone / "noise_train") | ids(alone / "noise_eval") == {
        f"noise-free-{number:04}" for number in range(25, 60)
    }
    assert ids(alone / "noise_eval") <= held  # a noise is held out in every corpus that has it


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--corpus", "contains neither noise/ and music/ of MUSAN"),
        ("--rooms", "pointsource_noises"),
    ],
)
def test_a_folder_without_noises_is_one_sentence(tmp_path, option, message):
    done = prepare(option, str(tmp_path), "--out", str(tmp_path / "data"))
    assert done.returncode and message in done.stderr.splitlines()[-1]


def test_noise_levels_are_labels_of_a_set(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("test", 2), ("noise", 1)):
        rows = []
        (tmp_path / name).mkdir()
        for number in range(count):
            path = tmp_path / name / f"{name}{number}.wav"
            soundfile.write(path, 0.1 * rng.normal(size=8000), 16000, subtype="FLOAT")
            text = f"said {number}"
            rows.append(
                Utterance(id=path.stem, audio=str(path), duration=0.5, text=text, speaker=path.stem)
            )
        datadir.write(tmp_path / name, rows)
    tool, out = load(RECIPE / "local" / "noisy_set.py"), tmp_path / "out"
    out.mkdir()
    tool.write(tmp_path / "test", tmp_path / "noise", [20.0, 0.0], out, out)
    found = datadir.read(out)
    assert [(row.id, row.labels["snr"], row.text) for row in found[:2]] == [
        ("test0-snr0", "0", "said 0"),
        ("test0-snr20", "20", "said 0"),
    ]
    plain = audio.read(str(tmp_path / "test" / "test0.wav"), 0.0, None, 16000)
    for row in found[:2]:
        added = audio.read(row.audio, 0.0, None, 16000) - plain
        measured = 10 * np.log10(augment.power(plain) / augment.power(added))
        assert measured == pytest.approx(float(row.labels["snr"]), abs=0.1)


# -- studies ---------------------------------------------------------------


@pytest.mark.parametrize("mini", ["true", "false"])
def test_every_variant_of_every_study_is_a_config_that_can_be_read(mini):
    study = load(RECIPE / "studies" / "speech_llm.py")
    config = study.CONFIGS[mini]
    phases = list(load_phases(config))
    for name, variants in study.studies(config).items():
        if mini == "true" and name in ("encoders", "llm_sizes"):  # published weights
            continue
        for variant, (training, decoding) in variants.items():
            assert list(load_phases(config, split_overrides([training]))) == phases, (name, variant)
            settings = load_decode(
                RECIPE / "conf" / "speech_llm" / "decode_llm_mini.yaml", split_overrides([decoding])
            )
            assert settings.phase in (None, *phases)


@pytest.mark.parametrize("mini", ["true", "false"])
def test_two_systems_differ_in_augmentation_alone(mini):
    study = load(RECIPE / "studies" / "speech_llm.py")
    config = study.CONFIGS[mini]
    variants = study.studies(config)["insertions"]
    with_, without = (
        load_phases(config, split_overrides([variants[f"{name}_augmentation"][0]]))
        for name in ("with", "without")
    )
    for phase, one in with_.items():
        other = without[phase]
        assert one.data.augment.noise and one.data.augment.babble
        bare = dataclasses.replace(one.data.augment, speeds=(1.0,), noise=None, babble=None)
        assert other.data.augment == bare
        data = dataclasses.replace(one.data, augment=bare)
        assert other == dataclasses.replace(one, data=data)
    last = list(with_)[-1]
    assert with_[last].data.augment.non_speech == without[last].data.augment.non_speech is not None
    nothing = load_phases(config, split_overrides([variants["nothing"][0]]))[last].data.augment
    noise = load_phases(config, split_overrides([variants["noise"][0]]))[last].data.augment
    assert nothing.sets == () and noise.sets == ("noise_train",) and noise.speeds == (1.0,)


def test_studies_of_a_corpus_take_the_sizes_of_its_config(tmp_path):
    study = load(RECIPE / "studies" / "speech_llm.py")
    own = tmp_path / "mine.yaml"
    own.write_text(f"extends: {study.CONFIGS['false']}\nmodel: {{adapter: {{hidden_dim: 1024}}}}\n")
    configs = {own: 1024, study.CONFIGS["false"]: 2048, study.CONFIGS["true"]: 384}
    for config, width in configs.items():
        adapters = study.studies(config)["adapters"]
        assert f"hidden_dim: {width}" in adapters["conv1d_mlp_5"][0]
    options = ("llm_sizes", "--train-config", str(own), "--dry-run")
    command = [warm_python.python(), study.__file__, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert len(lines) == len(study.LANGUAGE_MODELS)
    for line, name in zip(lines, study.LANGUAGE_MODELS, strict=True):
        assert f"--train-config {own}" in line and f"--tokenizer {name}" in line


def test_another_language_model_brings_its_tokenizer(script):
    options = ("--corpus", str(RECIPE), "--dry-run", "true", "--stage", "2", "--stop-stage", "3")
    done = script(*options, "--llm", "Qwen/Qwen2.5-0.5B")
    assert "--unit hf --tokenizer Qwen/Qwen2.5-0.5B" in done.stdout, done.stderr
    (trained,) = (line for line in done.stdout.splitlines() if "bin.train" in line)
    given = shlex.split(trained)
    changes = split_overrides([given[given.index("--set") + 1]])
    assert changes == ["model.llm.weights=Qwen/Qwen2.5-0.5B", "model.llm.shape=null"]
    refused = script("--mini", "true", "--dry-run", "true", "--llm", "a")
    assert refused.returncode and "--llm needs a corpus" in refused.stderr


def test_a_study_prints_its_commands_and_makes_its_table(tmp_path):
    study = load(RECIPE / "studies" / "speech_llm.py")
    command = [
        warm_python.python(),
        study.__file__,
        "ngram",
        "--mini",
        "true",
        "--dry-run",
        "--",
        "--ranks",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert len(lines) == 5 and all(
        "--tag study_base_s0" in line and line.endswith("--ranks 1") for line in lines
    )
    assert len({line.split("--decode-tag ")[1].split()[0] for line in lines}) == 5
    out = tmp_path / "a" / "decode" / "test"
    out.mkdir(parents=True)
    counts = {"substitutions": 3, "deletions": 2, "insertions": 1, "insertions_per_minute": 0.5}
    found = {"groups": {"all": {**counts, "hallucinations": {"length": ["u1"], "silence": []}}}}
    (out / "insertions.json").write_text(json.dumps(found))
    (out / "score.json").write_text(json.dumps({"total": {"rate": 0.123}, "interval": [0.1, 0.15]}))
    text = study.table("ngram", study.results(tmp_path / "a" / "decode", "ngram2, seed 0"))
    assert "| ngram2, seed 0 | test | 12.30 | 10.00-15.00 | 3 / 2 / 1 | 0.50 | 1 |" in text


def test_a_study_takes_the_phases_that_a_variant_does_not_change(tmp_path):
    study = load(RECIPE / "studies" / "speech_llm.py")
    phases = ["adapter", "lora", "matching", "non_speech"]
    assert study.first_changed(phases, "") == 4
    assert study.first_changed(phases, "phases.non_speech.seed=1 phases.lora.seed=1") == 1
    assert study.first_changed(phases, "phases.lora.seed=1 model.llm.shape=null") == 0
    base = tmp_path / "study_base_s0"
    base.mkdir()
    config = (RECIPE / "conf" / "speech_llm" / "train_speech_llm_mini.yaml").read_text()
    (base / "config.yaml").write_text(config)
    (base / "log.jsonl").write_text(
        "".join(json.dumps({"phase": phase}) + "\n" for phase in phases)
    )
    for phase in phases[:2]:  # the others were not finished
        (base / phase).mkdir()
        (base / phase / "finished.json").write_text('{"path": "average-1.safetensors"}')
        (base / phase / "average-1.safetensors").write_bytes(b"weights")
    study.share(tmp_path, "study_base_s0", "other", "phases.non_speech.seed=1")
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == [
        "adapter",
        "log.jsonl",
        "lora",
    ]
    assert [json.loads(line)["phase"] for line in (tmp_path / "other/log.jsonl").open()] == [
        "adapter",
        "lora",
    ]
    study.share(tmp_path, "study_base_s0", "all_new", "losses.matching.weight=0")
    assert not (tmp_path / "all_new").exists()


@pytest.mark.slow
def test_the_tiniest_miniature_from_speech_to_the_insertion_report(tree):
    pytest.importorskip(
        "espeakng_loader", reason="the miniature needs espeak-ng: pip install -e '.[mini]'"
    )
    options = (
        "--mini true --mini-size tiny --ranks 1 --test-sets test_clean --train-args "
        "trainer.epochs=1"
    )
    run_in(tree, f"egs/librispeech/run_llm.sh {options} --noise-levels '20 0'")
    out = (
        tree
        / "egs"
        / "librispeech"
        / "exp"
        / "mini_tiny"
        / "train_speech_llm_mini"
        / "decode_llm_mini"
    )
    report = json.loads((out / "noise_eval" / "insertions.json").read_text())["groups"]["all"]
    assert report["utterances"] == 24 and report["reference"] == 0
    assert (out / "test_clean" / "score.json").exists()
    levels = json.loads((out / "test_noisy" / "insertions.json").read_text())["groups"]
    assert set(levels) == {"all", "0", "20"}
