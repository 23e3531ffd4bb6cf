"""Write data/ngram_kenlm.json: a random back-off model as ARPA text, sentences, and their log10
scores by KenLM.

pip install kenlm==0.3.0          # into an environment of its own
python tests/golden/make_ngram_kenlm.py
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

WORDS = ["<unk>", "<s>", "</s>", "a", "b", "ab", "ba", "ca", "é"]


def grams(draw: random.Random, order: int) -> list[list[tuple[str, ...]]]:
    """n-grams of each order, every history and every suffix among them, as KenLM wants them."""
    levels = [[(word,) for word in WORDS]]
    for _ in range(1, order):
        histories = [gram for gram in levels[-1] if gram[-1] not in ("</s>", "<unk>")]
        chosen = draw.sample(histories, min(len(histories), 12))
        levels.append([(*gram, word) for gram in chosen for word in draw.sample(WORDS[2:], 3)])
    for n in range(order - 1, 1, -1):
        inner = {gram[1:] for gram in levels[n]} | {gram[:-1] for gram in levels[n]}
        levels[n - 1] = sorted({*levels[n - 1], *inner})
    return levels


def arpa(draw: random.Random, order: int) -> str:
    levels = grams(draw, order)
    lines = ["\\data\\", *(f"ngram {n}={len(level)}" for n, level in enumerate(levels, 1))]
    for n, level in enumerate(levels, 1):
        lines += ["", f"\\{n}-grams:"]
        for gram in level:
            backoff = f"\t{-draw.random():.5f}" if n < order and gram[-1] != "</s>" else ""
            lines.append(f"{-0.1 - 3 * draw.random():.5f}\t{' '.join(gram)}{backoff}")
    return "\n".join([*lines, "", "\\end\\", ""])


def main() -> None:
    import kenlm

    draw = random.Random(5)
    found = []
    for order in (2, 3, 4):
        text = arpa(draw, order)
        with tempfile.NamedTemporaryFile("w", suffix=".arpa", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            model = kenlm.Model(stream.name)
        sentences = [draw.choices([*WORDS[3:], "zz"], k=draw.randint(0, 7)) for _ in range(40)]
        scores = [
            [score for score, _, _ in model.full_scores(" ".join(words))] for words in sentences
        ]
        found.append({"arpa": text, "sentences": sentences, "log10": scores})
    path = Path(__file__).parent / "data" / "ngram_kenlm.json"
    path.write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
