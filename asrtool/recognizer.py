"""A trained model that recognises speech, or aligns a known text with it.

recognizer = asrtool.load("exp/train_conformer")         # or a folder that `asrtool pack` wrote
recognizer.recognize("meeting.flac").text                # of any length; samples, or a list
recognizer.align("meeting.flac", "GOOD MORNING")         # words and their times
"""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from asrtool.align import Timed, Word, align, times_of, words_of
from asrtool.data import audio, tokenizers
from asrtool.data.fbank import Fbank
from asrtool.data.features import Cmvn
from asrtool.data.lengths import Lengths
from asrtool.data.sampler import fill
from asrtool.errors import UserError
from asrtool.experiment import DecodeConfig, TrainConfig
from asrtool.heads import names_of, ranked
from asrtool.log import first_few, logger
from asrtool.longform import PAUSE, Window, WindowsConfig, contour, plan, vad
from asrtool.model_folder import Experiment, chunk_frames, in_chunks, language_model, sha256
from asrtool.models import LM_OUTPUT, AsrModel
from asrtool.recognition import (
    Classes,
    Classifier,
    Piece,
    Recognition,
    classifiers,
    classify,
    put_together,
)
from asrtool.searchers import SEARCHERS, Searcher
from asrtool.searchers.base import positions_of
from asrtool.stored_frames import from_audio
from asrtool.trainer import precision
from asrtool.types import EncoderOutput, Hypothesis, Padded

# quantiles of the durations in training: of short pieces and of the longest window
SHORT, LONG = 0.25, 0.99
SAMPLES = "windows.detector: silero needs samples, not features; set windows.detector: energy"
# a path, the bytes of a file, an open file, or samples
Audio = str | Path | bytes | BinaryIO | np.ndarray | Tensor | Sequence[float]


class Prepared(NamedTuple):
    """The inputs of the model for one audio."""

    inputs: Tensor  # normalised features (T, F), or samples (T,)
    # start and end of speech in seconds, if windows.detector is a network
    speech: list[tuple[float, float]] | None = None


@dataclass(frozen=True, kw_only=True)
class Recognizer:
    """Built by `load`. `recognize` and `align` take audio, `search` takes inputs of the data
    loader.
    """

    config: TrainConfig
    settings: DecodeConfig
    model: AsrModel
    searcher: Searcher
    tokenizer: tokenizers.Tokenizer
    cmvn: Cmvn | None
    weights: Path  # the file that was loaded: an average or one checkpoint
    lm_weights: Path | None = None  # of the language model, if there is one
    classifiers: tuple[Classifier, ...] = ()
    lengths: Lengths | None = None  # of the training set; None: not recorded
    precision: str = "float32"  # of encoder and search: a key of `DTYPES`

    @classmethod
    def load(
        cls,
        exp: Path | Experiment,
        decode: DecodeConfig | None = None,
        device: torch.device | str = "cpu",
        weights: Path | None = None,
        lm: Path | None = None,
        imports: Iterable[str] = (),
    ) -> Recognizer:
        """From a folder that training or `asrtool pack` wrote, or from an open `Experiment`, whose
        files are not checked again.

        decode: the decoding config; by default that of the packed model, or the default search of
        the model's heads. weights: a file instead of the average of `decode`. lm: folder of a
        trained language model. imports: your own modules that the model needs, as in
        "my_package.my_encoder". Raises `UserError` for a folder or a config that does not fit.
        """
        experiment = exp if isinstance(exp, Experiment) else Experiment.open(exp, imports)
        decode = decode or experiment.decode_config()
        phase, config = experiment.phase(decode.phase)
        experiment.refuse_text(config)
        config = replace(config, data=from_audio(config.data))
        weights = weights or experiment.weights(decode)
        device = torch.device(device)
        chosen = precision.choose(decode.precision, device, "precision")
        precision.tell(decode.precision, chosen, device, "precision")
        model = in_chunks(experiment.load(decode, weights).to(device), decode)
        scorers, lm_weights = {}, None
        if (lm or experiment.lm) is not None:
            language, lm_weights = language_model(
                Path(lm or experiment.lm), experiment.folder / "vocab", device
            )
            scorers[LM_OUTPUT] = language
        searcher = SEARCHERS.build(
            decode.searcher, model=model, tokens=experiment.tokenizer.tokens, scorers=scorers
        )
        return cls(
            config=config,
            settings=decode,
            model=model,
            searcher=searcher,
            tokenizer=experiment.tokenizer,
            cmvn=experiment.cmvn,
            weights=weights,
            lm_weights=lm_weights,
            classifiers=classifiers(config, experiment.folder / "vocab"),
            lengths=experiment.lengths(phase),
            precision=chosen,
        )

    # -- inputs as the loader gives them -------------------------------------

    @torch.inference_mode()
    def search(self, inputs: Padded) -> list[list[Hypothesis]]:
        """inputs (B, T, F) normalised features, (B, T) samples or (B, S, D) stored frames -> an
        n-best list per utterance, best first, with text.
        """
        return self.search_counted(inputs)[0]

    @torch.inference_mode()
    def search_counted(
        self, inputs: Padded
    ) -> tuple[list[list[Hypothesis]], list[int], list[Classes]]:
        """The result of `search`, the numbers of encoder frames, and each utterance's labels."""
        encoded = self.encode(inputs)
        return (
            self.search_encoded(encoded),
            encoded.frames.lengths.tolist(),
            self._classify(encoded),
        )

    @property
    def chunk(self) -> int | None:
        """Encoder frames per chunk; None: the encoder sees whole utterances."""
        if self.settings.chunk_ms is None:
            return None
        return chunk_frames(self.model.encoder, self.settings)

    def encode(self, inputs: Padded) -> EncoderOutput:
        """Encode inputs as for `search`, in chunks if the decoding config has them."""
        with precision.autocast(self.device, self.precision):
            return self.model.encode(inputs.to(self.device), self.chunk)

    def search_encoded(self, encoded: EncoderOutput) -> list[list[Hypothesis]]:
        """The result of `search` for an encoder's output."""
        with precision.autocast(self.device, self.precision):
            nbests = self.searcher.search(encoded)
        self._warn_of_empty(nbests, encoded)
        return [
            [replace(h, text=self.tokenizer.decode(h.tokens)) for h in nbest] for nbest in nbests
        ]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def rate(self) -> int:
        """Hz of the samples that the model expects."""
        return self.config.data.fbank.rate

    @property
    def step(self) -> float:
        """Seconds from one input frame (or sample) to the next."""
        fbank = self.config.data.fbank
        return fbank.shift / fbank.rate if self.config.data.input == "fbank" else 1 / fbank.rate

    @property
    def timed(self) -> str | None:
        """The head that provides times: the highest-ranking CTC head; None if there is none."""
        heads = ranked(self.model.heads)
        return next((head.name for head in heads if head.alignment == "ctc"), None)

    @property
    def windows(self) -> WindowsConfig:
        """How audio is cut: by the decoding config, else into windows no longer than the LONG
        quantile of the training utterances.
        """
        config, training = self.settings.windows or WindowsConfig(), self.lengths
        shortest = None if training is None else training.quantile(SHORT)
        longest = self.config.data.max_seconds if training is None else training.quantile(LONG)
        limits, most = config.within(shortest, longest), self.readable
        if limits.max_seconds <= most:
            return limits
        return replace(limits, max_seconds=None).within(None, most)

    @property
    def readable(self) -> float:
        """Seconds of the longest audio that the encoder accepts."""
        seconds = self.model.encoder.max_seconds
        return math.inf if seconds is None else seconds

    @property
    def whole(self) -> float:
        """Seconds of the longest utterance of a set that is decoded without cutting it."""
        return self.readable if self.settings.windows is None else self.windows.max_seconds

    @property
    def windows_reason(self) -> str:
        """Where the length of the longest window comes from."""
        if self.windows.max_seconds == self.readable:
            return "the most that the encoder accepts"
        if self.settings.windows is not None and self.settings.windows.max_seconds is not None:
            return "windows.max_seconds of the decoding config"
        if self.lengths is None:
            return (
                "data.max_seconds, because the durations of the training set are not recorded; "
                "run stage 3 again to add them"
            )
        return f"the longest of {LONG:.0%} of the {self.lengths.utterances} training utterances"

    def fingerprint(self) -> str:
        """Hash of all weights, by which stage stamps tell one decoding from another."""
        files = [self.weights, *([self.lm_weights] if self.lm_weights else [])]
        return "+".join(sha256(file)[:16] for file in files)

    # -- audio ---------------------------------------------------------------

    def recognize(
        self, sound: Audio | Sequence[Audio], rate: int | None = None, channel: int | None = None
    ) -> Recognition | list[Recognition]:
        """Recognise one audio or a list of them: paths, the bytes of files, open files, or samples
        (T,) or (T, C), floats in [-1, 1], uint8, int16 or int32.

        rate: of samples in Hz, by default the model's. channel: one of several, from 0; by default
        their mean. Audio longer than `windows.max_seconds` is cut into windows, whose words are
        joined. Raises `UserError` if the audio cannot be read.
        """
        if isinstance(sound, list | tuple) and not _are_samples(sound):
            return self.transcribe([self.prepare(item, rate, channel) for item in sound])
        return self.transcribe([self.prepare(sound, rate, channel)])[0]

    def inputs(self, sound: Audio, rate: int | None = None, channel: int | None = None) -> Tensor:
        """The input of the encoder for one audio: normalised features (T, F), or samples (T,)."""
        return self.prepare(sound, rate, channel).inputs

    def prepare(
        self, sound: Audio, rate: int | None = None, channel: int | None = None
    ) -> Prepared:
        """One audio as input of `transcribe`."""
        if rate is not None:
            rate = audio.check_rate(rate, "the samples")
        if isinstance(sound, str | Path):
            samples, rate, channels = audio.listen(str(sound), channel)
            self._log_conversion(sound, rate, channels, channel)
        elif (content := _bytes_of(sound)) is not None:
            samples, rate, channels = audio.listen_to(content, channel)
            self._log_conversion(audio.BYTES, rate, channels, channel)
        else:
            rate = self.rate if rate is None else rate
            samples = audio.one_channel(sound, channel, rate=rate)
        samples = audio.resample(samples, rate, self.rate)
        speech = self._speech(samples)
        if self.config.data.input == "waveform":
            return Prepared(torch.from_numpy(samples), speech)
        features = Fbank(self.config.data.fbank)(torch.from_numpy(samples))
        if not len(features):
            raise UserError(
                f"{len(samples) / self.rate:.3f} seconds of audio are shorter than one frame"
            )
        return Prepared(features if self.cmvn is None else self.cmvn.apply(features), speech)

    def prepare_inputs(self, inputs: Tensor) -> Prepared:
        """Inputs of the data loader, (T, F) or (T,), as input of `transcribe`."""
        if self.config.data.input == "waveform":
            return Prepared(inputs, self._speech(inputs.numpy()))
        if self.windows.detector == "silero":
            raise UserError(SAMPLES)
        return Prepared(inputs)

    @torch.inference_mode()
    def transcribe(self, prepared: Sequence[Prepared]) -> list[Recognition]:
        """Recognise prepared audio of any length; one result for each."""
        pieces = [
            (index, window.start, item.inputs[window.start : window.end])
            for index, item in enumerate(prepared)
            for window in self._plan(item)
            if window.speech
        ]
        recognized: list[list[Piece]] = [[] for _ in prepared]
        # Windows of all audio share batches, longest first: similar lengths need little padding.
        order = sorted(range(len(pieces)), key=lambda piece_index: -len(pieces[piece_index][2]))
        lengths = [len(pieces[piece_index][2]) * self.step for piece_index in order]
        for first, last in fill(lengths, self.settings.batch_seconds):
            batch = [pieces[piece_index] for piece_index in order[first:last]]
            for (index, start, _), piece in zip(
                batch, self._pieces([part for *_, part in batch]), strict=True
            ):
                recognized[index].append(replace(piece, start=start * self.step))
        return [
            put_together(
                sorted(parts, key=lambda part: part.start),
                len(item.inputs) * self.step,
                self.tokenizer.piece,
                has_times=self.timed is not None,
            )
            for item, parts in zip(prepared, recognized, strict=True)
        ]

    def align(
        self, sound: Audio, text: str, rate: int | None = None, channel: int | None = None
    ) -> list[Word]:
        """The words of `text` with their times in seconds. Raises `UserError` if the text needs
        more frames than the audio has, or has no character of the model's vocabulary.
        """
        inputs = self.inputs(sound, rate, channel)
        times = self.align_inputs(Padded.stack([inputs]), [self._encode_text(text)])[0]
        if times is None:
            seconds = len(inputs) * self.step
            raise UserError(
                f"{seconds:.2f} seconds of audio have too few frames for the text '{text}'"
            )
        return words_of(times)

    @torch.inference_mode()
    def align_inputs(
        self, inputs: Padded, tokens: Sequence[Sequence[int]]
    ) -> list[list[Timed] | None]:
        """inputs as for `search`, tokens of each utterance -> the tokens with their times; None if
        an utterance has too few frames. Raises `UserError` without a CTC head.
        """
        if self.timed is None:
            raise UserError(
                f"alignment needs a CTC head, which this model does not have (it has: "
                f"{names_of(self.model.heads)})"
            )
        seconds = [length * self.step for length in inputs.lengths.tolist()]
        return self.times(self.encode(inputs), tokens, seconds)

    def times(
        self, encoded: EncoderOutput, tokens: Sequence[Sequence[int]], seconds: Sequence[float]
    ) -> list[list[Timed] | None]:
        """Of an encoder's output: when each of `tokens` was said, by the head `timed`. What
        `align_inputs` gives; seconds: of each utterance.
        """
        with precision.autocast(self.device, self.precision):
            log_probs = self.model.log_probs(encoded, self.timed)
        positions = positions_of(encoded, log_probs).tolist()
        times = []
        for row, alignment in enumerate(align(log_probs, tokens, self.model.blank)):
            if alignment is None:
                times.append(None)
                continue
            pieces = [self.tokenizer.piece(token) for token in tokens[row]]
            shift = self.model.frame_shift
            times.append(
                times_of(alignment, tokens[row], pieces, positions[row], shift, seconds[row])
            )
        return times

    def _warn_of_empty(self, nbests: list[list[Hypothesis]], encoded: EncoderOutput) -> None:
        """Warn of utterances with fewer frames than the tokens that the decoding config demands."""
        constraints = self.settings.searcher.constraints
        min_tokens = 0 if constraints is None else constraints.min_tokens
        lengths = encoded.frames.lengths.tolist()
        empty = [
            length
            for nbest, length in zip(nbests, lengths, strict=True)
            if length and nbest[0].score == -math.inf
        ]
        if min_tokens and empty:
            logger.warning(
                "%d of %d utterances have at most %d frames, too few for constraints.min_tokens: "
                "%d; their text is empty",
                *(len(empty), len(nbests), max(empty), min_tokens),
            )

    def _encode_text(self, text: str) -> list[int]:
        """The tokens of a text. Warns of characters that are not in the vocabulary; raises
        `UserError` if none of the characters are.
        """
        unknown = [letter for letter in self.tokenizer.unknown(text) if not letter.isspace()]
        if unknown:
            codes = [f"'{letter}' (U+{ord(letter):04X})" for letter in sorted(set(unknown))]
            listed = first_few(codes)
            message = f"not in the vocabulary of the model: {listed}"
            if len(unknown) == len("".join(text.split())):
                raise UserError(
                    f"{message}; nothing is left of the text '{text}'. The vocabulary has "
                    f"{self._letters()}"
                )
            logger.warning("%s; replaced by %s", message, tokenizers.UNK)
        return self.tokenizer.encode(text)

    def _letters(self) -> str:
        """The first visible tokens of the vocabulary, for messages."""
        texts = (self.tokenizer.piece(token).strip() for token in range(self.tokenizer.size))
        return first_few([f"'{text}'" for text in texts if text and text != tokenizers.UNK], 5)

    def _log_conversion(
        self, sound: str | Path, rate: int, channels: int, channel: int | None
    ) -> None:
        """Log how the audio of a file was converted."""
        changes = []
        if channels > 1:
            which = "the mean" if channel is None else f"channel {channel}"
            changes.append(f"{which} of {channels} channels")
        if rate != self.rate:
            changes.append(f"resampled from {rate} Hz to {self.rate} Hz")
        if rate < self.rate:
            changes.append(
                f"no content above {rate // 2} Hz, which the model was probably trained on"
            )
        if changes:
            logger.info("%s: %s", sound, ", ".join(changes))

    # -- inside ----------------------------------------------------------------

    def _speech(self, samples: np.ndarray) -> list[tuple[float, float]] | None:
        """Start and end of speech in seconds, by the network; None if the energy is used instead,
        or if the audio is not cut at all.
        """
        windows = self.windows
        if windows.detector == "energy" or len(samples) <= windows.max_seconds * self.rate:
            return None
        return vad.speech(audio.resample(samples, self.rate, vad.RATE), PAUSE)

    def _classify(self, encoded: EncoderOutput) -> list[Classes]:
        with precision.autocast(self.device, self.precision):
            return classify(self.classifiers, encoded)

    def _plan(self, prepared: Prepared) -> list[Window]:
        """The windows of one audio, in its inputs."""
        inputs, windows = prepared.inputs, self.windows
        scale = None if self.cmvn is None else self.cmvn.std
        energy, step = contour(inputs.numpy(), self.step, scale)
        if self.timed is None:  # without times words cannot be joined: cut, but never overlap
            windows = replace(windows, overlap_seconds=0.0)
        # Inputs per step of the contour: 1 for features, the samples of 10 ms for a waveform.
        size = round(step / self.step)
        planned = [
            Window(w.start * size, w.end * size, w.speech)
            for w in plan(energy, step, windows, prepared.speech)
        ]
        # the contour leaves out an incomplete last step
        planned[-1] = planned[-1]._replace(end=len(inputs))
        return planned

    def _pieces(self, inputs: Sequence[Tensor]) -> list[Piece]:
        """Recognise windows as one batch."""
        began = time.perf_counter()
        seconds = [len(window) * self.step for window in inputs]
        encoded = self.encode(Padded.stack(list(inputs)))
        nbests = self.search_encoded(encoded)
        times: Iterable = [None] * len(inputs)
        if self.timed is not None:
            times = self.times(encoded, [nbest[0].tokens for nbest in nbests], seconds)
        share = (time.perf_counter() - began) / max(sum(seconds), 1e-9)
        return [
            Piece(
                nbest=tuple(nbest),
                timed=timed,
                seconds=length,
                elapsed=share * length,
                classes=classes,
            )
            for nbest, timed, length, classes in zip(
                nbests, times, seconds, self._classify(encoded), strict=True
            )
        ]


def _are_samples(sound: Sequence) -> bool:
    """Whether a list holds the samples of one audio, rather than several audios."""
    return bool(sound) and isinstance(sound[0], numbers.Real)


def _bytes_of(sound: Audio) -> bytes | None:
    """The bytes of a file, given as bytes or as an open file; None for anything else."""
    if isinstance(sound, bytes | bytearray | memoryview):
        return bytes(sound)
    if not hasattr(sound, "read"):
        return None
    content = sound.read()
    if not isinstance(content, bytes):
        raise audio.AudioError(
            f"{getattr(sound, 'name', audio.BYTES)}: opened as text, expected open(..., 'rb')"
        )
    return content
