"""The interface of models for training and search, and their registry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from asrtool.downsamplers import Downsampler
from asrtool.encoders import Encoder
from asrtool.heads import HEADS, Search, names_of, ranked
from asrtool.registry import Registry, UnknownName
from asrtool.types import Batch, EncoderOutput, ModelOutput, Padded, Trainable


class Model(Trainable):
    """A network that is trained. Built by `MODELS.build(config, input_dim=F, vocab_size=V,
    frame_shift=seconds per input step, heads={"ctc", ...})`.

    `heads` are the names that the configured losses read: a head exists only if a loss reads it.
    """

    eos: int  # the id of sos and eos
    frame_shift: float  # seconds per encoder position

    def forward(self, batch: Batch) -> ModelOutput:
        """Training: the output of every head."""
        raise NotImplementedError


class AsrModel(Model):
    """An encoder and heads: x -> encoder -> taps and frames (B, S, D) -> heads."""

    encoder: Encoder
    dim: int  # D, of the frames that heads read
    vocab_size: int  # V
    blank: int | None = 0  # id of the blank; None: there is none
    heads: nn.ModuleDict

    def build_heads(self, names: frozenset[str], configs: Mapping[str, object]) -> nn.ModuleDict:
        """A head for each name that a loss reads, with its config or the default one.

        Raises `ValueError` for a config that no loss needs, and for a name without a config that is
        no registered head.
        """
        idle = sorted(set(configs) - names)
        if idle:
            raise ValueError(
                f"model.heads has '{idle[0]}', but no loss reads it; remove it, or add a loss "
                f"with input: {idle[0]}"
            )
        heads = nn.ModuleDict()
        chosen = {name: configs.get(name) or default_head(name) for name in sorted(names)}
        # In the order of registration, whatever the order of the config: the order of parameters
        # decides how rounding errors add up, for example in the norm of the gradient.
        for name in sorted(chosen, key=lambda name: HEADS.position(chosen[name])):
            heads[name] = HEADS.build(chosen[name], name=name, model=self)
        return heads

    def forward(self, batch: Batch) -> ModelOutput:
        for module in self.modules():
            if isinstance(module, Downsampler):
                module.longest_text = batch.targets.data.shape[1]
        encoded = self.encode(batch.inputs)
        return ModelOutput(
            encoder=encoded,
            heads={name: head(encoded, batch) for name, head in self.heads.items()},
        )

    def encode(self, inputs: Padded, chunk: int | None = None) -> EncoderOutput:
        """inputs (B, T, F) or (B, T); `chunk` as in `Encoder.forward`."""
        raise NotImplementedError

    def check_room(self, utterances: Iterable[tuple[str, float, Sequence[int]]]) -> None:
        """Raise `ValueError` if an utterance is too long for the model.

        utterances: id, seconds and tokens of all training utterances.
        """

    def log_probs(self, encoded: EncoderOutput, head: str = "ctc") -> Padded:
        """(B, S, V) float32 log-probabilities of a frame-synchronous head.

        Raises `LookupError` if the model lacks the head, or the head has none.
        """
        if head not in self.heads:
            raise LookupError(
                f"no loss trained the head '{head}' (heads of this model: {names_of(self.heads)})"
            )
        return self.heads[head].log_probs(encoded)

    def scorers(self) -> Mapping[str, object]:
        """Label-synchronous networks by the name of their head; each implements `Scorer`."""
        scorers = {name: head.scorer() for name, head in self.heads.items()}
        return {name: scorer for name, scorer in scorers.items() if scorer is not None}

    def rescorers(self) -> Mapping[str, object]:
        """Networks that score whole sequences: scorers, and those from right to left."""
        scorers = {name: head.rescorer() for name, head in self.heads.items()}
        return {name: scorer for name, scorer in scorers.items() if scorer is not None}

    def default_search(self) -> Search | None:
        """The default search: that of the highest-ranking head that has one; None: no head has."""
        searches = (head.search(self.heads) for head in ranked(self.heads))
        return next((search for search in searches if search is not None), None)

    def default_streaming_search(self) -> Search | None:
        """The default search in streaming, chosen likewise."""
        searches = (head.streaming_search(self.heads) for head in ranked(self.heads))
        return next((search for search in searches if search is not None), None)


def default_head(name: str) -> object:
    """The config of the head `name` if `model.heads` has none. Raises `ValueError` without one."""
    try:
        return HEADS.config_type(name)()
    except UnknownName:
        raise ValueError(
            f"a loss reads the head '{name}': give it a type in model.heads "
            f"(types: {', '.join(HEADS.names())})"
        ) from None
    except TypeError:
        raise ValueError(
            f"a loss reads the head '{name}', which needs settings: give them in model.heads"
        ) from None


MODELS: Registry[Model] = Registry("model")
