"""A transducer in the form of icefall's, which sherpa-onnx reads: three graphs.

    encoder.onnx  features -> encoder_out (B, S, J), what the joiner reads of the frames
    decoder.onnx  y (N, context) -> decoder_out (N, J): the predictor, of the last tokens
    joiner.onnx   encoder_out (N, J), decoder_out (N, J) -> logit (N, V)

The runtime keeps the last tokens itself, so the predictor has to be stateless. It begins with -1
and the blank, as the head does. No search of asrtool finds sos/eos, so the joiner forbids it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from asrtool.errors import UserError
from asrtool.export.graph import Ports, session, write
from asrtool.export.sherpa import PARTS
from asrtool.export.whole import checked
from asrtool.heads.transducer import StatelessPredictor, TransducerHead
from asrtool.recognizer import Recognizer
from asrtool.types import Padded

FORBIDDEN = -1e9  # a log-probability
ROWS = 5  # that are compared


class PredictorGraph(nn.Module):
    """y (N, context) -> (N, J)."""

    def __init__(self, head: TransducerHead) -> None:
        super().__init__()
        self.predictor = head.predictor

    def forward(self, y: Tensor) -> Tensor:
        return self.predictor.read(y)[:, 0]


class JoinerGraph(nn.Module):
    """encoder_out (N, J), decoder_out (N, J) -> log-probabilities (N, V)."""

    def __init__(self, head: TransducerHead, eos: int) -> None:
        super().__init__()
        self.head, self.eos = head, eos

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        log_probs = self.head.logits(encoder_out, decoder_out).log_softmax(-1)
        ends = torch.arange(log_probs.shape[-1]) == self.eos
        return torch.where(ends, FORBIDDEN, log_probs)


def head_of(recognizer: Recognizer, name: str) -> TransducerHead:
    """The head. Raises `UserError` where its predictor has a state."""
    head = recognizer.model.heads[name]
    if not isinstance(head.predictor, StatelessPredictor):
        others = [key for key, other in recognizer.model.heads.items() if other.alignment == "ctc"]
        hint = f"; its CTC head can be exported: --head {others[0]}" if others else ""
        raise UserError(
            "sherpa-onnx runs transducers whose predictor knows the last tokens alone "
            f"(type: stateless), and that of the head '{name}' has a state{hint}"
        )
    return head


def export(
    recognizer: Recognizer, name: str, file: Path, encoder: Callable[[Path], float]
) -> float:
    """Write the encoder's graph by `encoder` to `file`, and the others beside it; gives the largest
    difference from PyTorch.
    """
    head, eos = head_of(recognizer, name), recognizer.model.eos
    first, *others = (file.with_name(f"{part}.onnx") for part in PARTS)
    size, context = head.joiner.in_features, head.predictor.context
    facts = {"vocab_size": str(recognizer.model.vocab_size), "context_size": str(context)}
    tokens = torch.arange(ROWS * context).view(ROWS, context) % recognizer.model.vocab_size - 1
    vectors = torch.randn(2, ROWS, size, generator=torch.Generator().manual_seed(0))
    graphs = (
        (PredictorGraph(head), {"y": tokens}, "decoder_out", facts),
        (
            JoinerGraph(head, eos),
            {"encoder_out": vectors[0], "decoder_out": vectors[1]},
            "logit",
            {"joiner_dim": str(size)},
        ),
    )
    differences = [encoder(first)]
    for target, graph in zip(others, graphs, strict=True):
        differences.append(write_rows(target, *graph))
    return max(differences)


def write_rows(
    file: Path,
    graph: nn.Module,
    inputs: Mapping[str, Tensor],
    output: str,
    metadata: Mapping[str, str],
) -> float:
    """Write a graph of any number of rows; gives its largest difference from PyTorch."""
    rows = ("rows", None)
    ports = Ports(inputs=dict.fromkeys(inputs, rows), outputs={output: rows}, metadata=metadata)
    write(graph.eval(), [part[:2] for part in inputs.values()], ports, file)
    with torch.inference_mode():
        expected = graph(*inputs.values())[None]
    values = {name: part.numpy() for name, part in inputs.items()}
    (found,) = session(file).run(None, values)
    return checked(found[None], Padded(expected, torch.tensor([ROWS])), f"{ROWS} rows")
