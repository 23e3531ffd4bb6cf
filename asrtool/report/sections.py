"""The parts of the page that need no script: summary, groups, most frequent errors, origin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from asrtool.log import plural
from asrtool.report import facts
from asrtool.report.sources import SPEAKER, ScoredSet
from asrtool.score.bootstrap import FEWEST

Bounds = Sequence[float] | None  # an interval
Span = tuple[float, float]  # rates at the left and right end of plots
METRICS = {"wer": "word error rate", "cer": "character error rate", "mer": "mixed error rate"}
KINDS = ("substitutions", "deletions", "insertions")
# one, and several
TOKENS = {
    "wer": ("word", "words"),
    "cer": ("character", "characters"),
    "mer": ("character or word", "characters and words"),
}
LONG = 12  # rows of a table that are visible; the others are folded


def summary(result: ScoredSet) -> str:
    """The rate in large type, the kinds of errors, and how they were counted."""
    stored, metric = result.score, result.score["metric"]
    total, intervals = stored["total"], stored["intervals"]
    utterances, wrong = stored["utterances"], stored["utterances_with_errors"]
    rows = [(kind, total[kind], total["reference"]) for kind in KINDS]
    numbers = [
        _number(count / whole if whole else None, intervals, kind) for kind, count, whole in rows
    ]
    span = _span(numbers)
    body = [
        [
            _mark(kind[0].upper()) + kind,
            percent(number["rate"]),
            _plot(number, span),
            *_ranges(number),
            _count(count),
        ]
        for (kind, count, _), number in zip(rows, numbers, strict=True)
    ]
    sentences = _number(wrong / utterances, intervals, "utterances_with_errors")
    body.append(
        [
            "utterances with errors",
            percent(sentences["rate"]),
            "",
            *_ranges(sentences),
            _count(wrong),
        ]
    )
    table = _table(["kind", "rate %", span, *_by(intervals), "count"], body, "Errors by kind")
    errors = sum(total[kind] for kind in KINDS)
    bounds = [
        f'<span class="muted">by {unit}: too few for one</span>'
        if interval["rate"] is None
        else f'{_range(interval["rate"])} <span class="muted">by {unit}</span>'
        for unit, interval in intervals.items()
    ]
    drawn = f"bootstrap, {stored['bootstrap']['draws']} draws, seed {stored['bootstrap']['seed']}"
    return (
        f'<div class="hero"><p class="eyebrow">{METRICS[metric]}</p>'
        f'<p class="rate">{percent(total["rate"])}<span class="unit">%</span></p>'
        f'<p class="interval">95 % interval<br>{"<br>".join(bounds)}</p><p '
        f'class="muted">{drawn}</p>'
        f'<p class="muted">{_counted(errors, "error")} in '
        f"{_tokens(total['reference'], metric, 'reference ')}</p></div>"
        f'<div class="kinds">{table}</div>{_definitions(_coverage(result))}'
    )


def _coverage(result: ScoredSet) -> list[tuple[str, str]]:
    stored, report = result.score, result.report
    number = len(report.ids)
    coverage = f"{_count(number - len(report.missing))} of {_counted(number, 'utterance')}"
    if report.missing:
        coverage += f"; {_count(len(report.missing))} without a hypothesis, counted as deletions"
    rows = [
        ("coverage", coverage),
        ("normaliser", stored["normalizer"]),
        ("alignment", stored["alignment"]),
    ]
    hypothesis = sum(stored["total"][name] for name in ("correct", "substitutions", "insertions"))
    correct = _count(stored["total"]["correct"])
    rows.append(("recognised", f"{_tokens(hypothesis, stored['metric'])}, {correct} correct"))
    if stored.get("runaway"):
        rows.append(
            (
                "more than twice as long as what was said",
                _counted(len(stored["runaway"]), "hypothesis", "hypotheses"),
            )
        )
    speed = facts.speed(result)
    return rows + ([("real-time factor", speed)] if speed else [])


# -- groups ------------------------------------------------------------------


def groups(result: ScoredSet) -> str:
    """A table for each label of score.json, in its order, one for the speakers, worst first, and
    one for each recognised label.
    """
    stored = result.score
    whole, macro = stored["total"]["rate"], stored["macro_average"]
    labels = stored["groups"].items()
    tables = [
        _group(label, list(values.items()), macro.get(label), whole) for label, values in labels
    ]
    if SPEAKER in result.report.groups and not {"spk", SPEAKER} & set(stored["groups"]):
        scored = result.report.json()
        rows = sorted(scored["groups"][SPEAKER].items(), key=lambda row: -(row[1]["rate"] or 0.0))
        tables.append(_group(SPEAKER, rows, scored["macro_average"][SPEAKER], whole))
    tables += [
        _recognised(label, label_score) for label, label_score in stored["recognition"].items()
    ]
    if not tables:
        return (
            '<p class="muted">No groups: one speaker, and stage 5 was not asked for any '
            "(<code>--group-by</code>).</p>"
        )
    note = (
        f'<p class="muted">An interval needs {FEWEST} utterances, or speakers; “–”: there are '
        "fewer.</p>"
    )
    return "".join(tables) + (note if any(">–<" in table for table in tables) else "")


def _group(
    label: str, rows: list[tuple[str, Mapping]], macro: Mapping | None, whole: float | None
) -> str:
    numbers = [_number(row["rate"], row["intervals"], "rate") for _, row in rows]
    span = _span(numbers)
    units = {unit: None for _, row in rows for unit in row["intervals"]}
    head = [label, "rate %", span, *_by(units), "S %", "D %", "I %", "utterances", "tokens"]
    body = []
    for (value, row), number in zip(rows, numbers, strict=True):
        shares = [
            percent(row[kind] / row["reference"]) if row["reference"] else "–" for kind in KINDS
        ]
        filter_by = (
            f'<button type="button" class="link" data-group="{escape(label)}" '
            f'data-value="{escape(value)}">'
        )
        body.append(
            [
                f"{filter_by}{escape(value)}</button>",
                percent(row["rate"]),
                _plot(number, span, whole),
                *_ranges(number),
                *shares,
                _count(row["utterances"]),
                _count(row["reference"]),
            ]
        )
    foot = None
    if macro is not None:
        mean = {"rate": macro["rate"], "bounds": list(macro["intervals"].values())}
        foot = [
            "macro average",
            percent(mean["rate"]),
            _plot(mean, span, whole),
            *_ranges(mean),
            *[""] * 5,
        ]
    title = f"By {label}"
    table = _table(head, body[:LONG], title, foot)
    if len(body) > LONG:
        rest = _table(head, body[LONG:], f"{title}, the rest")
        table += f"<details><summary>{len(body) - LONG} more</summary>{rest}</details>"
    return f"<h3>{escape(title)}</h3>{table}"


def _recognised(label: str, label_score: Mapping) -> str:
    """Accuracy and confusion matrix of a recognised label: a row for each true value."""
    answers = sorted({answer for row in label_score["confusion"].values() for answer in row})
    rows = []
    for value, row in label_score["classes"].items():
        cells = {
            answer: _count(label_score["confusion"][value].get(answer, 0)) for answer in answers
        }
        shown = [f"<b>{cell}</b>" if answer == value else cell for answer, cell in cells.items()]
        rows.append(
            [
                escape(value),
                percent(row["recall"]),
                _range(row["interval"]),
                _count(row["utterances"]),
                *shown,
            ]
        )
    head = [
        label,
        "recall %",
        "95 % by utterance",
        "utterances",
        *(f"as {answer}" for answer in answers),
    ]
    note = (
        f"accuracy {percent(label_score['accuracy'])} % "
        f"(95 % interval {_range(label_score['interval'])}), "
        f"mean recall {percent(label_score['mean_recall'])} %"
    )
    title = f"Recognised {label}"
    return f'<h3>{escape(title)}</h3><p class="muted">{note}</p>{_table(head, rows, title)}'


# -- errors ------------------------------------------------------------------


def errors(result: ScoredSet, tables: Mapping[str, Mapping]) -> str:
    """The most frequent errors of each kind, as buttons that filter the utterances."""
    parts = [_histogram(facts.histogram(result.report.counts))]
    titles = {"S": "Substitutions", "D": "Deletions", "I": "Insertions"}
    for tag, title in titles.items():
        entry = tables[tag]
        rows = []
        for reference, hypothesis, number in entry["top"]:
            query = {"S": f"{reference}>{hypothesis}", "D": f"-{reference}", "I": f"+{hypothesis}"}[
                tag
            ]
            shown = {
                "S": f'{escape(reference or "")} <span class=arrow aria-label="heard as">→</span> '
                f"{escape(hypothesis or '')}",
                "D": f"<s>{escape(reference or '')}</s>",
                "I": f"<u>{escape(hypothesis or '')}</u>",
            }[tag]
            rows.append(
                f'<li><button type="button" class="edit" data-query="{escape(query)}">'
                f'<span class="n">{_count(number)}</span><span class="tok '
                f'{tag}">{shown}</span></button></li>'
            )
        note = f"{_count(entry['total'])} in all, {_count(entry['kinds'])} different"
        body = f"<ol>{''.join(rows)}</ol>" if rows else '<p class="muted">none</p>'
        parts.append(
            f'<div class="edits"><h3>{_mark(tag)}{title}</h3><p '
            f'class="muted">{note}</p>{body}</div>'
        )
    return "".join(parts)


def _histogram(numbers: Sequence[int]) -> str:
    """Bars: the number of utterances for each number of errors."""
    top = max(*numbers, 1)
    names = [*map(str, range(len(numbers) - 1)), f"{len(numbers) - 1}+"]
    rows = [
        f'<tr><th scope="row">{name}</th><td class="bar"><svg aria-hidden="true" height="12" '
        'width="100%">'
        f'<rect x="0" y="1" width="{100 * number / top:.2f}%" height="10" rx="1.5"/></svg></td>'
        f"<td>{_count(number)}</td></tr>"
        for name, number in zip(names, numbers, strict=True)
    ]
    return (
        '<div class="edits histogram"><h3>Errors per utterance</h3><p class="muted">number of '
        "utterances</p>"
        '<table aria-label="Errors per utterance"><thead class="vh"><tr><th '
        'scope="col">errors</th><th></th>'
        '<th scope="col">utterances</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


# -- provenance --------------------------------------------------------------


def origin(result: ScoredSet) -> str:
    """Files, commits, commands and the whole training config."""
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd><pre>{escape(value)}</pre></dd>"
        for name, value in facts.provenance(result)
    )
    experiment = result.scored.experiment
    config = ""
    if experiment is not None:
        text = (experiment / "config.yaml").read_text(encoding="utf-8")
        config = (
            "<details><summary>config.yaml of the "
            f"training</summary><pre>{escape(text)}</pre></details>"
        )
    return f'<dl class="origin">{rows}</dl>{config}'


# -- pieces ------------------------------------------------------------------


def percent(rate: float | None) -> str:
    return "–" if rate is None else f"{100 * rate:.2f}"


def _count(number: int) -> str:
    return f"{number:,}".replace(",", "\u202f")  # thin space


def _counted(number: int, noun: str, many: str | None = None) -> str:
    return plural(number, noun, many).replace(str(number), _count(number), 1)


def _tokens(number: int, metric: str, what: str = "") -> str:
    one, many = TOKENS[metric]
    return _counted(number, what + one, what + many)


def _range(bounds: Bounds) -> str:
    return "–" if bounds is None else f"{100 * bounds[0]:.2f} – {100 * bounds[1]:.2f}"


def _mark(letter: str) -> str:
    return f'<span class="mark {letter}" aria-hidden="true">{letter}</span>' if letter else ""


def _number(rate: float | None, intervals: Mapping[str, Mapping[str, Bounds]], key: str) -> dict:
    """A rate and its intervals, one for each unit of the bootstrap: utterances, speakers."""
    return {"rate": rate, "bounds": [interval[key] for interval in intervals.values()]}


def _by(units: Iterable[str]) -> list[str]:
    return [f"95 % by {unit}" for unit in units]


def _ranges(number: Mapping) -> list[str]:
    return [_range(bounds) for bounds in number["bounds"]]


def _span(numbers: Iterable[Mapping]) -> Span:
    """The range of a column of plots: from 0, unless all values are close together."""
    values = [
        value
        for number in numbers
        for pair in ((number["rate"],), *number["bounds"])
        for value in pair or ()
    ]
    values = [value for value in values if value is not None]
    low, high = min(values, default=0.0), max(values, default=0.0)
    margin = 0.06 * (high - low)
    return (
        (low - margin, high + margin)
        if low > 0.4 * high and high > low
        else (0.0, 1.06 * high or 1.0)
    )


def _plot(number: Mapping, span: Span, whole: float | None = None) -> str:
    """Draw a rate as a dot with its intervals, and the rate of the whole set as a line."""
    if number["rate"] is None:
        return ""

    def x(rate: float) -> str:
        return f"{100 * min(1.0, max(0.0, (rate - span[0]) / (span[1] - span[0]))):.2f}%"

    shapes = ""
    if whole is not None and span[0] <= whole <= span[1]:
        shapes += f'<line class="whole" x1="{x(whole)}" x2="{x(whole)}" y1="0" y2="20"/>'
    for kind, bounds in zip(("whisker", "whisker thin"), number["bounds"], strict=False):
        if bounds is not None:
            shapes += (
                f'<line class="{kind}" x1="{x(bounds[0])}" x2="{x(bounds[1])}" y1="10" y2="10"/>'
            )
    shapes += f'<circle cx="{x(number["rate"])}" cy="10" r="3.5"/>'
    return f'<svg class="plot" aria-hidden="true" width="100%" height="20">{shapes}</svg>'


def _table(
    head: Sequence[str | Span],
    rows: Sequence[Sequence[str]],
    caption: str,
    foot: Sequence[str] | None = None,
) -> str:
    """The first column names the rows; a head that is a span belongs to a column of plots."""

    def line(cells: Sequence[str]) -> str:
        rest = "".join(
            f"<td{'' if isinstance(head[number], str) else ' class=plotted'}>{cell}</td>"
            for number, cell in enumerate(cells)
            if number
        )
        return f'<tr><th scope="row">{cells[0]}</th>{rest}</tr>'

    def top(name: str | Span) -> str:
        if isinstance(name, str):
            return f'<th scope="col">{escape(name)}</th>'
        ends = "".join(f"<span>{100 * end:.3g}</span>" for end in name)
        return f'<td class="plotted" aria-hidden="true"><div class="ends">{ends}</div></td>'

    footer = f"<tfoot>{line(foot)}</tfoot>" if foot else ""
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(caption)}"><table '
        'class="numbers">'
        f'<caption class="vh">{escape(caption)}</caption>'
        f"<thead><tr>{''.join(map(top, head))}</tr></thead>"
        f"<tbody>{''.join(map(line, rows))}</tbody>{footer}</table></div>"
    )


def _definitions(rows: Sequence[tuple[str, str]]) -> str:
    return (
        '<dl class="facts">'
        + "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in rows
        )
        + "</dl>"
    )
