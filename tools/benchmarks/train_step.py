"""The speed of a training step of the Conformer encoder: ESPnet, SpeechBrain and WeNet beside it.

In an environment of its own:

    pip install torch==2.13.0 && pip install --no-deps espnet speechbrain
    pip install typeguard humanfriendly hyperpyyaml sentencepiece soundfile librosa joblib
    PYTHONPATH=.:<WeNet's repository> python tools/benchmarks/train_step.py layers  # all in float32
    PYTHONPATH=. python tools/benchmarks/train_step.py encoder   # with conv2d stems of 256 channels
    PYTHONPATH=. python tools/benchmarks/train_step.py default   # the defaults of each toolkit
    PYTHONPATH=. python tools/benchmarks/train_step.py compiled  # asrtool's layers, and compiled

CPU seconds on one thread. A step is forward, backward and update of 12 layers, width 256, 4 heads,
feed-forward 2048, kernel 15, dropout 0.1, on 8 utterances of 8 to 10 seconds. Runs are interleaved;
a ratio is the median over rounds of the peer's seconds / asrtool's. A peer that is missing is left
out. WeNet's scores of positions are no function of distance (its attention leaves the shift out).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn

from asrtool.downsamplers import DOWNSAMPLERS, Conv2dConfig
from asrtool.downsamplers.base import Downsampler
from asrtool.encoders import ConformerConfig
from asrtool.encoders.conformer import Conformer
from asrtool.trainer import parallel
from asrtool.trainer.precision import DTYPES, choose
from asrtool.types import DownsamplerOutput, Padded

BINS, DIM, HEADS, FFN, KERNEL, DROPOUT = 80, 256, 4, 2048, 15, 0.1


@dataclass(frozen=True, kw_only=True)
class NoStemConfig:
    """No stem: the input is frames, so that the layers alone are measured."""


@DOWNSAMPLERS.register("none", NoStemConfig)
class NoStem(Downsampler):
    factor = 1

    def __init__(self, config: NoStemConfig, dim_in: int, dim_out: int, vocab_size: int) -> None:
        super().__init__()

    def forward(self, inputs: Padded, positions: Tensor | None = None) -> DownsamplerOutput:
        frame_indices = torch.arange(inputs.data.shape[1]).expand(inputs.data.shape[:2])
        return DownsamplerOutput(frames=inputs, positions=frame_indices)


def ours(
    layers: int, positions: str, downsampler: object
) -> tuple[nn.Module, Callable[[Padded], Tensor]]:
    config = ConformerConfig(
        num_layers=layers,
        dim=DIM,
        num_heads=HEADS,
        ffn_dim=FFN,
        kernel=KERNEL,
        dropout=DROPOUT,
        positions=positions,
        downsamplers={0: downsampler},
    )
    encoder = Conformer(config, input_dim=BINS, vocab_size=1000, frame_shift=0.01)
    return encoder, lambda inputs: encoder(inputs).frames.data


# as ESPnet calls it, and WeNet, which took its encoder over
SHAPE = {
    "output_size": DIM,
    "attention_heads": HEADS,
    "linear_units": FFN,
    "dropout_rate": DROPOUT,
    "positional_dropout_rate": DROPOUT,
    "cnn_module_kernel": KERNEL,
}


def espnet(layers: int, stem: bool) -> tuple[nn.Module, Callable[[Padded], Tensor]]:
    from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

    encoder = ConformerEncoder(
        BINS if stem else DIM,
        num_blocks=layers,
        **SHAPE,
        attention_dropout_rate=0.0,
        macaron_style=True,
        input_layer="conv2d" if stem else None,
        rel_pos_type="latest",
        pos_enc_layer_type="rel_pos",
        selfattention_layer_type="rel_selfattn",
        activation_type="swish",
    )
    return encoder, lambda inputs: encoder(inputs.data, inputs.lengths)[0]


def speechbrain(layers: int, stem: str | None) -> tuple[nn.Module, Callable[[Padded], Tensor]]:
    """SpeechBrain's encoder.

    stem: None, `conv2d` (ESPnet's) or `own` (the front end of SpeechBrain's LibriSpeech recipes).
    """
    try:
        importlib.import_module("torchaudio")
    except (ImportError, OSError):  # imported by the package, not used by the Conformer
        sys.modules["torchaudio"] = MagicMock(__version__="2.11.0")
    from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
    from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
    from speechbrain.nnet.attention import RelPosEncXL

    front: nn.Module = nn.Identity()
    if stem == "conv2d":
        front = DOWNSAMPLERS.build(
            Conv2dConfig(channels=256), dim_in=BINS, dim_out=DIM, vocab_size=1000
        )
    elif stem == "own":
        front = nn.Sequential(
            ConvolutionFrontEnd(
                (8, 10, BINS),
                num_blocks=2,
                num_layers_per_block=1,
                out_channels=(64, 32),
                kernel_sizes=(3, 3),
                strides=(2, 2),
                residuals=(False, False),
            ),
            nn.Flatten(2),
            nn.Linear(20 * 32, DIM),
            nn.Dropout(DROPOUT),
        )
    encoder = ConformerEncoder(
        num_layers=layers, d_model=DIM, d_ffn=FFN, nhead=HEADS, kernel_size=KERNEL, dropout=DROPOUT
    )
    relative_positions = RelPosEncXL(DIM)

    def forward(inputs: Padded) -> Tensor:
        x = front(inputs).frames.data if stem == "conv2d" else front(inputs.data)
        lengths = inputs.lengths * x.shape[1] // inputs.data.shape[1]
        padding = ~Padded(x, lengths).mask
        return encoder(x, src_key_padding_mask=padding, pos_embs=relative_positions(x))[0]

    return nn.ModuleList([front, encoder]), forward


def wenet(layers: int, stem: bool, fused: bool) -> tuple[nn.Module, Callable[[Padded], Tensor]]:
    """WeNet's encoder. fused: with torch's scaled_dot_product_attention."""
    spec = importlib.util.find_spec("wenet")
    if spec is None:
        raise ImportError("its repository is not in PYTHONPATH", name="wenet")
    # the package would import its command line, and parts that the Conformer does not use
    sys.modules["wenet"] = importlib.util.module_from_spec(spec)
    for name in ("whisper", "whisper.tokenizer", "wenet.models.squeezeformer.subsampling"):
        sys.modules[name] = MagicMock()
    from wenet.models.transformer.encoder import ConformerEncoder

    encoder = ConformerEncoder(
        BINS if stem else DIM,
        num_blocks=layers,
        **SHAPE,
        input_layer="conv2d" if stem else "linear",
        use_sdpa=fused,
    )
    if not stem:
        encoder.embed.out = nn.Identity()
    return encoder, lambda inputs: encoder(inputs.data, inputs.lengths)[0]


class Contender:
    """One encoder with its optimizer; `step` returns CPU seconds."""

    def __init__(
        self,
        built: tuple[nn.Module, Callable],
        optimizer: Callable,
        precision: torch.dtype,
        device: str = "cpu",
    ) -> None:
        self.module, self.forward = built
        self.module.to(device).train()
        self.device = device
        self.optimizer = optimizer(self.module.parameters(), lr=1e-4)
        self.precision = precision

    def step(self, inputs: Padded) -> float:
        start = time.process_time()
        self.optimizer.zero_grad()
        reduced = self.precision is not torch.float32
        with torch.autocast(self.device, self.precision if reduced else None, enabled=reduced):
            frames = self.forward(inputs)
        frames.float().square().mean().backward()
        self.optimizer.step()
        return time.process_time() - start


def fused(parameters, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, fused=True)


# encoders by the number of layers, and whether they have a conv2d stem of 256 channels
Built = tuple[nn.Module, Callable[[Padded], Tensor]]
ENCODERS: dict[str, Callable[[int, bool], Built]] = {
    "asrtool": lambda layers, stem: ours(layers, "relative", stem_of(stem)),
    "asrtool, rotary": lambda layers, stem: ours(layers, "rotary", stem_of(stem)),
    "ESPnet": espnet,
    "SpeechBrain": lambda layers, stem: speechbrain(layers, "conv2d" if stem else None),
    "WeNet": lambda layers, stem: wenet(layers, stem, fused=False),
    "WeNet, SDPA": lambda layers, stem: wenet(layers, stem, fused=True),
}


def stem_of(stem: bool) -> object:
    return Conv2dConfig(channels=256) if stem else NoStemConfig()


def compiled(built: Built, backend: str = "inductor") -> Built:
    """The same encoder, each of whose layers is compiled, as by `trainer.compile`."""
    parallel.compile_layers(built[0], backend)
    return built


def contenders(kind: str, layers: int) -> dict[str, Contender]:
    """Name -> encoder and optimizer; the first one is the reference of the ratios."""
    if kind == "default":
        fast = DTYPES[choose("auto", torch.device("cpu"))]
        return {
            "asrtool": Contender(ours(layers, "rotary", Conv2dConfig()), fused, fast),
            "asrtool, float32": Contender(
                ours(layers, "rotary", Conv2dConfig()), fused, torch.float32
            ),
            "ESPnet": Contender(espnet(layers, stem=True), torch.optim.Adam, torch.float32),
            "SpeechBrain": Contender(speechbrain(layers, "own"), torch.optim.AdamW, torch.float32),
        }
    if kind == "compiled":
        plain = ENCODERS["asrtool"]
        return {
            "asrtool": Contender(plain(layers, False), fused, torch.float32),
            "asrtool, compiled": Contender(compiled(plain(layers, False)), fused, torch.float32),
        }
    built = {}
    for name, build in ENCODERS.items():
        try:
            built[name] = build(layers, kind == "encoder")
        except ImportError as error:
            print(f"{name} is left out: {error}")
    return {name: Contender(encoder, fused, torch.float32) for name, encoder in built.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("layers", "encoder", "default", "compiled"))
    parser.add_argument("--num-layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    width, frames = (DIM, 250) if args.kind in ("layers", "compiled") else (BINS, 1000)
    inputs = Padded(torch.randn(8, frames, width), torch.linspace(0.8, 1, 8).mul(frames).long())
    field = contenders(args.kind, args.num_layers)
    seconds: dict[str, list[float]] = {name: [] for name in field}
    for turn in range(args.rounds + 1):
        for name, contender in field.items():
            spent = contender.step(inputs)
            if turn:  # the first round is a warm-up
                seconds[name].append(spent)
    first = next(iter(field))
    for name, times in seconds.items():
        ratio = median(other / own for other, own in zip(times, seconds[first], strict=True))
        print(f"{name:20s} {median(times):8.3f} CPU s   ratio {ratio:5.2f}")


if __name__ == "__main__":
    main()
