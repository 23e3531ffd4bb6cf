"""torchaudio beside any torch: its Python part works, what is missing says so, and other libraries
can import it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from asrtool import torchaudio_adapter as adapter

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, path: Path | None = None) -> str:
    """The output of `code` in a fresh interpreter, with `path` before everything else on
    sys.path.
    """
    start = f"import sys; sys.path[:0] = {[str(p) for p in (path, ROOT) if p]!r}\n"
    done = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_resampling_works_and_keeps_a_tone() -> None:
    seconds = torch.arange(1600) / 16000
    tone = torch.sin(2 * torch.pi * 440 * seconds)
    half = adapter.require().functional.resample(tone, 16000, 8000)
    expected = torch.sin(2 * torch.pi * 440 * torch.arange(800) / 8000)
    inner = slice(50, -50)  # the filter sees the edge within 50 samples
    assert (half[inner] - expected[inner]).abs().max() < 1e-2  # ripple of the 6-tap windowed sinc


def test_torchaudio_can_be_imported_by_name_afterwards() -> None:
    import torchaudio

    assert torchaudio is adapter.load().module


def test_what_needs_the_extension_works_or_says_that_it_is_missing() -> None:
    frames = torch.log_softmax(torch.eye(4)[None, :, :] * 5, dim=-1)
    targets = torch.tensor([[1, 2]], dtype=torch.int32)
    align = adapter.require().functional.forced_align
    if adapter.extension_available():
        assert align(frames, targets)[0].tolist() == [[0, 1, 2, 0]]
    else:
        # the adapter says so of one that does not load, torchaudio itself of one that is not there
        says = "needs its extension" if adapter.load().problem else "Requires alignment extension"
        with pytest.raises(RuntimeError, match=f"forced_align {says}"):
            align(frames, targets)


@pytest.mark.hf
def test_transformers_and_peft_import_their_audio_models_after_the_adapter() -> None:
    code = (
        "from asrtool import torchaudio_adapter; torchaudio_adapter.load()\n"
        "import peft; from transformers import HubertModel; print(HubertModel.__name__)"
    )
    assert run(code) == "HubertModel"


def test_where_torchaudio_is_broken_the_adapter_still_imports_and_says_what_to_install(
    tmp_path: Path,
) -> None:
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text(
        "raise OSError('libcudart.so.99: no such file')\n"
    )
    code = (
        "from asrtool import torchaudio_adapter as a\n"
        "print(a.load().module, a.extension_available())\n"
        "try: a.require()\n"
        "except ImportError as error: print(error)\n"
    )
    first, second = run(code, tmp_path).splitlines()
    assert first == "None False"
    assert "libcudart.so.99" in second
    assert "pip install --no-deps torchaudio" in second


def test_importing_asrtool_imports_neither_torch_nor_torchaudio() -> None:
    assert (
        run(
            "import asrtool; print([m for m in ('torch', 'torchaudio', 'numpy') if m in "
            "sys.modules])"
        )
        == "[]"
    )
