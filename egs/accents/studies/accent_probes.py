#!/usr/bin/env python
"""What frames know about accents, on Common Voice alone, whose accents share their channels.

    python studies/accent_probes.py --exp exp/accents_qifusion_s0 exp/accents_qifusion_s1 \\
        --train dump/<frames>/study_accents --test dump/<frames>/study_accents_commonvoice

For each training: a logistic regression on an utterance's mean frame (as
egs/kespeech/studies/probes.py) after each layer, of the accent embedding G and of the fused frames
M; and the accent head, as it was decoded. Beside them the same regression on the mean log-mel
spectrum, which shows what channel and voice tell, and always the most frequent accent. Balanced
accuracy is the mean over accents. Speakers of Common Voice are unknown, so some may be on both
sides.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from asrtool.data import audio
from asrtool.data.fbank import Fbank, FbankConfig
from asrtool.data.kaldi import datadir
from asrtool.data.loader import Dataset, EvalLoader
from asrtool.model_folder import Experiment
from asrtool.recognizer import Recognizer
from asrtool.types import Padded, Utterance

RECIPE = Path(__file__).resolve().parents[1]
sys.path.append(str(RECIPE.parent / "kespeech" / "studies"))

from probes import classified  # noqa: E402

CORPUS, LABEL = "commonvoice", "accent"
SECONDS = 120.0  # of a batch
Columns = dict[str, np.ndarray]  # representation -> (N, D); label and speaker -> (N,)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--exp", type=Path, nargs="+", required=True, help="trainings to average")
    options.add_argument("--train", type=Path, required=True, help="set to fit on, from stage 1")
    options.add_argument("--test", type=Path, required=True, help="set to evaluate on")
    options.add_argument("--decode-tag", default="greedy", help="decoding with the accent head")
    args = options.parse_args()
    sets = [chosen(folder) for folder in (args.train, args.test)]
    rates: dict[str, list[tuple[float, float]]] = {}
    truth = np.array([row.labels[LABEL] for row in sets[1]])
    values, counts = np.unique(truth, return_counts=True)
    rates["the most frequent accent"] = [
        scores(truth, np.full(len(truth), values[counts.argmax()]))
    ]
    spectrum = [labelled(rows, {"spectrum": spectra(rows)}) for rows in sets]
    rates["mean log-mel spectrum"] = [scores(truth, classified(*spectrum, "spectrum"))]
    for exp in args.exp:
        train, test = (of_model(exp, rows) for rows in sets)
        for name in (key for key in train if key not in ("label", "speaker")):
            rates.setdefault(name, []).append(scores(test["label"], classified(train, test, name)))
        if (head := of_head(exp / args.decode_tag / args.test.name, sets[1])) is not None:
            rates.setdefault("accent head", []).append(scores(truth, head))
    print(
        f"{len(sets[0])} utterances to fit on, {len(truth)} to evaluate on, {len(values)} accents"
    )
    print("| from | accuracy % | balanced % | trainings |\n| --- | --- | --- | --- |")
    for name, both in rates.items():
        plain, balanced = np.mean(both, axis=0)
        print(f"| {name} | {plain:.1f} | {balanced:.1f} | {len(both)} |")


def chosen(folder: Path) -> list[Utterance]:
    return [
        row
        for row in datadir.read(folder)
        if row.labels.get("corpus", CORPUS) == CORPUS and LABEL in row.labels
    ]


def scores(truth: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Accuracy and balanced accuracy, in per cent."""
    right = truth == found
    each = [right[truth == value].mean() for value in np.unique(truth)]
    return 100 * right.mean(), 100 * np.mean(each)


def spectra(rows: Sequence[Utterance]) -> list[np.ndarray]:
    """The mean log-mel spectrum of each utterance."""
    config = FbankConfig()
    fbank = Fbank(config)
    samples = (audio.read(row.audio, *row.stretch, config.rate) for row in rows)
    return [fbank(torch.from_numpy(one)).mean(0).numpy() for one in samples]


def labelled(rows: Sequence[Utterance], columns: dict[str, list]) -> Columns:
    columns |= {"label": [row.labels[LABEL] for row in rows], "speaker": [r.speaker for r in rows]}
    return {name: np.array(values) for name, values in columns.items()}


@torch.inference_mode()
def of_model(exp: Path, rows: Sequence[Utterance]) -> Columns:
    """Mean frames after each layer, of the accent embedding, and of the frames that come out."""
    recognizer = Recognizer.load(exp)
    data = Experiment.open(exp).phase()[1].data  # with stored frames
    dataset = Dataset(rows, recognizer.tokenizer, data, recognizer.cmvn)
    by_id = {row.id: row for row in rows}
    after: dict[str, Padded] = {}
    for number, layer in enumerate(recognizer.model.encoder.layers, 1):
        layer.register_forward_hook(partial(keep, after, f"layer {number}"))
    columns: dict[str, list] = {}
    order: list[Utterance] = []
    for batch in EvalLoader(dataset, SECONDS):
        encoded = recognizer.encode(batch.inputs)
        streams = dict(sorted(after.items()))
        if "accent_embedding" in encoded.taps:
            streams["accent embedding G"] = encoded.taps["accent_embedding"]
            streams["fused frames M"] = encoded.frames
        for name, stream in streams.items():
            columns.setdefault(name, []).extend(one.mean(0).numpy() for one in stream.unpad())
        order += [by_id[key] for key in batch.ids]
    return labelled(order, columns)


def keep(
    streams: dict[str, Padded], name: str, layer: nn.Module, inputs: tuple, output: tuple
) -> None:
    """A hook of a Conformer layer: the frames that come out."""
    _, scope, *_ = inputs
    streams[name] = Padded(output[0], scope.valid.sum(1))


def of_head(decoding: Path, rows: Sequence[Utterance]) -> np.ndarray | None:
    """The accent that the head found most probable for each utterance; None without a head."""
    lines = [json.loads(line) for line in (decoding / "hyps.jsonl").read_text().splitlines()]
    found = {line["id"]: line["classes"][LABEL] for line in lines if "classes" in line}
    if not found:
        return None
    return np.array([max(found[row.id], key=found[row.id].get) for row in rows])


if __name__ == "__main__":
    main()
