"""Stage 2: make the vocabulary of the training text, and number the values of utterance labels."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from asrtool.data import tokenizers
from asrtool.data.kaldi import form, tables
from asrtool.errors import UserError
from asrtool.log import logger, plural, set_up
from asrtool.system import stamp

RARE = 5  # characters that occur fewer times are listed
SHOWN = 20  # characters, tokens or values in a message


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    set_up()
    label_files = find_labels(args.text.parent, args.labels)
    if (args.unit == "hf") != (args.tokenizer is not None):
        raise UserError(
            "--unit hf takes an existing tokenizer: give its name by --tokenizer. Other units "
            "take no --tokenizer"
        )
    inputs = [args.text, *label_files]
    options = {
        "unit": args.unit,
        "size": args.size,
        "model": args.model if args.unit == "bpe" else None,
    }
    if args.unit == "hf":
        options = {"unit": args.unit, "tokenizer": args.tokenizer, "case": args.case}
    if args.extend is not None:
        tokenizers.load(args.extend)
        inputs, options = [*inputs, args.extend], {"extend": True}
    with stamp.building(args.out, "vocabulary", inputs, options, args.force) as target:
        if target is not None:
            make(target, args, label_files)
    describe(args)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="asrtool make_vocab", description=__doc__)
    options.add_argument(
        "--text", type=Path, required=True, help="transcripts of the training set (Kaldi's `text`)"
    )
    what = options.add_mutually_exclusive_group(required=True)
    what.add_argument("--unit", choices=tokenizers.TOKENIZERS.names())
    what.add_argument(
        "--extend",
        type=Path,
        metavar="FOLDER",
        help="existing vocabulary, to be extended by the characters of the text that it lacks",
    )
    options.add_argument(
        "--tokenizer", metavar="NAME", help="for hf: hub name or folder of a language model"
    )
    options.add_argument(
        "--case", choices=("keep", "lower"), default="keep", help="for hf: case of the text"
    )
    options.add_argument(
        "--size",
        type=int,
        default=0,
        help="number of tokens, including special ones; 0 (char only): every character of the text",
    )
    options.add_argument(
        "--model", choices=("unigram", "bpe"), default="unigram", help="kind of bpe pieces"
    )
    options.add_argument("--out", type=Path, required=True, help="vocabulary folder to write")
    options.add_argument(
        "--labels",
        nargs="*",
        metavar="NAME",
        help="labels that get ids, such as accent (default: every label in the folder of the text)",
    )
    options.add_argument(
        "--force", action="store_true", help="make it again, even if nothing changed"
    )
    args = options.parse_args(argv)
    if args.extend is not None and args.size:
        options.error("--extend adds all missing characters: it takes no --size")
    return args


def find_labels(folder: Path, names: Sequence[str] | None) -> list[Path]:
    """The files utt2<label> and spk2<label> of a data directory: of the labels named, or of all."""
    files = [path for path in sorted(folder.iterdir()) if form.is_label(path.name)]
    if names is None:
        return files
    requested = {label(name) if form.is_label(name) else name for name in names}
    missing = requested - {label(path.name) for path in files}
    if missing:
        raise UserError(f"{folder} has no file utt2{sorted(missing)[0]}, which --labels asks for")
    return [path for path in files if label(path.name) in requested]


def label(file_name: str) -> str:
    """The label of a file utt2<label> or spk2<label>."""
    return file_name[len("utt2") :]


def make(target: Path, args: argparse.Namespace, label_files: Sequence[Path]) -> None:
    texts = read(args.text)
    if args.extend is not None:
        tokenizer = tokenizers.extend(args.extend, texts, target)
    elif args.unit == "hf":
        tokenizer = tokenizers.adopt(args.tokenizer, target, args.case)
    else:
        tokenizer = tokenizers.train(texts, args.unit, args.size, target, args.model)
    counts = Counter("".join(map(tokenizers.single_spaced, texts)))
    by_count = sorted(counts.items(), key=lambda item: (item[1], item[0]))
    rare = [f"'{character}' ({count}x)" for character, count in by_count if count < RARE]
    if rare:
        more = ", ..." if len(rare) > SHOWN else ""
        logger.info(
            "%s that occur fewer than %d times: %s",
            plural(len(rare), "character"),
            RARE,
            ", ".join(rare[:SHOWN]) + more,
        )
    lacking = {character for text in texts for character in tokenizer.unknown(text)}
    if lacking:
        share = sum(counts[character] for character in lacking) / counts.total()
        logger.info(
            "%s (%.3f %% of the text) left out of the vocabulary, %s in its place",
            plural(len(lacking), "character"),
            100 * share,
            tokenizers.UNK,
        )
    tokenizers.save_counts(
        target, Counter(token for text in texts for token in tokenizer.encode(text)), tokenizer.size
    )
    labels: dict[str, list[str]] = {}
    for path in label_files:
        values = {value for value in read(path) if value}
        labels[label(path.name)] = sorted(values.union(labels.get(label(path.name), ())))
    if labels:
        content = json.dumps(labels, ensure_ascii=False, indent=1) + "\n"
        (target / tokenizers.LABELS).write_text(content, encoding="utf-8")


def read(path: Path) -> list[str]:
    """The values of a Kaldi file, without the ids."""
    table = tables.read(path)
    for problem in table.problems:
        if problem.kind == "error":
            raise UserError(str(problem))
    return [row.value for row in table.rows]


def describe(args: argparse.Namespace) -> None:
    tokenizer = tokenizers.load(args.out)
    more = " ..." if tokenizer.size > SHOWN else ""
    print(f"{args.out}: {tokenizer.size} tokens: {' '.join(tokenizer.tokens[:SHOWN])}{more}")
    if args.unit == "bpe" and tokenizer.size < args.size:
        print(f"{args.out}: the text has no more pieces; --size was {args.size}")
    for name, values in tokenizers.load_labels(args.out).items():
        count = plural(len(values), "value")
        print(f"{args.out}: label {name}: {count}: {', '.join(values[:SHOWN])}")


if __name__ == "__main__":
    main()
