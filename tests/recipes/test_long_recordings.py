"""Utterances that follow each other in one recording are recognised as well as one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import asrtool
from asrtool.data import audio, datadir
from asrtool.experiment import load_decode
from asrtool.recognizer import Recognizer
from asrtool.score import count_errors

RECIPE = Path("egs/librispeech")


def load(tree: Path, exp: str) -> Recognizer:
    return asrtool.load(tree / RECIPE / exp, decode=load_decode(tree / RECIPE / "conf/decode_mini.yaml"))


def one_by_one_and_together(
    recognizer: Recognizer, folder: Path, count: int, noise: float, pause: float = 0.8
) -> tuple[float, float, int]:
    """Word error rates of the first `count` utterances of a set, one by one and in one recording with `pause` seconds
    of noise of so much amplitude between; and the number of windows."""
    rng = np.random.default_rng(0)
    utterances = datadir.read(folder)[:count]
    rate = recognizer.rate
    sounds = [audio.read(utterance.audio, rate=rate) for utterance in utterances]
    silences = [rng.normal(0, noise, round(pause * rate)).astype(np.float32) for _ in sounds]
    words = [word for utterance in utterances for word in utterance.text.split()]
    apart = [word for found in recognizer.recognize(sounds) for word in found.text.split()]
    found = recognizer.recognize(np.concatenate([part for pair in zip(sounds, silences, strict=True) for part in pair]))
    assert all(end - start <= recognizer.windows.max_seconds + 1e-6 for start, end in found.spans)
    rates = [count_errors([words], [said]) for said in (apart, found.text.split())]
    return *(one.errors / one.reference for one in rates), found.windows


def test_what_is_known_by_heart_is_known_in_one_recording_too(tiny):
    recognizer = load(tiny, "exp/mini_tiny/train_mini")
    folder = tiny / RECIPE / "data/mini_tiny/train"
    apart, together, windows = one_by_one_and_together(recognizer, folder, 40, noise=1e-3)
    assert 40 <= windows <= 44
    assert together <= apart + 0.015


@pytest.mark.slow
@pytest.mark.parametrize("noise", [1e-4, 1e-3, 3e-3])
def test_a_hundred_utterances_of_the_miniature_in_one_recording(trained, noise):
    folder = trained / RECIPE / "data/mini/test_clean"
    apart, together, _ = one_by_one_and_together(load(trained, "exp/mini/train_mini"), folder, 100, noise)
    assert together <= apart + 0.015
