"""The page: template, sections, and all utterances as compact JSON for the page's script."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from itertools import groupby
from pathlib import Path

from asrtool.data.audio import AudioError
from asrtool.log import logger
from asrtool.report import details, facts, sections
from asrtool.report.sources import SPEAKER, ScoredSet
from asrtool.score import align
from asrtool.score.normalize import normalizer, splitter
from asrtool.score.transcripts import first_of

AUDIO = ("link", "embed", "none")
SCRIPTS = ("data.js", "theme.js", "alignment.js", "figure.js", "chart.js", "list.js", "main.js")


def render(result: ScoredSet, chosen: Sequence[str], page: Path, audio: str = "link") -> str:
    """The HTML file. chosen: utterances with pictures (and audio, if `audio` is "embed"), in the
    order of the page.

    page: the path of the file; "link" makes URLs of audio files relative to it.
    """
    if audio not in AUDIO:
        raise ValueError(f"unknown audio '{audio}' (valid: {', '.join(AUDIO)})")
    alignments = list(_alignments(result))
    tables = facts.edits(alignments)
    experiment = result.scored.experiment
    notes: list[str] = []
    data = {
        "metric": result.score["metric"],
        "failed": {name: line["error"] for name, line in result.lines.items() if "error" in line},
        "columns": _columns(result, alignments),
        "details": _details(result, chosen, audio == "embed", notes),
        "links": _links(result, page, notes) if audio == "link" else [],
        "curves": facts.curves(experiment) if experiment is not None else [],
    }
    for note in notes:
        logger.warning("%s", note)
    title = _title(result)
    style = _template("report.css")
    script = (
        '"use strict";\n(() => {\n' + "\n".join(_template(name) for name in SCRIPTS) + "})();\n"
    )
    pieces = {
        "policy": _policy(style, script),
        "title": escape(" / ".join(title)),
        "name": " <span>/</span> ".join(escape(part) for part in title),
        "style": style,
        "summary": sections.summary(result),
        "groups": sections.groups(result),
        "errors": sections.errors(result, tables),
        "origin": sections.origin(result),
        "notes": "".join(f'<p class="note">{escape(note)}</p>' for note in notes),
        # "</script>" in a transcript would end the script element
        "data": json.dumps(
            data, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        ).replace("<", "\\u003c"),
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: pieces[match[1]], _template("report.html"))


def _template(name: str) -> str:
    return resources.files(__package__).joinpath("template", name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Allow the page's own style and script, embedded data, and audio files; nothing else."""

    def digest(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    return (
        f"default-src 'none'; style-src {digest(style)}; script-src {digest(script)}; img-src "
        "data:; "
        "media-src data: file: 'self'; base-uri 'none'; form-action 'none'"
    )


def _title(result: ScoredSet) -> list[str]:
    """The path of the result from its experiment on, as <tag>/<decode>/<set>."""
    folder, experiment = result.folder, result.scored.experiment
    return list((folder.relative_to(experiment.parent) if experiment else Path(folder.name)).parts)


def _alignments(result: ScoredSet) -> Iterable[list[tuple]]:
    report = result.report
    prepare, split = normalizer(report.normalizer), splitter(report.metric)
    for name in report.ids:
        left, right = (
            split(prepare(text))
            for text in (result.references[name], result.hypotheses.get(name, ""))
        )
        yield align(left, right, report.alignment)


def _columns(result: ScoredSet, alignments: Sequence[list[tuple]]) -> dict:
    """All utterances, a list for each column.

    `ops` is the alignment as counts and tags ("3C1S2C"); tokens are joined by spaces, which no
    token contains. `labels`: {label: {"values": [...], "of": [index of the value, -1 without
    one]}}.
    """
    ids = result.report.ids
    columns: dict = {"id": ids, "ops": [], "ref": [], "hyp": []}
    for alignment in alignments:
        runs = (
            (tag, sum(1 for _ in run))
            for tag, run in groupby(alignment, key=lambda column: column[0])
        )
        columns["ops"].append("".join(f"{number}{tag}" for tag, number in runs))
        columns["ref"].append(" ".join(token for _, token, _ in alignment if token is not None))
        columns["hyp"].append(" ".join(token for _, _, token in alignment if token is not None))
    missing = set(result.report.missing)
    columns["missing"] = [row for row, name in enumerate(ids) if name in missing]
    columns["seconds"] = [_seconds(result, name) for name in ids]
    confidences = [_mean(result.lines.get(name, {}).get("confidences")) for name in ids]
    if any(value is not None for value in confidences):
        columns["confidence"] = confidences
    columns["labels"] = _labels(result)
    return columns


def _seconds(result: ScoredSet, name: str) -> float | None:
    seconds = result.lines.get(name, {}).get("seconds")
    if seconds is None and name in result.utterances:
        seconds = result.utterances[name].duration
    return round(seconds, 2) if seconds is not None and math.isfinite(seconds) else None


def _mean(values: Sequence[float] | None) -> float | None:
    return round(sum(values) / len(values), 3) if values else None


def _labels(result: ScoredSet) -> dict[str, dict]:
    """Speakers, if there are several, and every utt2* and spk2* label of the data directory."""
    rows = [result.utterances.get(name) for name in result.report.ids]
    of: dict[str, list[str | None]] = {SPEAKER: [row.speaker if row else None for row in rows]}
    for label in sorted({label for row in rows if row for label in row.labels}):
        of.setdefault(label, [row.labels.get(label) if row else None for row in rows])
    labels = {}
    for label, values in of.items():
        kinds = sorted({value for value in values if value is not None})
        number = {value: index for index, value in enumerate(kinds)}
        if 1 < len(kinds) < len(values):
            labels[label] = {"values": kinds, "of": [number.get(value, -1) for value in values]}
    return labels


def _details(result: ScoredSet, chosen: Sequence[str], embed: bool, notes: list[str]) -> list[dict]:
    """Row, picture, audio and taps of each chosen utterance, in their order."""
    row = {name: index for index, name in enumerate(result.report.ids)}
    entries, failed = [], {}
    for name in chosen:
        entry = {"row": row[name], **details.fields_of(name, result.lines.get(name, {}))}
        if name in result.utterances:
            try:
                wave = details.samples(result.utterances[name])
            except (AudioError, OSError) as error:
                failed[name] = str(error)
            else:
                entry.update(details.picture(wave))
                if embed:
                    entry["sound"] = details.sound(wave)
        entries.append(entry)
    if failed:
        first, reason = next(iter(failed.items()))
        notes.append(
            f"No spectrogram for {len(failed)} of {len(chosen)} utterances, first {first}: {reason}"
        )
    if result.data is None and chosen:
        notes.append(
            "No audio and no spectrograms: the reference does not lie in a data directory with "
            "wav.scp, and "
            "no other was named (--data)."
        )
    return entries


def _links(result: ScoredSet, page: Path, notes: list[str]) -> list[str | None]:
    if not result.utterances:
        return []
    links = [details.link(result.utterances[name], page) for name in result.report.ids]
    missing = [
        name for name, address in zip(result.report.ids, links, strict=True) if address is None
    ]
    if missing:
        notes.append(
            f"The audio of {len(missing)} of {len(links)} utterances cannot be linked, because "
            "browsers do not play it (pipes, other formats); --audio embed embeds the utterances "
            f"that are shown: {first_of(missing)}"
        )
    return links if len(missing) < len(links) else []
