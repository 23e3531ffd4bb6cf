"""Describe data directories: hours, speakers, durations, characters, out-of-vocabulary rates, and
overlaps between sets.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from asrtool.data import describe, tokenizers
from asrtool.data.describe import Statistics
from asrtool.errors import UserError
from asrtool.log import plural
from asrtool.system import atomic

BAR = 40  # characters of the longest bar


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if args.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise UserError("--plot needs matplotlib, which is not installed: pip install -e '.[plot]'")
    sets = [describe.describe(folder, args.base, args.content) for folder in args.folders]
    report = make_report(sets, args.vocab)
    if args.json is not None:
        atomic.write_text(args.json, json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    if args.plot is not None:
        describe.plot(sets, args.plot)
    print("\n".join(render(report)))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="asrtool describe", description=__doc__)
    options.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="data/set",
        help="data directories; first: training",
    )
    options.add_argument(
        "--vocab", type=Path, help="vocabulary folder: count the characters that are not in it"
    )
    options.add_argument(
        "--content", action="store_true", help="compare audio by its content instead of its path"
    )
    options.add_argument(
        "--base",
        type=Path,
        help="folder that relative audio paths start at (default: the current folder)",
    )
    options.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the whole description as JSON"
    )
    options.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw lengths, rates, speakers and characters"
    )
    return options.parse_args(argv)


def make_report(sets: Sequence[Statistics], vocab: Path | None) -> dict:
    """The description as JSON values. Out-of-vocabulary characters are counted against `vocab`;
    without it against the first set.
    """
    reference = tokenizers.load(vocab) if vocab is not None else sets[0]
    missing = {
        data.name: describe.unknown(data, reference)
        for data in (sets if vocab is not None else sets[1:])
    }
    return {
        "sets": [describe.summary(data) for data in sets],
        "unknown": {"reference": str(vocab or sets[0].name), "sets": missing},
        "overlaps": list(describe.overlaps(sets)),
    }


def render(report: dict) -> Iterator[str]:
    for statistics in report["sets"]:
        yield from render_set(statistics)
    reference = report["unknown"]["reference"]
    for name, kinds in report["unknown"]["sets"].items():
        yield f"{name} against {reference}"
        for kind, unknown in kinds.items():
            examples = ", ".join(
                f"{text} ({count}x)" for text, count in unknown["examples"].items()
            )
            share = f"{plural(unknown['occurrences'], 'occurrence')}, {unknown['share']:.3%}"
            yield f"  {kind + ' that it lacks':24}{unknown['kinds']} ({share})" + (
                f": {examples}" if examples else ""
            )
        yield ""
    for pair in report["overlaps"]:
        yield f"{pair['second']} shares with {pair['first']}"
        common = pair["speakers"]
        yield f"  {'speakers':24}{common['common']}" + listed(common["examples"], common["common"])
        for kind in ("texts", "audio"):
            count = plural(pair[kind]["utterances"], "utterance")
            yield f"  {kind:24}{count}, {pair[kind]['share']:.2%}"
        yield ""


def render_set(one: dict) -> Iterator[str]:
    def line(label: str, value: object) -> str:
        return f"  {label:24}{value}"

    yield one["name"]
    yield line("utterances", one["utterances"])
    yield line("hours", f"{one['hours']:.2f}")
    yield line("speakers", one["speakers"])
    for key, unit in (
        ("seconds", "s"),
        ("minutes_per_speaker", "min"),
        ("characters_per_second", ""),
    ):
        if one[key] is not None:
            spread = ", ".join(f"{name} {value:g}" for name, value in one[key].items())
            yield line(key.replace("_", " "), f"{spread} {unit}".rstrip())
    different = (
        f"{one['different_characters']} different, {one['rare_characters']} of them fewer "
        "than 5 times"
    )
    yield line("characters", f"{one['characters']}, {different}")
    yield line("words", f"{one['words']}, {one['different_words']} different")
    for key in ("empty_transcripts", "repeated_transcripts", "repeated_audio"):
        if one[key]:
            yield line(key.replace("_", " "), one[key])
    for key, about in (("unmeasured", "without a length"), ("unread", "with unreadable audio")):
        if one[key]:
            yield line(about, f"{len(one[key])}{listed(one[key], len(one[key]))}")
    for name, counts in one["labels"].items():
        values = ", ".join(f"{value} {count}" for value, count in counts.items() if count)
        yield line(f"label {name}", values)
    most = max(count for _, _, count in one["histogram"])
    for first, last, count in one["histogram"]:
        if count:
            span = f"{first:g} to {last:g} s" if last is not None else f"{first:g} s and more"
            yield f"  {span:>22}  {'#' * max(1, round(BAR * count / most))} {count}"
    yield ""


def listed(examples: Sequence[str], total: int) -> str:
    """The first few examples in brackets."""
    shown = list(examples)[: describe.EXAMPLES]
    return f" ({', '.join(shown)}{', ...' if total > len(shown) else ''})" if shown else ""


if __name__ == "__main__":
    main()
