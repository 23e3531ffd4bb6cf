"""Stretches of noise with an empty text, and several people who talk at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.data import augment
from asrtool.data.config import (
    AugmentConfig,
    BabbleConfig,
    BatchConfig,
    DataConfig,
    NonSpeechConfig,
)
from asrtool.errors import UserError
from asrtool.types import Utterance

RATE = 8000


def recording(folder: Path, name: str, samples: np.ndarray) -> Utterance:
    path = folder / f"{name}.wav"
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    return Utterance(
        id=name, audio=str(path), duration=len(samples) / RATE, text="kept out", speaker=name
    )


def test_stretches_lie_in_their_recordings_and_say_nothing(tmp_path):
    noises = [recording(tmp_path, f"n{n}", np.zeros(RATE * n, np.float32)) for n in (1, 10, 4)]
    config = NonSpeechConfig(set="noises", seconds=(0.5, 3.0))
    found = augment.non_speech(noises, config, 200, seed=0)
    ends = {noise.audio: noise.duration for noise in noises}
    assert len({one.id for one in found}) == 200 and {one.text for one in found} == {""}
    assert {one.audio for one in found} == set(ends)
    assert all(
        one.start >= 0 and one.start + one.duration <= ends[one.audio] + 1e-9 for one in found
    )
    assert all(0.5 <= one.duration <= 3.0 and one.recording is not None for one in found)
    assert (
        found
        == augment.non_speech(noises, config, 200, seed=0)
        != augment.non_speech(noises, config, 200, seed=1)
    )


def test_a_part_of_a_longer_recording_stays_within_its_part():
    part = Utterance(id="p", audio="a.wav", start=5.0, duration=2.0, speaker="s", recording="a")
    found = augment.non_speech(
        [part], NonSpeechConfig(set="noises", seconds=(1.0, 15.0)), 50, seed=0
    )
    assert all(
        one.start >= 5.0 and one.start + one.duration <= 7.0 + 1e-9 and one.recording == "a"
        for one in found
    )


def test_an_empty_set_is_an_error():
    with pytest.raises(UserError, match="the set 'noises' has no recordings"):
        augment.non_speech([], NonSpeechConfig(set="noises"), 1, seed=0)


def test_babble_is_several_voices_at_the_ratio_asked_for(tmp_path):
    rng = np.random.default_rng(0)
    talkers = [
        recording(tmp_path, f"t{i}", rng.normal(size=9000).astype(np.float32) * 10.0**-i)
        for i in range(4)
    ]
    config = AugmentConfig(
        babble=BabbleConfig(set="talkers", share=1.0, speakers=(3, 3), snr_db=(13.0, 13.0))
    )
    effect = augment.WaveformAugment(config, {"talkers": talkers}, RATE, 0)
    speech = rng.normal(size=RATE).astype(np.float32)
    added = effect(speech, 0, "utt") - speech
    assert 10 * np.log10(augment.power(speech) / augment.power(added)) == pytest.approx(
        13.0, abs=1e-3
    )
    np.testing.assert_array_equal(effect(speech, 0, "utt"), effect(speech, 0, "utt"))
    voices = [rng.normal(size=1000), 100 * rng.normal(size=1000)]
    assert abs(np.corrcoef(augment.babble(voices), voices[0])[0, 1]) == pytest.approx(0.7, abs=0.1)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"share": 0.0}, "between 0 and 1"),
        ({"share": 1.0}, "0 and 1"),
        ({"seconds": (3.0, 1.0)}, "shortest, longest"),
    ],
)
def test_settings_that_cannot_be_meant(part, message):
    with pytest.raises(ValueError, match=message):
        NonSpeechConfig(set="noises", **part)


@pytest.mark.parametrize(
    "part", [{"non_speech": NonSpeechConfig(set="n")}, {"babble": BabbleConfig(set="n")}]
)
def test_stored_features_cannot_have_them(part):
    with pytest.raises(ValueError, match="works on waveforms: set data.features: online"):
        DataConfig(batch=BatchConfig(seconds=10), augment=AugmentConfig(**part))
