"""Text <-> token ids. A vocabulary folder contains:

    tokens.txt       one token per line, in the order of the ids: `<blank>`,
                     `<unk>`, ..., `<sos/eos>`
    tokenizer.json   {"type": "char"}, {"type": "bpe", "model": "unigram"} or {"type": "hf", "case":
                     "lower"}
    bpe.model        the sentencepiece model, for bpe
    hf/              the tokenizer of a language model of `transformers`, for hf, with its own
                     ids
    labels.json      {"accent": ["north", "south"], ...}: the values of utterance labels, in the
                     order of the class index; optional
    counts.json      how often each token occurs in the training text, in the order of the ids

`decode(encode(text)) == text` for characters in the vocabulary, except that white space becomes
single spaces and is removed at both ends.
"""

from __future__ import annotations

import io
import json
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from asrtool import torchaudio_adapter
from asrtool.errors import UserError
from asrtool.registry import Registry, UnknownName

BLANK, UNK, EOS, SPACE = "<blank>", "<unk>", "<sos/eos>", "<space>"
TOKENS, CONFIG, MODEL, LABELS, HF = "tokens.txt", "tokenizer.json", "bpe.model", "labels.json", "hf"
COUNTS = "counts.json"
NUM_SPECIAL = 3
# sentencepiece's marker for a space; in a text, the same character counts as a space
WORD_START = "\u2581"
BYTE_SPACE = "\u0120"  # the marker of byte-level BPE
BELOW = 10.0  # nats by which tokens without text score below all others


class Tokenizer:
    """Ids 0 to V - 1: 0 is blank, 1 is unknown, V - 1 is the start and end of a sentence.

    A language model's tokenizer (`hf`) has its own ids.
    """

    blank = 0
    unk = 1

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = list(tokens)

    @property
    def size(self) -> int:
        """V."""
        return len(self.tokens)

    @property
    def eos(self) -> int:
        return len(self.tokens) - 1

    def encode(self, text: str) -> list[int]:
        """(U,) ids without `<sos/eos>`; empty for an empty text."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; `<blank>` and `<sos/eos>` are left out, `<unk>` is shown."""
        raise NotImplementedError

    def unknown(self, text: str) -> list[str]:
        """The characters of `text` that are not in the vocabulary, with repetitions."""
        raise NotImplementedError

    def piece(self, token: int) -> str:
        """The text of one token, with a leading space if it begins a word."""
        if token in (self.blank, self.eos):
            return ""
        text = self.tokens[token]
        return " " if text == SPACE else text.replace(WORD_START, " ")


TOKENIZERS: Registry[Tokenizer] = Registry("tokenizer")


@dataclass(frozen=True, kw_only=True)
class CharConfig:
    """Every character is a token."""


@dataclass(frozen=True, kw_only=True)
class BpeConfig:
    """Sentencepiece's word pieces."""

    model: Literal["unigram", "bpe"] = "unigram"


@TOKENIZERS.register("char", CharConfig)
class CharTokenizer(Tokenizer):
    """Characters; the space is `<space>`."""

    def __init__(self, config: CharConfig, *, tokens: Sequence[str], folder: Path) -> None:
        super().__init__(tokens)
        inner = range(NUM_SPECIAL - 1, self.eos)
        self._texts = {i: " " if self.tokens[i] == SPACE else self.tokens[i] for i in inner}
        self._ids = {text: i for i, text in self._texts.items()}
        self._texts[self.unk] = UNK
        odd = [text for text in self._ids if len(text) != 1]
        if odd:
            raise UserError(
                f"{folder / TOKENS}: '{odd[0]}' is more than one character, but the type is 'char'"
            )

    def encode(self, text: str) -> list[int]:
        ids = self._ids
        return [ids.get(character, self.unk) for character in single_spaced(text)]

    def decode(self, ids: Iterable[int]) -> str:
        return single_spaced("".join(self._texts.get(i, "") for i in ids))

    def unknown(self, text: str) -> list[str]:
        return [character for character in single_spaced(text) if character not in self._ids]


@TOKENIZERS.register("bpe", BpeConfig)
class BpeTokenizer(Tokenizer):
    """Sentencepiece (arXiv 1808.06226): its id 0 is `<unk>`, so id i here is its id i - 1."""

    def __init__(self, config: BpeConfig, *, tokens: Sequence[str], folder: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        super().__init__(tokens)
        path = folder / MODEL
        self.kind = config.model
        try:
            self._model = SentencePieceProcessor(model_proto=path.read_bytes())
        except (OSError, RuntimeError) as error:
            reason = (
                error.strerror
                if isinstance(error, OSError)
                else ("it is not a sentencepiece model")
            )
            raise UserError(f"{path} cannot be read: {reason}; run stage 2 again") from None
        if pieces(self._model) != self.tokens[1 : self.eos]:
            raise UserError(f"{folder}: {TOKENS} and {MODEL} do not match; run stage 2 again")
        self._characters = {" ", *(token for token in self.tokens if len(token) == 1)} - {
            WORD_START
        }

    def encode(self, text: str) -> list[int]:
        return [i + 1 for i in self._model.encode(single_spaced(text))]

    def decode(self, ids: Iterable[int]) -> str:
        return single_spaced(self._model.decode([i - 1 for i in ids if 0 < i < self.eos]))

    def unknown(self, text: str) -> list[str]:
        return [character for character in single_spaced(text) if character not in self._characters]

    def scores(self) -> list[float]:
        """The model's log-probability of each token; tokens without text are below all others."""
        inner = [self._model.get_score(i - 1) for i in range(NUM_SPECIAL - 1, self.eos)]
        lowest = min(inner, default=0.0) - BELOW
        return [lowest, lowest, *inner, lowest]


@dataclass(frozen=True, kw_only=True)
class HfConfig:
    """The tokenizer of a language model of `transformers`."""

    # lower: for corpora in capitals, which these tokenizers split into single letters
    case: Literal["keep", "lower"] = "keep"


@TOKENIZERS.register("hf", HfConfig)
class HfTokenizer(Tokenizer):
    """Ids are those of the language model; its end of text is `eos`, and there is no blank."""

    blank = -1

    def __init__(self, config: HfConfig, *, tokens: Sequence[str], folder: Path) -> None:
        super().__init__(tokens)
        # `transformers` would look for a missing folder on the hub
        if not (folder / HF).is_dir():
            raise UserError(
                f"{folder} is incomplete: {HF}/, the tokenizer of the language model, is missing; "
                "run stage 2 again, or copy the whole folder"
            )
        self._model = load_hf(str(folder / HF))
        self._lower = config.case == "lower"
        if len(self._model) != len(self.tokens):
            raise UserError(f"{folder}: {TOKENS} and {HF}/ do not match; run stage 2 again")
        self.unk = -1 if self._model.unk_token_id is None else self._model.unk_token_id
        self._special = frozenset(self._model.all_special_ids)

    @property
    def eos(self) -> int:
        return self._model.eos_token_id

    def encode(self, text: str) -> list[int]:
        text = single_spaced(text.lower() if self._lower else text)
        return self._model(text, add_special_tokens=False)["input_ids"] if text else []

    def decode(self, ids: Iterable[int]) -> str:
        return single_spaced(self._model.decode([i for i in ids if i not in self._special]))

    def unknown(self, text: str) -> list[str]:
        return [c for c in single_spaced(text) if self.unk >= 0 and self.unk in self.encode(c)]

    def piece(self, token: int) -> str:
        if token in self._special:
            return ""
        text = self.tokens[token]
        return " " + text[1:] if text[:1] in (WORD_START, BYTE_SPACE) else text


def load_hf(name: str, revision: str | None = None) -> object:
    """A tokenizer by hub name or folder; raises `UserError` if there is none."""
    torchaudio_adapter.load()  # before transformers, which imports torchaudio
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=revision or "main", local_files_only=Path(name).is_dir()
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{name}: no folder with a tokenizer and no tokenizer on the hub has this name: "
            f"{reason}"
        ) from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"{name}: the tokenizer has no end-of-text token (eos_token)")
    return tokenizer


def load(folder: Path) -> Tokenizer:
    """The tokenizer of a vocabulary folder; raises `UserError` if the folder is not one."""
    folder = Path(folder)
    for name in (TOKENS, CONFIG):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} is not a vocabulary folder: {name} is missing (stage 2 makes it)"
            )
    tokens = (folder / TOKENS).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config = TOKENIZERS.config_type(settings.pop("type"))(**settings)
    except (UnknownName, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise UserError(f"{folder / CONFIG} does not describe a tokenizer: {error}") from None
    twice = [token for token, count in Counter(tokens).items() if count > 1]
    if twice:
        raise UserError(f"{folder / TOKENS}: the token '{twice[0]}' is listed twice")
    special = tokens[:2] == [BLANK, UNK] and tokens[-1] == EOS and len(tokens) >= NUM_SPECIAL
    if not special and not isinstance(config, HfConfig):
        raise UserError(
            f"{folder / TOKENS}: expected {BLANK} and {UNK} in lines 1 and 2, {EOS} in the last "
            "line"
        )
    return TOKENIZERS.build(config, tokens=tokens, folder=folder)


def load_labels(folder: Path) -> dict[str, list[str]]:
    """The label vocabularies of a vocabulary folder: name -> values, sorted by class index.

    Empty without labels.json.
    """
    path = Path(folder) / LABELS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


# -- making one ------------------------------------------------------------


def save_counts(folder: Path, counts: Mapping[int, int], size: int) -> None:
    """Write how often each of `size` tokens occurs."""
    content = json.dumps([counts.get(token, 0) for token in range(size)]) + "\n"
    (Path(folder) / COUNTS).write_text(content, encoding="utf-8")


def load_counts(folder: Path) -> list[int] | None:
    """Token counts of the training text; None if they were not stored."""
    path = Path(folder) / COUNTS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def train(
    lines: Iterable[str],
    unit: str,
    size: int,
    out_folder: Path,
    model: Literal["unigram", "bpe"] = "unigram",
) -> Tokenizer:
    """Write a vocabulary of at most `size` tokens (0, for char: all); deterministic.

    Raises `UserError` if the text is empty, or the size too small for its characters.
    """
    lines = [text for text in map(single_spaced, lines) if text]
    if not lines:
        raise UserError("there is no text to make a vocabulary from")
    if unit == "char":
        config, inner = CharConfig(), char_inventory(lines, size)
    elif unit == "bpe":
        config, inner = (
            BpeConfig(model=model),
            train_sentencepiece(lines, size, model, out_folder / MODEL),
        )
    else:
        TOKENIZERS.config_type(unit)  # raises for an unknown name
        raise UserError(f"a vocabulary of the unit '{unit}' cannot be made from text")
    (out_folder / TOKENS).write_text("\n".join([BLANK, UNK, *inner, EOS]) + "\n", encoding="utf-8")
    settings = {"type": TOKENIZERS.name_of(config), **asdict(config)}
    (out_folder / CONFIG).write_text(json.dumps(settings) + "\n", encoding="utf-8")
    return load(out_folder)


def extend(folder: Path, lines: Iterable[str], out_folder: Path) -> Tokenizer:
    """Write the vocabulary of `folder`, extended by the characters of the text that it lacks.

    They are added before <sos/eos>: all other tokens keep their ids, and a text without new
    characters keeps its tokens. Raises `UserError` for a language model's tokenizer.
    """
    old = load(folder)
    if isinstance(old, HfTokenizer):
        raise UserError(f"{folder} is the tokenizer of a language model, which cannot be extended")
    text = {character for line in lines for character in old.unknown(line)}
    new = [SPACE if character == " " else character for character in sorted(text)]
    if isinstance(old, BpeTokenizer):
        _extend_sentencepiece(folder / MODEL, new, min(old.scores()), out_folder / MODEL)
    tokens = [*old.tokens[:-1], *new, EOS]
    (out_folder / TOKENS).write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (out_folder / CONFIG).write_bytes((folder / CONFIG).read_bytes())
    return load(out_folder)


def _extend_sentencepiece(model: Path, characters: Sequence[str], score: float, out: Path) -> None:
    """Add pieces to a sentencepiece model.

    They are a repeated field of ModelProto (sentencepiece_model.proto); concatenating two protocol
    buffers concatenates their repeated fields.
    """
    pieces = b""
    for character in characters:
        text = character.encode()
        piece = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", score)
        pieces += b"\x0a" + bytes([len(piece)]) + piece
    out.write_bytes(model.read_bytes() + pieces)


def adopt(
    name: str, out_folder: Path, case: str = "keep", revision: str | None = None
) -> Tokenizer:
    """Write the vocabulary folder of a language model's tokenizer (hub name or folder)."""
    tokenizer = load_hf(name, revision)
    config = HfConfig(case=case)
    tokenizer.save_pretrained(str(out_folder / HF))
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    tokens = [
        "" if token is None else token.replace("\n", "\\n").replace("\r", "\\r") for token in names
    ]
    # tokens.txt needs different, non-empty names: some tokenizers have unused or repeated ones
    seen = Counter()
    for index, token in enumerate(tokens):
        seen[token] += 1
        if not token or seen[token] > 1:
            tokens[index] = f"<{index}>{token}"
    (out_folder / TOKENS).write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (out_folder / CONFIG).write_text(
        json.dumps({"type": "hf", **asdict(config)}) + "\n", encoding="utf-8"
    )
    return load(out_folder)


def char_inventory(lines: Iterable[str], size: int) -> list[str]:
    """The characters by code point, the space as `<space>`; with a size, the most frequent."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(line)
    if size < 0 or 0 < size <= NUM_SPECIAL:
        raise UserError(
            f"a char vocabulary of {size} tokens has no room for characters; 0 takes all "
            f"{len(counts)}"
        )
    kept = sorted(counts, key=lambda character: (-counts[character], character))[
        : size - NUM_SPECIAL if size else None
    ]
    return [SPACE if character == " " else character for character in sorted(kept)]


def train_sentencepiece(lines: Sequence[str], size: int, model: str, path: Path) -> list[str]:
    """Train and write the model; returns its pieces without `<unk>`.

    One thread and a fixed order give the same model every time.
    """
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    needed = len({" "}.union(*lines)) + NUM_SPECIAL
    if size < needed:
        raise UserError(
            f"a bpe vocabulary of {size} tokens is too small: the characters alone need {needed}"
        )
    out = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        model_type=model,
        vocab_size=size - (NUM_SPECIAL - 1),
        hard_vocab_limit=False,  # a small corpus gets as many as possible
        character_coverage=1.0,
        normalization_rule_name="identity",
        num_threads=1,
        max_sentence_length=1 << 24,  # longer lines would be skipped
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        unk_surface=UNK,
        minloglevel=2,
    )
    path.write_bytes(out.getvalue())
    return pieces(SentencePieceProcessor(model_proto=out.getvalue()))[1:]


def pieces(model: object) -> list[str]:
    return [model.id_to_piece(i) for i in range(model.get_piece_size())]


def single_spaced(text: str) -> str:
    return " ".join(text.split())
