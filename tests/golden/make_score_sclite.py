"""Make data/score_sclite.json: nasty pairs with the counts and alignments of NIST sclite (Debian package sctk).

    python tests/golden/make_score_sclite.py tests/golden/data/score_sclite.json --pairs 200
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
WORDS = ["the", "The", "THE", "of", "recognition", "it's", "twenty-one", "mid-", "-mid", "U.S.", "3.5", "%",
         "<unk>", "é", "naïve", "好", "的", "好的", "語音", "😀", "~", "#", "=", "/"]
REPORT = [                                       # a set for the whole report: four speakers, one without a word
    ("a-1", "the cat sat on the mat", "the hat sat the big mat"),
    ("a-2", "hello world", "hello world"),
    ("speaker_with_long_name-1", "a b c d e f g h i j k l m n o p", "a b c d e f g h i j k l m n o q"),
    ("speaker_with_long_name-2", "", ""),
    ("b-1", "the cat sat", ""),
    ("b-2", "the cat ran", "the hat ran the the"),
    ("silent-1", "", "noise again"),
    ("silent-2", "", ""),
]


def nasty_pairs(count: int, seed: int) -> list[tuple[str, str, str]]:
    """(id, reference, hypothesis): few words give many equally good alignments, edited copies give realistic ones."""
    rng = random.Random(seed)
    pairs = [("", ""), ("a", ""), ("", "a b"), ("a b c", "c b a"), ("a b c", "x a b"), ("a b X", "X c d"), ("a a", "a")]
    while len(pairs) < count:
        words = rng.choice([["a", "b"], list("abc"), list("abcdefgh"), WORDS])
        reference = [rng.choice(words) for _ in range(rng.choice([0, 1, 3, 7, 12, 40]))]
        if rng.random() < 0.5:
            hypothesis = [rng.choice(words) for _ in range(rng.choice([0, 1, 3, 7, 12, 40]))]
        else:
            edits = [(word, word, word, rng.choice(words), f"{word} {rng.choice(words)}", "") for word in reference]
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
    """Tags in the columns where the words of a line of single-byte characters start; elsewhere none can be read."""
    if not line.isascii():
        return ""
    starts = [match.start() for match in re.finditer(r"\S+", line)]
    return "".join(evaluation[start:start + 1].strip() or "C" for start, _ in zip(starts, words, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rows = nasty_pairs(options.pairs, options.seed)
    scored = alignments(sclite(rows))
    version = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", "sctk"], capture_output=True, text=True).stdout
    data = {
        "source": f"NIST sclite, Debian package sctk {version}: {COMMAND}",
        "made_by": f"tests/golden/{Path(__file__).name} {options.out} --pairs {options.pairs} --seed {options.seed}",
        "pairs": [
            {"reference": reference, "hypothesis": hypothesis, "counts": scored[name][0], "tags": scored[name][1]}
            for name, reference, hypothesis in rows
        ],
        "report": {"rows": REPORT, "printed": sclite(REPORT).split("\n")},
    }
    lines = [json.dumps(pair, ensure_ascii=False) for pair in data.pop("pairs")]
    head = json.dumps(data, ensure_ascii=False, indent=1).removesuffix("\n}")
    body = ",\n  ".join(lines)
    options.out.write_text(f'{head},\n "pairs": [\n  {body}\n ]\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
