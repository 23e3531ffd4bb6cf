"""`asrtool doctor`: the core works here, and what is taken away is named with the command that mends it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from asrtool.bin import doctor


def lines(text: str) -> dict[str, str]:
    """State and detail by subject."""
    rows = [line.split(None, 1) for line in text.splitlines() if line.split()[:1] in (["ok"], ["--"], ["BAD"])]
    return {rest[:16].strip(): f"{state} {rest[16:].strip()}" for state, rest in rows}


def test_the_core_works_in_the_environment_of_the_tests(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.main([])
    found = lines(capsys.readouterr().out)
    needed = ("python", "torch", "numpy", "kaldiio", "sentencepiece", "jiwer", "safetensors", "torchaudio", "soundfile")
    assert {name: found[name][:2] for name in needed} == dict.fromkeys(needed, "ok")
    assert "flac" in found["audio formats"]
    assert {"CUDA", "bf16 on the CPU", "cores", "its extension", "espeakng-loader", "disk space"} <= set(found)


def test_a_missing_core_package_is_named_with_its_remedy_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "kaldiio", None)  # what Python itself does to say "cannot be imported"
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
    (tmp_path / "brokenpackage.py").write_text("raise OSError('libmissing.so: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = doctor.load("brokenpackage", doctor.NOTE, "mend it")
    assert found.detail == "does not load: libmissing.so: cannot open shared object file"


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("a temporary file cannot be made in a file, whoever the user is")
    writing = [finding for finding in doctor.check_disk(place) if finding.subject == "writing"]
    assert [finding.state for finding in writing] == [doctor.BAD]
