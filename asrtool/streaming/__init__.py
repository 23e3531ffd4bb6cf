"""Recognition while the audio comes in, with an encoder that can stream.

    samples -> FeatureStream -> features -> Session (encoder, first pass of the search)
        -> partial results
        -> at a pause: the second pass, the labels -> a final result; the encoder goes on, the
           search begins anew

All state has a bound where the encoder's left context has one: a `Stream` of hours needs the memory
of one of seconds.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from asrtool.data import audio
from asrtool.data.fbank import Fbank
from asrtool.encoders import StreamingEncoder
from asrtool.errors import UserError
from asrtool.recognition import Classes, classify
from asrtool.recognizer import Recognizer
from asrtool.searchers import SEARCHERS, Rescoring
from asrtool.searchers.base import SearchState, StreamingSearcher
from asrtool.types import EncoderOutput, Hypothesis, Padded


class FeatureStream:
    """Samples in pieces of any size -> normalised features, those of the whole audio."""

    def __init__(self, recognizer: Recognizer) -> None:
        if recognizer.config.data.input != "fbank":
            raise UserError(
                "streaming needs data.input: fbank; this model reads waveforms as a whole"
            )
        self._fbank = Fbank(recognizer.config.data.fbank)
        self._cmvn = recognizer.cmvn
        self._rest = np.zeros(0, np.float32)
        self._given = 0  # frames at the start of `_rest` that were given before

    def __call__(self, samples: np.ndarray, final: bool = False) -> Tensor:
        """samples (T,) float32 in [-1, 1] -> the features (T', F) that they complete; T' may be
        0. final: the audio ends with them, which completes the frames that are mirrored there.
        """
        config = self._fbank.config
        samples = np.concatenate([self._rest, samples])
        count = config.num_frames(len(samples)) if final else config.frames_within(len(samples))
        if count <= self._given:
            self._rest = samples
            return torch.zeros(0, config.num_mel_bins)
        features = self._fbank(torch.from_numpy(samples))[self._given : count]
        # frames before the next one whose samples stay: those that the start of `_rest` mirrors
        self._given = min(count, -(-config.before // config.shift))
        self._rest = samples[(count - self._given) * config.shift :]
        return features if self._cmvn is None else self._cmvn.apply(features)


class Session:
    """A batch of utterances that are heard piece by piece; what comes out is what
    `Recognizer.search` gives.

    Rows may `leave` and others may `enter` between two pieces; no row's result depends on the rows
    beside it.
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

    def restart(self) -> None:
        """The next text of the same audio: the search begins anew, the encoder goes on."""
        self._begin(self.batch)

    def _begin(self, batch: int) -> None:
        self._state = self._first.start(batch)
        self._pieces: list[list[EncodedPiece]] = [
            [] for _ in range(batch)
        ]  # the pieces of each row

    def enter(self, count: int) -> range:
        """Take in `count` utterances behind those that are there; gives their rows."""
        before = self.batch
        encoder, chunk = self.recognizer.model.encoder, self.recognizer.chunk
        self._cache = self._cache.join(encoder.init_cache(count, chunk))
        self._state = self._state.join(self._first.start(count))
        self._pieces += [[] for _ in range(count)]
        return range(before, self.batch)

    def leave(self, rows: Sequence[int]) -> tuple[list[list[Hypothesis]], list[Classes]]:
        """What `finish` gives of these rows, in their order, and the end of them: the rows behind
        move up. Raises `ValueError` for a row that is not there, or named twice.
        """
        rows = list(rows)
        if len(set(rows)) < len(rows) or not set(rows) <= set(range(self.batch)):
            raise ValueError(
                f"rows {rows} cannot leave: expected different ones of the {self.batch} rows"
            )
        results = self._results(self._state.take(_index(rows)), [self._pieces[row] for row in rows])
        left = set(rows)
        others = [row for row in range(self.batch) if row not in left]
        self._cache = self._cache.take(_index(others))
        self._state = self._state.take(_index(others))
        self._pieces = [self._pieces[row] for row in others]
        return results

    @torch.inference_mode()
    def accept(self, inputs: Padded, final: Tensor) -> Padded | None:
        """The next features (B, T, F) of each row, 0 included; final (B,): the row ends with them.

        Gives which of the frames that they complete hold speech, (B, S) bool; None where there are
        none.
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
        """The best text of each row so far, by the first pass."""
        return [self._named(hypothesis) for hypothesis in self._first.partial(self._state)]

    def finish(self) -> tuple[list[list[Hypothesis]], list[Classes]]:
        """N-best lists of what was heard since the (re)start, and labels; `restart` before more is
        accepted.
        """
        return self._results(self._state, self._pieces)

    def encoded(self) -> EncoderOutput:
        """What the encoder gave since the (re)start, in one piece."""
        return _joined(self._pieces)

    @torch.inference_mode()
    def _results(
        self, state: SearchState, pieces: Sequence[Sequence[EncodedPiece]]
    ) -> tuple[list[list[Hypothesis]], list[Classes]]:
        nbests = self._first.finish(state)
        classes: list[Classes] = [{} for _ in nbests]
        if any(pieces):
            encoded = _joined(pieces)
            if self._second is not None:
                nbests = self._second.rescore(encoded, nbests)
            classes = [
                hypotheses if length else {}
                for hypotheses, length in zip(
                    classify(self.recognizer.classifiers, encoded),
                    encoded.frames.lengths.tolist(),
                    strict=True,
                )
            ]
        return [[self._named(one) for one in nbest] for nbest in nbests], classes

    def _named(self, hypothesis: Hypothesis) -> Hypothesis:
        return replace(hypothesis, text=self.recognizer.tokenizer.decode(hypothesis.tokens))


class EncodedPiece(NamedTuple):
    """What the encoder gave of one row in one piece: frames (S, D), positions (S,), and taps."""

    frames: Tensor
    positions: Tensor
    taps: dict[str, Tensor]


def _rows_of(output: EncoderOutput) -> list[EncodedPiece]:
    """A piece, row by row, without padding."""
    frames = output.frames.unpad()
    positions = Padded(output.positions, output.frames.lengths).unpad()
    taps = {name: tap.unpad() for name, tap in output.taps.items()}
    return [
        EncodedPiece(frames[row], positions[row], {name: tap[row] for name, tap in taps.items()})
        for row in range(len(frames))
    ]


def _joined(rows: Sequence[Sequence[EncodedPiece]]) -> EncoderOutput:
    """The pieces of each row, one behind the other; at least one row has some."""
    like = next(pieces[0] for pieces in rows if pieces)

    def joined(part: Callable[[EncodedPiece], Tensor]) -> Padded:
        # a row that has just entered has no piece, but needs the shape of one
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
    """The search that goes along with the audio, and the one at the end of a text."""
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


# -- one audio ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EndConfig:
    """When a text ends; the next one begins with the frame behind."""

    pause: float = 0.8  # seconds without a token behind the last one
    # seconds after which any frame without a token will do; after twice as long, any frame
    longest: float = 20.0

    def __post_init__(self) -> None:
        if self.pause <= 0 or self.longest <= 0:
            raise ValueError(
                f"pause ({self.pause:g}) and longest ({self.longest:g}) are seconds above 0"
            )


@dataclass(frozen=True, kw_only=True)
class Result:
    """A partial result, or the final one of a text. start and end: seconds of the audio that it
    covers.
    """

    final: bool
    start: float
    end: float
    hypothesis: Hypothesis
    classes: Classes = field(default_factory=dict)  # of a final result


@dataclass
class Latency:
    """How long the pieces took. `lag`: seconds from a piece's last sample until its result, were
    the audio live.
    """

    seconds: float = 0.0  # of audio
    work: array = field(default_factory=lambda: array("d"))
    lag: array = field(default_factory=lambda: array("d"))
    finals: array = field(default_factory=lambda: array("d"))  # seconds that the second pass took
    _done: float = 0.0  # when the last piece was done, were the audio live

    def add(self, end: float, work: float) -> None:
        """A piece whose last sample came `end` seconds into the audio."""
        self.seconds = end
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
    """One audio, live or from a file: samples in, results out."""

    def __init__(self, recognizer: Recognizer, ends: EndConfig | None = None) -> None:
        self.recognizer = recognizer
        self.ends = ends or EndConfig()
        self.latency = Latency()
        self._features = FeatureStream(recognizer)
        self._session = Session(recognizer, 1)
        self._samples = 0
        self._frames = 0  # that the encoder gave
        self._start = 0  # frame with which the text began
        self._spoke = 0  # the frame behind the last token, or the start

    def accept(self, samples: np.ndarray, final: bool = False) -> Result | None:
        """samples (T,), floats in [-1, 1] or int16, at the model's rate; a result where they
        complete a chunk.
        """
        began = time.perf_counter()
        if len(samples):
            rate = self.recognizer.rate
            samples = audio.one_channel(samples, rate=rate, start=self._samples / rate)
        self._samples += len(samples)
        features = self._features(np.asarray(samples, np.float32), final)
        spoken = self._session.accept(Padded.stack([features]), torch.tensor([final]))
        if spoken is not None:
            self._follow(spoken)
        result = None
        if final or self._ends():
            second = time.perf_counter()
            result = self._finish()
            self.latency.finals.append(time.perf_counter() - second)
        elif spoken is not None:
            result = Result(final=False, **self._span(), hypothesis=self._session.partial()[0])
        self.latency.add(self._samples / self.recognizer.rate, time.perf_counter() - began)
        return result

    def _follow(self, spoken: Padded) -> None:
        frames = spoken.data[0].nonzero()
        if len(frames):
            self._spoke = self._frames + int(frames[-1]) + 1
        self._frames += int(spoken.lengths[0])

    def _ends(self) -> bool:
        """Whether the text ends here."""
        step = self.recognizer.model.encoder.seconds_per_frame
        length, quiet = (self._frames - self._start) * step, (self._frames - self._spoke) * step
        if self._spoke > self._start and quiet >= self.ends.pause:
            return True
        return length >= 2 * self.ends.longest or (length >= self.ends.longest and quiet > 0)

    def _finish(self) -> Result:
        nbests, classes = self._session.finish()
        result = Result(final=True, **self._span(), hypothesis=nbests[0][0], classes=classes[0])
        self._session.restart()
        self._start = self._spoke = self._frames
        return result

    def _span(self) -> dict[str, float]:
        step = self.recognizer.model.encoder.seconds_per_frame
        return {
            "start": self._start * step,
            "end": min(self._frames * step, self._samples / self.recognizer.rate),
        }
