"""Augmentation of waveforms (speed, room, noise, babble, gain) and features (SpecAugment).

Every random choice is drawn from a generator of (seed, epoch, utterance id, kind). So results do
not depend on the number of workers or ranks, the order of utterances or a restart, and enabling one
kind does not change the others.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from asrtool.data import audio
from asrtool.data.config import AugmentConfig, NonSpeechConfig, SpecAugmentConfig, SpecSubConfig
from asrtool.errors import UserError
from asrtool.types import Utterance

SILENCE = 1e-10  # mean square below which a recording is silent
ROOMS_CACHED = 256  # impulse responses in the memory of each process


def generator(seed: int, epoch: int, key: str, kind: str = "") -> np.random.Generator:
    """The random generator of an utterance, epoch and kind."""
    # a digest, because `hash()` differs between processes
    digest = hashlib.blake2b(f"{seed} {epoch} {kind} {key}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


# -- features --------------------------------------------------------------


def spec_augment(
    features: np.ndarray,
    config: SpecAugmentConfig,
    rng: np.random.Generator,
    warping: np.random.Generator | None = None,
) -> np.ndarray:
    """SpecAugment (arXiv 1904.08779) of normalised features (T, F): warp, then mask with 0.

    warping: draws the warp instead of `rng`, so that several views of an utterance share it.
    Returns a new array. A mask's width is uniform from 0 to its limit. Time masks share
    `time_share` of the utterance evenly, so that short utterances keep most of their frames
    (adaptive size, arXiv 1912.05533).
    """
    # masks are 0, the mean of normalised features, so they look like an average frame and not like
    # silence
    num_frames, num_bins = features.shape
    out = warp_time(features, config.warp, warping or rng) if config.warp else features.copy()
    for _ in range(config.num_frequency_masks):
        start, end = _stretch(num_bins, config.frequency_width, rng)
        out[:, start:end] = 0
    # each mask gets an even part of the share, whatever the others draw
    share = int(config.time_share * num_frames) // max(config.num_time_masks, 1)
    for _ in range(config.num_time_masks):
        start, end = _stretch(num_frames, min(config.time_width, share), rng)
        out[start:end] = 0
    return out


def spec_sub(features: np.ndarray, config: SpecSubConfig, rng: np.random.Generator) -> np.ndarray:
    """SpecSub (U2++, arXiv 2106.05642) of features (T, F): stretches become copies of earlier ones.

    Returns a new array. A stretch starts at any frame t, is 1 to `time_width` frames long (less at
    the end), and gets the frames of `features` that begin at a random frame of 0 ... t.
    """
    out, num_frames = features.copy(), len(features)
    for _ in range(config.num_substitutions):
        start = int(rng.integers(0, num_frames))
        end = min(start + int(rng.integers(1, config.time_width, endpoint=True)), num_frames)
        source = int(rng.integers(0, start, endpoint=True))
        out[start:end] = features[source : source + end - start]
    return out


def _stretch(size: int, limit: int, rng: np.random.Generator) -> tuple[int, int]:
    width = int(rng.integers(0, min(limit, size), endpoint=True))
    start = int(rng.integers(0, size - width, endpoint=True))
    return start, start + width


def warp_time(features: np.ndarray, limit: int, rng: np.random.Generator) -> np.ndarray:
    """Move a random frame by at most `limit` and stretch both sides linearly, (T, F) to (T, F).

    Utterances of at most 2 * limit + 1 frames are not changed.
    """
    num_frames = len(features)
    if num_frames <= 2 * limit + 1:
        return features.copy()
    centre = int(rng.integers(limit, num_frames - limit - 1, endpoint=True))
    moved = centre + int(rng.integers(-limit, limit, endpoint=True))
    # both sides keep at least one frame, so that the interpolation stays strictly increasing
    moved = min(max(moved, 1), num_frames - 2)
    source = np.interp(
        np.arange(num_frames), [0, moved, num_frames - 1], [0, centre, num_frames - 1]
    )
    # linear interpolation between the two frames around each source position
    below = np.minimum(source.astype(np.int64), num_frames - 2)
    weight = (source - below).astype(features.dtype)[:, None]
    return features[below] * (1 - weight) + features[below + 1] * weight


# -- waveforms -------------------------------------------------------------


def add_noise(samples: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Add noise (T,) to samples (T,) at `snr_db`; unchanged if either is silent."""
    signal_power, noise_power = power(samples), power(noise)
    if min(signal_power, noise_power) < SILENCE:
        return samples
    return samples + noise * np.float32(np.sqrt(signal_power / noise_power / 10 ** (snr_db / 10)))


def add_room(samples: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Convolve samples (T,) with an impulse response (R,), keeping position and energy."""
    total = len(samples) + len(response) - 1
    # padded to the full length of the convolution, so that it does not wrap around, and to a power
    # of two for the FFT
    size = 1 << (total - 1).bit_length()
    spectrum = torch.fft.rfft(torch.from_numpy(samples), size) * torch.fft.rfft(
        torch.from_numpy(response), size
    )
    # the direct sound is the peak of the response: cutting there keeps the alignment with the text
    peak = int(np.abs(response).argmax())
    wet = torch.fft.irfft(spectrum, size)[peak : peak + len(samples)].numpy()
    wet_power = power(wet)
    return wet * np.float32(np.sqrt(power(samples) / wet_power)) if wet_power > SILENCE else samples


def power(samples: np.ndarray) -> float:
    """The mean square of samples (T,)."""
    return float(np.square(samples).sum(dtype=np.float64)) / max(len(samples), 1)


class WaveformAugment:
    """Speed, room, noise, babble and gain, in this order, as the config and the generators say.

    `sets` holds the utterances of the noise, room and babble sets by name. Raises `UserError` if
    one is missing or empty.
    """

    def __init__(
        self, config: AugmentConfig, sets: Mapping[str, Sequence[Utterance]], rate: int, seed: int
    ) -> None:
        self.config = config
        self.rate = rate
        self.seed = seed
        self._noises = _members("noise", config.noise, sets)
        self._rooms = _members("room", config.room, sets)
        self._talkers = _members("babble", config.babble, sets)

    def __call__(self, samples: np.ndarray, epoch: int, utterance_id: str) -> np.ndarray:
        """(T,) float32 to (T',) float32; only a speed other than 1 changes the length."""
        # a generator per kind; each draws whether to apply before how, so shares are independent
        draw = functools.partial(generator, self.seed, epoch, utterance_id)
        config = self.config
        if config.speeds != (1.0,):
            samples = audio.change_speed(samples, float(draw("speed").choice(config.speeds)))
        if config.room is not None and (rng := draw("room")).random() < config.room.share:
            room = self._rooms[rng.integers(len(self._rooms))]
            samples = add_room(samples, _response(room.audio, *room.stretch, self.rate))
        if config.noise is not None and (rng := draw("noise")).random() < config.noise.share:
            noise = self._noises[rng.integers(len(self._noises))]
            snr_db = rng.uniform(*config.noise.snr_db)
            samples = add_noise(samples, excerpt(noise, len(samples), self.rate, rng), snr_db)
        if config.babble is not None and (rng := draw("babble")).random() < config.babble.share:
            count = int(rng.integers(*config.babble.speakers, endpoint=True))
            talkers = [self._talkers[rng.integers(len(self._talkers))] for _ in range(count)]
            voices = [excerpt(talker, len(samples), self.rate, rng) for talker in talkers]
            samples = add_noise(samples, babble(voices), rng.uniform(*config.babble.snr_db))
        if config.gain_db != (0.0, 0.0):
            samples = samples * np.float32(10 ** (draw("gain").uniform(*config.gain_db) / 20))
        return samples


def babble(voices: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of voices (T,) at equal loudness; silent ones stay silent."""
    return sum(voice / np.float32(np.sqrt(max(power(voice), SILENCE))) for voice in voices)


def non_speech(
    recordings: Sequence[Utterance], config: NonSpeechConfig, count: int, seed: int
) -> list[Utterance]:
    """`count` stretches of the recordings as utterances with an empty text, the same in each epoch.

    Speed, gain and other augmentation vary between epochs as for any utterance.
    """
    if not recordings:
        raise UserError(f"data.augment.non_speech.set: the set '{config.set}' has no recordings")
    stretches = []
    for number in range(count):
        rng = generator(seed, 0, str(number), "non_speech")
        source = recordings[rng.integers(len(recordings))]
        duration = min(float(rng.uniform(*config.seconds)), source.duration)
        # a recording shorter than the drawn duration is used whole
        start = source.start + float(rng.uniform(0, source.duration - duration))
        stretches.append(
            Utterance(
                id=f"non_speech-{number:06}",
                audio=source.audio,
                start=start,
                duration=duration,
                speaker="non_speech",
                recording=source.recording or source.id,
            )
        )
    return stretches


def excerpt(noise: Utterance, num_samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """(num_samples,) from a random position of a recording, repeated if it is too short."""
    spare = noise.duration - num_samples / rate
    if spare > 0:
        samples = audio.read(
            noise.audio, noise.start + rng.uniform(0, spare), num_samples / rate, rate
        )
        offset = 0
    else:
        samples = audio.read(noise.audio, *noise.stretch, rate)
        offset = int(rng.integers(max(len(samples), 1)))
    if not len(samples):
        raise UserError(f"the noise {noise.id} ({noise.audio}) has no samples")
    return samples[(offset + np.arange(num_samples)) % len(samples)]


@functools.lru_cache(maxsize=ROOMS_CACHED)
def _response(path: str, start: float, duration: float | None, rate: int) -> np.ndarray:
    response = audio.read(path, start, duration, rate)
    if power(response) == 0:
        raise UserError(f"the room impulse response {path} is silent")
    return response


def _members(
    kind: str, config: object, sets: Mapping[str, Sequence[Utterance]]
) -> Sequence[Utterance]:
    if config is None:
        return ()
    if not sets.get(config.set):
        known = ", ".join(sorted(sets)) or "none"
        raise UserError(
            f"data.augment.{kind}.set: there is no set '{config.set}', or it has no recordings "
            f"(sets: {known})"
        )
    return sets[config.set]
