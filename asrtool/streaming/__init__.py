"""Streaming recognition, with an encoder that can stream.

    samples -> FeatureStream -> features -> Session (encoder, first pass of the search)
        -> partial results
        -> at a pause: second pass and labels -> a final result; the search starts again, the
           encoder continues

If the encoder's left context is bounded, so is all state: a `Stream` of hours needs no more memory
than one of seconds.
"""

from __future__ import annotations

import copy
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from asrtool.align import Word, words_of
from asrtool.data import audio
from asrtool.data.fbank import Fbank
from asrtool.encoders import Encoder, StreamingEncoder
from asrtool.errors import UserError
from asrtool.log import logger
from asrtool.model_folder import in_chunks
from asrtool.recognition import Classes, classify
from asrtool.recognizer import Recognizer
from asrtool.searchers import SEARCHERS, Rescoring
from asrtool.searchers.base import StreamingSearcher
from asrtool.types import EncoderOutput, Hypothesis, Padded

CHUNK_MS = 640.0  # what U2++ and its successors report


class FeatureStream:
    """Samples in pieces of any size -> normalised features, equal to those of the whole audio.

    Raises `UserError` for a model that reads waveforms.
    """

    def __init__(self, recognizer: Recognizer) -> None:
        if recognizer.config.data.input != "fbank":
            raise UserError(
                "streaming needs data.input: fbank; this model reads waveforms as a whole"
            )
        self._fbank = Fbank(recognizer.config.data.fbank)
        self._cmvn = recognizer.cmvn
        self._rest = np.zeros(0, np.float32)
        self._given = 0  # frames at the start of `_rest` that were given before
        self._frames = 0  # that were given
        self._recognizer = recognizer

    def __call__(self, samples: np.ndarray, final: bool = False) -> Tensor:
        """samples (T,) float32 in [-1, 1] -> the features (T', F) that they complete, T' >= 0.

        final: the audio ends with them, which completes the frames that are mirrored there.
        """
        return features_of([self], [samples], [final])[0]

    def _append(self, samples: np.ndarray, final: bool) -> int:
        """How many frames of the samples in `_rest` are complete with these."""
        config = self._fbank.config
        self._rest = np.concatenate([self._rest, samples])
        size = len(self._rest)
        return config.num_frames(size) if final else config.frames_within(size)

    def _pop(self, features: Tensor, count: int) -> Tensor:
        """The new ones of the first `count` frames of `_rest`, whose features these are."""
        config = self._fbank.config
        new = features[self._given : count]
        self._frames += len(new)
        # windows overlap, so the samples after the start of the next frame are kept, and those of
        # frames before it that the start of `_rest` mirrors
        self._given = min(count, -(-config.before // config.shift))
        self._rest = self._rest[(count - self._given) * config.shift :]
        return new

    def missing(self, frames: int) -> int:
        """How many samples must still come before `frames` more frames are complete."""
        config = self._fbank.config
        last = (self._given + frames - 1) * config.shift - config.before  # where its window begins
        return max(0, last + config.length - len(self._rest))

    @property
    def missing_of_chunk(self) -> int:
        """How many samples must still come before the encoder's next chunk is complete."""
        chunk = self._recognizer.chunk * self._recognizer.model.encoder.input_frames
        return self.missing(chunk - self._frames % chunk)


def features_of(
    streams: Sequence[FeatureStream], pieces: Sequence[np.ndarray], finals: Sequence[bool]
) -> list[Tensor]:
    """What each of several streams gives for its next samples, computed side by side."""
    given = zip(streams, pieces, finals, strict=True)
    counts = [stream._append(samples, final) for stream, samples, final in given]
    nothing = torch.zeros(0, streams[0]._fbank.config.num_mel_bins)
    found = [nothing] * len(streams)
    ready = [row for row, stream in enumerate(streams) if counts[row] > stream._given]
    if ready:
        fbank, cmvn = streams[0]._fbank, streams[0]._cmvn
        samples = Padded.stack([torch.from_numpy(streams[row]._rest) for row in ready])
        features = fbank(samples).data
        features = features if cmvn is None else cmvn.apply(features)
        for row, computed in zip(ready, features, strict=True):
            found[row] = streams[row]._pop(computed, counts[row])
    return found


class Session:
    """A batch of utterances whose audio arrives piece by piece; results equal those of
    `Recognizer.search`.

    Between two pieces, rows may `leave` and others may `enter`; no result depends on other rows.
    Raises `UserError` for a model that cannot stream.
    """

    def __init__(self, recognizer: Recognizer, batch: int) -> None:
        chunk, encoder = recognizer.chunk, recognizer.model.encoder
        if chunk is None or not isinstance(encoder, StreamingEncoder):
            raise UserError(
                "streaming needs an encoder that can stream, and the size of its chunks (chunk_ms)"
            )
        self.recognizer = recognizer
        self._first, self._second = passes(recognizer)
        self._cache = encoder.init_cache(batch, chunk)
        self._begin(batch)

    @property
    def batch(self) -> int:
        """Number of rows."""
        return len(self._pieces)

    def restart(self, rows: Sequence[int] | None = None) -> None:
        """Start the next text of the same audio, in all rows or in these: the search starts again,
        the encoder continues.
        """
        if rows is None:
            return self._begin(self.batch)
        places = list(range(self.batch))
        for place, row in enumerate(rows):
            places[row], self._pieces[row] = self.batch + place, []
        states = self._state.join(self._first.start(len(rows)))
        self._state = states.take(_index(places))

    def _begin(self, batch: int) -> None:
        self._state = self._first.start(batch)
        self._pieces: list[list[EncodedPiece]] = [
            [] for _ in range(batch)
        ]  # the pieces of each row

    def enter(self, count: int) -> range:
        """Add `count` utterances after the present ones; returns their rows."""
        before = self.batch
        self.join(Session(self.recognizer, count))
        return range(before, self.batch)

    def join(self, other: Session) -> None:
        """Append the rows of `other`, which must not be used afterwards."""
        self._cache = self._cache.join(other._cache)
        self._state = self._state.join(other._state)
        self._pieces += other._pieces

    def take(self, rows: Sequence[int]) -> Session:
        """A session of these rows, in their order, which are removed here: later rows move up.

        Raises `ValueError` for a row that does not exist, or is named twice.
        """
        rows = list(rows)
        if len(set(rows)) < len(rows) or not set(rows) <= set(range(self.batch)):
            raise ValueError(
                f"rows {rows} cannot leave: expected different ones of the {self.batch} rows"
            )
        left = set(rows)
        taken = self.pick(rows)
        rest = self.pick([row for row in range(self.batch) if row not in left])
        self._cache, self._state, self._pieces = rest._cache, rest._state, rest._pieces
        return taken

    def pick(self, rows: Sequence[int]) -> Session:
        """A session of different rows, in their order. They are still here, but their audio goes on
        in one of the two sessions only.
        """
        picked = self.ended(rows)
        picked._cache = self._cache.take(_index(rows))
        return picked

    def ended(self, rows: Sequence[int]) -> Session:
        """The texts of these rows, to `finish`; their audio goes on here, after `restart(rows)`."""
        ended = copy.copy(self)
        ended._cache = None
        ended._state = self._state.take(_index(rows))
        ended._pieces = [self._pieces[row] for row in rows]
        return ended

    def leave(self, rows: Sequence[int]) -> tuple[list[list[Hypothesis]], list[Classes]]:
        """What `finish` gives of these rows, in their order, and the end of them: the rows behind
        move up. Raises `ValueError` for a row that is not there, or named twice.
        """
        return self.take(rows).finish()

    @torch.inference_mode()
    def accept(self, inputs: Padded, final: Tensor) -> Padded | None:
        """Take the next features (B, T, F) of each row, T >= 0; final (B,): the row ends with them.

        Returns which of the completed frames hold speech, (B, S) bool; None if there are none.
        """
        model, device = self.recognizer.model, self.recognizer.device
        if not len(inputs.lengths) == len(final) == self.batch:
            raise ValueError(
                f"{len(inputs.lengths)} rows of features and {len(final)} ends for a session of "
                f"{self.batch} rows"
            )
        if not self.batch:
            return None
        output, self._cache = model.encoder.forward_chunk(
            inputs.to(device), self._cache, final.to(device)
        )
        if not output.frames.data.shape[1]:
            return None
        self._state, spoken = self._first.listen(self._state, output)
        for pieces, piece in zip(self._pieces, _rows_of(output), strict=True):
            pieces.append(piece)
        return spoken

    def partial(self) -> list[Hypothesis]:
        """The best hypothesis of each row so far, from the first pass."""
        return [self._named(hypothesis) for hypothesis in self._first.partial(self._state)]

    @torch.inference_mode()
    def finish(self) -> tuple[list[list[Hypothesis]], list[Classes]]:
        """N-best lists and labels since the (re)start; call `restart` before `accept`."""
        nbests = self._first.finish(self._state)
        readers = self._second is not None or self.recognizer.classifiers
        if not readers or not any(self._pieces):
            return [[self._named(hypothesis) for hypothesis in nbest] for nbest in nbests], [
                {} for _ in nbests
            ]
        encoded = self.encoded()
        if self._second is not None:
            nbests = self._second.rescore(encoded, nbests)
        classes = [
            values if length else {}
            for values, length in zip(
                classify(self.recognizer.classifiers, encoded),
                encoded.frames.lengths.tolist(),
                strict=True,
            )
        ]
        return [[self._named(hypothesis) for hypothesis in nbest] for nbest in nbests], classes

    @torch.inference_mode()
    def words(
        self, texts: Sequence[Hypothesis], seconds: Sequence[float]
    ) -> list[tuple[Word, ...] | None]:
        """The words of one text per row since the (re)start; None without a CTC head to time them,
        or if the row has too few frames.

        Times are seconds from the beginning of the audio, which is `seconds` long.
        """
        recognizer = self.recognizer
        if recognizer.timed is None or not any(self._pieces):
            return [None if recognizer.timed is None or text.tokens else () for text in texts]
        times = recognizer.times(self.encoded(), [text.tokens for text in texts], seconds)
        return [None if timed is None else tuple(words_of(timed)) for timed in times]

    def encoded(self) -> EncoderOutput:
        """The encoder's output since the (re)start, in one piece."""
        return _joined(self._pieces)

    def _named(self, hypothesis: Hypothesis) -> Hypothesis:
        return replace(hypothesis, text=self.recognizer.tokenizer.decode(hypothesis.tokens))


class EncodedPiece(NamedTuple):
    """The encoder's output for one row and one piece: frames (S, D), positions (S,), taps."""

    frames: Tensor
    positions: Tensor
    taps: dict[str, Tensor]


def _rows_of(output: EncoderOutput) -> list[EncodedPiece]:
    """The rows of a piece, without padding; no row keeps the memory of the others."""

    def rows(part: Padded) -> list[Tensor]:
        unpadded = part.unpad()
        return [row.clone() for row in unpadded] if len(unpadded) > 1 else unpadded

    frames = rows(output.frames)
    positions = rows(Padded(output.positions, output.frames.lengths))
    taps = {name: rows(tap) for name, tap in output.taps.items()}
    return [
        EncodedPiece(frames[row], positions[row], {name: tap[row] for name, tap in taps.items()})
        for row in range(len(frames))
    ]


def _joined(rows: Sequence[Sequence[EncodedPiece]]) -> EncoderOutput:
    """The concatenated pieces of each row; at least one row must have any."""
    like = next(pieces[0] for pieces in rows if pieces)

    def joined(part: Callable[[EncodedPiece], Tensor]) -> Padded:
        # a row that has just entered has no piece yet, and takes the shape from another row's
        return Padded.stack(
            [
                torch.cat([part(piece) for piece in pieces]) if pieces else part(like)[:0]
                for pieces in rows
            ]
        )

    return EncoderOutput(
        frames=joined(lambda piece: piece.frames),
        positions=joined(lambda piece: piece.positions).data,
        taps={name: joined(lambda piece, name=name: piece.taps[name]) for name in like.taps},
    )


def _index(rows: Sequence[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64)


def passes(recognizer: Recognizer) -> tuple[StreamingSearcher, Rescoring | None]:
    """The search that follows the audio, and the one at the end of a text, if any.

    Raises `UserError` for a search that needs whole utterances.
    """
    searcher = recognizer.searcher
    if isinstance(searcher, Rescoring):
        return searcher.first, searcher
    if isinstance(searcher, StreamingSearcher):
        return searcher, None
    name = SEARCHERS.name_of(recognizer.settings.searcher)
    able = [
        other
        for other in SEARCHERS.names()
        if issubclass(SEARCHERS.class_named(other), StreamingSearcher | Rescoring)
    ]
    raise UserError(
        f"{name} can only search whole utterances; to stream, use one of {', '.join(able)}"
    )


def with_chunks(
    recognizer: Recognizer, chunk_ms: float | None = None, left_chunks: int | None = None
) -> Recognizer:
    """The recogniser with the chunks given, else those of its decoding config, else the default.

    Raises `UserError` if the model or its search cannot stream.
    """
    settings = recognizer.settings
    chunk = chunk_ms or settings.chunk_ms or _usual(recognizer.model.encoder)
    left = settings.left_chunks if left_chunks is None else left_chunks
    changed = replace(settings, chunk_ms=chunk, left_chunks=left)
    model = in_chunks(recognizer.model, changed)
    if model.encoder.left_chunks is None:
        logger.info(
            "every frame attends to the whole past, so memory and time grow with the audio; "
            "--left-chunks 4 limits them"
        )
    recognizer = replace(recognizer, settings=changed, model=model)
    passes(recognizer)
    return recognizer


def _usual(encoder: Encoder) -> float:
    """The default chunk in milliseconds: a multiple of frames, at most the longest of training."""
    if not isinstance(encoder, StreamingEncoder):
        return CHUNK_MS
    frame = 1000 * encoder.seconds_per_frame
    frames = max(1, round(CHUNK_MS / frame))
    return frame * min(frames, encoder.longest_chunk or frames)


# -- a single stream ----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EndConfig:
    """When a text ends; the next one begins with the following frame."""

    pause: float = 0.8  # seconds without a token after the last one
    # seconds after which a text ends at the next frame without a token, and after twice as long at
    # any frame
    longest: float = 20.0

    def __post_init__(self) -> None:
        if self.pause <= 0 or self.longest <= 0:
            raise ValueError(
                f"pause ({self.pause:g}) and longest ({self.longest:g}) are seconds above 0"
            )


@dataclass(frozen=True, kw_only=True)
class Result:
    """A partial result, or the final one of a text. start, end: its position in seconds."""

    final: bool
    start: float
    end: float
    hypothesis: Hypothesis
    classes: Classes = field(default_factory=dict)  # of a final result
    words: tuple[Word, ...] | None = None  # of a final result, where they were asked for


@dataclass
class Progress:
    """How far one audio was heard, in encoder frames of `step` seconds, and where its text began.

    What the encoder has not given yet is not counted.
    """

    ends: EndConfig
    step: float
    frames: int = 0  # that the encoder gave
    start: int = 0  # frame with which the text began
    spoke: int = 0  # the frame behind the last token, or the start

    def follow(self, spoken: Tensor) -> None:
        """spoken (S,) bool: which of the next frames hold speech."""
        heard = spoken.nonzero()
        if len(heard):
            self.spoke = self.frames + int(heard[-1]) + 1
        self.frames += len(spoken)

    @property
    def text_ends(self) -> bool:
        """Whether the text ends here."""
        length, quiet = (
            (self.frames - self.start) * self.step,
            (self.frames - self.spoke) * self.step,
        )
        if self.spoke > self.start and quiet >= self.ends.pause:
            return True
        return length >= 2 * self.ends.longest or (length >= self.ends.longest and quiet > 0)

    def next_text(self) -> None:
        """The next frame begins another text."""
        self.start = self.spoke = self.frames

    def span(self, seconds: float) -> dict[str, float]:
        """Start and end of the text so far, in audio of which `seconds` came."""
        return {"start": self.start * self.step, "end": min(self.frames * self.step, seconds)}


@dataclass
class Latency:
    """Processing times of the pieces. `lag`: seconds from a piece's last sample to its result, if
    the audio were live.
    """

    seconds: float = 0.0  # of audio
    work: array = field(default_factory=lambda: array("d"))
    lag: array = field(default_factory=lambda: array("d"))
    finals: array = field(default_factory=lambda: array("d"))  # seconds of the second pass
    _done: float = 0.0  # time at which the last piece would be done, if the audio were live

    def add(self, end: float, work: float) -> None:
        """Add a piece that took `work` seconds; its last sample is `end` seconds into the audio."""
        self.seconds = end
        # a piece waits for its last sample, and for the piece before it
        self._done = max(self._done, end) + work
        self.work.append(work)
        self.lag.append(self._done - end)

    def json(self) -> dict:
        def of(values: array) -> dict:
            if not values:
                return {}
            median, most, longest = np.quantile(values, (0.5, 0.95, 1.0)).tolist()
            return {"median": round(median, 4), "95%": round(most, 4), "longest": round(longest, 4)}

        factor = round(sum(self.work) / max(self.seconds, 1e-9), 4)
        fields = {"seconds": round(self.seconds, 3), "rtf": factor, "pieces": len(self.work)}
        return fields | {"work": of(self.work), "lag": of(self.lag), "second_pass": of(self.finals)}


class Stream:
    """A single audio stream, live or from a file: samples in, results out."""

    def __init__(self, recognizer: Recognizer, ends: EndConfig | None = None) -> None:
        self.recognizer = recognizer
        self.latency = Latency()
        self._features = FeatureStream(recognizer)
        self._session = Session(recognizer, 1)
        self._samples = 0
        step = recognizer.model.encoder.seconds_per_frame
        self._progress = Progress(ends or EndConfig(), step)

    @property
    def missing(self) -> int:
        """How many samples must still come until the next chunk is complete."""
        return self._features.missing_of_chunk

    def accept(self, samples: np.ndarray, final: bool = False) -> Result | None:
        """samples (T,), floats in [-1, 1] or int16, at the model's rate -> a result if they
        complete a chunk, else None.
        """
        began = time.perf_counter()
        rate, progress = self.recognizer.rate, self._progress
        if len(samples):
            samples = audio.one_channel(samples, rate=rate, start=self._samples / rate)
        self._samples += len(samples)
        features = self._features(np.asarray(samples, np.float32), final)
        spoken = self._session.accept(Padded.stack([features]), torch.tensor([final]))
        if spoken is not None:
            progress.follow(spoken.unpad()[0])
        result = None
        if final or progress.text_ends:
            second_pass = time.perf_counter()
            result = self._finish()
            self.latency.finals.append(time.perf_counter() - second_pass)
        elif spoken is not None:
            span = progress.span(self._samples / rate)
            result = Result(final=False, **span, hypothesis=self._session.partial()[0])
        self.latency.add(self._samples / rate, time.perf_counter() - began)
        return result

    def _finish(self) -> Result:
        nbests, classes = self._session.finish()
        span = self._progress.span(self._samples / self.recognizer.rate)
        result = Result(final=True, **span, hypothesis=nbests[0][0], classes=classes[0])
        self._session.restart()
        self._progress.next_text()
        return result
