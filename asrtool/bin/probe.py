"""Write internals of the model for decoded utterances (blanks, attention, kept frames) to
taps.jsonl, for `report`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from asrtool import experiment, imports, log
from asrtool.data.kaldi import datadir
from asrtool.data.loader import Dataset, EvalLoader
from asrtool.encoders import StreamingEncoder
from asrtool.errors import UserError
from asrtool.experiment import DecodeConfig
from asrtool.log import logger
from asrtool.models import AsrModel
from asrtool.nn.attention import CrossAttention, KeyValue
from asrtool.recognizer import Recognizer
from asrtool.report import read
from asrtool.report.sources import TAPS, ScoredSet, choose
from asrtool.score.stored import replace_text
from asrtool.types import Batch, EncoderOutput, Padded, Utterance

HEADS = 16  # taps with more values per frame are not written


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    log.set_up()
    imports.take(args)
    result = read(args.folder)
    settings = experiment.load_decode(args.config, experiment.split_overrides(args.set))
    count = probe(result, args.exp, settings, args.data, choose(result, args.worst, args.also))
    logger.info("%s: %d utterances", args.folder / TAPS, count)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="asrtool probe", description=__doc__, allow_abbrev=False)
    options.add_argument(
        "folder", type=Path, help="folder that stage 5 scored: exp/<tag>/<decode>/<set>"
    )
    options.add_argument(
        "--exp", type=Path, required=True, help="experiment folder that stage 3 wrote"
    )
    options.add_argument(
        "--config",
        "--decode-config",
        dest="config",
        type=Path,
        required=True,
        help="decode_*.yaml that selects the phase and the average",
    )
    options.add_argument("--data", type=Path, required=True, help="the set that was decoded")
    options.add_argument(
        "--worst",
        type=int,
        default=20,
        metavar="N",
        help="number of utterances with the most errors (default: 20)",
    )
    options.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="ID",
        help="also this utterance; may be repeated",
    )
    experiment.add_set_option(options, "override of --config")
    imports.add_options(options)
    return options.parse_args(argv)


@torch.inference_mode()
def probe(
    result: ScoredSet, exp: Path, settings: DecodeConfig, data: Path, chosen: Sequence[str]
) -> int:
    """Run the model once over the chosen utterances and their hypotheses; returns the number of
    lines written.
    """
    recognizer = Recognizer.load(exp, settings)
    wanted = set(chosen)
    utterances = {row.id: row for row in datadir.read(data, measure=False) if row.id in wanted}
    missing = [name for name in chosen if name not in utterances]
    if missing:
        raise UserError(
            f"{data} has no utterance {missing[0]}, which {result.folder} has; give the set that "
            "was decoded"
        )
    rows = datadir.measured(list(utterances.values()), data)
    probed = lines(recognizer, result, rows, settings.batch_seconds)
    replace_text(
        result.folder / TAPS,
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in probed),
    )
    return len(utterances)


def lines(
    recognizer: Recognizer, result: ScoredSet, utterances: Sequence[Utterance], seconds: float
) -> Iterator[dict]:
    """One line of taps.jsonl per utterance, as docs/report.md describes them."""
    if not utterances:
        return
    dataset = Dataset(utterances, recognizer.tokenizer, recognizer.config.data, recognizer.cmvn)
    for batch in EvalLoader(dataset, seconds):
        tokens = [result.lines.get(name, {}).get("tokens", []) for name in batch.ids]
        yield from taps(
            recognizer.model, with_targets(batch, tokens, recognizer.tokenizer.tokens), tokens
        )


def with_targets(batch: Batch, tokens: Sequence[Sequence[str]], vocabulary: Sequence[str]) -> Batch:
    """The batch with hypotheses instead of references, for the attention of the decoder during
    decoding.
    """
    number = {token: index for index, token in enumerate(vocabulary)}
    for name, row in zip(batch.ids, tokens, strict=True):
        if unknown := [token for token in row if token not in number]:
            raise UserError(
                f"utterance {name}: token '{unknown[0]}' is not in the vocabulary of the experiment"
            )
    rows = [torch.tensor([number[token] for token in row], dtype=torch.int64) for row in tokens]
    return replace(batch, targets=Padded.stack(rows))


def taps(model: AsrModel, batch: Batch, tokens: Sequence[Sequence[str]]) -> Iterator[dict]:
    """The lines of taps.jsonl for one batch, from one forward pass."""
    with CrossAttentions(model) as attention:
        encoded = model(batch).encoder
    curves, maps = frame_taps(model, encoded)
    lengths = encoded.frames.lengths.tolist()
    shift, stride = model.frame_shift, stride_of(model)
    for index, name in enumerate(batch.ids):
        positions = encoded.positions[index, : lengths[index]].tolist()
        line: dict = {"id": name, "curves": {}, "maps": {}}
        # Curves and maps need a constant step. With dropped frames only their times are written,
        # and taps that have more frames than the output: those from before the dropping.
        if not regular(positions, stride):
            line["key_frames"] = [round(position * shift, 3) for position in positions]
        for title, values in curves.items():
            if len(values[index]) > len(positions) or regular(positions, stride):
                step = shift if len(values[index]) > len(positions) else shift * stride
                line["curves"][title] = {"step": step, "values": rounded(values[index])}
        for title, values in maps.items():
            if len(values[index]) > len(positions) or regular(positions, stride):
                step = shift if len(values[index]) > len(positions) else shift * stride
                line["maps"][title] = {"step": step, "values": rounded(values[index].T)}
        if attention.weights and positions and regular(positions, stride):
            rows = [*tokens[index], "<eos>"]
            weights = attention.mean()[index, : len(rows), : len(positions)]
            drawn = {"step": shift * stride, "rows": rows, "values": rounded(weights)}
            line["maps"]["attention of the decoder"] = drawn
        yield {key: value for key, value in line.items() if value}


def frame_taps(
    model: AsrModel, encoded: EncoderOutput
) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]:
    """Name -> a row per utterance: (S,) for curves, (S, K) for maps.

    Curves: the probability that a frame is not blank, for each frame-synchronous head; taps with
    one value per frame. Maps: taps with up to `HEADS` values per frame.
    """
    curves, maps = {}, {}
    for name in sorted(model.heads):
        try:
            log_probs = model.log_probs(encoded, name)
        except LookupError:
            continue  # a head with outputs per token, not per frame
        # As wide as the vocabulary, or else classes such as accents, which become a map.
        if log_probs.data.shape[-1] == model.eos + 1:
            curves[f"{name}: not blank"] = [
                1 - row[:, model.blank].exp() for row in log_probs.unpad()
            ]
        elif log_probs.data.shape[-1] <= HEADS:
            maps[name] = [row.exp() for row in log_probs.unpad()]
    for name, tap in encoded.taps.items():
        size = math.prod(tap.data.shape[2:])
        if size <= HEADS and name not in model.heads:
            rows = [row.float().reshape(len(row), size) for row in tap.unpad()]
            (curves if size == 1 else maps)[name] = (
                [row[:, 0] for row in rows] if size == 1 else rows
            )
    return curves, maps


def stride_of(model: AsrModel) -> int:
    """Positions from one frame to the next if no frame is dropped: the stride after the stem."""
    if not isinstance(model.encoder, StreamingEncoder):
        return 1
    return round(model.encoder.seconds_per_frame / model.frame_shift)


def regular(positions: Sequence[int], stride: int = 1) -> bool:
    """Whether every frame of the grid was kept."""
    return list(positions) == list(range(0, stride * len(positions), stride))


def rounded(values: Tensor) -> list:
    return (values.double().mul(1e4).round() / 1e4).tolist()


class CrossAttentions:
    """Context in which the weights of every cross-attention are collected; the fused attention of
    the model does not return them.
    """

    def __init__(self, model: nn.Module) -> None:
        self.weights: list[Tensor] = []  # per layer (B, U, S), mean over the heads
        self._modules = [module for module in model.modules() if isinstance(module, CrossAttention)]

    def __enter__(self) -> CrossAttentions:
        self._hooks = [module.register_forward_hook(self._collect) for module in self._modules]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def mean(self) -> Tensor:
        """(B, U, S): mean over heads and layers."""
        return torch.stack(self.weights).mean(0)

    def _collect(
        self, module: CrossAttention, inputs: tuple[Tensor, KeyValue, Tensor | None], _: Tensor
    ) -> None:
        # softmax(Q K^T / sqrt(d)) again, from the module's own projections
        x, memory, mask = inputs
        query = module.split(module.q_proj(x))
        scores = query @ memory.key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        self.weights.append(scores.softmax(-1).mean(1))


if __name__ == "__main__":
    main()
