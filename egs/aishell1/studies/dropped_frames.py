"""Which information dropped frames have: a linear probe, and their prediction from kept frames.

The frames are those of the test set at the input of the layer that drops them. Linear models are
fitted on every other utterance and evaluated on the rest.

    probe            A classifier predicts from a dropped frame the token of the nearest key frame.
                     Reported: its accuracy by the distance from that key frame, and for comparison
                     the accuracy of a second classifier on the key frames.
    reconstruction   A regression predicts a dropped frame from the two key frames around it and its
                     relative position between them. Reported: the unexplained share of variance.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from asrtool.data import audio
from asrtool.data.kaldi import datadir
from asrtool.experiment import DecodeConfig
from asrtool.recognizer import Recognizer
from asrtool.searchers import CtcGreedyConfig
from asrtool.system import atomic
from asrtool.types import Padded

DISTANCES = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 10**6))
RIDGE = 1e-3


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--exp", type=Path, required=True, help="experiment with the phase keyframe"
    )
    options.add_argument(
        "--data", type=Path, required=True, help="data directory of the test set, with audio"
    )
    options.add_argument(
        "--layer", type=int, required=True, help="layer before which frames are dropped"
    )
    args = options.parse_args(argv)
    torch.manual_seed(0)
    settings = DecodeConfig(searcher=CtcGreedyConfig(input="inter_ctc"))
    recognizer = Recognizer.load(args.exp, settings)
    rows = [collect(*encoded) for encoded in frames(recognizer, args.data, args.layer)]
    fit, held_out = rows[::2], rows[1::2]
    if not all(any(len(row["dropped"]) for row in part) for part in (fit, held_out)):
        print(
            f"{args.exp}: nothing to measure: too few utterances have dropped frames between two "
            "key frames"
        )
        return
    result = {"probe": probe(fit, held_out), "reconstruction": reconstruction(fit, held_out)}
    atomic.write_text(args.exp / "dropped_frames.json", json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


@torch.inference_mode()
def frames(recognizer: Recognizer, data: Path, layer: int):
    """Yield (S, D) frames before the drop, (M,) indices and (M,) tokens of key frames.

    One tuple for each utterance with at least two key frames.
    """
    seen: list[Padded] = []
    downsampler = recognizer.model.encoder.downsamplers[str(layer)]
    handle = downsampler.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0])
    )
    try:
        for utterance in datadir.read(data):
            duration = None if utterance.recording is None else utterance.duration
            samples = audio.read(utterance.audio, utterance.start, duration, recognizer.rate)
            seen.clear()
            encoded = recognizer.model.encode(Padded.stack([recognizer.inputs(samples)]))
            keys = encoded.taps["key_frames"].data[0].nonzero()[:, 0]
            if len(keys) > 1:
                tokens = encoded.taps["inter_ctc"].data[0].argmax(-1)[keys]
                yield seen[0].data[0], keys, tokens
    finally:
        handle.remove()


def collect(x: Tensor, keys: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Inputs and targets of the linear models, from one utterance.

    x: (S, D) frames; keys, tokens: (M,) indices and tokens of the key frames.
    """
    steps = torch.arange(int(keys[0]), int(keys[-1]))
    after = torch.searchsorted(keys, steps, right=True)
    before = after - 1
    dropped = keys[before] != steps
    steps, before, after = steps[dropped], before[dropped], after[dropped]
    left, right = steps - keys[before], keys[after] - steps
    nearest = torch.where(left <= right, before, after)
    share = (left / (left + right))[:, None].to(x.dtype)
    around = torch.cat([x[keys[before]], x[keys[after]], share, share**2], 1)
    return {
        "dropped": x[steps],
        "around": around,
        "token": tokens[nearest],
        "distance": torch.minimum(left, right),
        "key": x[keys],
        "key_token": tokens,
    }


def joined(rows: list[dict[str, Tensor]], name: str) -> Tensor:
    return torch.cat([row[name] for row in rows])


def least_squares(inputs: Tensor, targets: Tensor) -> Tensor:
    """(n, a), (n, b) -> weights (a + 1, b) of a ridge regression with an intercept."""
    inputs = with_intercept(inputs)
    square = inputs.T @ inputs
    square += RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    return torch.linalg.solve(square, inputs.T @ targets.double())


def with_intercept(inputs: Tensor) -> Tensor:
    return torch.nn.functional.pad(inputs.double(), (0, 1), value=1.0)


def probe(fit: list, held_out: list) -> dict[str, float]:
    """Name -> accuracy of a linear classifier of tokens (least squares on one-hot targets)."""
    vocabulary = (
        int(
            max(
                joined(rows, name).max()
                for rows in (fit, held_out)
                for name in ("token", "key_token")
            )
        )
        + 1
    )
    token, distance = joined(held_out, "token"), joined(held_out, "distance")
    weights = least_squares(joined(fit, "dropped"), torch.eye(vocabulary)[joined(fit, "token")])
    right = (with_intercept(joined(held_out, "dropped")) @ weights).argmax(1) == token
    keys = least_squares(joined(fit, "key"), torch.eye(vocabulary)[joined(fit, "key_token")])
    correct = {
        "key frames": (with_intercept(joined(held_out, "key")) @ keys)
        .argmax(1)
        .eq(joined(held_out, "key_token")),
        "dropped frames": right,
        "the most frequent token": token == joined(fit, "token").mode().values,
    }
    for first, last in DISTANCES:
        inside = (distance >= first) & (distance <= last)
        name = f"dropped, {first} away" if first == last else f"dropped, {first} to {last} away"
        if inside.any():
            correct[name.replace(f" to {10**6}", " and more")] = right[inside]
    return {name: round(float(values.double().mean()), 4) for name, values in correct.items()}


def reconstruction(fit: list, held_out: list) -> dict[str, float]:
    """The unexplained share of the variance of dropped frames, and their number."""
    target, truth = joined(fit, "dropped"), joined(held_out, "dropped").double()
    centre = target.double().mean(0)
    variance = (truth - centre).square().sum()
    weights = least_squares(joined(fit, "around"), target)
    residual = (with_intercept(joined(held_out, "around")) @ weights - truth).square().sum()
    return {"left over": round(float(residual / variance), 4), "frames": len(truth)}


if __name__ == "__main__":
    main()
