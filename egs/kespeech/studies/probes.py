#!/usr/bin/env python
"""Linear probes: how well the accent is classified from mean frames before, in and after fusion.

    python studies/probes.py --exp exp/mini --seeds "0 1 2" --tag qifusion \\
        --train dump/mini/fbank80/train --test dump/mini/fbank80/test

For each seed, the model encodes both sets. A logistic regression is fitted on the mean frame of
each training utterance (normalised to mean 0 and variance 1; weight decay selected on a fifth of
the speakers) and evaluated on the test set, which has other speakers. On frames without information
about the accent, its accuracy would be at chance.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from table import bracket
from torch.nn.functional import cross_entropy

from asrtool.data.kaldi import datadir
from asrtool.data.loader import Dataset, EvalLoader
from asrtool.recognizer import Recognizer
from asrtool.score.bootstrap import mean_interval

STREAMS = {
    "acoustic": "acoustic frames E",
    "accent_embedding": "accent embedding G",
    "frames": "fused frames M",
}
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)
MAX_UTTERANCES = 3000  # of the training set, evenly spaced


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--exp", type=Path, required=True, help="folder of the experiments")
    options.add_argument("--seeds", required=True, help="as in '0 1 2'")
    options.add_argument("--tag", required=True, help="name of the experiments, without -s<seed>")
    options.add_argument(
        "--train",
        type=Path,
        required=True,
        help="set to fit the classifiers on, from stage 1",
    )
    options.add_argument("--test", type=Path, required=True, help="set to evaluate them on")
    options.add_argument("--label", default="subdialect", help="label that names the accent")
    args = options.parse_args()
    accuracies: dict[str, list[float]] = {name: [] for name in STREAMS}
    for seed in args.seeds.split():
        recognizer = Recognizer.load(args.exp / f"{args.tag}-s{seed}")
        train, test = (means(recognizer, folder, args.label) for folder in (args.train, args.test))
        for name in STREAMS:
            accuracies[name].append(100 * accuracy(train, test, name))
    values = np.unique(test["label"])
    print(
        f"The test set has {len(values)} accents; {100 * most_frequent(test):.1f} % of its "
        "utterances have the most frequent one.\n"
    )
    print("| input of the classifier | accuracy % | 95 % over seeds |\n| --- | --- | --- |")
    for name, title in STREAMS.items():
        print(
            f"| {title} | {np.mean(accuracies[name]):.1f} | "
            f"{bracket(mean_interval(accuracies[name]))[1:-1]} |"
        )
    change = np.subtract(accuracies["frames"], accuracies["acoustic"])
    print(f"\nM against E: {change.mean():+.1f} points {bracket(mean_interval(change))}")


@torch.inference_mode()
def means(recognizer: Recognizer, folder: Path, label: str) -> dict[str, np.ndarray]:
    """Stream -> (N, D) mean frames; `label` and `speaker` -> (N,); one row for each utterance."""
    rows = [row for row in datadir.read(folder) if label in row.labels]
    rows = rows[:: -(-len(rows) // MAX_UTTERANCES)]
    by_id = {row.id: row for row in rows}
    columns: dict[str, list] = {name: [] for name in (*STREAMS, "label", "speaker")}
    dataset = Dataset(rows, recognizer.tokenizer, recognizer.config.data, recognizer.cmvn)
    for batch in EvalLoader(dataset, 120.0):
        encoded = recognizer.encode(batch.inputs)
        for name in STREAMS:
            stream = encoded.frames if name == "frames" else encoded.taps[name]
            columns[name] += [frames.mean(0).numpy() for frames in stream.unpad()]
        columns["label"] += [by_id[key].labels[label] for key in batch.ids]
        columns["speaker"] += [by_id[key].speaker for key in batch.ids]
    return {name: np.array(values) for name, values in columns.items()}


def accuracy(train: dict[str, np.ndarray], test: dict[str, np.ndarray], name: str) -> float:
    return float((classified(train, test, name) == test["label"]).mean())


def classified(train: dict[str, np.ndarray], test: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Labels (N,) of the test set by a logistic regression; its weight decay is selected on
    held-out speakers.
    """
    speakers = np.unique(train["speaker"])
    held_out = np.isin(train["speaker"], speakers[::5])
    values = np.unique(train["label"])
    index = {"train": np.searchsorted(values, train["label"])}
    best = max(
        DECAYS,
        key=lambda decay: (
            fit(train[name][~held_out], index["train"][~held_out], len(values), decay)(
                train[name][held_out]
            )
            == index["train"][held_out]
        ).mean(),
    )
    return values[fit(train[name], index["train"], len(values), best)(test[name])]


def fit(inputs: np.ndarray, labels: np.ndarray, classes: int, decay: float):
    """Inputs (N, D) and labels (N,) -> a function from inputs to predicted labels."""
    mean, scale = inputs.mean(0), inputs.std(0) + 1e-6
    x, y = torch.tensor((inputs - mean) / scale, dtype=torch.float32), torch.tensor(labels)
    weight = torch.zeros(classes, x.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = (
            cross_entropy(x @ weight[:, :-1].T + weight[:, -1], y) + decay * weight.square().sum()
        )
        value.backward()
        return value

    optimizer.step(loss)
    trained = weight.detach().numpy()
    return lambda x: ((x - mean) / scale @ trained[:, :-1].T + trained[:, -1]).argmax(1)


def most_frequent(test: dict[str, np.ndarray]) -> float:
    """Share of the most frequent accent: the accuracy of always predicting it."""
    return float(np.unique(test["label"], return_counts=True)[1].max() / len(test["label"]))


if __name__ == "__main__":
    main()
