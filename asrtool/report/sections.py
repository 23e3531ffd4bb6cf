"""The parts of the page that need no script: summary, groups, most frequent errors, where the result comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from asrtool.report import facts
from asrtool.report.sources import SPEAKER, Result

Bounds = Sequence[float] | None
Span = tuple[float, float]                   # rates at the left and right end of plots
TOKENS = {"wer": "words", "cer": "characters", "mer": "characters and words"}
LONG = 12                                    # rows of a table that are shown before "all"


def summary(result: Result) -> str:
    """The rate in large type, the kinds of errors, and what was counted how."""
    stored, metric = result.score, result.score["metric"]
    total, bounds = stored["total"], stored["interval"]
    rates = facts.error_rates(result.report.counts)
    span = _span([rates[kind] for kind in facts.KINDS])
    names = {"substitutions": ("S", "substitutions"), "deletions": ("D", "deletions"),
             "insertions": ("I", "insertions"), "sentences": ("", "utterances with errors")}
    rows = [
        [_mark(letter) + escape(name), percent(rates[kind]["rate"]), _plot(rates[kind], span) if letter else "",
         _range(rates[kind]["interval"]), _count(rates[kind]["count"])]
        for kind, (letter, name) in names.items()
    ]
    table = _table(["kind", "rate %", span, "95 % interval", "count"], rows, "Errors by kind")
    drawn = stored.get("bootstrap", {})
    how = f"bootstrap over utterances, {drawn['draws']} draws, seed {drawn['seed']}" if drawn else "bootstrap"
    errors = total["substitutions"] + total["deletions"] + total["insertions"]
    return (
        f'<div class="hero"><p class="eyebrow">{escape(_metric(metric))}</p>'
        f'<p class="rate">{percent(total["rate"])}<span class="unit">%</span></p>'
        f'<p class="interval">95 % interval {_range(bounds)}<br><span class="muted">{escape(how)}</span></p>'
        f'<p class="muted">{_count(errors)} errors in {_count(total["reference"])} reference {TOKENS[metric]}</p></div>'
        f'<div class="kinds">{table}</div>{_definitions(_counted(result))}'
    )


def _metric(metric: str) -> str:
    return {"wer": "word error rate", "cer": "character error rate", "mer": "mixed error rate"}[metric]


def _counted(result: Result) -> list[tuple[str, str]]:
    stored, report = result.score, result.report
    number = len(report.ids)
    coverage = f"{_count(number - len(report.missing))} of {_count(number)} utterances"
    if report.missing:
        coverage += f"; {_count(len(report.missing))} without a hypothesis, counted as deletions"
    found = [("coverage", coverage), ("normaliser", stored["normalizer"]), ("alignment", stored["alignment"])]
    hypothesis = sum(stored["total"][name] for name in ("correct", "substitutions", "insertions"))
    correct = _count(stored["total"]["correct"])
    found.append(("recognised", f"{_count(hypothesis)} {TOKENS[stored['metric']]}, {correct} correct"))
    speed = facts.speed(result)
    return found + ([("real-time factor", speed)] if speed else [])


# -- groups ------------------------------------------------------------------

def groups(result: Result) -> str:
    """A table for each label of score.json (in its order), and one of the speakers, worst first."""
    stored = result.score
    tables = []
    for label, values in stored.get("groups", {}).items():
        macro = stored.get("macro_average", {}).get(label)
        tables.append(_group(label, list(values.items()), macro, stored["total"]["rate"]))
    if SPEAKER in result.report.groups and not {"spk", SPEAKER} & set(stored.get("groups", {})):
        rows = [(value, {**vars(group.total), "reference": group.total.reference, "utterances": group.utterances,
                         "rate": group.total.rate if group.total.reference else None, "interval": group.interval})
                for value, group in result.report.groups[SPEAKER].items()]
        rows.sort(key=lambda row: -(row[1]["rate"] or 0.0))
        macro = result.report.macro[SPEAKER]
        tables.append(_group(SPEAKER, rows, {"rate": macro.rate, "interval": macro.interval}, stored["total"]["rate"]))
    if not tables:
        return ('<p class="muted">No groups: one speaker, and stage 5 was not asked for any '
                "(<code>--group-by</code>).</p>")
    return "".join(tables)


def _group(label: str, rows: list[tuple[str, Mapping]], macro: Mapping | None, whole: float | None) -> str:
    span = _span([row for _, row in rows])
    head = [label, "rate %", span, "95 % interval", "S %", "D %", "I %", "utterances", "tokens"]
    body = []
    for value, row in rows:
        shares = [percent(row[kind] / row["reference"]) if row["reference"] else "–" for kind in facts.KINDS]
        filter_by = f'<button type="button" class="link" data-group="{escape(label)}" data-value="{escape(value)}">'
        body.append([f"{filter_by}{escape(value)}</button>", percent(row["rate"]), _plot(row, span, whole),
                     _range(row["interval"]), *shares, _count(row["utterances"]), _count(row["reference"])])
    foot = None
    if macro is not None:
        rate, bounds = percent(macro["rate"]), _range(macro["interval"])
        foot = ["macro average", rate, _plot(macro, span, whole), bounds, *[""] * 5]
    title = f"By {label}"
    table = _table(head, body[:LONG], title, foot)
    if len(body) > LONG:
        rest = _table(head, body[LONG:], f"{title}, the rest")
        table += f"<details><summary>{len(body) - LONG} more</summary>{rest}</details>"
    return f"<h3>{escape(title)}</h3>{table}"


# -- errors ------------------------------------------------------------------

def errors(result: Result, tables: Mapping[str, Mapping]) -> str:
    """Most frequent substitutions, deletions and insertions; each is a button that filters the list of utterances."""
    parts = [_histogram(facts.histogram(result.report.counts))]
    titles = {"S": "Substitutions", "D": "Deletions", "I": "Insertions"}
    for tag, title in titles.items():
        entry = tables[tag]
        rows = []
        for reference, hypothesis, number in entry["top"]:
            query = {"S": f"{reference}>{hypothesis}", "D": f"-{reference}", "I": f"+{hypothesis}"}[tag]
            shown = {"S": f"{escape(reference or '')} <span class=arrow aria-label=\"heard as\">→</span> "
                          f"{escape(hypothesis or '')}",
                     "D": f"<s>{escape(reference or '')}</s>", "I": f"<u>{escape(hypothesis or '')}</u>"}[tag]
            rows.append(f'<li><button type="button" class="edit" data-query="{escape(query)}">'
                        f'<span class="n">{_count(number)}</span><span class="tok {tag}">{shown}</span></button></li>')
        note = f"{_count(entry['total'])} in all, {_count(entry['kinds'])} different"
        body = f"<ol>{''.join(rows)}</ol>" if rows else '<p class="muted">none</p>'
        parts.append(f'<div class="edits"><h3>{_mark(tag)}{title}</h3><p class="muted">{note}</p>{body}</div>')
    return "".join(parts)


def _histogram(numbers: Sequence[int]) -> str:
    """Bars: how many utterances have so many errors."""
    top = max(*numbers, 1)
    names = [*map(str, range(len(numbers) - 1)), f"{len(numbers) - 1}+"]
    rows = [
        f'<tr><th scope="row">{name}</th><td class="bar"><svg aria-hidden="true" height="12" width="100%">'
        f'<rect x="0" y="1" width="{100 * number / top:.2f}%" height="10" rx="1.5"/></svg></td>'
        f"<td>{_count(number)}</td></tr>"
        for name, number in zip(names, numbers, strict=True)
    ]
    return ('<div class="edits histogram"><h3>Errors per utterance</h3><p class="muted">number of utterances</p>'
            '<table aria-label="Errors per utterance"><thead class="vh"><tr><th scope="col">errors</th><th></th>'
            '<th scope="col">utterances</th></tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table></div>")


# -- provenance --------------------------------------------------------------

def origin(result: Result) -> str:
    """Files, commits, commands and the whole training config."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd><pre>{escape(value)}</pre></dd>"
                   for name, value in facts.provenance(result))
    experiment = result.experiment
    config = ""
    if experiment is not None:
        text = (experiment / "config.yaml").read_text(encoding="utf-8")
        config = f"<details><summary>config.yaml of the training</summary><pre>{escape(text)}</pre></details>"
    return f'<dl class="origin">{rows}</dl>{config}'


# -- pieces ------------------------------------------------------------------

def percent(rate: float | None) -> str:
    return "–" if rate is None else f"{100 * rate:.2f}"


def _count(number: int) -> str:
    return f"{number:,}".replace(",", "\u202f")                  # thin space


def _range(bounds: Bounds) -> str:
    return "–" if bounds is None else f"{100 * bounds[0]:.2f} – {100 * bounds[1]:.2f}"


def _mark(letter: str) -> str:
    return f'<span class="mark {letter}" aria-hidden="true">{letter}</span>' if letter else ""


def _span(rows: Iterable[Mapping]) -> Span:
    """The rates at both ends of a column of plots: from 0, unless all lie close together far from it."""
    values = [value for row in rows for value in (row["rate"], *(row["interval"] or ())) if value is not None]
    low, high = min(values, default=0.0), max(values, default=0.0)
    margin = 0.06 * (high - low)
    return (low - margin, high + margin) if low > 0.4 * high and high > low else (0.0, 1.06 * high or 1.0)


def _plot(row: Mapping, span: Span, whole: float | None = None) -> str:
    """A dot with its interval, and a line where the whole set lies; the numbers stand beside it."""
    if row["rate"] is None:
        return ""

    def x(rate: float) -> str:
        return f"{100 * min(1.0, max(0.0, (rate - span[0]) / (span[1] - span[0]))):.2f}%"

    shapes = ""
    if whole is not None and span[0] <= whole <= span[1]:
        shapes += f'<line class="whole" x1="{x(whole)}" x2="{x(whole)}" y1="0" y2="20"/>'
    if row["interval"] is not None:
        low, high = row["interval"]
        shapes += f'<line class="whisker" x1="{x(low)}" x2="{x(high)}" y1="10" y2="10"/>'
    shapes += f'<circle cx="{x(row["rate"])}" cy="10" r="3.5"/>'
    return f'<svg class="plot" aria-hidden="true" width="100%" height="20">{shapes}</svg>'


def _table(
    head: Sequence[str | Span], rows: Sequence[Sequence[str]], caption: str, foot: Sequence[str] | None = None
) -> str:
    """The first column names the rows; a head that is a span stands over plots."""
    def line(cells: Sequence[str]) -> str:
        rest = "".join(f'<td{"" if isinstance(head[number], str) else " class=plotted"}>{cell}</td>'
                       for number, cell in enumerate(cells) if number)
        return f'<tr><th scope="row">{cells[0]}</th>{rest}</tr>'

    def top(name: str | Span) -> str:
        if isinstance(name, str):
            return f'<th scope="col">{escape(name)}</th>'
        ends = "".join(f"<span>{100 * end:.3g}</span>" for end in name)
        return f'<td class="plotted" aria-hidden="true"><div class="ends">{ends}</div></td>'

    footer = f"<tfoot>{line(foot)}</tfoot>" if foot else ""
    return (f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(caption)}"><table class="numbers">'
            f'<caption class="vh">{escape(caption)}</caption><thead><tr>{"".join(map(top, head))}</tr></thead>'
            f"<tbody>{''.join(map(line, rows))}</tbody>{footer}</table></div>")


def _definitions(rows: Sequence[tuple[str, str]]) -> str:
    return '<dl class="facts">' + "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in rows
    ) + "</dl>"
