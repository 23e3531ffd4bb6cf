from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.data import augment
from asrtool.data.config import (
    AugmentConfig,
    NoiseConfig,
    RoomConfig,
    SpecAugmentConfig,
    SpecSubConfig,
)
from asrtool.errors import UserError
from asrtool.types import Utterance

RATE = 16000


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def recording(folder: Path, name: str, samples: np.ndarray, rate: int = RATE) -> Utterance:
    soundfile.write(folder / f"{name}.wav", samples, rate, subtype="FLOAT")
    return Utterance(
        id=name, audio=str(folder / f"{name}.wav"), duration=len(samples) / rate, speaker="s"
    )


def waveform_augment(
    sets: dict[str, list[Utterance]], seed: int = 0, **config: object
) -> augment.WaveformAugment:
    return augment.WaveformAugment(AugmentConfig(**config), sets, RATE, seed)


# -- generators ------------------------------------------------------------


def test_a_generator_is_the_same_in_another_process() -> None:
    code = (
        "from asrtool.data.augment import generator; print(generator(1, 2, 'utt', "
        "'mask').integers(1 << 62))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7"},
    )
    assert int(result.stdout) == augment.generator(1, 2, "utt", "mask").integers(1 << 62)


def test_seed_epoch_utterance_and_kind_each_give_other_numbers() -> None:
    keys = [
        (0, 0, "a", ""),
        (1, 0, "a", ""),
        (0, 1, "a", ""),
        (0, 0, "b", ""),
        (0, 0, "a", "noise"),
    ]
    assert len({augment.generator(*key).integers(1 << 62) for key in keys}) == len(keys)


# -- SpecAugment -----------------------------------------------------------


def ones(num_frames: int = 400, num_bins: int = 80) -> np.ndarray:
    return np.ones((num_frames, num_bins), dtype=np.float32)


def test_masks_are_bands_and_stretches_of_zeros_within_their_limits() -> None:
    config = SpecAugmentConfig(
        num_frequency_masks=1, frequency_width=10, num_time_masks=1, time_width=50
    )
    for seed in range(100):
        masked = augment.spec_augment(ones(), config, rng(seed))
        frames, bins = np.flatnonzero(~masked.any(1)), np.flatnonzero(~masked.any(0))
        assert len(frames) <= 50 and len(bins) <= 10
        assert np.ptp(frames) + 1 == len(frames) if len(frames) else True
        assert np.ptp(bins) + 1 == len(bins) if len(bins) else True
        kept = masked[np.ix_(masked.any(1), masked.any(0))]
        assert (kept == 1).all()


def test_mask_widths_are_uniform_up_to_their_limit() -> None:
    config = SpecAugmentConfig(num_frequency_masks=1, frequency_width=10, num_time_masks=0)
    widths = [
        int((~augment.spec_augment(ones(5), config, rng(seed)).any(0)).sum())
        for seed in range(2000)
    ]
    counts = np.bincount(widths, minlength=11)
    assert counts.min() > 110 and counts.max() < 260  # 2000 / 11 = 182, six standard deviations


def test_time_masks_leave_most_of_a_short_utterance() -> None:
    config = SpecAugmentConfig(
        num_frequency_masks=0, num_time_masks=4, time_width=50, time_share=0.25
    )
    hidden = [
        int((~augment.spec_augment(ones(40), config, rng(seed)).any(1)).sum())
        for seed in range(200)
    ]
    assert 0 < max(hidden) <= 10


def test_masking_leaves_its_input_alone() -> None:
    features = ones()
    augment.spec_augment(features, SpecAugmentConfig(), rng())
    assert (features == 1).all()


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_the_shortest_utterances_can_be_masked_and_warped(num_frames: int) -> None:
    config = SpecAugmentConfig(warp=5, frequency_width=200)
    assert augment.spec_augment(ones(num_frames), config, rng()).shape == (num_frames, 80)


@pytest.mark.parametrize("num_frames", [1, 2, 7, 400])
def test_substituted_stretches_are_copies_of_earlier_ones(num_frames: int) -> None:
    features = np.arange(num_frames, dtype=np.float32)[:, None].repeat(3, 1)
    config = SpecSubConfig(num_substitutions=1, time_width=30)
    widths = set()
    for seed in range(200):
        out = augment.spec_sub(features, config, rng(seed))
        assert out.shape == features.shape and (out[:, :1] == out).all()
        changed = np.flatnonzero(out[:, 0] != features[:, 0])
        back = (features - out)[changed, 0]  # how far back the frames were, the same for all
        assert (back > 0).all() and len(set(back)) <= 1 and len(changed) <= 30
        if len(changed):
            assert np.ptp(changed) + 1 == len(changed)
        widths.add(len(changed))
    assert len(widths) > min(num_frames, 20) - 1
    assert (features[:, 0] == np.arange(num_frames)).all()


def test_substitution_is_a_function_of_its_generator_and_none_changes_nothing() -> None:
    features = rng(9).normal(size=(120, 4)).astype(np.float32)
    first, again = (augment.spec_sub(features, SpecSubConfig(), rng(5)) for _ in range(2))
    assert np.array_equal(first, again) and not np.array_equal(first, features)
    none = augment.spec_sub(features, SpecSubConfig(num_substitutions=0), rng(5))
    assert np.array_equal(none, features)
    with pytest.raises(ValueError, match="time_width at least 1"):
        SpecSubConfig(time_width=0)


def test_warping_moves_frames_by_at_most_its_limit_and_keeps_the_ends() -> None:
    ramp = np.arange(200, dtype=np.float32)[:, None].repeat(3, 1)
    moved = []
    for seed in range(50):
        warped = augment.warp_time(ramp, 10, rng(seed))
        assert warped.shape == ramp.shape and warped.dtype == np.float32
        assert (np.diff(warped[:, 0]) > 0).all()
        np.testing.assert_allclose(warped[[0, -1]], ramp[[0, -1]])
        moved.append(float(np.abs(warped - ramp).max()))
    assert 5 < max(moved) <= 10 + 1e-3


# -- waveforms -------------------------------------------------------------


def test_noise_is_added_at_the_ratio_asked_for() -> None:
    speech, noise = (
        rng(1).normal(size=RATE).astype(np.float32),
        rng(2).uniform(-1, 1, RATE).astype(np.float32),
    )
    added = augment.add_noise(speech, noise, 7.0) - speech
    assert 10 * np.log10(augment.power(speech) / augment.power(added)) == pytest.approx(
        7.0, abs=1e-3
    )


def test_silence_stays_silence() -> None:
    silent, noise = np.zeros(100, np.float32), np.ones(100, np.float32)
    assert not augment.add_noise(silent, noise, 0.0).any()
    assert not augment.add_room(silent, noise).any()
    assert (augment.add_noise(noise, silent, 0.0) == noise).all()


def test_a_room_keeps_length_alignment_and_energy() -> None:
    click = np.zeros(4000, np.float32)
    click[1000] = 0.5
    response = np.zeros(3000, np.float32)
    response[[200, 500, 900]] = [-0.8, 0.3, 0.2]
    wet = augment.add_room(click, response)
    assert len(wet) == len(click)
    assert np.abs(wet).argmax() == 1000
    assert augment.power(wet) == pytest.approx(augment.power(click), rel=1e-5)
    assert wet[1300] / wet[1000] == pytest.approx(0.3 / -0.8, rel=1e-5)


def test_a_room_is_a_convolution() -> None:
    samples, response = (
        rng(1).normal(size=1000).astype(np.float32),
        np.array([1.0, 0.5, 0.25], np.float32),
    )
    expected = np.convolve(samples, response)[:1000]
    wet = augment.add_room(samples, response)
    np.testing.assert_allclose(wet / wet[0] * expected[0], expected, atol=1e-4)


def test_a_short_noise_is_repeated_and_a_long_one_cut(tmp_path: Path) -> None:
    ramp = np.linspace(-0.9, 0.9, 5000, dtype=np.float32)
    noise = recording(tmp_path, "ramp", ramp)
    looped = augment.excerpt(noise, 12000, RATE, rng())
    np.testing.assert_array_equal(looped[5000:10000], looped[:5000])
    assert set(looped) == set(ramp)
    cut = augment.excerpt(noise, 1000, RATE, rng())
    assert len(cut) == 1000
    start = int(np.abs(ramp - cut[0]).argmin())
    np.testing.assert_array_equal(cut, ramp[start : start + 1000])


def test_a_noise_at_another_rate_fits_too(tmp_path: Path) -> None:
    noise = recording(tmp_path, "slow", rng().normal(size=11025).astype(np.float32), rate=11025)
    assert len(augment.excerpt(noise, 8000, RATE, rng())) == 8000
    assert len(augment.excerpt(noise, 50000, RATE, rng())) == 50000


def test_augmentation_depends_on_utterance_and_epoch_alone(tmp_path: Path) -> None:
    sets = {
        "noises": [
            recording(tmp_path, f"n{i}", rng(i).normal(size=30000).astype(np.float32))
            for i in range(3)
        ],
        "rooms": [
            recording(tmp_path, f"r{i}", rng(i).normal(size=500).astype(np.float32))
            for i in range(3)
        ],
    }
    config = {
        "noise": NoiseConfig(set="noises"),
        "room": RoomConfig(set="rooms"),
        "gain_db": (-6.0, 6.0),
        "speeds": (0.9, 1.0, 1.1),
    }
    samples = rng(9).normal(size=RATE).astype(np.float32)
    first, second = waveform_augment(sets, **config), waveform_augment(sets, **config)
    first(samples, 0, "other")
    np.testing.assert_array_equal(first(samples, 1, "utt"), second(samples, 1, "utt"))
    outputs = {first(samples, epoch, "utt").tobytes() for epoch in range(5)}
    assert len(outputs) == 5


def test_noise_and_rooms_come_as_often_as_asked_for(tmp_path: Path) -> None:
    sets = {"noises": [recording(tmp_path, "n", rng().normal(size=2000).astype(np.float32))]}
    augmented = waveform_augment(sets, noise=NoiseConfig(set="noises", share=0.3))
    samples = rng(1).normal(size=1000).astype(np.float32)
    share = np.mean(
        [not np.array_equal(augmented(samples, 0, str(i)), samples) for i in range(400)]
    )
    assert share == pytest.approx(0.3, abs=0.08)  # 3.5 standard deviations


def test_switching_gain_on_leaves_the_speeds_alone() -> None:
    samples = rng(1).normal(size=1000).astype(np.float32)
    plain = waveform_augment({}, speeds=(0.9, 1.0, 1.1))
    louder = waveform_augment({}, speeds=(0.9, 1.0, 1.1), gain_db=(1.0, 2.0))
    lengths = [len(plain(samples, 0, str(i))) for i in range(30)]
    assert set(lengths) == {910, 1000, 1112}
    assert lengths == [len(louder(samples, 0, str(i))) for i in range(30)]


def test_gain_is_within_its_limits() -> None:
    samples = np.ones(10, np.float32)
    gains = [
        20 * np.log10(waveform_augment({}, gain_db=(-3.0, 6.0))(samples, 0, str(i))[0])
        for i in range(200)
    ]
    assert -3 <= min(gains) < -2.5 and 5.5 < max(gains) <= 6


def test_without_augmentation_samples_stay_as_they_are() -> None:
    samples = rng(1).normal(size=1000).astype(np.float32)
    assert waveform_augment({})(samples, 0, "utt") is samples


def test_a_missing_noise_set_is_named_with_its_key() -> None:
    with pytest.raises(
        UserError, match=r"data\.augment\.noise\.set.*'musan', .* \(sets: " r"rooms\)"
    ):
        waveform_augment({"rooms": []}, noise=NoiseConfig(set="musan"))
