"""Stage 5: score hypotheses against references; writes result.txt (sclite's layout) and
score.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from asrtool.errors import UserError
from asrtool.score import (
    ALIGNMENTS,
    METRICS,
    NORMALIZERS,
    ScoreReport,
    read_transcripts,
    score,
    summary,
)
from asrtool.score.labels import labels_for, measure_snr, read_labels, read_speakers
from asrtool.score.stored import sha256, write_pair
from asrtool.score.transcripts import locate, read_recognized
from asrtool.system import stamp

if TYPE_CHECKING:  # it loads torch
    from asrtool.types import Utterance


def main(argv: list[str] | None = None) -> None:
    options = _options(argv)
    _run(options)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="score.sh", description=__doc__, allow_abbrev=False)
    parser.add_argument("reference", type=Path, help="data directory, or a text, trn or jsonl file")
    parser.add_argument("hypothesis", type=Path, help="the same, or a folder of stage 4")
    option = parser.add_argument
    option(
        "--metric",
        choices=list(METRICS),
        default="wer",
        help="of words, characters, or Han characters and words",
    )
    option(
        "--normalize",
        choices=list(NORMALIZERS),
        default="none",
        help="text normaliser for both sides",
    )
    option(
        "--group-by",
        default="none",
        metavar="LABEL",
        help="also score by utt2<LABEL>, length, speaking_rate or snr; several: a,b; ranges: "
        "snr:0/10/20",
    )
    option(
        "--missing",
        choices=["error", "deletions"],
        default="error",
        help="utterances without a hypothesis",
    )
    option(
        "--alignment",
        choices=list(ALIGNMENTS),
        default=ALIGNMENTS[0],
        help="fewest errors, or sclite's weights",
    )
    option(
        "--out",
        type=Path,
        help="folder for result.txt and score.json (default: that of the hypotheses)",
    )
    return parser.parse_args(argv)


def _run(options: argparse.Namespace) -> None:
    files = {"reference": locate(options.reference), "hypothesis": locate(options.hypothesis)}
    references, hypotheses = (read_transcripts(path) for path in files.values())
    if not references:
        raise UserError(
            f"{files['reference']}: the file holds no utterance; expected one line each"
        )
    folder = options.reference if options.reference.is_dir() else None
    names = [] if options.group_by in ("", "none") else options.group_by.split(",")
    labels = labels_for(folder, names, references, options.metric, options.normalize, MEASURES)
    speakers = read_speakers(folder, files["reference"], references)
    recognized, notes = _recognized(folder, files["hypothesis"], references)
    try:
        report = score(
            references,
            hypotheses,
            metric=options.metric,
            normalize=options.normalize,
            alignment=options.alignment,
            missing=options.missing,
            labels=labels,
            recognized=recognized,
            speakers=speakers,
        )
    except UserError as error:
        raise UserError(f"{files['hypothesis']} against {files['reference']}: {error}") from None
    sources = {side: {"path": str(path), "sha256": sha256(path)} for side, path in files.items()}
    # a data directory, with speakers and labels
    sources["reference"]["folder"] = folder is not None
    facts = {"files": sources, "group_by": names, "missing": options.missing}
    out = options.out or files["hypothesis"].parent
    out.mkdir(parents=True, exist_ok=True)
    with stamp.locked(out / "score.json", wait=True):
        write_pair(out, report, references, hypotheses, speakers, str(options.hypothesis), facts)
    _show(report, out, sources, notes)


def _show(
    report: ScoreReport, out: Path, sources: Mapping[str, Mapping[str, str]], notes: list[str]
) -> None:
    print(f"write a {report.metric.upper()} result in {out / 'result.txt'}")
    print(summary.text(report), end="")
    print()
    for side, file in sources.items():
        print(f"{side} {file['path']}, sha256 {file['sha256'][:16]}")
    for note in notes:
        print(note)


def _recognized(
    folder: Path | None, hypotheses: Path, references: Mapping[str, str]
) -> tuple[dict[str, tuple[dict[str, str], dict[str, str]]], list[str]]:
    """Label -> (reference, recognised) values, and notes on labels without a reference. The
    recognised values are in hyps.jsonl, which is the hypothesis file or next to `text`.
    """
    recognized, notes = {}, []
    source = hypotheses.with_name("hyps.jsonl") if hypotheses.name == "text" else hypotheses
    for label, answers in read_recognized(source).items():
        try:
            if folder is None:
                raise UserError("the reference is a file, not a data directory")
            recognized[label] = (read_labels(folder, label, references), answers)
        except UserError as error:
            notes.append(f"the label '{label}' of the hypotheses is not scored: {error}")
    return recognized, notes


def measured_snr(folder: Path, ids: list[str]) -> dict[str, float]:
    """Utterance id -> dB, from the audio of a data directory."""
    from asrtool.data import audio  # here, since it loads torch, which few scores need

    rows = _utterances(folder, ids, "snr")

    def measure(name: str) -> float:
        row = rows[name]
        try:
            return measure_snr(*audio.load(row.audio, *row.stretch))
        except audio.AudioError as error:
            raise UserError(f"--group-by snr: {name}: {error}") from None

    with ThreadPoolExecutor() as pool:
        return dict(
            zip(
                ids,
                tqdm(pool.map(measure, ids), total=len(ids), desc="snr", disable=None),
                strict=True,
            )
        )


def measured_seconds(folder: Path, ids: list[str]) -> dict[str, float]:
    """Utterance id -> seconds, from the audio of a data directory, or from segments."""
    from asrtool.data.kaldi import datadir

    rows = list(_utterances(folder, ids, "speaking_rate").values())
    try:
        return {row.id: row.duration for row in datadir.measured(rows, folder)}
    except UserError as error:
        raise UserError(f"--group-by speaking_rate: {error}") from None


def _utterances(folder: Path, ids: list[str], label: str) -> dict[str, Utterance]:
    """The utterances of a data directory by id. Raises `UserError` if one has no audio."""
    from asrtool.data.kaldi import datadir

    selected = set(ids)
    try:
        rows = {row.id: row for row in datadir.read(folder, measure=False) if row.id in selected}
    except UserError as error:
        raise UserError(f"--group-by {label}: {error}") from None
    if missing := [name for name in ids if name not in rows]:
        raise UserError(
            f"--group-by {label}: {folder} has no audio of {len(missing)} utterances, "
            f"first {missing[0]}"
        )
    return rows


MEASURES = {"snr": measured_snr, "seconds": measured_seconds}


if __name__ == "__main__":
    main()
