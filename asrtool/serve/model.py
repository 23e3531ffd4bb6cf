"""The model that is served: how it recognises files, and how it streams, if it can."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

import numpy as np
import torch

from asrtool.errors import UserError
from asrtool.experiment import DecodeConfig
from asrtool.log import logger
from asrtool.recognizer import Recognizer
from asrtool.searchers import SEARCHERS
from asrtool.streaming import Stream, with_chunks

LEFT_CHUNKS = 8  # that a frame sees where nobody limits them: a live audio may last for hours


@dataclass(frozen=True, kw_only=True)
class Served:
    """One model under a name. `live` shares its weights with `files`."""

    name: str
    created: int  # seconds since 1970 at which the weights were written
    files: Recognizer
    live: Recognizer | None  # None: the model does not stream
    obstacle: str = ""  # why it does not

    @property
    def rate(self) -> int:
        """Hz of the samples that the model expects."""
        return self.files.rate

    def describe(self) -> dict:
        """As `/v1/models` lists it: OpenAI's fields, and what a client of streams needs."""
        about = {"id": self.name, "object": "model", "created": self.created}
        about |= {"owned_by": "asrtool", "rate": self.rate, "stream": self.live is not None}
        about |= {"words": self.files.timed is not None}
        if self.live is not None:
            about["chunk_ms"] = self.live.settings.chunk_ms
        labels = [one.label for one in self.files.classifiers]
        return about | ({"labels": labels} if labels else {})

    def warm_up(self) -> None:
        """A second of silence: what is compiled or allocated once delays no client."""
        silence = np.zeros(self.rate, np.float32)
        # what is wrong with a model, audio will tell
        with contextlib.suppress(RuntimeError, ValueError), torch.inference_mode():
            prepared = self.files.prepare(silence)
            self.files.transcribe([prepared._replace(speech=[(0.0, 1.0)])])
        if self.live is not None:
            stream = Stream(self.live)
            stream.accept(silence)
            stream.accept(silence[:0], final=True)


def served(
    name: str,
    recognizer: Recognizer,
    streaming: DecodeConfig | UserError,
    chunk_ms: float | None = None,
    left_chunks: int | None = None,
) -> Served:
    """recognizer: how files are recognised; streaming: how a live audio is searched, or why it
    cannot be.
    """
    created = int(recognizer.weights.stat().st_mtime)
    try:
        live = _live(recognizer, streaming, chunk_ms, left_chunks)
    except UserError as error:
        if chunk_ms is not None:
            raise
        obstacle = str(error)
        logger.info("no streaming, files only: %s", obstacle)
        return Served(name=name, created=created, files=recognizer, live=None, obstacle=obstacle)
    return Served(name=name, created=created, files=recognizer, live=live)


def _live(
    recognizer: Recognizer,
    streaming: DecodeConfig | UserError,
    chunk_ms: float | None,
    left_chunks: int | None,
) -> Recognizer:
    if isinstance(streaming, UserError):
        raise streaming
    if recognizer.config.data.input != "fbank":
        raise UserError("this model reads waveforms as a whole")
    live = recognizer
    if streaming.searcher != recognizer.settings.searcher:
        search = SEARCHERS.build(
            streaming.searcher, model=recognizer.model, tokens=recognizer.tokenizer.tokens
        )
        settings = replace(recognizer.settings, searcher=streaming.searcher)
        live = replace(recognizer, settings=settings, searcher=search)
    trained = getattr(recognizer.model.encoder, "left_chunks", None)
    if left_chunks is None and streaming.left_chunks is None and trained is None:
        left_chunks = LEFT_CHUNKS
        logger.info(
            "a frame sees %d chunks before its own; --left-chunks changes that", left_chunks
        )
    return with_chunks(live, chunk_ms or streaming.chunk_ms, left_chunks)
