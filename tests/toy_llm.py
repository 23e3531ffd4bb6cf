"""Tiny pre-trained parts for a speech LLM, saved as `transformers` folders: a Llama with a
tokenizer of characters, and an encoder; all random."""

from __future__ import annotations

from pathlib import Path

import torch

from asrtool import torchaudio_adapter
from asrtool.bin import extract_features, make_vocab
from asrtool.downsamplers import Conv1dMlpConfig
from asrtool.encoders import ENCODERS
from asrtool.models import SpeechLlm, SpeechLlmConfig
from asrtool.models.llm import LlmConfig
from asrtool.tuning import EncoderTuning, Tuning
from asrtool.types import Batch, Padded
from tests import toy_experiment

CONFIG = """
data:
  features: online
  fbank: {{num_mel_bins: 20, rate: 8000}}
  batch: {{seconds: 20}}
  augment:
    non_speech: {{set: noise, share: 0.2, seconds: [0.5, 2.0]}}
    babble: {{set: train, share: 0.2, speakers: [2, 3]}}
  workers: 0
model:
  type: speech_llm
  encoder: {{type: conformer, num_layers: 1, dim: 32, num_heads: 2, ffn_dim: 64, kernel: 7,
    dropout: 0.0,
            downsamplers: {{0: {{type: conv2d, factor: 4, channels: 8}}}}}}
  encoder_tuning: {{mode: full}}
  adapter: {{type: conv1d_mlp, rate: 2, hidden_dim: 32}}
  llm: {{weights: {llm}, prompt: "{{speech}}:", tuning: {{rank: 2}}}}
losses:
  lm: {{type: cross_entropy, weight: 1.0, input: llm, smoothing: 0.0}}
  matching: {{type: matching, weight: 0.1}}
optim: {{lr: 5e-3}}
trainer: {{steps: 4, average: 1, best: valid/token_error}}
phases:
  adapter: {{optim: {{groups: {{"llm.*": {{freeze: true}}}}}}}}
  both: {{trainer: {{steps: 3}}}}
"""
LETTERS = "abcdefghijklmnopqrstuvwxyz :.'"
PROMPT = "{speech}user: write. assistant:"


def tokenizer(bos: bool = True, pad: bool = False) -> object:
    """Characters; `<unk>` is 0, `<s>` 1, `</s>` 2."""
    torchaudio_adapter.load()  # before transformers, which imports torchaudio
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", *LETTERS, *(["<pad>"] if pad else [])]
    inner = Tokenizer(
        models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = decoders.Fuse()
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    special = {"pad_token": "<pad>"} if pad else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **special
    )


def save_llm(folder: Path, seed: int = 0, context: int = 256, **settings) -> Path:
    """A random Llama with its tokenizer."""
    found = tokenizer(**{key: settings.pop(key) for key in ("bos", "pad") if key in settings})
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            **shape,
            "num_key_value_heads": 1,
            "vocab_size": len(found),
            "max_position_embeddings": context,
            **settings,
        },
        initializer_range=0.5,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))
    found.save_pretrained(str(folder))
    return folder


def save_hubert(folder: Path, seed: int = 0) -> Path:
    """A random HuBERT of the size `tiny`."""
    torch.manual_seed(seed)
    ENCODERS.build(
        ENCODERS.config_type("hubert")(size="tiny"),
        input_dim=1,
        vocab_size=5,
        frame_shift=1 / 16000,
    ).model.save_pretrained(str(folder))
    return folder


def config(llm: Path, hubert: Path | None = None, **settings) -> SpeechLlmConfig:
    """HuBERT where a folder is given, else a Conformer over 20 bins."""
    if hubert is not None:
        encoder = ENCODERS.config_type("hubert")(weights=str(hubert))
    else:
        shape = {
            "num_layers": 2,
            "dim": 16,
            "num_heads": 2,
            "ffn_dim": 32,
            "kernel": 3,
            "dropout": 0.0,
        }
        encoder = ENCODERS.config_type("conformer")(**shape)
    parts = {
        "encoder": encoder,
        "adapter": Conv1dMlpConfig(rate=4, hidden_dim=24),
        "encoder_tuning": EncoderTuning(rank=2, alpha=4),
        "llm": LlmConfig(weights=str(llm), prompt=PROMPT, tuning=Tuning(rank=2, alpha=4)),
    }
    return SpeechLlmConfig(**{**parts, **settings})


def build(parts: SpeechLlmConfig, heads=("llm",), seed: int = 1) -> SpeechLlm:
    """With adapters whose B is no longer zero, so that they count."""
    torch.manual_seed(seed)
    waveform = not hasattr(parts.encoder, "kernel") or parts.encoder.frontend is not None
    model = SpeechLlm(
        parts,
        input_dim=1 if waveform else 20,
        vocab_size=len(LETTERS) + 3,
        frame_shift=1 / 16000 if waveform else 0.01,
        heads=frozenset(heads),
    )
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
    return model.eval()


def batch(waveform: bool, texts=("hello there", "a", "", "one two"), rows=None) -> Batch:
    """Noise of different lengths with these texts."""
    generator = torch.Generator().manual_seed(0)
    scale, shape = (400, ()) if waveform else (1, (20,))
    sizes = [scale * size for size in (60, 23, 37, 90)]
    sounds = [torch.randn(size, *shape, generator=generator) for size in sizes[: len(texts)]]
    ids = {letter: place for place, letter in enumerate(LETTERS, 3)}
    targets = [torch.tensor([ids[letter] for letter in text], dtype=torch.int64) for text in texts]
    rows = list(range(len(texts))) if rows is None else rows
    return Batch(
        ids=tuple(f"u{row}" for row in rows),
        inputs=Padded.stack([sounds[row] for row in rows]),
        targets=Padded.stack([targets[row] for row in rows]),
        texts=tuple(texts[row] for row in rows),
    )


def prepare(root: Path) -> Path:
    """Data, vocabulary and config of a training that `arguments` describes."""
    llm = save_llm(root / "llm")
    (root / "train.yaml").write_text(CONFIG.format(llm=llm))
    for number, name in enumerate(("train", "dev", "noise")):
        toy_experiment.write_set(root / "data" / name, 24 if name == "train" else 6, number)
        training = ["--training"] if name == "train" else []
        places = ["--data", str(root / "data" / name), "--out", str(root / "dump" / name)]
        extract_features.main(
            ["--config", str(root / "train.yaml"), "--nj", "1", *places, *training]
        )
    text = ["--text", str(root / "data/train/text")]
    make_vocab.main([*text, "--unit", "hf", "--tokenizer", str(llm), "--out", str(root / "vocab")])
    return root


def arguments(root: Path) -> list[str]:
    """For `asrtool train`; the last two say where."""
    folders = [
        "--train",
        str(root / "dump/train"),
        "--valid",
        str(root / "dump/dev"),
        "--vocab",
        str(root / "vocab"),
    ]
    return ["--config", str(root / "train.yaml"), *folders, "--exp", str(root / "exp")]
