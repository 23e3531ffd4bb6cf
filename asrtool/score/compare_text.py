"""What `asrtool compare` prints."""

from __future__ import annotations

import math

from asrtool.score.bootstrap import DRAWS, SEED, Interval
from asrtool.score.compare import Comparison, Difference

SHOWN = 10  # utterances and words of a list
LEVEL = 0.05  # of significance, for the sentence that sums up


def text(found: Comparison) -> str:
    """Numbers, tests, utterances, words and groups that changed."""
    lines = [
        f"{found.metric.upper()}, normalizer {found.normalizer}, alignment {found.alignment}, "
        f"{found.totals[0].reference} tokens in {len(found.ids)} utterances"
        + (f" of {found.speakers} speakers" if found.speakers else ""),
        "",
        *_table(
            "%",
            {
                found.metric.upper() if name == "rate" else name.replace("_", " "): difference
                for name, difference in found.numbers.items()
            },
        ),
        f"bootstrap in pairs: {DRAWS} draws, seed {SEED}; differences in points",
        "",
        *_tests(found),
        *_utterances(found),
        *_words(found),
    ]
    for label, values in found.groups.items():
        lines += ["", *_table(label, values)]
    return "\n".join(lines) + "\n"


def verdict(found: Comparison) -> str:
    """One sentence: which one is better, by the matched-pairs test."""
    p, value = found.pairs.p, found.numbers["rate"].value
    if p >= LEVEL or math.isnan(value) or value == 0:
        return f"no difference beyond chance at the {LEVEL:.0%} level"
    return f"{'B' if value < 0 else 'A'} is better at the {LEVEL:.0%} level"


def _table(head: str, rows: dict[str, Difference]) -> list[str]:
    units = list(next(iter(rows.values())).intervals)
    width = max(len(head), *(len(name) for name in rows))
    heads = "".join(f"  {f'95 % by {unit}':<18}{'B better':>10}" for unit in units)
    lines = [f"{head:<{width}}{'A':>9}{'B':>9}{'B - A':>9}{'relative':>10}{heads}"]
    for name, row in rows.items():
        relative = (
            f"{100 * row.value / row.first:+.1f} %"
            if row.first and math.isfinite(row.value)
            else "-"
        )
        bounds = "".join(
            f"  {_range(row.intervals[unit]):<18}{_percent(row.better[unit], 1) + ' %':>10}"
            for unit in units
        )
        difference = _percent(row.value, sign="+")
        cells = f"{_percent(row.first):>9}{_percent(row.second):>9}{difference:>9}{relative:>10}"
        lines.append(f"{name:<{width}}{cells}{bounds}".rstrip())
    return lines


def _tests(found: Comparison) -> list[str]:
    pairs = found.pairs
    better, worse, same = found.wins
    mean = f"mean difference {pairs.mean:+.3f} errors, z {pairs.z:.2f}, p {_p(pairs.p)}"
    return [
        f"matched pairs: {pairs.segments} segments, {mean}: {verdict(found)}",
        f"utterances: B has fewer errors in {better}, more in {worse}, as many in {same} (sign "
        "test p "
        f"{_p(found.sign_test)})",
    ]


def _utterances(found: Comparison) -> list[str]:
    lines = []
    for head, better in (("fewer errors in B", True), ("more errors in B", False)):
        rows = [
            f"{name} {first} -> {second}" for name, first, second in found.changed(SHOWN, better)
        ]
        lines.append(f"  {head}: {', '.join(rows) or 'none'}")
    return lines


def _words(found: Comparison) -> list[str]:
    lines = ["reference words, times wrong in A -> in B of times spoken:"]
    for head, better in (("wrong less often", True), ("wrong more often", False)):
        rows = [
            f"{word} {first} -> {second} of {spoken}"
            for word, spoken, first, second in found.changed_words(SHOWN, better)
        ]
        lines.append(f"  {head}: {', '.join(rows) or 'none'}")
    ranked = sorted(
        found.inserted.items(), key=lambda item: (-abs(item[1][1] - item[1][0]), item[0])
    )[:SHOWN]
    lines.append(
        f"  inserted: {', '.join(f'{word} {a} -> {b}' for word, (a, b) in ranked) or 'no change'}"
    )
    return lines


def _percent(value: float, digits: int = 2, sign: str = "") -> str:
    return f"{100 * value:{sign}.{digits}f}" if math.isfinite(value) else "-"


def _range(bounds: Interval) -> str:
    return "undefined" if bounds is None else f"{100 * bounds[0]:+.2f} to {100 * bounds[1]:+.2f}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"
