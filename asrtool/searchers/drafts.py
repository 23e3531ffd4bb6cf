"""Drafts of a text for a language model to verify: the best path of a CTC head, in its tokens.

The head is one of the model, over the language model's tokens, or the one that the encoder was
trained with (`asrtool export_ctc_head`), over characters or word pieces of its own. Both read what
the encoder has computed already. The text of the path is divided into tokens again: CTC may spell a
word otherwise than the tokenizer does, and then the language model would not write it either.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from types import SimpleNamespace
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from asrtool.errors import UserError
from asrtool.searchers.base import SearchModel, positions_of, require_head
from asrtool.searchers.ctc.greedy import CtcGreedy, CtcGreedyConfig
from asrtool.types import EncoderOutput, Padded

ENCODER = "encoder"  # tap: the encoder's frames, before the adapter
CARD = "ctc_head"  # key of a file's metadata: texts of the tokens and blank, as JSON
OWN_HEAD = "encoder_ctc"  # name of the head that the encoder was trained with


class Draft(NamedTuple):
    """The draft of one utterance."""

    tokens: tuple[int, ...]  # of the language model
    score: float  # log-probability of the best path
    entropy: float  # the highest of its frames, in nats; inf: not computed


@dataclass(frozen=True, kw_only=True)
class EncoderCtcConfig:
    """The CTC head that the encoder was trained with."""

    path: str  # the file that `asrtool export_ctc_head` wrote


class Drafter:
    """Drafts by the head `name` of `source`; `spell` turns its tokens into the language model's.

    entropies: compute them; over a large vocabulary they cost as much as the head.
    """

    def __init__(
        self,
        source: SearchModel,
        name: str,
        spell: Callable[[Sequence[int]], Iterable[int]],
        entropies: bool = True,
    ) -> None:
        require_head(source, name, "llm_draft", ("ctc", "token"))
        self.source, self.name, self.spell, self.entropies = source, name, spell, entropies
        self.greedy = CtcGreedy(CtcGreedyConfig(input=name), model=source)

    def draft(self, encoded: EncoderOutput) -> list[Draft]:
        """The draft of every utterance. Raises `ValueError` if the head gives NaN."""
        log_probs = self.source.log_probs(encoded, self.name)
        positions = positions_of(encoded, log_probs)
        state = self.greedy.start(len(log_probs.lengths))
        paths = self.greedy.finish(self.greedy.advance(state, log_probs, positions))
        entropies = [inf] * len(paths)
        if self.entropies:
            entropies = highest_entropy(log_probs).tolist()
        return [
            Draft(tuple(self.spell(path.tokens)), path.score, entropy)
            for (path,), entropy in zip(paths, entropies, strict=True)
        ]


def highest_entropy(log_probs: Padded) -> Tensor:
    """(B, S, V) -> (B,): the highest entropy of a frame in nats; -inf without frames."""
    entropies = torch.special.entr(log_probs.data.exp()).sum(-1)
    entropies = entropies.masked_fill(~log_probs.mask, -torch.inf)
    return F.pad(entropies, (0, 1), value=-torch.inf).amax(1)


class EncoderCtc:
    """A `SearchModel` of one CTC head over the encoder's frames (B, S, D).

    texts: of its tokens, with a space where a word begins, "" for blank and the like.
    """

    eos = None
    heads: Mapping[str, object] = {OWN_HEAD: SimpleNamespace(alignment="ctc")}

    def __init__(self, weight: Tensor, bias: Tensor, texts: Sequence[str], blank: int) -> None:
        self.weight, self.bias, self.texts, self.blank = weight, bias, texts, blank

    def log_probs(self, encoded: EncoderOutput, head: str = OWN_HEAD) -> Padded:
        frames = encoded.taps.get(ENCODER)
        if frames is None:
            raise ValueError("encoder_ctc needs model.type: speech_llm")
        if frames.data.shape[2] != self.weight.shape[1]:
            raise ValueError(
                f"encoder_ctc: the head reads frames of {self.weight.shape[1]} numbers, but those "
                f"of this encoder have {frames.data.shape[2]}; export the head of the training "
                "that the encoder is from"
            )
        weight, bias = (part.to(frames.data.device) for part in (self.weight, self.bias))
        logits = F.linear(frames.data.float(), weight, bias)
        return Padded(logits.log_softmax(-1), frames.lengths)

    def text(self, tokens: Iterable[int]) -> str:
        return "".join(self.texts[token] for token in tokens)


def load_encoder_ctc(path: str) -> EncoderCtc:
    """The head of a file that `asrtool export_ctc_head` wrote; raises `UserError` if it is none."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[CARD])
            parts = [file.get_tensor(name).float() for name in ("weight", "bias")]
        return EncoderCtc(*parts, about["texts"], about["blank"])
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(
            f"encoder_ctc.path {path} is no CTC head ({error}); write one by asrtool "
            "export_ctc_head"
        ) from None


def drafter(
    model: SearchModel, head: str | None, own: EncoderCtcConfig | None, entropies: bool = True
) -> Drafter:
    """By the head of the file `own`, else by the head `head` of the model (by default `ctc`)."""
    if own is None:
        # without a tokenizer there is one way to spell a text
        spell = getattr(model, "respelled", lambda ids: (i for i in ids if i != model.eos))
        return Drafter(model, head or "ctc", spell, entropies)
    if not hasattr(model, "tokens_of"):
        raise UserError("encoder_ctc needs model.type: speech_llm; leave it out")
    loaded = load_encoder_ctc(own.path)
    return Drafter(loaded, OWN_HEAD, lambda ids: model.tokens_of(loaded.text(ids)), entropies)
