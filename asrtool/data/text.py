"""Text for language models: sentences as utterances without audio.

Sentences come from data directories (`text`) and from plain files with one sentence per line. Plain
files are mapped into memory, so that many million lines need two numbers each; batches are planned
by tokens, including sos/eos.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch

from asrtool.data.config import DataConfig
from asrtool.data.examples import ONE_VIEW, stack_tokens
from asrtool.data.kaldi import tables
from asrtool.data.kaldi.utterances import Utterances
from asrtool.data.loader import StepLoader, warn_of_unknown
from asrtool.data.tokenizers import Tokenizer, single_spaced
from asrtool.errors import UserError
from asrtool.log import first_few, logger, plural
from asrtool.types import Batch, Utterance

LOOKED_AT = 100_000  # number of sentences to check for characters outside the vocabulary


class Sentences(Sequence[Utterance]):
    """The sentences of data directories and plain files, without empty lines.

    An id is that of the utterance, or `<file>:<line number>`.
    """

    def __init__(self, sources: Iterable[Path]) -> None:
        self._texts: list[tuple[str, str]] = []  # of data directories
        self._files: list[tuple[str, mmap.mmap]] = []
        # for each file (lines, 3): number, start and end of each line in bytes
        self._lines: list[np.ndarray] = []
        for source in sources:
            if source.is_dir():
                self._texts += _of_directory(source)
            else:
                content, lines = _of_file(source)
                self._files.append((source.name, content))
                self._lines.append(lines)
        self._ends = np.cumsum([len(self._texts), *map(len, self._lines)])
        if not len(self):
            raise UserError("there are no sentences to train on")

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, index: int) -> Utterance: ...

    @overload
    def __getitem__(self, index: slice) -> list[Utterance]: ...

    def __getitem__(self, index: int | slice) -> Utterance | list[Utterance]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        # source 0 is all data directories together, the others are files
        source = int(np.searchsorted(self._ends, index, side="right"))
        if source == 0:
            key, text = self._texts[index]
        else:
            name, content = self._files[source - 1]
            number, start, end = self._lines[source - 1][index - self._ends[source - 1]].tolist()
            key, text = f"{name}:{number}", content[start:end].decode("utf-8", "replace")
        return Utterance(
            id=key, audio="", duration=float(len(text)), text=single_spaced(text), speaker=key
        )


def _of_directory(folder: Path) -> Iterator[tuple[str, str]]:
    path = folder / "text"
    if not path.exists():
        raise UserError(f"{folder} has no text to train on")
    return ((key, text) for key, text in sorted(tables.read(path).values().items()) if text.strip())


def _of_file(path: Path) -> tuple[mmap.mmap, np.ndarray]:
    if path.suffix == ".gz":
        raise UserError(
            f"{path}: decompress it first (`gunzip -k {path}`), because sentences are read in "
            "random order"
        )
    with open(path, "rb") as stream:
        if not path.stat().st_size:
            raise UserError(f"{path} is empty")
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    starts, number = [], 0
    content.seek(0)
    while line := content.readline():
        number += 1
        if line.strip():
            starts.append((number, content.tell() - len(line), content.tell()))
    return content, np.array(starts, dtype=np.int64).reshape(-1, 3)


class TextReader:
    """Sentences to batches; `inputs` are the tokens, which count as frames in the progress line."""

    views = ONE_VIEW

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def batch(
        self, utterances: Sequence[Utterance], epoch: int = 0, contents: None = None
    ) -> tuple[Batch | None, dict[str, str]]:
        """As `asrtool.data.examples.Reader`, but without file contents."""
        texts = tuple(utterance.text for utterance in utterances)
        rows = [torch.tensor(self.tokenizer.encode(text), dtype=torch.int64) for text in texts]
        tokens = stack_tokens(rows)
        ids = tuple(utterance.id for utterance in utterances)
        return Batch(ids=ids, inputs=tokens, targets=tokens, texts=texts), {}


class TextDataset:
    """A `Dataset` (asrtool/data/loader.py) of sentences.

    longest: a limit in tokens; longer sentences are left out with a warning.
    """

    def __init__(
        self,
        sentences: Sentences,
        tokenizer: Tokenizer,
        config: DataConfig,
        seed: int = 0,
        longest: float | None = None,
    ) -> None:
        self.config, self.seed, self.limits = config, seed, config.batch
        self.reader = TextReader(tokenizer)
        # texts are encoded here for their lengths, and again in their batches: the ids of many
        # million sentences would not fit into memory
        sizes = (len(tokenizer.encode(sentence.text)) + 1 for sentence in sentences)
        lengths = np.fromiter(sizes, np.float32, len(sentences))
        warn_of_unknown(Utterances.of(sentences[:LOOKED_AT]), tokenizer)
        kept = np.flatnonzero(lengths <= (longest or np.inf))
        if len(kept) < len(sentences):
            gone = [sentences[int(i)].id for i in np.flatnonzero(lengths > longest)[:100]]
            count = len(sentences) - len(kept)
            logger.warning(
                "%d sentences of more than %g tokens are left out: %s",
                count,
                longest,
                first_few(gone),
            )
        if not len(kept):
            raise UserError(f"no sentence has at most {longest:g} tokens (data.batch.tokens)")
        self.utterances = _Chosen(sentences, kept)
        self.lengths = lengths[kept]

    def __len__(self) -> int:
        return len(self.utterances)


class _Chosen(Sequence[Utterance]):
    """The sentences with the given indices."""

    def __init__(self, sentences: Sentences, indices: np.ndarray) -> None:
        self._sentences, self._indices = sentences, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Utterance:
        return self._sentences[int(self._indices[index])]


class TextLoader(StepLoader):
    """The steps of training a language model."""

    def densest(self, size: int = 32) -> Iterator[Batch]:
        """Nothing: a language model has a finite loss for every text."""
        return iter(())

    def describe(self) -> str:
        plan = self._epoch(0)
        tokens = int(self.plan.lengths.sum())
        return (
            f"{plural(len(self.dataset), 'sentence')}, {tokens} tokens with sos/eos; "
            f"{plural(len(plan), 'step')} per epoch"
        )
