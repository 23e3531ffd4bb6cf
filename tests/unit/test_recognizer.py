"""Recognising and aligning audio from Python: any kind of input, any length, no word lost or
doubled at a cut.
"""

from __future__ import annotations

import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import asrtool
from asrtool.data import audio
from asrtool.data.kaldi import datadir
from asrtool.errors import UserError
from asrtool.experiment import DecodeConfig
from asrtool.longform import WindowsConfig, vad
from asrtool.searchers import ConstraintsConfig, JointBeamConfig
from tests import toy_experiment as toys

TEXT = "abc de bad"


@pytest.fixture(scope="module")
def recognizer(toy: Path):
    return asrtool.load(toy / "exp")


def with_windows(recognizer, **settings):
    windows = WindowsConfig(**settings)
    return replace(recognizer, settings=replace(recognizer.settings, windows=windows))


# -- number formats ------------------------------------------------------------


def loaded(toy: Path, recognizer, precision: str):
    return asrtool.load(toy / "exp", decode=replace(recognizer.settings, precision=precision))


def test_half_precision_finds_the_same_texts(toy, recognizer):
    half = loaded(toy, recognizer, "bf16")
    dtypes = []
    hook = half.model.encoder.layers[0].first.register_forward_hook(
        lambda module, inputs, output: dtypes.append(output.dtype)
    )
    sounds = [toys.sound(text) for text in (TEXT, "cab e", "dead bee")]
    found, exact = half.recognize(sounds), recognizer.recognize(sounds)
    hook.remove()
    assert set(dtypes) == {torch.bfloat16}
    assert [one.text for one in found] == [one.text for one in exact]
    for one, other in zip(found, exact, strict=True):
        assert one.nbest[0].score == pytest.approx(other.nbest[0].score, abs=0.5)
        assert one.nbest[0].score != other.nbest[0].score
    assert all(value.dtype == torch.float32 for value in half.model.parameters())


def test_auto_is_exact_where_the_device_has_no_bf16(toy, recognizer, monkeypatch):
    monkeypatch.setattr("asrtool.trainer.precision.multiplies_bf16", lambda device: False)
    found = loaded(toy, recognizer, "auto").recognize(toys.sound(TEXT))
    assert found.nbest == recognizer.recognize(toys.sound(TEXT)).nbest


def test_a_slow_format_is_told_and_an_impossible_one_refused(toy, recognizer, monkeypatch, log):
    monkeypatch.setattr("asrtool.trainer.precision.multiplies_bf16", lambda device: False)
    loaded(toy, recognizer, "bf16")
    assert "precision: this device has no instructions for bf16" in log.text
    with pytest.raises(UserError, match="^precision: fp16 needs a GPU"):
        loaded(toy, recognizer, "fp16")


# -- what may be given -------------------------------------------------------


def test_samples_of_the_models_rate(recognizer):
    found = recognizer.recognize(toys.sound(TEXT))
    assert found.text == TEXT
    assert found.seconds == pytest.approx(len(toys.sound(TEXT)) / toys.RATE, abs=0.03)
    assert [word.text for word in found.words] == TEXT.split()


def test_four_threads_share_a_recogniser(recognizer, toy):
    rows = datadir.read(toy / "data" / "test")
    asked = [row.audio for row in rows] * -(-60 // len(rows))
    alone = {path: recognizer.recognize(path) for path in dict.fromkeys(asked)}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(recognizer.recognize, asked[:60]))
    for path, result in zip(asked, found, strict=False):
        assert (result.text, result.words) == (alone[path].text, alone[path].words)
    assert len(found) == 60 and len({result.text for result in found}) > 5


@pytest.mark.parametrize(
    "change",
    [
        lambda x: (32767 * x).astype(np.int16),
        lambda x: torch.from_numpy(x),
        lambda x: torch.from_numpy(x).requires_grad_(),
        lambda x: torch.from_numpy(x).to(torch.bfloat16),
        lambda x: np.stack([x, x], 1),
        lambda x: x.astype(np.float64),
        lambda x: x[::-1].copy()[::-1],
        lambda x: np.frombuffer(x.tobytes(), np.float32),
        lambda x: x.astype(">f4"),
        lambda x: x.tolist(),
    ],
    ids=[
        "int16",
        "tensor",
        "tensor with a gradient",
        "bfloat16",
        "two channels",
        "float64",
        "backwards in memory",
        "read-only",
        "other byte order",
        "list",
    ],
)
def test_samples_of_any_type_and_shape(recognizer, change):
    assert recognizer.recognize(change(toys.sound(TEXT))).text == TEXT


def test_unsigned_bytes_lie_around_128(recognizer):
    # eight bits are noise to the toy, so its text is compared with that of the same samples
    coarse = np.rint(128 + 127 * toys.sound(TEXT)).astype(np.uint8)
    same = (coarse.astype(np.float32) - 128) / 128
    first, second = recognizer.recognize([coarse, same])
    assert (first.text, first.nbest) == (second.text, second.nbest)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100])
def test_any_sampling_rate(recognizer, rate):
    assert recognizer.recognize(toys.sound(TEXT, rate=rate), rate=rate).text == TEXT


def test_a_file_and_what_was_done_to_it(recognizer, tmp_path, log):
    stereo = np.stack(
        [toys.sound(TEXT, rate=44100), np.zeros_like(toys.sound(TEXT, rate=44100))], 1
    )
    soundfile.write(tmp_path / "a.flac", stereo, 44100)
    assert recognizer.recognize(tmp_path / "a.flac", channel=0).text == TEXT
    assert "a.flac: channel 0 of 2 channels, resampled from 44100 Hz to 8000 Hz" in log.text
    soundfile.write(tmp_path / "low.wav", toys.sound("a"), 4000)
    recognizer.recognize(str(tmp_path / "low.wav"))
    assert "resampled from 4000 Hz to 8000 Hz, no content above 2000 Hz" in log.text
    recognizer.recognize(tmp_path / "a.flac")
    assert "the mean of 2 channels" in log.text


@pytest.mark.parametrize("how", [bytes, bytearray, memoryview, io.BytesIO])
def test_the_bytes_of_a_file_do_as_well_as_its_path(recognizer, how):
    stream = io.BytesIO()
    soundfile.write(stream, toys.sound(TEXT, rate=16000), 16000, format="FLAC")
    assert recognizer.recognize(how(stream.getvalue())).text == TEXT
    both = recognizer.recognize([how(stream.getvalue()), toys.sound("a")])
    assert [found.text for found in both] == [TEXT, "a"]
    assert [word.text for word in recognizer.align(how(stream.getvalue()), TEXT)] == TEXT.split()


def test_an_open_file_does_too(recognizer, tmp_path):
    soundfile.write(tmp_path / "a.wav", toys.sound(TEXT), toys.RATE)
    with open(tmp_path / "a.wav", "rb") as stream:
        assert recognizer.recognize(stream).text == TEXT
    with (
        open(tmp_path / "a.wav", errors="replace") as stream,
        pytest.raises(audio.AudioError, match=r"a.wav: opened as text, expected open\(..., 'rb'\)"),
    ):
        recognizer.recognize(stream)
    with pytest.raises(audio.AudioError, match="the bytes: .*not audio"):
        recognizer.recognize(b"no audio")


def test_the_place_of_a_nan_is_told_in_seconds(recognizer):
    samples = toys.sound(TEXT)
    samples[800:802] = np.nan
    with pytest.raises(audio.AudioError, match="2 of .* samples are NaN .* the first at 0.100 s"):
        recognizer.recognize(samples)
    with pytest.raises(audio.AudioError, match="the first at 0.050 s"):
        recognizer.recognize(samples, rate=16000)


def test_a_list_gives_a_list_in_its_order(recognizer):
    texts = ["a", "abc de bad", "ee b"]
    assert [
        found.text for found in recognizer.recognize([toys.sound(text) for text in texts])
    ] == texts


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((2, 2, 2)), r"got an array of shape \(2, 2, 2\)"),
        (np.full(9000, np.nan), "9000 of 9000 samples are NaN"),
        (np.zeros(0), "got an array of shape"),
        (
            toys.sound(TEXT) * 32768,
            r"expected values in \[-1, 1\]; if they are 16-bit integers, " r"divide them by 32768",
        ),
        (
            (toys.sound(TEXT) * 32768).astype(np.int64),
            "int64, expected floats in .* or one of uint8, int16, int32",
        ),
        (
            (toys.sound(TEXT) * 32768).astype(np.int32),
            "the dtype is int32 but all values fit in 16 bits",
        ),
        (
            torch.from_numpy(toys.sound(TEXT))[None],
            r"channels of 1 samples; expected an array \(T, channels\), as samples.T makes it",
        ),
        (toys.sound(TEXT) + 0j, "the dtype is complex"),
        (None, "the dtype is object|got an array of shape"),
    ],
)
def test_what_is_no_audio_is_refused(recognizer, samples, message):
    with pytest.raises(UserError, match=message):
        recognizer.recognize(samples)


@pytest.mark.parametrize("rate", [0, 1, -8000, float("nan"), 8000.5, "8000"])
def test_a_rate_that_no_audio_has_is_refused(recognizer, rate):
    with pytest.raises(audio.AudioError, match="the sampling rate is .* Hz, expected an integer"):
        recognizer.recognize(toys.sound(TEXT), rate=rate)


@pytest.mark.parametrize("name", ["touch ran|", "touch ran |", "x;touch ran|", "| touch ran"])
def test_a_path_is_never_run(recognizer, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for given in (name, [name]):
        with pytest.raises(audio.AudioError, match="no such file"):
            recognizer.recognize(given)
    with pytest.raises(audio.AudioError, match="no such file"):
        recognizer.align(name, TEXT)
    soundfile.write("a.wav", toys.sound(TEXT), toys.RATE)
    Path("a.wav").rename(name)
    assert recognizer.recognize(name).text == recognizer.recognize(Path(name)).text == TEXT
    assert not Path("ran").exists()


def test_audio_without_a_frame_is_refused(recognizer):
    with pytest.raises(UserError, match="0.013 seconds of audio are shorter than one frame"):
        recognizer.recognize(np.zeros(100, dtype=np.float32))


def test_a_channel_that_is_not_there_is_refused(recognizer):
    with pytest.raises(
        audio.AudioError, match="there is no channel 2; its 2 channels are counted from 0"
    ):
        recognizer.recognize(np.zeros((8000, 2)), channel=2)


# -- times -------------------------------------------------------------------


def test_words_have_the_times_at_which_they_were_made(recognizer):
    samples = toys.sound("abc de", np.random.default_rng(5))
    lead = np.random.default_rng(5).uniform(0, 0.2)
    step = toys.LETTER + toys.GAP
    expected = [(lead, lead + 3 * step), (lead + 4 * step, lead + 6 * step)]
    for words in (recognizer.recognize(samples).words, recognizer.align(samples, "abc de")):
        assert [word.text for word in words] == ["abc", "de"]
        assert [word.start for word in words] == pytest.approx(
            [start for start, _ in expected], abs=0.08
        )
        assert [word.end for word in words] == pytest.approx([end for _, end in expected], abs=0.1)
        assert all(0.5 < word.confidence <= 1 for word in words)


def test_a_text_that_does_not_fit_is_refused(recognizer):
    with pytest.raises(UserError, match="too few frames for the text 'abcdeabcdeabcdeabcde"):
        recognizer.align(toys.sound("a"), "abcde" * 10)


def test_what_the_model_cannot_write_is_named(recognizer, log):
    message = r"not in the vocabulary of the model: 'A' .*'B' .*nothing is left of .*AB.* has 'a', "
    with pytest.raises(UserError, match=message):
        recognizer.align(toys.sound("ab"), "AB")
    assert recognizer.align(toys.sound("ab"), "ab")
    assert "not in the vocabulary" not in log.text
    recognizer.align(toys.sound("ab"), "aé")
    assert "not in the vocabulary of the model: 'é' (U+00E9); replaced by <unk>" in log.text


def test_more_tokens_than_frames_are_said(toy, log):
    searcher = JointBeamConfig(
        beam=2, weights={"ctc": 1.0}, constraints=ConstraintsConfig(min_tokens=500)
    )
    found = asrtool.load(toy / "exp", decode=DecodeConfig(searcher=searcher)).recognize(
        toys.sound("ab")
    )
    assert found.text == ""
    assert "1 of 1 utterances" in log.text and "constraints.min_tokens: 500" in log.text


def test_subtitles(recognizer):
    assert recognizer.recognize(toys.sound(TEXT)).srt().endswith(f"\n{TEXT}\n")


# -- long recordings -----------------------------------------------------------


def joined(count: int, pause: float) -> tuple[np.ndarray, list[np.ndarray]]:
    """Utterances of several words, one after the other with a space between two, and apart."""
    rng = np.random.default_rng(count)
    sounds = [toys.sound(toys.text(rng, 4), rng) for _ in range(count)]
    silence = rng.normal(0, 0.002, round(pause * toys.RATE)).astype(np.float32)
    between = [silence, toys.sound(" ", rng), silence]
    return np.concatenate([part for sound in sounds for part in (sound, *between)]), sounds


def test_joined_utterances_give_the_words_that_they_give_apart(recognizer):
    samples, sounds = joined(12, pause=0.4)
    apart = [found.text for found in recognizer.recognize(sounds)]
    found = with_windows(recognizer, max_seconds=5.0, overlap_seconds=1.5).recognize(samples)
    assert found.windows > 3
    assert found.text == " ".join(apart)
    assert [word.start for word in found.words] == sorted(word.start for word in found.words)


@pytest.mark.parametrize("length", [4.4, 5.1, 6.3, 7.7])
def test_no_word_is_lost_or_doubled_wherever_the_clock_cuts(recognizer, length):
    text = toys.text(np.random.default_rng(3), 40)
    samples = toys.sound(text)
    cut = with_windows(recognizer, max_seconds=length, overlap_seconds=2.0, cut="clock")
    found = cut.recognize(samples)
    assert found.windows > 3
    assert found.text == text


def test_windows_are_no_longer_than_what_training_saw(recognizer, toy):
    seconds = [utterance.duration for utterance in datadir.read(toy / "data" / "train")]
    short, longest = np.quantile(seconds, (0.25, 0.99))
    assert recognizer.windows.max_seconds == pytest.approx(longest, abs=0.001)
    assert recognizer.windows.min_seconds == pytest.approx(short, abs=0.001)
    samples, sounds = joined(12, pause=0.4)
    found = recognizer.recognize(samples)
    assert all(end - start <= longest for start, end in found.spans)
    assert found.text == " ".join(one.text for one in recognizer.recognize(sounds))


def test_without_the_lengths_of_training_the_config_says_how_long_windows_are(recognizer):
    older = replace(recognizer, lengths=None)
    assert older.windows == WindowsConfig(max_seconds=30.0, min_seconds=15.0)
    assert (
        "the durations of the training set are not recorded; run stage 3 again to add them"
        in older.windows_reason
    )
    assert "99% of the 80 training utterances" in recognizer.windows_reason
    asked = with_windows(recognizer, max_seconds=2.0)
    assert asked.windows.max_seconds == 2.0 and asked.windows_reason == (
        "windows.max_seconds of the decoding config"
    )
    assert (
        with_windows(recognizer, cut="clock").windows.max_seconds == recognizer.windows.max_seconds
    )


def test_what_is_short_enough_is_recognised_whole(recognizer):
    found = recognizer.recognize(toys.sound(TEXT, np.random.default_rng(0), pause=0.5))
    assert not found.is_cut and found.windows == 1 and found.silent == 0


def test_silence_is_left_out(recognizer):
    noise = np.random.default_rng(0).normal(0, 0.002, 10 * toys.RATE).astype(np.float32)
    samples = np.concatenate([toys.sound("abc"), noise, toys.sound("de")])
    found = with_windows(recognizer, max_seconds=2.0, overlap_seconds=0.5).recognize(samples)
    assert 9.5 < found.silent < 11
    assert found.text == "abc de"
    starts = [word.start for word in found.words]
    assert starts[0] < 0.5 and starts[1] > 10.4


@pytest.mark.parametrize("level", [0.0, 0.002])
def test_a_long_recording_of_silence_has_no_text(recognizer, level):
    found = recognizer.recognize(
        np.random.default_rng(0).normal(0, level, 60 * toys.RATE).astype(np.float32)
    )
    assert (found.text, found.words, found.windows, found.json()["text"]) == ("", (), 0, "")
    assert found.silent == found.seconds and found.srt() == ""


def test_one_utterance_in_a_long_silence_has_its_times(recognizer):
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.002, 10 * toys.RATE).astype(np.float32)
    found = recognizer.recognize(np.concatenate([noise, toys.sound("abc"), noise]))
    assert found.text == "abc" and found.windows == 1 and found.is_cut
    assert 9.9 < found.words[0].start < 10.3


def test_several_long_recordings_are_recognised_side_by_side(recognizer):
    made = [joined(count, pause=0.3)[0] for count in (9, 2, 7)]
    together = recognizer.recognize([*made, toys.sound("abc")])
    assert [one.text for one in together] == [recognizer.recognize(one).text for one in made] + [
        "abc"
    ]
    assert together[0].windows > 5 and together[3].windows == 1


def test_a_long_recording_of_another_rate(recognizer):
    rng = np.random.default_rng(7)
    texts = [toys.text(rng, 3) for _ in range(6)]
    silence = rng.normal(0, 0.002, 16000).astype(np.float32)
    samples = np.concatenate(
        [part for text in texts for part in (toys.sound(text, rng, rate=16000), silence)]
    )
    found = recognizer.recognize(samples, rate=16000)
    assert found.text == " ".join(texts) and found.windows == 6


def test_another_detector_is_asked_about_long_recordings_only(recognizer, monkeypatch):
    asked = []

    def speech(samples: np.ndarray, pause: float) -> list[tuple[float, float]]:
        asked.append((len(samples) / vad.RATE, pause))
        return [(0.2, 0.8), (3.0, 5.0)]

    monkeypatch.setattr(vad, "speech", speech)
    network = with_windows(recognizer, detector="silero")
    network.recognize(toys.sound("abc"))
    assert not asked
    found = network.recognize(np.tile(toys.sound("abc"), 20))
    assert asked == [(pytest.approx(found.seconds, abs=0.05), 0.3)]
    assert [time for span in found.spans for time in span] == pytest.approx(
        [0.05, 0.95, 2.85, 5.15], abs=0.01
    )
    with pytest.raises(
        UserError, match="silero needs samples, not features; set windows.detector: energy"
    ):
        network.prepare_inputs(recognizer.inputs(toys.sound("abc")))


# -- folders -------------------------------------------------------------------


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no config.yaml: train a model first"):
        asrtool.load(tmp_path)


@pytest.mark.parametrize("checkpoints", [True, False])
def test_a_damaged_average_is_made_anew_or_refused(toy, tmp_path, checkpoints):
    copy = Path(shutil.copytree(toy / "exp", tmp_path / "exp"))
    (average,) = copy.glob("train/average-*.safetensors")
    whole = average.read_bytes()
    average.write_bytes(whole[:-4] + bytes(4))
    if checkpoints:
        asrtool.load(copy)
        assert average.read_bytes() == whole
        return
    for path in copy.glob("train/step-*"):
        shutil.rmtree(path)
    with pytest.raises(
        UserError,
        match="cannot be used: .*SHA-256 does not match.*it cannot be computed again",
    ):
        asrtool.load(copy)


def test_a_training_that_is_not_finished_is_refused(toy, tmp_path):
    copy = Path(shutil.copytree(toy / "exp", tmp_path / "exp"))
    (copy / "train" / "finished.json").unlink()
    with pytest.raises(UserError, match="is not finished; continue it"):
        asrtool.load(copy)
