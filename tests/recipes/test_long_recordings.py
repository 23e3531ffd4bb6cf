"""Concatenated utterances are segmented, and recognised as well as single ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import asrtool
from asrtool.data import audio
from asrtool.data.kaldi import datadir
from asrtool.experiment import load_decode
from asrtool.recognizer import Recognizer
from asrtool.score import count_errors

RECIPE, RATE = Path("egs/librispeech"), 16000


def load(tree: Path, exp: str) -> Recognizer:
    return asrtool.load(
        tree / RECIPE / exp, decode=load_decode(tree / RECIPE / "conf/decode_mini.yaml")
    )


def recording(
    folder: Path, count: int, noise: float, pause: float = 0.8
) -> tuple[list[np.ndarray], np.ndarray, str]:
    """The first `count` utterances of a set apart, in one recording with `pause` seconds of noise
    of so much amplitude behind each, and what is said in all of them."""
    rng = np.random.default_rng(0)
    utterances = datadir.read(folder)[:count]
    sounds = [audio.read(utterance.audio, rate=RATE) for utterance in utterances]
    parts = [
        part for sound in sounds for part in (sound, rng.normal(0, noise, round(pause * RATE)))
    ]
    return (
        sounds,
        np.concatenate(parts).astype(np.float32),
        " ".join(utterance.text for utterance in utterances),
    )


def word_error_rate(text: str, said: str) -> float:
    counts = count_errors([text.split()], [said.split()])
    return counts.errors / counts.reference


def one_by_one_and_together(
    recognizer: Recognizer, folder: Path, count: int, noise: float
) -> tuple[float, float]:
    """Word error rates of the utterances one by one, and in one recording."""
    sounds, samples, text = recording(folder, count, noise)
    apart = " ".join(found.text for found in recognizer.recognize(sounds))
    return word_error_rate(text, apart), word_error_rate(text, recognizer.recognize(samples).text)


@pytest.mark.parametrize("noise", [1e-4, 1e-3, 3e-3])
def test_each_utterance_of_a_recording_has_a_window_of_its_own(tiny, noise):
    """No error rates: what is known by heart is known only as it was heard, to the sample."""
    recognizer = load(tiny, "exp/mini_tiny/train_mini")
    sounds, samples, _ = recording(tiny / RECIPE / "data/mini_tiny/train", 40, noise)
    found = recognizer.recognize(samples)
    ends = np.cumsum([len(sound) / RATE + 0.8 for sound in sounds])
    owners = [
        np.searchsorted(ends, (start + 0.3, end - 0.3)).tolist() for start, end in found.spans
    ]
    assert all(end - start <= recognizer.windows.max_seconds for start, end in found.spans)
    assert {first for first, last in owners if first == last} == set(range(40))
    assert len(owners) <= 44


@pytest.mark.slow
@pytest.mark.parametrize("noise", [1e-4, 1e-3, 3e-3])
def test_a_hundred_utterances_of_the_miniature_in_one_recording(trained, noise):
    recognizer = load(trained, "exp/mini/train_mini")
    apart, together = one_by_one_and_together(
        recognizer, trained / RECIPE / "data/mini/test_clean", 100, noise
    )
    assert together <= apart + 0.015
