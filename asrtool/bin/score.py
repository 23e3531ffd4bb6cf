"""Stage 5: score hypotheses against references; writes result.txt (sclite's layout) and score.json."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

from asrtool import stamp
from asrtool.score import (
    ALIGNMENTS,
    METRICS,
    NORMALIZERS,
    ScoreReport,
    TranscriptError,
    read_transcripts,
    score,
    write_result,
)
from asrtool.score.transcripts import SPEAKERS, locate, read_labels


def main(argv: list[str] | None = None) -> None:
    options = _options(argv)
    try:
        _run(options)
    except (TranscriptError, stamp.StageError, OSError) as error:
        raise SystemExit(f"score: {error}") from None


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="score.sh", description=__doc__, allow_abbrev=False)
    parser.add_argument("reference", type=Path, help="data directory, or a text, trn or jsonl file")
    parser.add_argument("hypothesis", type=Path, help="the same, or a folder of stage 4")
    option = parser.add_argument
    option("--metric", choices=list(METRICS), default="wer", help="of words, characters, or Han characters and words")
    option("--normalize", choices=list(NORMALIZERS), default="none", help="text normaliser for both sides")
    option("--group-by", default="none", metavar="LABEL", help="also score by utt2<LABEL>; several: a,b")
    option("--missing", choices=["error", "deletions"], default="error", help="utterances without a hypothesis")
    option("--alignment", choices=list(ALIGNMENTS), default=ALIGNMENTS[0], help="fewest errors, or sclite's weights")
    option("--out", type=Path, help="folder for result.txt and score.json (default: beside the hypotheses)")
    return parser.parse_args(argv)


def _run(options: argparse.Namespace) -> None:
    files = {"reference": locate(options.reference), "hypothesis": locate(options.hypothesis)}
    references, hypotheses = (read_transcripts(path) for path in files.values())
    if not references:
        raise TranscriptError(f"{files['reference']}: the file holds no utterance; expected one line each")
    labels = _labels(options.reference, options.group_by, references)
    try:
        report = score(
            references, hypotheses, metric=options.metric, normalize=options.normalize, alignment=options.alignment,
            missing=options.missing, labels=labels,
        )
    except TranscriptError as error:
        raise TranscriptError(f"{files['hypothesis']} against {files['reference']}: {error}") from None
    out = options.out or files["hypothesis"].parent
    out.mkdir(parents=True, exist_ok=True)
    speakers = _speakers(options.reference, files["reference"], references)
    title = str(options.hypothesis)
    with stamp.locked(out / "score.json", wait=True):
        _write(out / "result.txt", lambda file: write_result(file, report, references, hypotheses, speakers, title))
        _write(out / "score.json", lambda file: file.write(_json(report, files)))
    print(f"write a {report.metric.upper()} result in {out / 'result.txt'}")
    print(report.text(), end="")


def _labels(reference: Path, names: str, ids: Mapping[str, str]) -> dict[str, dict[str, str]]:
    if names in ("", "none"):
        return {}
    if not reference.is_dir():
        raise TranscriptError(f"--group-by {names}: the labels come from a data directory, but {reference} is a file")
    return {name: read_labels(reference, name, ids) for name in names.split(",")}


def _speakers(reference: Path, file: Path, ids: Mapping[str, str]) -> dict[str, str]:
    """From utt2spk; of a trn file, as sclite does it, what stands before the first hyphen; else all are one."""
    if reference.is_dir() and (reference / f"utt2{SPEAKERS}").is_file():
        return read_labels(reference, SPEAKERS, ids)
    if file.suffix.lower() == ".trn":
        return {name: name.split("-")[0] if "-" in name else "unknown" for name in ids}
    return dict.fromkeys(ids, "unknown")


def _json(report: ScoreReport, files: Mapping[str, Path]) -> str:
    made_from = {}
    for side, path in files.items():
        with open(path, "rb") as stream:
            made_from[side] = {"path": str(path), "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
    return json.dumps({**report.json(), "files": made_from}, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def _write(path: Path, write: Callable[[TextIO], object]) -> None:
    """Write under a temporary name, then rename, so that no half file is ever taken for a result."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            write(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
