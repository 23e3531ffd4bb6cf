"""A speech encoder, an adapter and a large language model (arXiv 2406.17272).

    x -> encoder -> frames -> adapter -> speech (B, S, D)
    [before] [speech] [after] [y_1 ... y_U]  -> language model -> logits of y_1 ... y_U and the end

`before` and `after` are the prompt around `{speech}`. Only the transcript and its end are scored;
an empty transcript teaches the model to end at once. Encoder and language model are each frozen,
tuned by LoRA or trained whole. Rows are padded on the left, so that all end together: training and
search read the same numbers at the same positions.

Checkpoints leave out pre-trained weights that never change (`pretrained`), and name their origin
instead (`sources`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from asrtool import tuning
from asrtool.downsamplers import DOWNSAMPLERS, Conv1dMlpConfig
from asrtool.encoders import ENCODERS, check_encoder
from asrtool.heads import HEADS, TapHead
from asrtool.models import llm, prompt
from asrtool.models.base import MODELS, AsrModel
from asrtool.models.llm import LlmConfig
from asrtool.models.llm_scorer import right_aligned
from asrtool.models.origins import fingerprint
from asrtool.nn.meta_device import on_meta
from asrtool.registry import OMIT, bounded
from asrtool.tuning import EncoderTuning
from asrtool.types import Batch, EncoderOutput, Padded, both, on_host


@dataclass(frozen=True, kw_only=True)
class SpeechLlmConfig:
    """Encoder, adapter and causal language model, each part frozen, with LoRA, or trained whole."""

    encoder: Annotated[object, ENCODERS]
    # weights of an encoder that asrtool trained (average-10.safetensors); null: none
    encoder_weights: str | None = None
    # tokens of that encoder's own heads, such as the letters by which it finds its key frames;
    # null: those of the language model
    encoder_vocab_size: int | None = bounded(None, least=1, omit=True)
    encoder_tuning: EncoderTuning = field(default_factory=EncoderTuning)
    adapter: Annotated[object, DOWNSAMPLERS] = field(default_factory=Conv1dMlpConfig)
    llm: LlmConfig
    # configs of heads by name, such as speech_key: {type: speech_key, dim: 64}
    heads: dict[str, Annotated[object, HEADS]] | None = field(default=None, metadata=OMIT)


@MODELS.register("speech_llm", SpeechLlmConfig)
class SpeechLlm(AsrModel):
    """Heads: `llm` (B, U + 1, V); `speech` (B, S, D), the adapter's rows; `text` (B, U, D), the
    transcript's embeddings without a gradient; `speech_key` and `text_query`, projections of these
    two (B, S or U, K); `ctc` and `aligned` (B, S, V) over the adapter's rows; and taps of the
    encoder, of which `encoder` is its frames before the adapter.
    """

    def __init__(
        self,
        config: SpeechLlmConfig,
        *,
        input_dim: int,
        vocab_size: int,
        frame_shift: float,
        heads: frozenset[str],
    ) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.encoder = ENCODERS.build(
            config.encoder,
            input_dim=input_dim,
            vocab_size=config.encoder_vocab_size or vocab_size,
            frame_shift=frame_shift,
        )
        check_encoder(self.encoder)
        if config.encoder_weights is not None and not on_meta():
            load_encoder(self.encoder, Path(config.encoder_weights))
        self.frame_shift = self.encoder.frame_shift
        self.llm, self.tokenizer = llm.load(config.llm, vocab_size)
        tokenizer = self.tokenizer
        self.caller = llm.Caller(self.llm)
        self.eos = vocab_size - 1 if tokenizer is None else tokenizer.eos_token_id
        self.prompt = prompt.encode(config.llm.prompt, tokenizer, config.llm.chat)
        for name in ("before", "after"):
            ids = torch.tensor(getattr(self.prompt, name), dtype=torch.int64)
            self.register_buffer(name, ids, persistent=False)
        self.dim = self.llm.get_input_embeddings().embedding_dim
        self.adapter = DOWNSAMPLERS.build(
            config.adapter, dim_in=self.encoder.dim, dim_out=self.dim, vocab_size=vocab_size
        )
        if "speech" in heads:  # the matching loss compares it with the text
            heads = heads | {"text"}
        self.heads = self.build_heads(frozenset(heads), config.heads or {})
        self._check_vocabularies()
        self.blank = self._blank(tokenizer)
        self.frozen = self._tune()
        self.pretrained, self.sources = self._sources()
        if config.llm.gradient_checkpointing:
            # newer versions of transformers renamed the method
            newer = getattr(self.llm, "activation_checkpointing_enable", None)
            (newer or self.llm.gradient_checkpointing_enable)({"use_reentrant": False})

    def _check_vocabularies(self) -> None:
        """Raise `ValueError` if a loss would compare the transcript with tokens of the encoder."""
        size = self.config.encoder_vocab_size
        if size is None or size == self.vocab_size:
            return
        taps = [
            name
            for name, head in self.heads.items()
            if isinstance(head, TapHead) and head.alignment is not None
        ]
        if taps:
            raise ValueError(
                f"the head '{taps[0]}' of the encoder has {size} tokens of its own "
                f"(encoder_vocab_size), and transcripts are in the {self.vocab_size} of the "
                "language model: train the encoder by itself, and remove the loss here"
            )

    def _blank(self, tokenizer: object | None) -> int | None:
        """The blank, token 0, if a head needs one; else None, and every token may be written.

        Raises `ValueError` if token 0 is text in this tokenizer.
        """
        aligned = [name for name, head in self.heads.items() if head.alignment is not None]
        if not aligned:
            return None
        if tokenizer is not None and 0 not in tokenizer.all_special_ids:
            token = tokenizer.convert_ids_to_tokens(0)
            raise ValueError(
                f"the head '{aligned[0]}' takes token 0 as its blank, which is the text '{token}' "
                "in this tokenizer; remove the loss, or use a language model whose token 0 is "
                "special"
            )
        return 0

    def _tune(self) -> frozenset[str]:
        """Inject adapters and set `requires_grad`; returns the names of frozen parameters."""
        parts = {"encoder": self.config.encoder_tuning, "llm": self.config.llm.tuning}
        inside = self.encoder.frozen
        if inside and parts["encoder"].mode == "lora":
            raise ValueError(
                "the encoder has a tuning of its own, and encoder_tuning: lora would add adapters "
                "to it again; set encoder_tuning: full, or remove the encoder's own tuning"
            )
        frozen = {f"encoder.{key}" for key in inside}
        modules = {"encoder": self.encoder, "llm": self.llm}
        for name, part in parts.items():
            names = tuning.apply(part, modules[name], f"model.{name}")
            frozen |= {f"{name}.{key}" for key in names}
        for key, value in self.named_parameters():
            value.requires_grad_(key not in frozen)
        return frozenset(frozen)

    def _sources(self) -> tuple[frozenset[str], tuple[Mapping[str, str | None], ...]]:
        """Names of the tensors that checkpoints leave out, and fingerprints of their origins."""
        config, encoder = self.config, self.config.encoder
        weights = {
            "encoder": (config.encoder_weights or encoder.weights, encoder.revision),
            "llm": (config.llm.weights, config.llm.revision),
        }
        known = {part: origin for part, origin in weights.items() if origin[0] is not None}
        names = frozenset(key for key in self.frozen if key.partition(".")[0] in known)
        # the encoder may freeze a part itself, such as a front end, with a source of its own
        names |= {f"encoder.{key}" for key in self.encoder.pretrained}
        inside = (source.below("encoder") for source in self.encoder.sources)
        known = {source.part: (source.weights, source.revision) for source in inside} | known
        if on_meta():
            return names, ()
        return names, tuple(fingerprint(*origin, part) for part, origin in known.items())

    # -- training ------------------------------------------------------------

    def read(self, speech: Padded, targets: Padded | None = None) -> tuple[Tensor, Tensor]:
        """The language model's input: embeddings (B, K, D), padded on the left, and mask (B, K).

        speech (B, S, D): the adapter's rows; targets (B, U): the transcript, None in recognition.
        """
        table, lengths = self.llm.get_input_embeddings(), speech.lengths
        before, after = (self._prompt(table(ids), lengths) for ids in (self.before, self.after))
        parts = [before, Padded(speech.data.to(table.weight.dtype), lengths), after]
        if targets is not None:
            parts.append(Padded(table(targets.data), targets.lengths))
        known = on_host(both(lambda *values: sum(values), *(part.lengths for part in parts)))
        # the host does not know how many key frames there are: then there is room for all
        size = sum(part.data.shape[1] for part in parts) if known is None else int(known.max())
        # logits are read at the last U + 1 positions, so every row must have as many
        least = 0 if targets is None else targets.data.shape[1] + 1
        return right_aligned(parts, max(size, least))

    @staticmethod
    def _prompt(embeddings: Tensor, lengths: Tensor) -> Padded:
        """Embeddings (P, D), the same for each row of lengths (B,) -> (B, P, D)."""
        rows = embeddings.expand(len(lengths), -1, -1)
        return Padded(rows, both(lambda n: torch.full_like(n, len(embeddings)), lengths))

    def check_room(self, utterances: Iterable[tuple[str, float, Sequence[int]]]) -> None:
        """Raise `ValueError` if an utterance exceeds the language model's context."""
        context = llm.context_of(self.llm)
        for name, seconds, tokens in utterances if context is not None else ():
            rows = math.ceil(seconds / (self.frame_shift * self.adapter.factor))
            if rows + len(self.prompt) + len(tokens) > context:
                raise ValueError(
                    f"{name}: prompt, speech and transcript take about {len(self.prompt)} + "
                    f"{rows} + {len(tokens)} positions, but the language model reads at most "
                    f"{context}; lower data.max_seconds, or use an adapter with a higher rate"
                )

    def check_batch(self, speech_lengths: Tensor, batch: Batch) -> None:
        """Raise `ValueError` if an utterance of the batch exceeds the language model's context."""
        context = llm.context_of(self.llm)
        speech, text = on_host(speech_lengths), on_host(batch.targets.lengths)
        # after key frames only a GPU knows how many rows there are: there, `check_room` has looked
        # at the seconds
        if context is None or speech is None or text is None:
            return
        needed = speech + text + len(self.prompt)
        if int(needed.max()) <= context:
            return
        row = int(needed.argmax())
        raise ValueError(
            f"{batch.ids[row]}: prompt, speech and transcript take {len(self.prompt)} + "
            f"{int(speech[row])} + {int(text[row])} positions, but the language model reads at "
            f"most {context}; lower data.max_seconds, or use an adapter with a higher rate"
        )

    # -- recognition ---------------------------------------------------------

    def encode(self, inputs: Padded, chunk: int | None = None) -> EncoderOutput:
        """Inputs (B, T, F) or (B, T) -> the adapter's rows (B, S, D), D of the language model."""
        encoded = self.encoder(inputs, chunk)
        output = self.adapter(encoded.frames, encoded.positions)
        taps = {"encoder": encoded.frames, **encoded.taps, **output.taps}
        return EncoderOutput(frames=output.frames, positions=output.positions, taps=taps)

    def tokens_of(self, text: str) -> list[int]:
        """The language model's own tokens of a text. Raises `ValueError` if it is from scratch."""
        if self.tokenizer is None:
            raise ValueError(
                "a language model from scratch has no tokenizer to divide a text into tokens"
            )
        text = " ".join(text.split())
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def respelled(self, tokens: Sequence[int]) -> list[int]:
        """The language model's own tokens of the text of `tokens`, without ends and the like.

        They are unchanged if it is from scratch.
        """
        if self.tokenizer is None:
            return [token for token in tokens if token != self.eos]
        return self.tokens_of(self.tokenizer.decode(tokens, skip_special_tokens=True))


def load_encoder(encoder: nn.Module, path: Path) -> None:
    """Load an encoder from the weights of a model with the same encoder, such as
    average-10.safetensors; what that model left out, such as a frozen front end, stays as built.
    Raises `ValueError` if they cannot be read or do not fit.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"model.encoder_weights {path} cannot be read ({error}); give the .safetensors file "
            "of a trained model, such as average-10.safetensors"
        ) from error
    state = {
        key.removeprefix("encoder."): value
        for key, value in tensors.items()
        if key.startswith("encoder.")
    }
    built = {key: value for key, value in encoder.state_dict().items() if key in encoder.pretrained}
    try:
        encoder.load_state_dict(built | state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"model.encoder_weights {path} do not fit model.encoder ({reason}); give model.encoder "
            "the settings that it was trained with"
        ) from error
