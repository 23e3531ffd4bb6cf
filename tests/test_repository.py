"""Laws of the repository: imports go down, files, functions and folders stay small, no file names a
path of one machine.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import LONGEST

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "asrtool"
FILE_LINES = 600
FOLDER_FILES = 20
FUNCTION_LINES = 60
# split in any of three ways it took 6 to 120 % more time: a call counts references of its arrays
KERNELS = {"asrtool/searchers/ctc/kernel.py advance"}

# module -> what it may import from asrtool. docs/architecture.md explains the table.
LAYERS = {
    "errors": set(),  # which every module may import
    "types": {"types"},
    "registry": set(),
    "log": set(),
    "hub": {"hub", "log"},
    "imports": set(),
    "page": set(),
    "system": {"system", "log"},
    "distributed": {"system"},
    "versions": set(),
    "torchaudio_adapter": {"versions"},
    "tuning": {"registry", "torchaudio_adapter", "system"},
    "compiled": {"log"},
    "nn": {"nn"},
    "work": {"data", "distributed", "system", "log", "types"},
    "config": {"registry"},
    "lm": {"lm"},
    "align": {"align", "types"},
    "longform": {"longform", "align", "registry"},
    "data": {"data", "types", "registry", "distributed", "torchaudio_adapter", "system", "log"},
    "downsamplers": {"downsamplers", "types", "registry", "nn"},
    "encoders": {
        "encoders",
        "types",
        "registry",
        "nn",
        "downsamplers",
        "torchaudio_adapter",
        "tuning",
    },
    "decoders": {"decoders", "types", "registry", "nn", "compiled"},
    "heads": {"heads", "types", "registry", "decoders", "nn"},
    "losses": {"losses", "types", "registry"},
    "models": {
        "models",
        "types",
        "registry",
        "system",
        "log",
        "nn",
        "encoders",
        "downsamplers",
        "decoders",
        "heads",
        "torchaudio_adapter",
        "tuning",
    },
    "searchers": {"searchers", "types", "registry", "compiled"},
    "score": {"score", "system", "types", "log", "compiled"},
    "plots": {
        "plots",
        "system",
        "data",
        "experiment",
        "imports",
        "log",
        "model_folder",
        "nn",
        "recognizer",
        "searchers",
        "types",
    },
    "report": {"report", "score", "data", "types", "log", "system"},
    "trainer": {"trainer", "types", "registry", "system", "log", "distributed"},
    "experiment": {
        "config",
        "imports",
        "registry",
        "system",
        "data",
        "longform",
        "models",
        "losses",
        "searchers",
        "trainer",
    },
    "stored_frames": {"config", "data", "encoders", "experiment", "nn", "system", "types"},
    "model_folder": {
        "experiment",
        "data",
        "encoders",
        "heads",
        "hub",
        "imports",
        "log",
        "models",
        "nn",
        "searchers",
        "trainer",
    },
    "warm_start": {
        "config",
        "data",
        "experiment",
        "hub",
        "log",
        "model_folder",
        "models",
        "nn",
        "searchers",
        "trainer",
    },
    "training": {
        "config",
        "data",
        "distributed",
        "downsamplers",
        "encoders",
        "experiment",
        "heads",
        "log",
        "losses",
        "model_folder",
        "models",
        "nn",
        "score",
        "searchers",
        "stored_frames",
        "system",
        "trainer",
        "types",
        "warm_start",
    },
    "recognition": {"align", "data", "experiment", "longform", "losses", "types"},
    "streaming": {
        "streaming",
        "align",
        "data",
        "encoders",
        "log",
        "model_folder",
        "recognition",
        "recognizer",
        "searchers",
        "types",
    },
    "serve": {
        "serve",
        "align",
        "data",
        "experiment",
        "log",
        "page",
        "recognition",
        "recognizer",
        "searchers",
        "streaming",
    },
    "export": {
        "export",
        "data",
        "downsamplers",
        "encoders",
        "heads",
        "log",
        "model_folder",
        "nn",
        "page",
        "recognizer",
        "score",
        "searchers",
        "streaming",
        "types",
    },
    "recognizer": {
        "experiment",
        "heads",
        "model_folder",
        "align",
        "longform",
        "recognition",
        "data",
        "models",
        "searchers",
        "stored_frames",
        "trainer",
        "types",
        "config",
        "log",
    },
}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """First names below `asrtool` that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "asrtool":
            modules = [f"asrtool.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module]
        names |= {module.split(".")[1] for module in modules if module.startswith("asrtool.")}
    return names


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    name = layer(path)
    if name in ("bin", "__main__", "__init__"):
        return
    assert name in LAYERS, (
        f"{path}: give the module '{name}' a row in LAYERS and in docs/architecture.md"
    )
    assert imported(path) <= LAYERS[name] | {"errors"}


def tracked() -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.split("\n")
    return [
        path
        for path in (ROOT / name for name in names if name)
        if path.is_file() or path.is_symlink()
    ]


def test_no_source_file_is_longer_than_one_idea_takes():
    long = {
        str(path.relative_to(ROOT)): count
        for path in tracked()
        if path.suffix in (".py", ".sh")
        and (count := len(path.read_text(encoding="utf-8").splitlines())) > FILE_LINES
    }
    assert not long


def test_no_folder_of_the_package_has_too_many_files():
    counts = Counter(path.parent.relative_to(PACKAGE).as_posix() for path in sources())
    full = {name: count for name, count in counts.items() if count > FOLDER_FILES}
    assert full.keys() <= {"bin"}, full  # bin: one file a command


def test_no_function_is_longer_than_a_screen():
    long = {
        f"{path.relative_to(ROOT)} {node.name}": count
        for path in tracked()
        if path.suffix == ".py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (count := node.end_lineno - node.lineno + 1) > FUNCTION_LINES
    }
    assert long.keys() <= KERNELS, long


def test_no_file_names_a_path_of_one_machine():
    pattern = re.compile(r"(?<![\w.])/(?:work|root|home|Users|mnt|data)/\w")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked()
        if path.suffix in (".py", ".sh", ".md", ".yaml", ".txt", ".toml", ".ini")
        and path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found


def test_no_audio_or_weights_are_committed():
    binary = {
        ".wav",
        ".flac",
        ".opus",
        ".mp3",
        ".ogg",
        ".ark",
        ".safetensors",
        ".pt",
        ".pth",
        ".bin",
    }
    assert not [str(path.relative_to(ROOT)) for path in tracked() if path.suffix in binary]


def test_the_tests_that_are_begun_first_exist():
    assert not [name for name in LONGEST if not (ROOT / "tests" / name).exists()]


def test_there_are_no_symbolic_links():
    assert not [str(path.relative_to(ROOT)) for path in tracked() if path.is_symlink()]


def test_every_command_has_a_docstring_and_a_main():
    for path in sorted((PACKAGE / "bin").glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), path
        assert any(
            isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body
        ), path


def test_every_module_says_what_it_is():
    assert not [
        str(path.relative_to(ROOT))
        for path in sources()
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]
