"""Silero's network finds speech where the energy tells nothing; without the package the sentence
says what to do.
"""

from __future__ import annotations

import builtins
import importlib.util

import numpy as np
import pytest
import torch

from asrtool.data import audio
from asrtool.errors import UserError
from asrtool.longform import vad
from tests.recipes.preparation import real

installed = pytest.mark.skipif(
    importlib.util.find_spec("silero_vad") is None,
    reason="the network is an extra: pip install -e '.[vad]'",
)


@pytest.fixture(autouse=True)
def fresh():
    vad._network.cache_clear()
    yield
    vad._network.cache_clear()


@installed
def test_speech_is_found_between_noises_that_are_louder():
    folder = real("librispeech_mini")
    path = (folder / "test" / "wav.scp").read_text().split("\n")[0].split()[1]
    said = audio.read(str(folder / path), rate=vad.RATE)[: 3 * vad.RATE]
    noise = (
        np.random.default_rng(0).normal(0, np.abs(said).max() / 3, 3 * vad.RATE).astype(np.float32)
    )
    threads = torch.get_num_threads()
    found = vad.speech(np.concatenate([noise, said, noise]), pause=0.3)
    assert found and 2.9 < found[0][0] < 4 and 5 < found[-1][1] < 6.2
    assert torch.get_num_threads() == threads


@installed
def test_silence_holds_no_speech():
    assert vad.speech(np.zeros(5 * vad.RATE, np.float32), pause=0.3) == []


def test_without_the_package_the_extra_is_named(monkeypatch):
    plain = builtins.__import__

    def without(name, *arguments, **more):
        if name.startswith("silero_vad"):
            raise ModuleNotFoundError("No module named 'silero_vad'")
        return plain(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        UserError, match=r"windows.detector: silero needs .* pip install -e " r"'.\[vad\]'"
    ):
        vad.speech(np.zeros(vad.RATE, np.float32), pause=0.3)
