"""Estimate an n-gram language model: interpolated modified Kneser-Ney, written as ARPA.

The file equals that of KenLM's `lmplz` for the same sentences; a decode config names it in `ngram`
(docs/decoding.md). Empty lines are skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from asrtool.errors import UserError
from asrtool.lm import kneser_ney, text
from asrtool.log import logger, plural, set_up
from asrtool.system import atomic, stamp

SHOWN = 10  # words in a warning


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    set_up()
    kneser_ney.check(args.order, args.prune, args.discount_fallback)
    if args.unit == "token" and args.vocab is None:
        raise UserError("--unit token needs the vocabulary folder: --vocab <folder>")
    files = [*args.text, *map(of_directory, args.transcripts)]
    if not files:
        raise UserError("there is no text: give files by --text or --transcripts")
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: no such file of text; create it, or correct the path")
    inputs = [*files, *([args.vocab / "tokens.txt"] if args.vocab else [])]
    names = ("order", "unit", "prune", "discount_fallback")
    options = {name: getattr(args, name) for name in names}
    options["transcripts"] = len(args.transcripts)
    made, note = stamp.describe("ngram", inputs, options), stamp_of(args.out)
    if not args.force and args.out.is_file() and stamp.load(note) == made:
        logger.info("ngram: %s is up to date", args.out)
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with stamp.locked(args.out):
        note.unlink(missing_ok=True)
        with atomic.replacing(args.out) as target:
            make(target, args)
        atomic.write_text(note, json.dumps(made, indent=1, ensure_ascii=False) + "\n")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="asrtool ngram", description=__doc__)
    add = parser.add_argument
    add("--text", type=Path, nargs="+", default=[], help="files of one sentence per line, also .gz")
    add(
        "--transcripts",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="data directories, or Kaldi `text` files: lines begin with an utterance id",
    )
    add("--order", type=int, default=4, help="longest n-gram (4)")
    add(
        "--unit",
        choices=("word", "char", "token"),
        default="word",
        help="what is counted; token: of the vocabulary",
    )
    add("--vocab", type=Path, help="vocabulary folder of the model: its letters and its tokens")
    add(
        "--prune",
        type=int,
        nargs="+",
        default=[0],
        metavar="COUNT",
        help="for each order, drop n-grams that occur at most COUNT times; the last one is "
        "repeated",
    )
    add(
        "--discount-fallback",
        type=float,
        nargs="*",
        metavar="D",
        help="discounts of counts 1, 2, 3 or more if the text is too small to estimate them "
        "(0.5 1 1.5)",
    )
    add(
        "--estimator",
        choices=("python", "lmplz"),
        default="python",
        help="lmplz: KenLM's program on the PATH",
    )
    add("--out", type=Path, required=True, help="model to write: .arpa or .arpa.gz")
    add("--force", action="store_true", help="make it again even if nothing changed")
    args = parser.parse_args(argv)
    if args.discount_fallback == []:
        args.discount_fallback = list(kneser_ney.FALLBACK)
    return args


def of_directory(path: Path) -> Path:
    return path / "text" if path.is_dir() else path


def stamp_of(out: Path) -> Path:
    """The stamp of an output file, a hidden file in the same folder."""
    return out.with_name(f".{out.name}.stage.json")


def make(target: Path, args: argparse.Namespace) -> None:
    with opened(target, args.out.suffix == ".gz") as stream:
        if args.estimator == "lmplz":
            by_lmplz(stream, args)
            return
        words, orders = kneser_ney.estimate(
            sentences(args), args.order, prune=args.prune, fallback=args.discount_fallback
        )
        kneser_ney.write(stream, words, orders)
    counts = ", ".join(f"{len(grams.prob)} {n}-grams" for n, grams in enumerate(orders, 1))
    logger.info("ngram: %s: %s", args.out, counts)


@contextlib.contextmanager
def opened(target: Path, packed: bool) -> Iterator:
    """A text stream to write `target`. The same text yields the same bytes: gzip stores no name or
    time.
    """
    if not packed:
        with open(target, "w", encoding="utf-8", newline="\n") as stream:
            yield stream
        return
    import io

    with (
        open(target, "wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packing,
        io.TextIOWrapper(packing, encoding="utf-8", newline="\n") as stream,
    ):
        yield stream


def sentences(args: argparse.Namespace) -> Iterator[list[str]]:
    """Words, characters or tokens of each sentence. Warns of words that the vocabulary cannot
    spell.

    As tokens, sentences with such a word are left out: an <unk> would break the n-grams around it.
    """
    tokenizer = speller = None
    case = str
    if args.vocab is not None:
        from asrtool.data import tokenizers

        tokenizer = tokenizers.load(args.vocab)
        pieces = "".join(tokenizer.piece(i) for i in range(2, tokenizer.size))
        speller = text.Speller(set(pieces) - {" "})
        case = text.case_of(set(pieces))
    left_out = 0
    for with_ids, files in ((False, args.text), (True, map(of_directory, args.transcripts))):
        for line in text.lines(list(files), with_ids):
            words = case(line).split()
            whole = speller is None or speller.spells(words)
            if args.unit == "word":
                yield words
            elif args.unit == "char":
                yield text.characters(" ".join(words))
            elif whole:
                yield [tokenizer.tokens[i] for i in tokenizer.encode(" ".join(words))]
            else:
                left_out += 1
    if speller is not None and speller.lacking:
        report(speller, args, left_out)


def report(speller: text.Speller, args: argparse.Namespace, left_out: int) -> None:
    total = speller.lacking.total()
    first = ", ".join(f"{word} ({count}x)" for word, count in speller.lacking.most_common(SHOWN))
    logger.warning(
        "ngram: %s cannot spell %d of %d words (%.2f %%), %d different: %s%s%s",
        args.vocab,
        total,
        speller.words,
        100 * total / speller.words,
        len(speller.lacking),
        first,
        ", ..." if len(speller.lacking) > SHOWN else "",
        f"; {plural(left_out, 'sentence')} with them left out" if left_out else "",
    )


def by_lmplz(stream: object, args: argparse.Namespace) -> None:
    """Estimate the model by KenLM's program."""
    program = shutil.which("lmplz")
    if program is None:
        raise UserError("there is no lmplz on the PATH; leave --estimator out, or install it")
    with tempfile.TemporaryDirectory() as folder:
        plain, arpa = Path(folder) / "text", Path(folder) / "arpa"
        with open(plain, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(" ".join(words) + "\n" for words in sentences(args))
        command = [program, "-o", str(args.order), "--text", str(plain), "--arpa", str(arpa)]
        command += ["-T", folder, "--prune", *map(str, args.prune)]
        if args.discount_fallback is not None:
            command += ["--discount_fallback", *map(str, args.discount_fallback)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"lmplz failed: {reason}")
        with open(arpa, encoding="utf-8") as file:
            shutil.copyfileobj(file, stream)


if __name__ == "__main__":
    main()
