"""Warm start: training from the weights of another model (`--init`), whose vocabulary is kept,
extended or replaced.

`init.vocab` of the first phase:

keep       both vocabularies are equal: all rows are copied
extend     the new vocabulary begins with the old one (`asrtool make_vocab --extend`): all rows are
           copied, and a new token gets the mean of the rows of the ordinary tokens (Hewitt 2021,
           "Initializing New Word Embeddings for Pretrained Language Models"), in embeddings and in
           output layers. Its logit is then an average one; with a random row it would exceed those
           of all tokens that the model has learnt to suppress
replace    the vocabularies are unrelated: tensors with a row per token keep their initialisation

These tensors, and the axis of the tokens, are found by building the model on the meta device for
two vocabulary sizes, which works for the user's own components too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from asrtool import config, hub
from asrtool.data import tokenizers
from asrtool.data.tokenizers import NUM_SPECIAL, Tokenizer
from asrtool.errors import UserError
from asrtool.experiment import DecodeConfig, TrainConfig
from asrtool.log import first_few, logger, plural
from asrtool.model_folder import CONFIG, Experiment, build_model
from asrtool.models import MODELS, Model
from asrtool.nn.meta_device import without_weights
from asrtool.searchers import CtcGreedyConfig
from asrtool.trainer import checkpoint, folder

SHOWN = 8
ABOVE = 3  # parent folders of a file of weights that may be those of its experiment


@dataclass(frozen=True)
class WarmStart:
    """The weights that a training starts from."""

    weights: Path  # a .safetensors file or the folder of a checkpoint
    name: str  # as the user gave it; for a model on the hub with its commit
    vocab: Path | None = None  # folder of their vocabulary; None: unknown
    model: object | None = None  # config of their model; None: unknown

    @classmethod
    def open(cls, init: Path | str) -> WarmStart:
        """init: the folder of a trained model (for its averaged weights), `hf:user/model`, a
        checkpoint folder, or a .safetensors file.
        """
        if not hub.is_reference(init) and not (Path(init) / CONFIG).is_file():
            return cls._of_file(Path(init))
        trained = Experiment.open(init)
        weights = trained.weights(DecodeConfig(searcher=CtcGreedyConfig()))
        name = hub.origin(trained.folder) or str(init)
        return cls(weights, name, trained.folder / "vocab", trained.phase()[1].model)

    @classmethod
    def _of_file(cls, weights: Path) -> WarmStart:
        """A file or checkpoint; if it is inside an experiment, with its vocabulary."""
        for above in list(weights.absolute().parents)[:ABOVE]:
            if (above / CONFIG).is_file() and (above / "vocab" / tokenizers.TOKENS).is_file():
                return cls(weights, str(weights), above / "vocab")
        return cls(weights, str(weights))

    def check(self, phase: TrainConfig, tokenizer: Tokenizer) -> None:
        """Raise `UserError` if the vocabulary of the training contradicts init.vocab."""
        how, old = phase.init.vocab, self._tokens()
        if how != "keep" and old is None:
            raise UserError(
                f"--init {self.name}: init.vocab: {how} needs the vocabulary of these weights: "
                "give the folder of their model"
            )
        if old is None or old == tokenizer.tokens or how == "replace":
            return
        if how == "extend":
            if not _extends(tokenizer.tokens, old):
                raise UserError(
                    f"--init {self.name}: --vocab does not begin with the tokens of its "
                    f"vocabulary: make it by asrtool make_vocab --extend {self.vocab}"
                )
            return
        rows = _axes(phase, tokenizer.size).keys() & checkpoint.shapes(self.weights).keys()
        if rows:
            new = [token for token in tokenizer.tokens if token not in set(old)]
            lacks = f"lacks {len(new)} of them ({first_few(new, SHOWN)})" if new else "has all"
            raise UserError(
                f"--init {self.name} has a vocabulary of {len(old)} tokens, which differs from the "
                f"{tokenizer.size} tokens of --vocab and {lacks}: train with its vocabulary "
                f"(--vocab {self.vocab}), extend it (asrtool make_vocab --extend, init.vocab: "
                f"extend), or replace {first_few(sorted(rows), 2)} (init.vocab: replace)"
            )

    def shapes(
        self, shapes: Mapping[str, tuple[int, ...]], phase: TrainConfig, tokenizer: Tokenizer
    ) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the tensors that `load` would copy into a model."""
        empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        change = self._change(phase, tokenizer)[0] or dict
        return {name: tuple(value.shape) for name, value in change(empty).items()}

    def new(self, phase: TrainConfig, tokenizer: Tokenizer) -> list[str]:
        """Names of the tensors that keep their initialisation since the vocabulary is replaced."""
        return self._change(phase, tokenizer)[1]

    def load(self, model: Model, phase: TrainConfig, tokenizer: Tokenizer) -> None:
        """Copy the weights into a model, and log which tensors were copied and which are new.

        Raises `UserError` if they do not fit.
        """
        change, new = self._change(phase, tokenizer)
        init = phase.init
        try:
            taken = checkpoint.load_model(
                model, self.weights, [*init.missing, *new], init.unused, init.copy, change=change
            )
        except UserError as error:
            raise UserError(f"{error}{self._differences(phase)}") from None
        logger.info(
            "%s: %d of %d tensors were copied", self.name, len(taken), len(model.state_dict())
        )
        old = self._tokens()
        if change is not None and init.vocab == "extend":
            added = tokenizer.tokens[len(old) - 1 : -1]
            text = "%s: %s from the mean of the others: %s"
            count = plural(len(added), "new token starts", "new tokens start")
            logger.info(text, self.name, count, first_few(added, SHOWN))

    def _tokens(self) -> list[str] | None:
        return None if self.vocab is None else tokenizers.load(self.vocab).tokens

    def _change(
        self, phase: TrainConfig, tokenizer: Tokenizer
    ) -> tuple[Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None, list[str]]:
        """How the tensors are changed (None: not at all), and the names of the new ones."""
        old, how = self._tokens(), phase.init.vocab
        if old is None or old == tokenizer.tokens and how != "replace" or how == "keep":
            return None, []
        axes = _axes(phase, tokenizer.size)
        if how == "replace":
            return lambda tensors: {k: v for k, v in tensors.items() if k not in axes}, list(axes)

        def extend(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                name: extended(value, axes[name], tokenizer.size) if name in axes else value
                for name, value in tensors.items()
            }

        return extend, []

    def _differences(self, phase: TrainConfig) -> str:
        """The settings in which the encoders differ, as the end of an error message."""
        if self.model is None or MODELS.name_of(self.model) != MODELS.name_of(phase.model):
            return ""
        there, here = (
            config.encode(type(model), model).get("encoder") for model in (self.model, phase.model)
        )
        before, now = (
            {"phases": {"init": {"model": {"encoder": encoder}}}, "sources": {}}
            for encoder in (there, here)
        )
        found = list(folder.differences(before, now))
        return f"; the configs differ in {first_few(found, SHOWN)}" if found else ""


def extended(rows: Tensor, axis: int, size: int) -> Tensor:
    """A tensor with a row per token along `axis`, extended to `size` tokens. The row of <sos/eos>
    stays the last; the new rows before it are the mean of the ordinary tokens' rows.
    """
    old = rows.shape[axis]
    first, last = rows.narrow(axis, 0, old - 1), rows.narrow(axis, old - 1, 1)
    ordinary = rows.narrow(axis, NUM_SPECIAL - 1, old - NUM_SPECIAL) if old > NUM_SPECIAL else rows
    shape = list(rows.shape)
    shape[axis] = size - old
    return torch.cat([first, ordinary.mean(axis, keepdim=True).expand(shape), last], axis)


def _extends(tokens: list[str], old: list[str]) -> bool:
    return tokens[: len(old) - 1] == old[:-1] and tokens[-1] == old[-1]


def _axes(phase: TrainConfig, size: int) -> dict[str, int]:
    """Name -> axis of the tokens, of each tensor that has one."""
    with without_weights():
        one, other = (build_model(phase, tokens).state_dict() for tokens in (size, size + 1))
    pairs = {name: (one[name].shape, other[name].shape) for name in one}
    return {
        name: next(axis for axis, (a, b) in enumerate(zip(*shapes, strict=True)) if a != b)
        for name, shapes in pairs.items()
        if shapes[0] != shapes[1]
    }
