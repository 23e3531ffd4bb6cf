"""RESULTS.md: the results of a recipe's experiments as Markdown, beside the numbers that others
published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asrtool.score.recognition import percent
from asrtool.score.results import SHORT, Experiment, Results, Row, difference, published, recipe_of

HEADS = (
    "experiment",
    "decoding",
    "{metric} %",
    "95 % by utterance",
    "95 % by speaker",
    "sub",
    "del",
    "ins",
    "parameters",
    "frames/s",
    "reduction",
    "RTF",
    "seed",
    "commit",
    "data",
)
LEGEND = """\
Made by `asrtool results`; edits are lost. Intervals are 95 %, from 1,000 bootstrap draws.

* frames/s: encoder frames for a second of audio; reduction: the share of the frames after the\
 stem that is left out
* RTF: seconds of search for a second of audio, on the machine and under the load that it\
 happened to have
* data: fingerprint of the training set; a `+` after a commit: with uncommitted changes
* *published*: numbers of others, not measured here
"""


def markdown(found: Sequence[Results], neutral: Sequence[str] = (), recipe: str = "") -> str:
    """All of RESULTS.md; `neutral`: config keys that change no result, `recipe`: whose published
    numbers to show.
    """
    parts = ["# Results\n", LEGEND]
    for results in found:
        name = recipe or recipe_of(results.root)
        rates, reductions = published(name) if name else ([], [])
        parts.append(f"## {results.root}\n")
        for (data_set, metric, normalizer, sha256), rows in results.sets().items():
            ours = [_row(row, row.experiment is results.baseline) for row in rows]
            theirs = [
                _published(row)
                for row in rates
                if (row["set"], row["metric"]) == (data_set, metric)
            ]
            parts.append(_head(data_set, metric, normalizer, sha256, rows[0]))
            parts.append(
                _table([head.format(metric=metric.upper()) for head in HEADS], ours + theirs)
            )
        if reductions:
            parts.append("Published relative reductions, against baselines of their own:\n")
            parts.append("".join(f"* {_reduction(row)}\n" for row in reductions))
        if results.rows:
            parts.append("### How each was made\n")
        parts += [_origin(one, results.baseline, neutral) for one in results.experiments]
        if results.left_out:
            parts.append("### Left out\n")
            parts.append("".join(f"* {text}\n" for text in results.left_out))
    return "\n".join(parts)


def _head(data_set: str, metric: str, normalizer: str, sha256: str, row: Row) -> str:
    stored = row.result.stored
    speakers = f", {stored['speakers']} speakers" if stored["speakers"] else ""
    size = f"{stored['utterances']} utterances, {stored['total']['reference']} tokens{speakers}"
    return (
        f"### {data_set}: {metric.upper()}\n\n{size}; normalizer {normalizer}; reference "
        f"{sha256[:SHORT]}\n"
    )


def _row(row: Row, is_baseline: bool) -> list[str]:
    stored, experiment = row.result.stored, row.experiment
    total, bounds = stored["total"], stored["intervals"]
    missing = len(stored["coverage"]["missing_counted_as_deletions"])
    model, commits = experiment.model, experiment.commits
    reduction = row.frame_reduction
    return [
        experiment.tag + (" (baseline)" if is_baseline else ""),
        row.result.decode + (f" ({missing} missing as deletions)" if missing else ""),
        "-" if total["rate"] is None else f"{100 * total['rate']:.2f}",
        percent(bounds["utterance"]["rate"]),
        percent(bounds["speaker"]["rate"]) if "speaker" in bounds else "-",
        *(str(total[name]) for name in ("substitutions", "deletions", "insertions")),
        f"{model['parameters'] / 1e6:.2f} M" if model else "-",
        "-" if row.frame_rate is None else f"{row.frame_rate:.1f}",
        "-" if reduction is None else f"{100 * reduction:.0f} %",
        "-" if row.real_time_factor is None else f"{row.real_time_factor:.3f}",
        ", ".join(map(str, experiment.seeds)),
        ", ".join(_commit(commit) for commit in commits) or "-",
        experiment.data[:SHORT] or "-",
    ]


def _commit(text: str) -> str:
    """`<hash> and uncommitted changes` -> a short hash with a plus."""
    first, _, more = text.partition(" ")
    return f"{first[:SHORT]}{'+' if more else ''}" if len(first) == 40 else text


def _published(row: Mapping) -> list[str]:
    source = row["source"] + ("" if row["checked"] else "; not checked in the paper")
    note = f"; {row['note']}" if row.get("note") else ""
    return [
        f"*published:* {row['system']}",
        f"{source}{note}",
        f"{row['rate']:.2f}",
        *["-"] * (len(HEADS) - 3),
    ]


def _reduction(row: Mapping) -> str:
    source = row["source"] + ("" if row["checked"] else "; not checked in the paper")
    return (
        f"*published:* {row['system']}: {row['reduction']} % lower {row['metric'].upper()} "
        f"({source})"
    )


def _origin(experiment: Experiment, baseline: Experiment, neutral: Sequence[str]) -> str:
    is_baseline = experiment is baseline
    changes = difference(baseline, experiment, neutral)
    config = "the baseline" if is_baseline else "; ".join(changes) or "as the baseline's"
    lines = [
        f"#### {experiment.tag}\n",
        f"* config, with the baseline's values in brackets: {config}"
        if changes
        else f"* config: {config}",
        *(f"* command: `{command}`" for command in experiment.commands),
        *(f"* commit: {commit}" for commit in experiment.commits),
        f"* begun: {experiment.begun}" if experiment.begun != "~" else "* begun: not known",
        f"* training data: {experiment.data or 'not known'}; seed "
        f"{', '.join(map(str, experiment.seeds))}",
    ]
    return "\n".join(lines) + "\n"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        heads,
        ["---"] * len(heads),
        *([cell.replace("|", "\\|") for cell in row] for row in rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
