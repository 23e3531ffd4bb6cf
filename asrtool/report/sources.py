"""The sources of a report: a folder `exp/<tag>/<decode>/<set>` that stage 5 scored, and the files
that it names.

The numbers are those of score.json. Texts are read again to align them, and are checked against
score.json (SHA-256 of both files, sums of all counts), so that a page never shows another result
than the scored one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asrtool.data.kaldi import datadir
from asrtool.errors import UserError
from asrtool.score import ScoreReport, score
from asrtool.score.stored import SCORE, StoredScore
from asrtool.score.transcripts import first_of
from asrtool.types import Utterance

SPEAKER = "speaker"
TAPS, FAILED = "taps.jsonl", "failed.jsonl"


@dataclass(frozen=True, kw_only=True)
class ScoredSet:
    """A scored test set. `report` has the counts per utterance, in the order of `references`."""

    scored: StoredScore
    references: Mapping[str, str]
    hypotheses: Mapping[str, str]
    report: ScoreReport
    lines: Mapping[str, Mapping]  # hyps.jsonl, merged with taps.jsonl and failed.jsonl
    data: Path | None  # the data directory: audio, speakers, labels
    utterances: Mapping[str, Utterance]

    @property
    def folder(self) -> Path:
        return self.scored.folder

    @property
    def score(self) -> Mapping:
        """score.json."""
        return self.scored.stored


def read(folder: Path, data: Path | None = None) -> ScoredSet:
    """Read the scored set in `folder`.

    data: the data directory; by default, the folder of the reference.
    """
    if not (folder / SCORE).is_file():
        problem = f"the folder holds no {SCORE}" if folder.is_dir() else "no such folder"
        raise UserError(
            f"{folder}: {problem}; expected what stage 5 wrote, exp/<tag>/<decode>/<set>"
        )
    folder = folder.resolve()
    scored = StoredScore.read(folder / SCORE)
    references, hypotheses = scored.texts("reference"), scored.texts("hypothesis")
    data = data or scored.file("reference").parent
    if not (data / "wav.scp").is_file():
        data = None
    utterances = _utterances(folder, data, references) if data else {}
    stored = scored.stored
    speakers = {name: utterance.speaker for name, utterance in utterances.items()}
    report = score(
        references,
        hypotheses,
        metric=stored["metric"],
        normalize=stored["normalizer"],
        alignment=stored["alignment"],
        missing="deletions" if stored["coverage"]["missing_counted_as_deletions"] else "error",
        labels={SPEAKER: speakers} if 1 < len(set(speakers.values())) < len(references) else None,
    )
    _compare(folder, stored, report)
    return ScoredSet(
        scored=scored,
        references=references,
        hypotheses=hypotheses,
        report=report,
        lines=_lines(folder, references),
        data=data,
        utterances=utterances,
    )


def _compare(folder: Path, stored: Mapping, report: ScoreReport) -> None:
    names = ("correct", "substitutions", "deletions", "insertions")
    then, now = (
        [counts[name] for name in names] for counts in (stored["total"], vars(report.total))
    )
    if then != now:
        raise UserError(
            f"{folder / SCORE}: counts {then} of C, S, D, I, but its files give {now}; score again"
        )


def _utterances(folder: Path, data: Path, references: Mapping[str, str]) -> Mapping[str, Utterance]:
    """The scored utterances in the data directory. Relative paths in wav.scp start at the folder of
    the recipe, which is rarely the current one.
    """
    utterances = {
        utterance.id: utterance
        for utterance in datadir.read(data, base=_base(folder, data), measure=False)
    }
    missing = [name for name in references if name not in utterances]
    if missing:
        raise UserError(
            f"{data}: {len(missing)} of {len(references)} scored utterances are not in it: "
            f"{first_of(missing)}; name the right data directory by --data"
        )
    return {name: utterances[name] for name in references}


def _base(folder: Path, data: Path) -> Path | None:
    """The folder in which the first relative path of wav.scp exists."""
    return datadir.base_of(data, [Path(), *folder.resolve().parents, *data.resolve().parents])


def _lines(folder: Path, references: Mapping[str, str]) -> dict[str, dict]:
    """Read hyps.jsonl, and add the fields of taps.jsonl and failed.jsonl by utterance."""
    lines: dict[str, dict] = {}
    for name in ("hyps.jsonl", TAPS, FAILED):
        if (folder / name).is_file():
            for number, line in _objects(folder / name):
                key = line.get("id")
                if key not in references:
                    raise UserError(
                        f"{folder / name}:{number}: utterance '{key}' was not scored; score again"
                    )
                line.pop("nbest", None)
                lines.setdefault(key, {}).update(line)
    return lines


def _objects(path: Path) -> Iterator[tuple[int, dict]]:
    """Number and object of each line of a jsonl file."""
    with open(path, encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}:{number}: not JSON ({error.msg} at column {error.colno})"
                ) from None
            if not isinstance(value, dict):
                raise UserError(
                    f"{path}:{number}: expected an object, found {type(value).__name__}"
                )
            yield number, value


def log_records(path: Path) -> list[dict]:
    """The records of log.jsonl, without lines that a killed process left incomplete."""
    records = []
    for text in path.read_text(encoding="utf-8").split("\n"):
        try:
            records.append(json.loads(text))
        except json.JSONDecodeError:
            continue  # JsonLines ends a torn line and starts a new one
    return records


def choose(result: ScoredSet, worst: int, also: Sequence[str]) -> list[str]:
    """The utterances with the most errors, worst first, followed by those of `also`."""
    unknown = [name for name in also if name not in result.references]
    if unknown:
        raise UserError(f"{result.scored.file('reference')}: no utterance '{unknown[0]}'")
    errors = result.report.counts[:, 1:].sum(axis=1)
    order = sorted(range(len(errors)), key=lambda row: -errors[row])[:worst]
    names = [result.report.ids[row] for row in order if errors[row]]
    return names + [name for name in dict.fromkeys(also) if name not in names]
