"""What the frames held that key frames leave out: a linear probe, and how well the kept ones tell
them.

Frames are those in front of the drop, of the test set; even utterances fit, odd ones measure.

    probe            a linear classifier reads from a dropped frame the token of the nearest key
                     frame: how often it is
                     right, by the distance from that key frame; beside it, the same for the key
                         frames themselves
    reconstruction   a linear map from the kept frames on both sides and the place between them to
                     the dropped frame:
                     the share of its variance that is left over
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
        "--exp", type=Path, required=True, help="a training with the phase keyframe"
    )
    options.add_argument(
        "--data", type=Path, required=True, help="data directory of the test set, with audio"
    )
    options.add_argument(
        "--layer", type=int, required=True, help="in front of which frames are dropped"
    )
    args = options.parse_args(argv)
    torch.manual_seed(0)
    settings = DecodeConfig(searcher=CtcGreedyConfig(input="inter_ctc"))
    recognizer = Recognizer.load(args.exp, settings)
    rows = [collect(*found) for found in frames(recognizer, args.data, args.layer)]
    fit, held_out = rows[::2], rows[1::2]
    if not all(any(len(row["dropped"]) for row in part) for part in (fit, held_out)):
        print(
            f"{args.exp}: too few utterances with dropped frames between two key frames; nothing "
            "to measure"
        )
        return
    result = {"probe": probe(fit, held_out), "reconstruction": reconstruction(fit, held_out)}
    atomic.write_text(args.exp / "dropped_frames.json", json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


@torch.inference_mode()
def frames(recognizer: Recognizer, data: Path, layer: int):
    """(S, D) frames in front of the drop, (M,) places and (M,) tokens of the key frames, of each
    utterance.
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
            places = encoded.taps["key_frames"].data[0].nonzero()[:, 0]
            if len(places) > 1:
                tokens = encoded.taps["inter_ctc"].data[0].argmax(-1)[places]
                yield seen[0].data[0], places, tokens
    finally:
        handle.remove()


def collect(x: Tensor, places: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Of one utterance: its dropped frames between two key frames, what stands around them, and its
    key frames.
    """
    steps = torch.arange(int(places[0]), int(places[-1]))
    after = torch.searchsorted(places, steps, right=True)
    before = after - 1
    dropped = places[before] != steps
    steps, before, after = steps[dropped], before[dropped], after[dropped]
    left, right = steps - places[before], places[after] - steps
    nearest = torch.where(left <= right, before, after)
    share = (left / (left + right))[:, None].to(x.dtype)
    around = torch.cat([x[places[before]], x[places[after]], share, share**2], 1)
    return {
        "dropped": x[steps],
        "around": around,
        "token": tokens[nearest],
        "distance": torch.minimum(left, right),
        "key": x[places],
        "key_token": tokens,
    }


def joined(rows: list[dict[str, Tensor]], name: str) -> Tensor:
    return torch.cat([row[name] for row in rows])


def least_squares(inputs: Tensor, targets: Tensor) -> Tensor:
    """(n, a), (n, b) -> weights (a + 1, b) of a ridge regression with a constant."""
    inputs = with_one(inputs)
    square = inputs.T @ inputs
    square += RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    return torch.linalg.solve(square, inputs.T @ targets.double())


def with_one(inputs: Tensor) -> Tensor:
    return torch.nn.functional.pad(inputs.double(), (0, 1), value=1.0)


def probe(fit: list, held_out: list) -> dict[str, float]:
    """Name -> share of frames whose token a linear classifier (least squares on one-hot targets)
    reads.
    """
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
    right = (with_one(joined(held_out, "dropped")) @ weights).argmax(1) == token
    keys = least_squares(joined(fit, "key"), torch.eye(vocabulary)[joined(fit, "key_token")])
    found = {
        "key frames": (with_one(joined(held_out, "key")) @ keys)
        .argmax(1)
        .eq(joined(held_out, "key_token")),
        "dropped frames": right,
        "the most frequent token": token == joined(fit, "token").mode().values,
    }
    for first, last in DISTANCES:
        inside = (distance >= first) & (distance <= last)
        name = f"dropped, {first} away" if first == last else f"dropped, {first} to {last} away"
        if inside.any():
            found[name.replace(f" to {10**6}", " and more")] = right[inside]
    return {name: round(float(values.double().mean()), 4) for name, values in found.items()}


def reconstruction(fit: list, held_out: list) -> dict[str, float]:
    """Name -> share of the variance of dropped frames that is left over."""
    target, truth = joined(fit, "dropped"), joined(held_out, "dropped").double()
    centre = target.double().mean(0)
    variance = (truth - centre).square().sum()
    weights = least_squares(joined(fit, "around"), target)
    left = (with_one(joined(held_out, "around")) @ weights - truth).square().sum()
    return {"left over": round(float(left / variance), 4), "frames": len(truth)}


if __name__ == "__main__":
    main()
