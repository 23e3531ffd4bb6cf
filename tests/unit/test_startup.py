"""What starting a command may cost: packages that take long to import wait until they are
needed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from asrtool import bin as commands
from tests import toy_experiment

ROOT = Path(__file__).parents[2]
SLOW = (
    *(
        "numba",
        "torchaudio",
        "transformers",
        "peft",
        "matplotlib",
        "sentencepiece",
        "onnx",
        "sympy",
        "torch._dynamo",
    ),
    *("torch.distributed.fsdp", "torch.distributed.tensor", "torch.utils.tensorboard", "wandb"),
)
WITHOUT_TORCH = ("compare", "doctor", "download", "plot", "results", "score")


def loaded_after(steps: list[str]) -> list[list[str]]:
    """Which of SLOW and torch a new process holds after each of these lines of Python."""
    code = "import contextlib, json, sys\n"
    for step in steps:
        code += f"with contextlib.redirect_stdout(sys.stderr):\n    {step}\n"
        code += (
            f"print(json.dumps([name for name in {('torch', *SLOW)!r} if name in sys.modules]))\n"
        )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_no_command_imports_what_it_may_never_need():
    others = {file.stem for file in Path(commands.__file__).parent.glob("[a-z]*.py")} - {
        *WITHOUT_TORCH,
        "torchrun",
    }
    names = [*WITHOUT_TORCH, *sorted(others)]
    found = loaded_after([f"import asrtool.bin.{name}" for name in names])
    expected = [[] if name in WITHOUT_TORCH else ["torch"] for name in names]
    assert dict(zip(names, found, strict=True)) == dict(zip(names, expected, strict=True))


def test_neither_does_the_work_of_stage_1_and_of_a_greedy_recognition_with_times(toy, tmp_path):
    audio, out = toy / "data" / "test" / "audio" / "u000.wav", tmp_path / "features"
    stage = [
        "--config",
        str(toy / "train.yaml"),
        "--data",
        str(toy / "data" / "test"),
        "--out",
        str(out),
    ]
    steps = {
        "extract_features": stage,
        "recognize": [str(toy / "exp"), str(audio), "--format", "json", "--out", str(tmp_path)],
    }
    code = [
        f"from asrtool.bin import {name}; {name}.main({arguments!r})"
        for name, arguments in steps.items()
    ]
    assert loaded_after(code) == [["torch"]] * 2
    assert (out / "feats.scp").exists()
    words = json.loads((tmp_path / "u000.json").read_text())["words"]
    assert words and set("".join(word["text"] for word in words)) <= set(toy_experiment.TONES)


def test_the_shape_of_a_decoder_with_embeddings_does_not_import_the_compiler():
    arguments = [str(ROOT / "egs/librispeech/conf/train_conformer.yaml"), "--vocab-size", "30"]
    steps = [f"from asrtool.bin import parameters; parameters.main({arguments!r})"]
    assert loaded_after(steps) == [["torch"]]
