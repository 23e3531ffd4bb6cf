"""A trained model, ready to recognise speech, and to align a known text with it.

    recognizer = asrtool.load("exp/train_conformer")     # or a folder that `asrtool pack` made
    recognizer.recognize("meeting.flac").text            # of any length; or samples, or a list of either
    recognizer.align("meeting.flac", "GOOD MORNING")     # words and their times
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from asrtool.align import Timed, Word, align, text_of, times_of, words_of
from asrtool.align.formats import srt
from asrtool.classes import Classes, Classifier, classifiers, classify
from asrtool.classes import mean as mean_classes
from asrtool.data import audio, tokenizers
from asrtool.data.fbank import Fbank
from asrtool.data.features import Cmvn
from asrtool.data.sampler import fill
from asrtool.experiment import DecodeConfig, TrainConfig
from asrtool.log import logger
from asrtool.longform import WindowsConfig, contour, join, plan
from asrtool.model_folder import (
    LM,
    ExperimentError,
    averaged,
    build_model,
    check_packed,
    check_pretrained,
    decode_config,
    is_packed,
    language_model,
    limit_chunks,
    model_to_load,
    phase_config,
    sha256,
)
from asrtool.models import TEXT_MODELS, AsrModel
from asrtool.searchers import SEARCHERS, Searcher
from asrtool.searchers.base import CTC_STREAMS, positions_of
from asrtool.train import checkpoint
from asrtool.types import EncoderOutput, Hypothesis, Padded

__all__ = ["ExperimentError", "Recognition", "Recognizer", "averaged", "build_model", "phase_config"]

CTC = "ctc"
Audio = str | Path | np.ndarray | Tensor


class RecognitionError(ValueError):
    """This audio cannot be recognised or aligned; the sentence says why."""


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """What was said in one audio."""

    text: str
    words: tuple[Word, ...] | None  # with times in seconds; None: the model has no CTC head that could tell them
    nbest: tuple[Hypothesis, ...]  # best first; one where the audio was cut into windows
    seconds: float  # of audio
    elapsed: float  # seconds of work: encoding, searching, aligning; its share, by length, of what ran side by side
    windows: int = 1  # in which the audio was recognised
    silent: int = 0  # of these, how many held no speech and were left out
    classes: Classes = field(default_factory=dict)  # labels that the model recognises, such as the accent

    def srt(self) -> str:
        """Subtitles."""
        if self.words is None:
            raise RecognitionError("subtitles need times, which come from a CTC head; this model has none")
        return srt(self.words)

    def json(self) -> dict:
        words = None
        if self.words is not None:
            parts = ("start", "end", "confidence")
            words = [{"text": w.text, **{name: round(getattr(w, name), 4) for name in parts}} for w in self.words]
        factor = round(self.elapsed / max(self.seconds, 1e-9), 4)
        found = {"text": self.text, "words": words, "seconds": round(self.seconds, 3), "rtf": factor}
        return found | ({"classes": self.classes} if self.classes else {})


@dataclass(frozen=True, kw_only=True)
class Recognizer:
    """Built by `load`. `recognize` and `align` take audio, `search` takes inputs as the data loader gives them."""

    config: TrainConfig
    settings: DecodeConfig
    model: AsrModel
    searcher: Searcher
    tokenizer: tokenizers.Tokenizer
    cmvn: Cmvn | None
    weights: Path  # what was loaded: an average or one checkpoint
    lm_weights: Path | None = None  # of the language model, where there is one
    classifiers: tuple[Classifier, ...] = ()

    @classmethod
    def load(
        cls,
        exp: Path,
        decode: DecodeConfig | None = None,
        device: torch.device | str = "cpu",
        weights: Path | None = None,
        lm: Path | None = None,
    ) -> Recognizer:
        """From the folder that training wrote, or a packed one.

        decode: how to search; by default as the model was packed, or what suits its heads. weights: a file instead of
        the average that `decode` asks for. lm: folder of a language model, as training wrote it.
        """
        exp = Path(exp)
        if is_packed(exp):
            check_packed(exp)
        if isinstance(phase_config(exp, decode)[1].model, TEXT_MODELS):
            raise ExperimentError(f"{exp} holds a language model, which recognises no speech; give it by --lm")
        decode = decode or decode_config(exp)
        phase, config = phase_config(exp, decode)
        weights = weights or averaged(exp, decode)
        tokenizer = tokenizers.load(exp / "vocab")
        model = model_to_load(config, tokenizer.size)
        check_pretrained(exp, phase, model)
        checkpoint.load_model(model, weights)
        model = model.to(device).eval()
        limit_chunks(model, decode)
        lm = lm or (exp / LM if (exp / LM).exists() else None)
        language, lm_weights = (None, None) if lm is None else language_model(Path(lm), exp / "vocab", device)
        scorers = {} if language is None else {language.STREAM: language}
        searcher = SEARCHERS.build(decode.searcher, model=model, tokens=tokenizer.tokens, scorers=scorers)
        cmvn = Cmvn.load(exp / "cmvn.json") if (exp / "cmvn.json").exists() else None
        return cls(
            config=config,
            settings=decode,
            model=model,
            searcher=searcher,
            tokenizer=tokenizer,
            cmvn=cmvn,
            weights=weights,
            lm_weights=lm_weights,
            classifiers=classifiers(config, exp / "vocab"),
        )

    # -- inputs as the loader gives them -------------------------------------

    @torch.inference_mode()
    def search(self, inputs: Padded) -> list[list[Hypothesis]]:
        """inputs (B, T, F) normalised features or (B, T) samples -> an n-best list per utterance, best first, with
        text."""
        return self.search_counted(inputs)[0]

    @torch.inference_mode()
    def search_counted(self, inputs: Padded) -> tuple[list[list[Hypothesis]], list[int], list[Classes]]:
        """What `search` gives, how many encoder frames each utterance had, and its labels."""
        encoded = self.encode(inputs)
        return self.search_encoded(encoded), encoded.frames.lengths.tolist(), classify(self.classifiers, encoded)

    def encode(self, inputs: Padded) -> EncoderOutput:
        """inputs as of `search`, in chunks where the decoding config has them."""
        return self.model.encode(inputs.to(self.device), self.settings.chunk)

    def search_encoded(self, encoded: EncoderOutput) -> list[list[Hypothesis]]:
        """What `search` gives, of an encoder's output."""
        nbests = self.searcher.search(encoded)
        return [[replace(h, text=self.tokenizer.decode(h.tokens)) for h in nbest] for nbest in nbests]

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
        """The stream that times come from."""
        return next((stream for stream in CTC_STREAMS if stream in self.model.streams), None)

    @property
    def windows(self) -> WindowsConfig:
        """How long audio is cut: as the decoding config says, else no window is longer than what training saw."""
        return self.settings.windows or WindowsConfig(max_seconds=max(1.0, self.config.data.max_seconds))

    def fingerprint(self) -> str:
        """Of all weights: decoding again with others is another decoding."""
        files = [self.weights, *([self.lm_weights] if self.lm_weights else [])]
        return "+".join(sha256(file)[:16] for file in files)

    # -- audio ---------------------------------------------------------------

    def recognize(
        self, sound: Audio | Sequence[Audio], rate: int | None = None, channel: int | None = None
    ) -> Recognition | list[Recognition]:
        """One audio or a list of them: paths, or samples (T,) or (T, C), floats in [-1, 1], uint8, int16 or int32.

        rate: of samples in Hz, if not the model's own. channel: which one of several, from 0; by default their mean.
        What is longer than `windows.max_seconds` is cut into windows whose words are joined.
        """
        if isinstance(sound, list | tuple):
            return self.transcribe([self.inputs(one, rate, channel) for one in sound])
        return self.transcribe([self.inputs(sound, rate, channel)])[0]

    def inputs(self, sound: Audio, rate: int | None = None, channel: int | None = None) -> Tensor:
        """What the encoder reads of one audio: normalised features (T, F), or samples (T,)."""
        if isinstance(sound, str | Path):
            samples, rate, channels = audio.listen(str(sound), channel)
            self._tell(sound, rate, channels, channel)
        else:
            samples = audio.one_channel(sound, channel)
        samples = audio.resample(samples, self.rate if rate is None else rate, self.rate)
        if self.config.data.input == "waveform":
            return torch.from_numpy(samples)
        features = Fbank(self.config.data.fbank)(torch.from_numpy(samples))
        if not len(features):
            raise RecognitionError(f"{len(samples) / self.rate:.3f} seconds of audio give no frame")
        return features if self.cmvn is None else self.cmvn.apply(features)

    @torch.inference_mode()
    def transcribe(self, inputs: Sequence[Tensor]) -> list[Recognition]:
        """Inputs (T, F) or (T,) of each audio, of any length -> what was said in each."""
        plans = [self._plan(one) for one in inputs]
        pieces = [
            (index, window.start, one[window.start : window.end])
            for index, (one, windows) in enumerate(zip(inputs, plans, strict=True))
            for window in windows
            if window.speech
        ]
        found: list[list[Piece]] = [[] for _ in inputs]
        order = sorted(range(len(pieces)), key=lambda place: -len(pieces[place][2]))
        lengths = [len(pieces[place][2]) * self.step for place in order]
        for first, last in fill(lengths, self.settings.batch_seconds):
            chosen = [pieces[place] for place in order[first:last]]
            for (index, start, _), piece in zip(chosen, self._pieces([part for *_, part in chosen]), strict=True):
                found[index].append(replace(piece, start=start * self.step))
        return [
            self._recognition(sorted(parts, key=lambda part: part.start), windows, len(one) * self.step)
            for one, windows, parts in zip(inputs, plans, found, strict=True)
        ]

    def align(self, sound: Audio, text: str, rate: int | None = None, channel: int | None = None) -> list[Word]:
        """When each word of `text` was said. Raises `RecognitionError` where the text does not fit into the audio."""
        inputs = self.inputs(sound, rate, channel)
        found = self.align_inputs(Padded.stack([inputs]), [self.tokenizer.encode(text)])[0]
        if found is None:
            seconds = len(inputs) * self.step
            raise RecognitionError(f"{seconds:.2f} seconds of audio have too few frames for the text '{text}'")
        return words_of(found)

    @torch.inference_mode()
    def align_inputs(
        self, inputs: Padded, tokens: Sequence[Sequence[int]]
    ) -> list[list[Timed] | None]:
        """inputs as for `search`, tokens of each utterance -> their times; None where they do not fit."""
        if self.timed is None:
            has = ", ".join(sorted(self.model.streams)) or "none"
            raise ExperimentError(f"alignment needs the stream '{CTC}', which no loss trained (it has: {has})")
        seconds = [length * self.step for length in inputs.lengths.tolist()]
        return self._times(self.encode(inputs), tokens, seconds)

    def _tell(self, sound: str | Path, rate: int, channels: int, channel: int | None) -> None:
        """Say what was changed about a file."""
        changes = []
        if channels > 1:
            which = "the mean" if channel is None else f"channel {channel}"
            changes.append(f"{which} of {channels} channels")
        if rate != self.rate:
            changes.append(f"{rate} Hz made {self.rate} Hz")
        if rate < self.rate:
            changes.append(f"nothing is there above {rate // 2} Hz, which the model may have learnt to hear")
        if changes:
            logger.info("%s: %s", sound, ", ".join(changes))

    # -- inside ----------------------------------------------------------------

    def _plan(self, inputs: Tensor) -> list:
        energy, step = contour(inputs.numpy(), self.step)
        windows = self.windows
        if self.timed is None:  # without times words cannot be joined: cut, but never overlap
            windows = replace(windows, overlap_seconds=0.0)
        scale = round(step / self.step)
        planned = [w._replace(start=w.start * scale, end=w.end * scale) for w in plan(energy, step, windows)]
        planned[-1] = planned[-1]._replace(end=len(inputs))
        return [planned[0]._replace(speech=True)] if len(planned) == 1 else planned

    def _pieces(self, inputs: Sequence[Tensor]) -> list[Piece]:
        """Recognise windows side by side."""
        began = time.perf_counter()
        seconds = [len(one) * self.step for one in inputs]
        encoded = self.encode(Padded.stack(list(inputs)))
        nbests = self.search_encoded(encoded)
        times: Iterable = [None] * len(inputs)
        if self.timed is not None:
            times = self._times(encoded, [nbest[0].tokens for nbest in nbests], seconds)
        share = (time.perf_counter() - began) / max(sum(seconds), 1e-9)
        return [
            Piece(nbest=tuple(nbest), timed=timed, seconds=length, elapsed=share * length, classes=classes)
            for nbest, timed, length, classes in zip(
                nbests, times, seconds, classify(self.classifiers, encoded), strict=True
            )
        ]

    def _times(
        self, encoded: EncoderOutput, tokens: Sequence[Sequence[int]], seconds: Sequence[float]
    ) -> list[list[Timed] | None]:
        log_probs = self.model.log_probs(encoded, self.timed)
        positions = positions_of(encoded, log_probs).tolist()
        found = []
        for row, alignment in enumerate(align(log_probs, tokens, self.model.blank)):
            if alignment is None:
                found.append(None)
                continue
            pieces = [self.tokenizer.piece(token) for token in tokens[row]]
            shift = self.model.frame_shift
            found.append(times_of(alignment, tokens[row], pieces, positions[row], shift, seconds[row]))
        return found

    def _recognition(self, pieces: Sequence[Piece], windows: Sequence, seconds: float) -> Recognition:
        elapsed = sum(piece.elapsed for piece in pieces)
        silent = len(windows) - len(pieces)
        if len(windows) == 1:
            (only,) = pieces
            return Recognition(
                text=only.nbest[0].text,
                words=None if only.timed is None else tuple(words_of(only.timed)),
                nbest=only.nbest,
                seconds=seconds,
                elapsed=elapsed,
                classes=only.classes,
            )
        best = [piece.nbest[0] for piece in pieces]
        if self.timed is not None:
            shifted = [[part.later(piece.start) for part in self._spread(piece)] for piece in pieces]
            timed = join([(p.start, p.start + p.seconds, found) for p, found in zip(pieces, shifted, strict=True)])
            words, tokens = words_of(timed), tuple(part.token for part in timed)
            text, sure = text_of(words), tuple(part.confidence for part in timed)
        else:
            words, sure = None, None
            text = " ".join(hypothesis.text for hypothesis in best if hypothesis.text)
            tokens = tuple(token for hypothesis in best for token in hypothesis.tokens)
        whole = Hypothesis(
            tokens=tokens,
            score=sum(hypothesis.score for hypothesis in best),
            parts={name: sum(h.parts[name] for h in best) for name in (best[0].parts if best else ())},
            confidences=sure,
            text=text,
        )
        return Recognition(
            text=text,
            words=None if words is None else tuple(words),
            nbest=(whole,),
            seconds=seconds,
            elapsed=elapsed,
            windows=len(windows),
            silent=silent,
            classes=mean_classes([(piece.seconds, piece.classes) for piece in pieces]),
        )

    def _spread(self, piece: Piece) -> Sequence[Timed]:
        """The tokens of a window; where CTC has no room for them, evenly spaced, with confidence 0."""
        if piece.timed is not None:
            return piece.timed
        tokens = piece.nbest[0].tokens
        bounds = np.linspace(0.0, piece.seconds, len(tokens) + 1).tolist()
        pieces = [self.tokenizer.piece(token) for token in tokens]
        return [
            Timed(token=token, text=text, start=start, end=end, confidence=0.0)
            for token, text, start, end in zip(tokens, pieces, bounds, bounds[1:], strict=False)
        ]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one window said, `start` seconds into the audio; times begin with the window."""

    nbest: tuple[Hypothesis, ...]
    timed: Sequence[Timed] | None  # the best hypothesis' tokens, where CTC can tell their times
    seconds: float
    elapsed: float
    classes: Classes
    start: float = 0.0
