"""The summary of a score on a terminal: sclite's, Kaldi's and WeNet's lines, intervals, coverage,
groups.
"""

from __future__ import annotations

from asrtool.log import plural
from asrtool.score.align import ErrorCounts
from asrtool.score.bootstrap import DRAWS, FEWEST, SEED, Interval
from asrtool.score.sclite import summary_lines
from asrtool.score.scoring import LabelScore, ScoreReport
from asrtool.score.transcripts import first_of


def text(report: ScoreReport) -> str:
    """Format the summary. Scripts for sclite, Kaldi and WeNet read the first four lines."""
    errors, name = report.total, report.metric.upper()
    header, row = summary_lines(report.counts)
    sub, dels, ins = errors.substitutions, errors.deletions, errors.insertions
    rate = f"{100 * errors.rate:.2f}"
    lines = [
        header,
        row,
        f"%{name} {rate} [ {errors.errors} / {errors.reference}, {ins} ins, {dels} del, {sub} sub "
        "]",
        f"Overall -> {rate} % N={errors.reference} C={errors.correct} S={sub} D={dels} I={ins}",
        "",
        *_numbers(report),
        _bootstrap(report),
        f"normalizer {report.normalizer}, alignment {report.alignment}, coverage "
        f"{_coverage(report)}",
    ]
    if report.runaway:
        first = first_of(list(report.runaway))
        lines.append(
            f"{len(report.runaway)} with more than twice as many tokens as were spoken: {first}"
        )
    for label in report.groups:
        lines += ["", *_groups(report, label)]
    for label, label_score in report.recognized.items():
        lines += ["", *_recognized(label, label_score)]
    return "\n".join(lines) + "\n"


def _numbers(report: ScoreReport) -> list[str]:
    """Every rate with its count and its intervals."""
    errors = report.total
    units = [unit for unit, bounds in report.intervals.items() if any(bounds.values())]
    rows = [
        (report.metric.upper(), "rate", errors.errors, errors.reference),
        ("correct", "correct", errors.correct, errors.reference),
        ("substitutions", "substitutions", errors.substitutions, errors.reference),
        ("deletions", "deletions", errors.deletions, errors.reference),
        ("insertions", "insertions", errors.insertions, errors.reference),
        (
            "utterances with errors",
            "utterances_with_errors",
            report.utterances_with_errors,
            len(report.ids),
        ),
    ]
    heads = "".join(f"  {f'95 % by {unit}':<18}" for unit in units)
    lines = [f"{'':<22}{'#':>10}{'%':>9}{heads}".rstrip()]
    for name, key, number, whole in rows:
        rate = f"{100 * number / whole:.2f}" if whole else "-"
        bounds = "".join(f"  {percent(report.intervals[unit][key]):<18}" for unit in units)
        lines.append(f"{name:<22}{number:>10}{rate:>9}{bounds}".rstrip())
    return lines


def _bootstrap(report: ScoreReport) -> str:
    """What was drawn for the intervals, or why there are none."""
    drawn, few = plural(len(report.ids), "utterance"), f"too few for intervals: {FEWEST} are needed"
    if len(report.ids) < FEWEST:
        return f"bootstrap: {drawn}, {few}"
    if report.speakers:
        drawn += f" or {plural(report.speakers, 'speaker')}"
        drawn += "" if report.speakers >= FEWEST else f", {few}"
    return f"bootstrap: {DRAWS} draws of {drawn}, seed {SEED}"


def _coverage(report: ScoreReport) -> str:
    count = len(report.ids)
    if not report.missing:
        return f"{count} of {plural(count, 'utterance')}"
    left = (
        f"{len(report.missing)} without a hypothesis counted as deletions: "
        f"{first_of(list(report.missing))}"
    )
    return f"{count - len(report.missing)} of {plural(count, 'utterance')}; {left}"


def _groups(report: ScoreReport, label: str) -> list[str]:
    values, macro = report.groups[label], report.macro[label]
    units = [
        unit
        for unit, bounds in macro.intervals.items()
        if bounds or any(group.intervals[unit]["rate"] for group in values.values())
    ]
    width = max(len(label), len("macro average"), *(len(value) for value in values))
    heads = "".join(
        f"{head:>9}" for head in ("# Utt", "# Ref", "Sub", "Del", "Ins", report.metric.upper())
    )
    lines = [f"{label:<{width}}{heads}" + "".join(f"  {f'95 % by {unit}':<18}" for unit in units)]
    for value, group in values.items():
        errors = group.total
        parts = (errors.substitutions, errors.deletions, errors.insertions, errors.errors)
        cells = [
            str(group.utterances),
            str(errors.reference),
            *(_share(errors, part) for part in parts),
        ]
        bounds = "".join(f"  {percent(group.intervals[unit]['rate']):<18}" for unit in units)
        lines.append(f"{value:<{width}}{''.join(f'{cell:>9}' for cell in cells)}{bounds}")
    bounds = "".join(f"  {percent(macro.intervals[unit]):<18}" for unit in units)
    lines.append(f"{'macro average':<{width}}{'':>45}{100 * macro.rate:>9.2f}{bounds}")
    return [line.rstrip() for line in lines]


def _recognized(label: str, recognized: LabelScore) -> list[str]:
    """A table: a row for each true class, a column for each recognised one."""
    answers = sorted({answer for row in recognized.confusion.values() for answer in row})
    width = max(len(label), *(len(name) for name in recognized.classes))
    heads = "".join(f"  {answer:>{max(5, len(answer))}}" for answer in answers)
    bounds = ", ".join(
        f"{percent(value)} by {unit}" for unit, value in recognized.intervals.items() if value
    )
    accuracy = f"{100 * recognized.accuracy:.2f} %" + (f" (95 %: {bounds})" if bounds else "")
    recall = f"{100 * recognized.mean_recall:.2f} %"
    has_bounds = any(value.interval for value in recognized.classes.values())
    by = "  95 % by utterance" if has_bounds else ""
    lines = [
        f"{label} recognised: accuracy {accuracy}, mean recall {recall}",
        f"{label:<{width}}    # Utt  Recall{by}{heads}      (columns: recognised as)",
    ]
    for name, value in recognized.classes.items():
        cells = "".join(
            f"  {recognized.confusion[name].get(answer, 0):>{max(5, len(answer))}}"
            for answer in answers
        )
        interval = f"  {percent(value.interval):<17}" if has_bounds else ""
        row = f"{value.utterances:>9}{100 * value.recall:>8.2f}{interval}"
        lines.append(f"{name:<{width}}{row}{cells}")
    return lines


def _share(errors: ErrorCounts, number: int) -> str:
    return f"{100 * number / errors.reference:.2f}" if errors.reference else f"{number}*"


def percent(bounds: Interval) -> str:
    """An interval as people read it."""
    return "-" if bounds is None else f"{100 * bounds[0]:.2f} to {100 * bounds[1]:.2f}"
