"""Make data/score_sclite.json: nasty pairs with counts and alignments of NIST sclite, systems
compared by sc_stats.

    python tests/golden/make_score_sclite.py tests/golden/data/score_sclite.json --pairs 2000

It needs the command `sctk` of Debian's package sctk.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import tempfile
from pathlib import Path

COMMAND = "sctk sclite -s -r ref.trn trn -h hyp.trn trn -i rm -l 100000 -o all dtl stdout"
WORDS = [
    "the",
    "The",
    "THE",
    "of",
    "recognition",
    "it's",
    "twenty-one",
    "mid-",
    "-mid",
    "U.S.",
    "3.5",
    "%",
    "<unk>",
    "é",
    "naïve",
    "好",
    "的",
    "好的",
    "語音",
    "😀",
    "~",
    "#",
    "=",
    "/",
]
SGML = "sctk sclite -s -r ref.trn trn -h hyp.trn trn -i rm -o sgml stdout"
MATCHED_PAIRS = "sctk sc_stats -p -t mapsswe -v -n -"
REPORT = [  # a set for the whole report: four speakers, one without a word
    ("a-1", "the cat sat on the mat", "the hat sat the big mat"),
    ("a-2", "hello world", "hello world"),
    (
        "speaker_with_long_name-1",
        "a b c d e f g h i j k l m n o p",
        "a b c d e f g h i j k l m n o q",
    ),
    ("speaker_with_long_name-2", "", ""),
    ("b-1", "the cat sat", ""),
    ("b-2", "the cat ran", "the hat ran the the"),
    ("silent-1", "", "noise again"),
    ("silent-2", "", ""),
]


def nasty_pairs(count: int, seed: int) -> list[tuple[str, str, str]]:
    """(id, reference, hypothesis): few words give many equally good alignments, edited copies give
    realistic ones.
    """
    rng = random.Random(seed)
    pairs = [
        ("", ""),
        ("a", ""),
        ("", "a b"),
        ("a b c", "c b a"),
        ("a b c", "x a b"),
        ("a b X", "X c d"),
        ("a a", "a"),
    ]
    while len(pairs) < count:
        words = rng.choice([["a", "b"], list("abc"), list("abcdefgh"), WORDS])
        reference = [rng.choice(words) for _ in range(rng.choice([0, 1, 3, 7, 12, 40]))]
        if rng.random() < 0.5:
            hypothesis = [rng.choice(words) for _ in range(rng.choice([0, 1, 3, 7, 12, 40]))]
        else:
            edits = [
                (word, word, word, rng.choice(words), f"{word} {rng.choice(words)}", "")
                for word in reference
            ]
            hypothesis = " ".join(rng.choice(edit) for edit in edits).split()
        pairs.append((" ".join(reference), " ".join(hypothesis)))
    return [(f"s-{number:04d}", *pair) for number, pair in enumerate(pairs)]


def sclite(rows: list[tuple[str, str, str]]) -> str:
    """What sclite prints for (id, reference, hypothesis) rows."""
    with tempfile.TemporaryDirectory() as folder:
        for column, name in ((1, "ref.trn"), (2, "hyp.trn")):
            text = "".join(f"{row[column]} ({row[0]})\n" for row in rows)
            Path(folder, name).write_text(text, encoding="utf-8")
        done = subprocess.run(COMMAND.split(), cwd=folder, check=True, capture_output=True)
    return done.stdout.decode("utf-8")


def matched_pairs(texts: list[str], systems: list[list[str]]) -> dict[str, float]:
    """What sc_stats finds for two systems: segments, mean and deviation of the first's errors less
    the second's, z.
    """
    aligned = b""
    with tempfile.TemporaryDirectory() as folder:
        for number, system in enumerate(systems):
            for rows, name in ((texts, "ref.trn"), (system, "hyp.trn")):
                lines = "".join(f"{text} (s-{row:04d})\n" for row, text in enumerate(rows))
                Path(folder, name).write_text(lines, encoding="utf-8")
            done = subprocess.run(SGML.split(), cwd=folder, check=True, capture_output=True)
            aligned += done.stdout.replace(b'title="hyp.trn"', b'title="%d"' % number)
        done = subprocess.run(
            MATCHED_PAIRS.split(), cwd=folder, input=aligned, check=True, capture_output=True
        )
    number = r"(-?[\d.]+)"
    pattern = rf"\(# segs: (\d+)\).*\(mean: {number}\) \(std dev: {number}\) \(Z Stat: {number}\)"
    found = re.search(pattern, printed := done.stdout.decode("utf-8", "replace"))
    if found is None:
        raise SystemExit(f"sc_stats printed no result:\n{printed}")
    segments, *values = found.groups()
    return {
        "segments": int(segments),
        **dict(zip(("mean", "deviation", "z"), map(float, values), strict=True)),
    }


def compared_systems(count: int, seed: int) -> list[dict]:
    """Two systems of different quality on sets of sentences, and what sc_stats says of them."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        words = "abcdefgh" if number % 2 else "abcdefghijklmnopqrstuvwxyz"
        texts = [
            " ".join(rng.choices(words, k=rng.randint(1, 25)))
            for _ in range(rng.choice([5, 20, 40]))
        ]
        systems = [
            [_spoil(rng, text, words, rate) for text in texts]
            for rate in (0.1, rng.choice([0.1, 0.15, 0.3]))
        ]
        rows = {"references": texts, "hypotheses": systems}
        found.append({**rows, "sc_stats": matched_pairs(texts, systems)})
    return found


def _spoil(rng: random.Random, text: str, words: str, rate: float) -> str:
    """The text with that share of its words replaced, lost or doubled."""
    spoilt = []
    for word in text.split():
        edits = ([rng.choice(words)], [], [word, rng.choice(words)])
        spoilt += rng.choice(edits) if rng.random() < rate else [word]
    return " ".join(spoilt)


def alignments(printed: str) -> dict[str, tuple[list[int], str]]:
    """Utterance id -> counts C, S, D, I, and the tags from left to right."""
    found = {}
    for block in re.split(r"(?=^id: )", printed, flags=re.M)[1:]:
        name, numbers = re.match(r"id: \((.*)\)\nScores: \(#C #S #D #I\) (.*)\n", block).groups()
        reference = re.search(r"^REF:  (.*)$", block, re.M)
        evaluation = re.search(r"^Eval: (.*)$", block, re.M)
        tags = "" if reference is None else _tags(reference[1].split(), evaluation[1], reference[1])
        found[name] = ([int(number) for number in numbers.split()], tags)
    return found


def _tags(words: list[str], evaluation: str, line: str) -> str:
    """Tags in the columns where the words of a line of single-byte characters start; elsewhere none
    can be read.
    """
    if not line.isascii():
        return ""
    starts = [match.start() for match in re.finditer(r"\S+", line)]
    return "".join(
        evaluation[start : start + 1].strip() or "C" for start, _ in zip(starts, words, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument(
        "--systems", type=int, default=24, help="sets on which two systems are compared"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--version", help="of the package; default: what dpkg-query says")
    options = parser.parse_args()
    rows = nasty_pairs(options.pairs, options.seed)
    scored = alignments(sclite(rows))
    asked = ["dpkg-query", "-W", "-f", "${Version}", "sctk"]
    version = options.version or subprocess.run(asked, capture_output=True, text=True).stdout
    data = {
        "source": f"NIST sclite, Debian package sctk {version}: {COMMAND}",
        "made_by": f"tests/golden/{Path(__file__).name} {options.out} --pairs {options.pairs} "
        f"--seed {options.seed}",
        "pairs": [
            {
                "reference": reference,
                "hypothesis": hypothesis,
                "counts": scored[name][0],
                "tags": scored[name][1],
            }
            for name, reference, hypothesis in rows
        ],
        "systems": compared_systems(options.systems, options.seed),
        "report": {"rows": REPORT, "printed": sclite(REPORT).split("\n")},
    }
    body = ""
    for name in ("pairs", "systems"):  # a line each
        lines = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in data.pop(name))
        body += f',\n "{name}": [\n  {lines}\n ]'
    head = json.dumps(data, ensure_ascii=False, indent=1).removesuffix("\n}")
    options.out.write_text(f"{head}{body}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
