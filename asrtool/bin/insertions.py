"""Measure text that was not spoken: insertions per minute and hallucinations, in total and per
group, such as the noise level.

    asrtool insertions data/noise_eval exp/train_speech_llm/decode_llm/noise_eval
    asrtool insertions data/test_noisy exp/train_speech_llm/decode_llm/test_noisy --group-by snr

Writes insertions.json and insertions.txt next to the hypotheses. In a set without speech the lines
of `text` are ids only, or there is no `text`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from asrtool.bin.score import MEASURES
from asrtool.data.kaldi import datadir
from asrtool.score import METRICS, NORMALIZERS, read_transcripts
from asrtool.score.insertions import KINDS, Insertions, measure
from asrtool.score.labels import labels_for
from asrtool.score.stored import replace_text
from asrtool.score.transcripts import locate

SHOWN = 20  # hallucinations of each kind that are printed


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    utterances = datadir.read(args.data, measure=True)
    references = {row.id: row.text for row in utterances}
    file = locate(args.hypotheses)
    hypotheses = read_transcripts(file)
    labels = None
    if args.group_by != "none":
        groups = labels_for(
            args.data, [args.group_by], references, args.metric, args.normalize, MEASURES
        )
        (labels,) = groups.values()
    report = measure(
        references,
        hypotheses,
        {row.id: row.duration for row in utterances},
        metric=args.metric,
        normalize=args.normalize,
        missing=args.missing,
        labels=labels,
    )
    text = render(report, references, hypotheses, args.data, args.group_by)
    out = args.out or file.parent
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "set": str(args.data),
        "group_by": args.group_by,
        "metric": args.metric,
        "normalizer": args.normalize,
    }
    content["groups"] = {value: group.json() for value, group in report.items()}
    replace_text(out / "insertions.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    replace_text(out / "insertions.txt", text)
    print(text, end="")


def parse(argv: list[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="asrtool insertions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("data", type=Path, help="data directory of the set")
    options.add_argument("hypotheses", type=Path, help="folder of stage 4, or a text file")
    options.add_argument(
        "--metric",
        choices=list(METRICS),
        default="wer",
        help="unit of the error rate: words or characters",
    )
    options.add_argument(
        "--normalize",
        choices=list(NORMALIZERS),
        default="none",
        help="text normaliser of references and hypotheses",
    )
    options.add_argument(
        "--group-by", default="none", metavar="LABEL", help="as in scoring, e.g. snr or snr:0/10/20"
    )
    options.add_argument(
        "--missing",
        choices=["error", "deletions"],
        default="error",
        help="how to count utterances without a hypothesis",
    )
    options.add_argument(
        "--out", type=Path, help="folder of the report (default: that of the hypotheses)"
    )
    return options.parse_args(argv)


def render(
    report: Mapping[str, Insertions],
    references: Mapping[str, str],
    hypotheses: Mapping[str, str],
    data: Path,
    label: str,
) -> str:
    width = max(len(label), *map(len, report))
    heads = (
        "utterances",
        "minutes",
        "words",
        "sub",
        "del",
        "ins",
        "ins/min",
        "95 % interval",
        *KINDS,
    )
    lines = [
        str(data),
        f"{label if label != 'none' else '':{width}}  "
        + "  ".join(f"{head:>10}" for head in heads),
    ]
    for value, group in report.items():
        e = group.errors
        bounds = "-" if group.interval is None else "{:.2f}-{:.2f}".format(*group.interval)
        numbers = (
            group.utterances,
            f"{group.minutes:.2f}",
            e.reference,
            e.substitutions,
            e.deletions,
            e.insertions,
        )
        kinds = [len(group.hallucinations[kind]) for kind in KINDS]
        cells = (*numbers, f"{group.per_minute:.2f}", bounds, *kinds)
        widths = [max(10, len(head)) for head in heads]
        lines.append(
            f"{value:{width}}  "
            + "  ".join(f"{cell:>{w}}" for cell, w in zip(cells, widths, strict=True))
        )
    for kind, ids in report["all"].hallucinations.items():
        for name in ids[:SHOWN]:
            lines.append(
                f"{kind}: {name}: said '{references[name]}', written '{hypotheses.get(name, '')}'"
            )
        if len(ids) > SHOWN:
            lines.append(f"{kind}: and {len(ids) - SHOWN} more, in insertions.json")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
