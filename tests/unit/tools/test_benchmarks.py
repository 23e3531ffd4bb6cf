"""Benchmark scripts run, at sizes that are too small to measure speed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from asrtool.model_folder import Experiment
from tests import toy_llm
from tests.toy_corpus import write_corpus

ROOT = Path(__file__).parents[3]
DIGITS = ROOT / "egs" / "fsdd" / "conf"
STREAMING = DIGITS / "qifusion" / "train_qifusion.yaml"


def not_installed(vocabulary: int) -> None:
    """In the place of a peer, whose import would leave stubs in `sys.modules`."""
    raise ImportError("not used in tests")


SMALL_BEAM = {"DIM": 16, "FRAMES": 10, "TOKENS": 3, "BEAM": 3, "UTTERANCES": 2}
SMALL_BEAM |= {"espnet": not_installed}


def test_the_steps_of_a_recipe_are_timed(tmp_path) -> None:
    write_corpus(tmp_path)
    command = [
        *(sys.executable, ROOT / "tools/benchmarks/recipe_step.py", tmp_path / "config.yaml"),
        *(
            "--train",
            tmp_path / "train",
            "--vocab",
            tmp_path / "vocab",
            "--rounds",
            "1",
            "--warm",
            "0",
            "--steps",
            "1",
        ),
        *("--contender", f"auto@{ROOT}: trainer.precision=auto ONEDNN_PRIMITIVE_CACHE_CAPACITY=64"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "instructions for bf16: " in done.stdout
    assert "auto" in done.stdout.splitlines()[-1]
    assert "1.00 times the first" in done.stdout


@pytest.mark.parametrize(
    ("name", "constants", "options", "printed"),
    [
        ("llm_beam", {}, "--shape llama-tiny --tokens 2 --seconds 1 --beams 2 --rounds 1", "same"),
        ("joint_beam", SMALL_BEAM, "--rounds 1", "asrtool, 12"),
        ("joint_beam", SMALL_BEAM, "--rounds 1 --rescoring", "the same choice: True"),
        ("streaming", {"TOKENS": 20}, f"--seconds 2 --config {STREAMING}", "without a gap: True"),
        ("relative_attention", {}, "--seconds 1 --layers 1 --rounds 1", "1 s: rotary"),
        ("llm_head", {}, "--vocab-size 50 --dim 8 --rounds 1", "CPU s; the obvious way"),
        ("data_dir", {"SETTLED": 0}, "start --number 900 --ranks 2", "second start, rank 1: read"),
        (
            "config_step",
            {},
            f"{DIGITS}/train_conformer.yaml {DIGITS}/ebranchformer/train_ebranchformer.yaml "
            "--seconds 1 --utterances 2 --rounds 1",
            "times the first",
        ),
    ],
    ids=[
        "llm_beam",
        "joint_beam",
        "rescoring",
        "streaming",
        "relative_attention",
        "llm_head",
        "data_dir",
        "config_step",
    ],
)
def test_a_benchmark_runs_with_current_models(
    name, constants, options, printed, monkeypatch, capsys
) -> None:
    run_main(name, constants, options, monkeypatch)
    assert printed in capsys.readouterr().out


@pytest.mark.hf
def test_drafts_of_any_quality_have_the_tokens_of_greedy_search(
    tmp_path, monkeypatch, capsys
) -> None:
    weights = toy_llm.save_llm(tmp_path / "llm", context=1024)
    options = f"--weights {weights} --sentences 3 --batch 2 --wrong 0 0.5 --rounds 1"
    run_main("llm_draft", {}, options, monkeypatch)
    greedy, *drafted = capsys.readouterr().out.splitlines()[1:]
    assert greedy.endswith("the same tokens")
    assert len(drafted) == 4 and all(line.endswith("the same tokens") for line in drafted)
    assert all("  1.0 passes per batch, 100% of the draft" in line for line in drafted[:2])


def test_searches_with_a_trained_model_are_compared(toy, monkeypatch, capsys) -> None:
    options = f"--exp {toy / 'exp'} --data {toy / 'data' / 'test'} --utterances 2 "
    options += f"--config {toy / 'decode.yaml'} {toy / 'decode.yaml'} --set "
    run_main("searches", {}, options + "average=1 --set searcher.type=ctc_prefix_beam", monkeypatch)
    first, one, two = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"2 utterances, [1-9]\d* tokens", first)
    assert one.startswith("decode average=1 ") and two.startswith("decode searcher.type=")
    assert " 1.00 times as fast, the same tokens in 2" in one
    with pytest.raises(SystemExit):
        run_main("searches", {}, options + "average=1", monkeypatch)
    assert "1 --set for 2 --config" in capsys.readouterr().err


def test_the_loss_of_a_transducer_is_compared_with_all_logits(monkeypatch, capsys) -> None:
    options = "--utterances 2 --seconds 1 --vocabulary 12 --rounds 1"
    run_main("transducer_loss", {"memory": lambda name, sizes: 1.0}, options, monkeypatch)
    *both, ratio = capsys.readouterr().out.splitlines()
    assert len(both) == 2 and ratio.startswith("direct / asrtool: time ")


def run_main(name, constants, options, monkeypatch) -> None:
    """Run a script in this process, with other values for some of its constants."""
    path = ROOT / "tools" / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for constant, value in constants.items():
        monkeypatch.setattr(module, constant, value)
    monkeypatch.setattr(sys, "argv", [str(path), *options.split()])
    with torch.random.fork_rng(), torch.set_grad_enabled(torch.is_grad_enabled()):
        module.main()


@pytest.mark.slow
def test_start_up_is_timed_relative_to_import_torch(toy) -> None:
    audio = toy / "data" / "test" / "audio" / "u000.wav"
    stage = [
        "--data",
        toy / "data" / "test",
        "--config",
        toy / "train.yaml",
        "--decode",
        toy / "decode.yaml",
    ]
    command = [
        sys.executable,
        ROOT / "tools/benchmarks/startup.py",
        toy / "exp",
        audio,
        *stage,
        "--rounds",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    names = [line.split("  ")[0] for line in done.stdout.splitlines()]
    assert names == [
        "import torch",
        "recognize --help",
        "recognize",
        "recognize, decode",
        "extract_features",
    ]


@pytest.mark.slow
def test_live_audio_is_counted_and_bad_clients_change_no_text(toy_stream, tmp_path) -> None:
    pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install -e '.[serve]'")
    script = [sys.executable, ROOT / "tools/benchmarks/serve.py"]
    options = ["--model", toy_stream / "exp", "--data", toy_stream / "data/test/audio"]
    options += ["--core", "-1", "--chunk-ms", "160", "--seconds", "5"]
    for command in (
        [*script, "capacity", *options, "--first", "2", "--most", "2"],
        [*script, "cost", *options, "--first", "2", "--turns", "1"],
        [*script, "misbehave", *options, "--connections", "14", "--duration", "8"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        if "capacity" in command:
            assert re.search("    2 connections: median .* CPU s per s of audio", done.stdout)
        elif "cost" in command:
            assert re.search("asrtool: median [0-9.]+", done.stdout)
        else:
            assert "unchanged: True" in done.stdout and "CHANGED" not in done.stdout
    config = ROOT / "egs/kespeech/conf/u2pp/train_u2pp_mini.yaml"
    script = [sys.executable, ROOT / "tools/benchmarks/random_model.py"]
    made = [*script, config, tmp_path / "model", "--tokens", "50"]
    done = subprocess.run(made, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert Experiment.open(tmp_path / "model").tokenizer.size == 50


def test_what_a_gpu_shows_is_rehearsed_without_one(tmp_path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [ROOT / "tools/gpu.sh", out, "all", "cpu"], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (out / "figures.jsonl").read_text().splitlines()]
    values = {(line["part"], line["what"]): line["value"] for line in lines}
    assert values["tests", "tests failed"] == 0
    assert values["tests", "tests skipped"] > 0
    assert values["step", "step of 15 s of audio"] > 0
    assert values["step", "step of 15 s of audio: of the matrix peak"] > 0
    parts = [
        value for (part, what), value in values.items() if part == "profile" and "15 s" in what
    ]
    assert len(parts) == 5
    assert values["profile", "a step: waits for the device"] == 0
    assert values["peers", "step of asrtool, 1 layers, 2 x 40 frames"] > 0
    assert values["compile", "step of asrtool, compiled, 1 layers, 2 x 40 frames"] > 0
    assert values["kernels", "AXE, 8 frames, 6 tokens"] > 0
    assert values["kernels", "windows of 4, 20 frames"] > 0
    assert values["kernels", "encoding with key frames, 1 s of audio"] > 0
    assert values["loading", "loader with 1 processes gives"] > 0
    eaten = [line["value"] for line in lines if line["what"] == "step of 15 s of audio eats"]
    assert eaten == [values["step", "step of 15 s of audio: audio"]]
    assert values["search", "side by side, 15 s of audio"] > 0
    assert values["studies", "rows of the studies"] == 0
    assert "search   side by side, 15 s of audio" in done.stdout
    assert done.stdout.index("disk, MB") < done.stdout.index("== tests")


def test_a_machine_without_a_gpu_is_told(tmp_path) -> None:
    command = [ROOT / "tools/gpu.sh", tmp_path, "step"]
    without = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=without)
    assert done.returncode == 1
    assert "has no GPU" in done.stderr
