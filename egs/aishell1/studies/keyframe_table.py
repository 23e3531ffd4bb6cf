"""The table of studies/keyframe.sh: error rates, frames and times of all variants and seeds.

`--match <seed>` instead prints the number of epochs with which the training of the baseline takes
as long as that of `axe`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from asrtool.data import tokenizers
from asrtool.score.compare import RateDifference, compare
from asrtool.score.labels import read_speakers
from asrtool.score.stored import StoredScore, replace_text

DECODINGS = {  # column -> decoding config of the baseline, and of variants with key frames
    "no beam": ("decode_greedy", "decode_keyframe_aligned"),
    "attention": ("decode_attention", "decode_keyframe"),
    "rescoring": ("decode_rescoring", "decode_keyframe_rescoring"),
    "joint": ("decode_joint", "decode_keyframe_joint"),
}
NOISY = ("snr20", "snr10", "snr0", "room")


@dataclass(frozen=True)
class Run:
    """The training of a variant with one seed."""

    folder: Path
    variant: str
    seed: str

    def decoded(self, column: str, name: str) -> Path | None:
        """Folder of a scored decoding of set `name`; None without one."""
        paths = [self.folder / config / name for config in DECODINGS[column]]
        return next((path for path in paths if (path / "score.json").exists()), None)

    def lines(self, column: str, name: str) -> list[dict]:
        """The records of hyps.jsonl of that decoding; empty without one."""
        path = self.decoded(column, name)
        text = (path / "hyps.jsonl").read_text(encoding="utf-8") if path else ""
        return [json.loads(line) for line in text.split("\n") if line]


def main(argv: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--exp", type=Path, required=True, help="folder of the experiments")
    options.add_argument("--seeds", required=True, help="separated by spaces")
    options.add_argument("--variants", required=True, help="separated by spaces")
    options.add_argument("--set", default="test", help="decoded set (default: test)")
    options.add_argument("--match", metavar="SEED", help="print the epochs of the baseline")
    options.add_argument(
        "--out", type=Path, help="file of the table (default: <exp>/keyframe_study.md)"
    )
    args = options.parse_args(argv)
    if args.match is not None:
        print(matched(args.exp / f"study_axe_{args.match}"))
        return
    runs = {
        name: [Run(args.exp / f"study_{name}_{seed}", name, seed) for seed in args.seeds.split()]
        for name in args.variants.split()
    }
    text = (
        "\n".join([*table(runs, args.set), "", *noise(runs, args.set), "", *dropped(runs)]) + "\n"
    )
    replace_text(args.out or args.exp / "keyframe_study.md", text)
    print(text, end="")


def matched(axe: Path) -> int:
    """Epochs of the baseline that take as long as all phases of `axe`.

    An epoch of the baseline is assumed to take as long as one of the first phase of `axe`.
    """
    times = phase_seconds(axe)
    epochs = [
        record["epoch"]
        for record in records(axe)
        if record["event"] == "valid" and record["phase"] == "base"
    ]
    return max(1, round(sum(times.values()) / max(times["base"] / max(epochs), 1e-3)))


def records(folder: Path) -> list[dict]:
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def phase_seconds(folder: Path) -> dict[str, float]:
    """Phase -> seconds from its first log record (the first step) to its last."""
    times: dict[str, list[float]] = {}
    for record in records(folder):
        times.setdefault(record["phase"], []).append(record["time"])
    return {phase: values[-1] - values[0] for phase, values in times.items()}


def table(runs: dict[str, list[Run]], name: str) -> Iterator[str]:
    """The lines of the main table: error rates, frames and time."""
    yield (
        f"Error rates on `{name}` in %, one number per seed. Difference: error rate of attention "
        "over all seeds minus that"
    )
    yield (
        "of the baseline, in points, with a 95 % bootstrap interval over speakers. Kept: kept "
        "frames per reference token."
    )
    yield (
        "Fewer: share of dropped frames. Allowed: the share with exactly one kept frame per "
        "reference token."
    )
    yield "Real-time factor: attention decoding, everything included."
    yield ""
    columns = [
        *DECODINGS,
        "difference",
        "kept",
        "fewer",
        "allowed",
        "training s",
        "real-time factor",
    ]
    yield "| | " + " | ".join(columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for variant, trained in runs.items():
        cells = [", ".join(rates(trained, column, name)) or "-" for column in DECODINGS]
        change = (
            difference(runs.get("baseline", []), trained, name) if variant != "baseline" else None
        )
        cells.append(interval(change) if change else "-")
        kept, tokens, full = frame_counts(trained, runs.get("baseline", []), name)
        cells += [f"{kept / tokens:.3f}" if tokens else "-"]
        cells += [f"{1 - part / full:.1%}" if full else "-" for part in (kept, tokens)]
        seconds = [sum(phase_seconds(run.folder).values()) for run in trained]
        cells.append(", ".join(f"{value:.0f}" for value in seconds))
        lines = [line for run in trained for line in run.lines("attention", name)]
        factor = sum(line["elapsed"] for line in lines) / max(
            sum(line["seconds"] for line in lines), 1e-9
        )
        cells.append(f"{factor:.4f}" if lines else "-")
        yield f"| {variant} | " + " | ".join(cells) + " |"


def rates(trained: list[Run], column: str, name: str) -> list[str]:
    paths = [run.decoded(column, name) for run in trained]
    scores = [
        json.loads((path / "score.json").read_text(encoding="utf-8")) for path in paths if path
    ]
    return [f"{100 * score['total']['rate']:.2f}" for score in scores]


def difference(baseline: list[Run], trained: list[Run], name: str) -> RateDifference | None:
    """Difference of the error rates of attention, pooled over all seeds.

    The bootstrap draws a speaker together with its utterances of every seed.
    """
    texts: list[dict[str, str]] = [{}, {}, {}]
    speakers: dict[str, str] = {}
    score = None
    for base, run in zip(baseline, trained, strict=False):
        paths = [each.decoded("attention", name) for each in (base, run)]
        if None in paths:
            return None
        first, second = (StoredScore.read(path / "score.json") for path in paths)
        score, file = first.stored, first.file("reference")
        references = first.texts("reference")
        known = read_speakers(file.parent, file, references) or dict.fromkeys(references, "")
        for key in references:
            speakers[f"{base.seed} {key}"] = known[key]
        for pool, added in zip(
            texts, (references, first.texts("hypothesis"), second.texts("hypothesis")), strict=True
        ):
            pool.update({f"{base.seed} {key}": text for key, text in added.items()})
    if score is None:
        return None
    comparison = compare(
        *texts, metric=score["metric"], normalize=score["normalizer"], speakers=speakers
    )
    return comparison.numbers["rate"]


def interval(change: RateDifference) -> str:
    bounds = change.intervals.get("speaker") or change.intervals["utterance"]
    if bounds is None:
        return f"{100 * change.value:+.2f} (no interval: too few)"
    low, high = (100 * bound for bound in bounds)
    of = "" if change.intervals.get("speaker") else " over utterances"
    return f"{100 * change.value:+.2f} ({low:+.2f} to {high:+.2f}{of})"


def frame_counts(trained: list[Run], baseline: list[Run], name: str) -> tuple[int, int, int]:
    """Kept frames, reference tokens, and all frames, summed over the seeds."""
    kept = tokens = full = 0
    for index, run in enumerate(trained):
        path = run.decoded("attention", name)
        if path is None:
            continue
        tokenizer = tokenizers.load(run.folder / "vocab")
        references = StoredScore.read(path / "score.json").texts("reference").values()
        tokens += sum(len(tokenizer.encode(text)) for text in references)
        kept += sum(line["frames"] for line in run.lines("attention", name))
        if index < len(baseline):
            full += sum(line["frames"] for line in baseline[index].lines("attention", name))
    return kept, tokens, full


def noise(runs: dict[str, list[Run]], name: str) -> Iterator[str]:
    """The lines of a table of error rates with noise and reverberation."""
    all_runs = [run for trained in runs.values() for run in trained]
    if not any(run.decoded("attention", f"{name}_{kind}") for run in all_runs for kind in NOISY):
        return
    yield (
        "Error rates of attention in %, mean over seeds, with noise at 20, 10 and 0 dB and with "
        "reverberation:"
    )
    yield ""
    yield "| | clean | " + " | ".join(NOISY) + " |"
    yield "|---" * (len(NOISY) + 2) + "|"
    for variant, trained in runs.items():
        cells = []
        for part in (name, *(f"{name}_{kind}" for kind in NOISY)):
            values = [float(rate) for rate in rates(trained, "attention", part)]
            cells.append(f"{mean(values):.2f}" if values else "-")
        yield f"| {variant} | " + " | ".join(cells) + " |"


def dropped(runs: dict[str, list[Run]]) -> Iterator[str]:
    """The lines of a table of the results of studies/dropped_frames.py, mean over seeds."""
    files = [run.folder / "dropped_frames.json" for run in runs.get("axe", [])]
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
    if not results:
        return
    yield "Accuracy of a linear classifier that predicts the token from a frame before the drop:"
    yield ""
    yield "| frames | accuracy |"
    yield "|---|---|"
    for name in results[0]["probe"]:
        values = [result["probe"].get(name, math.nan) for result in results]
        yield f"| {name} | {mean(values):.1%} |"
    yield ""
    left = mean(result["reconstruction"]["left over"] for result in results)
    yield (
        f"A linear map from the kept frames on both sides does not explain {left:.1%} of the "
        "variance of dropped frames."
    )


if __name__ == "__main__":
    main()
