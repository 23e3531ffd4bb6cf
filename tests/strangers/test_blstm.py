"""An encoder, a head and a loss from outside the package, through every command that meets them.

Each command is a process of its own: what it is not told to import, it does not have.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from asrtool.bin import make_vocab
from tests import toy_experiment, warm_python

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(__file__).parent / "package"
FROM = ("--import-from", str(PACKAGE))
OWN = ("--import", "my_package", *FROM)
FINISHED = "finished.json"  # a training's last file


def start(command: str, *options: object, cwd: Path = ROOT) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [warm_python.python(), "-m", f"asrtool.bin.{command}", *map(str, options)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(command: str, *options: object, status: int = 0, cwd: Path = ROOT) -> str:
    """Standard output of a command that succeeds, standard error of one that is to fail."""
    process = start(command, *options, cwd=cwd)
    out, err = process.communicate()
    assert process.returncode == status, err
    return err if status else out


def training(root: Path, exp: str) -> list[object]:
    return [
        *("--config", PACKAGE / "train_blstm.yaml", "--exp", root / exp, "--vocab", root / "vocab"),
        *("--train", root / "dump" / "train", "--valid", root / "dump" / "dev", *FROM),
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("blstm")
    for seed, (name, count) in enumerate((("train", 80), ("dev", 12), ("test", 12)), start=1):
        toy_experiment.write_set(root / "data" / name, count, seed)
        folders = ("--data", root / "data" / name, "--out", root / "dump" / name)
        more = ["--training"] if name == "train" else []
        run("extract_features", "--config", PACKAGE / "train_blstm.yaml", *FROM, *folders, *more)
    text = root / "data" / "train" / "text"
    make_vocab.main(["--text", str(text), "--unit", "char", "--out", str(root / "vocab")])
    (root / "decode.yaml").write_text(toy_experiment.DECODE)
    run("train", *training(root, "exp"))
    return root


def heard(folder: Path) -> list[tuple[str, str, float]]:
    lines = (folder / "hyps.jsonl").read_text().splitlines()
    return [(line["id"], line["text"], line["score"]) for line in map(json.loads, lines)]


def test_they_keep_the_contracts():
    command = ["-m", "pytest", "-c", "tests/pytest.ini", "--rootdir", ".", "-q", "tests/contracts"]
    done = subprocess.run(
        [warm_python.python(), *command, *OWN, "-k", "blstm or bag"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout


def test_configs_are_checked_and_counted_with_them(trained):
    config = PACKAGE / "train_blstm.yaml"
    assert run("check_config", "--train-config", config, *FROM).startswith("fbank20")
    table = run("parameters", config, "--vocab-size", "7", *FROM)
    assert "encoder" in table and "heads" in table
    said = run("check_config", "--train-config", config, status=1)
    assert "no module 'my_package' to import" in said and "Traceback" not in said


def test_training_learns_with_both_losses(trained):
    records = [json.loads(line) for line in (trained / "exp" / "log.jsonl").open()]
    last = [record for record in records if record["event"] == "valid"][-1]
    assert last["valid/cer"] < 20 and last["valid/bag"] < 3


def test_an_interrupted_training_goes_on_to_the_same_weights(trained):
    short = ("--set", "trainer.epochs=4")
    often = ("--set", "trainer.epochs=4 trainer.save_every_seconds=0")  # which changes no weight
    run("train", *training(trained, "whole"), *short)
    process = start("train", *training(trained, "cut"), *often)
    deadline = time.monotonic() + 120
    while not list((trained / "cut" / "train").glob("step-*")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert not (trained / "cut" / "train" / FINISHED).exists()
    run("train", *training(trained, "cut"), *short)
    assert (trained / "cut" / "train" / FINISHED).exists()
    (whole,) = (trained / "whole" / "train").glob("average-*.safetensors")
    first, second = load_file(whole), load_file(trained / "cut" / "train" / whole.name)
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def test_a_packed_one_recognises_the_same_and_brings_no_code(trained):
    config = ("--config", trained / "decode.yaml")
    folder = trained / "exp" / "decode"
    run("decode", "--exp", trained / "exp", *config, "--data", trained / "dump" / "test",
        "--out", folder, *OWN)  # fmt: skip
    lines = heard(folder)
    references = dict(
        line.split(" ", 1) for line in (trained / "data/test/text").read_text().splitlines()
    )
    right = sum(text == references[key] for key, text, _ in lines)
    assert len(lines) == 12 and right >= 6
    packed = trained / "packed"
    run("pack", trained / "exp", *config, "--out", packed, *OWN)
    assert not list(packed.rglob("*.py"))
    audio = trained / "data" / "test" / "audio" / f"{lines[0][0]}.wav"
    assert run("recognize", packed, audio, *OWN).split() == lines[0][1].split()
    said = run("recognize", packed, audio, status=1)
    assert "needs my_package, which a model does not import by itself" in said
    assert "--import my_package" in said and "Traceback" not in said


def test_a_module_in_a_packed_folder_is_not_run(trained):
    packed = trained / "tampered"
    run("pack", trained / "exp", "--config", trained / "decode.yaml", "--out", packed, *OWN)
    (packed / "my_package.py").write_text("raise SystemExit('the model ran its code')\n")
    audio = trained / "data" / "test" / "audio" / "u000.wav"
    for more in ((), ("--import", "my_package")):
        said = run("recognize", ".", audio, *more, status=1, cwd=packed)
        assert "my_package" in said and "ran its code" not in said
    assert run("recognize", ".", audio, *OWN, cwd=packed)
