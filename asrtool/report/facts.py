"""Facts beyond the utterances: confusions, training curves, speed, and the origin of the result."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from asrtool.report.sources import ScoredSet, log_records
from asrtool.system import stamp

POINTS = 600  # maximum per curve; beyond that neighbours are averaged
NOT_CURVES = {
    "time",
    "event",
    "phase",
    "epoch",
    "step",
    "audio_seconds_per_second",
    "data_wait",
    "gpu_gb",
}


def histogram(counts: np.ndarray, last: int = 10) -> list[int]:
    """The number of utterances with 0, 1, ... `last` or more errors."""
    errors = np.minimum(counts[:, 1:].sum(axis=1), last)
    return np.bincount(errors, minlength=last + 1).tolist()


def edits(alignments: Iterable[list[tuple]], most: int = 25) -> dict[str, dict]:
    """For each kind of error: the most frequent ones, the number of different ones, the total."""
    tables: dict[str, Counter] = {"S": Counter(), "D": Counter(), "I": Counter()}
    for alignment in alignments:
        for tag, reference, hypothesis in alignment:
            if tag != "C":
                tables[tag][reference, hypothesis] += 1
    return {
        tag: {
            "top": [
                [*pair, number] for pair, number in sorted(table.items(), key=_by_count)[:most]
            ],
            "kinds": len(table),
            "total": table.total(),
        }
        for tag, table in tables.items()
    }


def _by_count(item: tuple[tuple, int]) -> tuple:
    (reference, hypothesis), number = item
    return -number, reference or "", hypothesis or ""


# -- training ----------------------------------------------------------------


def curves(experiment: Path) -> list[dict]:
    """For each phase, in the order of log.jsonl: {"phase", "step": {series: [[step, value]]},
    "valid": {...}, "epochs": [the last step of each epoch]}.

    Steps that were repeated because training was killed and resumed count once, with their last
    values.
    """
    path = experiment / "log.jsonl"
    phases: dict[str, dict[str, dict[str, dict[int, float]]]] = {}
    ends: dict[str, dict[int, int]] = {}
    for record in log_records(path) if path.is_file() else []:
        event, phase, step = record.get("event"), record.get("phase"), record.get("step")
        if event not in ("step", "valid") or phase is None or step is None:
            continue
        if isinstance(epoch := record.get("epoch"), int):
            # the step that is recorded is of the epoch, validations come after finished ones
            finished, by = (epoch, step) if event == "valid" else (epoch - 1, step - 1)
            known = ends.setdefault(phase, {})
            known[finished] = min(by, known.get(finished, by))
        tables = phases.setdefault(phase, {"step": {}, "valid": {}})[event]
        for name, value in record.items():
            if name not in NOT_CURVES and isinstance(value, int | float) and math.isfinite(value):
                tables.setdefault(name, {})[step] = value
    return [
        {
            "phase": phase,
            "epochs": _epochs(ends.get(phase, {})),
            **{
                event: {name: _thin(series) for name, series in tables.items()}
                for event, tables in events.items()
            },
        }
        for phase, events in phases.items()
    ]


def _epochs(known: Mapping[int, int]) -> list[int]:
    """The last step of each epoch, from what records say: after `step`, so many were finished.

    Where nothing was recorded between two epochs, that of the later one stands for both.
    """
    last = max(known, default=0)
    return [min(by for epoch, by in known.items() if epoch >= one) for one in range(1, last + 1)]


def _thin(series: Mapping[int, float]) -> list[list[float]]:
    points = np.array(sorted(series.items()), dtype=np.float64)
    blocks = np.array_split(points, min(POINTS, len(points)))
    return [
        [round(step), float(f"{value:.5g}")]
        for step, value in (block.mean(axis=0) for block in blocks)
    ]


# -- provenance --------------------------------------------------------------


def provenance(result: ScoredSet) -> list[tuple[str, str]]:
    """Names and values of everything known about the origin of the result."""
    facts = [
        (f"{side} file", f"{entry['path']}\nSHA-256 {entry['sha256']}")
        for side, entry in result.score["files"].items()
    ]
    experiment = result.scored.experiment
    if experiment is not None:
        for title, name in (("training commit", "git.txt"), ("training command", "command.txt")):
            if (experiment / name).is_file():
                lines = [
                    line
                    for line in (experiment / name).read_text(encoding="utf-8").split("\n")
                    if line
                ]
                if lines:
                    starts = f"\n(the last of {len(lines)} starts)" if len(lines) > 1 else ""
                    facts.append((title, lines[-1] + starts))
    made = stamp.read(result.folder)
    if made is not None:
        facts.append(
            ("decoding", json.dumps(made.get("options", {}), ensure_ascii=False, indent=1))
        )
    return facts


def speed(result: ScoredSet) -> str | None:
    """Real-time factor of the decoding, if hyps.jsonl has the time of each utterance."""
    rows = [line for line in result.lines.values() if "elapsed" in line and line.get("seconds")]
    if not rows:
        return None
    seconds, elapsed = sum(row["seconds"] for row in rows), sum(row["elapsed"] for row in rows)
    audio = f"{seconds / 3600:.2f} h" if seconds > 600 else f"{seconds:.0f} s"
    return f"{elapsed / seconds:.3g} on {audio} of audio"
