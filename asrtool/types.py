"""The data types that all parts share. Masks are True at valid positions.

Legend of all docstrings: B utterances, T input frames or samples, S encoder frames, U target
tokens, F mel bins, D width, V vocabulary with blank 0, A accents, H heads, L layers, N beam rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence


def on_host(values: Tensor) -> Tensor | None:
    """The same numbers on the CPU, where they are known; None where only the device knows them.

    Reading a tensor from a GPU waits until the GPU has computed everything before it. Lengths,
    tokens and labels of a batch come from the host: `sent` keeps its copy beside the device's, and
    `both` computes with either. So what must be decided by such numbers is decided without waiting.
    """
    return values if values.device.type == "cpu" else getattr(values, "_on_host", None)


def sent(values: Tensor, device: torch.device | str, non_blocking: bool = False) -> Tensor:
    """`values.to(device)`, of which `on_host` knows what it knows of `values`."""
    return _known(values.to(device, non_blocking=non_blocking), on_host(values))


def both(how: Callable[..., Tensor], *lengths: Tensor) -> Tensor:
    """how(*lengths), computed on the host too if all `lengths` are known there."""
    known = [on_host(values) for values in lengths]
    if any(values is None for values in known) or lengths[0].device.type == "cpu":
        return how(*lengths)
    return _known(how(*lengths), how(*known))


def _known(values: Tensor, host: Tensor | None) -> Tensor:
    # An attribute of the tensor, so that it goes wherever the tensor goes: `Padded(x, lengths)`
    # with the lengths of another sequence needs no thought of it.
    if host is not None and values is not host:
        values._on_host = host
    return values


class Padded(NamedTuple):
    """Right-padded sequences: data (B, T, ...), lengths (B,) int64."""

    data: Tensor
    lengths: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, T) bool, True = valid."""
        # Computed on the device of the data: lengths are not copied to the host, which would
        # synchronise.
        return torch.arange(self.data.shape[1], device=self.data.device) < self.lengths[:, None]

    @classmethod
    def stack(cls, rows: Sequence[Tensor], padding: float = 0, size: int | None = None) -> Padded:
        """Pad rows (T_i, ...) to one tensor (B, T, ...); `size`: T, by default that of the longest
        row.
        """
        lengths = torch.tensor(
            [row.shape[0] for row in rows], dtype=torch.int64, device=rows[0].device
        )
        data = pad_sequence(list(rows), batch_first=True, padding_value=padding)
        if size is not None:
            data = pad(data, [*(0, 0) * (data.ndim - 2), 0, size - data.shape[1]], value=padding)
        return cls(data, lengths)

    def append(self, value: int) -> Padded:
        """Rows of tokens (B, U) with `value` appended to each: (B, U + 1)."""
        # Rows are of different length: `value` overwrites the first padding of each.
        data = pad(self.data, (0, 1)).scatter(1, self.lengths[:, None], value)
        return Padded(data, both(lambda lengths: lengths + 1, self.lengths))

    def unpad(self) -> list[Tensor]:
        return [row[:length] for row, length in zip(self.data, self.lengths.tolist(), strict=True)]

    def take(self, rows: Tensor) -> Padded:
        """The rows with the indices `rows` (N,), in that order."""
        return Padded(self.data[rows], self.lengths[rows])

    def join(self, other: Padded) -> Padded:
        """These rows followed by those of `other`, padded with zeros to the longer T."""
        size = max(self.data.shape[1], other.data.shape[1])
        parts = [
            pad(data, [*(0, 0) * (data.ndim - 2), 0, size - data.shape[1]])
            for data in (self.data, other.data)
        ]
        return Padded(torch.cat(parts), torch.cat([self.lengths, other.lengths]))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Padded:
        """On a device; `on_host` knows the lengths there, and whole numbers such as tokens."""
        data = self.data.to(device, non_blocking=non_blocking)
        if not self.data.is_floating_point():
            data = _known(data, on_host(self.data))
        return Padded(data, sent(self.lengths, device, non_blocking))


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One stretch of audio with one transcript: a row of a Kaldi data directory."""

    id: str
    audio: str  # a path, or a shell command that ends in "|"
    duration: float  # seconds; NaN: to the end of the audio, not measured yet
    text: str = ""
    speaker: str
    # id of the recording it is cut from (`segments`); None: audio is the utterance
    recording: str | None = None
    start: float = 0.0  # seconds into the recording
    # from the utt2* files: accent, style, environment ...
    labels: Mapping[str, str] = field(default_factory=dict)
    features: str | None = None  # "file.ark:offset", written by stage 1
    num_frames: int | None = None  # feature frames, or samples for waveform inputs

    @property
    def stretch(self) -> tuple[float, float | None]:
        """The part of `audio` to read: its start and its duration in seconds, None for all to the
        end.
        """
        whole = self.recording is None or math.isnan(self.duration)
        return self.start, None if whole else self.duration


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B utterances as padded tensors, the input of models and losses."""

    ids: tuple[str, ...]
    inputs: Padded  # (B, T, F) features or (B, T) samples
    targets: Padded  # (B, U) token ids without sos/eos; U = 0 is legal
    # name -> (B,) class index, -1 where unknown
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    views: int = 1  # so many rows in a row are views of one utterance, augmented differently

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return replace(
            self,
            inputs=self.inputs.to(device, non_blocking),
            targets=self.targets.to(device, non_blocking),
            labels={name: sent(value, device, non_blocking) for name, value in self.labels.items()},
        )

    def pin_memory(self) -> Batch:
        return replace(
            self,
            inputs=Padded(*(part.pin_memory() for part in self.inputs)),
            targets=Padded(*(part.pin_memory() for part in self.targets)),
            labels={name: value.pin_memory() for name, value in self.labels.items()},
        )


@dataclass(frozen=True, kw_only=True)
class EncoderOutput:
    """Output of an encoder: frames (B, S, D); positions (B, S), the index of each frame on the grid
    after the stem; taps, named extra outputs.
    """

    frames: Padded
    positions: Tensor
    taps: Mapping[str, Padded] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DownsamplerOutput:
    """Output of a downsampler: frames (B, S, D); positions (B, S), the index of each frame on the
    grid after the stem; taps, named extra outputs."""

    frames: Padded
    positions: Tensor
    taps: Mapping[str, Padded] = field(default_factory=dict)


class Lattice(NamedTuple):
    """What a transducer says at each pair of a frame and a number of tokens said before it: data
    (B, S, U + 1, 2), the log-probabilities of the blank and of the target's next token; lengths
    (B,) of the frames, token_lengths (B,) without the + 1. The last column has no next token.
    """

    data: Tensor
    lengths: Tensor
    token_lengths: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, S, U + 1) bool, True = valid."""
        _, frames, tokens, _ = self.data.shape
        device = self.data.device
        heard = torch.arange(frames, device=device) < self.lengths[:, None]
        said = torch.arange(tokens, device=device) <= self.token_lengths[:, None]
        return heard[:, :, None] & said[:, None]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Lattice:
        """On a device; `on_host` knows the lengths there."""
        data = self.data.to(device, non_blocking=non_blocking)
        sizes = (sent(part, device, non_blocking) for part in (self.lengths, self.token_lengths))
        return Lattice(data, *sizes)


HeadOutput = Padded | Lattice


class Trainable(nn.Module):
    """The base class of models: what training and checkpoints need to know of them."""

    # frozen: names of parameters that no phase trains; pretrained: names of tensors that
    # checkpoints omit because they never change and are read from `sources`.
    frozen: frozenset[str] = frozenset()
    pretrained: frozenset[str] = frozenset()
    sources: tuple[Mapping[str, str | None], ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelOutput:
    """The encoder's output and that of every head, e.g. `ctc` (B, S, V), `attention` (B, U + 1,
    V).
    """

    encoder: EncoderOutput
    heads: Mapping[str, HeadOutput]

    def head(self, name: str) -> HeadOutput:
        """The output of one head. Raises `LookupError` if the model has no head of that name."""
        if name not in self.heads:
            has = ", ".join(sorted(self.heads)) or "none"
            raise LookupError(f"the model has no head '{name}' (it has: {has})")
        return self.heads[name]


@dataclass(frozen=True, kw_only=True)
class LossReport:
    """total (): weighted sum over the utterances; terms: name -> (B,), unweighted, 0 for skipped
    utterances; skipped (B,) bool: utterances without a finite loss (CTC: fewer frames than
    tokens).
    """

    total: Tensor
    terms: Mapping[str, Tensor]
    skipped: Tensor


@dataclass(frozen=True, kw_only=True)
class Drafted:
    """How a hypothesis came from a draft that a language model verified."""

    tokens: int  # of the draft
    accepted: int  # of these, in the hypothesis
    passes: int  # of the language model over prompt, draft and text


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """One result of a search; n-best lists are sorted best first."""

    tokens: tuple[int, ...]
    score: float  # sum of weight * part, plus the terms that a searcher documents
    # each scorer's unweighted log-probability
    parts: Mapping[str, float] = field(default_factory=dict)
    # encoder position of each token; times frame_shift = seconds
    positions: tuple[int, ...] | None = None
    confidences: tuple[float, ...] | None = None  # each token's posterior, 0 to 1
    drafted: Drafted | None = None  # of a search that verifies drafts
    text: str = ""
