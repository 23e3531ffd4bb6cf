"""Cutting and joining recordings: no word lost, none doubled, wherever the windows begin."""

from __future__ import annotations

import time
import zlib
from itertools import pairwise

import numpy as np
import pytest
import torch

from asrtool.align import Timed, text_of, words_of
from asrtool.data.fbank import Fbank, FbankConfig
from asrtool.longform import Window, WindowsConfig, contour, join, plan

STEP, RATE = 0.01, 8000


def word(text: str, start: float, end: float, confidence: float = 0.9) -> Timed:
    """A word that is one token."""
    return Timed(
        token=zlib.crc32(text.encode()),
        text=f" {text}",
        start=start,
        end=end,
        confidence=confidence,
    )


def texts(parts: list[Timed]) -> list[str]:
    return [one.text for one in words_of(parts)]


def speech(seconds: float, pauses: tuple[tuple[float, float], ...], seed: int = 0) -> np.ndarray:
    """An energy contour: loud with short dips, as plosives make, and quiet in the pauses."""
    rng = np.random.default_rng(seed)
    energy = rng.normal(10, 1, round(seconds / STEP))
    energy[::15] = 0
    for start, end in pauses:
        energy[round(start / STEP) : round(end / STEP)] = rng.normal(
            0, 0.5, round(end / STEP) - round(start / STEP)
        )
    return energy


def talk(rng: np.random.Generator, seconds: float, noise: float = 1e-3) -> np.ndarray:
    """Samples (T,) at 8 kHz: syllables of a buzz and of a hiss, over the noise of the room."""
    samples = rng.normal(0, noise, round(seconds * RATE))
    at = 0
    while at < len(samples):
        size = round(rng.uniform(0.08, 0.25) * RATE)
        times = np.arange(size) / RATE
        buzz, hiss = (
            np.sign(np.sin(2 * np.pi * rng.uniform(90, 200) * times)),
            rng.normal(0, 1, size),
        )
        syllable = (
            rng.uniform(0.05, 0.3) * np.hanning(size) * (buzz if rng.random() < 0.8 else hiss)
        )
        samples[at : at + size] += syllable[: len(samples) - at]
        at += size + round(rng.uniform(0, 0.08) * RATE)
    return samples.astype(np.float32)


def cut(samples: np.ndarray, config: WindowsConfig, kind: str) -> list[tuple[float, float]]:
    """Start and end in seconds of the windows that are recognised, by the energy of the samples or
    of features.
    """
    inputs, step = samples.astype(np.float32), 1 / RATE
    if kind == "features":
        fbank = FbankConfig(rate=RATE, num_mel_bins=20)
        inputs, step = Fbank(fbank)(torch.from_numpy(inputs)).numpy(), 0.01
    energy, step = contour(inputs, step)
    windows = plan(energy, step, config)
    assert windows[0].start == 0 and windows[-1].end == len(energy)
    assert all(other.start <= one.end for one, other in pairwise(windows))
    return [(window.start * step, window.end * step) for window in windows if window.speech]


@pytest.fixture(params=["features", "samples"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


# -- cutting ---------------------------------------------------------------


def test_what_is_short_enough_is_one_window():
    assert plan(speech(20, ()), STEP, WindowsConfig(max_seconds=20)) == [Window(0, 2000)]
    assert plan(speech(20, ((5, 15),)), STEP, WindowsConfig(max_seconds=20)) == [Window(0, 2000)]
    assert plan(np.zeros(1), STEP, WindowsConfig(max_seconds=20)) == [Window(0, 1)]


def heard_in(energy: np.ndarray, config: WindowsConfig) -> list[tuple[float, float]]:
    """Start and end in seconds of the windows that are recognised."""
    return [
        (STEP * window.start, STEP * window.end)
        for window in plan(energy, STEP, config)
        if window.speech
    ]


def test_windows_end_in_pauses_though_they_are_not_full():
    pauses = ((3, 3.6), (6.5, 7.3), (9.5, 10), (13, 15))
    found = heard_in(speech(17, pauses), WindowsConfig(max_seconds=10, min_seconds=2))
    assert [start for start, _ in found] == pytest.approx([0, 3.45, 7.15, 9.85, 14.85], abs=0.06)
    assert [end for _, end in found] == pytest.approx([3.15, 6.65, 9.65, 13.15, 17], abs=0.06)


def test_a_short_pause_is_cut_in_its_middle():
    found = plan(
        np.zeros(2000), STEP, WindowsConfig(max_seconds=10, min_seconds=1), [(0, 9), (9.2, 20)]
    )
    assert found[0] == Window(0, 910) and found[1].start == 910


def test_short_pieces_are_put_together_the_closest_first():
    pauses = ((1, 1.8), (2.5, 2.9), (3.5, 4.2), (8, 8.5))
    found = heard_in(speech(12, pauses), WindowsConfig(max_seconds=5, min_seconds=2))
    # the first: three pieces
    assert [end for _, end in found] == pytest.approx([3.65, 8.15, 12], abs=0.06)
    apart = heard_in(speech(12, pauses), WindowsConfig(max_seconds=5, min_seconds=0))
    assert [end for _, end in apart] == pytest.approx([1.15, 2.65, 3.65, 8.15, 12], abs=0.06)


def test_a_short_piece_stays_alone_where_the_pause_or_its_neighbour_is_long():
    pauses = ((4, 5.5), (6, 7.5), (11.5, 11.9))
    found = heard_in(speech(12.4, pauses), WindowsConfig(max_seconds=4.5, min_seconds=2))
    assert [end for _, end in found] == pytest.approx([4.15, 6.15, 11.65, 12.4], abs=0.06)


@pytest.mark.parametrize("cut", ["pauses", "clock"])
def test_windows_without_a_pause_overlap_and_none_is_too_long(cut):
    config = WindowsConfig(max_seconds=10, overlap_seconds=2, cut=cut)
    windows = plan(speech(47, ()), STEP, config)
    assert windows[0].start == 0 and windows[-1].end == 4700
    assert all(window.end - window.start <= 1000 for window in windows)
    assert all(one.end - other.start == 200 for one, other in pairwise(windows))


@pytest.mark.parametrize("seconds", [10.01, 10.3, 14.9, 15.1, 18.5, 33.3])
def test_windows_without_a_pause_are_half_as_long_as_they_may_be_at_least(seconds):
    windows = plan(speech(seconds, ()), STEP, WindowsConfig(max_seconds=10))
    assert all(500 <= window.end - window.start <= 1000 for window in windows)


@pytest.mark.parametrize("noise", [1e-5, 1e-3, 1e-2])
@pytest.mark.parametrize("room", [1e-5, 1e-3])
def test_utterances_with_pauses_between_are_cut_apart(kind, noise, room):
    """The noise of the pauses is softer or louder than what is heard between words."""
    rng = np.random.default_rng(1)
    parts, bounds, at = [], [], 0.0
    for _ in range(30):
        said, pause = talk(rng, rng.uniform(1.5, 4), room), rng.normal(0, noise, round(0.8 * RATE))
        bounds.append((at + len(said) / RATE, at + (len(said) + len(pause)) / RATE))
        at = bounds[-1][1]
        parts += [said, pause]
    found = cut(np.concatenate(parts), WindowsConfig(max_seconds=4.5, min_seconds=1), kind)
    assert len(found) == 30
    assert all(last - first <= 4.51 for first, last in found)
    for (_, end), (start, _), (first, last) in zip(found, found[1:], bounds, strict=False):
        assert end <= start and first - 0.1 < end < first + 0.4 and last - 0.4 < start < last + 0.1


def test_pauses_are_found_in_noise_ten_decibels_below_the_speech(kind):
    rng = np.random.default_rng(2)
    parts = [
        part
        for _ in range(20)
        for part in (talk(rng, rng.uniform(1.5, 4)), np.zeros(round(0.8 * RATE)))
    ]
    samples = np.concatenate(parts)
    level = np.sqrt(np.mean(samples[samples != 0] ** 2)) * 10 ** (-10 / 20)
    found = cut(
        samples + rng.normal(0, level, len(samples)),
        WindowsConfig(max_seconds=4.5, min_seconds=1),
        kind,
    )
    ends = np.cumsum([len(part) / RATE for part in parts])[1::2]
    for end in ends[:-1]:
        assert any(
            end - 1.2 < stop <= start < end + 0.2 for (_, stop), (start, _) in pairwise(found)
        )
    assert all(last - first <= 4.51 for first, last in found)


def test_pauses_of_digital_silence_do_not_hide_those_of_the_room(kind):
    rng = np.random.default_rng(3)
    part = np.concatenate([talk(rng, 3), rng.normal(0, 1e-3, 4000), talk(rng, 3), np.zeros(4000)])
    found = cut(np.tile(part, 4), WindowsConfig(max_seconds=4.5, min_seconds=1), kind)
    assert len(found) == 8


def test_what_is_said_softly_is_not_left_out(kind):
    rng = np.random.default_rng(4)
    samples = np.concatenate([talk(rng, 20, 0), 0.03 * talk(rng, 6, 0), talk(rng, 20, 0)])
    for start in (20, 29):
        samples = np.insert(samples, start * RATE, np.zeros(3 * RATE))
    found = cut(samples + rng.normal(0, 1e-4, len(samples)), WindowsConfig(max_seconds=5), kind)
    covered = [
        any(first <= moment < last for first, last in found) for moment in np.arange(23, 29, 0.1)
    ]
    assert np.mean(covered) > 0.9


def test_one_word_in_minutes_of_noise_is_found(kind):
    rng = np.random.default_rng(5)
    samples = rng.normal(0, 1e-3, 300 * RATE)
    samples[100 * RATE : 102 * RATE] += talk(rng, 2)
    ((start, end),) = cut(samples, WindowsConfig(max_seconds=5), kind)
    assert 99.7 < start < 100.1 and 101.9 < end < 102.3


@pytest.mark.parametrize("level", [0.0, 1e-4, 0.1])
def test_silence_and_steady_noise_hold_no_speech(kind, level):
    assert (
        cut(
            np.random.default_rng(6).normal(0, level, 60 * RATE), WindowsConfig(max_seconds=5), kind
        )
        == []
    )


def test_a_window_without_speech_is_marked():
    windows = plan(speech(60, ((10, 45),)), STEP, WindowsConfig(max_seconds=10))
    silent = [window for window in windows if not window.speech]
    assert silent and all(
        STEP * window.start >= 10 and STEP * window.end <= 45.01 for window in silent
    )
    windows = plan(speech(60, ((10, 45),)), STEP, WindowsConfig(max_seconds=10, cut="clock"))
    assert [window.speech for window in windows] == [
        True,
        True,
        False,
        False,
        False,
        True,
        True,
        True,
    ]


def test_what_another_detector_found_takes_the_place_of_the_energy():
    config = WindowsConfig(max_seconds=10, min_seconds=1)
    found = plan(np.zeros(3000), STEP, config, [(2, 4), (5, 8), (15, 19)])
    assert [(one.start, one.end) for one in found if one.speech] == [
        (185, 415),
        (485, 815),
        (1485, 1915),
    ]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_heard_no_window_is_too_long_and_nothing_loud_is_left_out(seed):
    rng = np.random.default_rng(seed)
    parts = [rng.normal(rng.choice([0, 1, 10, 12]), 0.5, rng.integers(1, 90)) for _ in range(40)]
    energy = np.repeat(np.concatenate(parts), 10)
    energy += np.where(np.arange(len(energy)) % 20 < 10, 1, -1)  # all of it is alive
    config = WindowsConfig(max_seconds=rng.uniform(0.5, 8))
    windows = plan(energy, STEP, config)
    assert windows[0].start == 0 and windows[-1].end == len(energy)
    assert all(one.start < other.start <= one.end < other.end for one, other in pairwise(windows))
    assert all(
        window.end - window.start <= config.max_seconds / STEP
        for window in windows
        if window.speech
    )
    silent = [energy[window.start : window.end] for window in windows if not window.speech]
    assert all(np.convolve(part, np.ones(30) / 30, "valid").max(initial=0) < 8 for part in silent)


def test_two_hours_are_planned_in_a_second_or_two():
    rng = np.random.default_rng(7)
    energy = np.repeat(rng.choice([0.0, 10.0], 7_200), 100) + rng.normal(0, 1, 720_000)
    began = time.process_time()
    plan(energy, STEP, WindowsConfig(max_seconds=15))
    assert time.process_time() - began < 5


def test_samples_have_a_contour_of_ten_milliseconds():
    samples = np.concatenate([np.zeros(1600), np.ones(1600)]).astype(np.float32)
    energy, step = contour(samples, 1 / 16000)
    assert len(energy) == 20 and step == pytest.approx(0.01)
    assert (energy[10:] > energy[:10].max() + 10).all()


def test_the_contour_of_normalised_features_is_that_of_the_features_before():
    rng = np.random.default_rng(8)
    features, std = rng.normal(5, 3, (50, 4)), rng.uniform(1, 4, 4)
    energy, step = contour((features - 5) / std, 0.01, std)
    assert step == 0.01 and energy == pytest.approx(features.mean(1) - 5)


# -- how long ----------------------------------------------------------------


def test_what_is_not_given_is_what_training_saw():
    assert WindowsConfig().within(2.0, 4.5) == WindowsConfig(max_seconds=4.5, min_seconds=2.0)
    assert WindowsConfig().within(None, 30) == WindowsConfig(max_seconds=30, min_seconds=15)
    assert WindowsConfig(max_seconds=1.0).within(2.0, 4.5) == WindowsConfig(
        max_seconds=1.0, min_seconds=1.0
    )
    assert WindowsConfig(overlap_seconds=4).within(2.0, 4.5).overlap == 2.25
    assert WindowsConfig().within(0.2, 0.6).overlap == pytest.approx(0.15)  # single words


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"max_seconds": 10, "overlap_seconds": 6},
            "overlap_seconds must lie between 0 and half of max_seconds",
        ),
        ({"max_seconds": 0}, "max_seconds must be above 0"),
        ({"max_seconds": 10, "min_seconds": 11}, "min_seconds must lie between 0 and max_seconds"),
        ({"min_seconds": -1}, "min_seconds and overlap_seconds must be at least 0"),
        ({"overlap_seconds": -1}, "min_seconds and overlap_seconds must be at least 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        WindowsConfig(**settings)


# -- joining ---------------------------------------------------------------


def heard(words: list[Timed], start: float, end: float, rng: np.random.Generator) -> list[Timed]:
    """What a recogniser makes of a window: times that differ a little, rubbish of the words that
    the border cuts.
    """
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
        found.append(
            word(text, first, max(last, first + 0.02), rng.uniform(0.2, 0.5) if cut else 0.9)
        )
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
    for one, other, expected in (
        ("a", "a", "a a"),
        ("今", "天", "今天"),
        ("ok", "今", "ok 今"),
        (" a", " b", "a b"),
    ):
        left, right = (
            [Timed(token=5, text=text, start=0.5, end=1.0, confidence=1.0)] for text in (one, other)
        )
        assert text_of(words_of(join([(0, 2, left), (2, 4, [right[0].later(2)])]))) == expected


def test_a_word_that_the_windows_cut_differently_is_put_together_from_its_tokens():
    def letters(text: str, start: float) -> list[Timed]:
        times = [start + place / 10 for place in range(len(text))]
        return [
            Timed(token=ord(letter), text=letter, start=time, end=time + 0.05, confidence=0.9)
            for letter, time in zip(text, times, strict=True)
        ]

    # each window garbles its border
    left, right = letters("the catxx", 0.0), letters("yat sat", 0.4)
    assert text_of(words_of(join([(0, 0.9, left), (0.4, 1.2, right)]))) == "the cat sat"


def test_windows_without_words_join():
    assert join([]) == []
    assert texts(join([(0, 5, []), (3, 8, [word("a", 6, 7)]), (6, 9, [])])) == ["a"]
