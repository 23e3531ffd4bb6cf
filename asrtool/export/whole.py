"""Whole utterances: encoder and CTC head as one graph.

The graph takes `inputs`, features (B, T, F) or samples (B, T), and `lengths` (B,). It gives
`log_probs` (B, S, V) and `frames` (B,), the valid lengths of S. B and T are free.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from asrtool.data.fbank import FLOOR, Fbank
from asrtool.errors import UserError
from asrtool.export.features import FbankGraph
from asrtool.export.graph import TOLERANCE, Ports, session, write
from asrtool.heads import names_of, ranked
from asrtool.recognizer import Recognizer
from asrtool.types import EncoderOutput, Padded

# utterances and frames (of samples: steps of 10 ms) that are compared
SHAPES = ((1, 37), (3, 250), (2, 811))
KINDS = MappingProxyType({"frame": "frame-synchronous", "ctc": "CTC", "transducer": "transducer"})
INPUTS = MappingProxyType({"inputs": ("utterances", "inputs"), "lengths": ("utterances",)})
OUTPUTS = MappingProxyType({"log_probs": ("utterances", "frames"), "frames": ("utterances",)})


class Graph(nn.Module):
    """What is exported: features if it reads samples, normalisation, encoder, head."""

    def __init__(self, recognizer: Recognizer, head: str, from_samples: bool = False) -> None:
        super().__init__()
        self.model = recognizer.model
        self.head = head
        data, cmvn = recognizer.config.data, recognizer.cmvn
        self.reads_samples = data.input == "waveform" or from_samples
        self.fbank = FbankGraph(data.fbank) if from_samples and data.input == "fbank" else None
        self.normalises = cmvn is not None and data.input == "fbank"
        if self.normalises:
            self.register_buffer("mean", torch.from_numpy(cmvn.mean))
            self.register_buffer("std", torch.from_numpy(cmvn.std))

    def forward(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self.fbank is not None:
            inputs, lengths = self.fbank(inputs, lengths)
        if self.normalises:
            inputs = (inputs - self.mean) / self.std
        return tuple(scores(self.model, self.head, self.model.encode(Padded(inputs, lengths))))


def scores(model: nn.Module, head: str, encoded: EncoderOutput) -> Padded:
    """What the graph of an encoder gives: log-probabilities (B, S, V), or what the joiner of a
    transducer reads (B, S, J).
    """
    if model.heads[head].alignment == "transducer":
        return model.heads[head].frames(encoded)
    return model.log_probs(encoded, head)


def output_of(model: nn.Module, head: str) -> str:
    """The name of what `scores` gives."""
    return "encoder_out" if model.heads[head].alignment == "transducer" else "log_probs"


def head_of(
    recognizer: Recognizer, alignments: Sequence[str] | None = None, wanted: str | None = None
) -> str:
    """The head that is exported: `wanted`, else the highest-ranking one with one of these
    alignments; None: any with log-probabilities.
    """
    chosen = [
        head.name
        for head in ranked(recognizer.model.heads)
        if (head.exported if alignments is None else head.alignment in alignments)
    ]
    if not chosen:
        has = names_of(recognizer.model.heads)
        kind = " or ".join(KINDS[name] for name in alignments or ("frame",))
        raise UserError(
            f"only an encoder with a {kind} head can be exported; this model has: {has}"
        )
    if wanted not in (None, *chosen):
        raise UserError(
            f"--head {wanted} cannot be exported in this form; heads that can: {names_of(chosen)}"
        )
    return wanted or chosen[0]


def export(
    recognizer: Recognizer,
    graph: Graph,
    file: Path,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> float:
    """Write `file`; gives the largest difference from PyTorch."""
    example = inputs(recognizer, 2, 57, seed=0, samples=graph.reads_samples)
    first = {output_of(graph.model, graph.head): OUTPUTS["log_probs"]}
    outputs = {**first, "frames": OUTPUTS["frames"]}
    ports = Ports(inputs=INPUTS, outputs=outputs, metadata=metadata)
    write(graph, example, ports, file)
    return compare(graph, recognizer, file)


def inputs(
    recognizer: Recognizer, utterances: int, frames: int, seed: int, samples: bool
) -> tuple[Tensor, Tensor]:
    """Random features like those of the training set, or quiet noise; each utterance shorter than
    the one before.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([max(1, frames - 7 * index) for index in range(utterances)])
    if samples:
        scale = round(0.01 * recognizer.rate)
        return 0.1 * torch.randn(utterances, scale * frames, generator=generator), scale * lengths
    bins = recognizer.config.data.fbank.num_mel_bins
    features = torch.randn(utterances, frames, bins, generator=generator)
    if recognizer.cmvn is not None:
        features = features * torch.from_numpy(recognizer.cmvn.std) + torch.from_numpy(
            recognizer.cmvn.mean
        )
    return features.clamp(min=math.log(FLOOR)), lengths


def compare(graph: Graph, recognizer: Recognizer, file: Path) -> float:
    """The largest difference in valid frames; raises `UserError` where it is above TOLERANCE or a
    length differs.
    """
    running, largest = session(file), 0.0
    # features by the code that made those of training
    plain = graph if graph.fbank is None else Graph(recognizer, graph.head).eval()
    for seed, (utterances, frames) in enumerate(SHAPES, 1):
        data, lengths = inputs(recognizer, utterances, frames, seed, graph.reads_samples)
        with torch.inference_mode():
            given = Padded(data, lengths)
            if graph.fbank is not None:
                given = Fbank(replace(graph.fbank.config, dither=0.0))(given)
            expected = Padded(*plain(*given))
        found, found_lengths = running.run(
            None, {"inputs": data.numpy(), "lengths": lengths.numpy()}
        )
        if not np.array_equal(found_lengths, expected.lengths.numpy()):
            mismatch = f"{found_lengths.tolist()}, in PyTorch {expected.lengths.tolist()}"
            raise UserError(
                f"the graph gives other lengths for {utterances} x {frames} inputs: {mismatch}"
            )
        largest = max(largest, checked(found, expected, f"{utterances} x {frames} inputs"))
    return largest


def checked(found: np.ndarray, expected: Padded, what: str) -> float:
    """The largest difference of log-probabilities (B, S, V) in valid frames. Raises `UserError`
    where that is too much.
    """
    found = found[:, : expected.data.shape[1]]  # a graph may have more padding
    differences = (torch.from_numpy(found) - expected.data)[expected.mask].abs()
    # models of real speech give improbable tokens -30 and less
    allowed = TOLERANCE * (1 + expected.data[expected.mask].abs())
    largest = differences.max().item()
    if not (differences <= allowed).all():
        raise UserError(
            f"the graph differs by {largest:.1e} in log-probabilities for {what}, more than "
            "rounding does"
        )
    return largest
