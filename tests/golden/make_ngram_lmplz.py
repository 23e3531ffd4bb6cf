"""Write data/ngram_lmplz.json: a text, and the ARPA files that KenLM's lmplz makes of it.

Build lmplz from github.com/kpu/kenlm (commit 4cb443e was used) and have it on the PATH:

    python tests/golden/make_ngram_lmplz.py
"""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

OPTIONS = {
    "unigrams": ["-o", "1"],
    "trigrams": ["-o", "3"],
    "pruned": ["-o", "4", "--prune", "0", "0", "1"],
    "pruned words": ["-o", "3", "--prune", "1", "1", "2"],
    "fallback": ["-o", "4", "--discount_fallback", "0.5", "1", "1.5"],
}


def text(draw: random.Random, lines: int) -> list[str]:
    """Sentences of a few phrases that come again and words as rare as in a language."""
    words = [f"w{n}" for n in range(60)]
    weights = [1 / (n + 1) for n in range(len(words))]
    phrases = [draw.choices(words, weights, k=draw.randint(2, 5)) for _ in range(30)]
    found = []
    for _ in range(lines):
        parts = [
            draw.choice(phrases) if draw.random() < 0.4 else draw.choices(words, weights)
            for _ in range(draw.randint(1, 6))
        ]
        found.append(" ".join(word for part in parts for word in part))
    return [*found, "é w1", "", "w1"]


def main() -> None:
    lines = text(random.Random(3), 300)
    found = {"text": lines, "arpa": {}}
    for name, options in OPTIONS.items():
        given = lines[:12] if name == "fallback" else lines
        done = subprocess.run(
            ["lmplz", "-S", "100M", *options],
            input="".join(f"{line}\n" for line in given),
            capture_output=True,
            text=True,
            check=True,
        )
        found["arpa"][name] = {"options": options, "lines": len(given), "file": done.stdout}
    path = Path(__file__).parent / "data" / "ngram_lmplz.json"
    path.write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
