"""Cutting and joining recordings: no word lost, none doubled, wherever the windows begin."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from asrtool.align import Timed, text_of, words_of
from asrtool.longform import Window, WindowsConfig, contour, join, plan

STEP = 0.01


def word(text: str, start: float, end: float, confidence: float = 0.9) -> Timed:
    """A word that is one token."""
    return Timed(token=zlib.crc32(text.encode()), text=f" {text}", start=start, end=end, confidence=confidence)


def texts(parts: list[Timed]) -> list[str]:
    return [one.text for one in words_of(parts)]


def speech(seconds: float, pauses: tuple[tuple[float, float], ...], seed: int = 0) -> np.ndarray:
    """An energy contour: loud with short dips, as plosives make, and quiet in the pauses."""
    rng = np.random.default_rng(seed)
    energy = rng.normal(10, 1, round(seconds / STEP))
    energy[::15] = 0
    for start, end in pauses:
        energy[round(start / STEP) : round(end / STEP)] = rng.normal(0, 0.5, round(end / STEP) - round(start / STEP))
    return energy


# -- cutting ---------------------------------------------------------------


def test_what_is_short_enough_is_one_window():
    assert plan(speech(20, ()), STEP, WindowsConfig(max_seconds=20)) == [Window(0, 2000)]


def test_cuts_are_made_in_the_middle_of_pauses():
    windows = plan(speech(50, ((12, 13), (26, 26.6), (40, 41))), STEP, WindowsConfig(max_seconds=20))
    assert [round(STEP * window.end) for window in windows] == pytest.approx([12.5, 26.3, 40.5, 50], abs=0.6)
    assert all(one.end == other.start for one, other in zip(windows, windows[1:], strict=False))
    for window in windows[:-1]:
        assert any(start + 0.1 < STEP * window.end < end - 0.1 for start, end in ((12, 13), (26, 26.6), (40, 41)))


@pytest.mark.parametrize("cut", ["pauses", "clock"])
def test_windows_without_a_pause_overlap_and_none_is_too_long(cut):
    config = WindowsConfig(max_seconds=10, overlap_seconds=2, cut=cut)
    windows = plan(speech(47, ()), STEP, config)
    assert windows[0].start == 0 and windows[-1].end == 4700
    assert all(window.end - window.start <= 1000 for window in windows)
    assert all(one.end - other.start == 200 for one, other in zip(windows, windows[1:], strict=False))


def test_a_window_without_speech_is_marked():
    windows = plan(speech(60, ((10, 45),)), STEP, WindowsConfig(max_seconds=10))
    silent = [window for window in windows if not window.speech]
    assert silent and all(STEP * window.start >= 10 and STEP * window.end <= 45.01 for window in silent)


def test_samples_have_a_contour_of_ten_milliseconds():
    samples = np.concatenate([np.zeros(1600), np.ones(1600)]).astype(np.float32)
    energy, step = contour(samples, 1 / 16000)
    assert len(energy) == 20 and step == pytest.approx(0.01)
    assert (energy[10:] > energy[:10].max() + 10).all()


def test_an_overlap_of_more_than_half_a_window_is_refused():
    with pytest.raises(ValueError, match="overlap_seconds must lie between 0 and half of max_seconds"):
        WindowsConfig(max_seconds=10, overlap_seconds=6)


# -- joining ---------------------------------------------------------------


def heard(words: list[Timed], start: float, end: float, rng: np.random.Generator) -> list[Timed]:
    """What a recogniser makes of a window: times that differ a little, rubbish of the words that the border cuts."""
    found = []
    for one in words:
        if one.end <= start or one.start >= end:
            continue
        shift = rng.uniform(-0.04, 0.04)
        cut = one.start < start or one.end > end
        if cut and rng.random() < 0.3:
            continue
        text = f"rubbish{rng.integers(100)}" if cut else one.text.strip()
        first, last = max(start, one.start + shift), min(end, one.end + shift)
        found.append(word(text, first, max(last, first + 0.02), rng.uniform(0.2, 0.5) if cut else 0.9))
    return found


def spoken(rng: np.random.Generator, seconds: float, vocabulary: int) -> list[Timed]:
    """Words of 0.1 to 0.6 s without pauses; a small vocabulary repeats itself."""
    words, at = [], 0.0
    while at < seconds - 1:
        end = at + rng.uniform(0.1, 0.6)
        words.append(word(f"w{rng.integers(vocabulary)}", at, end - rng.uniform(0, 0.05)))
        at = end
    return words


@pytest.mark.parametrize("vocabulary", [2, 5, 1000])
def test_no_word_is_lost_or_doubled_at_any_cut(vocabulary):
    rng = np.random.default_rng(vocabulary)
    for _ in range(100):
        words = spoken(rng, 40, vocabulary)
        length, overlap = rng.uniform(6, 12), rng.uniform(2, 3)
        starts = np.arange(rng.uniform(-length / 2, 0), 40, length - overlap)
        bounds = [(max(0.0, start), min(40.0, start + length)) for start in starts]
        parts = [(start, end, heard(words, start, end, rng)) for start, end in bounds]
        assert texts(join(parts)) == texts(words)


def test_without_an_anchor_words_that_differ_are_taken_once():
    left = [word("so", 0.2, 0.5), word("colour", 2.0, 2.4, 0.7)]
    right = [word("color", 2.02, 2.42, 0.8), word("then", 4.2, 4.5)]
    assert texts(join([(0, 3, left), (1.0, 5, right)])) == ["so", "color", "then"]
    assert texts(join([(0, 3, left), (1.8, 5, right)])) == ["so", "colour", "then"]


def test_the_more_confident_word_stays_where_there_is_no_quiet_moment():
    left = [word("a", 0.0, 1.0), word("b", 1.0, 2.1, 0.3)]
    right = [word("c", 1.9, 3.0, 0.9), word("d", 3.0, 4.0)]
    assert texts(join([(0, 2.2, left), (1.8, 4, right)])) == ["a", "c", "d"]


def test_windows_that_meet_in_a_pause_are_put_side_by_side():
    for one, other, expected in (("a", "a", "a a"), ("今", "天", "今天"), ("ok", "今", "ok 今"), (" a", " b", "a b")):
        left, right = ([Timed(token=5, text=text, start=0.5, end=1.0, confidence=1.0)] for text in (one, other))
        assert text_of(words_of(join([(0, 2, left), (2, 4, [right[0].later(2)])]))) == expected


def test_a_word_that_the_windows_cut_differently_is_put_together_from_its_tokens():
    def letters(text: str, start: float) -> list[Timed]:
        times = [start + place / 10 for place in range(len(text))]
        return [
            Timed(token=ord(letter), text=letter, start=time, end=time + 0.05, confidence=0.9)
            for letter, time in zip(text, times, strict=True)
        ]

    left, right = letters("the catxx", 0.0), letters("yat sat", 0.4)    # each window garbles its border
    assert text_of(words_of(join([(0, 0.9, left), (0.4, 1.2, right)]))) == "the cat sat"


def test_windows_without_words_join():
    assert join([]) == []
    assert texts(join([(0, 5, []), (3, 8, [word("a", 6, 7)]), (6, 9, [])])) == ["a"]
