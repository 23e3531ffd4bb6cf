"""The results of all experiments in a folder, with their origin: read from `exp/`, never typed.

An experiment is a folder with the `config.yaml` that training wrote; its results are
`<decode>/<set>/score.json`. A result that cannot be trusted, such as a score whose hypotheses have
changed since, is left out and named.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from asrtool.errors import UserError
from asrtool.log import plural
from asrtool.score.stored import StoredScore, find
from asrtool.score.summary import percent

PUBLISHED = Path(__file__).with_name("published.yaml")
SHORT = 8  # characters of a hash that are shown


@dataclass(frozen=True)
class TrainedExperiment:
    """The records in `exp/<tag>`; empty if a file is missing."""

    folder: Path
    config: Mapping

    @classmethod
    def read(cls, folder: Path) -> TrainedExperiment:
        try:
            config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        except yaml.YAMLError:
            config = None
        if not isinstance(config, dict) or not isinstance(config.get("phases"), dict):
            raise UserError(
                f"{folder / 'config.yaml'}: not a config that training wrote (no phases)"
            )
        return cls(folder, config)

    @property
    def tag(self) -> str:
        return self.folder.name

    @property
    def begun(self) -> str:
        """When it was first started, `2026-01-31 12:00:00`; `~`, which sorts last, if unknown."""
        lines = self._lines("command.txt")
        return lines[0][:19] if lines else "~"

    @property
    def commands(self) -> list[str]:
        """The command of each start that differs from the one before, without the time."""
        return _without_repeats(_command(line[20:]) for line in self._lines("command.txt"))

    @property
    def commits(self) -> list[str]:
        return _without_repeats(line[20:] for line in self._lines("git.txt"))

    @property
    def seeds(self) -> list[int]:
        return _without_repeats(phase.get("seed", 0) for phase in self.config["phases"].values())

    @property
    def data(self) -> str:
        """Digest of the training set."""
        try:
            stamp = json.loads((self.folder / ".stage.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return ""
        return stamp.get("sources", {}).get("train", "")

    @property
    def model(self) -> Mapping:
        """`parameters`, `trained` and `frame_shift` of the last phase."""
        try:
            path = self.folder / list(self.config["phases"])[-1] / "model.json"
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _lines(self, name: str) -> list[str]:
        try:
            return [
                line
                for line in (self.folder / name).read_text(encoding="utf-8").split("\n")
                if line
            ]
        except OSError:
            return []


@dataclass(frozen=True)
class ResultRow:
    """One experiment on one set."""

    experiment: TrainedExperiment
    result: StoredScore
    seconds: float  # of audio
    elapsed: float  # of search
    frames: int | None  # of the encoder; None: hyps.jsonl does not have them

    @property
    def real_time_factor(self) -> float | None:
        return self.elapsed / self.seconds if self.seconds else None

    @property
    def frame_rate(self) -> float | None:
        """Encoder frames per second of audio."""
        return self.frames / self.seconds if self.frames is not None and self.seconds else None

    @property
    def frame_reduction(self) -> float | None:
        """Share of the frames after the stem that the encoder dropped."""
        shift = self.experiment.model.get("frame_shift")
        return (
            None if self.frame_rate is None or not shift else max(0.0, 1 - self.frame_rate * shift)
        )

    def json(self) -> dict:
        stored, experiment = self.result.stored, self.experiment
        keys = (
            "metric",
            "normalizer",
            "alignment",
            "missing",
            "total",
            "intervals",
            "utterances",
            "speakers",
        )
        return {
            "experiment": experiment.tag,
            "folder": str(experiment.folder),
            "decode": self.result.decode,
            "set": self.result.set,
            **{key: stored[key] for key in keys},
            "parameters": experiment.model.get("parameters"),
            "trained_parameters": experiment.model.get("trained"),
            "frames_per_second": self.frame_rate,
            "frame_reduction": self.frame_reduction,
            "real_time_factor": self.real_time_factor,
            "commands": experiment.commands,
            "commits": experiment.commits,
            "seeds": experiment.seeds,
            "training_data": experiment.data,
            "reference_sha256": stored["files"]["reference"]["sha256"],
        }


@dataclass(frozen=True)
class ResultTable:
    """The results of the experiments in `root`; `left_out`: reasons for those that are missing."""

    root: Path
    rows: Sequence[ResultRow]
    baseline: TrainedExperiment | None
    left_out: Sequence[str]

    @property
    def experiments(self) -> list[TrainedExperiment]:
        experiments = {row.experiment.folder: row.experiment for row in self.rows}
        return sorted(
            experiments.values(), key=lambda experiment: (experiment.begun, experiment.tag)
        )

    def sets(self) -> dict[tuple[str, str, str, str], list[ResultRow]]:
        """Rows that can be compared: of the same set, metric, normaliser and reference."""
        rows: dict[tuple[str, str, str, str], list[ResultRow]] = {}
        for row in self.rows:
            stored = row.result.stored
            key = (
                row.result.set,
                stored["metric"],
                stored["normalizer"],
                stored["files"]["reference"]["sha256"],
            )
            rows.setdefault(key, []).append(row)
        return {key: sorted(rows[key], key=_by_rate) for key in sorted(rows)}


def collect(folder: Path, baseline: str = "") -> list[ResultTable]:
    """Collect the results below `folder`, grouped by the folder of their experiments.

    `baseline`: tag of the experiment that others are compared with; default: the one that was begun
    first.
    """
    read = functools.cache(TrainedExperiment.read)
    rows: dict[Path, list[ResultRow]] = {}
    left_out: dict[Path, list[str]] = {}
    for path in find(folder):
        home = next((parent for parent in path.parents if (parent / "config.yaml").is_file()), None)
        root = folder if home is None else home.parent
        try:
            if home is None:
                raise UserError(
                    f"{path}: it is not inside an experiment (no folder above it has a config.yaml)"
                )
            result = StoredScore.read(path)
            result.file("hypothesis")  # raises an error if it has changed since it was scored
            row = ResultRow(read(home), result, *_decoding(result))
            rows.setdefault(root, []).append(row)
        except (UserError, OSError) as error:  # possibly because it is being rewritten now
            left_out.setdefault(root, []).append(str(error))
    if not rows:
        reasons = "".join(f"; {text}" for texts in left_out.values() for text in texts)
        raise UserError(f"{folder}: no result in it{reasons}")
    known = sorted({row.experiment.tag for group in rows.values() for row in group})
    if baseline and baseline not in known:
        raise UserError(
            f"{folder}: no experiment '{baseline}' with results; there are: {', '.join(known)}"
        )
    tables = []
    for root in sorted(rows.keys() | left_out.keys()):
        experiments = [row.experiment for row in rows.get(root, [])]
        first = min(
            experiments,
            key=lambda trained: (trained.tag != baseline, trained.begun, trained.tag),
            default=None,
        )
        tables.append(ResultTable(root, rows.get(root, []), first, left_out.get(root, [])))
    return tables


def difference(
    baseline: TrainedExperiment, other: TrainedExperiment, neutral: Sequence[str] = ()
) -> list[str]:
    """The differences of the config of `other`, such as `optim.lr: 0.001 (0.002)`, with the
    baseline's value in brackets.

    `neutral`: keys that change no result. If a component has another type, only the types are
    reported.
    """
    left, right = baseline.config["phases"], other.config["phases"]
    if len(left) == len(right) == 1:
        left, right = next(iter(left.values())), next(iter(right.values()))
        return [text for key, text in _differences(left, right, "") if key not in neutral]
    return [
        text for key, text in _differences(left, right, "") if key.partition(".")[2] not in neutral
    ]


def published(recipe: str) -> tuple[list[Mapping], list[Mapping]]:
    """Rows of published.yaml for a recipe: rates of its sets, and relative reductions."""
    known = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    return known.get(recipe, []), [row for row in known["relative"] if row["recipe"] == recipe]


def recipe_of(root: Path) -> str:
    """Name of the recipe that a folder of experiments belongs to; empty for miniatures."""
    parts = root.resolve().parts
    return parts[-2] if len(parts) > 1 and parts[-1] == "exp" else ""


def _differences(left: object, right: object, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        if left.get("type") != right.get("type"):
            yield f"{prefix}.type", f"{prefix}: {right.get('type')} ({left.get('type')})"
            return
        for key in [*right, *(key for key in left if key not in right)]:
            inner = f"{prefix}.{key}" if prefix else str(key)
            yield from _differences(left.get(key, "absent"), right.get(key, "absent"), inner)
    elif left != right:
        old, new = (_short(value) for value in (left, right))
        yield prefix, f"{prefix}: {new} ({old})"


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return str(value.get("type", "set"))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _decoding(result: StoredScore) -> tuple[float, float, int | None]:
    """Sum seconds of audio, seconds of search and encoder frames over hyps.jsonl."""
    path = result.folder / "hyps.jsonl"
    seconds, elapsed, frames = 0.0, 0.0, 0
    counted = path.is_file()
    if counted:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    row = json.loads(line)
                except ValueError:
                    raise UserError(f"{path}:{number}: not JSON; decode again") from None
                seconds += row.get("seconds", 0.0)
                elapsed += row.get("elapsed", 0.0)
                counted = counted and "frames" in row
                frames += row.get("frames", 0)
    return seconds, elapsed, frames if counted else None


def _by_rate(row: ResultRow) -> tuple:
    rate = row.result.stored["total"]["rate"]
    return (rate is None, rate, row.experiment.tag, row.result.decode)


def _command(line: str) -> str:
    """The command as it can be typed anywhere: `.../asrtool/bin/train.py` is `python -m
    asrtool.bin.train`.
    """
    program, _, arguments = line.partition(" ")
    path = Path(program)
    if path.suffix == ".py" and path.parent.name == "bin":
        program = f"python -m asrtool.bin.{path.stem}"
    return f"{program} {arguments}".strip()


def _without_repeats(values: Iterator) -> list:
    kept: list = []
    for value in values:
        if value not in kept:
            kept.append(value)
    return kept


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


def markdown(tables: Sequence[ResultTable], neutral: Sequence[str] = (), recipe: str = "") -> str:
    """All of RESULTS.md; `neutral`: config keys that change no result, `recipe`: whose published
    numbers to show.
    """
    parts = ["# Results\n", LEGEND]
    for results in tables:
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
        parts += [
            _origin(experiment, results.baseline, neutral) for experiment in results.experiments
        ]
        if results.left_out:
            parts.append("### Left out\n")
            parts.append("".join(f"* {text}\n" for text in results.left_out))
    return "\n".join(parts)


def _head(data_set: str, metric: str, normalizer: str, sha256: str, row: ResultRow) -> str:
    stored = row.result.stored
    speakers = f", {plural(stored['speakers'], 'speaker')}" if stored["speakers"] else ""
    tokens = plural(stored["total"]["reference"], "token")
    size = f"{plural(stored['utterances'], 'utterance')}, {tokens}{speakers}"
    return (
        f"### {data_set}: {metric.upper()}\n\n{size}; normalizer {normalizer}; reference "
        f"{sha256[:SHORT]}\n"
    )


def _row(row: ResultRow, is_baseline: bool) -> list[str]:
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


def _origin(
    experiment: TrainedExperiment, baseline: TrainedExperiment, neutral: Sequence[str]
) -> str:
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
