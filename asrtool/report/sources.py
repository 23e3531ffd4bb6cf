"""What a report is made of: a folder `exp/<tag>/<decode>/<set>` that stage 5 scored, and the files that it names.

The numbers are those of score.json. Texts are read again for their alignments, and everything is checked against
score.json (SHA-256 of both files, sums of all counts), so that a page never shows another result than was scored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asrtool.data import datadir
from asrtool.score import ScoreReport, read_transcripts, score
from asrtool.score.transcripts import TranscriptError, first_of
from asrtool.types import Utterance

SPEAKER = "speaker"
TAPS = "taps.jsonl"


class ReportError(ValueError):
    """The folder does not hold what a report needs; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A scored set. `report` has the counts by utterance, in the order of `references`."""

    folder: Path
    score: Mapping                           # score.json
    files: Mapping[str, Path]                # "reference", "hypothesis": where they lie now
    references: Mapping[str, str]
    hypotheses: Mapping[str, str]
    report: ScoreReport
    lines: Mapping[str, Mapping]             # hyps.jsonl, with what taps.jsonl adds
    data: Path | None                        # the data directory: audio, speakers, labels
    utterances: Mapping[str, Utterance]

    @property
    def experiment(self) -> Path | None:
        """`exp/<tag>`, where the folder lies in one."""
        return next((parent for parent in self.folder.resolve().parents if (parent / "config.yaml").is_file()), None)


def read(folder: Path, data: Path | None = None) -> Result:
    """The result in `folder`; `data`: the data directory, by default the folder of the reference that was scored."""
    stored = _score_json(folder)
    sides = {"reference": data, "hypothesis": folder}
    files = {side: _locate(folder, side, stored, beside) for side, beside in sides.items()}
    references, hypotheses = (read_transcripts(path) for path in files.values())
    data = data or files["reference"].parent
    if not (data / "wav.scp").is_file():
        data = None
    utterances = _utterances(folder, data, references) if data else {}
    counted = stored.get("coverage", {}).get("missing_counted_as_deletions")
    speakers = {name: utterance.speaker for name, utterance in utterances.items()}
    report = score(
        references, hypotheses, metric=stored["metric"], normalize=stored["normalizer"], alignment=stored["alignment"],
        missing="deletions" if counted else "error",
        labels={SPEAKER: speakers} if 1 < len(set(speakers.values())) < len(references) else None,
    )
    _compare(folder, stored, report)
    return Result(
        folder=folder, score=stored, files=files, references=references, hypotheses=hypotheses, report=report,
        lines=_lines(folder, references), data=data, utterances=utterances,
    )


def _score_json(folder: Path) -> dict:
    path = folder / "score.json"
    if not path.is_file():
        what = "the folder holds no score.json" if folder.is_dir() else "no such folder"
        raise ReportError(f"{folder}: {what}; a report is made of what stage 5 wrote, exp/<tag>/<decode>/<set>")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ReportError(f"{path}:{error.lineno}: not JSON ({error.msg}); {_again(folder)}") from None
    lost = [name for name in ("metric", "normalizer", "alignment", "total", "files") if name not in stored]
    if lost:
        raise ReportError(f"{path}: has no '{lost[0]}', so an older version wrote it; {_again(folder)}")
    return stored


def _again(folder: Path) -> str:
    return f"score again: utils/score.sh <data directory> {folder}"


def _locate(folder: Path, side: str, stored: Mapping, beside: Path | None) -> Path:
    """The file that was scored. Its path starts where stage 5 ran: here, or in one of the folders above `folder`.

    `beside`: a folder in which it may lie under the same name, since the whole was moved.
    """
    path, digest = Path(stored["files"][side]["path"]), stored["files"][side]["sha256"]
    places = [path, *(parent / path for parent in folder.resolve().parents), *([beside / path.name] if beside else [])]
    found = [place for place in places if place.is_file()]
    for place in found:
        with open(place, "rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() == digest:
                return place
    if found:
        raise ReportError(f"{found[0]}: the {side} has changed since it was scored; {_again(folder)}")
    raise ReportError(f"{path}: the {side} that was scored is gone (looked here and in every folder above {folder}); "
                      f"{_again(folder)}")


def _compare(folder: Path, stored: Mapping, report: ScoreReport) -> None:
    names = ("correct", "substitutions", "deletions", "insertions")
    then, now = ([counts[name] for name in names] for counts in (stored["total"], vars(report.total)))
    if then != now:
        raise ReportError(f"{folder / 'score.json'}: counts {then} of C, S, D, I, but its files give {now}; "
                          f"{_again(folder)}")


def _utterances(folder: Path, data: Path, references: Mapping[str, str]) -> dict[str, Utterance]:
    """Of the data directory. Relative paths of wav.scp start where the recipe ran, which is seldom here."""
    utterances = {utterance.id: utterance for utterance in datadir.read(data, base=_base(folder, data), measure=False)}
    lost = [name for name in references if name not in utterances]
    if lost:
        raise ReportError(f"{data}: {len(lost)} of {len(references)} scored utterances are not in it: "
                          f"{first_of(lost)}; name the right data directory by --data")
    return {name: utterances[name] for name in references}


def _base(folder: Path, data: Path) -> Path | None:
    """The folder in which the first relative path of wav.scp exists."""
    with open(data / "wav.scp", encoding="utf-8") as stream:
        paths = (line.split(maxsplit=1)[1].strip() for line in stream if len(line.split(maxsplit=1)) == 2)
        path = next((path for path in paths if not path.endswith("|") and not path.startswith("/")), None)
    if path is None or Path(path).exists():
        return None
    places = [*folder.resolve().parents, *data.resolve().parents]
    return next((place for place in places if (place / path).exists()), None)


def _lines(folder: Path, references: Mapping[str, str]) -> dict[str, dict]:
    """What hyps.jsonl says of each utterance, with the fields of taps.jsonl, which may leave utterances out."""
    lines: dict[str, dict] = {}
    for name in ("hyps.jsonl", TAPS):
        if (folder / name).is_file():
            for number, line in _objects(folder / name):
                key = line.get("id")
                if key not in references:
                    raise ReportError(f"{folder / name}:{number}: utterance '{key}' was not scored; {_again(folder)}")
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
                raise ReportError(f"{path}:{number}: not JSON ({error.msg} at column {error.colno})") from None
            if not isinstance(value, dict):
                raise ReportError(f"{path}:{number}: expected an object, found {type(value).__name__}")
            yield number, value


def log_records(path: Path) -> list[dict]:
    """The records of log.jsonl; a last line that a kill tore off is left out."""
    found = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
            continue                         # JsonLines ends a torn line and starts a new one
    return found


def choose(result: Result, worst: int, also: Sequence[str]) -> list[str]:
    """The utterances with most errors, most first (ties: the order of the file), then those asked for by name."""
    unknown = [name for name in also if name not in result.references]
    if unknown:
        raise TranscriptError(f"{result.files['reference']}: no utterance '{unknown[0]}'")
    errors = result.report.counts[:, 1:].sum(axis=1)
    order = sorted(range(len(errors)), key=lambda row: -errors[row])[:worst]
    names = [result.report.ids[row] for row in order if errors[row]]
    return names + [name for name in dict.fromkeys(also) if name not in names]
