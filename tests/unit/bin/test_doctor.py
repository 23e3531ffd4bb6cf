"""`asrtool doctor`: the core works here, and what is taken away is named with the command that
mends it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from asrtool import versions
from asrtool.bin import doctor

ROOT = Path(__file__).parents[3]


def lines(text: str) -> dict[str, str]:
    """State and detail by subject."""
    rows = [
        line.split(None, 1)
        for line in text.splitlines()
        if line.split()[:1] in (["ok"], ["--"], ["BAD"])
    ]
    return {rest[:16].strip(): f"{state} {rest[16:].strip()}" for state, rest in rows}


def test_the_core_works_in_the_environment_of_the_tests(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.main([])
    found = lines(capsys.readouterr().out)
    needed = (
        "python",
        "torch",
        "numpy",
        "kaldiio",
        "sentencepiece",
        "jiwer",
        "safetensors",
        "torchaudio",
        "soundfile",
    )
    assert {name: found[name][:2] for name in needed} == dict.fromkeys(needed, "ok")
    assert "flac" in found["audio formats"]
    assert {
        "CUDA",
        "bf16 on the CPU",
        "cores",
        "its extension",
        "espeakng-loader",
        "disk space",
    } <= set(found)


def test_a_missing_core_package_is_named_with_its_remedy_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # what Python itself does to say "cannot be imported"
    monkeypatch.setitem(sys.modules, "kaldiio", None)
    with pytest.raises(SystemExit) as ended:
        doctor.main([])
    text = capsys.readouterr().out
    assert ended.value.code == 1
    assert lines(text)["kaldiio"].startswith("BAD")
    assert "to mend: tools/setup.sh" in text
    assert "The core is unusable: kaldiio." in text


def test_a_missing_optional_package_does_no_harm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    doctor.main([])
    text = capsys.readouterr().out
    assert lines(text)["matplotlib"].startswith("--")
    assert 'to mend: pip install -e ".[plot]"' in text


def test_a_package_whose_binary_is_broken_is_reported_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "brokenpackage.py").write_text(
        "raise OSError('libmissing.so: cannot open shared object file')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = doctor.load("brokenpackage", doctor.NOTE, "mend it")
    assert found.detail == "does not load: libmissing.so: cannot open shared object file"


@pytest.mark.parametrize(
    ("version", "state", "says"),
    [
        ("2.10.1", doctor.BAD, "2.11 or newer is needed"),
        ("2.13.0+cpu", doctor.OK, "2.13.0+cpu, CPU build"),
        ("2.11.0", doctor.NOTE, "not tested, unlike 2.13"),
        ("2.99.0a0+git12", doctor.NOTE, "not tested, unlike 2.13"),
    ],
)
def test_a_torch_that_was_not_tested_is_named_and_one_that_is_too_old_refused(
    version, state, says
) -> None:
    found = doctor.judge_torch(version, "CPU build")
    assert found.state == state and says in found.detail


def test_the_page_and_the_package_name_the_same_versions_of_torch() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    oldest, tested = versions.dotted(versions.OLDEST), versions.dotted(*versions.TESTED)
    assert f"torch {oldest} or newer, tested with torch {tested}" in readme
    assert f"torchaudio=={versions.TORCHAUDIO}\n" in (ROOT / "tools/constraints.txt").read_text(
        encoding="utf-8"
    )
    assert versions.release(versions.TORCH) == versions.TESTED[-1]


@pytest.mark.hf
def test_what_is_printed_for_an_extension_that_does_not_load_mends_it(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    source = Path(importlib.util.find_spec("torchaudio").origin).parent
    shutil.copytree(
        source, tmp_path / "torchaudio", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    (tmp_path / "torchaudio/lib").mkdir(exist_ok=True)
    (tmp_path / "torchaudio/lib/_torchaudio.abi3.so").write_text("made for another torch")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}

    def python(code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )

    assert "OSError" in python("import torchaudio").stderr
    said = python(
        "from asrtool.bin import doctor; print(*(one.mend for one in doctor.check_torchaudio()), "
        "sep='')"
    )
    assert said.stdout.startswith("rm ")
    subprocess.run(["bash", "-c", said.stdout], check=True)
    assert python("from transformers import Wav2Vec2Model; import torchaudio").stderr == ""


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("a temporary file cannot be made in a file, whoever the user is")
    writing = [finding for finding in doctor.check_disk(place) if finding.subject == "writing"]
    assert [finding.state for finding in writing] == [doctor.BAD]
