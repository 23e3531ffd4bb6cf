"""Labels to score by, and speakers: from `utt2*` and `spk2*` of a data directory, or derived.

| label | values |
|---|---|
| with a file `utt2<label>`, or `spk2<label>` and `utt2spk` | those of the file; numbers as ranges |
| `length` | ranges of the tokens that the reference has |
| `speaking_rate` | ranges of reference tokens per second of `utt2dur`, else of the audio |
| `snr` | ranges of the signal-to-noise ratio in dB, measured from the audio |

A file takes precedence over a derived label. Ranges start at the edges given by
`<label>:<edge>/<edge>/...`, else at those of `EDGES`, else at the quartiles of the set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from asrtool.errors import UserError
from asrtool.score.normalize import normalizer, splitter
from asrtool.score.transcripts import first_of, read_transcripts

SPEAKERS = "spk"  # utt2spk
DERIVED = ("length", "speaking_rate", "snr")
EDGES = {"length": (1, 6, 11, 21, 41), "snr": (0, 5, 10, 15, 20, 30)}
FEW = 12  # with at most so many different numbers, a file is not divided into ranges
UNLISTED = {"dur", "num_frames", "num_samples", "uniq"}  # utt2* files that are not labels

Measure = Callable[[Path, list[str]], Mapping[str, float]]  # data directory, ids -> number


def labels_for(
    folder: Path | None,
    names: Sequence[str],
    references: Mapping[str, str],
    metric: str,
    normalize: str,
    measures: Mapping[str, Measure],
) -> dict[str, dict[str, str]]:
    """Label -> utterance id -> value, for labels as the command line names them (`snr:0/10/20`).

    measures: functions that measure `snr` (in dB) and `seconds` if no file has them.
    """
    labels = {}
    for text in names:
        name, _, edges = text.partition(":")
        if folder is not None and name not in labels and _files(folder, name):
            values = read_labels(folder, name, references)
            # ids may be numbers
            numeric = _numbers(values, text if edges else "") if name != SPEAKERS else None
            labels[name] = _ranges(name, numeric, edges) if numeric is not None else values
        elif name in DERIVED:
            labels[name] = _ranges(
                name, _derived(name, folder, references, metric, normalize, measures), edges
            )
        elif folder is None:
            reason = "the labels come from a data directory, but the reference is a file"
            raise UserError(f"--group-by {name}: {reason}")
        else:
            read_labels(folder, name, references)  # raises an error that lists the labels
    return labels


def read_labels(folder: Path, label: str, ids: Iterable[str]) -> dict[str, str]:
    """The value of each of `ids` in `utt2<label>`, else `spk2<label>`, of a data directory.

    Raises `UserError` if there is no such file, or it lacks any of them.
    """
    files = _files(folder, label)
    if not files:
        there = ", ".join(labels_of(folder)) or "none"
        reason = f"no label '{label}' (no file utt2{label} or spk2{label})"
        raise UserError(
            f"{folder}: {reason}; the folder has: {there}; always there: {', '.join(DERIVED)}"
        )
    ids = list(ids)
    values = read_transcripts(files[0])
    if files[0].name.startswith("spk2"):
        speakers = read_labels(folder, SPEAKERS, ids)
        values = {name: values.get(speakers[name], "") for name in ids}
    missing = [name for name in ids if not values.get(name)]
    if missing:
        raise UserError(
            f"{files[0]}: no {label} for {len(missing)} of {len(ids)} utterances: "
            f"{first_of(missing)}"
        )
    return {name: values[name] for name in ids}


def labels_of(folder: Path) -> list[str]:
    """Labels that the utt2* and spk2* files of a data directory offer."""
    files = [
        path.name for kind in ("utt2", "spk2") for path in folder.glob(f"{kind}*") if path.is_file()
    ]
    return sorted({name[4:] for name in files} - UNLISTED - {"utt"})


def read_speakers(folder: Path | None, file: Path, ids: Iterable[str]) -> dict[str, str] | None:
    """Read speakers from utt2spk, or from the ids of a trn file as sclite does; else None."""
    if folder is not None and _files(folder, SPEAKERS):
        return read_labels(folder, SPEAKERS, ids)
    if file.suffix.lower() == ".trn":
        return {name: name.split("-")[0] if "-" in name else "unknown" for name in ids}
    return None


def _files(folder: Path, label: str) -> list[Path]:
    paths = [folder / f"{kind}{label}" for kind in ("utt2", "spk2") if "/" not in label]
    return [path for path in paths if path.is_file() and path.name != "spk2utt"]


def _derived(
    name: str,
    folder: Path | None,
    references: Mapping[str, str],
    metric: str,
    normalize: str,
    measures: Mapping[str, Measure],
) -> dict[str, float]:
    if name == "snr":
        if folder is None:
            raise UserError(
                "--group-by snr: it is measured from a data directory, but the reference is a file"
            )
        return dict(measures["snr"](folder, list(references)))
    prepare, split = normalizer(normalize), splitter(metric)
    lengths = {key: float(len(split(prepare(text)))) for key, text in references.items()}
    if name == "length":
        return lengths
    if folder is None:
        reason = (
            "it needs a data directory, with utt2dur or with audio, but the reference is a file"
        )
        raise UserError(f"--group-by speaking_rate: {reason}")
    # utt2dur costs nothing; without it every file has to be opened.
    if _files(folder, "dur"):
        seconds = _numbers(read_labels(folder, "dur", references), "dur") or {}
    else:
        seconds = measures["seconds"](folder, list(references))
    return {
        key: length / seconds[key] if seconds[key] > 0 else 0.0 for key, length in lengths.items()
    }


def _numbers(values: Mapping[str, str], wanted: str) -> dict[str, float] | None:
    """The values as numbers; None if they are no numbers, or few different ones.

    wanted: a label that must have numbers, or empty.
    """
    numbers = {}
    for name, value in values.items():
        try:
            numbers[name] = float(value)
        except ValueError:
            if wanted:
                raise UserError(
                    f"--group-by {wanted}: '{value}' of utterance {name} is not a number"
                ) from None
            return None
    return numbers if wanted or len(set(numbers.values())) > FEW else None


def _ranges(name: str, values: Mapping[str, float], edges_text: str) -> dict[str, str]:
    """Utterance id -> range, such as `5 to 10`, which includes 5 but not 10."""
    array = np.array(list(values.values()))
    edges = EDGES.get(name) or sorted(
        {float(f"{edge:.3g}") for edge in np.quantile(array, [0.25, 0.5, 0.75])}
    )
    if edges_text:
        try:
            edges = [float(edge) for edge in edges_text.split("/")]
        except ValueError:
            raise UserError(
                f"--group-by {name}:{edges_text}: edges are numbers, as in {name}:5/10/20"
            ) from None
        if not all(map(math.isfinite, edges)) or sorted(set(edges)) != edges:
            raise UserError(
                f"--group-by {name}:{edges_text}: edges must rise, as in {name}:5/10/20"
            )
    texts = [f"{edge:g}" for edge in edges]
    names = [
        f"under {texts[0]}",
        *(f"{low} to {high}" for low, high in zip(texts, texts[1:], strict=False)),
    ]
    names.append(f"{texts[-1]} and more")
    indices = np.searchsorted(np.array(edges), array, side="right").tolist()
    return {key: names[index] for key, index in zip(values, indices, strict=True)}


FRAME = 0.02  # seconds
QUIET = 0.1  # share of frames that are assumed to be pauses
LOWEST, HIGHEST = -20.0, 60.0  # dB: beyond these, the estimate is meaningless
SMALLEST_NOISE = 1e-12  # power, to divide digital silence by


def measure_snr(samples: np.ndarray, rate: int) -> float:
    """dB between speech and background of (T,) samples at `rate` Hz.

    The background is the mean power of the quietest tenth of 20 ms frames, which is right if the
    noise is steady and the utterance has pauses. Speech is the mean power minus the background. The
    result is limited to -20 to 60 dB. It is an estimate to rank utterances by, not a calibrated
    measurement.
    """
    size = max(1, round(FRAME * rate))
    frames = samples[: len(samples) // size * size].reshape(-1, size).astype(np.float64)
    if len(frames) == 0:
        return LOWEST
    powers = np.sort(frames.var(axis=1))  # the variance ignores the DC offset of a bad sound card
    noise = powers[: max(1, round(QUIET * len(powers)))].mean()
    speech = powers.mean() - noise
    if speech <= 0:
        return LOWEST
    return float(np.clip(10 * np.log10(speech / max(noise, SMALLEST_NOISE)), LOWEST, HIGHEST))
