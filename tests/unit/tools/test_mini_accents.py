"""The accents of KeSpeech's miniature can be told apart, and espeak-ng does not crash on them."""

from __future__ import annotations

import multiprocessing
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asrtool.data.fbank import Fbank, FbankConfig
from tests.unit.tools import mini

pytest.importorskip(
    "espeakng_loader", reason="the miniatures are spoken by espeak-ng: pip install espeakng-loader"
)
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _find_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(mini.TOOLS))


def test_a_linear_classifier_tells_the_subdialects_of_unseen_voices_apart(tmp_path: Path) -> None:
    """Chance is 11 %; 128 kinds of frames, counted in utterances of about 2 seconds, reach 42 %."""
    from mini_corpus import kespeech, plan, render

    layout = kespeech.KeSpeech()
    units = layout.plan(plan.Size(train=(1440, 96), dev=(9, 9), test=(360, 18)), seed=0)
    units = [unit for unit in units if unit.split in ("train_phase1", "test")]
    render.render(layout.jobs(units, tmp_path, seed=0), 2, lambda done, total: None)
    frames, accents = {"train_phase1": [], "test": []}, {"train_phase1": [], "test": []}
    for unit in units:
        for path in layout.audio_paths(unit, tmp_path):
            frames[unit.split].append(spectra(path))
            accents[unit.split].append(list(kespeech.SUBDIALECTS).index(unit.speaker.accent))
    codebook = clusters(np.concatenate([part[::5] for part in frames["train_phase1"]]), 128)
    counts = {
        split: np.array([kinds(part, codebook) for part in parts])
        for split, parts in frames.items()
    }
    found = discriminant(counts["train_phase1"], np.array(accents["train_phase1"]), counts["test"])
    assert np.mean(found == accents["test"]) >= 0.33


def spectra(path: Path) -> np.ndarray:
    """16 cepstra and their slopes of each frame, without the mean and spread of the utterance: (T,
    32).
    """
    samples, _ = soundfile.read(path, dtype="float32")
    features = Fbank(FbankConfig(num_mel_bins=40))(torch.from_numpy(samples)).double().numpy()
    cepstra = features @ np.cos(np.pi / 40 * (np.arange(40)[:, None] + 0.5) * np.arange(16))
    cepstra = (cepstra - cepstra.mean(axis=0)) / cepstra.std(axis=0)
    return np.concatenate([cepstra[2:-2], cepstra[4:] - cepstra[:-4]], axis=1)


def nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return np.argmin((centres**2).sum(axis=1) - 2 * points @ centres.T, axis=1)


def clusters(points: np.ndarray, count: int) -> np.ndarray:
    """Centres of k-means."""
    centres = points[np.random.default_rng(0).choice(len(points), count, replace=False)]
    for _ in range(10):
        own = nearest(points, centres)
        centres = np.array(
            [
                points[own == k].mean(axis=0) if (own == k).any() else centres[k]
                for k in range(count)
            ]
        )
    return centres


def kinds(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """How often each kind of frame occurs in an utterance, and how fast the sound changes."""
    share = np.bincount(nearest(points, centres), minlength=len(centres)) / len(points)
    return np.concatenate([np.sqrt(share), points[:, 16:].std(axis=0)])


def discriminant(known: np.ndarray, classes: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Classes of `unknown` by linear discriminant analysis."""
    middle, spread = known.mean(axis=0), known.std(axis=0) + 1e-6
    known, unknown = (known - middle) / spread, (unknown - middle) / spread
    means = np.array([known[classes == k].mean(axis=0) for k in range(classes.max() + 1)])
    rest = known - means[classes]
    weights = np.linalg.solve(rest.T @ rest / len(known) + 0.1 * np.eye(known.shape[1]), means.T)
    return np.argmax(unknown @ weights - 0.5 * (means.T * weights).sum(axis=0), axis=1)


def test_espeak_survives_every_voice_and_accent_of_mandarin() -> None:
    from mini_corpus import plan

    for known in (True, False):
        for voice in plan.MANDARIN.manner.voices(known):
            process = multiprocessing.get_context("spawn").Process(
                target=speak_at_random, args=(voice, 200)
            )
            process.start()
            process.join()
            assert process.exitcode == 0, voice


def speak_at_random(voice: str, count: int) -> None:
    sys.path.insert(0, str(mini.TOOLS))
    from mini_corpus import accents, mandarin, sentences
    from mini_corpus.espeak import Espeak

    choose = random.Random(voice)
    words = sentences.vocabulary(mandarin.RULES, mandarin.WORDS)
    espeak = Espeak(seed=1)
    espeak.set_voice("cmn", voice)
    for _ in range(count):
        accent = choose.choice(list(accents.MANDARIN))
        tempo, pitch = accents.tempo_and_pitch(accent)
        espeak.speak(
            accents.spoken(" ".join(choose.choices(words, k=4)), accent, espeak),
            words_per_minute=round(choose.randint(190, 285) * tempo),
            pitch=choose.randint(27, 73) + pitch,
            pitch_range=choose.randint(60, 99),
        )
