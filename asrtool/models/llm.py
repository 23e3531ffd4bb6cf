"""A causal language model of `transformers`, by hub name or folder: to load, check and call it.

Differences between the models of `transformers` are handled here; the rest of the package sees
logits.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from asrtool import torchaudio_adapter
from asrtool.log import logger
from asrtool.models.prompt import SPEECH, check_template
from asrtool.nn.meta_device import on_meta
from asrtool.tuning import Tuning

Shape = Literal["llama-tiny", "llama-mini", "llama-50m", "llama-1.1b", "llama-7b"]
# Llamas that can be built without weights: width, layers, heads, key/value heads, feed-forward
# width, context.
_SHAPES = {
    "llama-tiny": (32, 2, 2, 2, 64, 512),
    "llama-mini": (192, 4, 4, 4, 512, 1024),
    "llama-50m": (512, 12, 8, 8, 1536, 2048),
    "llama-1.1b": (2048, 22, 32, 4, 5632, 2048),
    "llama-7b": (4096, 32, 32, 32, 11008, 4096),
}
_UNREAD = "sdpa_unread_masks"  # name of an attention of `transformers`
_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
_TIED_BELOW = 1000  # width below which a model from scratch shares embedding and output weights


@dataclass(frozen=True, kw_only=True)
class LlmConfig:
    """A causal language model and its prompt."""

    # hub name or local folder of a `transformers` model; null: from scratch
    weights: str | None = None
    revision: str | None = None  # of the hub's model: a commit, tag or branch
    shape: Shape | None = None  # of a model from scratch
    prompt: str = "{speech}USER: Transcribe speech to text. ASSISTANT:"
    # true: `prompt` is the user's message in the tokenizer's chat template
    chat: bool = False
    precision: Literal["float32", "bf16"] = "float32"  # of the weights that are not trained
    # recompute the layers in the backward pass: less memory, a third slower
    gradient_checkpointing: bool = False
    tuning: Tuning = field(default_factory=Tuning)

    def __post_init__(self) -> None:
        check_template(self.prompt)
        if self.weights is None and self.shape is None:
            raise ValueError(
                "give weights (a hub name or a folder), or shape for a language model from scratch"
            )
        if self.weights is None and (self.chat or self.prompt != SPEECH):
            raise ValueError(
                f"a language model from scratch cannot read a prompt: set prompt: '{SPEECH}' and "
                "chat: false"
            )
        if self.tuning.mode == "full" and self.precision != "float32":
            raise ValueError(
                "precision: bf16 is for weights that are not trained; tuning.mode: full needs "
                "float32"
            )


def load(config: LlmConfig, vocab_size: int) -> tuple[nn.Module, object | None]:
    """The model and its tokenizer; None for a model from scratch, which uses the recipe's tokens.

    On the meta device, weights are not read, and a hub name stands for the configured `shape`.
    Raises `ValueError` if the weights cannot be read or do not fit the vocabulary.
    """
    torchaudio_adapter.load()  # before transformers, which imports torchaudio
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    known = config.weights is not None and not (
        on_meta() and config.shape is not None and not _is_folder(config)
    )
    if not known:
        model = AutoModelForCausalLM.from_config(_of_shape(config, vocab_size))
        return without_waiting(model), None
    hub = {"revision": config.revision or "main", "local_files_only": _is_folder(config)}
    try:
        settings = AutoConfig.from_pretrained(config.weights, **hub)
        tokenizer = AutoTokenizer.from_pretrained(config.weights, **hub)
        if on_meta():
            return AutoModelForCausalLM.from_config(settings), tokenizer
        dtype = _DTYPES[config.precision]
        model = AutoModelForCausalLM.from_pretrained(
            config.weights, dtype=dtype, low_cpu_mem_usage=True, **hub
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"llm.weights {config.weights} cannot be read ({reason}); expected a folder with "
            "config.json, tokenizer and safetensors of a causal language model, or a model's name "
            "on the Hugging Face hub: correct llm.weights, or download the model and give its "
            "folder"
        ) from error
    check_tokenizer(config, tokenizer, model, vocab_size)
    return without_waiting(model), tokenizer


def without_waiting(model: nn.Module) -> nn.Module:
    """The model, with masks of padding that are applied whatever they hide.

    Its fused attention would look first whether a mask hides anything, and wait for a GPU's answer;
    `Caller` gives a mask only where it may.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def mask(*sizes: object, attention_mask: Tensor | None = None, **options: object):
        skips = options.pop("allow_is_causal_skip", True) and attention_mask is None
        return sdpa_mask(
            *sizes, attention_mask=attention_mask, allow_is_causal_skip=skips, **options
        )

    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(_UNREAD, sdpa_attention_forward)
        AttentionMaskInterface.register(_UNREAD, mask)
        model.set_attn_implementation(_UNREAD)
    return model


def check_tokenizer(
    config: LlmConfig, tokenizer: object, model: nn.Module, vocab_size: int
) -> None:
    """Raise `ValueError` if tokenizer, language model and the recipe's vocabulary do not fit."""
    rows = model.get_input_embeddings().num_embeddings
    # More rows than tokens are normal: many models pad their embeddings to a multiple of 64.
    if len(tokenizer) > rows:
        raise ValueError(
            f"llm.weights {config.weights}: the tokenizer has {len(tokenizer)} tokens, but the "
            f"model has embeddings for {rows}; give a folder whose tokenizer and model belong "
            "together"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"llm.weights {config.weights}: the tokenizer has no end-of-text token (eos_token), "
            "which ends every transcript; set one in its tokenizer_config.json"
        )
    if vocab_size != len(tokenizer):
        raise ValueError(
            f"the vocabulary has {vocab_size} tokens, but the tokenizer of llm.weights "
            f"{config.weights} has {len(tokenizer)}: make the vocabulary from this tokenizer "
            f"(stage 2 with --unit hf --tokenizer {config.weights})"
        )
    if tokenizer.pad_token_id is None:
        logger.info(
            "llm.weights %s: the tokenizer has no padding token; training needs none, because "
            "padding is masked, and exported models use the end token",
            config.weights,
        )


def _is_folder(config: LlmConfig) -> bool:
    return Path(config.weights).is_dir()


def _of_shape(config: LlmConfig, vocab_size: int) -> object:
    from transformers import LlamaConfig

    dim, layers, heads, key_heads, ffn_dim, context = _SHAPES[config.shape]
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        intermediate_size=ffn_dim,
        max_position_embeddings=context,
        tie_word_embeddings=config.weights is None and dim < _TIED_BELOW,
        pad_token_id=None,
        bos_token_id=vocab_size - 1 if config.weights is None else 1,
        eos_token_id=vocab_size - 1 if config.weights is None else 2,
    )


class Caller:
    """Calls a causal language model with those optional arguments that its `forward` takes."""

    def __init__(self, model: nn.Module) -> None:
        self.takes = frozenset(inspect.signature(model.forward).parameters)
        head = model.get_output_embeddings()
        if head is not None:
            head.register_forward_pre_hook(_whole)

    def __call__(
        self, model: nn.Module, embeddings: Tensor, mask: Tensor, keep: int, cache: object = None
    ):
        """embeddings (B, Q, D) of the new positions, mask (B, K) of cached and new ones, True =
        valid -> the output of `transformers`, with `logits` (B, keep, V) of the last `keep`
        positions.
        """
        # only valid positions are counted, so that padding on the left shifts nothing
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)[
            :, mask.shape[1] - embeddings.shape[1] :
        ]
        arguments = {"inputs_embeds": embeddings, "use_cache": cache is not None}
        # Attention is faster without a mask. On a GPU, asking whether one is needed would wait for
        # the device.
        if mask.device.type != "cpu" or not bool(mask.all()):
            arguments["attention_mask"] = mask.long()
        optional = {"position_ids": positions, "logits_to_keep": keep, "past_key_values": cache}
        arguments |= {
            name: value
            for name, value in optional.items()
            if name in self.takes and value is not None
        }
        output = model(**arguments)
        # a model without `logits_to_keep` returns the logits of all positions
        output.logits = output.logits[:, -keep:]
        return output


def _whole(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """The last positions (B, keep, D) as one block of memory: of a slice, the product with weights
    that are not trained would read these once per utterance.
    """
    return tuple(value.contiguous() for value in inputs)


def context_of(model: nn.Module) -> int | None:
    """The maximum number of positions that the model reads; None if its config has none."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)
