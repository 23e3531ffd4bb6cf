"""How a pre-trained network is fine-tuned: frozen, by low-rank adapters (LoRA, Hu et al. 2021,
arXiv 2106.09685), or in full.

    W x  becomes  W x + (alpha / rank) B A x

with A (rank, D_in) random and B (D_out, rank) zero, so that the output does not change at first.
peft injects the adapters into the modules named by `targets`, of a `transformers` network or of
asrtool's own Conformer. They are part of the module from the first phase on, so that parameter
names do not change between phases; a phase freezes parameters by `optim.groups`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from safetensors.torch import save_file
from torch import Tensor, nn

from asrtool import torchaudio_adapter
from asrtool.registry import bounded
from asrtool.system import atomic

ADAPTER = "default"  # peft's name of the only adapter
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How a pre-trained part is trained, and the adapters of LoRA.

    The mode alone is allowed in YAML: `tuning: frozen`.
    """

    SHORT: ClassVar[str] = "mode"

    mode: Literal["frozen", "lora", "full"] = "lora"
    rank: int = bounded(16, least=1)
    alpha: float = 16.0
    dropout: float = bounded(0.0, least=0, below=1)  # of the input of an adapter
    # linear layers, by the end of their names
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    layers: tuple[int, int] | None = None  # first and last layer with adapters, from 0; null: all

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1 or not self.targets:
            raise ValueError(
                "LoRA needs a rank of at least 1, alpha above 0, dropout below 1, and at least one "
                "target"
            )
        if self.layers is not None and not 0 <= self.layers[0] <= self.layers[1]:
            raise ValueError(
                f"layers must be [first, last], counted from 0; got {list(self.layers)}"
            )


@dataclass(frozen=True, kw_only=True)
class EncoderTuning(Tuning):
    """Rank and alpha of arXiv 2406.17272 for the encoder; the paper does not name its targets."""

    rank: int = bounded(8, least=1)
    targets: tuple[str, ...] = ("q_proj", "v_proj")


def apply(
    tuning: Tuning, module: nn.Module, name: str, new: tuple[str, ...] = ()
) -> frozenset[str]:
    """Inject the adapters of `tuning`; returns the names of the parameters of `module` that are
    never trained.

    name: of the part, for messages. new: names of submodules that are not pre-trained: with LoRA
    they get no adapters and are trained in full. Raises `ValueError` if a target or a layer does
    not exist.
    """
    if tuning.mode == "full":
        return frozenset()
    keys = (key for key, _ in module.named_parameters())
    if tuning.mode == "lora":
        _inject(tuning, module, name, new)
        keys = (key for key, _ in module.named_parameters() if not is_in(key, new))
    return frozenset(key for key in keys if not is_adapter(key))


def is_in(key: str, modules: tuple[str, ...]) -> bool:
    """Whether the parameter `key` belongs to a submodule with one of these names."""
    return any(f".{module}." in f".{key}" for module in modules)


def is_adapter(key: str) -> bool:
    """Whether the parameter `key` belongs to an adapter."""
    return ".lora_" in key


def _inject(tuning: Tuning, module: nn.Module, name: str, new: tuple[str, ...]) -> None:
    torchaudio_adapter.load()  # before peft, which imports torchaudio
    from peft import inject_adapter_in_model

    linear = {
        key.rpartition(".")[2]
        for key, part in module.named_modules()
        if isinstance(part, nn.Linear)
    }
    unknown = sorted(
        set(tuning.targets) - {key.rpartition(".")[2] for key, _ in module.named_modules()}
    )
    if unknown:
        raise ValueError(
            f"{name}: the LoRA target '{unknown[0]}' matches no module; the linear layers of this "
            f"network are {', '.join(sorted(linear))}"
        )
    config = settings(tuning)
    if new:
        config.exclude_modules = rf"(.*\.)?({'|'.join(new)})\..*"
    inject_adapter_in_model(config, module)
    adapters = [(key, value) for key, value in module.named_parameters() if is_adapter(key)]
    if not adapters:
        raise ValueError(
            f"{name}: LoRA found no target in layers {tuning.layers[0]} to {tuning.layers[1]}"
        )
    for _, value in adapters:
        # also beside bfloat16 weights, whose 8 bits would round away updates of 1e-4
        value.data = value.data.float()


def settings(tuning: Tuning) -> object:
    """The config as a `peft.LoraConfig`."""
    from peft import LoraConfig

    layers = None if tuning.layers is None else list(range(tuning.layers[0], tuning.layers[1] + 1))
    return LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        target_modules=list(tuning.targets),
        layers_to_transform=layers,
        layers_pattern=None if layers is None else "layers",
        bias="none",
    )


def adapter_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors, under the names of peft's files."""
    return {
        "base_model.model." + key.replace(f".{ADAPTER}.", "."): value.detach().cpu().contiguous()
        for key, value in module.named_parameters()
        if is_adapter(key)
    }


def save(
    tuning: Tuning, module: nn.Module, folder: Path, base: str | None, task: str | None = None
) -> None:
    """Write the adapters of `module` to `folder`, as `peft.PeftModel.from_pretrained` reads them.

    base: name or folder of the network without adapters; task: peft's task type, such as CAUSAL_LM.
    """
    config = settings(tuning)
    config.base_model_name_or_path, config.task_type, config.inference_mode = base, task, True
    with atomic.replacing_folder(folder) as aside:
        save_file(adapter_tensors(module), aside / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(str(aside))


@contextlib.contextmanager
def merged(module: nn.Module) -> Iterator[None]:
    """Within, (alpha / rank) B A is added to W; afterwards W is restored, except for rounding."""
    layers = [
        part
        for part in module.modules()
        if hasattr(part, "merge") and hasattr(part, "get_base_layer")
    ]
    for layer in layers:
        layer.merge()
    try:
        yield
    finally:
        for layer in layers:
            layer.unmerge()


def plain_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The state of `module` under the names that it has without adapters. Within `merged` the
    weights include the adapters.
    """
    return {
        key.replace(".base_layer.", "."): value.detach().cpu()
        for key, value in module.state_dict().items()
        if not is_adapter(key)
    }


def read_adapters(folder: Path) -> dict:
    """The content of adapter_config.json."""
    return json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
