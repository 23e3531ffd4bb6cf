"""Compare two experiments: paired bootstrap, matched-pairs test, and the utterances, words and
groups that changed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from asrtool.bin.score import MEASURES
from asrtool.errors import UserError
from asrtool.score import ALIGNMENTS, METRICS, NORMALIZERS, read_transcripts
from asrtool.score.compare import Comparison, compare, text
from asrtool.score.labels import labels_for, read_speakers
from asrtool.score.stored import StoredScore, pairs, replace_text
from asrtool.score.transcripts import locate

# settings that two scores must share to be comparable
ALIKE = ("metric", "normalizer", "alignment", "missing")


def main(argv: list[str] | None = None) -> None:
    options = _options(argv)
    comparisons = dict(_compare_files(options) if options.reference else _compare_results(options))
    printed = f"A {options.first}\nB {options.second}\n"
    for name, comparison in comparisons.items():
        printed += f"\n== {name}\n{text(comparison)}"
    print(printed, end="")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        stored = {"first": str(options.first), "second": str(options.second)}
        stored["sets"] = {name: comparison.json() for name, comparison in comparisons.items()}
        replace_text(options.out / "compare.txt", printed)
        replace_text(
            options.out / "compare.json", json.dumps(stored, ensure_ascii=False, indent=1) + "\n"
        )


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="asrtool compare", description=__doc__, allow_abbrev=False
    )
    option = parser.add_argument
    option(
        "first",
        type=Path,
        metavar="A",
        help="exp/<tag>, one of its folders, or with --reference hypotheses",
    )
    option("second", type=Path, metavar="B", help="the same")
    option(
        "--group-by",
        default="",
        metavar="LABEL",
        help="labels to compare by, as of score.sh (default: as scored)",
    )
    option(
        "--out",
        type=Path,
        help="folder for compare.txt and compare.json (default: none is written)",
    )
    files = parser.add_argument_group("hypotheses that stage 5 has not scored")
    option = files.add_argument
    option("--reference", type=Path, help="data directory, or a text, trn or jsonl file")
    option("--metric", choices=list(METRICS), default="wer")
    option("--normalize", choices=list(NORMALIZERS), default="none")
    option("--missing", choices=["error", "deletions"], default="error")
    option("--alignment", choices=list(ALIGNMENTS), default=ALIGNMENTS[0])
    options = parser.parse_args(argv)
    chosen = [
        name
        for name in ("metric", "normalize", "missing", "alignment")
        if getattr(options, name) != parser.get_default(name)
    ]
    if chosen and options.reference is None:
        parser.error(
            f"--{chosen[0]} needs --reference; without it, experiments are compared as stage 5 "
            "scored them"
        )
    return options


def _compare_results(options: argparse.Namespace) -> Iterator[tuple[str, Comparison]]:
    """A comparison for each set that both experiments have, scored as stage 5 did."""
    both, alone = pairs(options.first, options.second)
    for first, second in both:
        yield first.set, _compare_pair(first, second, options.group_by)
    if alone:
        print(f"not compared, since only one of the two has them: {', '.join(alone)}")


def _compare_pair(first: StoredScore, second: StoredScore, group_by: str) -> Comparison:
    for key in ALIKE:
        values = [side.stored[key] for side in (first, second)]
        if values[0] != values[1]:
            raise UserError(
                f"{first.set}: {key} is {values[0]} in A and {values[1]} in B; score both in the "
                "same way"
            )
    if (
        first.stored["files"]["reference"]["sha256"]
        != second.stored["files"]["reference"]["sha256"]
    ):
        raise UserError(
            f"{first.set}: A and B were scored against different references; score both against "
            "the same"
        )
    scored_by = [name for name in first.stored["group_by"] if name in second.stored["group_by"]]
    names = _names(group_by) if group_by else scored_by
    file = first.file("reference")
    folder = file.parent if first.stored["files"]["reference"]["folder"] else None
    return _compare(
        folder,
        file,
        [first.texts("hypothesis"), second.texts("hypothesis")],
        names,
        metric=first.stored["metric"],
        normalize=first.stored["normalizer"],
        alignment=first.stored["alignment"],
        missing=first.stored["missing"],
    )


def _compare_files(options: argparse.Namespace) -> Iterator[tuple[str, Comparison]]:
    folder = options.reference if options.reference.is_dir() else None
    texts = [read_transcripts(locate(path)) for path in (options.first, options.second)]
    yield (
        options.reference.name,
        _compare(
            folder,
            locate(options.reference),
            texts,
            _names(options.group_by),
            metric=options.metric,
            normalize=options.normalize,
            alignment=options.alignment,
            missing=options.missing,
        ),
    )


def _names(group_by: str) -> list[str]:
    return [] if group_by in ("", "none") else group_by.split(",")


def _compare(
    folder: Path | None,
    file: Path,
    texts: list[dict[str, str]],
    names: list[str],
    metric: str,
    normalize: str,
    alignment: str,
    missing: str,
) -> Comparison:
    references = read_transcripts(file)
    labels = labels_for(folder, names, references, metric, normalize, MEASURES)
    return compare(
        references,
        *texts,
        metric=metric,
        normalize=normalize,
        alignment=alignment,
        missing=missing,
        labels=labels,
        speakers=read_speakers(folder, file, references),
    )


if __name__ == "__main__":
    main()
